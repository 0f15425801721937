"""Every declared set, read from a small copy in its published layout (published_sets.py).

What is expected stands here by hand: [(image, label or caption, group)] by split, or of a set that
is split by hash, all of them and the shares of the splits.
"""

import pytest

from jaxclip.data.record import SPLITS, split_of
from jaxclip.evals import evaluators
from jaxclip.evals.declared import DECLARED
from jaxclip.evals.embed import EmbeddingCache
from jaxclip.evals.readers import rows
from jaxclip.evals.sets import open_set
from jaxclip.evals.tables import Table, findings_and_impression
from jaxclip.evals.zero_shot import load_prompts
from tests.evals import published_sets
from tests.evals.published_files import number_of
from tests.evals.test_sets import RandomEmbedder

SMALL, USUAL = (0.6, 0.15, 0.25), (0.7, 0.1, 0.2)
PHOTOS = "ICIAR2018_BACH_Challenge/Photos"
LUNG_COLON = "lung_colon_image_set"
CASE = "https://x/case?id="
REPORT = "The lungs are clear of consolidation. No acute process."

EXPECTED: dict[str, dict] = {
    "chexpert": {
        "test": [
            (0, ("Cardiomegaly", "Pleural Effusion"), "patient64741"), (1, (), "patient64742"),
        ],
        "validation": [(2, ("Cardiomegaly",), "patient64541")],
        "train": [
            (3, ("Atelectasis", "Edema"), "patient00001"), (4, ("Consolidation",), "patient00002"),
        ],
    },
    "chexpert_5x200": {
        "test": [(0, "Edema", "patient10"), (1, "Pleural Effusion", "patient11")],
    },
    "deepeyenet": {"test": [(0, "44-year-old woman. srnv-md.", None)]},
    "mimic_cxr": {
        "train": [(0, REPORT, "10000032"), (1, REPORT, "10000032")],
        "validation": [(3, "Edema.", "19999987")],  # the test report has neither section
    },
    "mimic_cxr_findings": {
        "train": [(0, (), "10000032"), (1, (), "10000032")],
        "test": [(2, ("Edema", "Pleural Effusion"), "19999733")],
    },
    "nct_crc_he": {
        "train": [
            (0, "ADI", "NCT-CRC-HE-100K/ADI/ADI-AAAFLCLY.tif"),
            (2, "TUM", "NCT-CRC-HE-100K/TUM/TUM-AADQSSHC.tif"),
        ],
        "test": [(3, "STR", "CRC-VAL-HE-7K/STR/STR-TCGA-AALMQQAT.tif")],
    },
    "padchest": {
        "test": [
            (0, ("atelectasis", "scoliosis", "fracture"), "11"), (1, (), "12"),
            (5, ("pleural effusion", "fracture"), "16"),
        ],
        # image 6 is of a patient in the test split
        "train": [(7, ("infiltrates", "alveolar pattern", "consolidation"), "17")],
    },
    "pcam": {
        "test": [(0, "normal", "test/0"), (1, "tumor", "test/1")],
        "train": [(2, "normal", "train/0")],
        "validation": [(3, "tumor", "validation/0")],
    },
    "quilt_1m": {
        "train": [(2, "Caption 2.", "bX-0")],  # image 0 is of a video in the validation split
        "validation": [(1, "Caption 1.", "Ar3b_YIIIA"), (3, "Caption 3.", "d4f5e2ab-openpath.jpg")],
    },
    "roco": {"test": [(0, "Figure 0.", "PMC4083729"), (1, "Figure 1.", "PMC2837471")]},
    "rocov2": {
        "test": [
            (0, "Caption 0.", "PMC8762516"), (1, "Caption 1.", "PMC8762516"),
            (2, "Caption 2.", "PMC9198419"),
        ],
    },
    "sicapv2": {
        "test": [(0, "NC", "7"), (1, "G3", "7")],
        "train": [(2, "G4", "22"), (3, "G5", "22")],
        "validation": [(4, "NC", "31")],
    },
    "vindr_cxr": {
        "test": [(0, ("Cardiomegaly", "Tuberculosis"), "0005e8e37010"), (1, (), "0005e8e37011")],
        "train": [(2, ("ILD",), "a4319"), (3, (), "b071")],
    },
}  # fmt: skip

