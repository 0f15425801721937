"""Tables of every kind become the same dataset, and no bad row passes or is replaced."""

import csv
import gzip
import io
import json
import os
import pathlib
import subprocess
import sys
import zipfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from data_pipelines import figure, images
from data_pipelines.mednist import MednistOptions, build_mednist, caption_of
from data_pipelines.modality import MODALITIES
from data_pipelines.table import TableOptions, build_table, read_rows
from jaxclip.data.dataset import Dataset

PROJECT = pathlib.Path(__file__).parents[2]
SHARED = PROJECT / ".." / "shared" / "data"


def encode(shade: int, format: str = "JPEG", size: tuple[int, int] = (24, 20)) -> bytes:
    buffer = io.BytesIO()
    noise = np.random.default_rng(shade).integers(0, 255, (size[1], size[0], 3), np.uint8)
    Image.fromarray(noise).save(buffer, format)
    return buffer.getvalue()


GOOD = {f"a/{i}.jpg": encode(i) for i in range(6)} | {"b.png": encode(9, "PNG")}
ROWS = [
    {
        "file": name,
        "caption": f"caption, {i}\nof “two” lines",
        "article": f"PMC{i // 2}",
        "year": 2000 + i,
        "score": 0.5 * i,
        "code": f"00{i}",
    }
    for i, name in enumerate(GOOD)
]


@pytest.fixture
def folder(tmp_path) -> pathlib.Path:
    root = tmp_path / "images"
    for name, data in GOOD.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    return root


def write_table(path: pathlib.Path, rows: list[dict]) -> str:
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=3)
        return str(path)
    text = io.StringIO(newline="")
    if ".jsonl" in path.suffixes:
        text.write("".join(json.dumps(row) + "\n" for row in rows))
    else:
        writer = csv.DictWriter(text, list(rows[0]), delimiter="\t" if ".tsv" in path.name else ",")
        writer.writeheader()
        writer.writerows(rows)
    data = text.getvalue().encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return str(path)


def build(out, table_path, folder, **options) -> Dataset:
    options = {
        "image": "file",
        "caption": "caption",
        "group": "article",
        "keep": ("year", "score", "code"),
        "records_per_shard": 2,
        "tokenizer_vocab": 0,
        "workers": 1,
    } | options
    return build_table(
        TableOptions(table=str(table_path), images=str(folder or ""), out=str(out), **options)
    )


def drops(dataset: Dataset) -> dict[str, tuple[str, str]]:
    """{item: (reason, detail)}"""
    lines = [json.loads(line) for line in (dataset.path / "dropped.jsonl").open()]
    return {line["item"]: (line["reason"], line["detail"]) for line in lines}


# --- Every kind of table -----------------------------------------------------------------------


def test_records_hold_what_the_table_says(tmp_path, folder):
    rows = [row | {"sub": "(a) CT", "cites": "See it.", "fig": "F1", "lic": "CC0"} for row in ROWS]
    dataset = build(
        tmp_path / "out",
        write_table(tmp_path / "t.csv", rows),
        folder,
        panel_caption="sub",
        references="cites",
        figure="fig",
        panel="file",
        licence="lic",
        source="my corpus",
    )
    record = dataset[1]
    assert record.image == GOOD["a/1.jpg"] and (record.width, record.height) == (24, 20)
    assert record.caption == "caption, 1\nof “two” lines"
    assert (record.panel_caption, record.references, record.summary) == ("(a) CT", "See it.", "")
    assert (record.article_id, record.figure_id, record.panel_id) == ("PMC0", "F1", "a/1.jpg")
    assert (record.source, record.licence) == ("my corpus", "CC0")
    assert dataset.metadata["year"].to_pylist() == list(range(2000, 2007))
    assert dataset.metadata["score"].to_pylist() == [0.0, 0.5, 1.0, 1.5, 2.0, 2.5, 3.0]
    assert dataset.metadata["code"].to_pylist() == [f"00{i}" for i in range(7)]
    expected = dict.fromkeys(["dropped.jsonl", "manifest.json", "metadata.parquet"])
    expected |= dict.fromkeys(f"records-0000{i}.array_record" for i in range(4))
    assert {file.name for file in dataset.path.iterdir()} == set(expected)


