"""Writes a small made-up copy of each declared set, with the published names and columns.

python -m tests.evals.published_sets DIR
"""

import io
import json
import pathlib
import sys
import zipfile
from collections.abc import Callable

import numpy as np

from tests.evals.published_chest import (
    chexpert,
    chexpert_5x200,
    mimic_cxr,
    padchest,
    rsna_pneumonia,
    vindr_cxr,
)
from tests.evals.published_files import (
    SIDE,
    encoded,
    grey,
    write_csv,
    write_images,
    write_sheet,
)


def bach(root):
    photos = "ICIAR2018_BACH_Challenge/Photos"
    names = ("Benign/b001.tif", "InSitu/is001.tif", "Invasive/iv001.tif", "Normal/n001.tif")
    write_images(root, *(f"{photos}/{name}" for name in names), f"{photos}/Normal/n002.tif")
    (root / photos / "microscopy_ground_truth.csv").write_text("b001.tif,Benign\n")


def deepeyenet(root):
    names = ("eyenet0420/train_set/group1/a.jpg", "eyenet0420/test_set/group2/b.png")
    write_images(root, *names)
    texts = ("44-year-old woman. srnv-md.", "")
    table = [
        {name: {"keywords": "drusen, macula", "clinical-description": text}}
        for name, text in zip(names, texts, strict=True)
    ]
    (root / "DeepEyeNet_test.json").write_text(json.dumps(table))


def ham10000(root):
    write_images(root, *(f"images/ISIC_002{n}.jpg" for n in range(3)))
    write_csv(
        root / "HAM10000_metadata.csv", "lesion_id,image_id,dx,dx_type,age,sex,localization",
        ("HAM_0000118", "ISIC_0020", "bkl", "histo", 80.0, "male", "scalp"),
        ("HAM_0000118", "ISIC_0021", "bkl", "histo", 80.0, "male", "scalp"),
        ("HAM_0002730", "ISIC_0022", "nv", "histo", 80.0, "male", "scalp"),
    )  # fmt: skip


def lc25000(organ: str, *classes: str) -> Callable:
    def write(root):
        folder = f"lung_colon_image_set/{organ}_image_sets"
        names = (f"{folder}/{name}/{name.replace('_', '')}1.jpeg" for name in classes)
        write_images(root, *names)

    return write


def mednist(root):
    root.mkdir(parents=True)
    with zipfile.ZipFile(root / "mednist.zip", "w") as archive:
        archive.writestr("README.md", "MedNIST")
        for number, name in enumerate(("AbdomenCT", "HeadCT")):
            archive.writestr(f"{name}/00000{number}.jpeg", encoded(number, "jpeg"))


def nct_crc_he(root):
    write_images(
        root, "NCT-CRC-HE-100K/ADI/ADI-AAAFLCLY.tif", "NCT-CRC-HE-100K/BACK/BACK-AAALDNCG.tif",
        "NCT-CRC-HE-100K/TUM/TUM-AADQSSHC.tif", "CRC-VAL-HE-7K/STR/STR-TCGA-AALMQQAT.tif",
    )  # fmt: skip


def pad_ufes_20(root):
    names = ("PAT_1516_1765_530.png", "PAT_1516_1766_12.png", "PAT_46_881_939.png")
    write_images(root, *(f"images/{name}" for name in names))
    header = "patient_id,lesion_id,smoke,drink,age,region,diagnostic,itch,img_id,biopsed"
    write_csv(
        root / "metadata.csv", header,
        *(
            (name[:-4].rpartition("_")[0].rpartition("_")[0], 1, "", "", 8, "ARM", dx, "", name, "")
            for name, dx in zip(names, ("NEV", "SEK", "BCC"), strict=True)
        ),
    )  # fmt: skip


