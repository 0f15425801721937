"""To TFDS and back: bytes, texts, signals, splits survive; the trainer reads it; no TensorFlow."""

import io
import logging
import pathlib
import pickle
import shutil
import subprocess
import sys

import numpy as np
import pytest

from data_pipelines.corpora import CorpusOptions, build_corpus
from data_pipelines.tfds import TfdsOptions, publish
from jaxclip.data.dataset import Dataset, finish_dataset, write_shard
from jaxclip.data.pipeline import TrainInput
from jaxclip.data.sources import DataConfig, open_sources
from jaxclip.data.subset import open_dataset
from jaxclip.data.text import TokenizerConfig, load_tokenizer
from jaxclip.data.tfds import TfdsDataset
from tests.conftest import tiny_example

pytest.importorskip("tensorflow_datasets")


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


SIGNALS = ({"score": 0.5, "tags": ["a", "b"]}, {"score": None, "tags": []}, {"tags": None})
HASH = 0x7123456789ABCDEF  # float64 has 53 bits
NUMBERS = (
    {"hash": HASH, "gaps": HASH, "year": 2020, "known": True, "hashes": [HASH, -HASH]},
    {"hash": -HASH, "gaps": None, "year": None, "known": False, "hashes": []},
    {"hash": 0, "gaps": -1, "year": 1999, "known": True, "hashes": [1]},
)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> Dataset:
    directory = tmp_path_factory.mktemp("tfds") / "dataset"
    directory.mkdir()
    examples = [tiny_example(number) for number in range(30)]
    for number, example in enumerate(examples):
        example.signals |= SIGNALS[number % 3] | NUMBERS[number % 3]
    write_shard(directory, 0, examples)
    return finish_dataset(directory, 1, {})


@pytest.fixture(scope="module")
def published(dataset) -> pathlib.Path:
    options = TfdsOptions(dataset=str(dataset.path), out=str(dataset.path.parent / "t"), name="toy")
    logging.disable()
    try:
        return pathlib.Path(publish(options))
    finally:
        logging.disable(logging.NOTSET)


@pytest.fixture
def tfds_dataset(published) -> TfdsDataset:
    opened = open_dataset(published)
    assert isinstance(opened, TfdsDataset)
    return opened


def test_every_record_survives(dataset, tfds_dataset):
    assert tfds_dataset.manifest["counts"] == {
        "out": 30,
        "splits": {"train": 21, "validation": 6, "test": 3},
    }
    order = np.concatenate([dataset.positions(s) for s in ("train", "validation", "test")])
    for position, original in enumerate(order.tolist()):
        assert tfds_dataset[position] == dataset[original]
    assert tfds_dataset.positions("validation").tolist() == list(range(21, 27))
    row = tfds_dataset.row(0)
    assert (row["score"], list(row["tags"]), row["shape"]) == (0.5, [b"a", b"b"], b"circle")
    assert np.isnan(tfds_dataset.row(1)["score"]) and list(tfds_dataset.row(1)["tags"]) == []


def test_no_digit_of_a_number_is_lost(dataset, tfds_dataset):
    order = np.concatenate([dataset.positions(s) for s in ("train", "validation", "test")])
    for position, original in enumerate(order.tolist()):
        row, numbers = tfds_dataset.row(position), NUMBERS[original % 3]
        assert isinstance(row["hash"], int) and row["hash"] == numbers["hash"]
        assert list(row["hashes"]) == numbers["hashes"]
        assert row["known"] == numbers["known"] and isinstance(row["width"], int)
        gaps, year = numbers["gaps"], numbers["year"]
        assert row["gaps"].decode() == ("" if gaps is None else str(gaps))
        assert np.isnan(row["year"]) if year is None else row["year"] == year


def test_lengths_of_texts_are_those_of_the_dataset(dataset, tfds_dataset):
    order = np.concatenate([dataset.positions(s) for s in ("train", "validation", "test")])
    names = ["caption_chars", "caption_tokens", "references_chars"]
    assert tfds_dataset.columns(names) == dataset.columns(names).take(order)


def test_the_trainer_reads_what_it_reads_of_the_dataset(dataset, published, tiny_dataset):
    tokenizer = load_tokenizer(
        TokenizerConfig(path=str(tiny_dataset / "tokenizer.json"), context_length=12)
    )
    batches = []
    for path in (str(dataset.path), str(published)):
        config = DataConfig(path=(path,), num_threads=1)
        config.image.size = 16
        sources = open_sources(config, "train")
        with TrainInput(sources, config, tokenizer, seed=0, batch_size=21) as train_input:
            batches.append(next(train_input))  # one epoch
        order = sources[0].positions
        batches[-1]["row"] = np.searchsorted(order, batches[-1]["record"])
    first, second = (batch["tokens"][np.argsort(batch["row"])] for batch in batches)
    assert (first == second).all()


