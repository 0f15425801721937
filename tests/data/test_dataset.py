"""The DATASET contract: what is written is read back, and what is not finished does not open."""

import dataclasses
import json
import multiprocessing
import os
import pickle
import signal

import msgpack
import pytest

from jaxclip.data import dataset as datasets
from jaxclip.data.dataset import Dataset
from jaxclip.data.files import DamagedError
from jaxclip.data.record import (
    SPLITS,
    Drop,
    Example,
    Record,
    article_key,
    figure_key,
    num_tokens,
    split_of,
)

SHARDS = 3
KILLED_AT = (  # each leaves another mix of finished, half-written and missing files
    "item 1 of shard 1",
    "before records-00001.json",
    "after records-00001.json",
    "before dropped.jsonl",
    "before manifest.json",
)


def example(number: int, **signals) -> Example:
    article = f"PMC{number // 2}"
    image = bytes([number % 256]) * 100  # a dataset does not look into its images
    return Example(
        record=Record(image=image, width=10, height=5, caption=f"c{number}", article_id=article),
        split=split_of(article, (0.4, 0.3, 0.3)),
        signals={"number": number, **signals},
    )


def items_of(shard: int):
    yield example(2 * shard)
    yield example(2 * shard + 1)
    yield Drop(item=f"item {shard}", reason="too small" if shard else "no caption")


def write(directory) -> Dataset:
    directory.mkdir(exist_ok=True)
    for shard in range(SHARDS):
        datasets.write_shard(directory, shard, items_of(shard))
    return datasets.finish_dataset(directory, SHARDS, {"module": "test"})


def write_and_die(directory, when: str) -> None:
    """Kills its own process, as the kernel does that is out of memory."""

    def die_if(now: str) -> None:
        if now == when:
            os.kill(os.getpid(), signal.SIGKILL)

    def dying_items(shard: int):
        for number, item in enumerate(original_items(shard)):
            die_if(f"item {number} of shard {shard}")
            yield item

    def dying_write(path, data) -> None:
        die_if(f"before {path.name}")
        original_write(path, data)
        die_if(f"after {path.name}")

    original_items, original_write = items_of, datasets.write_atomically
    globals()["items_of"], datasets.write_atomically = dying_items, dying_write
    write(directory)


