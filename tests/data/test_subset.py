"""A subset is what it says, of the dataset it says, and the trainer reads just that."""

import dataclasses
import json
import pickle
import shutil

import numpy as np
import pytest

from jaxclip.data.dataset import Dataset, finish_dataset, write_shard
from jaxclip.data.order import TrainSamples
from jaxclip.data.sources import DataConfig, open_sources, seen_of
from jaxclip.data.subset import Subset, dataset_name, open_dataset, write_subset
from jaxclip.workdir import budget_lines
from tests.conftest import tiny_example

CHOSEN = np.array([20, 3, 41, 0])  # all in train


@pytest.fixture
def subset(tiny_dataset, tmp_path) -> Subset:
    return write(tiny_dataset, tmp_path / "subset")


def write(dataset, path, positions=CHOSEN) -> Subset:
    return write_subset(
        path,
        Dataset(dataset),
        positions,
        splits=("train",),
        made_by={"seed": 0},
        counts={"eligible": 42},
    )


def test_positions_of_its_splits_and_all_of_the_others(subset, tiny_dataset):
    assert subset.positions("train").tolist() == [0, 3, 20, 41]
    everything = Dataset(tiny_dataset)
    assert subset.positions("test").tolist() == everything.positions("test").tolist()
    assert len(subset) == 4 and subset.manifest["made_by"] == {"seed": 0}
    assert pickle.loads(pickle.dumps(subset)).positions().tolist() == [0, 3, 20, 41]


def test_the_hash_names_the_positions_and_the_dataset(subset, tiny_dataset, tmp_path):
    same = write(tiny_dataset, tmp_path / "same", CHOSEN[::-1])
    other = write(tiny_dataset, tmp_path / "other", CHOSEN[1:])
    assert subset.content_hash == same.content_hash != other.content_hash


def test_another_version_of_the_dataset_is_refused(tmp_path):
    def make(first: int) -> None:
        shutil.rmtree(tmp_path / "d", ignore_errors=True)
        (tmp_path / "d").mkdir()
        write_shard(tmp_path / "d", 0, [tiny_example(n) for n in range(first, first + 50)])
        finish_dataset(tmp_path / "d", 1, {})

    make(0)
    write(tmp_path / "d", tmp_path / "s", np.array([0, 1]))
    assert len(Subset(tmp_path / "s")) == 2
    make(10)
    with pytest.raises(ValueError, match="was made for version .* which now is"):
        Subset(tmp_path / "s")


def test_moved_together_it_opens_and_alone_it_does_not(tiny_dataset, tmp_path):
    shutil.copytree(tiny_dataset, tmp_path / "a" / "d")
    write(tmp_path / "a" / "d", tmp_path / "a" / "s")
    shutil.move(tmp_path / "a", tmp_path / "b")
    assert Subset(tmp_path / "b" / "s").dataset.path == tmp_path / "b" / "s" / "../d"
    shutil.rmtree(tmp_path / "b" / "d")
    with pytest.raises(FileNotFoundError, match="is neither at"):
        Subset(tmp_path / "b" / "s")


def test_damage_is_told(subset):
    np.save(subset.path / "positions.npy", np.array([0, 3, 20, 40]))
    with pytest.raises(ValueError, match="does not have the content of the manifest"):
        Subset(subset.path)
    file = subset.path / "positions.npy"
    whole = file.read_bytes()
    for content in (whole[:-8], whole[:40], b""):  # cut in the numbers, in the header, before it
        file.write_bytes(content)
        with pytest.raises(ValueError, match=rf"{file} cannot be read \(.*\)\. Copy it again"):
            Subset(subset.path)
    (subset.path / "manifest.json").write_text('{"format": "jaxclip-sub')
    with pytest.raises(ValueError, match=r"subset/manifest\.json cannot be read"):
        open_dataset(subset.path)


