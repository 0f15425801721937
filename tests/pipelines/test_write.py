"""The writer goes on where it stopped, refuses to mix, removes its own only; what images become."""

import functools
import io
import json
import os
import signal
import sys

import numpy as np
import pytest
from etils import epath
from PIL import Image

from data_pipelines import claim, write
from data_pipelines.images import prepare_image
from data_pipelines.remote import Shards
from data_pipelines.write import build_dataset, train_texts
from jaxclip.data.dataset import Dataset, shard_name, write_shard
from jaxclip.data.image import ImageError, decode_image
from jaxclip.data.record import Drop, Example, Record

MADE_BY = {"module": "test", "options": {"size": 3}}
JOBS = (0, 10, 20, 30)


def items_of(job: int):
    for number in range(job, job + 5):
        article = f"PMC{number}"
        record = Record(
            image=b"x", width=1, height=1, caption=f"caption {number}", article_id=article
        )
        yield Example(record=record, split="train" if number % 2 else "test")
    yield Drop(item=f"item {job + 5}", reason="too small")


def items_failing_at(failing: int, error: BaseException, job: int):
    for number, item in enumerate(items_of(job), start=job):
        if number == failing:
            raise error
        yield item


def items_killed_once(flag: str, job: int):
    """The first process that comes to job 20 is killed in the middle of it."""
    for number, item in enumerate(items_of(job), start=job):
        if number == 22 and not os.path.exists(flag):
            open(flag, "w").close()
            os.kill(os.getpid(), signal.SIGKILL)
        yield item


def build(out, make_items=items_of, *, jobs=JOBS, made_by=MADE_BY, **options) -> Dataset:
    options = {"workers": 1, "tokenizer_vocab": 0} | options
    return build_dataset(
        os.fspath(out), jobs=jobs, make_items=make_items, made_by=made_by, **options
    )


def names(directory) -> list[str]:
    return sorted(file.name for file in directory.iterdir())


FINISHED = ["dropped.jsonl", "manifest.json", "metadata.parquet"]
FINISHED += [f"records-0000{i}.array_record" for i in range(4)]


def test_build_writes_a_dataset_and_says_so(tmp_path, capsys):
    dataset = build(tmp_path / "out")
    assert names(tmp_path / "out") == FINISHED
    assert [dataset[i].caption for i in (0, 4, 5)] == ["caption 0", "caption 4", "caption 10"]
    assert dataset.manifest["made_by"]["options"] == {"size": 3}
    dataset.verify()
    printed = capsys.readouterr().out
    assert "in       24" in printed and "dropped  4 (too small 4)" in printed
    assert f"--config.data.path={tmp_path / 'out'}" in printed


def test_failing_item_is_named_and_the_rest_is_resumed(tmp_path):
    error = KeyError("no such thing")
    with pytest.raises(RuntimeError, match=r"Item 2 of job 20 \(shard 2\) failed: KeyError"):
        build(tmp_path, functools.partial(items_failing_at, 22, error))
    begun = []

    def noted(job: int):  # runs when the first item is asked for
        begun.append(job)
        yield from items_of(job)

    resumed = build(tmp_path, noted)
    assert begun == [20, 30]
    assert resumed.content_hash == build(tmp_path / "whole").content_hash


def test_ctrl_c_leaves_finished_shards(tmp_path, capsys):
    with pytest.raises(KeyboardInterrupt):
        build(tmp_path, functools.partial(items_failing_at, 22, KeyboardInterrupt()))
    assert "2 of 4 shards" in capsys.readouterr().out
    build(tmp_path)
    assert "2 of 4 shards are there" in capsys.readouterr().out
    assert names(tmp_path) == FINISHED