def test_it_is_made_a_dataset_again(dataset, published, tmp_path):
    options = CorpusOptions(
        layout="tfds",
        input=(str(published),),
        out=str(tmp_path / "back"),
        group="article_id",
        panel_caption="panel_caption",
        references="references",
        figure="figure_id",
        licence="licence",
        keep=("shape", "score", "hash", "hashes"),
        workers=1,
        tokenizer_vocab=0,
        min_side=1,
    )
    back = build_corpus(options)
    order = np.concatenate([dataset.positions(s) for s in ("train", "validation", "test")])
    for position, original in enumerate(order.tolist()):
        a, b = back[position], dataset[original]
        assert (a.image, a.texts(), a.article_id) == (b.image, b.texts(), b.article_id)
    assert back.metadata["split"].to_pylist() == dataset.metadata.take(order)["split"].to_pylist()
    assert back.metadata["hash"].to_pylist() == dataset.metadata.take(order)["hash"].to_pylist()
    assert back.metadata["shape"].to_pylist() == dataset.metadata.take(order)["shape"].to_pylist()


@pytest.fixture(scope="module")
def foreign(tmp_path_factory) -> str:
    """Somebody's dataset: `picture`, two texts, splits train and val, made with TFDS alone."""
    import tensorflow_datasets as tfds

    class Builder(tfds.core.GeneratorBasedBuilder):
        name = "foreign"
        VERSION = tfds.core.Version("2.1.0")

        def _info(self):
            features = {"picture": tfds.features.Image(shape=(None, None, 3))}
            features |= {"report": tfds.features.Text(), "title": tfds.features.Text()}
            features |= {"patient": tfds.features.Scalar(np.int64)}
            return tfds.core.DatasetInfo(
                builder=self, features=tfds.features.FeaturesDict(features), disable_shuffling=True
            )

        def _split_generators(self, dl_manager):
            return {"train": self._generate_examples(range(4)), "val": self._generate_examples([9])}

        def _generate_examples(self, numbers):
            for n in numbers:
                image = io.BytesIO(tiny_example(n).record.image)
                report = "" if n == 2 else f"report {n}"
                yield n, {"picture": image, "report": report, "title": "t", "patient": n}

    root = tmp_path_factory.mktemp("foreign")
    builder = Builder(data_dir=str(root), file_format="array_record")
    builder.download_and_prepare()
    return str(builder.data_path)


def test_any_tfds_dataset_by_the_names_of_its_features(foreign):
    opened = open_dataset(f"{foreign}?caption=report&article_id=patient")
    assert opened[3].caption == "report 3" and opened[3].article_id == "3"
    assert opened[3].image == tiny_example(3).record.image
    assert opened.positions("validation").tolist() == [4]
    (source,) = open_sources(DataConfig(path=(f"{foreign}?caption=report",)), "train")
    assert source.positions.tolist() == [0, 1, 3] and source.without_text == 1
    again = pickle.loads(pickle.dumps(opened))
    assert again[1] == opened[1] and again.content_hash == opened.content_hash
    other = open_dataset(f"{foreign}?caption=title")
    assert other.content_hash != opened.content_hash


@pytest.fixture(scope="module")
def nested(tmp_path_factory) -> str:
    """As COCO's captions: sequences, features inside others, classes, a split of its own name."""
    import tensorflow_datasets as tfds

    class Builder(tfds.core.GeneratorBasedBuilder):
        name = "nested"
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            label = tfds.features.ClassLabel(names=["normal", "pneumonia"])
            features = {"captions": tfds.features.Sequence({"id": np.int64, "text": np.str_})}
            features |= {"scan": {"picture": tfds.features.Image(), "label": label}}
            features |= {
                "image/id": np.int64,
                "box": tfds.features.Tensor(shape=(2,), dtype=np.float64),
            }
            return tfds.core.DatasetInfo(
                builder=self, features=tfds.features.FeaturesDict(features), disable_shuffling=True
            )

        def _split_generators(self, dl_manager):
            names = ("train", "restval", "val", "dev")
            return {name: self._generate_examples(i) for i, name in enumerate(names)}

        def _generate_examples(self, n):
            image = io.BytesIO(tiny_example(n).record.image)
            texts = [{"id": i, "text": f" {word} of {n}"} for i, word in enumerate(("CT", "MRI"))]
            scan = {"picture": image, "label": -1 if n else 1}
            yield n, {"captions": texts, "scan": scan, "image/id": n, "box": [0.5, n]}

    root = tmp_path_factory.mktemp("nested")
    builder = Builder(data_dir=str(root), file_format="array_record")
    builder.download_and_prepare()
    return str(builder.data_path)


