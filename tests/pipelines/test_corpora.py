"""Every released layout becomes the same kind of dataset, with the fields and drops it must."""

import functools
import hashlib
import http.server
import json
import pathlib
import subprocess
import sys
import threading

import fsspec
import pytest

from data_pipelines import remote, retrying, webdataset
from data_pipelines.corpora import CorpusOptions, build_corpus
from data_pipelines.layouts import LAYOUTS, context_of, parse_name
from data_pipelines.synthetic_releases import TRAPS, draw, write_release
from jaxclip.data.dataset import Dataset

SIZE = 24
IMAGES = [draw(number, 40, 60) for number in range(SIZE)]


def build(out, options: dict, **more) -> Dataset:
    options = {"workers": 1, "tokenizer_vocab": 0, "out": str(out)} | options | more
    return build_corpus(CorpusOptions(**options))


@pytest.fixture(scope="module")
def releases(tmp_path_factory) -> dict[str, dict]:
    root = tmp_path_factory.mktemp("releases")
    return {name: write_release(name, root / name, IMAGES, traps=True) for name in TRAPS}


@pytest.fixture(scope="module")
def datasets(releases, tmp_path_factory) -> dict[str, Dataset]:
    root = tmp_path_factory.mktemp("datasets")
    return {name: build(root / name, options) for name, options in releases.items()}


def records(dataset: Dataset) -> dict[str, tuple]:
    rows = dataset.metadata.to_pylist()
    return {row["image_sha256"]: (dataset[i], row) for i, row in enumerate(rows)}


def first(dataset: Dataset, number: int) -> tuple:
    """The record and metadata of image `number`: small JPEGs keep their bytes, so their hash."""
    return records(dataset)[hashlib.sha256(IMAGES[number]).hexdigest()]


@pytest.mark.parametrize("layout", TRAPS)
def test_counts_and_drops_of_every_layout(datasets, layout):
    counts = datasets[layout].manifest["counts"]
    # of a tar that is cut, the sample before the cut is whole
    whole_before_cut = 1 if "tar breaks off" in TRAPS[layout] else 0
    assert counts["out"] == SIZE + whole_before_cut
    assert counts["dropped"] == TRAPS[layout]
    assert {record.image for record, _ in records(datasets[layout]).values()} >= set(IMAGES)
    assert set(datasets[layout].metadata["source"].to_pylist()) == {
        LAYOUTS[layout].source or layout
    }


def test_open_pmc_fields(datasets):
    record, row = first(datasets["open_pmc"], 3)
    assert (record.article_id, record.figure_id, record.panel_id) == ("PMC1000", "Fig2", "1")
    assert record.caption.startswith("(a) Axial CT of patient 3.")
    assert record.panel_caption == "Axial CT of patient 3."
    assert record.references == "Figure 1 shows patient 3.\nSee also Fig. 1."
    assert record.summary == "Patient 3 was treated."
    assert row["modality"] == "radiology" and row["sub_caption_refused"] is False
    record, row = first(datasets["open_pmc"], 4)  # the language model's "NO" is no caption
    assert record.panel_caption == "" and row["sub_caption_refused"] is True


def test_pmc_oa_fields_and_the_beta_file(datasets, releases, tmp_path):
    record, row = first(datasets["pmc_oa"], 1)
    assert (record.article_id, record.figure_id, record.panel_id) == ("PMC1000", "Fig1", "2")
    assert (row["alignment_type"], row["alignment_score"]) == ("OCR", 0.6)
    assert record.panel_caption == record.caption
    whole, row = first(datasets["pmc_oa"], 2)
    assert row["alignment_type"] == "nonCompound-caption" and whole.panel_caption == ""
    beta = releases["pmc_oa"]["input"][0].replace("pmc_oa.jsonl", "pmc_oa_beta.jsonl")
    dataset = build(tmp_path / "beta", releases["pmc_oa"], input=(beta,))
    record, row = first(dataset, 1)
    assert record.caption.startswith("Whole. ") and row["alignment_type"] == ""
    assert row["alignment_score"] is None