def test_killed_worker_is_reported_and_resumed_by_two_workers(tmp_path):
    make_items = functools.partial(items_killed_once, str(tmp_path / "flag"))
    with pytest.raises(RuntimeError, match="worker process was killed"):
        build(tmp_path / "out", make_items, workers=2)
    with pytest.raises(FileNotFoundError, match="not finished"):
        Dataset(tmp_path / "out")
    resumed = build(tmp_path / "out", make_items, workers=2)
    assert resumed.content_hash == build(tmp_path / "one").content_hash
    assert names(tmp_path / "out") == FINISHED


def test_same_command_again_is_already_done(tmp_path, capsys):
    first = build(tmp_path)
    again = build(tmp_path, lambda job: pytest.fail("made again"))
    assert again.manifest == first.manifest
    assert "Already done" in capsys.readouterr().out


@pytest.mark.parametrize("finished", [False, True])
def test_other_command_is_refused_naming_what_differs(tmp_path, finished):
    if finished:
        build(tmp_path)
    else:
        with pytest.raises(RuntimeError):
            build(tmp_path, functools.partial(items_failing_at, 11, ValueError()))
    other = {"module": "test", "options": {"size": 4, "fast": True}}
    with pytest.raises(ValueError) as error:
        build(tmp_path, made_by=other)
    assert "options.size: 3 there, 4 now" in str(error.value)
    assert "options.fast: None there, True now" in str(error.value)
    assert "module" not in str(error.value)
    assert "--overwrite" in str(error.value) and "--out" in str(error.value)


def test_other_tokenizer_is_refused_only_once_it_is_there(tmp_path):
    with pytest.raises(RuntimeError):
        build(tmp_path, functools.partial(items_failing_at, 11, ValueError()), tokenizer_vocab=9)
    build(tmp_path, tokenizer_vocab=0)
    with pytest.raises(ValueError, match="tokenizer_vocab: 0 there, 9 now"):
        build(tmp_path, tokenizer_vocab=9)


def test_other_number_of_jobs_is_refused(tmp_path):
    with pytest.raises(RuntimeError):
        build(tmp_path, functools.partial(items_failing_at, 11, ValueError()))
    with pytest.raises(ValueError, match="begun with 4 shards; now there are 3"):
        build(tmp_path, jobs=JOBS[:3])


def test_jobs_are_not_asked_for_when_there_is_nothing_to_do(tmp_path):
    assert len(build(tmp_path, jobs=lambda: JOBS)) == 20
    build(tmp_path, jobs=lambda: pytest.fail("asked"))


def test_overwrite_removes_a_dataset_and_no_other_file(tmp_path):
    build(tmp_path)
    foreign = ("notes.txt", "records.json", "records-1.parquet", "other.parquet")
    of_killed = ("records-00003.json", "records-00009.array_record.tmp", "build.json.17.tmp")
    for name in (*foreign, *of_killed):
        (tmp_path / name).write_text("{}")
    dataset = build(tmp_path, jobs=JOBS[:2], made_by={"other": 1}, overwrite=True)
    assert len(dataset) == 10  # not the shard that the stale records-00003.json says is done
    own = [name for name in FINISHED if name[:13] not in ("records-00002", "records-00003")]
    assert names(tmp_path) == sorted([*own, *foreign])


