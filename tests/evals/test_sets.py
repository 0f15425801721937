"""Public layouts read, embedded once, scored and compared, with embeddings that are random.

The embedder here needs no model: embeddings come from an image's bytes and a text's words.
"""

import csv
import dataclasses
import io
import re
import zipfile
from types import SimpleNamespace

import jax
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import simplejpeg
from jax.experimental import multihost_utils

from jaxclip.data.record import hash64
from jaxclip.evals import page as page_lib
from jaxclip.evals import results
from jaxclip.evals.declared import DECLARED
from jaxclip.evals.embed import EmbeddingCache, embed_set
from jaxclip.evals.evaluators import EVALUATORS, SuiteOptions, evaluate_split
from jaxclip.evals.page import section, write_page
from jaxclip.evals.readers import Folders, Npz, Parquet, Tfds, rows
from jaxclip.evals.sets import Declaration, open_set, set_names
from jaxclip.evals.tables import Table

LABELS = ("CHEST", "ABD", "HEAD")


def jpeg(seed: int) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (24, 20, 3)).astype(np.uint8)
    return simplejpeg.encode_jpeg(pixels, 90)


class RandomEmbedder:
    logit_scale = 10.0

    def __init__(self, seed=0):
        self.seed, self.images_seen = seed, 0

    def _embed(self, items):
        keys = [x if isinstance(x, bytes | str) else x.tobytes() for x in items]
        rows = [np.random.default_rng(hash64(k) % 2**32 + self.seed).normal(size=8) for k in keys]
        return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)

    def encode_image(self, images):
        self.images_seen += len(images)
        return self._embed(list(images))

    def encode_text(self, texts):
        return self._embed(texts)


