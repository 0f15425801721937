"""Captions as journals write them; gold of 98 real ones; which panel gets which words."""

import json
import pathlib

import pytest

from data_pipelines.captions import SplitCaption, align, split_caption
from data_pipelines.panels import Panel
from experiments.benchmarks.captions import is_development, score
from tests.pipelines.linear import is_linear

SHARED = pathlib.Path(__file__).parents[3] / "shared/data"


def parts(text):
    return {label: words for labels, words in split_caption(text).parts for label in labels}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("(a) CT. (b) MRI.", {"a": "CT.", "b": "MRI."}),
        ("Mice.(A) CT.(B) MRI.", {"A": "CT.", "B": "MRI."}),
        ("A) CT at rest. B) MRI.", {"A": "CT at rest.", "B": "MRI."}),
        ("Growth. A. Control. B. Treated.", {"A": "Control.", "B": "Treated."}),
        ("a, CT; b–d, MRI.", {"a": "CT", "b": "MRI.", "c": "MRI.", "d": "MRI."}),
        ("A: CT. B and C: MRI.", {"A": "CT.", "B": "MRI.", "C": "MRI."}),
        ("a Control mice. b Treated mice.", {"a": "Control mice.", "b": "Treated mice."}),
        ("Panel A shows CT. Panel B shows MRI.", {"A": "shows CT.", "B": "shows MRI."}),
        ("[A] CT; [B] MRI", {"A": "CT", "B": "MRI"}),
        ("CT of mice (a), rats (b) and men (c).", {"a": "CT of mice", "b": "rats", "c": "men"}),
        (
            "Stains for CD3 (image A and B) and CD8 (p; image C).",
            {"A": "Stains for CD3", "C": "CD8 (p)"},
        ),
        ("Eyes (c, d) and legs (a, b).", {"a": "legs", "b": "legs", "c": "Eyes", "d": "Eyes"}),
        ("(A) CT, (B) and C) MRI", {"A": "CT", "B": "MRI", "C": "MRI"}),
        ("(i) One (ii) two (iii) three", {"i": "One", "ii": "two", "iii": "three"}),
        ("Left: CT. Right: MRI.", {"left": "CT.", "right": "MRI."}),
        ("CT (upper left) and MRI (lower left)", {"top left": "CT", "bottom left": "MRI"}),
        ("(A, left) CT. (B, right) MRI.", {"A": "CT.", "B": "MRI."}),
        ("In (A), CT is shown. In (B), MRI.", {"A": "CT is shown.", "B": "MRI."}),
        ("Panel (A) CT. Panels (B, C) MRI.", {"A": "CT.", "B": "MRI.", "C": "MRI."}),
        ("CT is shown in (a) and MRI is shown in panel (b).", {"a": "CT is shown in"}),
        ("A - CT of mice. B - MRI.", {"A": "CT of mice.", "B": "MRI."}),
        ("（A）CT；（В）MRI．", {"A": "CT", "B": "MRI．"}),  # a Cyrillic В
        (
            "(a) Map. SEM images of (b) wings and (c) legs. (d) Path.",
            {"a": "Map.", "b": "SEM images of wings", "c": "SEM images of legs.", "d": "Path."},
        ),
        ("(a) Map. Views of (b) mice. The legs, and (c) arms.", {"a": "Map.", "c": "arms."}),
        ("Slices of (a) liver; slices of (b) heart.", {"a": "liver", "b": "slices of heart."}),
    ],
)
def test_journals_ways_to_name_panels(text, expected):
    found = parts(text)
    assert expected.items() <= found.items()
    if not any(words in text for words in ("CD3", "shown in panel", "Views of")):
        assert found == expected


@pytest.mark.parametrize(
    "text",
    [
        "Axial CT of the chest.",
        "Vitamin A, B and C levels in mice.",
        "A 55-year-old man with hepatitis B. CT shows a mass.",
        "Survival (n = 5) of E. coli (A).",
        "Influenza A virus. B cells are shown.",
        "(a) CT only.",
        "",
    ],
)
def test_what_cannot_be_split_is_kept_whole(text):
    assert split_caption(text) == SplitCaption(text)
    assert not split_caption(text).is_split


def test_prefix_and_suffix_are_said_of_every_panel():
    split = split_caption("Mice. (A) CT. It is axial. (B) MRI. Scale bar, 1 mm. *P < 0.05.")
    assert (split.prefix, split.suffix) == ("Mice.", "Scale bar, 1 mm. *P < 0.05.")
    assert split.text(0) == "Mice. CT. It is axial. Scale bar, 1 mm. *P < 0.05."
    assert split.text(1) == "Mice. MRI. Scale bar, 1 mm. *P < 0.05."