def test_nothing_is_overwritten(subset, tiny_dataset, tmp_path):
    assert write(tiny_dataset, subset.path).content_hash == subset.content_hash
    with pytest.raises(ValueError, match="holds another subset"):
        write(tiny_dataset, subset.path, CHOSEN[1:])
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("years of work")
    with pytest.raises(ValueError, match="holds something that is no subset"):
        write(tiny_dataset, tmp_path / "full")
    with pytest.raises(ValueError, match="No record was chosen"):
        write(tiny_dataset, tmp_path / "none", CHOSEN[:0])


@pytest.mark.parametrize("left", ["positions.npy.17.tmp", "positions.npy", "manifest.json.17.tmp"])
def test_killed_while_it_was_written_it_is_written_again(left, subset, tiny_dataset, tmp_path):
    (tmp_path / "killed").mkdir()
    (tmp_path / "killed" / left).write_bytes(b"half")
    assert write(tiny_dataset, tmp_path / "killed").content_hash == subset.content_hash


def test_whatever_a_path_may_name(subset, tiny_dataset, tmp_path):
    assert isinstance(open_dataset(subset.path), Subset)
    assert isinstance(open_dataset(tiny_dataset), Dataset)
    with pytest.raises(FileNotFoundError, match="is not a dataset"):
        open_dataset(tmp_path / "none")
    (tmp_path / "manifest.json").write_text(json.dumps({"format": "other"}))
    with pytest.raises(ValueError, match="is not the manifest of a jaxclip dataset"):
        open_dataset(tmp_path)


@pytest.fixture
def mixture(subset, tiny_dataset) -> DataConfig:
    paths = (str(tiny_dataset), str(subset.path))
    return DataConfig(path=paths, weights=(0.25, 0.75))


def test_sources_of_a_mixture_with_a_subset(mixture, subset, tiny_dataset):
    whole, chosen = open_sources(mixture, "train")
    assert chosen.positions.tolist() == [0, 3, 20, 41] and len(whole.positions) == 42
    assert chosen.content_hash == subset.content_hash != whole.content_hash
    assert (chosen.path, whole.path) == (str(subset.path), str(tiny_dataset))
    for a, b in [open_sources(mixture, "validation")]:
        assert a.positions.tolist() == b.positions.tolist()


@pytest.mark.parametrize("samples", [0, 1, 7, 100, 1001])
@pytest.mark.parametrize("weights", [(), (0.25, 0.75), (1, 3.3)])
def test_what_is_said_to_be_seen_is_what_the_sampler_gives(mixture, samples, weights):
    sources = open_sources(dataclasses.replace(mixture, weights=weights), "train")
    drawn = TrainSamples([s.positions for s in sources], [s.weight for s in sources], seed=5)
    refs = [drawn[i] for i in range(samples)]
    for number, (source, seen) in enumerate(zip(sources, seen_of(sources, samples), strict=True)):
        of_source = [ref.position for ref in refs if ref.source == number]
        assert seen.samples == len(of_source)
        assert seen.unique_pairs == len(set(of_source))
        assert seen.epochs == len(of_source) / len(source.positions)


def test_the_summary_of_a_mixture(mixture, subset, tiny_dataset):
    lines = budget_lines(open_sources(mixture, "train"), 160, train_flops_per_pair=2e6)
    assert lines == [
        "Budget: 160 samples seen of 44 unique pairs; 3.2e+08 FLOPs.",  # 40 of 42, and 4 of 4
        f"- {tiny_dataset}: 40 samples, 40 unique pairs of 42, 0.95 epochs",
        f"- {subset.path}: 120 samples, 4 unique pairs of 4, 30.00 epochs",
    ]


@pytest.mark.parametrize(
    ["path", "name"],
    [
        ("corpora/10k", "10k"),
        ("d/coco/1.1.0", "coco"),
        ("d/coco/2014/1.1.0?caption=captions/text", "2014"),
    ],
)
def test_names(path, name):
    assert dataset_name(path) == name
