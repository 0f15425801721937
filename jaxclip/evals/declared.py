"""Public sets, one declaration each: python -m jaxclip.evaluate --set=NAME --sets_dir=DIR.

The provider's page decides on the licence; what stands here is a reminder. `note` is what to know
before a number is quoted. `checked` says whose code or documents agree with the layout: none of
these sets but MedNIST and VQA-RAD was at hand when this was written.
"""

from jaxclip.evals.readers import Folders, Npz, Table, Tfds
from jaxclip.evals.sets import Declaration
from jaxclip.evals.zero_shot import load_prompts

PHYSIONET = "PhysioNet Credentialed Health Data License 1.5.0"
OPEN_PMC = "evaluation/README.md of Open-PMC-18M"


def _classes(prompts: str) -> tuple[str, ...]:
    """Names of the columns, where a table has one a class."""
    return tuple(load_prompts(prompts)["classes"])


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


def _medmnist(name: str) -> Declaration:
    return Declaration(
        title=f"MedMNIST+ {name}, 224 pixels",
        get=f"https://zenodo.org/records/10519652/files/{name}_224.npz",
        licence="CC BY-NC 4.0" if name == "dermamnist" else "CC BY 4.0",
        layout=Npz(file=f"{name}_224.npz"),
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
        note="Only the challenge's training images have labels, and no patients are named.",
        checked="documentation of eva (kaiko.ai)",
    ),
    "chexpert": Declaration(
        title="CheXpert, five findings, labelled by radiologists",
        get="https://stanfordmlgroup.github.io/competitions/chexpert (CheXpert-v1.0-small)",
        licence="Stanford University Dataset Research Use Agreement",
        layout=Table(
            file="CheXpert-v1.0-small/valid.csv",
            image="Path",
            group="Path",
            group_pattern=r"patient\d+",
            findings=_classes("chexpert"),
        ),
        prompts="chexpert",
        split="test",
        note="The public validation set of 200 studies, which papers use as their test set.",
        checked="readers of several projects",
    ),  # fmt: skip
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
        note="Split by lesion. Papers score all 10,015 images: zero-shot only.",
        checked=OPEN_PMC,
    ),  # fmt: skip
    "lc25000_colon": _lc25000("colon"),
    "lc25000_lung": _lc25000("lung"),
    "mednist": Declaration(
        title="MedNIST, six classes of radiology",
        get="the zip of its class folders (MONAI's MedNIST tutorial), as mednist.zip",
        licence="CC BY-SA 4.0",
        layout=Folders(zip="mednist.zip", pattern=r"(?P<group>(?P<label>[A-Za-z]+)/[^/]+\.jpeg)"),
        prompts="mednist",
        note="No patient ids: slices of one patient may be in two splits.",
        checked="the set itself",
    ),
    "mimic_cxr": Declaration(
        title="MIMIC-CXR, radiographs and reports",
        get="https://physionet.org/content/mimic-cxr-jpg/2.1.0/ and the reports of "
        "https://physionet.org/content/mimic-cxr/2.1.0/; join them to mimic_cxr.csv with the "
        "columns path, caption, subject_id, study_id, split",
        licence=PHYSIONET,
        layout=Table(
            file="mimic_cxr.csv",
            image="path",
            caption="caption",
            group="subject_id",
            study="study_id",
            split="split",
        ),
        split="official",
        note="A report belongs to all images of its study: they are all right.",
        checked="a table of your own making",
    ),  # fmt: skip
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
        note="Split by patient; mmlearn scores an unseeded 20 % sample.",
        checked=OPEN_PMC,
    ),
    "padchest": Declaration(
        title="PadChest, findings on chest radiographs",
        get="https://bimcv.cipf.es/bimcv-projects/padchest/; all images in images/",
        licence="PadChest Dataset Research Use Agreement",
        layout=Table(
            file="PADCHEST_chest_x_ray_images_labels_160K_01.02.19.csv.gz",
            image="images/{ImageID}",
            findings_list="Labels",
            group="PatientID",
            study="StudyID",
        ),
        prompts="padchest",
        note="Most labels are read from reports by a network (column MethodLabel). 16-bit PNGs.",
        checked="readers of several projects (file, ImageID, Labels); the other columns are not",
    ),  # fmt: skip
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
            split="split",
        ),
        split="official",
        note="Papers score the validation split. Frames of one video are no groups here.",
        checked="readers of several projects",
    ),  # fmt: skip
    "roco": Declaration(
        title="ROCO, radiology figures of PMC",
        get="https://github.com/razorx89/roco-dataset",
        licence="of each article",
        layout=Table(
            file="all_data/test/radiology/testdata.csv",
            image="all_data/test/radiology/images/{name}",
            caption="caption",
            group="name",
            group_pattern=r"PMC\d+",
        ),
        split="test",
        note="From PMC: remove its articles from what was trained on, or say that they were in it.",
        checked="readers of several projects",
    ),  # fmt: skip
    "rocov2": Declaration(
        title="ROCOv2, radiology figures of PMC",
        get="https://zenodo.org/records/10821435 (test_captions.csv, test_images.zip)",
        licence="CC BY 4.0",
        layout=Table(file="test_captions.csv", image="test/{ID}.jpg", caption="Caption"),
        split="test",
        note="From PMC, as ROCO.",
        checked="readers of several projects",
    ),
    "rsna_pneumonia": Declaration(
        title="RSNA Pneumonia Detection Challenge",
        get="https://www.kaggle.com/c/rsna-pneumonia-detection-challenge, DICOMs saved as PNG in "
        "images/",
        layout=Table(
            file="stage_2_train_labels.csv",
            image="images/{patientId}.png",
            label="Target",
            group="patientId",
        ),
        prompts="rsna_pneumonia",
        note="A row a box: the first row of each image counts.",
        checked="readers of several projects",
    ),  # fmt: skip
    "sicapv2": Declaration(
        title="SICAPv2, prostate biopsies",
        get="https://data.mendeley.com/datasets/9xxm58dvs3/1, partition/Test/Test.xlsx saved as "
        "Test.csv beside it",
        licence="CC BY-NC-SA 4.0",
        layout=Table(
            file="partition/Test/Test.csv",
            image="images/{image_name}",
            group="image_name",
            group_pattern=r"^[^_]+",
            one_hot=_classes("sicapv2"),
        ),
        prompts="sicapv2",
        split="test",
        note="Groups are slides; wsi_labels.xlsx says which are of one patient.",
        checked=OPEN_PMC,
    ),  # fmt: skip
    "vindr_cxr": Declaration(
        title="VinDr-CXR, findings on chest radiographs",
        get="https://physionet.org/content/vindr-cxr/1.0.0/, DICOMs saved as PNG in test/",
        licence=PHYSIONET,
        layout=Table(
            file="annotations/image_labels_test.csv",
            image="test/{image_id}.png",
            group="image_id",
            findings=_classes("vindr_cxr"),
        ),
        prompts="vindr_cxr",
        split="test",
        checked="readers of several projects (file and most columns)",
    ),  # fmt: skip
    "vqa_rad": Declaration(
        title="VQA-RAD, the organ of each image",
        get="https://osf.io/89kps; organ_labels.csv with the columns image, organ from its "
        "image_organ fields",
        licence="CC0 1.0",
        layout=Table(file="organ_labels.csv", image="images/{image}", label="organ", group="image"),
        prompts="vqa_rad",
        split="test",
        checked="the set itself",
    ),
} | {f"{name}mnist": _medmnist(f"{name}mnist") for name in MEDMNIST}