@pytest.fixture(scope="module")
def kill_writer():
    """Runs write_and_die in a process of its own, forked from one that has done the imports."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])

    def kill(directory, when: str) -> None:
        process = context.Process(target=write_and_die, args=(directory, when))
        process.start()
        process.join()
        assert process.exitcode == -signal.SIGKILL

    return kill


@pytest.fixture
def dataset(tmp_path) -> Dataset:
    return write(tmp_path / "dataset")


def edit_manifest(directory, **changes) -> None:
    file = directory / "manifest.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def test_record_round_trip_keeps_every_field():
    texts = {field.name: f"{field.name} µ\n" for field in dataclasses.fields(Record)}
    full = Record(**(texts | {"image": b"\xff\xd8\x00", "width": 7, "height": 3}))
    again = Record.unpack(full.pack())
    assert again == full
    # printf '\xff\xd8\x00' | sha256sum
    expected = "9ec23d79a7430da182d3a7b64c4d53e69a0512b3f0288cbf9cedaca5ab0792d3"
    assert again.image_sha256 == expected


@pytest.mark.parametrize("data", [b"", b"junk", msgpack.packb(3), msgpack.packb([1, 2, 3])])
def test_bytes_that_are_no_record_are_refused(data):
    with pytest.raises(ValueError, match="Not a jaxclip record"):
        Record.unpack(data)


def test_record_of_another_schema_version_or_with_other_fields_is_refused():
    with pytest.raises(ValueError, match="schema version 99; this jaxclip reads 1"):
        Record.unpack(msgpack.packb([99, {}]))
    with pytest.raises(ValueError, match=r"Record has other fields .*'colour'\)\. Rebuild"):
        Record.unpack(msgpack.packb([1, {"colour": "red"}]))
    with pytest.raises(ValueError, match=r"Record has other fields than schema version 1"):
        Record.unpack(msgpack.packb([1, {}]))


def test_dataset_round_trip(dataset):
    assert [dataset[i].caption for i in range(6)] == ["c0", "c1", "c2", "c3", "c4", "c5"]
    assert dataset[3].image == b"\x03" * 100
    assert dataset.metadata["position"].to_pylist() == [0, 1, 2, 3, 4, 5]
    assert dataset.metadata["number"].to_pylist() == [0, 1, 2, 3, 4, 5]
    assert dataset.metadata["caption_chars"].to_pylist() == [2] * 6
    assert dataset.metadata["caption_tokens"].to_pylist() == [1] * 6
    assert len(set(dataset.metadata["texts_hash"].to_pylist())) == 6
    assert num_tokens("Fig. 1: (a) CT") == 8  # words and marks
    assert dataset.manifest["counts"]["dropped"] == {"too small": 2, "no caption": 1}
    assert (dataset.manifest["counts"]["in"], dataset.manifest["counts"]["out"]) == (9, 6)
    dropped = [json.loads(line) for line in (dataset.path / "dropped.jsonl").open()]
    assert [drop["item"] for drop in dropped] == ["item 0", "item 1", "item 2"]
    dataset.verify()


def test_positions_of_splits_are_a_partition(dataset):
    positions = [dataset.positions(split).tolist() for split in SPLITS]
    assert sorted(p for split in positions for p in split) == [0, 1, 2, 3, 4, 5]
    for split, of_split in zip(SPLITS, positions, strict=True):
        assert all(split_of(dataset[i].article_id, (0.4, 0.3, 0.3)) == split for i in of_split)
        assert dataset.manifest["counts"]["splits"][split] == len(of_split)


def test_dataset_is_picklable(dataset):
    assert dataset.metadata is not None  # cached, and must not travel with it
    again = pickle.loads(pickle.dumps(dataset))
    assert "metadata" not in again.__dict__
    assert again[5] == dataset[5]


@pytest.mark.parametrize("when", KILLED_AT)
def test_killed_writer_leaves_nothing_that_opens_and_goes_on(tmp_path, when, kill_writer):
    kill_writer(tmp_path / "killed", when)
    with pytest.raises(FileNotFoundError, match="not finished"):
        Dataset(tmp_path / "killed")
    resumed, uninterrupted = write(tmp_path / "killed"), write(tmp_path / "whole")
    resumed.verify()
    assert resumed.content_hash == uninterrupted.content_hash
    assert resumed.manifest == uninterrupted.manifest
    assert file_names(resumed) == file_names(uninterrupted)


def test_writer_killed_after_the_manifest_has_finished(tmp_path, kill_writer):
    kill_writer(tmp_path / "killed", "after manifest.json")
    Dataset(tmp_path / "killed").verify()
    again = write(tmp_path / "killed")
    assert again.content_hash == write(tmp_path / "whole").content_hash
    assert file_names(again) == file_names(Dataset(tmp_path / "whole"))


def file_names(dataset: Dataset) -> list[str]:
    return sorted(file.name for file in dataset.path.iterdir())


def test_finished_shard_is_left_as_it_is(tmp_path):
    first = datasets.write_shard(tmp_path, 0, items_of(0))
    assert datasets.write_shard(tmp_path, 0, iter(pytest.fail, None)) == first


def test_content_hash_depends_on_signals_and_splits(tmp_path):
    moved = example(0)
    moved.split = "validation" if moved.split == "train" else "train"
    hashes = set()
    for name, item in {"a": example(0), "b": example(0, score=1), "c": moved}.items():
        (tmp_path / name).mkdir()
        datasets.write_shard(tmp_path / name, 0, [item])
        hashes.add(datasets.finish_dataset(tmp_path / name, 1, {}).content_hash)
    assert len(hashes) == 3


def test_empty_shard_leaves_no_gap(tmp_path):
    datasets.write_shard(tmp_path, 0, [example(0)])
    datasets.write_shard(tmp_path, 1, [Drop(item="x", reason="r")])
    datasets.write_shard(tmp_path, 2, [example(1)])
    dataset = datasets.finish_dataset(tmp_path, 3, {})
    assert [dataset[0].caption, dataset[1].caption] == ["c0", "c1"]
    assert len(dataset) == 2 and len(dataset.manifest["shards"]) == 2
    assert dataset.metadata["position"].to_pylist() == [0, 1]


def test_signals_may_differ_between_records_and_shards(tmp_path):
    datasets.write_shard(tmp_path, 0, [example(0), example(1, score=1)])
    datasets.write_shard(tmp_path, 1, [example(2, score=0.5, name="x")])
    metadata = datasets.finish_dataset(tmp_path, 2, {}).metadata
    assert metadata["score"].to_pylist() == [None, 1.0, 0.5]
    assert metadata["name"].to_pylist() == [None, None, "x"]


def test_dataset_without_records_is_an_error_with_the_reasons(tmp_path):
    datasets.write_shard(tmp_path, 0, [Drop(item="x", reason="too small")])
    with pytest.raises(ValueError, match=r"No record was written.*'too small': 1"):
        datasets.finish_dataset(tmp_path, 1, {})


@pytest.mark.parametrize("name", ["position", "caption_chars", "split"])
def test_signal_with_the_name_of_a_column_is_refused(tmp_path, name):
    with pytest.raises(ValueError, match=name):
        datasets.write_shard(tmp_path, 0, [example(0, **{name: 1})])


def test_manifest_of_another_schema_version_is_refused(dataset):
    edit_manifest(dataset.path, schema_version=2)
    with pytest.raises(ValueError, match="schema version 2; this jaxclip reads 1"):
        Dataset(dataset.path)


def test_manifest_of_something_else_is_refused(dataset):
    edit_manifest(dataset.path, format="webapp")
    with pytest.raises(ValueError, match="not the manifest of a jaxclip dataset"):
        Dataset(dataset.path)


def test_missing_manifest(dataset, tmp_path):
    (dataset.path / "manifest.json").unlink()
    with pytest.raises(FileNotFoundError, match="not finished"):
        Dataset(dataset.path)
    with pytest.raises(FileNotFoundError, match="is not a dataset"):
        Dataset(tmp_path / "nothing here")


def test_truncated_or_missing_shard(dataset):
    shard = dataset.path / "records-00001.array_record"
    content = shard.read_bytes()
    shard.write_bytes(content[:-1])
    with pytest.raises(ValueError, match=f"records-00001.*has {len(content) - 1} bytes"):
        Dataset(dataset.path)
    shard.unlink()
    with pytest.raises(ValueError, match=r"records-00001.*is missing"):
        Dataset(dataset.path)


def overwrite(file, start: int, stop: int) -> None:
    """Sets bytes to 0, counted from the end if negative: a bad disk leaves sizes as they are."""
    content = bytearray(file.read_bytes())
    content[start:stop] = bytes(len(content[start:stop]))
    file.write_bytes(content)


# of Parquet the schema at the end, or a page at the start: two kinds of error in pyarrow
@pytest.mark.parametrize("damaged", [(-600, -10), (0, 200)])
def test_damaged_metadata_is_named(dataset, damaged):
    overwrite(dataset.path / "metadata.parquet", *damaged)
    match = r"metadata\.parquet cannot be read \([^\n]*\)\. Copy it again, or make it again\.$"
    with pytest.raises(DamagedError, match=match):
        Dataset(dataset.path).columns(None)


def test_half_a_manifest_is_named(dataset):
    file = dataset.path / "manifest.json"
    for content in (file.read_bytes()[:300], b"[1]", b"\xff"):
        file.write_bytes(content)
        with pytest.raises(ValueError, match=r"/dataset/manifest\.json (cannot be read|is not)"):
            Dataset(dataset.path)


def test_record_that_cannot_be_read_is_named(dataset):
    overwrite(dataset.path / "records-00001.array_record", 64 + 40, 64 + 60)
    with pytest.raises(DamagedError, match=rf"Record 2 of {dataset.path}: .*hash mismatch.* Copy"):
        Dataset(dataset.path)[2]
    assert Dataset(dataset.path)[0].caption == "c0"
    foreign = Dataset(dataset.path, source={4: msgpack.packb([99, {}])})
    with pytest.raises(DamagedError, match=rf"Record 4 of {dataset.path}: Record has schema"):
        foreign[4]


def test_verify_finds_a_changed_record(dataset):
    """A shard of the same size with other records: sizes agree, hashes do not."""
    other = write_other(dataset.path.parent / "other")
    content = (other.path / "records-00001.array_record").read_bytes()
    shard = dataset.path / "records-00001.array_record"
    assert len(content) == len(shard.read_bytes())
    shard.write_bytes(content)
    with pytest.raises(ValueError, match="records-00001"):
        Dataset(dataset.path).verify()


def write_other(directory) -> Dataset:
    directory.mkdir()
    for shard in range(SHARDS):
        datasets.write_shard(directory, shard, [example(10 + 2 * shard), example(11 + 2 * shard)])
    return datasets.finish_dataset(directory, SHARDS, {})


def test_unknown_split_and_column_are_named(dataset):
    with pytest.raises(ValueError, match=r"'dev'.*must be one of train, validation, test"):
        dataset.positions("dev")
    with pytest.raises(ValueError, match=r"no column \['nope'\].*number"):
        dataset.columns(["nope"])


def test_split_is_the_same_for_ever():
    """Literals: a change here silently moves test articles into training."""
    assert split_of("PMC1") == "validation"
    assert split_of("PMC2") == split_of("PMC4736393") == "train"
    assert split_of("PMC5") == split_of("PMC9") == "test"
    assert split_of("PMC1", salt="1") == "train"
    assert split_of("PMC2", (0.5, 0.25, 0.25)) == "validation"
    # what is no article of PMC and no DOI, as it is written
    assert split_of("patient2") == "train" and split_of("Patient2") == "test"


@pytest.mark.parametrize(
    "spellings",
    [[f"PMC{n}", f"pmc{n}.1", f"{n}", f" PMC {n} "] for n in (1, 2, 5, 9, 123)]
    + [["10.1/Ab", "https://doi.org/10.1/AB", "doi:10.1/ab"]],
)
def test_an_article_is_in_one_split_of_all_corpora(spellings):
    for salt in ("", "1", "2"):
        assert len({split_of(name, (0.4, 0.3, 0.3), salt) for name in spellings}) == 1


def test_split_fractions_and_salt():
    groups = [f"PMC{i}" for i in range(4000)]
    splits = [split_of(group, (0.8, 0.1, 0.1)) for group in groups]
    # binomial standard deviations: 25 of 3200, 19 of 400; five of them
    assert abs(splits.count("train") - 3200) < 125
    assert abs(splits.count("validation") - 400) < 95
    assert abs(splits.count("test") - 400) < 95
    assert splits != [split_of(group, (0.8, 0.1, 0.1), salt="other") for group in groups]
    assert {split_of(group, (1, 0, 0)) for group in groups} == {"train"}


def test_articles_and_figures_have_one_name_in_all_corpora():
    def keys(article, figure=""):
        record = Record(image=b"", width=1, height=1, caption="")
        record.article_id, record.figure_id = article, figure
        return article_key(record.article_id), figure_key(record)

    for article in ("PMC123", "123", " pmc123 ", "PMC123.1", "PMC 123"):
        assert keys(article, "Fig1.JPG") == keys("PMC123", "fig1") == ("123", "123\0fig1")
    for article in ("10.1/Ab", "https://doi.org/10.1/AB", "doi:10.1/ab"):
        assert keys(article)[0] == "10.1/ab"
    # others stay apart: a PMID is no PMCID, a DOI keeps its ending, panels are not their figure
    assert len({keys(name)[0] for name in ("PMC12", "PMID 12", "10.1/a.1", "10.1/a.2")}) == 4
    assert keys("PMC1", "fig1a")[1] != keys("PMC1", "fig1")[1]
    assert keys("", "fig1") == ("", "") and keys("PMC1", "") == ("1", "")