HASHED: dict[str, tuple] = {
    "bach": (
        SMALL,
        [
            (0, "Benign", f"{PHOTOS}/Benign/b001.tif"), (1, "InSitu", f"{PHOTOS}/InSitu/is001.tif"),
            (2, "Invasive", f"{PHOTOS}/Invasive/iv001.tif"),
            (3, "Normal", f"{PHOTOS}/Normal/n001.tif"), (4, "Normal", f"{PHOTOS}/Normal/n002.tif"),
        ],
    ),
    "ham10000": (
        USUAL, [(0, "bkl", "HAM_0000118"), (1, "bkl", "HAM_0000118"), (2, "nv", "HAM_0002730")],
    ),
    "lc25000_colon": (
        USUAL,
        [
            (0, "colon_aca", f"{LUNG_COLON}/colon_image_sets/colon_aca/colonaca1.jpeg"),
            (1, "colon_n", f"{LUNG_COLON}/colon_image_sets/colon_n/colonn1.jpeg"),
        ],
    ),
    "lc25000_lung": (
        USUAL,
        [
            (0, "lung_aca", f"{LUNG_COLON}/lung_image_sets/lung_aca/lungaca1.jpeg"),
            (1, "lung_n", f"{LUNG_COLON}/lung_image_sets/lung_n/lungn1.jpeg"),
            (2, "lung_scc", f"{LUNG_COLON}/lung_image_sets/lung_scc/lungscc1.jpeg"),
        ],
    ),
    "mednist": (
        (0.9, 0.05, 0.05),
        [(0, "AbdomenCT", "AbdomenCT/000000.jpeg"), (1, "HeadCT", "HeadCT/000001.jpeg")],
    ),
    "pad_ufes_20": (
        SMALL, [(0, "NEV", "PAT_1516"), (1, "SEK", "PAT_1516"), (2, "BCC", "PAT_46")],
    ),
    "rsna_pneumonia": (USUAL, [(0, "0", "00000013"), (1, "1", "00000013"), (2, "1", "00000732")]),
    "vqa_rad": (
        (0.4, 0.1, 0.5),
        [(0, "HEAD", f"{CASE}48e1"), (1, "CHEST", f"{CASE}48e1"), (2, "ABD", f"{CASE}0191")],
    ),
}  # fmt: skip

# medmnist.INFO[name]["label"] of medmnist 3.0; of class 3 of bloodmnist it says more, in brackets
ORGANS = (
    "bladder", "femur-left", "femur-right", "heart", "kidney-left", "kidney-right", "liver",
    "lung-left", "lung-right", "pancreas", "spleen",
)  # fmt: skip
MEDMNIST = {
    "pathmnist": (
        "adipose", "background", "debris", "lymphocytes", "mucus", "smooth muscle",
        "normal colon mucosa", "cancer-associated stroma", "colorectal adenocarcinoma epithelium",
    ),
    "chestmnist": (
        "atelectasis", "cardiomegaly", "effusion", "infiltration", "mass", "nodule", "pneumonia",
        "pneumothorax", "consolidation", "edema", "emphysema", "fibrosis", "pleural", "hernia",
    ),
    "dermamnist": (
        "actinic keratoses and intraepithelial carcinoma", "basal cell carcinoma",
        "benign keratosis-like lesions", "dermatofibroma", "melanoma", "melanocytic nevi",
        "vascular lesions",
    ),
    "octmnist": (
        "choroidal neovascularization", "diabetic macular edema", "drusen", "normal",
    ),
    "pneumoniamnist": ("normal", "pneumonia"),
    "retinamnist": ("0", "1", "2", "3", "4"),
    "breastmnist": ("malignant", "normal, benign"),
    "bloodmnist": (
        "basophil", "eosinophil", "erythroblast", "immature granulocytes", "lymphocyte",
        "monocyte", "neutrophil", "platelet",
    ),
    "tissuemnist": (
        "Collecting Duct, Connecting Tubule", "Distal Convoluted Tubule",
        "Glomerular endothelial cells", "Interstitial endothelial cells", "Leukocytes", "Podocytes",
        "Proximal Tubule Segments", "Thick Ascending Limb",
    ),
    "organamnist": ORGANS, "organcmnist": ORGANS, "organsmnist": ORGANS,
}  # fmt: skip


def opened(name, tmp_path, writer=None):
    """(by split [(image, label or caption, group)], what is left out by split)."""
    (writer or published_sets.WRITERS[name])(tmp_path / name)
    found, left_out = {}, {}
    for split_name, split in open_set(name, DECLARED[name], tmp_path).items():
        images = [number_of(image) for image in split.images]
        said = next(iter(split.labels.values())) if split.labels else split.captions
        groups = [None] * len(images) if split.groups is None else split.groups
        found[split_name] = list(zip(images, said, groups, strict=True))
        left_out[split_name] = split.left_out
    return found, left_out