def test_biomedica_fields(datasets):
    for number in (7, 8):  # hrefs of the context with ".jpg" and without
        record, row = first(datasets["biomedica"], number)
        href = f"1471-2105-1.S1-{number - 6}"
        assert (record.article_id, record.figure_id) == ("PMC1001", href)
        assert record.references == f"Paragraph about {href}.\nAnd more."  # and not its siblings'
        assert (row["cluster"], row["panel_type"]) == (str(number), "multiple")
        assert row["panel_subtype"] == ("single panel" if number % 2 else "multi panel")
        assert row["primary_label"] == ["Clinical Imaging"] and row["keywords"] == []
        assert (record.licence, row["journal"]) == ("CC BY", "BMC Bioinformatics")


def test_kin(datasets):
    record, row = first(datasets["roco"], 2)
    assert (record.article_id, row["split"], row["roco_id"]) == (
        "PMC1000",
        "validation",
        "ROCO_00002",
    )
    assert (record.figure_id, record.panel_id) == ("Fig1_3", "")  # its figures are whole
    record, row = first(datasets["rocov2"], 0)
    assert (record.article_id, row["split"]) == ("ROCOv2_2023_train_000000", "validation")
    assert row["cui"] == ["C0040405", "C0817096"]
    record, row = first(datasets["medicat"], 2)
    assert (record.caption, record.references) == ("Whole.", "Fig. 1 shows it.")
    assert (record.article_id, record.licence) == (f"{1:040x}", "cc-by")
    record, row = first(datasets["quilt"], 9)
    assert (record.article_id, row["split"], row["pathology"]) == ("video2", "validation", "Renal")


def test_images_of_articles_in_quilt():
    row = {"__key__": "1", "image_path": "PMC77_F2.jpg", "caption": "x", "image_bytes": b""}
    assert LAYOUTS["quilt"].to_figure(row).article_id == "PMC77"


def test_open_pmc_18m_fields(datasets):
    record, row = first(datasets["open_pmc_18m"], 5)
    assert (record.article_id, record.figure_id, record.panel_id) == ("PMC1000", "Fig2", "3")
    assert record.panel_caption == "Axial CT of patient 5."
    assert (record.summary, row["modality"]) == ("Patient 5 was treated.", "Radiology")


def test_articles_are_not_split_unless_the_release_does_it(datasets, releases, tmp_path, capsys):
    rows = datasets["open_pmc"].metadata.to_pylist()
    splits = {row["article_id"]: set() for row in rows}
    for row in rows:
        splits[row["article_id"]].add(row["split"])
    assert all(len(names) == 1 for names in splits.values())
    build(tmp_path / "release", releases["roco"])
    printed = capsys.readouterr().out
    assert "split of the release (--split_by_article makes others), e.g. PMC1000" in printed
    by_article = build(tmp_path / "roco", releases["roco"], split_by_article=True)
    assert "--split_by_article" not in capsys.readouterr().out
    rows = by_article.metadata.to_pylist()
    assert len({row["split"] for row in rows if row["article_id"] == "PMC1000"}) == 1


def test_any_webdataset_and_any_parquet(releases, tmp_path):
    options = {"layout": "webdataset", "input": releases["open_pmc"]["input"]}
    options |= {"caption": "full_caption", "group": "PMC_ID", "keep": ("modality", "intext_refs")}
    dataset = build(tmp_path / "w", options)
    record, row = first(dataset, 3)
    assert record.article_id == "PMC1000" and row["modality"] == "radiology"
    assert row["intext_refs"] == ["Figure 1 shows patient 3.", "See also Fig. 1."]
    assert dataset.manifest["counts"]["dropped"] == TRAPS["open_pmc"]
    options = {"layout": "parquet", "input": releases["rocov2"]["input"], "keep": ("cui",)}
    record, row = first(build(tmp_path / "p", options), 20)
    assert (record.caption[:12], row["split"]) == ("(a) Axial CT", "train")