@pytest.fixture(scope="module")
def csv_hash(tmp_path_factory) -> str:
    """Content hash of the dataset of ROWS, from a csv and a folder."""
    root = tmp_path_factory.mktemp("csv")
    for name, data in GOOD.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    return build(root / "out", write_table(root / "t.csv", ROWS), root).content_hash


@pytest.mark.parametrize("name", ["t.tsv", "t.csv.gz", "t.jsonl", "t.jsonl.gz", "t.parquet"])
def test_every_kind_of_table_gives_the_same_dataset(tmp_path, folder, csv_hash, name):
    path = write_table(tmp_path / name, ROWS)
    assert build(tmp_path / "out", path, folder).content_hash == csv_hash


def test_zip_gives_the_same_dataset_without_unpacking(tmp_path, csv_hash):
    with zipfile.ZipFile(tmp_path / "i.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in GOOD.items():
            archive.writestr(name, data)
    dataset = build(tmp_path / "out", write_table(tmp_path / "t.csv", ROWS), tmp_path / "i.zip")
    assert dataset.content_hash == csv_hash
    assert {file.name for file in tmp_path.iterdir()} == {"i.zip", "t.csv", "out"}


def test_parquet_with_hugging_face_images_gives_the_same_dataset(tmp_path, csv_hash):
    rows = [row | {"file": {"bytes": GOOD[row["file"]], "path": row["file"]}} for row in ROWS]
    path = write_table(tmp_path / "t.parquet", rows)
    assert build(tmp_path / "out", path, None).content_hash == csv_hash


def test_parquet_with_bytes(tmp_path):
    rows = [row | {"file": GOOD[row["file"]]} for row in ROWS]
    dataset = build(tmp_path / "out", write_table(tmp_path / "t.parquet", rows), None)
    assert [dataset[i].image for i in range(6)] == list(GOOD.values())[:6]
    assert dataset[5].figure_id == "row 5"


def test_two_workers_give_the_same_dataset(tmp_path, folder, csv_hash):
    path = write_table(tmp_path / "t.csv", ROWS)
    assert build(tmp_path / "out", path, folder, workers=2).content_hash == csv_hash


def test_failure_names_the_row_and_is_resumed(tmp_path, folder, csv_hash, monkeypatch):
    path = write_table(tmp_path / "t.csv", ROWS)

    def broken(data: bytes, **options):
        if data == GOOD["a/3.jpg"]:
            raise MemoryError("no more")
        return images.prepare_image(data, **options)

    with monkeypatch.context() as patch:
        patch.setattr(figure, "prepare_image", broken)
        with pytest.raises(RuntimeError, match=r"range\(2, 4\).*row 3 of .*t\.csv.*MemoryError"):
            build(tmp_path / "out", path, folder)
    assert (tmp_path / "out" / "records-00000.json").exists()
    assert build(tmp_path / "out", path, folder).content_hash == csv_hash


@pytest.mark.parametrize("step", [1, 2, 3, 4, 100])
def test_row_ranges_and_row_groups_need_not_agree(tmp_path, step):
    rows = [{"x": i, "y": -i} for i in range(200)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "t.parquet", row_group_size=70)
    for start in range(0, 200, 67):
        wanted = range(start, min(start + step, 200))
        read = list(read_rows(str(tmp_path / "t.parquet"), wanted, ["x"]))
        assert read == [(i, {"x": i}) for i in wanted]


def test_changed_table_is_another_command(tmp_path, folder):
    path = write_table(tmp_path / "t.csv", ROWS)
    build(tmp_path / "out", path, folder)
    write_table(tmp_path / "t.csv", ROWS[:-1])
    with pytest.raises(ValueError, match=r"table\.bytes"):
        build(tmp_path / "out", path, folder)
    assert len(build(tmp_path / "out", path, folder, overwrite=True)) == 6


@pytest.mark.parametrize(
    ("cells", "values"),
    [
        (["1", "", "-3"], [1, None, -3]),
        (["1", "2.5", "1e-3"], [1.0, 2.5, 0.001]),
        (["1", "07", "2"], ["1", "07", "2"]),
        (["True", "false", ""], [True, False, None]),
        (["1.50", "n/a", "2"], ["1.50", "n/a", "2"]),
        (["9" * 30, "1", "1"], [float("9" * 30), 1.0, 1.0]),
        (["", "", ""], [None, None, None]),
    ],
)
def test_types_of_kept_csv_columns(tmp_path, folder, cells, values):
    rows = [row | {"k": cell} for row, cell in zip(ROWS, cells, strict=False)]
    path = write_table(tmp_path / "t.csv", rows)
    dataset = build(tmp_path / "out", path, folder, keep=("k",), records_per_shard=1)
    assert dataset.metadata["k"].to_pylist() == values


def test_kept_json_strings_stay_strings(tmp_path, folder):
    rows = [row | {"k": k, "l": ["x"]} for row, k in zip(ROWS, ["1", "2"], strict=False)]
    path = write_table(tmp_path / "t.jsonl", rows)
    metadata = build(tmp_path / "out", path, folder, keep=("k", "l")).metadata
    assert metadata["k"].to_pylist() == ["1", "2"]
    assert metadata["l"].to_pylist() == ['["x"]'] * 2


# --- Bad rows --------------------------------------------------------------------------------


def test_every_bad_row_is_dropped_with_its_reason(tmp_path, folder):
    secret = tmp_path / "secret.jpg"
    secret.write_bytes(encode(1))
    (folder / "link.jpg").symlink_to(secret)
    (folder / "inside.jpg").symlink_to(folder / "a" / "0.jpg")
    (folder / "up").symlink_to(tmp_path)
    os.mkfifo(folder / "pipe.jpg")
    (folder / "cut.jpg").write_bytes(encode(1)[:-200])
    (folder / "cut.png").write_bytes(encode(1, "PNG")[:-200])
    (folder / "text.jpg").write_text("<html>404</html>")
    (folder / "empty.jpg").touch()
    (folder / "tiny.png").write_bytes(encode(1, "PNG", (200, 15)))
    cases = [
        ("a/0.jpg", "c", "g", None),
        ("inside.jpg", "c", "g", None),
        ("./a/../a/1.jpg", "c", "g", None),
        ("../secret.jpg", "c", "g", "path outside images"),
        ("a/../../secret.jpg", "c", "g", "path outside images"),
        (str(secret), "c", "g", "path outside images"),
        (str(folder / "a/0.jpg"), "c", "g", "path outside images"),
        ("link.jpg", "c", "g", "path outside images"),
        ("up/secret.jpg", "c", "g", "path outside images"),
        ("../images_of_others/0.jpg", "c", "g", "path outside images"),
        ("nothing.jpg", "c", "g", "missing file"),
        ("a", "c", "g", "missing file"),
        ("pipe.jpg", "c", "g", "missing file"),
        ("a/0.jpg\0.png", "c", "g", "unreadable file"),
        ("x" * 5000, "c", "g", "missing file"),
        ("", "c", "g", "no image named"),
        ("cut.jpg", "c", "g", "unreadable JPEG"),
        ("cut.png", "c", "g", "unreadable image"),
        ("text.jpg", "c", "g", "not an image of a known format"),
        ("empty.jpg", "c", "g", "empty file"),
        ("tiny.png", "c", "g", "too small"),
        ("a/0.jpg", " \n", "g", "empty caption"),
        ("a/0.jpg", None, "g", "empty caption"),
        ("a/0.jpg", "c", "", "missing group"),
        ("a/0.jpg", "c", None, "missing group"),
    ]
    rows = [{"file": f, "caption": c, "article": g} for f, c, g, _ in cases]
    dataset = build(tmp_path / "out", write_table(tmp_path / "t.jsonl", rows), folder, keep=())
    assert [dataset[i].image for i in range(3)] == [GOOD["a/0.jpg"]] * 2 + [GOOD["a/1.jpg"]]
    dropped = drops(dataset)
    found = {item.split(":")[0]: reason for item, (reason, _) in dropped.items()}
    assert found == {f"row {i}": reason for i, (*_, reason) in enumerate(cases) if reason}
    assert dropped["row 10: nothing.jpg"] == ("missing file", "nothing.jpg")
    assert dataset.manifest["counts"]["in"] == len(cases)
    assert dataset.manifest["counts"]["dropped"]["path outside images"] == 7


def test_short_captions_and_unknown_splits_are_dropped(tmp_path, folder):
    rows = [row | {"fold": fold} for row, fold in zip(ROWS, ("val", "Test", "extra"), strict=False)]
    rows[1]["caption"] = "ab"
    dataset = build(
        tmp_path / "out",
        write_table(tmp_path / "t.csv", rows),
        folder,
        split_column="fold",
        min_caption_chars=3,
    )
    assert dataset.metadata["split"].to_pylist() == ["validation"]
    assert [drop[0] for drop in drops(dataset).values()] == ["caption too short", "unknown split"]


def test_broken_lines_are_dropped(tmp_path, folder):
    good = [json.dumps(row).encode() for row in ROWS[:2]]
    bad = [b'{"file": "a/0.jpg", "capt', b"[1, 2]", b'{"caption": "\xff"}', b"[" * 100_000]
    (tmp_path / "t.jsonl").write_bytes(b"\n".join([good[0], *bad, b"", good[1]]))
    dataset = build(tmp_path / "out", tmp_path / "t.jsonl", folder)
    assert [dataset[i].figure_id for i in range(2)] == ["a/0.jpg", "a/1.jpg"]
    assert list(drops(dataset)) == ["row 1", "row 2", "row 3", "row 4"]
    assert drops(dataset)["row 2"] == ("unreadable row", "line 3: not an object")


def test_csv_rows_of_another_length_are_dropped(tmp_path, folder):
    lines = ["file,caption,article", "a/0.jpg,c,g", "a/1.jpg,a, comma,g", "a/2.jpg", "a/3.jpg,c,g"]
    (tmp_path / "t.csv").write_text("\n".join(lines))
    dataset = build(tmp_path / "out", tmp_path / "t.csv", folder, keep=())
    assert [dataset[i].figure_id for i in range(2)] == ["a/0.jpg", "a/3.jpg"]
    assert drops(dataset)["row 1"][1] == "line 3: 4 cells, the header has 3"


def test_half_a_surrogate_pair_does_not_stop_the_build(tmp_path, folder):
    (tmp_path / "t.jsonl").write_text(json.dumps(ROWS[0] | {"caption": "cut \ud83d"}))
    assert build(tmp_path / "out", tmp_path / "t.jsonl", folder)[0].caption == "cut ?"


def test_zip_members_are_limited_and_checked(tmp_path, monkeypatch):
    monkeypatch.setattr(images, "MAX_FILE_BYTES", 100_000)
    with zipfile.ZipFile(tmp_path / "i.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("good.jpg", GOOD["a/0.jpg"])
        archive.writestr("bomb.jpg", b"\0" * 1_000_000)
        archive.writestr("changed.jpg", GOOD["a/1.jpg"], zipfile.ZIP_STORED)
        archive.writestr("folder/", b"")
    data = (tmp_path / "i.zip").read_bytes()
    assert data.count(GOOD["a/1.jpg"]) == 1
    changed = GOOD["a/1.jpg"][:-9] + b"\x55" + GOOD["a/1.jpg"][-8:]
    (tmp_path / "i.zip").write_bytes(data.replace(GOOD["a/1.jpg"], changed))
    names = ("good.jpg", "bomb.jpg", "changed.jpg", "../good.jpg", "/good.jpg", "no.jpg", "folder/")
    rows = [{"file": name, "caption": "c", "article": "g"} for name in names]
    path = write_table(tmp_path / "t.csv", rows)
    dataset = build(tmp_path / "out", path, tmp_path / "i.zip", keep=())
    assert len(dataset) == 1
    assert [reason for reason, _ in drops(dataset).values()] == [
        "file too large",
        "unreadable file",
        "path outside images",
        "path outside images",
        "missing file",
        "missing file",
    ]


def test_nothing_but_drops_is_an_error_with_counts(tmp_path, folder):
    rows = [{"file": f"no{i}.jpg", "caption": "c", "article": "g"} for i in range(3)]
    with pytest.raises(ValueError, match="'missing file': 3"):
        build(tmp_path / "out", write_table(tmp_path / "t.csv", rows), folder, keep=())


# --- Keys and splits ---------------------------------------------------------------------------


def many_rows() -> list[dict]:
    return [{"file": "a/0.jpg", "caption": "c", "article": f"PMC{i % 40}"} for i in range(120)]


def test_an_article_is_in_one_split(tmp_path, folder, capsys):
    path = write_table(tmp_path / "t.csv", many_rows())
    options = {"keep": (), "split": (0.5, 0.25, 0.25), "records_per_shard": 50}
    splits = {}
    for salt in ("", "other"):
        dataset = build(tmp_path / f"out{salt}", path, folder, split_salt=salt, **options)
        columns = dataset.columns(["article_id", "split"]).to_pydict()
        pairs = set(zip(columns["article_id"], columns["split"], strict=True))
        assert len(pairs) == 40 and {split for _, split in pairs} == {"train", "validation", "test"}
        splits[salt] = pairs
    assert splits[""] != splits["other"]
    assert "Note: 120 records share their (group, figure, panel)" in capsys.readouterr().out


def test_ready_made_split_that_divides_an_article_is_reported(tmp_path, folder, capsys):
    rows = [row | {"fold": "test" if i == 3 else "train"} for i, row in enumerate(ROWS)]
    path = write_table(tmp_path / "t.csv", rows)
    build(tmp_path / "out", path, folder, split_column="fold")
    printed = capsys.readouterr().out
    assert "Warning: 1 groups are in more than one split of --split_column, e.g. PMC1" in printed
    assert "Note:" not in printed


# --- What a user gets wrong ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image": ""}, "image is not set"),
        ({"group": "pmid"}, r"no column \['pmid'\]. It has: file, caption, article, year"),
        ({"keep": ("year", "nope")}, r"no column \['nope'\]"),
        ({"split": (0.9, 0.2, 0.1)}, "must be three shares that sum to 1"),
        ({"split": (0.9, 0.1)}, "must be three shares that sum to 1"),
        ({"quality": 101}, r"quality \(101\) must be at most 100"),
        ({"records_per_shard": -1}, r"records_per_shard \(-1\) must be 0 or more"),
        ({"images": "nowhere"}, "must be a folder or a zip file"),
    ],
)
def test_wrong_options_are_named_before_anything_is_written(tmp_path, folder, options, message):
    path = write_table(tmp_path / "t.csv", ROWS)
    with pytest.raises(ValueError, match=message):
        build(tmp_path / "out", path, options.pop("images", folder), **options)
    assert not (tmp_path / "out").exists()


