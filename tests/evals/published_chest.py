"""Small made-up copies of sets of chest radiographs: a part of published_sets.py, see there."""

import json

from tests.evals.published_files import write_csv, write_images

CHEXPERT = "Path,Sex,Age,Frontal/Lateral,AP/PA,No Finding,Cardiomegaly,Edema,Consolidation,"
CHEXPERT += "Atelectasis,Pleural Effusion"


def chexpert(root):
    small = "CheXpert-v1.0-small"
    test = [f"test/patient6474{n}/study1/view1_frontal.jpg" for n in (1, 2)]
    valid = f"{small}/valid/patient64541/study1/view1_frontal.jpg"
    train = [f"{small}/train/patient0000{n}/study1/view1_frontal.jpg" for n in (1, 2)]
    write_images(root, *(f"CheXpert/{name}" for name in test), valid, *train)
    header = CHEXPERT.replace("Sex,Age,Frontal/Lateral,AP/PA,", "")
    rows = ((test[0], 0, 1, 0, 0, 0, 1), (test[1], 1, 0, 0, 0, 0, 0))
    write_csv(root / "CheXpert/test_labels.csv", header, *rows)
    row = (valid, "Male", 73, "Frontal", "AP", 0.0, 1.0, 0.0, 0.0, 0.0, 0.0)
    write_csv(root / small / "valid.csv", CHEXPERT, row)
    write_csv(
        root / small / "train.csv", CHEXPERT,
        # -1 is unsure, an empty cell not mentioned
        (train[0], "Male", 68, "Frontal", "AP", "", -1.0, -1.0, -1.0, -1.0, ""),
        (train[1], "Female", 87, "Frontal", "AP", "", "", 0.0, 1.0, "", -1.0),
    )  # fmt: skip


def chexpert_5x200(root):
    names = [f"CheXpert-v1.0-small/train/patient1{n}/study2/view1_frontal.jpg" for n in (0, 1)]
    write_images(root, *names)
    rows = [(name, "Male", 60, "Frontal", "AP", "") for name in names]
    rows = (rows[0] + (0.0, 1.0, 0.0, 0.0, 0.0), rows[1] + (0.0, 0.0, 0.0, 0.0, 1.0))
    write_csv(root / "chexpert_5x200.csv", CHEXPERT, *rows)


REPORT = """                                 FINAL REPORT
 EXAMINATION:  CHEST (PA AND LAT)

 FINDINGS:

 The lungs are clear
 of consolidation.

 IMPRESSION:

 No acute process.
"""


def mimic_cxr(root):
    images = ("p10000032/s50414267/02aa", "p10000032/s50414267/174f", "p19999733/s57132437/428e")
    images += ("p19999987/s55368167/58766883",)
    write_images(root, *(f"files/{name[:3]}/{name}.jpg" for name in images))
    rows = []
    texts = {"s50414267": REPORT, "s57132437": "WET READ: ok.", "s55368167": "IMPRESSION: Edema."}
    for name, split in zip(images, ("train", "train", "test", "validate"), strict=True):
        patient, study, dicom = name.split("/")
        rows.append((dicom, study[1:], patient[1:], split))
        file = root / f"mimic-cxr-reports/files/{patient[:3]}/{patient}/{study}.txt"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(texts[study])
    header = "subject_id,study_id,Atelectasis,Cardiomegaly,Consolidation,Edema,No Finding,"
    write_csv(
        root / "mimic-cxr-2.0.0-chexpert.csv.gz", header + "Pleural Effusion",
        ("19999733", "57132437", "", "", 0.0, -1.0, "", 1.0),
        ("10000032", "50414267", "", "", -1.0, "", 1.0, ""),  # the last study is not there
    )  # fmt: skip
    header = "dicom_id,study_id,subject_id,split"
    write_csv(root / "mimic-cxr-2.0.0-split.csv.gz", header, *rows)


def padchest(root):
    header = ",ImageID,ImageDir,StudyDate_DICOM,StudyID,PatientID,Projection,Pediatric,ReportID,"
    header += "Report,MethodLabel,Labels,Localizations"
    rows = (  # patient, by whom it is labelled, labels
        (11, "Physician", "['laminar atelectasis', 'scoliosis', ' vertebral fracture ']"),
        (12, "Physician", "['normal']"),
        (13, "Physician", "['exclude']"),
        (14, "Physician", "['unchanged', 'pneumonia']"),
        (15, "Physician", "[]"),
        (16, "Physician", "['callus rib fracture', 'loculated pleural effusion']"),
        (16, "RNN_model", "['cardiomegaly']"),
        (17, "RNN_model", "['air bronchogram', 'nipple shadow']"),
    )
    names = [f"2168401113669640138295431665_{number}.png" for number in range(len(rows))]
    write_images(root, *(f"images/{name}" for name in names))
    write_csv(
        root / "PADCHEST_chest_x_ray_images_labels_160K_01.02.19.csv.gz", header,
        *(
            (i, name, 0, 20140915, f"study{i}", patient, "PA", "No", i, "pinzamiento", who, what,
             "['loc right']")
            for i, (name, (patient, who, what)) in enumerate(zip(names, rows, strict=True))
        ),
    )  # fmt: skip


def rsna_pneumonia(root):
    ids = [f"0004cfab-14fd-4e49-80ba-63a80b6bdd{n}" for n in range(3)]
    write_images(root, *(f"images/{i}.png" for i in ids))
    box = (264.0, 152.0, 213.0, 379.0)
    rows = [(ids[0], "", "", "", "", 0), (ids[1], *box, 1), (ids[1], *box, 1), (ids[2], *box, 1)]
    write_csv(root / "stage_2_train_labels.csv", "patientId,x,y,width,height,Target", *rows)
    names = ("00000013_005.png", "00000013_026.png", "00000732_005.png")
    mapping = [
        {"img_id": name, "subset_img_id": i, "orig_labels": ["Edema"]}
        for name, i in zip(names, ids, strict=True)
    ]
    file = root / "pneumonia-challenge-dataset-mappings_2018.json"
    file.write_text(json.dumps(mapping))


def vindr_cxr(root):
    names = [f"test/0005e8e3701{n}.png" for n in range(2)] + ["train/a4319.png", "train/b071.png"]
    write_images(root, *names)
    findings = "Aortic enlargement,Atelectasis,Calcification,Cardiomegaly,Clavicle fracture,"
    findings += "Consolidation,Edema,Emphysema,Enlarged PA,ILD,Infiltration,Lung Opacity,"
    findings += "Lung cavity,Lung cyst,Mediastinal shift,Nodule/Mass,Pleural effusion,"
    findings += "Pleural thickening,Pneumothorax,Pulmonary fibrosis,Rib fracture,Other lesion,COPD,"
    findings += "Lung tumor,Pneumonia,Tuberculosis,{},No finding"

    def row(*seen, value="1"):
        return [value if c in seen else "0" for c in findings.split(",")]

    test = ["0005e8e37010", *row("Cardiomegaly", "Tuberculosis")], ["0005e8e37011", *row()]
    header = "image_id," + findings.format("Other disease")
    write_csv(root / "annotations/image_labels_test.csv", header, *test)
    train = [
        ["a4319", "R8", *row("COPD", value="1.0")], ["b071", "R8", *row("ILD")],
        ["a4319", "R9", *row("ILD")], ["b071", "R9", *row()],
        ["a4319", "R10", *row("ILD", "Pneumonia")], ["b071", "R10", *row()],
    ]  # fmt: skip
    header = "image_id,rad_id," + findings.format("Other diseases")
    write_csv(root / "annotations/image_labels_train.csv", header, *train)
