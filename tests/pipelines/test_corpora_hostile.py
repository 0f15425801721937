"""Corpora that are not as they should be are read as far as can be, in bounded memory."""

import gzip
import io
import json
import pathlib
import tarfile

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_pipelines import corpora, tars, text_table, webdataset
from data_pipelines.corpora import CorpusOptions, build_corpus
from data_pipelines.synthetic_releases import draw
from data_pipelines.text_table import BadRow, read_text_table
from data_pipelines.webdataset import read_samples
from jaxclip.data.dataset import Dataset
from jaxclip.data.record import Drop

IMAGE = draw(1, 40, 60)


def build(folder: pathlib.Path, files: dict, **options) -> Dataset:
    for name, data in files.items():
        pq.write_table(data, folder / name) if isinstance(data, pa.Table) else (
            folder / name
        ).write_bytes(data)
    options = {"workers": 1, "tokenizer_vocab": 0, "out": str(folder / "out")} | options
    return build_corpus(CorpusOptions(input=tuple(str(folder / name) for name in files), **options))


def sample(key: str, **fields) -> dict[str, bytes]:
    return {f"{key}.jpg": IMAGE, f"{key}.json": json.dumps({"caption": "x"} | fields).encode()}


# --- Tars that are not what they should be --------------------------------------------------------


def tar_of(members: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def test_two_samples_of_one_key_are_two(tmp_path):
    data = tar_of({"a.jpg": b"1", "a.txt": b"t"})[: 4 * 512] + tar_of(
        {"a.jpg": b"2", "a.txt": b"u"}
    )
    assert [(s["image_bytes"], s["txt"]) for s in samples(tmp_path, data)] == [
        (b"1", "t"),
        (b"2", "u"),
    ]


def samples(tmp_path, data: bytes) -> list:
    (tmp_path / "x.tar").write_bytes(data)
    return list(read_samples(str(tmp_path / "x.tar")))


def test_a_tar_that_is_not_closed_is_told_but_its_samples_are_kept(tmp_path):
    data = tar_of({"a.jpg": b"1", "a.txt": b"t", "b.jpg": b"2", "b.txt": b"u"})
    (*good,) = samples(tmp_path, data)
    assert [s["__key__"] for s in good] == ["a", "b"]
    unclosed = data[: 8 * 512]  # four headers and four blocks, and no zeros after them
    one, drop, two = samples(tmp_path, unclosed)
    assert (one["__key__"], two["__key__"], drop.reason) == ("a", "b", "tar breaks off")


@pytest.mark.parametrize("cut", range(512, 8 * 512, 256))
def test_wherever_a_tar_is_cut_every_sample_is_whole_or_a_drop(tmp_path, cut):
    data = tar_of({"a.jpg": b"1", "a.txt": b"t", "b.jpg": b"2", "b.txt": b"u"})[:cut]
    found = samples(tmp_path, data)
    assert any(isinstance(item, Drop) and item.reason == "tar breaks off" for item in found)
    for item in found:
        if not isinstance(item, Drop) and "image_bytes" in item and "txt" in item:
            assert (item["image_bytes"], item["txt"]) in ((b"1", "t"), (b"2", "u"))


def test_damage_in_the_middle_is_told(tmp_path):
    data = bytearray(tar_of({"a.jpg": b"1", "a.txt": b"t", "b.jpg": b"2", "b.txt": b"u"}))
    data[4 * 512 : 4 * 512 + 100] = b"\x01" * 100  # the header of b.jpg
    found = samples(tmp_path, bytes(data))
    assert [item["__key__"] for item in found if not isinstance(item, Drop)] == ["a"]
    assert [item.reason for item in found if isinstance(item, Drop)] == ["tar breaks off"]


def test_a_member_that_claims_too_much_is_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr(webdataset, "MAX_FILE_BYTES", 10)
    big, good = samples(tmp_path, tar_of({"a.jpg": b"x" * 11, "b.jpg": b"2"}))
    assert big.reason == "file too large" and good["image_bytes"] == b"2"


@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME])
def test_a_header_that_claims_too_much_is_not_read(tmp_path, monkeypatch, kind):
    """3 GB of zeros are 3 MB of gzip, and tarfile reads a header's data at once."""
    monkeypatch.setattr(tars, "MAX_FILE_BYTES", 1 << 20)
    header = tarfile.TarInfo("p")
    header.type, header.size = kind, 2 << 20
    whole = tar_of({"a.jpg": b"1"})[:1024]
    data = gzip.compress(whole + header.tobuf() + bytes(header.size) + tar_of({"b.jpg": b"2"}))
    drop, good = samples(tmp_path, data)
    assert good["image_bytes"] == b"1"
    assert drop.reason == "tar breaks off" and "at once, at most 1048576" in drop.detail