def pcam(root):
    import tensorflow_datasets as tfds

    class PatchCamelyon(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("2.0.0")

        def _info(self):
            features = {
                "id": tfds.features.Text(),
                "label": tfds.features.ClassLabel(num_classes=2),
            }
            features["image"] = tfds.features.Image(shape=(SIDE, SIDE, 3))
            features = tfds.features.FeaturesDict(features)
            return tfds.core.DatasetInfo(builder=self, features=features, disable_shuffling=True)

        def _split_generators(self, dl_manager):
            parts = {"test": (0, 1), "train": (2,), "validation": (3,)}
            return {split: self._generate_examples(part) for split, part in parts.items()}

        def _generate_examples(self, numbers):
            for n in numbers:
                yield n, {"id": f"{n}", "image": io.BytesIO(encoded(n, "png")), "label": n % 2}

    PatchCamelyon(data_dir=str(root), file_format="array_record").download_and_prepare()


def quilt_1m(root):
    names = ("Ar3b_YIIIA_image_5d9a1a2e.jpg", "Ar3b_YIIIA_image_71fe.jpg", "bX-0_image_11.jpg")
    names += ("d4f5e2ab-openpath.jpg",)
    write_images(root, *(f"quilt_1m/{name}" for name in names))
    header = ",caption,image_path,subset,split,pathology,roi_text,noisy_text,corrected_text,"
    header += "med_umls_ids,magnification,height,width"
    rows = [
        (n, f"Caption {n}.", name, "quilt", split, "['Breast']", "", "", "", "", 1.0, SIDE, SIDE)
        for n, (name, split) in enumerate(zip(names, ("train", "val", "train", "val"), strict=True))
    ]
    write_csv(root / "quilt_1M_lookup.csv", header, *rows)


def roco(root):
    folder = root / "all_data/test/radiology"
    names = ("PMC4083729_AMHSR-4-14-g002.jpg", "PMC2837471_IJD2009-150251.001.jpg")
    write_images(folder, *(f"images/{name}" for name in names))
    rows = ((f"ROCO_0000{n}", name, f" Figure {n}.\n") for n, name in enumerate(names))
    write_csv(folder / "testdata.csv", "id,name,caption", *rows)


def roco_repository(root):
    """The other place of ROCO: what scripts/fetch.py makes of the repository."""
    folder = root / "data/test/radiology"
    names = ("PMC4083729_AMHSR-4-14-g002.jpg", "PMC2837471_IJD2009-150251.001.jpg")
    write_images(folder, *(f"images/{name}" for name in names))
    captions = [f"ROCO_0000{n}\t Figure {n}.\n" for n in range(2)]
    (folder / "captions.txt").write_text("".join(captions))
    address = "wget -r ftp://ftp.ncbi.nlm.nih.gov/pub/pmc/oa_package/cb/dd"
    links = [
        f"ROCO_0000{n}\t{address}/{article}.tar.gz -P /path/to/Dir\t{file}\n"
        for n, (article, _, file) in reversed(list(enumerate(n.partition("_") for n in names)))
    ]
    (folder / "dlinks.txt").write_text("".join(links))


def rocov2(root):
    ids = [f"ROCOv2_2023_test_00000{n}" for n in range(3)]
    write_images(root, *(f"test/{i}.jpg" for i in ids))
    rows = ((i, f"Caption {n}.") for n, i in enumerate(ids))
    write_csv(root / "test_captions.csv", "ID,Caption", *rows)
    articles = ("PMC8762516", "PMC8762516", "PMC9198419")
    rows = [(i, a, "CC BY", f"https://x/{a}") for i, a in zip(ids, articles, strict=True)]
    write_csv(root / "license_information.csv", "ID,PMCID,Attribution,Link", *rows[::-1])


def sicapv2(root):
    slides = ("16B0001851", "16B0001851", "17B0028479", "18B0003896D", "18B0005478")
    names = [f"{s}_Block_Region_{n}_0_0_xini_6803_yini_5.jpg" for n, s in enumerate(slides)]
    write_images(root, *(f"images/{name}" for name in names))
    header = "image_name,NC,G3,G4,G5,G4C"
    labels = ((1, 0, 0, 0, 0), (0, 1, 0, 0, 0), (0, 0, 1, 0, 1), (0, 0, 0, 1, 0), (1, 0, 0, 0, 0))
    rows = [(name, *label) for name, label in zip(names, labels, strict=True)]
    write_sheet(root / "partition/Test/Test.xlsx", header, *rows[:2])
    write_sheet(root / "partition/Test/Train.xlsx", header, *rows[2:])
    write_sheet(root / "partition/Validation/Val1/Train.xlsx", header, *rows[2:4])
    write_sheet(root / "partition/Validation/Val1/Test.xlsx", header, *rows[4:])
    patients = {"18B0005478": 31, "17B0028479": 22, "18B0003896D": 22, "16B0001851": 7}
    rows = ((slide, patient, 3, 4) for slide, patient in patients.items())
    write_sheet(root / "wsi_labels.xlsx", "slide_id,patient_id,Gleason_primary,x", *rows)


def vqa_rad(root):
    names = [f"synpic5461{n}.jpg" for n in range(3)]
    write_images(root, *(f"VQA_RAD Image Folder/{name}" for name in names))
    cases = ("48e1", "48e1", "0191")
    table = [
        {"qid": f"{q}", "phrase_type": phrase, "image_case_url": f"https://x/case?id={cases[i]}",
         "image_name": names[i], "image_organ": organ, "question": "Normal?", "answer": "Yes"}
        for q, (i, organ, phrase) in enumerate([
            (0, "HEAD", "freeform"), (0, "HEAD", "test_freeform"), (1, "CHEST", "para"),
            (2, "ABD", "freeform"),
        ])
    ]  # fmt: skip
    (root / "VQA_RAD Dataset Public.json").write_text(json.dumps(table))


def medmnist(name: str, size: int, num_classes: int, channels: int) -> Callable:
    """A training image of each class, in order; one of the first for validation and test."""

    def write(root):
        several = name == "chestmnist"
        label_NC = np.eye(num_classes, dtype=int) if several else np.arange(num_classes)[:, None]
        images = np.stack([grey(number) for number in range(num_classes)])
        images = images if channels == 3 else images[..., 0]
        arrays = {}
        for split, number in (("train", num_classes), ("val", 1), ("test", 1)):
            arrays |= {f"{split}_images": images[:number], f"{split}_labels": label_NC[:number]}
        root.mkdir(parents=True)
        np.savez(root / f"{name}_{size}.npz", **arrays)

    return write


MEDMNIST = {  # classes, channels
    "pathmnist": (9, 3), "chestmnist": (14, 1), "dermamnist": (7, 3), "octmnist": (4, 1),
    "pneumoniamnist": (2, 1), "retinamnist": (5, 3), "breastmnist": (2, 1), "bloodmnist": (8, 3),
    "tissuemnist": (8, 1), "organamnist": (11, 1), "organcmnist": (11, 1), "organsmnist": (11, 1),
}  # fmt: skip
WRITERS: dict[str, Callable[[pathlib.Path], None]] = {
    writer.__name__: writer
    for writer in (
        bach, chexpert, chexpert_5x200, deepeyenet, ham10000, mednist, mimic_cxr, nct_crc_he,
        pad_ufes_20, padchest, pcam, quilt_1m, roco, rocov2, rsna_pneumonia, sicapv2, vindr_cxr,
        vqa_rad,
    )
}  # fmt: skip
WRITERS |= {
    "mimic_cxr_findings": mimic_cxr,
    "lc25000_lung": lc25000("lung", "lung_aca", "lung_n", "lung_scc"),
    "lc25000_colon": lc25000("colon", "colon_aca", "colon_n"),
}
WRITERS |= {
    name + ("" if size == 224 else f"_{size}"): medmnist(name, size, *MEDMNIST[name])
    for name in MEDMNIST
    for size in (224, 64, 128)
}

if __name__ == "__main__":
    for set_name, writer in WRITERS.items():
        writer(pathlib.Path(sys.argv[1]) / set_name)
