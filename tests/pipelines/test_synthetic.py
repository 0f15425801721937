"""Synthetic figures: what is said to be drawn is drawn, and the dials do what they say."""

import collections
import dataclasses
import functools
import pickle
import re

import numpy as np
import pytest

from data_pipelines import synthetic_captions as captions
from data_pipelines.synthetic import (
    SyntheticConfig,
    build_synthetic,
    examples_of,
    make_examples,
    original_of,
    panels_of,
    place_of,
    spoiled,
    subject_of,
    wording_of,
)
from data_pipelines.synthetic_captions import CATALOGUE, Facts, cite, describe, sample_facts

DIALS = {
    "chart_fraction": 0.15,
    "compound_fraction": 0.2,
    "duplicate_fraction": 0.25,
    "duplicate_leak": 0.4,
    "swap_fraction": 0.1,
    "short_fraction": 0.3,
}


def _content(examples):
    return [(e.record.pack(), e.split, e.signals) for e in examples]


def _said(config, index):
    """Facts of the panels, what the caption is about, and its words, without drawing."""
    panels = panels_of(config, index)
    subject = subject_of(config, index, panels)
    return panels, subject, wording_of(config, index, subject)


# --- The corpus --------------------------------------------------------------------------------


def test_every_job_makes_the_figures_that_one_job_makes():
    """Prefixes and workers: no figure depends on those made before it or on how many there are."""
    config = SyntheticConfig(**DIALS)
    whole = _content(make_examples(config, range(40)))
    config = dataclasses.replace(config, size=17)
    place_of.cache_clear(), spoiled.cache_clear()
    parts = _content(make_examples(config, range(30, 40)))
    parts = _content(make_examples(config, range(30))) + parts
    assert parts == whole
    other_seed = _content(make_examples(dataclasses.replace(config, seed=1), range(40)))
    assert not {packed for packed, *_ in whole} & {packed for packed, *_ in other_seed}


def test_articles_have_one_to_six_figures_and_one_split():
    config = SyntheticConfig()
    places = [place_of(config, i) for i in range(2100)]
    numbers = collections.defaultdict(list)
    splits = collections.defaultdict(set)
    for index, place in enumerate(places):
        numbers[place.article].append(place.number)
        splits[place.article_id].add(place.split)
        assert place.first == index - place.number + 1
    assert list(numbers) == list(range(600))
    assert all(n == list(range(1, len(n) + 1)) for n in numbers.values())
    assert collections.Counter(map(len, numbers.values())) == dict.fromkeys(range(1, 7), 100)
    assert {len(names) for names in splits.values()} == {1}
    held_out = sum(place.split == "validation" for place in places)
    assert 70 < held_out < 210  # 131 expected; by article: sd about 23


def test_dataset_holds_the_figures_in_order(tmp_path):
    config = SyntheticConfig(size=60, image_size=64, **DIALS)
    one = build_synthetic(config, str(tmp_path), workers=1, tokenizer_vocab=0)
    assert len(one) == 60
    make_items = pickle.loads(pickle.dumps(functools.partial(make_examples, config)))  # to a worker
    [last] = make_items(range(59, 60))
    assert last.record.pack() == one[59].pack()
    metadata = one.metadata.to_pylist()
    assert [row["figure_index"] for row in metadata] == list(range(60))
    keys = {f"{row['article_id']}/{row['figure_id']}" for row in metadata}
    originals = {row["duplicate_of"] for row in metadata} - {""}
    assert originals and originals <= keys


# --- The dials ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", DIALS)
def test_dials_hit_their_rate_alone_and_together(name):
    """Within four standard deviations of the binomial; sd is below sqrt(0.25 / n)."""
    together = SyntheticConfig(spoil_held_out=True, **DIALS)
    alone = SyntheticConfig(
        spoil_held_out=True, duplicate_fraction=0.25, duplicate_leak=DIALS["duplicate_leak"]
    )
    alone = dataclasses.replace(alone, **{name: DIALS[name]})
    attribute = "leak" if name == "duplicate_leak" else name.removesuffix("_fraction")
    hits = [getattr(spoiled(together, i), attribute) for i in range(6, 3006)]
    assert abs(np.mean(hits) - DIALS[name]) < 4 * np.sqrt(DIALS[name] * (1 - DIALS[name]) / 3000)
    assert hits == [getattr(spoiled(alone, i), attribute) for i in range(6, 3006)]


def test_dials_spoil_what_they_say():
    config = SyntheticConfig(spoil_held_out=True, image_size=64, **DIALS)
    charts = compounds = swapped = short = duplicates = leaked = 0
    for index in range(21, 21 + 1050):
        spoil, original = spoiled(config, index), original_of(config, index)
        panels, subject, wording = _said(config, index)
        charts += all(facts.modality == "chart" for facts in panels)
        compounds += len(panels) > 1
        swapped += subject.figure != index
        short += all(len(stated) <= 2 for stated in subject.stated)
        duplicates += original != index
        leaked += place_of(config, original).article != place_of(config, index).article
        assert len(wording.letters) == len(panels)
        assert spoil.swap == (subject.figure != index)
        if spoil.swap:
            untrue = [
                any(getattr(own, name) != getattr(other, name) for name in names)
                for own, other, names in zip(panels, subject.panels, subject.stated, strict=True)
            ]
            assert all(untrue)
            assert place_of(config, subject.figure).article != place_of(config, index).article
        if original != index:
            assert panels == panels_of(config, original)
            assert not spoiled(config, original).duplicate
    for count, share in (
        (charts, 0.15),
        (compounds, 0.2),
        (swapped, 0.1),
        (short, 0.3),
        (duplicates, 0.25),
        (leaked, 0.1),
    ):
        # 5 sd, and 1.5 for charts and compounds, whose duplicates are of one kind with the original
        assert abs(count / 1050 - share) < 1.5 * 5 * np.sqrt(share * (1 - share) / 1050)