def test_a_line_that_is_too_long_is_a_bad_row(tmp_path, monkeypatch):
    monkeypatch.setattr(text_table, "MAX_LINE", 100)
    (tmp_path / "x.jsonl").write_text('{"a": 1}\n' + "y" * 250 + '\n{"a": 2}\n')
    one, bad, two = read_text_table(str(tmp_path / "x.jsonl"))
    assert (one, two) == ({"a": 1}, {"a": 2}) and "line 2: longer than 100" in bad.detail
    (tmp_path / "x.csv").write_text("a\n" + "y" * 250 + "\n")
    with pytest.raises(ValueError, match="line longer than 100"):
        list(read_text_table(str(tmp_path / "x.csv")))


@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
def test_a_table_that_breaks_off_is_told(tmp_path, suffix):
    line = {"csv": "%d\n", "jsonl": '{"a": %d}\n'}[suffix]
    text = "a\n" * (suffix == "csv") + "".join(line % n for n in range(100_000))
    (tmp_path / f"x.{suffix}.gz").write_bytes(gzip.compress(text.encode())[:-1000])
    *rows, bad = read_text_table(str(tmp_path / f"x.{suffix}.gz"))
    assert len(rows) > 50_000 and isinstance(bad, BadRow) and "breaks off" in bad.detail


# --- Rows of one table that do not agree ----------------------------------------------------------

KEPT = [  # values of a field in three rows, the last in a tar of its own -> as they are kept
    ((2020, 2021, "2020"), ["2020", "2021", "2020"]),
    ((2020, "n/a", 7), ["2020", "n/a", "7"]),
    ((1, None, 2.5), [1.0, None, 2.5]),
    ((1, 2**70, 2), ["1", str(2**70), "2"]),
    (("a", "\ud800", None), ["a", "?", None]),
    ((["a"], "a", ["b", 1]), ['["a"]', "a", '["b", "1"]']),
    ((True, 3, None), ["true", "3", None]),
]


@pytest.mark.parametrize(["values", "kept"], KEPT)
def test_kept_fields_of_mixed_types_are_text(tmp_path, values, kept):
    a, b, c = (sample(f"s{i}", f=value) for i, value in enumerate(values))
    files = {"a.tar": tar_of(a | b), "b.tar": tar_of(c)}
    dataset = build(tmp_path, files, layout="webdataset", keep=("f",))
    assert dataset.columns(["f"])["f"].to_pylist() == kept


def test_a_field_with_a_name_of_ours_does_no_harm(tmp_path):
    ours = {"__key__": 5, "__url__": None, "__split__": 5, "image_bytes": "x"}
    files = {"train.tar": tar_of(sample("PMC1_F1", **ours))}
    dataset = build(tmp_path, files, layout="webdataset")
    assert (dataset[0].article_id, dataset[0].image) == ("PMC1", IMAGE)
    assert dataset.metadata["split"].to_pylist() == ["train"]


