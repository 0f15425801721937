"""Training reads one sequence, however it is cut up; evaluation sees each record once."""

import dataclasses
import itertools
import multiprocessing
import pathlib
import threading
import time

import numpy as np
import pyarrow as pa
import pytest

from jaxclip import command
from jaxclip.data import order, pipeline
from jaxclip.data.dataset import Dataset, finish_dataset, write_shard
from jaxclip.data.image import ImageConfig, eval_image
from jaxclip.data.pipeline import TrainInput, eval_batches
from jaxclip.data.record import hash64
from jaxclip.data.sources import DataConfig, Source, _read_labels, open_sources
from jaxclip.data.text import TextPolicy, TokenizerConfig, load_tokenizer
from jaxclip.train_step import step_batch
from tests.conftest import tiny_example

IMAGE = ImageConfig(size=16, crop_scale=(0.3, 1.0), flip_probability=0.5, brightness=0.3)
TEXT = TextPolicy(
    fields=("caption", "panel_caption", "references"), combine="sample", random_sentence=True
)
TRAIN = [n for n in range(60) if n % 10 < 7]  # conftest.SPLITS
SEED = 11


@pytest.fixture(scope="module")
def tokenizer(tiny_dataset):
    path = str(tiny_dataset / "tokenizer.json")
    return load_tokenizer(TokenizerConfig(path=path, context_length=12))


@pytest.fixture(scope="module")
def config(tiny_dataset) -> DataConfig:
    return DataConfig(path=(str(tiny_dataset),), image=IMAGE, text=TEXT)


@pytest.fixture(scope="module")
def reference(config, tokenizer):
    """Samples 0 to 119, nearly three epochs, read by one thread in one piece a batch."""
    return train_rows(dataclasses.replace(config, num_threads=1), tokenizer, 120, batch_size=24)


def shared_memory_blocks() -> set[str]:
    """Of all processes, this one's workers among them."""
    directory = pathlib.Path("/dev/shm")
    return {file.name for file in directory.glob("psm_*")} if directory.exists() else set()


def concatenate(batches) -> dict[str, np.ndarray]:
    batches = list(batches)
    return {key: np.concatenate([batch[key] for batch in batches]) for key in batches[0]}


