"""Texts become the same ids here, in a tokenizer.json that we write, and in other libraries."""

import dataclasses
import importlib.util
import io
import json
import pathlib

import pytest
import sentencepiece

from jaxclip.data.text import TokenizerConfig, load_tokenizer, siglip_tokenizer
from jaxclip.data.vocabulary import CLEANERS
from jaxclip.models.pretrained import open_checkpoint
from jaxclip.models.pretrained.tokenizer_files import (
    PROBES,
    as_tokenizer_json,
    cleaning,
    differing_texts,
    tokenizer_files,
)
from tests.models.pretrained.fixtures import read_fixture, write_folder

VOCABULARIES = pathlib.Path(__file__).parents[3] / "../shared/data/tokenizers"
CLIP_BPE = VOCABULARIES / "bpe_simple_vocab_16e6.txt.gz"
needs_torch = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("torch", "transformers", "open_clip")),
    reason="needs torch, transformers, open_clip_torch and timm",
)
TEXTS = [*PROBES, "A red circle; it is number 7 of the series. " * 9]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Small SentencePiece models by kind: unigram as T5's (SigLIP), BPE as Gemma's (SigLIP 2)."""
    folder = tmp_path_factory.mktemp("sentencepiece")
    texts = [word for text in PROBES for word in (text, *text.split())] * 20
    found = {}
    for kind in ("unigram", "bpe"):
        is_t5, file = kind == "unigram", io.BytesIO()
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(texts), model_writer=file, vocab_size=430 - 100 * is_t5,
            model_type=kind, byte_fallback=not is_t5, add_dummy_prefix=is_t5,
            remove_extra_whitespaces=is_t5, pad_id=0, eos_id=1, bos_id=-1, unk_id=2,
            normalization_rule_name="nmt_nfkc" if is_t5 else "identity", eos_piece="</s>",
            character_coverage=1.0, hard_vocab_limit=False, minloglevel=2,
        )  # fmt: skip
        found[kind] = folder / f"{kind}.model"
        found[kind].write_bytes(file.getvalue())
    return found


def test_cleaners_by_hand():
    text = "T2-weighted_MRI (a),  “α” &lt; 5 µM; ΔF"
    expected = {
        "none": text,
        "clip": 't2-weighted_mri (a),  "α" < 5 µm; δf',
        "lower_ascii": "t2-weighted_mri (a),  “α” &lt; 5 µm; Δf",
        "lower": "t2-weighted_mri (a),  “α” &lt; 5 µm; δf",
        "canonical": "t2weighted mri a “α” lt 5 µm δf",
        "openclip_whitespace": 'T2-weighted_MRI (a), "α" < 5 µM; ΔF',
        "openclip_canonical": "t2weighted mri a α 5 µm δf",
        "hf_siglip": "t2weightedmri a “α” lt 5 µm δf",
    }
    assert {name: clean(text) for name, clean in CLEANERS.items()} == expected


@pytest.mark.parametrize("kind", ["unigram", "bpe"])
def test_a_sentencepiece_model_becomes_a_tokenizer_json(kind, models):
    """sentencepiece itself is the reference."""
    config = siglip_tokenizer(str(models[kind]))
    for clean in ("lower_ascii", "none"):
        tokenizer = load_tokenizer(dataclasses.replace(config, clean=clean, pad="auto"))
        assert not differing_texts(tokenizer, as_tokenizer_json(tokenizer))


def test_every_cleaner_can_be_written_into_a_tokenizer_json():
    if not CLIP_BPE.exists():
        pytest.skip("needs ../shared/data/tokenizers")
    config = TokenizerConfig(path=str(VOCABULARIES / "maxtext_tokenizer_default_32768.model"))
    for clean in CLEANERS:
        tokenizer = load_tokenizer(dataclasses.replace(config, clean=clean))
        assert not differing_texts(tokenizer, as_tokenizer_json(tokenizer)), clean
    tokenizer = load_tokenizer(TokenizerConfig(path=str(CLIP_BPE)))
    assert not differing_texts(tokenizer, as_tokenizer_json(tokenizer))
    with pytest.raises(KeyError):
        cleaning("unknown")


def test_a_tokenizer_that_cannot_be_expressed_is_told(models, monkeypatch):
    monkeypatch.setattr(
        "jaxclip.models.pretrained.tokenizer_files.PROBES", ("&lt;5 mm", "plain text")
    )
    config = TokenizerConfig(path=str(models["bpe"]), clean="openclip_whitespace")
    _, (line,) = tokenizer_files(load_tokenizer(config))
    assert "other ids than this run for 1 of 2 odd texts, e.g. '&lt;5 mm'" in line


def siglip_folder(tmp_path, model, tokenizer_class):
    """A Hugging Face SigLIP with a SentencePiece vocabulary of its size."""
    fixture = read_fixture("hf_siglip")
    size = sentencepiece.SentencePieceProcessor(model_proto=model.read_bytes()).vocab_size()
    fixture["tensors"]["text_model.embeddings.token_embedding.weight"][0] = size
    fixture["files"]["config.json"]["text_config"]["vocab_size"] = size
    fixture["files"]["tokenizer_config.json"] = {
        "tokenizer_class": tokenizer_class, "eos_token": "</s>", "pad_token": "</s>",
        "model_max_length": 12, "do_lower_case": True,
    }  # fmt: skip
    folder = write_folder(tmp_path / "siglip", fixture)
    (folder / "spiece.model").write_bytes(model.read_bytes())
    return folder


@pytest.mark.parametrize(
    ("tokenizer_class", "clean"),
    [("SiglipTokenizer", "hf_siglip"), ("GemmaTokenizerFast", "lower_ascii")],
)
def test_the_cleaner_comes_with_the_class_of_the_tokenizer(
    tokenizer_class, clean, models, tmp_path
):
    folder = siglip_folder(tmp_path, models["unigram"], tokenizer_class)
    assert load_tokenizer(open_checkpoint(str(folder)).tokenizer).clean == clean


def test_the_cleaner_of_an_openclip_checkpoint_is_in_its_config(tmp_path):
    fixture = read_fixture("openclip_siglip2")
    text = fixture["files"]["open_clip_config.json"]["model_cfg"]["text_cfg"]
    folder = tmp_path / "siglip2"
    for said, clean in (("canonicalize", "openclip_canonical"), ("", "openclip_whitespace")):
        text["tokenizer_kwargs"] = {"clean": said} if said else {}
        family = open_checkpoint(str(write_folder(folder, fixture)))
        assert family.tokenizer.clean == clean


@needs_torch
def test_siglip_tokenizer_of_transformers_gives_our_ids(models, tmp_path):
    import transformers

    folder = siglip_folder(tmp_path, models["unigram"], "SiglipTokenizer")
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    assert type(theirs).__name__ == "SiglipTokenizer"
    ours = load_tokenizer(open_checkpoint(str(folder)).tokenizer)
    texts = [text for text in TEXTS if "</s>" not in text]  # there a special token, here text
    found = theirs(texts, padding="max_length", truncation=True, max_length=12)["input_ids"]
    assert found == ours.encode(texts).tolist()


@needs_torch
@pytest.mark.parametrize("model_type", ["clip", "siglip", "siglip2", "bert"])
@pytest.mark.parametrize("kind", ["unigram", "bpe", "json", "clip"])
def test_auto_tokenizer_gives_our_ids(kind, model_type, models, tmp_path, tiny_dataset):
    import open_clip
    import transformers

    files = models | {"json": tiny_dataset / "tokenizer.json", "clip": CLIP_BPE}
    if not files[kind].exists():
        pytest.skip("needs ../shared/data/tokenizers")
    tokenizer = load_tokenizer(TokenizerConfig(path=str(files[kind]), context_length=16))
    for name, content in tokenizer_files(tokenizer)[0].items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
    opener = transformers.AutoTokenizer
    if model_type == "siglip2":  # for which transformers has a class of its own, whatever we say
        opener = transformers.PreTrainedTokenizerFast
    theirs = opener.from_pretrained(tmp_path)
    found = theirs(TEXTS, padding="max_length", truncation=True)["input_ids"]
    assert found == tokenizer.encode(TEXTS).tolist()
    if model_type == "siglip2" and kind == "bpe":  # it is for Gemma's, and lowers all letters
        theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
        texts = [text for text in TEXTS if CLEANERS["lower"](text) == text]
        found = theirs(texts, padding="max_length", truncation=True)["input_ids"]
        assert len(texts) > 1 and found == tokenizer.encode(texts).tolist()
    if model_type == "clip" and kind != "clip":
        text = {"context_length": 16, "hf_tokenizer_name": "."}
        config = {"model_cfg": {"embed_dim": 1, "vision_cfg": {}, "text_cfg": text}}
        (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
        theirs = open_clip.get_tokenizer(f"local-dir:{tmp_path}")
        cleaned = [t for t in TEXTS if CLEANERS["openclip_whitespace"](t) == t]
        assert len(cleaned) > 3
        assert theirs(cleaned).tolist() == tokenizer.encode(cleaned).tolist()