def test_features_inside_others(nested, tmp_path, capsys):
    opened = open_dataset(nested)
    assert opened[0].caption == "CT of 0\nMRI of 0"  # the only text: of each item a line
    assert opened[0].image == tiny_example(0).record.image
    assert opened.left_out == {"restval": 1, "val": 1} and len(opened) == 2
    assert opened.columns(["caption_chars", "scan/label", "captions/text"]).to_pylist()[0] == {
        "caption_chars": 16,
        "scan/label": 1,
        "captions/text": [" CT of 0", " MRI of 0"],
    }
    by_class = pickle.loads(pickle.dumps(open_dataset(f"{nested}?caption=scan/label")))
    assert [by_class[i].caption for i in range(2)] == ["pneumonia", ""]  # -1: not known
    options = {"layout": "tfds", "input": (nested,), "caption": "scan/label", "min_side": 1}
    options |= {"image": "scan/picture", "group": "image/id", "references": "captions/text"}
    options |= {
        "keep": ("box",),
        "licence": "box",
        "out": str(tmp_path / "d"),
        "workers": 1,
        "tokenizer_vocab": 0,
    }
    back = build_corpus(CorpusOptions(**options))
    assert back.manifest["counts"]["dropped"] == {"empty caption": 1}
    assert (back[0].caption, back[0].references) == ("pneumonia", "CT of 0\nMRI of 0")
    assert back[0].licence == "0.5\n0.0"
    assert "left out are the splits restval (1 records), val (1 records)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ["query", "message"],
    [
        ("", "has no feature 'caption' and 2 of type Text .report, title.*caption=FEATURE"),
        ("?caption=reprot", "'reprot' is no feature or field. Features: "),
        ("?captoin=report", "'captoin' is no feature or field"),
    ],
)
def test_an_unclear_feature_is_asked_for(foreign, query, message):
    with pytest.raises(ValueError, match=message):
        open_dataset(foreign + query)


def test_another_file_format_is_told(foreign, tmp_path):
    shutil.copytree(foreign, tmp_path / "x" / "2.1.0")
    info = tmp_path / "x" / "2.1.0" / "dataset_info.json"
    info.write_text(info.read_text().replace('"array_record"', '"tfrecord"'))
    with pytest.raises(ValueError, match="is not in array_record"):
        open_dataset(f"{tmp_path / 'x' / '2.1.0'}?caption=report")


def test_no_tensorflow_is_imported(foreign):
    program = (
        "import sys; from jaxclip.data.subset import open_dataset\n"
        "assert 'tensorflow_datasets' not in sys.modules\n"
        f"print(open_dataset({foreign + '?caption=report'!r})[0].caption)\n"
        "assert 'tensorflow' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0 and "report 0" in done.stdout, done.stderr


@pytest.mark.parametrize(
    ["options", "message"],
    [
        ({"name": "My Corpus"}, "must be lower case"),
        ({"version": "1"}, "must be like 1.0.0"),
        ({"dataset": ""}, "dataset is not set"),
        ({}, "exists. Choose another --version"),
    ],
)
def test_mistakes_are_told(dataset, published, options, message):
    out = str(published.parents[1])
    options = {"dataset": str(dataset.path), "out": out, "name": "toy"} | options
    with pytest.raises(ValueError, match=message):
        publish(TfdsOptions(**options))


def test_a_place_that_cannot_be_written_is_told(dataset, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="out .*file.* cannot be written"):
        publish(TfdsOptions(dataset=str(dataset.path), out=str(tmp_path / "file"), name="bad"))


def test_columns_cost_one_pass_ever(foreign, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    passes = []
    read = TfdsDataset._read_columns
    monkeypatch.setattr(
        TfdsDataset, "_read_columns", lambda self, new: passes.append(list(new)) or read(self, new)
    )
    path = f"{foreign}?caption=report&article_id=patient"
    names = ["caption_chars", "references_chars", "image_sha256", "article_id", "patient"]
    first = open_dataset(path).columns(names)
    again = open_dataset(path).columns(names)
    assert again == first and passes == [names, []]
    assert first["caption_chars"].to_pylist() == [8, 8, 0, 8, 8]
    assert first["references_chars"].to_pylist() == [0] * 5
    assert first["article_id"].to_pylist() == ["0", "1", "2", "3", "9"]  # as a DATASET's, text
    assert first["patient"].to_pylist() == [0, 1, 2, 3, 9]
    assert first["image_sha256"][3].as_py() == open_dataset(path)[3].image_sha256