@pytest.mark.parametrize("layout", ["biomedica", "pmc_oa"])
def test_two_workers_give_the_same_dataset(releases, datasets, layout, tmp_path):
    dataset = build(tmp_path / "two", releases[layout], workers=2)
    assert dataset.content_hash == datasets[layout].content_hash


def test_beam_gives_the_same_dataset(releases, datasets, tmp_path):
    pytest.importorskip("apache_beam")
    options = {"workers": 1, "tokenizer_vocab": 0, "out": str(tmp_path / "beam")}
    options = CorpusOptions(**options | releases["open_pmc"])
    dataset = build_corpus(options, ["--runner=DirectRunner"])
    assert dataset.content_hash == datasets["open_pmc"].content_hash


# --- From far away --------------------------------------------------------------------------------


class Flaky(http.server.SimpleHTTPRequestHandler):
    """Serves byte ranges; every third request for data fails, or breaks off half way. Below /whole
    it serves whole files only, the first time half of it."""

    requests = 0
    whole = 0
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_GET(self):
        if self.path.startswith("/whole/"):
            data = pathlib.Path(self.translate_path(self.path[6:])).read_bytes()
            type(self).whole += 1
            self.close_connection = self.whole == 1
            self.send_response(200)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data[: len(data) // 2] if self.whole == 1 else data)
            return
        type(self).requests += 1
        data = pathlib.Path(self.translate_path(self.path)).read_bytes()
        if type(self).requests % 3 == 1:
            self.send_error(503)
            return
        low, high = 0, len(data) - 1
        if asked := self.headers.get("Range"):
            low, high = (int(x) for x in asked.removeprefix("bytes=").split("-"))
            high = min(high, len(data) - 1)
        part = data[low : high + 1]
        self.send_response(206 if asked else 200)
        self.send_header("Content-Range", f"bytes {low}-{high}/{len(data)}")
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(len(part)))
        self.end_headers()
        if type(self).requests % 3 == 2:
            self.wfile.write(part[: len(part) // 2])
            self.close_connection = True
        else:
            self.wfile.write(part)


@pytest.fixture
def server(releases):
    root = pathlib.Path(releases["open_pmc"]["input"][0]).parent
    handler = functools.partial(Flaky, directory=str(root.parent))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as httpd:
        thread = threading.Thread(target=httpd.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{httpd.server_address[1]}"
        httpd.shutdown()


def test_http_with_failures_gives_what_the_disk_gives(server, datasets, tmp_path, monkeypatch):
    monkeypatch.setattr(retrying.time, "sleep", lambda _: None)
    urls = (f"{server}/open_pmc/train-{{0000..0002}}.tar",)
    dataset = build(tmp_path / "http", {"layout": "open_pmc", "input": urls})
    assert dataset.content_hash == datasets["open_pmc"].content_hash and Flaky.requests > 6


def test_a_server_without_ranges(server, datasets, releases, tmp_path, monkeypatch):
    """A tar is read on from its beginning; a zip cannot be, and that is told."""
    monkeypatch.setattr(retrying.time, "sleep", lambda _: None)
    monkeypatch.setattr(retrying, "BLOCK_BYTES", 4096)  # the tar is longer
    monkeypatch.setattr(remote, "BLOCK_BYTES", 4096)
    urls = (f"{server}/whole/open_pmc/train-{{0000..0002}}.tar?download=true",)
    dataset = build(tmp_path / "tars", {"layout": "open_pmc", "input": urls})
    assert dataset.metadata.equals(datasets["open_pmc"].metadata) and Flaky.whole > 4
    images = f"{server}/whole/pmc_oa/images.zip"
    with pytest.raises(ValueError, match="its server knows no byte ranges. Copy the file"):
        build(tmp_path / "zip", releases["pmc_oa"], images=images)


def test_a_bucket_gives_what_the_disk_gives(releases, datasets, tmp_path):
    memory = fsspec.filesystem("memory")
    for name in ("open_pmc", "pmc_oa"):
        memory.put(str(pathlib.Path(releases[name]["input"][0]).parent), f"/{name}", recursive=True)
    tars = build(tmp_path / "tar", {"layout": "open_pmc", "input": ("memory://open_pmc/*.tar",)})
    assert tars.metadata.equals(datasets["open_pmc"].metadata)
    options = {"layout": "pmc_oa", "input": ("memory://pmc_oa/pmc_oa.jsonl",)}
    zipped = build(tmp_path / "zip", options, images="memory://pmc_oa/images.zip")
    assert zipped.metadata.equals(datasets["pmc_oa"].metadata)


def test_resumed_by_shard(releases, datasets, tmp_path, monkeypatch):
    original = webdataset.read_samples
    read = []

    def breaking(url):
        read.append(url)
        if len(read) == 2:
            raise OSError("the network is gone")
        return original(url)

    monkeypatch.setattr("data_pipelines.corpora.read_samples", breaking)
    with pytest.raises(RuntimeError, match="the network is gone"):
        build(tmp_path, releases["open_pmc"])
    dataset = build(tmp_path, releases["open_pmc"])
    assert len(read) == 4 and len(set(read)) == 3  # the first tar was read once
    assert dataset.content_hash == datasets["open_pmc"].content_hash


# --- Small things ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ["file", "parts"],
    [
        ("a/PMC212319_Fig3_4.jpg", ("PMC212319", "Fig3", "4")),
        ("PMC212319_Fig3.jpg", ("PMC212319", "Fig3", "")),
        ("PMC1_1471-2105-3_f1_12.jpg", ("PMC1", "1471-2105-3_f1", "12")),
        ("12-PMC77-3-x.S1.jpg", ("PMC77", "12-PMC77-3-x.S1", "")),
        ("ROCO_00001.jpg", ("", "ROCO_00001", "")),
    ],
)
def test_names(file, parts):
    assert parse_name(file) == parts


def test_context_is_looked_up_and_never_guessed():
    context = {"f1.jpg": ["See 1."], "f10": ["See 10."]}
    assert context_of("f1", context) == "See 1."
    assert context_of("f10.jpg", context) == "See 10."
    assert context_of("f", context) == "" and context_of("f1", None) == ""


@pytest.mark.parametrize(
    ["options", "message"],
    [
        ({"layout": "open_pmk"}, "layout .'open_pmk'. must be one of open_pmc"),
        ({"input": ("/nowhere/*.tar",)}, "/nowhere/.*is no file"),
        ({"input": ("/nowhere/{0..1",)}, "unbalanced braces"),
        ({"input": ("nope://x/a.tar",)}, "nope://x/a.tar cannot be opened"),
        ({"caption": "x"}, "caption is known of open_pmc"),
        ({"input": ()}, "input is not set"),
        ({"images": "/nowhere"}, "images .'/nowhere'. must be a folder or a zip file"),
    ],
)
def test_mistakes_are_told(options, message, tmp_path):
    options = {"layout": "open_pmc", "input": ("/x.tar",)} | options
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        build(tmp_path / "out", options)


def test_the_command(releases, tmp_path):
    (pattern,) = releases["biomedica"]["input"]
    command = [sys.executable, "-m", "data_pipelines.corpora", "--layout=biomedica"]
    command += [f"--input={pattern}", f"--out={tmp_path / 'd'}", "--tokenizer_vocab=0"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "dropped  7 (" in done.stdout
    lines = (tmp_path / "d" / "dropped.jsonl").read_text().splitlines()
    assert any("breaks off" in json.loads(line)["reason"] for line in lines)