def train_rows(config, tokenizer, samples, *, batch_size, num_hosts=1, next_sample=0, seed=SEED):
    """That many samples as the global batches have them: hosts one after the other."""
    sources = open_sources(config, "train")
    batches = [[] for _ in range(samples // batch_size)]
    for host in range(num_hosts):
        with TrainInput(
            sources,
            config,
            tokenizer,
            seed=seed,
            batch_size=batch_size,
            host=host,
            num_hosts=num_hosts,
            next_sample=next_sample,
        ) as train_input:
            for step, parts in enumerate(batches):
                parts.append(next(train_input))
                assert len(parts[-1]["image"]) == batch_size // num_hosts
                assert train_input.next_sample == next_sample + (step + 1) * batch_size
    return concatenate(part for parts in batches for part in parts)


def assert_same(rows, expected, start=0):
    count = len(rows["record"])
    assert rows.keys() == expected.keys()
    for key in rows:
        assert rows[key].dtype == expected[key].dtype
        assert np.array_equal(rows[key], expected[key][start : start + count]), key


# --- One sequence --------------------------------------------------------------------------------


def test_batch_has_the_documented_arrays(reference):
    assert {key: (rows.shape, rows.dtype.name) for key, rows in reference.items()} == {
        "image": ((120, 16, 16, 3), "uint8"),
        "tokens": ((120, 12), "int32"),
        "source": ((120,), "int64"),
        "record": ((120,), "int64"),
    } | {f"{name}_id": ((120,), "int64") for name in ("article", "figure", "image", "caption")}


@pytest.mark.parametrize(
    "cut",
    [
        {"batch_size": 8},
        {"batch_size": 60},
        {"batch_size": 120},
        {"batch_size": 24, "num_hosts": 2},
        {"batch_size": 24, "num_hosts": 4},
        {"batch_size": 12, "num_hosts": 4},
    ],
    ids=str,
)
def test_stream_does_not_depend_on_batch_size_and_hosts(config, tokenizer, reference, cut):
    assert_same(train_rows(config, tokenizer, 120, **cut), reference)


@pytest.mark.parametrize("num_threads", [1, 3, 16])
def test_stream_does_not_depend_on_threads(config, tokenizer, reference, num_threads):
    config = dataclasses.replace(config, num_threads=num_threads)
    assert_same(train_rows(config, tokenizer, 120, batch_size=24), reference)


@pytest.mark.parametrize("chunk", [1, 5, 7])  # of local batches of 12: pieces of 1, 4 and 6
def test_stream_does_not_depend_on_chunks(config, tokenizer, reference, chunk, monkeypatch):
    monkeypatch.setattr(pipeline, "MAX_CHUNK", chunk)
    rows = train_rows(config, tokenizer, 120, batch_size=24, num_hosts=2)
    assert_same(rows, reference)


@pytest.mark.parametrize("num_workers", [1, 2])
def test_stream_does_not_depend_on_workers(config, tokenizer, reference, num_workers, monkeypatch):
    # Resumed in the middle of an epoch, in 3 pieces a batch so that workers take turns within one.
    monkeypatch.setattr(pipeline, "MAX_CHUNK", 4)
    before = shared_memory_blocks()
    config = dataclasses.replace(config, num_workers=num_workers, num_threads=1)
    rows = train_rows(config, tokenizer, 36, batch_size=12, next_sample=24)
    assert_same(rows, reference, start=24)
    wait_until(lambda: not multiprocessing.active_children())
    wait_until(lambda: shared_memory_blocks() <= before)


@pytest.mark.parametrize("next_sample", [1, 24, 41, 42, 43, 90])
def test_resumed_stream_goes_on_exactly(config, tokenizer, reference, next_sample):
    # From any sample, with another batch size and number of hosts than before.
    for cut in ({"batch_size": 10}, {"batch_size": 6, "num_hosts": 3}):
        rows = train_rows(config, tokenizer, 30, next_sample=next_sample, **cut)
        assert_same(rows, reference, start=next_sample)


@pytest.mark.parametrize("length", [1, 2, 1000, 2**16 - 1, 2**16, 70_000])
def test_shuffle_is_a_permutation(length):
    first, second = (
        np.array([order._shuffled(i, length, seed) for i in range(length)]) for seed in (5, 6)
    )
    assert np.array_equal(np.sort(first), np.arange(length))
    if length >= 1000:
        assert (first != second).mean() > 0.99
        assert abs(np.corrcoef(first, np.arange(length))[0, 1]) < 4 / length**0.5


def test_far_sample_is_reached_at_once(config, tokenizer, monkeypatch):
    looked_at, get = itertools.count(), order.TrainSamples.__getitem__

    def counting(self, index):
        assert next(looked_at) < 1000, "counts its way there"
        return get(self, index)

    monkeypatch.setattr(order.TrainSamples, "__getitem__", counting)
    rows = train_rows(config, tokenizer, 42, batch_size=42, next_sample=42 * 10**11)
    assert sorted(rows["record"]) == TRAIN


# --- What the sequence is ------------------------------------------------------------------------


def test_each_epoch_has_every_record_once_in_a_new_order(reference):
    first, second = reference["record"][:42], reference["record"][42:84]
    assert sorted(first) == sorted(second) == TRAIN
    assert (first != second).sum() > 30
    assert (first != TRAIN).sum() > 30


def test_seeds_differ_in_order_and_augmentation(config, tokenizer, reference):
    other = train_rows(config, tokenizer, 42, batch_size=42, seed=SEED + 1)
    assert (other["record"] != reference["record"][:42]).sum() > 30
    by_record = np.argsort(other["record"]), np.argsort(reference["record"][:42])
    same = [
        np.array_equal(other["image"][i], reference["image"][j])
        for i, j in zip(*by_record, strict=True)
    ]
    assert not any(same)
    # the second epoch of one seed is not the first of the next
    assert not np.array_equal(other["record"], reference["record"][42:84])


def test_augmentation_is_new_in_each_epoch(reference):
    for record in TRAIN[:10]:
        first, second = np.flatnonzero(reference["record"][:84] == record)
        assert not np.array_equal(reference["image"][first], reference["image"][second])


def test_augmentation_depends_on_seed_source_epoch_and_record_only(
    config, tokenizer, reference, small_dataset
):
    # Mixed with another dataset, the records of the first come at other times, all else the same.
    mixed = dataclasses.replace(config, path=(*config.path, small_dataset), weights=(0.75, 0.25))
    rows = train_rows(mixed, tokenizer, 160, batch_size=40)
    own = {key: values[rows["source"] == 0] for key, values in rows.items()}
    assert_same(own, reference)

    swapped = dataclasses.replace(mixed, path=mixed.path[::-1], weights=(0.25, 0.75))
    rows = train_rows(swapped, tokenizer, 40, batch_size=40)
    own = {key: values[rows["source"] == 1] for key, values in rows.items()}
    assert not np.array_equal(own["record"], reference["record"][: len(own["record"])])


def test_image_and_tokens_belong_to_the_record(tiny_dataset, tokenizer):
    image = ImageConfig(size=16, crop_scale=(1.0, 1.0), crop_ratio=(1.0, 1.0))
    config = DataConfig(path=(str(tiny_dataset),), image=image)
    rows, dataset = train_rows(config, tokenizer, 42, batch_size=21), Dataset(tiny_dataset)
    for i, position in enumerate(rows["record"]):
        record = dataset[int(position)]
        assert np.array_equal(rows["image"][i], eval_image(record.image, image))
        assert np.array_equal(rows["tokens"][i], tokenizer.encode([record.caption])[0])


def test_dataset_of_one_record(one_record_dataset, tokenizer):
    config = DataConfig(path=(one_record_dataset,), image=IMAGE)
    rows = train_rows(config, tokenizer, 4, batch_size=2)
    assert rows["record"].tolist() == [0, 0, 0, 0]
    assert not np.array_equal(rows["image"][0], rows["image"][1])  # another epoch each


# --- Mixtures ------------------------------------------------------------------------------------


def write_dataset(directory: pathlib.Path, numbers) -> str:
    directory.mkdir()
    examples = [dataclasses.replace(tiny_example(number), split="train") for number in numbers]
    write_shard(directory, 0, examples)
    finish_dataset(directory, 1, {"module": "test"})
    return str(directory)


@pytest.fixture(scope="module")
def small_dataset(tmp_path_factory) -> str:
    return write_dataset(tmp_path_factory.mktemp("small") / "dataset", range(100, 113))


@pytest.fixture(scope="module")
def one_record_dataset(tmp_path_factory) -> str:
    return write_dataset(tmp_path_factory.mktemp("one") / "dataset", [7])


def mixed_refs(config, count):
    sources = open_sources(config, "train")
    samples = order.TrainSamples([s.positions for s in sources], [s.weight for s in sources], SEED)
    return [samples[i] for i in range(count)]


@pytest.mark.parametrize("weights", [(1, 1), (3, 1), (0.7, 0.3), (1, 2.5), (1, 999)])
def test_mixture_has_exact_shares_at_every_point(config, small_dataset, weights):
    config = dataclasses.replace(config, path=(*config.path, small_dataset), weights=weights)
    of_second = np.cumsum([ref.source for ref in mixed_refs(config, 5000)])
    expected = np.arange(1, 5001) * weights[1] / sum(weights)
    assert np.abs(of_second - expected).max() < 0.5 + 1e-6


def test_mixture_of_three_has_exact_shares(config, small_dataset, one_record_dataset):
    paths = (*config.path, small_dataset, one_record_dataset)
    config = dataclasses.replace(config, path=paths, weights=(0.57, 0.29, 0.14))
    source = np.array([ref.source for ref in mixed_refs(config, 3000)])
    for i, share in enumerate(config.weights):
        count = np.cumsum(source == i)
        assert np.abs(count - np.arange(1, 3001) * share).max() < 1.5  # half for each division


def test_mixture_by_size_ends_all_epochs_together(config, small_dataset, one_record_dataset):
    # With weights rounded to hundredths of the smallest, as in grain's mix, 42 : 13 does not.
    config = dataclasses.replace(config, path=(*config.path, small_dataset, one_record_dataset))
    refs = mixed_refs(config, 56 * 40)
    for epoch in range(40):
        part = refs[56 * epoch : 56 * (epoch + 1)]
        assert {ref.epoch for ref in part} == {epoch}
        assert len(set(part)) == 56


def test_sources_know_their_share(config, small_dataset):
    paths = (*config.path, small_dataset)
    by_size = open_sources(dataclasses.replace(config, path=paths), "train")
    assert [source.weight for source in by_size] == [42 / 55, 13 / 55]
    weighted = open_sources(dataclasses.replace(config, path=paths, weights=(1, 3)), "train")
    assert [source.weight for source in weighted] == [0.25, 0.75]


# --- Texts ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fields,has_text",
    [
        (("caption",), lambda n: True),
        (("panel_caption",), lambda n: n % 4 == 0),
        (("references", "panel_caption"), lambda n: n % 2 or n % 4 == 0),
    ],
)
def test_records_without_text_are_left_out_and_counted(config, tokenizer, fields, has_text):
    config = dataclasses.replace(config, text=TextPolicy(fields=fields))
    (source,) = open_sources(config, "train")
    expected = [n for n in TRAIN if has_text(n)]
    assert source.positions.tolist() == expected
    assert source.without_text == len(TRAIN) - len(expected)
    rows = train_rows(config, tokenizer, len(expected), batch_size=len(expected))
    assert sorted(rows["record"]) == expected
    pad, eos = tokenizer.pad_id, tokenizer.eos_id
    texts = [[t for t in row if t not in (pad, eos, tokenizer.bos_id)] for row in rows["tokens"]]
    assert all(texts)


# --- Evaluation ----------------------------------------------------------------------------------


@pytest.mark.parametrize("num_hosts", [1, 2, 3])
@pytest.mark.parametrize("batch_size", [6, 12, 18, 48])  # of 12: fits, exactly one, leaves empties
def test_eval_has_each_record_once_in_order(config, tokenizer, tiny_dataset, num_hosts, batch_size):
    (source,) = open_sources(config, "validation")
    hosts = [
        list(
            eval_batches(
                source, config, tokenizer, batch_size=batch_size, host=host, num_hosts=num_hosts
            )
        )
        for host in range(num_hosts)
    ]
    assert {len(batches) for batches in hosts} == {-(-12 // batch_size)}
    rows = concatenate(part for step in zip(*hosts, strict=True) for part in step)
    assert len(rows["image"]) % batch_size == 0
    dataset, valid = Dataset(tiny_dataset), rows["valid"]
    assert valid.tolist() == [i < 12 for i in range(len(valid))]
    assert rows["record"][valid].tolist() == [n for n in range(60) if n % 10 in (7, 8)]
    for i, position in enumerate(rows["record"][valid]):
        record = dataset[int(position)]
        assert np.array_equal(rows["image"][i], eval_image(record.image, IMAGE))
        assert np.array_equal(rows["tokens"][i], tokenizer.encode([record.caption])[0])
        assert rows["image_id"][i] == hash64(record.image_sha256)
        assert rows["caption_id"][i] == hash64(record.caption)
    for key in ("image", "tokens"):  # padding repeats the first record: nothing is undefined
        assert (rows[key][~valid] == rows[key][0]).all()


def test_eval_does_not_depend_on_chunks_and_threads(config, tokenizer, monkeypatch):
    (source,) = open_sources(config, "validation")
    expected = concatenate(eval_batches(source, config, tokenizer, batch_size=8))
    monkeypatch.setattr(pipeline, "MAX_CHUNK", 3)
    config = dataclasses.replace(config, num_threads=5, num_workers=2)  # workers: training's alone
    assert_same(concatenate(eval_batches(source, config, tokenizer, batch_size=8)), expected)


def test_equal_images_and_captions_have_equal_ids(tmp_path, tokenizer):
    examples = [tiny_example(number) for number in (0, 1, 2)]
    examples[1].record.image = examples[0].record.image
    examples[2].record.caption = examples[0].record.caption
    write_shard(tmp_path, 0, [dataclasses.replace(e, split="test") for e in examples])
    finish_dataset(tmp_path, 1, {"module": "test"})
    config = DataConfig(path=(str(tmp_path),), image=IMAGE)
    (source,) = open_sources(config, "test")
    (batch,) = eval_batches(source, config, tokenizer, batch_size=3)
    image_id, caption_id = batch["image_id"], batch["caption_id"]
    assert (image_id[0] == image_id[1]) and (image_id[0] != image_id[2])
    assert (caption_id[0] == caption_id[2]) and (caption_id[0] != caption_id[1])


def open_labelled(directory, labels, split="test", **fields):
    """The source of a dataset of so many records."""
    directory.mkdir()
    examples = [
        dataclasses.replace(tiny_example(n), split=split, signals={"finding": of})
        for n, of in enumerate(labels)
    ]
    for name, values in fields.items():
        for example, value in zip(examples, values, strict=True):
            setattr(example.record, name, value)
    write_shard(directory, 0, examples)
    finish_dataset(directory, 1, {"module": "test"})
    return str(directory)


def read_labelled(tokenizer, *paths) -> dict[str, np.ndarray]:
    """All test records of all paths, with labels."""
    config = DataConfig(path=paths, image=IMAGE, label="finding")
    sources = open_sources(config, "test")
    load = pipeline._Load(sources, config, tokenizer, None)
    refs = [order.Ref(i, 0, int(p)) for i, source in enumerate(sources) for p in source.positions]
    rows = load.empty(len(refs))
    load(refs, rows)
    return rows


def groups(ids) -> list[int]:
    """Of each row the first with the same id."""
    return [ids.tolist().index(number) for number in ids]


def test_articles_figures_and_labels_have_ids(tmp_path, tokenizer):
    # 1 and 2 share an article, 0 and 1 only the name of the figure
    path = open_labelled(
        tmp_path / "a",
        [["CT", "chest"], ["chest", "CT", "CT"], ["MRI"], [], None, []],
        article_id=["PMC1", "PMC2", "PMC2", "PMC2", "", ""],
        figure_id=["f1", "f1", "f2", "f2", "f2", ""],
    )
    batch = read_labelled(tokenizer, path)
    assert groups(batch["article_id"]) == [0, 1, 1, 1, 4, 5]  # who names none is alone
    assert groups(batch["figure_id"]) == [0, 1, 2, 2, 4, 5]
    assert groups(batch["label_id"]) == [0, 0, 2, 3, 4, 5]  # in any order; without labels: alone
    ct, mri, chest = range(3)
    no = -1
    assert batch["labels"].tolist() == [[ct, chest], [ct, chest], [mri, no], *[[no, no]] * 3]
    relations = step_batch(batch)["relations"]
    assert (relations["same_label"][0] == relations["same_label"][1]).all()
    assert relations["labels"].dtype == np.int32


def test_ids_are_the_same_in_all_corpora(tmp_path, tokenizer):
    a = open_labelled(
        tmp_path / "a", ["CT", "MRI"], article_id=["PMC1", "PMC2"], figure_id=["F1.jpg", "F1"]
    )
    b = open_labelled(
        tmp_path / "b", ["MRI", "PET"], article_id=["1", "PMC2.1"], figure_id=["f1", "f2"]
    )
    batch = read_labelled(tokenizer, a, b)
    assert groups(batch["article_id"]) == [0, 1, 0, 1]
    assert groups(batch["figure_id"]) == [0, 1, 0, 3]
    assert groups(batch["label_id"]) == [0, 1, 1, 3]
    assert batch["labels"].tolist() == [[0], [1], [1], [2]]


def test_captions_are_the_same_where_the_model_sees_the_same(tmp_path, tokenizer):
    """In training: cut to the same tokens. In evaluation by their texts, whatever the tokenizer."""
    captions = ["a circle " * 20 + end for end in ("of red", "of blue")] + ["a square"]
    path = open_labelled(tmp_path / "a", [None] * 3, "train", caption=captions)
    config = DataConfig(path=(path,), image=IMAGE)
    rows = train_rows(config, tokenizer, 3, batch_size=3)
    long = np.isin(rows["record"], [0, 1])
    assert (rows["tokens"][long][0] == rows["tokens"][long][1]).all()
    assert len(set(rows["caption_id"][long])) == 1 and len(set(rows["caption_id"])) == 2
    (source,) = open_sources(config, "train")
    (batch,) = eval_batches(source, config, tokenizer, batch_size=3)
    assert len(set(batch["caption_id"])) == 3


def test_labels_may_be_numbers_and_are_many(tmp_path, tokenizer):
    codes = [900000000000207008 + i for i in range(3)]  # as SNOMED's; no float64 holds them apart
    path = open_labelled(tmp_path / "a", [codes[2], codes[0], None, codes[1]])
    assert read_labelled(tokenizer, path)["labels"].tolist() == [[2], [0], [-1], [1]]

    # a number a label, and not one a record and kind: 20,000 kinds would be 400 MB as bool
    class Many:
        def __len__(self):
            return 20_000

        def columns(self, names):
            return pa.table({"finding": [[f"{n}", f"{n + 1}"] for n in range(20_000)]})

    source = Source(Many(), np.arange(20_000), 1.0, 0, "many", "")
    _read_labels([source], "finding")
    assert source.labels.most == 2 and len(source.labels.of(7)) == 2
    assert source.labels.starts.nbytes + source.labels.kinds.nbytes < 400_000


def test_labels_of_two_types_are_refused(tmp_path, tokenizer):
    texts = open_labelled(tmp_path / "texts", ["CT", ""])
    numbers = open_labelled(tmp_path / "numbers", [1, 2])
    nothing = open_labelled(tmp_path / "nothing", ["", None])
    structs = open_labelled(tmp_path / "structs", [{"a": 1}, {"a": 2}])
    many = open_labelled(tmp_path / "many", [list(range(65)), []])
    for paths, said in (
        ((texts, numbers), r"data.label \('finding'\) has strings in one and numbers in another"),
        ((nothing,), r"data.label \('finding'\) has no label"),
        ((structs,), r"data.label \('finding'\) is of type struct<.* must be of strings or"),
        ((many,), r"data.label \('finding'\) has 65 labels in a record of .* there may be 64"),
    ):
        with pytest.raises(ValueError, match=said):
            read_labelled(tokenizer, *paths)
    assert read_labelled(tokenizer, texts, nothing)["labels"].tolist() == [[0], [-1], [-1], [-1]]
    with pytest.raises(ValueError, match="has no column"):
        open_sources(DataConfig(path=(texts,), image=IMAGE, label="nothing"), "test")


# --- Errors and ends -----------------------------------------------------------------------------


def test_errors_name_field_value_and_remedy(config, tokenizer, small_dataset, tmp_path):
    with pytest.raises(ValueError, match=r"data\.path is empty\. Set it"):
        DataConfig().validate()
    two = dataclasses.replace(config, path=(*config.path, small_dataset))
    with pytest.raises(ValueError, match=r"data\.weights \(1,\) must have one number for each"):
        dataclasses.replace(two, weights=(1,)).validate()
    for weight in (0, -1, float("inf"), float("nan")):
        with pytest.raises(ValueError, match=r"data\.weights .* must be positive"):
            dataclasses.replace(two, weights=(1, weight)).validate()
    with pytest.raises(ValueError, match=r"data\.num_threads \(-1\) must be 0 or more"):
        dataclasses.replace(config, num_threads=-1).validate()
    with pytest.raises(FileNotFoundError, match="not a dataset"):
        open_sources(dataclasses.replace(config, path=(str(tmp_path / "none"),)), "train")
    with pytest.raises(
        ValueError, match=r"has 0 records in its validation split\. .* Set --config\.eval\.split=''"
    ):
        open_sources(dataclasses.replace(config, path=(small_dataset,)), "validation")
    with pytest.raises(ValueError, match=r"has 42 records .* none has text .*\('summary',\)"):
        no_text = dataclasses.replace(config, text=TextPolicy(fields=("summary",)))
        open_sources(no_text, "train")
    appended = TextPolicy(fields=("summary",), append=("references",))  # of every second record
    (source,) = open_sources(dataclasses.replace(config, text=appended), "train")
    assert (source.without_text, len(source.positions)) == (24, 18)


def test_batch_size_must_divide_by_hosts(config, tokenizer):
    sources = open_sources(config, "validation")
    match = r"batch_size \(8\) must divide by the number of hosts \(3\)"
    with pytest.raises(ValueError, match=match):
        TrainInput(sources, config, tokenizer, seed=0, batch_size=8, num_hosts=3)
    with pytest.raises(ValueError, match=match):
        next(eval_batches(sources[0], config, tokenizer, batch_size=8, num_hosts=3))


@pytest.mark.parametrize("num_workers", [0, 1])
def test_unreadable_image_names_record_and_dataset(tmp_path, tokenizer, num_workers):
    examples = [tiny_example(number) for number in range(7)]
    examples[3].record.image = b"\xff\xd8 no more"
    write_shard(tmp_path, 0, examples)
    finish_dataset(tmp_path, 1, {"module": "test"})
    config = DataConfig(path=(str(tmp_path),), image=IMAGE, num_workers=num_workers)
    sources = open_sources(config, "train")
    match = rf"Record 3 of {tmp_path} has an unreadable image \(unreadable JPEG.* Copy it again"
    before = shared_memory_blocks()
    with (
        pytest.raises(ValueError, match=match) as error,
        TrainInput(sources, config, tokenizer, seed=SEED, batch_size=1) as train_input,
    ):
        while True:
            next(train_input)
    assert command.is_ours(error.value) and "\n" not in str(error.value)  # told in one line
    wait_until(lambda: not shared_memory_blocks() - before)
    with pytest.raises(ValueError, match=match):
        list(eval_batches(sources[0], config, tokenizer, batch_size=2))


def wait_until(condition):
    """Until threads and processes are where they go by themselves, however slow the machine is."""
    for _ in range(10_000):  # a minute and a half and more: they hang
        if condition():
            return
        time.sleep(0.01)
    raise AssertionError("waited in vain")


def loading_threads():
    return [thread for thread in threading.enumerate() if thread.name.startswith("grain-prefetch")]


def test_closing_leaves_no_threads(config, tokenizer):
    wait_until(lambda: not loading_threads())
    sources = open_sources(config, "train")
    with TrainInput(sources, config, tokenizer, seed=0, batch_size=8) as train_input:
        next(train_input)
        assert loading_threads()
    wait_until(lambda: not loading_threads())
    batches = eval_batches(sources[0], config, tokenizer, batch_size=8)
    next(batches)
    assert loading_threads()
    batches.close()  # as when an evaluator raises in the middle
    wait_until(lambda: not loading_threads())


def test_reads_two_batches_ahead_and_no_more(config, tokenizer, monkeypatch):
    # Memory grows with what is read ahead: with threads at most in the small, never in the large.
    monkeypatch.setattr(pipeline, "MAX_CHUNK", 2)
    loaded = []
    load = pipeline._Load.__call__

    def counting(self, refs, batch):
        load(self, refs, batch)
        loaded.append(len(refs))

    monkeypatch.setattr(pipeline._Load, "__call__", counting)
    config = dataclasses.replace(config, num_threads=3)
    sources = open_sources(config, "train")
    with TrainInput(sources, config, tokenizer, seed=0, batch_size=16) as train_input:
        next(train_input)
        wait_until(lambda: len(loaded) >= 8 + 16)  # chunks of 2: the batch of 16, and two more
        time.sleep(0.1)  # one too many would be loaded now; nothing is if there is none
    assert len(loaded) == 8 + 16