def test_a_parquet_of_a_webdataset_keeps_its_keys(tmp_path):
    columns = {"jpg": [IMAGE, IMAGE], "caption": ["x", "y"], "__key__": ["PMC1_F1", None]}
    columns |= {"__url__": pa.array([None, None], pa.string()), "__split__": [1, 2]}
    dataset = build(tmp_path, {"train.parquet": pa.table(columns)}, layout="parquet")
    assert [dataset[i].article_id for i in range(2)] == ["PMC1", "row 1"]


def test_a_parquet_that_is_none_or_damaged_is_told(tmp_path):
    good = pa.table({"jpg": [IMAGE] * 3, "caption": ["x"] * 3})
    files = {"a.parquet": good, "b.parquet": b"PAR1junkPAR1"}
    dataset = build(tmp_path, files, layout="parquet")
    assert dataset.manifest["counts"]["dropped"] == {"unreadable parquet": 1}
    assert len(dataset) == 3
    data = bytearray((tmp_path / "a.parquet").read_bytes())
    data[4:200] = bytes(196)  # the first page's header
    (tmp_path / "c").mkdir()
    files = {"a.parquet": good, "c.parquet": bytes(data)}
    dataset = build(tmp_path / "c", files, layout="parquet")
    assert dataset.manifest["counts"]["dropped"] == {"unreadable parquet": 1}


# --- Options that fit no row ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ["options", "message"],
    [
        ({"caption": "capton"}, "caption: no field 'capton' in the first 1 rows of .*a.tar. There"),
        ({"group": "patient"}, "group: no field 'patient' .*There are: caption, year, __key__"),
        ({"keep": ("year", "yaer")}, "keep: no field 'yaer'"),
        ({"image": "imgae"}, "image: no field 'imgae'"),
        ({"keep": ("width",)}, "keep .'width'. is a column that every record has"),
    ],
)
def test_a_misspelt_field_is_told_before_the_work(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        build(tmp_path, {"a.tar": tar_of(sample("s", year=1))}, layout="webdataset", **options)
    assert not (tmp_path / "out").exists()


def test_a_corpus_without_a_caption_is_told_before_the_work(tmp_path):
    files = {"a.parquet": pa.table({"jpg": [IMAGE], "title": ["x"]})}
    with pytest.raises(ValueError, match="caption: none of caption, txt, .*title"):
        build(tmp_path, files, layout="parquet")


@pytest.mark.parametrize(
    ["path", "split"],
    [
        ("data/validation-00000-of-00002.parquet", "validation"),
        ("s3://b/all/test/radiology/testdata.csv", "test"),
        ("data/valid/0001.tar", "validation"),
        ("test/train-0000.tar", "train"),  # the file's own word before its folder's
        ("runs/test_corpora/part-0.tar", ""),  # a folder that only has the word in it
        ("/train/a/b/c-0.tar", ""),
    ],
)
def test_the_split_that_a_file_name_tells(path, split):
    assert corpora._split_of_file(path) == split


def test_files_that_tell_no_split_are_split_by_article(tmp_path, capsys):
    struct = [{"bytes": IMAGE, "path": ""}] * 40
    ids = [f"ROCOv2_{n}" for n in range(40)]
    files = {"part-0.parquet": pa.table({"image": struct, "caption": ids, "image_id": ids})}
    dataset = build(tmp_path, files, layout="rocov2", split=(0.5, 0.25, 0.25))
    assert set(dataset.metadata["split"].to_pylist()) == {"train", "validation", "test"}
    assert "1 of 1 files, e.g. " in capsys.readouterr().out


def test_a_name_that_is_no_utf8(tmp_path):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", encoding="latin-1", format=tarfile.GNU_FORMAT) as t:
        for name, data in {"M\xfcller.jpg": IMAGE, "M\xfcller.txt": b"x"}.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            t.addfile(info, io.BytesIO(data))
    dataset = build(tmp_path, {"train.tar": buffer.getvalue()}, layout="webdataset")
    assert dataset[0].article_id == "M\\xfcller"
