"""Articles to a dataset: every figure is a record or a counted drop; hostile and damaged input;
the same bytes with processes, with Beam, and after a kill."""

import collections
import io
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from lxml import etree
from PIL import Image

from data_pipelines.options import take_beam_options
from jaxclip.data.dataset import Dataset
from jaxclip.data.image import decode_image
from tests.pipelines.pmc.articles import article, build, drops, fig, picture, write_articles

BEAM = ("--runner=DirectRunner", "--direct_num_workers=1")


def files(folder) -> dict[str, bytes]:
    skipped = ("card.", "manifest")  # they name the folder and the input
    return {f.name: f.read_bytes() for f in folder.iterdir() if not f.name.startswith(skipped)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_articles(tmp_path_factory.mktemp("articles"), 5)


@pytest.fixture(scope="module")
def built(folder, tmp_path_factory) -> Dataset:
    return build(folder, tmp_path_factory.mktemp("built") / "ds", context={"summary": "textrank"})


def test_a_record_has_everything(built):
    record = built[0]
    assert (record.article_id, record.figure_id, record.panel_id) == ("PMC100", "F1", "")
    assert (record.caption, record.licence) == ("Mouse 100.", "CC BY 4.0")
    assert record.references == "See Figure 1 of mouse 100."
    assert record.summary == "See Figure 1 of mouse 100. Then nothing. Figure 2 too."
    assert record.image == picture(100)  # a small JPEG keeps its bytes
    row = built.metadata.slice(0, 1).to_pylist()[0]
    expected = {"figure_label": "Figure 1.", "num_references": 1, "references_cut": False}
    expected |= {"summary_by": "textrank", "licence_group": "commercial", "doi": "10.1/100"}
    expected |= {"journal": "Test Journal", "date": "2020-02-03", "mesh": ["Animals"]}
    expected |= {"alignment_type": "nonCompound-figure", "xml_damaged": False}
    assert expected.items() <= row.items()


def test_all_is_counted(built):
    steps = {"articles": 5, "figures": 10, "images named": 10, "whole figures": 5}
    assert built.manifest["counts"]["steps"] == steps
    assert built.manifest["counts"]["dropped"] == {"missing image": 5}
    assert (built.path / "card.html").exists()


def test_an_article_that_breaks_off_is_counted(folder, tmp_path):
    source = shutil.copytree(folder, tmp_path / "in")
    xml = (source / "PMC101/PMC101.nxml").read_bytes()
    (source / "PMC101/PMC101.nxml").write_bytes(xml[: xml.index(b"<fig")])
    steps = build(source, tmp_path / "ds").manifest["counts"]["steps"]
    assert (steps["articles with damaged XML"], steps["figures"]) == (1, 8)


@pytest.mark.parametrize("how", [{"workers": 2}, {"beam": BEAM}])
def test_who_writes_the_shards_changes_no_byte(folder, built, tmp_path, how):
    other = build(folder, tmp_path / "ds", context={"summary": "textrank"}, **how)
    assert other.content_hash == built.content_hash
    assert files(other.path) == files(built.path)


def test_killed_half_way_it_goes_on(folder, built, tmp_path):
    """SIGKILL of the whole program once a shard is there; the same command does the rest."""
    out = tmp_path / "ds"
    program = "import sys; from tests.pipelines.pmc.articles import build\n"
    program += "build(*sys.argv[1:], context={'summary': 'textrank'})"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", program, os.fspath(folder), os.fspath(out)]
    killed = subprocess.Popen(command, env=environment, start_new_session=True)
    deadline = time.monotonic() + 120
    while killed.poll() is None and not list(out.glob("records-*.json")):
        assert time.monotonic() < deadline
        time.sleep(0.002)
    if killed.poll() is None:
        os.killpg(killed.pid, signal.SIGKILL)
        killed.wait()
        assert not (out / "manifest.json").exists()
    dataset = build(folder, out, context={"summary": "textrank"})
    assert dataset.content_hash == built.content_hash
    assert files(out) == files(built.path)


def test_another_command_is_refused(folder, built):
    with pytest.raises(ValueError, match="references_tokens: 256 there, 9 now"):
        build(folder, built.path, context={"summary": "textrank", "references_tokens": 9})


def test_articles_and_images_that_came_are_noticed(folder, tmp_path, capsys):
    source = shutil.copytree(folder, tmp_path / "in")
    build(source, tmp_path / "ds")
    build(source, tmp_path / "ds")
    assert "Already done" in capsys.readouterr().out
    (source / "PMC100/f2.jpg").write_bytes(picture(1))
    with pytest.raises(ValueError, match="files.sha256.*there"):
        build(source, tmp_path / "ds")
    shutil.copytree(source / "PMC100", source / "PMC555")
    with pytest.raises(ValueError, match="files.count: 5 there, 6 now"):
        build(source, tmp_path / "ds")
    dataset = build(source, tmp_path / "ds", overwrite=True)
    assert len(dataset) == 8
    printed = capsys.readouterr().out
    assert "4 records share their (group, figure, panel)" in printed  # two figures, twice
    assert "folder and package" in printed


def test_beam_options_leave_the_command_line():
    argv = ["x", "--input=a", "--runner=FlinkRunner", "--flink_master=h:1", "--outt=b"]
    assert take_beam_options(argv) == ["--runner=FlinkRunner", "--flink_master=h:1"]
    assert argv == ["x", "--input=a", "--outt=b"]  # a typo stays, to be refused
    assert take_beam_options(["x", "--flink_master=h:1"]) == []


# --- What only all records together can tell ----------------------------------------------------


def test_duplicates_within_and_across_datasets(built, tmp_path):
    """PMC1 has a picture of `built`; PMC2 the same bytes; PMC3 the same, smaller and encoded anew;
    PMC4 another one with the caption of PMC1 in other letters; PMC5 nothing that anybody has."""
    smaller = Image.open(io.BytesIO(picture(101))).resize((64, 48), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    smaller.save(buffer, "JPEG", quality=70)
    images = [picture(101), picture(101), buffer.getvalue(), picture(7), picture(8)]
    captions = ["A mouse (CT).", "Two.", "Three.", "a Mouse, CT", "Five."]
    for number, (image, caption) in enumerate(zip(images, captions, strict=True), start=1):
        directory = tmp_path / f"in/PMC{number}"
        directory.mkdir(parents=True)
        (directory / "a.nxml").write_bytes(article(fig(1, f"<p>{caption}</p>"), number))
        (directory / "f1.jpg").write_bytes(image)
    others = (os.fspath(built.path),)
    table = build(tmp_path / "in", tmp_path / "ds", duplicates_of=others).metadata
    assert table["duplicate_cluster"].to_pylist() == [0, 0, 0, 3, 4]
    assert table["caption_cluster"].to_pylist() == [0, 1, 2, 0, 4]
    assert table["duplicate_in"].to_pylist() == ["ds", "ds", "ds", None, None]
    exact = build(tmp_path / "in", tmp_path / "exact", duplicate_bits=0).metadata
    assert exact["duplicate_cluster"].to_pylist()[:2] == [0, 0]
    assert "duplicate_in" not in exact.column_names
    none = build(tmp_path / "in", tmp_path / "none", duplicate_bits=-1).metadata
    assert "duplicate_cluster" not in none.column_names


def test_panels_of_one_figure_are_no_copies_of_each_other(tmp_path):
    """Two figures: a row of three pictures, alike but for noise; and one of them again."""
    rng = np.random.default_rng(0)
    one = np.asarray(Image.open(io.BytesIO(picture(3, size=(120, 120)))).convert("RGB")).astype(int)
    row = [np.clip(one // 2 + 60 + rng.integers(-3, 4, one.shape), 40, 200) for _ in range(3)]
    gutter = np.full((120, 20, 3), 255)
    images = {"f1.png": [row[0], gutter, row[1]], "f2.png": [row[2]]}
    for name, figures in {"same": ("f1.png",), "other": ("f1.png", "f2.png")}.items():
        directory = tmp_path / name / "PMC1"
        directory.mkdir(parents=True)
        for file in figures:
            pixels = np.concatenate(images[file], axis=1).astype(np.uint8)
            Image.fromarray(pixels).save(directory / file)
        bodies = [fig(n, f"<p>{n}</p>") for n in range(1, len(figures) + 1)]
        (directory / "a.nxml").write_bytes(article("".join(bodies)))
    same = build(tmp_path / "same", tmp_path / "ds1", panels="panels").metadata
    assert same["duplicate_cluster"].to_pylist() == [0, 1]
    other = build(tmp_path / "other", tmp_path / "ds2", panels="panels").metadata
    assert other["duplicate_cluster"].to_pylist() == [0, 0, 0]


# --- Images and captions that are not what they should be --------------------------------------


def test_images_are_converted_or_dropped_by_reason(tmp_path):
    directory = tmp_path / "in/PMC1"
    directory.mkdir(parents=True)
    grey16 = Image.fromarray((np.arange(64 * 64, dtype=np.uint16) * 16).reshape(64, 64))
    grey16.save(directory / "f1.png")
    (directory / "f2.jpg").write_bytes(picture(2, mode="CMYK"))
    Image.new("1", (11_000, 10_000)).save(directory / "f3.png")  # 110 megapixels, 14 kB
    (directory / "f4.jpg").write_bytes(picture(4)[:400])
    (directory / "f5.jpg").write_bytes(b"<html>not found</html>")
    (directory / "f6.jpg").write_bytes(picture(6, size=(8, 90)))
    (directory / "f8.tif").write_bytes(picture(8, kind="TIFF"))
    (directory / "f8.jpg").write_bytes(picture(9))
    (directory / "f8.gif").write_bytes(picture(8, kind="GIF"))
    (directory / "F10.JPG").write_bytes(picture(10))
    os.symlink("/etc/hostname", directory / "f11.jpg")
    graphic = '<graphic xlink:href="{}"/>'.format
    bodies = [fig(n, f"<p>Figure {n}.</p>") for n in (1, 2, 3, 4, 5, 6)]
    bodies += [fig(7), fig(8, "<p>8</p>", graphic("info:doi/10.1/x/f8.gif"))]
    bodies += [fig(9, "<p>9</p>", "<media/>"), fig(10, "<p>10</p>"), fig(11, "<p>11</p>")]
    bodies += [
        fig(12, "<p>12</p>", graphic("../../secret")),
        fig(13, "<p>13</p>", graphic("/etc/x")),
    ]
    (directory / "a.nxml").write_bytes(article("".join(bodies)))
    dataset = build(tmp_path / "in", tmp_path / "ds")
    records = {record.figure_id: record for record in map(dataset.__getitem__, range(len(dataset)))}
    assert set(records) == {"F1", "F2", "F8", "F10"}
    pixels = decode_image(records["F1"].image)
    assert pixels[0, 0].max() < 10 and pixels[-1, -1].min() > 245  # the upper 8 of 16 bits
    assert decode_image(records["F2"].image).shape == (60, 80, 3)
    assert Image.open(io.BytesIO(records["F2"].image)).mode == "RGB"
    assert dataset.metadata["converted_from"].to_pylist() == ["16-bit grey", "CMYK", "", ""]
    steps = dataset.manifest["counts"]["steps"]
    assert steps["images converted from CMYK"] == steps["images converted from 16-bit grey"] == 1
    assert records["F8"].image == picture(9)  # the JPEG before TIFF and thumbnail
    assert drops(dataset) == {
        "too many pixels": 1,
        "unreadable JPEG": 1,
        "not an image of a known format": 1,
        "too small": 1,
        "empty caption": 1,
        "no image named": 1,
        "path outside images": 1,
        "missing image": 2,
    }


def test_articles_without_images_say_why_nothing_is_written(tmp_path):
    for number in (1, 2):
        (tmp_path / f"PMC{number}.xml").write_bytes(article(fig(1, "<p>a</p>"), number))
    with pytest.raises(ValueError, match=r"No record was written.*'missing image': 2"):
        build(tmp_path, tmp_path / "ds", articles_per_shard=1)  # looks for duplicates


def test_licences_are_kept_apart(tmp_path):
    for number, kind in enumerate(("by", "by-nc", ""), start=1):
        directory = tmp_path / f"in/{number}"
        directory.mkdir(parents=True)
        licence = f"https://creativecommons.org/licenses/{kind}/4.0" if kind else "none"
        (directory / "a.xml").write_bytes(article(fig(1, "<p>a</p>"), number, licence))
        (directory / "f1.jpg").write_bytes(picture(number))
    dataset = build(tmp_path / "in", tmp_path / "ds", licences=("commercial",))
    assert dataset.metadata["licence"].to_pylist() == ["CC BY 4.0"]
    assert drops(dataset) == {"licence": 2}


def test_a_split_is_of_articles(tmp_path):
    text = "".join(fig(n, f"<p>{n}</p>", '<graphic xlink:href="f1"/>') for n in range(1, 5))
    for number in range(12):
        directory = tmp_path / f"in/{number}"
        directory.mkdir(parents=True)
        (directory / "a.nxml").write_bytes(article(text, number))
        (directory / "f1.jpg").write_bytes(picture(number))
    table = build(tmp_path / "in", tmp_path / "ds", split=(0.4, 0.3, 0.3)).metadata
    splits = collections.defaultdict(set)
    for row in table.select(["article_id", "split"]).to_pylist():
        splits[row["article_id"]].add(row["split"])
    assert len(table) == 48 and all(len(found) == 1 for found in splits.values())
    assert len(set.union(*splits.values())) == 3


# --- The command line --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options, message",
    [
        ({"input": ""}, "input is not set"),
        ({"input": "/nowhere"}, "does not exist"),
        ({"input": "EMPTY"}, "has no .nxml"),
        ({"input": "EMPTY", "panels": "all"}, r"panels \(.all.\) must be one of"),
        ({"input": "EMPTY", "duplicate_bits": 17}, r"duplicate_bits \(17\) must be 0 to 16"),
        ({"input": "EMPTY", "duplicates_of": ("x",), "duplicate_bits": -1}, "duplicates_of needs"),
    ],
)
def test_mistakes_are_told(tmp_path, options, message):
    (tmp_path / "empty").mkdir()
    options = dict(options)
    source = options.pop("input").replace("EMPTY", os.fspath(tmp_path / "empty"))
    with pytest.raises(ValueError, match=message):
        build(source, tmp_path / "ds", **options)


# --- Real articles -----------------------------------------------------------------------------


NATIVE = ("10.7554_eLife.00353", "10.7554_eLife.30274", "10.1101_2022.03.15.484463", "elife-32671")


def test_real_articles_lose_nothing(shared_data, tmp_path):
    """Publishers' own files and NCBI's package: what lxml counts is what comes out."""
    source = shared_data / "pmc_articles_native"
    for name in (*NATIVE, "oa_package"):
        shutil.copytree(source / name, tmp_path / "in" / name)
    dataset = build(tmp_path / "in", tmp_path / "ds", workers=2)
    num_figures = 1  # of the package
    for file in (tmp_path / "in").glob("*/*.nxml"):
        num_figures += len(etree.parse(file, etree.XMLParser(recover=True)).findall(".//fig"))
    counts = dataset.manifest["counts"]
    assert counts["steps"]["figures"] == num_figures == counts["out"] == 16
    assert drops(dataset) == {}
    records = [dataset[i] for i in range(len(dataset))]
    (plant,) = (record for record in records if record.article_id == "PMC12419688")
    assert plant.licence.startswith("CC BY") and plant.width > 200  # the JPEG, not the thumbnail
