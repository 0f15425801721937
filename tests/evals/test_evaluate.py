"""Models of others are scored as ours are, from bytes, pixels, paths; what is missing is told."""

import json
import pathlib

import cv2
import numpy as np
import pyarrow as pa
import pytest
from absl.testing import flagsaver

import jaxclip
from data_pipelines.tokenizer import save_tokenizer, train_tokenizer
from jaxclip import evaluate
from jaxclip.data.dataset import Dataset
from jaxclip.data.sources import DataConfig
from jaxclip.evals import results
from jaxclip.evals.base import Embeddings, Measured
from jaxclip.evals.embed import EmbeddingCache, fingerprint
from jaxclip.evals.evaluators import SuiteOptions, evaluate_split
from jaxclip.evals.models import distinct_names, load_embedder, name_of_seeds, seeds_of
from jaxclip.evals.retrieval import retrieval
from jaxclip.evals.sets import dataset_labels, of_dataset
from jaxclip.sharding import ShardingConfig, make_mesh
from tests.conftest import SHAPES, tiny_example
from tests.models.pretrained.fixtures import read_fixture, write_folder

GOLDEN = pathlib.Path(__file__).parents[2] / "../shared/golden"
WORDS = ["red circle blue square green cross of the series number"] * 4


@pytest.fixture(scope="module", params=["hf_clip_gelu", "openclip_vit", "big_vision"])
def imported(request, tmp_path_factory):
    """A checkpoint of each format, with a vocabulary of our own, as if it came without one."""
    folder = tmp_path_factory.mktemp(request.param)
    if request.param == "big_vision":
        path = GOLDEN / "big_vision_siglip_mu16.npz"
        if not path.exists():
            pytest.skip("needs ../shared/golden/big_vision_siglip_mu16.npz")
    else:
        path = write_folder(folder / "model", read_fixture(request.param))
    save_tokenizer(train_tokenizer(WORDS, vocab_size=60), folder / "tokenizer.json")
    mesh = make_mesh(ShardingConfig())
    return load_embedder(str(path), mesh, str(folder / "tokenizer.json"))


def test_bytes_pixels_and_paths_of_an_image_are_one_image(imported, tmp_path):
    images = [tiny_example(number).record.image for number in range(3)]
    pixels = [cv2.imdecode(np.frombuffer(i, np.uint8), 1)[..., ::-1] for i in images]
    paths = [tmp_path / f"{number}.png" for number in range(3)]  # no loss: as the pixels
    for path, pixels_HW3 in zip(paths, pixels, strict=True):
        cv2.imwrite(str(path), pixels_HW3[..., ::-1])
    from_pixels = imported.encode_image([np.ascontiguousarray(p) for p in pixels])
    np.testing.assert_array_equal(imported.encode_image(paths), from_pixels)
    from_bytes = imported.encode_image([path.read_bytes() for path in paths])
    np.testing.assert_array_equal(from_bytes, from_pixels)
    # another JPEG decoder may round a pixel differently
    np.testing.assert_allclose(imported.encode_image(images), from_pixels, atol=5e-3)
    assert np.linalg.norm(from_pixels, axis=1) == pytest.approx(1, abs=1e-5)


def test_on_a_mesh_a_model_of_others_gives_what_load_gives(tmp_path):
    path = write_folder(tmp_path / "model", read_fixture("hf_clip_gelu"))
    save_tokenizer(train_tokenizer(WORDS, vocab_size=60), tmp_path / "own.json")
    mesh = make_mesh(ShardingConfig())
    assert mesh.size == 8
    one = jaxclip.load(str(path), tokenizer=str(tmp_path / "own.json"))
    all_devices = load_embedder(str(path), mesh, str(tmp_path / "own.json"))
    images, texts = [tiny_example(n).record.image for n in range(3)], ["red circle", "a cross"]
    # the same float32 sums in another order
    for tower, given in (("encode_image", images), ("encode_text", texts)):
        expected, found = (getattr(model, tower)(given) for model in (one, all_devices))
        np.testing.assert_allclose(found, expected, atol=2e-6)
    assert all_devices.logit_scale == pytest.approx(one.logit_scale)


def test_a_model_of_others_is_scored(imported, tiny_dataset, tmp_path):
    (split,) = of_dataset(DataConfig(path=(str(tiny_dataset),)), "validation")
    cache = EmbeddingCache(imported, tmp_path)
    found, nothing = evaluate_split(
        cache, {"validation": split}, "validation",
        SuiteOptions(suite=("retrieval", "representation", "probe")),
    )  # fmt: skip
    rows = results.rows_of(
        found, model="x", set_name="tiny", split="validation", identity=split.identity, draws=20
    )
    assert {row["evaluator"] for row in rows} == {
        "image_to_text", "text_to_image", "representation"
    }  # fmt: skip
    assert all(np.isfinite(row["value"]) for row in rows)
    (line,) = nothing
    assert line.startswith("probe of ") and "labels: None" in line and "tokenizer" not in line
    assert len(list(tmp_path.iterdir())) == 2  # images and captions, each once
    assert fingerprint(imported, "image") != fingerprint(imported, "text")


