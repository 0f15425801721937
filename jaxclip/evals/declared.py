"""Public sets, one declaration each. `python -m jaxclip.evaluate --set=NAME --sets_dir=DIR`."""

from jaxclip.evals.readers import Folders, Table
from jaxclip.evals.sets import Declaration

DECLARED: dict[str, Declaration] = {
    "mednist": Declaration(
        title="MedNIST (six classes of radiology)",
        get="any zip of its class folders, as mednist.zip",
        licence="CC BY-SA 4.0",
        layout=Folders(zip="mednist.zip", pattern=r"(?P<group>(?P<label>[A-Za-z]+)/[^/]+\.jpeg)"),
        prompts="mednist",
        note="No patient ids: slices of one patient may be in two splits.",
    ),
    "vqa_rad": Declaration(
        title="VQA-RAD, the organ of each image",
        get="https://osf.io/89kps",
        licence="CC0 1.0",
        layout=Table(file="organ_labels.csv", image="images/{image}", label="organ", group="image"),
        prompts="vqa_rad",
        split="test",
    ),
}
