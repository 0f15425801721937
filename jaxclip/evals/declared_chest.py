"""Public sets of chest radiographs: a part of evals/declared.py, see there."""

from jaxclip.evals.sets import Declaration
from jaxclip.evals.tables import Join, Table
from jaxclip.evals.zero_shot import classes_of

PHYSIONET = "PhysioNet Credentialed Health Data License 1.5.0"

CHEST: dict[str, Declaration] = {
    "chexpert": Declaration(
        title="CheXpert, five findings",
        get="https://stanfordmlgroup.github.io/competitions/chexpert (CheXpert-v1.0-small); the "
        "test images and labels are in CheXlocalize, https://github.com/rajpurkarlab/cheXlocalize",
        licence="Stanford University Dataset Research Use Agreement",
        layout=tuple(
            Table(
                file=file,
                image=image,
                group="Path",
                group_pattern=r"patient\d+",
                findings=classes_of("chexpert"),
                unsure=("Atelectasis", "Edema"),
                of_split=split,
            )
            for split, file, image in (
                ("test", "CheXpert/test_labels.csv", "CheXpert/{Path}"),
                ("validation", "CheXpert-v1.0-small/valid.csv", "{Path}"),
                ("train", "CheXpert-v1.0-small/train.csv", "{Path}"),
            )
        ),
        prompts="chexpert",
        split="official",
        note="Test: 500 studies, the consensus of radiologists, as CheXzero. Many papers score the "
        "200 of the validation split instead: say which. Training labels are read from reports; "
        "unsure ones count as there for atelectasis and edema, else as absent (Irvin et al. 2019).",
        checked="readers of several projects",
    ),  # fmt: skip
    "chexpert_5x200": Declaration(
        title="CheXpert 5x200, one finding an image",
        get="draw it from train.csv of CheXpert, or take a project's list: chexpert_5x200.csv, "
        "with train.csv's columns, beside CheXpert-v1.0-small",
        licence="Stanford University Dataset Research Use Agreement",
        layout=Table(
            file="chexpert_5x200.csv",
            image="Path",
            group="Path",
            group_pattern=r"patient\d+",
            one_hot=classes_of("chexpert_5x200"),
        ),
        prompts="chexpert_5x200",
        split="test",
        note="Of CheXpert's training images (Huang et al. 2021, GLoRIA), by labels from reports. "
        "No list is published with CheXpert: two papers' numbers may be of two draws.",
        checked="readers of several projects",
    ),
    "mimic_cxr": Declaration(
        title="MIMIC-CXR, radiographs and reports",
        get="https://physionet.org/content/mimic-cxr-jpg/2.1.0/ (files/ and the csv.gz) and "
        "mimic-cxr-reports.zip of https://physionet.org/content/mimic-cxr/2.1.0/, unpacked in "
        "mimic-cxr-reports/",
        licence=PHYSIONET,
        layout=Table(
            file="mimic-cxr-2.0.0-split.csv.gz",
            image="files/p{subject_id:.2}/p{subject_id}/s{study_id}/{dicom_id}.jpg",
            report="mimic-cxr-reports/files/p{subject_id:.2}/p{subject_id}/s{study_id}.txt",
            group="subject_id",
            study="study_id",
            split="split",
        ),
        split="official",
        note="Findings and impression; reports that have neither are left out. A report belongs to "
        "all images of its study, lateral ones too: they are all right.",
        checked="readers of several projects",
    ),
    "mimic_cxr_findings": Declaration(
        title="MIMIC-CXR, five findings",
        get="https://physionet.org/content/mimic-cxr-jpg/2.1.0/ (files/ and the csv.gz)",
        licence=PHYSIONET,
        layout=Table(
            file="mimic-cxr-2.0.0-split.csv.gz",
            joins=(Join(file="mimic-cxr-2.0.0-chexpert.csv.gz", key="study_id", on="study_id"),),
            image="files/p{subject_id:.2}/p{subject_id}/s{study_id}/{dicom_id}.jpg",
            findings=classes_of("chexpert"),
            unsure=("Atelectasis", "Edema"),
            group="subject_id",
            study="study_id",
            split="split",
        ),
        prompts="chexpert",
        split="official",
        note="Labels are read from the reports by CheXpert's labeller, in the test split, too; "
        "unsure ones as in chexpert. All views.",
        checked="readers of several projects",
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
            split="MethodLabel",
        ),
        prompts="padchest",
        excluded=("exclude", "suboptimal study", "unchanged", ""),
        split="official",
        splits={"Physician": "test", "RNN_model": "train"},
        note="Test: what physicians labelled, as CheXzero. The labels of the training images are "
        "read from reports by a network. All projections; of the 16-bit PNGs, the upper 8 bits.",
        checked="readers of several projects",
    ),
    "rsna_pneumonia": Declaration(
        title="RSNA Pneumonia Detection Challenge",
        get="https://www.kaggle.com/c/rsna-pneumonia-detection-challenge, DICOMs saved as PNG in "
        "images/; pneumonia-challenge-dataset-mappings_2018.json of "
        "https://www.rsna.org/artificial-intelligence/ai-image-challenge/rsna-pneumonia-detection-challenge-2018",
        layout=Table(
            file="stage_2_train_labels.csv",
            joins=(
                Join(
                    file="pneumonia-challenge-dataset-mappings_2018.json",
                    key="patientId",
                    on="subset_img_id",
                ),
            ),
            image="images/{patientId}.png",
            label="Target",
            group="img_id",  # NIH's: PATIENT_NUMBER.png
            group_pattern=r"^\d+",
        ),
        prompts="rsna_pneumonia",
        note="patientId names an image: who the patient is stands in the list of NIH's names. A "
        "row a box: the first row of each image counts.",
        checked="readers of several projects",
    ),
    "vindr_cxr": Declaration(
        title="VinDr-CXR, findings on chest radiographs",
        get="https://physionet.org/content/vindr-cxr/1.0.0/, DICOMs saved as PNG in train/ and "
        "test/: with the window that they name, and those of MONOCHROME1 inverted",
        licence=PHYSIONET,
        layout=(
            Table(
                file="annotations/image_labels_test.csv",
                image="test/{image_id}.png",
                group="image_id",
                findings=classes_of("vindr_cxr"),
                of_split="test",
            ),
            Table(
                file="annotations/image_labels_train.csv",
                image="train/{image_id}.png",
                group="image_id",
                findings=classes_of("vindr_cxr"),
                votes=True,
                of_split="train",
            ),
        ),
        prompts="vindr_cxr",
        split="official",
        note="Test: agreed by five radiologists; train: what two of three saw. One image a study; "
        "no patients are named. Scores depend on how the DICOMs were windowed: say how.",
        checked="readers of several projects (files and most columns)",
    ),
}