def test_words_for_several_panels_are_said_of_each():
    found = parts("A and B: mice. A: control. B: treated. C and D: rats.")
    assert found == {"A": "mice. control.", "B": "mice. treated.", "C": "rats.", "D": "rats."}


def test_styles_may_be_mixed():
    """(A) leads, (B) and (C) end what they name."""
    found = parts("(A) CT of mice. MRI at rest (B) and moving (C). (D) PET.")
    assert found == {"A": "CT of mice.", "B": "MRI at rest", "C": "moving", "D": "PET."}


def test_a_label_that_is_only_mentioned_begins_nothing():
    found = parts("(A) Strong staining. (B) The same case as (A) at rest. (C) None.")
    assert found["B"] == "The same case as (A) at rest."
    assert parts("(A) CT. (B) The nodule as in (C).") == {"A": "CT.", "B": "The nodule as in (C)."}
    assert parts("a Energy. b Mass of points as in (a). c Both, from (a, b).") == {
        "a": "Energy.",
        "b": "Mass of points as in (a).",
        "c": "Both, from (a, b).",
    }
    assert (
        parts("(A) Mice (n = 7; i, insulitis). (B) Rats (a) and (b).")["B"] == "Rats (a) and (b)."
    )


@pytest.mark.parametrize("part", ["(", "( ", "(A ", "A, ", "A and ", "a.", " ", ", ; "])
def test_hostile_captions_take_linear_time(part):
    """A run of brackets took time quadratic in its length."""
    assert is_linear(split_caption, lambda n: "(A) x. (B) y" + part * n + "z", 1500)


@pytest.mark.parametrize("development", [True, False], ids=["development", "test"])
def test_gold_labels(development):
    """The rules were written on the development half only."""
    file = SHARED / "panel_layouts/captions_with_subcaptions.json"
    if not file.exists():
        pytest.skip("needs ../shared/data/panel_layouts")
    gold = json.loads(file.read_text())
    scores = score({n: item for n, item in gold.items() if is_development(n) == development})
    assert scores["f1"] >= 0.95  # the goal is 0.90; measured 1.00 and 0.986
    assert scores["text_overlap"] >= 0.85


# --- Alignment ---------------------------------------------------------------------------------


def grid(*labels, score=1.0):
    """Panels in a row, with the labels read in them."""
    return [Panel((100 * i, 0, 100 * i + 90, 80), lb, score) for i, lb in enumerate(labels)]


def test_the_label_in_the_panel_decides():
    alignments = align(grid("b", "A"), split_caption("X. (a) CT. (b) MRI."))
    assert [(a.panel, a.text, a.alignment_type) for a in alignments] == [
        (0, "X. MRI.", "OCR"),
        (1, "X. CT.", "OCR"),
    ]


def test_order_needs_as_many_labels_as_panels():
    split = split_caption("(a) CT. (b) MRI.")
    alignments = align(grid("", "", score=0.5), split)
    assert [(a.text, a.alignment_type) for a in alignments] == [("CT.", "order"), ("MRI.", "order")]
    assert 0 < alignments[0].alignment_score < 0.5
    for alignment in align(grid("", "", ""), split):
        assert alignment.alignment_type == "nonCompound-caption"
        assert alignment.text == "(a) CT. (b) MRI."


def test_order_is_that_of_the_labels_not_of_the_words():
    split = split_caption("Legs (b) and eyes (a).")
    assert [a.text for a in align(grid("", ""), split)] == ["eyes", "Legs"]


def test_a_label_read_against_the_order_leaves_the_others_open():
    split = split_caption("(a) CT. (b) MRI. (c) PET.")
    types = [a.alignment_type for a in align(grid("b", "", ""), split)]
    assert types == ["OCR", "nonCompound-caption", "nonCompound-caption"]
    assert [a.text for a in align(grid("a", "", ""), split)] == ["CT.", "MRI.", "PET."]


def test_left_and_right_are_places():
    split = split_caption("MRI (right) and CT (left).")
    left, right = grid("", "")
    assert [a.text for a in align([left, right], split)] == ["CT", "MRI"]
    assert [a.text for a in align([right, left], split)] == ["MRI", "CT"]
    above = [Panel((0, 0, 90, 80)), Panel((0, 90, 90, 180))]
    assert {a.alignment_type for a in align(above, split)} == {"nonCompound-caption"}


def test_one_panel_keeps_the_whole_caption():
    (alignment,) = align([Panel((0, 0, 9, 9))], split_caption("X. (a) CT. (b) MRI. Bar, 1 mm."))
    assert alignment.text == "X. (a) CT. (b) MRI. Bar, 1 mm."
    assert alignment.alignment_type == "nonCompound-figure"
    (one,) = align([Panel((0, 0, 9, 9))], split_caption("CT of mice."))
    assert one.text == "CT of mice."