def test_overwrite_killed_half_way_can_be_done_again(tmp_path, monkeypatch):
    build(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(claim, "_own_files", lambda directory: sys.exit("killed"))
        with pytest.raises(SystemExit):
            build(tmp_path, overwrite=True)
    with pytest.raises(FileNotFoundError):
        Dataset(tmp_path)
    with pytest.raises(ValueError, match="being removed"):
        build(tmp_path)
    assert len(build(tmp_path, overwrite=True)) == 20


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("name", ["manifest.json", "tokenizer.json", "records-00000.array_record"])
def test_folder_of_something_else_is_left_alone(tmp_path, name, overwrite):
    (tmp_path / name).write_text('{"name": "a web app"}')
    with pytest.raises(ValueError, match=name.split(".")[0]):
        build(tmp_path, overwrite=overwrite)
    assert names(tmp_path) == [name]


def test_all_dropped_is_an_error_with_counts(tmp_path):
    def only_drops(job: int):
        yield Drop(item=str(job), reason="too small" if job else "not an image")

    with pytest.raises(ValueError, match=r"too small': 3, 'not an image': 1"):
        build(tmp_path, only_drops)
    assert "manifest.json" not in names(tmp_path)


def test_tokenizer_is_there_before_the_manifest_and_knows_train_only(tmp_path, monkeypatch):
    pytest.importorskip("data_pipelines.tokenizer")

    def items(job: int):
        for split, word in (("train", "pneumonia"), ("test", "zebra")):
            record = Record(image=b"x", width=1, height=1, caption=f"{word} " * 9, references=word)
            yield Example(record=record, split=split)

    with monkeypatch.context() as patch:
        patch.setattr(write, "finish_dataset", lambda *_: sys.exit("killed"))
        with pytest.raises(SystemExit):
            build(tmp_path, items, tokenizer_vocab=80)
    assert "tokenizer.json" in names(tmp_path) and "manifest.json" not in names(tmp_path)
    build(tmp_path, items, tokenizer_vocab=80)
    vocabulary = json.loads((tmp_path / "tokenizer.json").read_text())["model"]["vocab"]
    assert "pneumonia" in vocabulary and not any("z" in token for token in vocabulary)


def test_train_texts_are_spread_evenly(tmp_path, monkeypatch):
    def example(number: int, split: str) -> Example:
        record = Record(image=b"x", width=1, height=1, caption=f"c{number}", summary=f"s{number}")
        return Example(record=record, split=split)

    for shard in range(3):  # train records: 0 1 3 4 6 7; the others are test
        splits = enumerate(("train", "train", "test"), start=3 * shard)
        write_shard(tmp_path, shard, [example(number, split) for number, split in splits])
    write_shard(tmp_path, 3, [Drop(item="x", reason="a shard without records")])
    directory = epath.Path(tmp_path)
    files = [str(directory / f"{shard_name(i)}.array_record") for i in range(4)]
    texts = functools.partial(train_texts, directory, 4, Shards(files, [3, 3, 3, 0]))
    captions = [text for text in texts() if text.startswith("c")]
    assert captions == ["c0", "c1", "c3", "c4", "c6", "c7"]
    assert list(texts(most=2)) == ["c0", "s0", "c4", "s4"]  # every third of six
    assert list(texts(most=1)) == ["c0", "s0"]
    monkeypatch.setattr(write, "TOKENIZER_SHARDS", 2)
    assert [text for text in texts() if text.startswith("c")] == ["c0", "c1", "c6", "c7"]


# --- Images ----------------------------------------------------------------------------------


def encode(pixels: np.ndarray, format: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format, **options)
    return buffer.getvalue()


def prepare(data: bytes, **options) -> tuple[bytes, int, int]:
    image = prepare_image(data, **options)
    return image.data, image.width, image.height


def gradient(height: int, width: int) -> np.ndarray:
    y, x = np.mgrid[:height, :width]
    channels = (255 * y / height, 255 * x / width, 128 + 0 * x)
    return np.stack(channels, axis=-1).astype(np.uint8)


def test_short_side_is_reduced_and_the_aspect_kept():
    for height, width, expected in (
        (60, 90, (48, 32)),
        (90, 60, (32, 48)),
        (400, 64, (32, 200)),
        (320, 33, (32, 310)),  # 320 x 32 / 33
    ):
        data, *size = prepare(encode(gradient(height, width)), short_side=32)
        assert tuple(size) == expected
        assert decode_image(data).shape == (size[1], size[0], 3)


def test_reduced_image_shows_the_same():
    big = gradient(500, 400)  # a JPEG so much larger is decoded at a fraction of its size
    data, width, height = prepare(encode(big, "JPEG", quality=95), short_side=20)
    error = np.abs(decode_image(data).astype(int) - gradient(height, width))
    # a pixel of the small image spans 255/20 = 13 levels; the samples sit at its middle, half of it
    assert error.mean() < 7


def test_original_size_is_recorded():
    for format in ("PNG", "JPEG"):
        image = prepare_image(encode(gradient(500, 401), format), short_side=20)
        assert (image.original_width, image.original_height) == (401, 500)


def test_small_jpeg_keeps_its_bytes():
    data = encode(gradient(20, 30), "JPEG")
    assert prepare(data, short_side=32) == (data, 30, 20)


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"restart_marker_rows": 1}])
def test_what_comes_after_a_jpeg_is_not_kept(options):
    """Zeros, or a second picture; a thumbnail in the first one's EXIF is not its end."""
    exif = Image.Exif()
    exif[0x010E] = "\xff\xd9" + encode(gradient(8, 8), "JPEG").decode("latin-1")
    data = encode(gradient(20, 30), "JPEG", exif=exif, **options)
    for tail in (b"", bytes(5000), encode(gradient(9, 9), "JPEG")):
        assert prepare(data + tail, short_side=32) == (data, 30, 20)
        assert prepare(data + tail, keep_original=True) == (data, 30, 20)


