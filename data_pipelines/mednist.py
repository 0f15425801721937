r"""MedNIST -> a DATASET for a toy run: six classes of 64-pixel images, captions from class names.

    python -m data_pipelines.mednist --out=DIR \
        --zip=../shared/data/mednist/mednist_1500_per_class.zip

The zip has folders named as CLASSES with JPEGs in them. MedNIST says of no image which patient it
is of, so every image is its own group: slices of one patient may be in two splits, and accuracy on
it measures recognition of a modality, no more. The class is in the signal column `label`.
"""

import dataclasses
import posixpath

from data_pipelines.images import open_images
from data_pipelines.options import WriteOptions, option, run
from data_pipelines.table import TableOptions, build_table
from jaxclip.data.dataset import Dataset
from jaxclip.data.record import hash64

CLASSES = {
    "AbdomenCT": ("an axial CT image of the abdomen", "an abdominal CT scan"),
    "BreastMRI": ("an MRI of the breast", "a breast magnetic resonance image"),
    "CXR": ("a chest X-ray", "a frontal chest radiograph"),
    "ChestCT": ("an axial CT image of the chest", "a CT scan of the thorax"),
    "Hand": ("an X-ray of a hand", "a hand radiograph"),
    "HeadCT": ("an axial CT image of the head", "a CT scan of the brain"),
}
TEMPLATES = ("{}.", "this is {}.", "image showing {}.", "example of {}.", "figure 1: {}.")


@dataclasses.dataclass(slots=True, kw_only=True)
class MednistOptions(WriteOptions):
    """The command line."""

    zip: str = option("", "the zip of class folders")
    per_class: int = option(0, "images a class, the first by name; 0: all")


def caption_of(image: str, label: str) -> str:
    """("CXR/000123.jpeg", "CXR") -> "This is a chest X-ray.", the same on every machine."""
    captions = [template.format(noun) for template in TEMPLATES for noun in CLASSES[label]]
    caption = captions[hash64(image) % len(captions)]
    return caption[0].upper() + caption[1:]


def build_mednist(options: MednistOptions) -> Dataset:
    """Raises ValueError: no zip, or without the class folders."""
    rows = []
    counts = dict.fromkeys(CLASSES, 0)
    for image in sorted(open_images(options.zip).names()):
        label = posixpath.dirname(image)
        if label not in CLASSES or counts[label] == options.per_class > 0:
            continue
        counts[label] += 1
        rows.append({"image": image, "caption": caption_of(image, label), "label": label})
    if missing := [label for label, count in counts.items() if not count]:
        raise ValueError(f"zip ({options.zip}) has no images in {missing}/. Is it MedNIST?")
    return build_table(
        TableOptions(
            table=options.zip,
            images=options.zip,
            image="image",
            caption="caption",
            group="image",
            keep=("label",),
            source="mednist",
            licence="CC BY-SA 4.0",
            out=options.out,
            tokenizer_vocab=options.tokenizer_vocab,
            workers=options.workers,
            overwrite=options.overwrite,
        ),
        rows=rows,
        module="data_pipelines.mednist",
    )


if __name__ == "__main__":
    run(build_mednist, MednistOptions)
