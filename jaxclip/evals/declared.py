"""Public sets, one declaration each: python -m jaxclip.evaluate --set=NAME --sets_dir=DIR.

The provider's page decides on the licence; what stands here is a reminder. `note` is what to know
before a number is quoted. `checked` says whose code or documents agree with the layout: none of
these sets but MedNIST and VQA-RAD was at hand when this was written. Chest radiographs are in
evals/declared_chest.py; tests/evals/published_sets.py writes a small one of each set, as published.
"""

from jaxclip.evals.declared_chest import CHEST
from jaxclip.evals.readers import Folders, Npz, Tfds
from jaxclip.evals.sets import Declaration
from jaxclip.evals.tables import Join, Table
from jaxclip.evals.zero_shot import classes_of

OPEN_PMC = "evaluation/README.md of Open-PMC-18M"
SMALL = (0.6, 0.15, 0.25)  # of a few hundred images, the test split must not be a handful


def _lc25000(organ: str) -> Declaration:
    return Declaration(
        title=f"LC25000, {organ}",
        get="https://github.com/tampapath/lung_colon_image_set",
        layout=Folders(
            pattern=rf"lung_colon_image_set/{organ}_image_sets/(?P<label>{organ}_\w+)/.*\.jpeg"
        ),
        prompts=f"lc25000_{organ}",
        note="Made of 1,250 images by augmentation: near duplicates are in every two splits.",
        checked="readers of several projects",
    )


def _medmnist(name: str, size: int) -> Declaration:
    return Declaration(
        title=f"MedMNIST+ {name}, {size} pixels",
        get=f"https://zenodo.org/records/10519652/files/{name}_{size}.npz",
        licence="CC BY-NC 4.0" if name == "dermamnist" else "CC BY 4.0",
        layout=Npz(file=f"{name}_{size}.npz"),
        prompts="organmnist" if name.startswith("organ") else name,
        split="official",
        checked=OPEN_PMC,
    )


MEDMNIST = ("blood", "breast", "chest", "derma", "oct", "organa", "organc", "organs", "path")
MEDMNIST += ("pneumonia", "retina", "tissue")