def test_kept_column_with_the_name_of_one_of_ours(tmp_path, folder):
    rows = [row | {"width": 1} for row in ROWS]
    with pytest.raises(ValueError, match=r"keep .'width'. is a column that every record has"):
        build(tmp_path / "out", write_table(tmp_path / "t.csv", rows), folder, keep=("width",))


def test_tables_that_cannot_be_read(tmp_path, folder):
    with pytest.raises(ValueError, match="does not exist"):
        build(tmp_path / "out", tmp_path / "no.csv", folder)
    (tmp_path / "t.xlsx").touch()
    with pytest.raises(ValueError, match=r"must be \.csv"):
        build(tmp_path / "out", tmp_path / "t.xlsx", folder)
    (tmp_path / "latin.csv").write_bytes("file,caption,article\na,Sjögren,g\n".encode("latin-1"))
    with pytest.raises(ValueError, match="UTF-8"):
        build(tmp_path / "out", tmp_path / "latin.csv", folder, keep=())
    (tmp_path / "header.csv").write_text("file,caption,article\n")
    with pytest.raises(ValueError, match="has no rows"):
        build(tmp_path / "out2", tmp_path / "header.csv", folder, keep=())


def test_parquet_columns_of_the_wrong_type(tmp_path, folder):
    path = write_table(tmp_path / "t.parquet", [row | {"when": b"x"} for row in ROWS])
    with pytest.raises(ValueError, match="'when' is binary"):
        build(tmp_path / "out", path, folder, keep=("when",))
    with pytest.raises(ValueError, match="Give --images"):
        build(tmp_path / "out", path, None, keep=())