def test_without_dials_nothing_is_spoiled():
    config = SyntheticConfig(image_size=64)
    for example in make_examples(config, range(60)):
        signals = example.signals
        assert not (signals["caption_is_swapped"] or signals["caption_is_short"])
        assert not (signals["is_compound"] or signals["duplicate_of"] or signals["caption_of"])
        assert signals["modality"] in captions.IMAGING
        stated = [name for name in captions.ATTRIBUTES if signals[name]]
        assert signals["caption_states"] == ",".join(stated)


def test_held_out_figures_are_the_same_for_all_dials():
    clean = SyntheticConfig(image_size=64)
    everything = dict.fromkeys(DIALS, 0.7)
    held_out = [i for i in range(200) if place_of(clean, i).split != "train"]
    for index in held_out[:12]:
        spoilt = examples_of(dataclasses.replace(clean, **everything), index)
        assert _content(spoilt) == _content(examples_of(clean, index))


def test_a_dial_turned_up_spoils_more_and_leaves_the_rest():
    low = SyntheticConfig(swap_fraction=0.1, duplicate_fraction=0.1)
    high = SyntheticConfig(swap_fraction=0.3, duplicate_fraction=0.1)
    changed = 0
    for index in range(300):
        if spoiled(low, index) == spoiled(high, index) and not spoiled(low, index).swap:
            assert _said(low, index) == _said(high, index)
        else:
            assert spoiled(high, index).swap
            changed += spoiled(low, index) != spoiled(high, index)
    assert changed > 20


def test_split_panels_carry_the_caption_and_their_part_of_it():
    whole = SyntheticConfig(compound_fraction=1, spoil_held_out=True, image_size=96)
    split = dataclasses.replace(whole, split_panels=True)
    [figure] = examples_of(whole, 3)
    panels = examples_of(split, 3)
    assert len(panels) == figure.signals["num_panels"] > 1
    assert [panel.record.panel_id for panel in panels] == list("abcdef"[: len(panels)])
    end = 0
    for k, panel in enumerate(panels):
        assert panel.record.caption == figure.record.caption
        end = figure.record.caption.index(panel.record.panel_caption, end) + 1  # in their order
        assert panel.signals["finding"] == figure.signals["finding"].split("|")[k]
        assert panel.signals["is_compound"]
    assert figure.record.panel_caption == ""
    assert min(figure.record.width, figure.record.height) >= 64


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("swap_fraction", 10.0, r"swap_fraction \(10.0\) must be from 0 to 1.*Set 0.1"),
        ("chart_fraction", -0.1, r"chart_fraction \(-0.1\) must be from 0 to 1"),
        ("duplicate_fraction", 0.9, r"duplicate_fraction \(0.9\) must be at most 0.714.*Lower"),
        ("test_fraction", 0.99, r"validation_fraction \+ test_fraction .* below 1.*Lower"),
        ("size", 0, r"size \(0\) must be at least 1"),
        ("image_size", 8, r"image_size \(8\) must be at least 64"),
    ],
)
def test_impossible_dials_are_refused(field, value, message):
    with pytest.raises(ValueError, match=message):
        SyntheticConfig(**{field: value}).validate()


# --- Captions ----------------------------------------------------------------------------------


def test_caption_names_stated_attributes_only():
    facts = Facts(
        modality="ct", organ="chest", finding="nodule", side="left", count=2, size="large"
    )
    rng = np.random.default_rng(0)
    full = {describe(rng, facts, facts.attributes()) for _ in range(200)}
    assert len(full) > 100  # wording varies
    for text in full:
        words = text.lower()
        assert "left" in words and "right" not in words
        assert any(word in words for word in ("two", "2")) and "three" not in words
        assert any(word in words for word in ("large", "big")) and "small" not in words
        assert any(word in words for word in ("ct", "computed tomography"))
        assert any(word in words for word in ("nodules", "nodular lesions"))
    assert {describe(rng, facts, ("modality",)) for _ in range(50)} == {
        "CT.",
        "Computed tomography.",
        "Axial CT scan.",
    }


def test_no_caption_has_a_word_for_what_is_not_drawn():
    """Every variety that can be drawn, against the words for the other values of its attributes."""
    words = {
        "side": {"left": ("left",), "right": ("right",)},
        "size": captions._SIZES,
        "count": {n: (word, str(n)) for n, word in enumerate(captions._NUMBERS) if n},
        "stain": {stain: before + behind for stain, (before, behind) in captions._STAINS.items()},
    }
    rng = np.random.default_rng(1)
    for modality in CATALOGUE:
        for _ in range(100):
            facts = sample_facts(rng, modality)
            text = describe(rng, facts, facts.attributes()) + cite(rng, facts, "Fig. X")
            text = text.replace("left to right", "").lower()
            for name, vocabulary in words.items():
                for value in vocabulary.keys() - {getattr(facts, name)}:
                    for phrase in vocabulary[value]:
                        assert not re.search(rf"\b{re.escape(phrase.lower())}\b", text), facts


def test_copies_are_of_training_pairs_alone_and_the_same_in_all_but_their_number():
    config = SyntheticConfig(size=40, image_size=64, copies=3, test_fraction=0.3)
    once = _content(make_examples(dataclasses.replace(config, copies=1), range(40)))
    expected = [
        (packed, split, signals | {"copy": copy})
        for packed, split, signals in once
        for copy in range(3 if split == "train" else 1)
    ]
    assert _content(make_examples(config, range(40))) == expected
    assert {split for _, split, _ in once} >= {"train", "test"}