@pytest.fixture
def sets_dir(tmp_path):
    """toy: a table of 36 images of 12 patients with captions and labels; one is excluded."""
    root = tmp_path / "toy"
    (root / "images").mkdir(parents=True)
    with (root / "t.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "organ", "patient", "caption", "split"])
        for i in range(36):
            (root / f"images/{i}.jpg").write_bytes(jpeg(i))
            split = ("train", "valid", "test")[i // 3 % 3]
            label = "OTHER" if i == 35 else LABELS[i % 3]
            writer.writerow([f"{i}.jpg", label, f"p{i // 3}", f"CT of {i // 2} with mass", split])
        writer.writerow(["0.jpg", "CHEST", "p0", "again", "train"])
    return tmp_path


TOY = Declaration(
    title="a toy", get="nowhere", licence="CC0", prompts="vqa_rad", split="official",
    excluded=("OTHER",),
    layout=Table(
        file="t.csv", image="images/{image}", label="organ", group="patient", caption="caption",
        split="split",
    ),
)  # fmt: skip


def test_a_table_with_patients(sets_dir):
    splits = open_set("toy", TOY, sets_dir)
    assert {name: len(split.images) for name, split in splits.items()} == {
        "train": 12, "validation": 12, "test": 11,
    }  # fmt: skip
    assert splits["train"].left_out == {"image in an earlier row": 1}
    assert splits["test"].left_out == {"label excluded by the declaration, or none": 1}
    assert splits["test"].images[0] == jpeg(6)
    groups = [set(split.groups) for split in splits.values()]
    assert not groups[0] & groups[1] and not groups[1] & groups[2]


def test_rows_without_a_patient_do_not_part_those_of_the_others(tmp_path):
    """One row that does not say whose it is: the others are drawn by patient all the same."""
    names = ("CHEST/p1_a", "CHEST/p1_b", "HEAD/p2_c", "HEAD/d", "ABD/e")
    for seed, name in enumerate(names):
        (tmp_path / "toy" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / f"toy/{name}.jpg").write_bytes(jpeg(seed))
    pattern = r"(?P<label>\w+)/((?P<group>p\d)_)?(?P<study>s\d)?.*"
    toy = dataclasses.replace(TOY, layout=Folders(pattern=pattern), split="test")
    split = open_set("toy", toy, tmp_path)["test"]
    groups = split.groups.tolist()  # in order of the files' names
    assert groups.count("p1") == 2 and len(set(groups)) == 4 and split.studies is None


def test_an_image_keeps_all_its_captions(tmp_path):
    """Quilt-1M has a row a caption: each is a right answer of its image."""
    (tmp_path / "quilt_1m/quilt_1m").mkdir(parents=True)
    for i in range(3):
        (tmp_path / f"quilt_1m/quilt_1m/{i}.jpg").write_bytes(jpeg(i))
    shown = [f"{i}.jpg,caption {j},val" for j, i in enumerate((0, 0, 1, 2, 2))]
    table = "\n".join(["image_path,caption,split", *shown])
    (tmp_path / "quilt_1m/quilt_1M_lookup.csv").write_text(table)
    split = open_set("quilt_1m", DECLARED["quilt_1m"], tmp_path)["validation"]
    assert split.captions == [f"caption {j}" for j in range(5)] and not split.left_out
    cache = EmbeddingCache(RandomEmbedder(), None)
    found, _ = evaluate_split(cache, {"validation": split}, "validation", SuiteOptions())
    assert [measured.num_units for measured in found] == [3, 5]  # images, captions


def test_other_layouts(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("train/cat/1.jpg", jpeg(1))
        archive.writestr("readme.txt", "no image")
    layout = Folders(zip="a.zip", pattern=r"(?P<split>train|test)/(?P<label>\w+)/.*\.jpg")
    (found,) = rows(layout, tmp_path)
    assert (found["split"], found["label"]) == ("train", "cat")
    assert found["image"]() == jpeg(1)

    grey = np.arange(16, dtype=np.uint8).reshape(1, 4, 4)
    arrays = {f"{s}_images": grey for s in ("train", "val", "test")}
    arrays |= {f"{s}_labels": np.array([[0, 1, 1]]) for s in ("train", "val", "test")}
    np.savez(tmp_path / "m.npz", **arrays)
    found = list(rows(Npz(file="m.npz"), tmp_path))
    assert [row["split"] for row in found] == ["train", "val", "test"]
    assert found[0]["label"] == ("1", "2")  # findings by number
    assert found[0]["image"]()[3, 3].tolist() == [15, 15, 15]

    table = pa.table({"image": [{"bytes": jpeg(2), "path": "x"}], "label": [1]})
    pq.write_table(table, tmp_path / "test-00000.parquet")
    (found,) = rows(Parquet(files="*.parquet", label="label"), tmp_path)
    assert (found["split"], found["label"], found["image"]()) == ("test", "1", jpeg(2))


def test_only_the_split_that_is_scored_is_unpacked(tmp_path):
    """An npz of MedMNIST+ has up to 16 GB: reading all three splits of it would not do."""
    rng = np.random.default_rng(0)
    arrays = {}
    for split, number in (("train", 9), ("val", 2), ("test", 3)):
        arrays[f"{split}_images"] = rng.integers(0, 256, (number, 8, 8, 3)).astype(np.uint8)
        arrays[f"{split}_labels"] = np.arange(number)[:, None] % 2
    (tmp_path / "breastmnist").mkdir()
    np.savez_compressed(tmp_path / "breastmnist/breastmnist_224.npz", **arrays)
    splits = open_set("breastmnist", DECLARED["breastmnist"], tmp_path, ["test"])
    assert list(splits) == ["test"]
    np.testing.assert_array_equal(splits["test"].images[0:3], arrays["test_images"])
    assert [path.name for path in (tmp_path / "breastmnist").glob("*.npy")] == [
        "breastmnist_224.test_images.npy"
    ]
    arrays["test_images"] += 1  # another release of the file
    np.savez_compressed(tmp_path / "breastmnist/breastmnist_224.npz", **arrays)
    again = open_set("breastmnist", DECLARED["breastmnist"], tmp_path, ["test"])["test"]
    assert again.content_hash != splits["test"].content_hash


def test_images_that_are_gone_or_broken_are_counted(sets_dir):
    (sets_dir / "toy/images/6.jpg").unlink()
    (sets_dir / "toy/images/7.jpg").write_bytes(b"GIF, they said")
    split = open_set("toy", TOY, sets_dir, ["test"])["test"]
    assert len(split.images) == len(split.image_id_N) == len(split.captions) == 9
    assert split.left_out["no image file"] == 1
    assert split.left_out["not an image of a known format"] == 1
    assert split.images[0] == jpeg(8) and split.labels["vqa_rad"][0] == LABELS[8 % 3]


def test_tfds_rows(tmp_path):
    tfds = pytest.importorskip("tensorflow_datasets")

    class Builder(tfds.core.GeneratorBasedBuilder):
        name = "lymph"
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            features = {"image": tfds.features.Image(shape=(None, None, 3))}
            features["label"] = tfds.features.ClassLabel(names=["no", "yes"])
            features = tfds.features.FeaturesDict(features)
            return tfds.core.DatasetInfo(builder=self, features=features, disable_shuffling=True)

        def _split_generators(self, dl_manager):
            return {"train": self._generate_examples([1]), "test": self._generate_examples([2, 3])}

        def _generate_examples(self, numbers):
            for n in numbers:
                yield n, {"image": io.BytesIO(jpeg(n)), "label": n % 2}

    Builder(data_dir=str(tmp_path), file_format="array_record").download_and_prepare()
    found = list(rows(Tfds(builder="lymph"), tmp_path))
    assert [(row["split"], row["label"]) for row in found] == [
        ("train", "1"), ("test", "0"), ("test", "1")
    ]  # fmt: skip
    assert [row["image"]() for row in found] == [jpeg(1), jpeg(2), jpeg(3)]
    with pytest.raises(FileNotFoundError, match="camelyon holds no prepared dataset"):
        list(rows(Tfds(builder="camelyon"), tmp_path))


def test_a_path_cannot_leave_its_set(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in/t.csv").write_text("image\n../secret\n")
    (tmp_path / "secret").write_bytes(b"x")
    (row,) = rows(Table(file="t.csv", image="image"), tmp_path / "in")
    with pytest.raises(ValueError, match="lies outside .* must stay inside"):
        row["image"]()


def test_a_missing_set_is_named_with_the_place_to_get_it(tmp_path):
    missing = r"BACH.* is not in .*\(no such folder\). Get it: https://zenodo"
    with pytest.raises(FileNotFoundError, match=missing):
        open_set("bach", DECLARED["bach"], tmp_path)


def scored(directory, sets_dir, seed=0, suite=("retrieval", "zero_shot"), draws=50, **options):
    embedder = RandomEmbedder(seed)
    splits = open_set("toy", TOY, sets_dir)
    cache = EmbeddingCache(embedder, directory)
    found, _ = evaluate_split(cache, splits, "test", SuiteOptions(suite=suite, **options))
    return results.rows_of(
        found, model=f"m{seed}", set_name="toy", split="test",
        identity=splits["test"].identity, draws=draws,
    ), embedder, cache, splits["test"]  # fmt: skip


def test_embeddings_are_kept_by_content(sets_dir, tmp_path):
    _, first, *_ = scored(tmp_path / "kept", sets_dir)
    rows_again, again, *_ = scored(tmp_path / "kept", sets_dir)
    assert first.images_seen == 2 + 11 and again.images_seen == 2  # the fingerprint's
    _, other, *_ = scored(tmp_path / "kept", sets_dir, seed=1)
    assert other.images_seen == 2 + 11  # another embedder has other embeddings
    (sets_dir / "toy/images/6.jpg").write_bytes(jpeg(99))
    _, changed, *_ = scored(tmp_path / "kept", sets_dir)
    assert changed.images_seen == 2 + 11


def test_the_first_process_decides_whether_to_embed(sets_dir, tmp_path, monkeypatch):
    """Embedding takes all processes: one that found a file on its own disk must not go ahead."""
    _, _, cache, split = scored(tmp_path / "kept", sets_dir, suite=("representation",), draws=0)
    kept_NE = cache.images(split.content_hash, split.images)
    first_has = []

    def broadcast(value):  # what process 0 would send
        if np.ndim(value) == 0:
            return np.int32(8 if first_has else 0)
        return first_has[0]

    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    monkeypatch.setattr(multihost_utils, "broadcast_one_to_all", broadcast)
    before = cache.embedder.images_seen
    np.testing.assert_array_equal(cache.images(split.content_hash, split.images), kept_NE)
    assert cache.embedder.images_seen == before + 11  # though the file is here
    first_has.append(kept_NE[::-1])
    found = cache.images("content that is not here", split.images)
    np.testing.assert_array_equal(found, kept_NE[::-1])
    assert cache.embedder.images_seen == before + 11


def test_the_whole_suite_its_table_and_its_page(sets_dir, tmp_path):
    found, _, cache, split = scored(tmp_path / "kept", sets_dir, suite=tuple(EVALUATORS), draws=3)
    evaluators = {row["evaluator"].partition("/")[0] for row in found}
    assert evaluators == {
        "image_to_text", "text_to_image", "image_to_image", "zero_shot", "linear_probe",
        "nearest_neighbours", "representation", "robustness",
    }  # fmt: skip
    repeats = {r["value"] for r in found if r["metric"] == "records_of_repeated_images"}
    assert repeats == {0} and sum(r["evaluator"].startswith("image_to_image") for r in found) > 3
    out = results.epath.Path(tmp_path / "out")
    results.write(found, [], out, {})
    assert len(results.read(out)) == len(found)
    split.captions[0] = "<script>alert(1)</script>"
    split.modalities = np.array(["CT", "MRI<"] * 5 + ["US"], object)
    notes = ["Left out of <toy>: 3 (no image file)"]
    page = write_page(out, found, [section("m", cache, split)], notes).read_text()
    assert "<li>Left out of &lt;toy&gt;: 3" in page and "class=method>protocol all_right" in page
    assert "<script>" not in page and "&lt;script&gt;" in page and "data:image/jpeg" in page
    drawn = page.partition("aria-label=map")[2].partition("</svg>")[0]
    # 11 images as discs and 11 texts as rings, in the colours of 3 modalities
    assert drawn.count("stroke=") == 11 and drawn.count("r=3 fill='") == 11
    assert re.findall(r"<text[^>]*>([^<]*)</text>", drawn) == ["CT", "MRI&lt;", "US"]
    split.modalities, split.captions = None, None  # classes, then, and no text
    drawn = section("m", cache, split).partition("Map of the embeddings: t-SNE</h3>")[2]
    names = re.findall(r"<text[^>]*>([^<]*)</text>", drawn.partition("</svg>")[0])
    assert set(names) == set(LABELS) & set(split.labels["vqa_rad"])
    split.labels["vqa_rad"][:] = [
        ("a", "b"),
        (),
        *[("a",)] * 9,
    ]  # findings: neither right nor wrong
    drawn = page_lib._neighbours(embed_set(cache, split), split)
    assert "query a, b<" in drawn and "no finding" in drawn and "class='right'" not in drawn
    assert page.count("<th>m0<th>Chance") == 1 and "Robustness by severity" in page
    assert not any("_severity_" in line for line in results.summary(found))  # a screen, not ten


def test_comparison_says_better_only_on_the_same_data(sets_dir, tmp_path):
    one, two = (scored(None, sets_dir, seed=s)[0] for s in (0, 1))
    verdicts = {row["verdict"] for row in results.compared(one, two)}
    assert verdicts <= {"higher", "lower", "not distinguished"}
    same = results.compared(one, one)
    assert all(row["verdict"] == "not distinguished" and not row["difference"] for row in same)
    for change in ({"protocol": "open_pmc"}, {"templates": "plain"}):
        other = scored(None, sets_dir, seed=1, **change)[0]
        verdicts = {row["evaluator"]: row["verdict"] for row in results.compared(two, other)}
        for name in ("image_to_text", "zero_shot/vqa_rad"):
            differs = name.startswith("zero") == ("templates" in change)
            assert ("not comparable" in verdicts[name]) == differs, (name, change)
            if differs:
                assert all(value in verdicts[name] for value in change.values())
    for row in two:
        row["identity"] = "another"
    found = results.compared(one, two)
    assert {row["verdict"] for row in found} == {"other data or draws: not comparable"}


def test_seeds_are_averaged_with_their_spread(sets_dir, monkeypatch):
    of_seeds = [scored(None, sets_dir, seed=s)[0] for s in range(3)]
    mean = results.over_seeds(of_seeds, "m")
    for row, *of_one in zip(mean, *of_seeds, strict=True):
        assert row["value"] == pytest.approx(np.mean([one["value"] for one in of_one]))
        assert row["low"] is None or row["low"] <= row["value"] <= row["high"]
        assert row["independent"] == (3 if row["replicates"] else 4)  # seeds, of 4 patients
    monkeypatch.setattr(results, "compare", lambda one, two, groups: (one, str(groups)))
    for pair in ((mean, of_seeds[0]), (of_seeds[0], mean)):  # as few as the fewer of two have
        assert {row["verdict"] for row in results.compared(*pair)} == {"3"}


def test_scores_are_named_by_the_dataset_or_by_the_path_where_two_have_its_name():
    """While training and after: `10k` would say nothing of whose 10,000 they are."""
    sources = [
        SimpleNamespace(path=path, dataset=SimpleNamespace(path=dataset))
        for path, dataset in (("a/10k", "d/pmc"), ("b/10k", "d/pmc"), ("c/10k", "d/roco"))
    ]
    assert set_names(sources) == ["a/10k", "b/10k", "roco"]