def test_every_declaration_is_tested():
    sizes = {f"{name}{size}" for name in MEDMNIST for size in ("", "_64", "_128")}
    assert set(DECLARED) == set(EXPECTED) | set(HASHED) | sizes == set(published_sets.WRITERS)


@pytest.mark.parametrize("name", EXPECTED)
def test_a_set_with_splits_of_its_own(name, tmp_path):
    if name == "pcam":
        pytest.importorskip("tensorflow_datasets")
    assert opened(name, tmp_path)[0] == EXPECTED[name]


@pytest.mark.parametrize("name", HASHED)
def test_a_set_that_is_split_by_group(name, tmp_path):
    fractions, images = HASHED[name]
    found, _ = opened(name, tmp_path)
    expected = {
        split: [x for x in images if split_of(x[2], fractions) == split] for split in SPLITS
    }
    assert found == {split: part for split, part in expected.items() if part}


@pytest.mark.parametrize("name", MEDMNIST)
def test_medmnist(name, tmp_path):
    classes = MEDMNIST[name]
    found, _ = opened(name, tmp_path)
    several = name == "chestmnist"
    labels = [(n, (c,) if several else c, f"train/{n}") for n, c in enumerate(classes)]
    assert found["train"] == labels
    assert [x[:2] for x in found["validation"] + found["test"]] == [labels[0][:2]] * 2
    assert tuple(load_prompts(DECLARED[name].prompts)["classes"]) == classes
    for size in ("_64", "_128"):
        assert opened(name + size, tmp_path)[0] == found


def test_what_is_left_out_is_told(tmp_path):
    _, left_out = opened("padchest", tmp_path)
    assert left_out["test"] == {"label excluded by the declaration, or none": 3}
    assert left_out["train"] == {"patient or article is in a later split": 1}
    assert opened("nct_crc_he", tmp_path)[1]["train"] == {
        "label excluded by the declaration, or none": 1
    }


def test_roco_from_either_place(tmp_path):
    found, _ = opened("roco", tmp_path, published_sets.roco_repository)
    assert found == EXPECTED["roco"]


def test_tables_that_are_not_there(tmp_path):
    published_sets.WRITERS["chexpert"](tmp_path / "chexpert")
    (tmp_path / "chexpert/CheXpert-v1.0-small/train.csv").unlink()
    splits = open_set("chexpert", DECLARED["chexpert"], tmp_path)
    assert list(splits) == ["validation", "test"]
    for file in (tmp_path / "chexpert").rglob("*.csv"):
        file.unlink()
    with pytest.raises(FileNotFoundError, match=r"no CheXpert/test_labels.csv or .* Get it: https"):
        open_set("chexpert", DECLARED["chexpert"], tmp_path)


def test_sections_of_a_report():
    assert findings_and_impression("FINDINGS AND IMPRESSION: a\n b.") == "a b."
    report = "INDICATION: ? edema.\n\n FINDINGS: Heart: large.\n\n IMPRESSION:\n\n COMMENT: no."
    assert findings_and_impression(report) == "Heart: large."
    assert findings_and_impression("No sections here.") == ""


def test_a_probe_knows_the_positive_class(tmp_path, monkeypatch):
    """BreastMNIST's class 0 is malignant: the recall of class 1 is no sensitivity."""
    published_sets.WRITERS["breastmnist"](tmp_path / "breastmnist")
    splits, given = open_set("breastmnist", DECLARED["breastmnist"], tmp_path), []
    monkeypatch.setattr(evaluators, "probe", lambda *args: given.append(args) or [])
    options = evaluators.SuiteOptions(suite=("probe",))
    evaluators.evaluate_split(EmbeddingCache(RandomEmbedder(), None), splits, "test", options)
    assert [args[-1] for args in given] == [0]


def test_tables_as_people_write_them(tmp_path):
    (tmp_path / "t.csv").write_text("\ufeffID, Caption\n1,one\n")  # a mark first, a blank after ","
    (row,) = rows(Table(file="t.csv", image="{ID}.jpg", caption="Caption"), tmp_path)
    assert (row["name"], row["caption"], row["group"]) == ("1.jpg", "one", "")
    with pytest.raises(ValueError, match=r"t.csv, row 0: no column 'text'. It has: ID, Caption"):
        list(rows(Table(file="t.csv", image="ID", caption="text"), tmp_path))
    (tmp_path / "t.txt").write_text("1\tone\n2 two\n")
    table = Table(file="t.txt", line=r"(?P<id>\d)\t(?P<text>.*)", image="id", caption="text")
    with pytest.raises(ValueError, match=r"t.txt, row 1 \('2 two.n'\) is not as"):
        list(rows(table, tmp_path))
