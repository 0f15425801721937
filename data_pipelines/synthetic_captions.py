"""What synthetic figures can show, and how captions say it.

`CATALOGUE` lists what can be drawn, `sample_facts` takes from it, `describe` puts it into words:

    Facts(modality="ct", organ="chest", finding="nodule", side="left", count=2, size="large")
    -> "Axial chest CT demonstrates two large nodules in the left lung."
"""

import dataclasses
import re
from collections.abc import Collection

import numpy as np


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What one panel shows; "" or 0: the attribute does not apply."""

    modality: str
    organ: str = ""
    finding: str = ""
    side: str = ""  # left or right, of the patient
    count: int = 0  # of the finding: nodules, cells, bars ...
    size: str = ""  # small or large
    stain: str = ""
    trend: str = ""  # of a chart: increasing or decreasing

    def attributes(self) -> tuple[str, ...]:
        """Names of those that apply."""
        return tuple(name for name in ATTRIBUTES if getattr(self, name))


ATTRIBUTES = tuple(field.name for field in dataclasses.fields(Facts))

_SIDE = {"side": ("left", "right")}
_SIZE = {"size": ("small", "large")}
_SLIDE = {"stain": ("H&E", "IHC", "trichrome")}
_TREND = {"trend": ("increasing", "decreasing")}


def _count(first: int, last: int) -> dict[str, tuple[int, ...]]:
    return {"count": tuple(range(first, last + 1))}


_CELLS = {"stain": ("DAPI", "GFP", "rhodamine", "Cy5")} | _count(1, 9) | _SIZE

# modality -> (organ, finding) -> attribute -> the values that can be drawn
CATALOGUE: dict[str, dict[tuple[str, str], dict[str, tuple]]] = {
    "radiograph": {
        ("chest", "normal"): {},
        ("chest", "nodule"): _SIDE | _SIZE | _count(1, 3),
        ("chest", "pleural effusion"): _SIDE | _SIZE,
        ("chest", "consolidation"): _SIDE | _SIZE,
        ("chest", "pneumothorax"): _SIDE,
        ("chest", "cardiomegaly"): {},
        ("forearm", "normal"): {},
        ("forearm", "fracture"): {},
        ("forearm", "plate fixation"): {},
    },
    "ct": {
        ("head", "normal"): {},
        ("head", "hemorrhage"): _SIDE | _SIZE,
        ("head", "infarct"): _SIDE | _SIZE,
        ("head", "hydrocephalus"): {},
        ("chest", "normal"): {},
        ("chest", "nodule"): _SIDE | _SIZE | _count(1, 3),
        ("chest", "pleural effusion"): _SIDE | _SIZE,
        ("abdomen", "normal"): {},
        ("abdomen", "liver lesion"): _SIZE | _count(1, 4),
        ("abdomen", "renal cyst"): _SIDE | _SIZE,
        ("abdomen", "hydronephrosis"): _SIDE,
    },
    "ultrasound": {
        ("liver", "normal"): {},
        ("liver", "cyst"): _SIZE | _count(1, 3),
        ("liver", "hyperechoic lesion"): _SIZE | _count(1, 3),
        ("gallbladder", "normal"): {},
        ("gallbladder", "gallstone"): _SIZE | _count(1, 3),
        ("kidney", "normal"): {},
        ("kidney", "hydronephrosis"): {},
        ("thyroid", "normal"): {},
        ("thyroid", "nodule"): _SIDE | _SIZE,
        ("breast", "cyst"): _SIZE | _count(1, 2),
        ("breast", "mass"): _SIZE,
    },
    "histology": {
        ("colon", "normal"): _SLIDE,
        ("colon", "adenocarcinoma"): _SLIDE,
        ("colon", "inflammation"): _SLIDE,
        ("liver", "normal"): _SLIDE,
        ("liver", "steatosis"): _SLIDE,
        ("liver", "fibrosis"): _SLIDE,
        ("kidney", "glomerulus"): _SLIDE | _count(1, 3),
        ("skin", "normal"): _SLIDE,
        ("skin", "inflammation"): _SLIDE,
    },
    "fluorescence": {
        ("cell culture", "nucleus"): _CELLS,
        ("cell culture", "fibroblast"): _CELLS,
        ("cell culture", "astrocyte"): _CELLS,
    },
    "chart": {
        ("", "bar chart"): _TREND | _count(2, 6),
        ("", "line chart"): _TREND | _count(1, 4),
        ("", "scatter plot"): _TREND,
        ("", "survival curve"): _count(2, 4),
    },
}
IMAGING = tuple(modality for modality in CATALOGUE if modality != "chart")


def sample_facts(rng: np.random.Generator, modality: str) -> Facts:
    """A finding is the likelier, the more varieties of it can be told apart."""
    entries = list(CATALOGUE[modality].items())
    varieties = [np.prod([len(values) for values in options.values()]) for _, options in entries]
    weights = np.sqrt(varieties)
    (organ, finding), options = entries[rng.choice(len(entries), p=weights / weights.sum())]
    chosen = {name: values[rng.integers(len(values))] for name, values in options.items()}
    return Facts(modality=modality, organ=organ, finding=finding, **chosen)


# What the figure is: with its organ ({adjective}: renal ...), and with the organ left out.
_IMAGES = {
    "radiograph": (
        ("{adjective} radiograph", "{adjective} X-ray", "plain film of the {organ}"),
        ("radiograph", "X-ray", "plain film"),
    ),
    "ct": (
        ("{adjective} CT", "axial {adjective} CT", "computed tomography of the {organ}"),
        ("CT", "computed tomography", "axial CT scan"),
    ),
    "ultrasound": (
        ("{adjective} ultrasound", "sonogram of the {organ}", "B-mode ultrasound of the {organ}"),
        ("ultrasound", "sonogram", "B-mode ultrasound"),
    ),
    "histology": (
        ("{adjective} histology", "photomicrograph of {organ}", "section of {organ} tissue"),
        ("histology", "photomicrograph", "histological section"),
    ),
    "fluorescence": (
        ("fluorescence micrograph of cultured cells", "fluorescence microscopy of a cell culture"),
        ("fluorescence micrograph", "fluorescence microscopy", "fluorescence image"),
    ),
    "chart": ((), ("chart", "plot", "graph")),
}
_ADJECTIVES = {"abdomen": "abdominal", "liver": "hepatic", "kidney": "renal", "colon": "colonic"}
_CHARTS = {
    "bar chart": ("bar chart", "bar graph", "bar plot"),
    "line chart": ("line chart", "line graph", "time course"),
    "scatter plot": ("scatter plot", "scatter diagram", "correlation plot"),
    "survival curve": ("survival plot", "Kaplan-Meier plot"),
}

# How a finding is called; where its side is, if it has one.
_FINDINGS = {
    "normal": ("no abnormality", "normal appearances", "no pathological finding"),
    "nodule": ("nodule", "rounded nodule", "nodular lesion"),
    "pleural effusion": ("pleural effusion", "effusion", "pleural fluid collection"),
    "consolidation": ("consolidation", "airspace opacity", "airspace consolidation"),
    "pneumothorax": ("pneumothorax", "pleural air"),
    "cardiomegaly": ("cardiomegaly", "an enlarged heart", "an increased cardiac silhouette"),
    "fracture": ("a displaced fracture", "fracture of both bones", "fractured shafts"),
    "plate fixation": (
        "plate fixation",
        "a metal plate and screws",
        "internal fixation by a plate",
    ),
    "hemorrhage": ("hemorrhage", "intracerebral haematoma", "hyperdense bleed"),
    "infarct": ("infarct", "hypodense infarction", "ischemic lesion"),
    "hydrocephalus": ("hydrocephalus", "dilated lateral ventricles", "ventricular enlargement"),
    "liver lesion": ("hypodense liver lesion", "focal hepatic lesion", "liver metastasis"),
    "renal cyst": ("renal cyst", "simple renal cyst", "exophytic cyst"),
    "hydronephrosis": ("hydronephrosis", "dilated renal pelvis", "pelvicalyceal dilatation"),
    "cyst": ("anechoic cyst", "cyst", "simple cyst"),
    "hyperechoic lesion": ("hyperechoic lesion", "echogenic lesion", "hemangioma"),
    "gallstone": ("gallstone", "shadowing calculus", "stone"),
    "mass": ("hypoechoic mass", "irregular mass", "solid mass"),
    "adenocarcinoma": ("adenocarcinoma", "malignant glands", "invasive carcinoma"),
    "inflammation": ("inflammation", "inflammatory infiltrate", "dense lymphocytic infiltrate"),
    "steatosis": ("steatosis", "fatty change", "fat vacuoles"),
    "fibrosis": ("fibrosis", "fibrous septa", "bridging fibrosis"),
    "glomerulus": ("glomerulus", "renal glomerulus"),
    "nucleus": ("nucleus", "cell nucleus"),
    "fibroblast": ("fibroblast", "spindle-shaped cell", "elongated fibroblast"),
    "astrocyte": ("astrocyte", "star-shaped cell", "stellate astrocyte"),
    "bar chart": ("bar", "column"),
    "line chart": ("curve", "line"),
    "scatter plot": ("data points", "values"),
    "survival curve": ("survival curve", "stepwise curve"),
}
_PLACES = {
    ("chest", "nodule"): "lung",
    ("chest", "consolidation"): "lung",
    ("chest", "pleural effusion"): "hemithorax",
    ("chest", "pneumothorax"): "hemithorax",
    ("thyroid", "nodule"): "thyroid lobe",
    ("head", "hemorrhage"): "hemisphere",
    ("head", "infarct"): "hemisphere",
    ("abdomen", "renal cyst"): "kidney",
    ("abdomen", "hydronephrosis"): "kidney",
}
_NUMBERS = ("", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
_SIZES = {"small": ("small", "tiny"), "large": ("large", "big")}
_TRENDS = {
    "increasing": ("increasing from left to right", "rising", "with an upward trend"),
    "decreasing": ("decreasing from left to right", "falling", "with a downward trend"),
}
_STAINS = {  # before the name of the image, or in brackets behind it
    "H&E": (("H&E-stained", "H&E"), ("hematoxylin and eosin", "H&E")),
    "IHC": (("immunohistochemical", "IHC"), ("DAB immunohistochemistry", "immunostained brown")),
    "trichrome": (("trichrome", "Masson trichrome"), ("Masson's trichrome", "trichrome stain")),
    "DAPI": (("DAPI", "blue"), ("DAPI, blue", "stained with DAPI")),
    "GFP": (("GFP", "green"), ("GFP, green", "expressing GFP")),
    "rhodamine": (("rhodamine", "red"), ("rhodamine, red", "stained with rhodamine")),
    "Cy5": (("Cy5", "magenta"), ("Cy5, magenta", "labelled with Cy5")),
}
_SENTENCES = (
    "{image} showing {finding}.",
    "{image} shows {finding}.",
    "{image} demonstrates {finding}.",
    "{image} with {finding}.",
    "{image}: {finding}.",
    "{finding} on {image}.",
    "{finding}. {image}.",
    "{finding} seen on {image}.",
)
_CITATIONS = (
    "As shown in {cite}, {image} revealed {finding}.",
    "We found {finding} on {image} ({cite}).",
    "{image} was obtained, with {finding} ({cite}).",
    "{cite} presents {image} with {finding}.",
    "{finding} can be seen in {cite} ({image}).",
)
# What a short caption may be reduced to.
_SHORT = (("modality",), ("modality", "organ"), ("finding",))


def stated_attributes(rng: np.random.Generator, facts: Facts, short: bool) -> tuple[str, ...]:
    """The attributes that a caption is to name: all that apply, or few of them."""
    kept = _SHORT[rng.integers(len(_SHORT))] if short else ATTRIBUTES
    return tuple(name for name in facts.attributes() if name in kept)


def describe(rng: np.random.Generator, facts: Facts, stated: Collection[str]) -> str:
    """A caption that names the `stated` attributes of the facts and no others."""
    image, finding = _image(rng, facts, stated), _finding(rng, facts, stated)
    if image and finding:
        return _sentence(_pick(rng, _SENTENCES).format(image=image, finding=finding))
    return _sentence(f"{image or finding}.")


def cite(rng: np.random.Generator, facts: Facts, label: str) -> str:
    """A sentence of the article that cites the figure and names all facts; label: "Fig. 3a"."""
    image, finding = (part(rng, facts, facts.attributes()) for part in (_image, _finding))
    return _sentence(_pick(rng, _CITATIONS).format(cite=label, image=image, finding=finding))


def _pick(rng, options):
    return options[rng.integers(len(options))]


def _sentence(text):
    return re.sub(r"(^|\. )([a-z])", lambda match: match[1] + match[2].upper(), text)


def _image(rng, facts, stated):
    if facts.modality == "chart" and "finding" in stated:
        return _pick(rng, _CHARTS[facts.finding])
    if "modality" not in stated:
        return ""
    with_organ, without = _IMAGES[facts.modality]
    adjective = _ADJECTIVES.get(facts.organ, facts.organ)
    image = _pick(rng, with_organ if "organ" in stated else without)
    image = image.format(organ=facts.organ, adjective=adjective)
    if "stain" not in stated:
        return image
    before, behind = _STAINS[facts.stain]
    return _pick(rng, (f"{_pick(rng, before)} {image}", f"{image} ({_pick(rng, behind)})"))


def _finding(rng, facts, stated):
    if "finding" not in stated or stated == ("finding",) and facts.modality == "chart":
        return ""
    phrase = _pick(rng, _FINDINGS[facts.finding])
    if facts.count > 1:
        phrase = _plural(phrase)
    if "side" in stated:
        place = _PLACES[facts.organ, facts.finding]
        phrase = _pick(
            rng,
            (
                f"{facts.side} {phrase}",
                f"{facts.side}-sided {phrase}",
                f"{phrase} in the {facts.side} {place}",
            ),
        )
    if "size" in stated:
        phrase = f"{_pick(rng, _SIZES[facts.size])} {phrase}"
    if "count" in stated:
        number = _NUMBERS[facts.count]
        numbers = (
            ("a single", "one", "a solitary")
            if facts.count == 1
            else (number, number, str(facts.count))
        )
        phrase = f"{_pick(rng, numbers)} {phrase}"
    if "trend" in stated:
        phrase = f"{phrase} {_pick(rng, _TRENDS[facts.trend])}"
    return phrase


def _plural(noun):
    """ "calculus" -> "calculi", "metastasis" -> "metastases", "mass" -> "masses"."""
    for ending, plural in (("us", "i"), ("sis", "ses"), ("ss", "sses"), ("y", "ies")):
        if noun.endswith(ending):
            return noun.removesuffix(ending) + plural
    return noun + "s"