def test_colours_of_printers_are_not_kept():
    """A CMYK JPEG, which peers keep as it is, looks inverted in some programs."""
    buffer = io.BytesIO()
    Image.fromarray(gradient(20, 30)).convert("CMYK").save(buffer, "JPEG", quality=98)
    for kept, kind in ((False, "JPEG"), (True, "PNG")):
        image = prepare_image(buffer.getvalue(), keep_original=kept)
        opened = Image.open(io.BytesIO(image.data))
        assert (opened.mode, opened.format, image.converted_from) == ("RGB", kind, "CMYK")
        assert np.abs(decode_image(image.data) - gradient(20, 30).astype(int)).mean() < 4


def test_small_png_becomes_a_jpeg_and_is_not_enlarged():
    data, width, height = prepare(encode(gradient(20, 30)), short_side=32)
    assert (width, height) == (30, 20) and data[:2] == b"\xff\xd8"


def test_keep_original():
    png, jpeg = encode(gradient(60, 90)), encode(gradient(60, 90), "JPEG")
    assert prepare(png, short_side=32, keep_original=True) == (png, 90, 60)
    assert prepare(jpeg, short_side=32, keep_original=True) == (jpeg, 90, 60)
    bmp, width, height = prepare(encode(gradient(60, 90), "BMP"), keep_original=True)
    assert (width, height) == (90, 60) and bmp[:4] == b"\x89PNG"
    assert np.array_equal(decode_image(bmp), gradient(60, 90))


def test_colour_of_thin_lines_survives():
    """Red on blue, a pixel each: 4:2:0 would leave one purple."""
    pixels = np.zeros((32, 32, 3), np.uint8)
    pixels[:, ::2, 0], pixels[:, 1::2, 2] = 200, 200
    decoded = decode_image(prepare(encode(pixels))[0]).astype(int)
    assert (decoded[:, ::2, 0] - decoded[:, 1::2, 0]).mean() > 180


def test_grey_image_is_stored_grey():
    grey = np.repeat(gradient(32, 32)[..., :1], 3, axis=-1)
    data = prepare(encode(grey))[0]
    assert Image.open(io.BytesIO(data)).mode == "L"
    assert np.abs(decode_image(data).astype(int) - grey).max() <= 4  # quality 92


def test_image_that_is_too_small_is_refused():
    with pytest.raises(ImageError) as error:
        prepare(encode(gradient(15, 900)))
    assert error.value.reason == "too small" and "900 x 15" in error.value.detail


def test_jpeg_too_long_for_libjpeg_is_refused():
    with pytest.raises(ImageError) as error:
        prepare(encode(np.zeros((16, 65_501, 3), np.uint8)))
    assert error.value.reason == "too long"