def test_a_model_of_images_alone_is_probed(tiny_dataset, tmp_path):
    """A vision transformer without text tower; a checkpoint without a vocabulary is alike."""
    path = write_folder(tmp_path / "vit", read_fixture("hf_vit"))
    model = load_embedder(str(path), make_mesh(ShardingConfig()))
    prompts = {"version": 1, "label_column": "shape", "templates": ["{}"]}
    prompts |= {"classes": {shape: [shape] for shape in SHAPES}}
    (tmp_path / "shapes.json").write_text(json.dumps(prompts))
    splits = {
        split: of_dataset(DataConfig(path=(str(tiny_dataset),)), split, [f"{tmp_path}/shapes.json"])
        for split in ("train", "test")
    }
    found, nothing = evaluate_split(
        EmbeddingCache(model, tmp_path / "kept"), {k: v for k, (v,) in splits.items()}, "test",
        SuiteOptions(suite=("retrieval", "zero_shot", "probe", "representation")),
    )  # fmt: skip
    assert {measured.name.partition("/")[0] for measured in found} == {
        "image_to_image", "linear_probe", "nearest_neighbours", "representation"
    }  # fmt: skip
    (line,) = nothing
    assert line.startswith("zero_shot of") and "no vocabulary: --tokenizer=FILE" in line


def test_models_of_one_table_are_compared(tmp_path, capsys):
    """Right on 80 of 100 images, and on the same 80 and 10 more: higher, by 0.1."""
    right_SU = np.arange(100) < np.array([[80], [90]])
    rows = []
    for model, right_U in zip("ab", right_SU, strict=True):
        measured = Measured(
            name="zero_shot", metrics=lambda units, r=right_U: {"accuracy": float(r[units].mean())},
            num_units=100, group_U=np.arange(100),
        )  # fmt: skip
        rows += results.rows_of(
            [measured], model=model, set_name="s", split="test", identity="i", draws=200
        )
    results.write(rows, [], results.epath.Path(tmp_path), {})
    with flagsaver.flagsaver(compare=[str(tmp_path)]):
        evaluate.main(["evaluate"])
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("s/test zero_shot accuracy: b - a = +0.1000 [") and "higher" in line
    results.write([*rows, rows[1] | {"model": "c"}], [], results.epath.Path(tmp_path), {})
    with flagsaver.flagsaver(compare=[str(tmp_path)]):
        evaluate.main(["evaluate"])
    assert capsys.readouterr().out.splitlines()[2].startswith("Each of the 2 verdicts is for its")
    results.write(rows[:1], [], results.epath.Path(tmp_path), {})
    with flagsaver.flagsaver(compare=[str(tmp_path)]), pytest.raises(ValueError, match="one model"):
        evaluate.main(["evaluate"])


def test_models_by_name():
    assert seeds_of("A,B") == ["A", "B"]
    assert seeds_of("RUN:random")[::7] == ["RUN:random0", "RUN:random7"]
    names = distinct_names(["runs/a/", "x/final", "y/final", "z/y/last", "z/x/last", "r:random0"])
    assert list(names.values()) == ["a", "x/final", "y/final", "y/last", "x/last", "r:random0"]
    assert name_of_seeds("runs/a/,x/final", names) == "a,x/final (2 seeds)"
    with pytest.raises(ValueError, match="has a model twice"):
        distinct_names(["runs/a", "runs/a/"])
    with pytest.raises(FileNotFoundError, match="holds no run of jaxclip.train"):
        load_embedder("nowhere:random0", make_mesh(ShardingConfig()))


def test_records_of_one_dataset_are_read_when_they_are_asked_for(tiny_dataset):
    (split,) = of_dataset(DataConfig(path=(str(tiny_dataset),)), "test")
    dataset = Dataset(tiny_dataset)
    positions = dataset.positions("test")
    assert list(split.images) == [dataset[int(i)].image for i in positions]
    assert split.images[1:3] == list(split.images)[1:3]


@pytest.mark.parametrize(
    ("column", "several", "expected"),
    [
        ([0, 1], False, ["0", "1"]),  # numbers as the texts that JSON's labels are
        (["ct", None], False, ["ct", None]),  # check_labels names what is missing
        (["a|b", "", None], True, [("a", "b"), (), ()]),
        (['["a", "b"]', "[]", "a"], True, [("a", "b"), (), ("a",)]),  # as data_pipelines.table
        ([["a", "b"], [], None], True, [("a", "b"), (), ()]),
    ],
)
def test_labels_of_a_dataset_are_those_of_prompt_files(column, several, expected):
    class Table:
        def columns(self, names):
            return pa.table({names[0]: column})

    prompts = {"label_column": "x"} | ({"negative_templates": ["no {}"]} if several else {})
    assert dataset_labels(Table(), prompts).tolist() == expected


def test_items_have_the_modality_of_their_own_row():
    # Image 9 is shown twice; unique ids come out sorted, so that units are not rows.
    embeddings = Embeddings(
        image_NE=np.eye(4, dtype=np.float32)[[0, 1, 2, 0]],
        text_NE=np.eye(4, dtype=np.float32)[[0, 1, 2, 0]] * np.float32([[1], [1], [-1], [1]]),
        record_N=np.arange(4),
        image_id_N=np.array([9, 5, 7, 9]),
        caption_id_N=np.array([3, 4, 1, 2]),
    )
    modality_N = np.array(["ct", "mri", "chart", "ct"])
    tables = results.items_of(
        retrieval(embeddings), model="m", set_name="s", split="test", modality_N=modality_N
    )
    rows = [row for table in tables for row in table.to_pylist() if row["metric"] == "recall@1"]
    found = [(row["evaluator"], row["modality"], row["value"]) for row in rows]
    assert [x[1:] for x in found if x[0] == "image_to_text"] == [
        ("mri", 1.0),
        ("chart", 0.0),
        ("ct", 1.0),
    ]
    assert [x[1] for x in found if x[0] == "text_to_image"] == ["chart", "ct", "ct", "mri"]