# --- Real data -----------------------------------------------------------------------------------


def test_real_articles_from_the_command_line(tmp_path):
    articles = SHARED / "pmc_articles"
    if not articles.exists():
        pytest.skip("no ../shared/data/pmc_articles beside the project")
    command = [sys.executable, "-m", "data_pipelines.table", f"--table={articles}/figures.jsonl"]
    command += [f"--images={articles}", "--image=file", "--caption=caption", "--group=pmcid"]
    command += ["--figure=fig", "--licence=licence", "--keep=how,page,imaging_word"]
    command += [f"--out={tmp_path}/out", "--tokenizer_vocab=0", "--workers=1", "--keep_original"]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "1,118 records" in done.stdout and "Note:" not in done.stdout
    dataset = Dataset(tmp_path / "out")
    columns = dataset.columns(["article_id", "split", "page", "imaging_word"]).to_pydict()
    pairs = set(zip(columns["article_id"], columns["split"], strict=True))
    assert (len(dataset), len(pairs)) == (1118, 301)
    assert dataset[0].caption.startswith("Sectioned vertebra from Atlantic Sharpnose Shark")
    assert columns["page"][:3] == [3, 4, 3] and columns["imaging_word"][0] is False


def test_mednist(tmp_path):
    archive = SHARED / "mednist" / "mednist_1500_per_class.zip"
    if not archive.exists():
        pytest.skip("no ../shared/data/mednist beside the project")
    options = {"zip": str(archive), "per_class": 5, "tokenizer_vocab": 0, "workers": 1}
    dataset = build_mednist(MednistOptions(out=str(tmp_path / "out"), **options))
    labels = dataset.metadata["label"].to_pylist()
    assert sorted(set(labels)) == ["AbdomenCT", "BreastMRI", "CXR", "ChestCT", "Hand", "HeadCT"]
    assert len(dataset) == 30 and dataset[0].licence == "CC BY-SA 4.0"
    for position, label in enumerate(labels):
        record = dataset[position]
        assert record.figure_id.startswith(f"{label}/")
        assert record.caption == caption_of(record.figure_id, label)
        assert ("CT" in record.caption) == label.endswith("CT")


def test_mednist_caption_is_the_same_for_ever():
    assert caption_of("CXR/000001.jpeg", "CXR") == "Example of a frontal chest radiograph."


def test_signals_are_measured_where_asked_for_and_keep_what_the_table_says(tmp_path, folder):
    rows = [row | {"modality": "theirs"} for row in ROWS]
    table = write_table(tmp_path / "t.jsonl", rows)
    plain = build(tmp_path / "plain", table, folder, keep=("modality",))
    measured = build(tmp_path / "measured", table, folder, keep=("modality",), signals=True)
    assert "sharpness" not in plain.metadata.column_names
    assert set(plain.metadata["modality"].to_pylist()) == {"theirs"}
    assert set(measured.metadata["released_modality"].to_pylist()) == {"theirs"}
    assert set(measured.metadata["modality"].to_pylist()) <= set(MODALITIES)
    assert min(measured.metadata["sharpness"].to_pylist()) > 0
    assert plain[0].image == measured[0].image