DECLARED: dict[str, Declaration] = {
    "bach": Declaration(
        title="BACH, breast histology (ICIAR 2018)",
        get="https://zenodo.org/records/3632035",
        licence="CC BY-NC-ND",
        layout=Folders(pattern=r"(.*/)?Photos/(?P<label>Normal|Benign|InSitu|Invasive)/.*\.tif"),
        prompts="bach",
        fractions=SMALL,
        note="400 training images of the challenge; no patients are named. mmlearn scores 100 of "
        "them, a draw of its own: the test split here has 89, not the same ones.",
        checked="documentation of eva (kaiko.ai)",
    ),
    "deepeyenet": Declaration(
        title="DeepEyeNet, retinal images and clinical descriptions",
        get="https://github.com/Jhhuangkay/DeepOpht-Medical-Report-Generation-for-Retinal-Images-"
        "via-Deep-Models-and-Visual-Explanation",
        layout=Table(file="DeepEyeNet_test.json", image="key", caption="clinical-description"),
        split="test",
        note="Descriptions repeat often: counting one right answer a query is far too strict.",
        checked=OPEN_PMC,
    ),
    "ham10000": Declaration(
        title="HAM10000, dermatoscopy",
        get="https://doi.org/10.7910/DVN/DBW86T; both parts of the images in images/",
        licence="CC BY-NC 4.0",
        layout=Table(
            file="HAM10000_metadata.csv",
            image="images/{image_id}.jpg",
            label="dx",
            group="lesion_id",
        ),
        prompts="ham10000",
        note="Split by lesion. Papers score all 10,015 images: --split=all, zero-shot only.",
        checked=OPEN_PMC,
    ),
    "lc25000_colon": _lc25000("colon"),
    "lc25000_lung": _lc25000("lung"),
    "mednist": Declaration(
        title="MedNIST, six classes of radiology",
        get="the zip of its class folders (MONAI's MedNIST tutorial), as mednist.zip",
        licence="CC BY-SA 4.0",
        layout=Folders(zip="mednist.zip", pattern=r"(?P<group>(?P<label>[A-Za-z]+)/[^/]+\.jpeg)"),
        prompts="mednist",
        fractions=(0.9, 0.05, 0.05),  # as data_pipelines.mednist: nobody is tested on what it saw
        note="No patient ids: slices of one patient may be in two splits.",
        checked="the set itself",
    ),
    "nct_crc_he": Declaration(
        title="NCT-CRC-HE, colorectal histology",
        get="https://zenodo.org/records/1214456 (NCT-CRC-HE-100K.zip, CRC-VAL-HE-7K.zip)",
        licence="CC BY 4.0",
        layout=Folders(
            pattern=r"(?P<split>NCT-CRC-HE-100K|CRC-VAL-HE-7K)/(?P<label>[A-Z]+)/.*\.tif"
        ),
        prompts="nct_crc_he",
        excluded=("BACK",),
        split="official",
        splits={"NCT-CRC-HE-100K": "train", "CRC-VAL-HE-7K": "test"},
        note="Background is left out, as in the papers.",
        checked="readers of several projects",
    ),
    "pad_ufes_20": Declaration(
        title="PAD-UFES-20, smartphone photographs of skin lesions",
        get="https://data.mendeley.com/datasets/zr7vgbcyr2/1; all parts of the images in images/",
        licence="CC BY 4.0",
        layout=Table(
            file="metadata.csv", image="images/{img_id}", label="diagnostic", group="patient_id"
        ),
        prompts="pad_ufes_20",
        fractions=SMALL,
        note="Split by patient; mmlearn scores an unseeded 20 % sample.",
        checked=OPEN_PMC,
    ),
    "pcam": Declaration(
        title="PatchCamelyon, lymph nodes",
        get="pip install 'jaxclip[tfds]' and "
        "python -c \"import tensorflow_datasets as t; t.builder('patch_camelyon', "
        "data_dir='SETS_DIR/pcam', file_format='array_record').download_and_prepare()\"",
        licence="CC0 1.0",
        layout=Tfds(builder="patch_camelyon"),
        prompts="pcam",
        split="official",
        checked="its builder in tensorflow-datasets",
    ),
    "quilt_1m": Declaration(
        title="Quilt-1M, histopathology from videos",
        get="https://github.com/wisdomikezogwo/quilt1m (access by form)",
        licence="research use, as on its page",
        layout=Table(
            file="quilt_1M_lookup.csv",
            image="quilt_1m/{image_path}",
            caption="caption",
            group="image_path",
            group_pattern=r".+(?=_image_)",  # VIDEO_image_UUID.jpg
            split="split",
        ),
        split="official",
        note="Papers score the validation split: --split=validation. Grouped by video.",
        checked="readers of several projects",
    ),
    "roco": Declaration(
        title="ROCO, radiology figures of PMC",
        get="https://www.kaggle.com/datasets/virajbagal/roco-dataset (all_data/), or fetch.py of "
        "https://github.com/razorx89/roco-dataset (data/)",
        licence="of each article",
        layout=(
            Table(
                file="all_data/test/radiology/testdata.csv",
                image="all_data/test/radiology/images/{name}",
                caption="caption",
                group="name",
                group_pattern=r"PMC\d+",
            ),
            Table(
                file="data/test/radiology/captions.txt",
                line=r"(?P<id>ROCO_\d+)\t(?P<caption>.*)",
                joins=(
                    Join(
                        file="data/test/radiology/dlinks.txt",
                        line=r"(?P<id>ROCO_\d+)\t.*/(?P<article>PMC\d+)\.tar\.gz.*\t(?P<file>\S+)",
                        key="id",
                        on="id",
                    ),
                ),
                image="data/test/radiology/images/{article}_{file}",
                caption="caption",
                group="article",
            ),
        ),
        split="test",
        note="From PMC: remove its articles from what was trained on, or say that they were in it.",
        checked="readers of several projects; the repository",
    ),
    "rocov2": Declaration(
        title="ROCOv2, radiology figures of PMC",
        get="https://zenodo.org/records/10821435 (test_captions.csv, license_information.csv, "
        "test_images.zip)",
        licence="CC BY 4.0",
        layout=Table(
            file="test_captions.csv",
            joins=(Join(file="license_information.csv", key="ID", on="ID"),),
            image="test/{ID}.jpg",
            caption="Caption",
            group="PMCID",
        ),
        split="test",
        note="From PMC, as ROCO.",
        checked="readers of several projects",
    ),
    "sicapv2": Declaration(
        title="SICAPv2, prostate biopsies",
        get="https://data.mendeley.com/datasets/9xxm58dvs3/2, without its topmost folder",
        licence="CC BY 4.0",
        layout=tuple(
            Table(
                file=f"partition/{file}.xlsx",
                image="images/{image_name}",
                joins=(
                    Join(
                        file="wsi_labels.xlsx",
                        key="image_name",
                        key_pattern=r"^.+?(?=_Block_)",
                        on="slide_id",
                    ),
                ),
                group="patient_id",
                one_hot=classes_of("sicapv2"),
                of_split=split,
            )
            for split, file in (
                ("test", "Test/Test"),
                ("validation", "Validation/Val1/Test"),
                ("train", "Validation/Val1/Train"),
            )
        ),
        prompts="sicapv2",
        split="official",
        note="Split by patient. Of the training images, the first of the four published folds is "
        "the validation split.",
        checked=OPEN_PMC,
    ),  # fmt: skip
    "vqa_rad": Declaration(
        title="VQA-RAD, the organ of each image",
        get="https://osf.io/89kps (VQA_RAD Dataset Public.json, VQA_RAD Image Folder/)",
        licence="CC0 1.0",
        layout=tuple(
            Table(
                file=file,
                image=f"{folder}/{{image_name}}",
                label="image_organ",
                group="image_case_url",
            )
            for file, folder in (
                ("VQA_RAD Dataset Public.json", "VQA_RAD Image Folder"),
                ("vqa_rad.json", "images"),
            )
        ),
        prompts="vqa_rad",
        fractions=(0.4, 0.1, 0.5),
        note="314 images, split by case: its own split is of questions, and has the same images on "
        "both sides. A row a question: the first row of each image counts. Zero-shot: --split=all.",
        checked="the set itself",
    ),  # fmt: skip
}
DECLARED |= CHEST
DECLARED |= {f"{name}mnist": _medmnist(f"{name}mnist", 224) for name in MEDMNIST}
DECLARED |= {f"{n}mnist_{s}": _medmnist(f"{n}mnist", s) for n in MEDMNIST for s in (64, 128)}
