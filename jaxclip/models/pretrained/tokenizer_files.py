"""A run's tokenizer as a tokenizer.json, which gives the same ids in transformers and OpenCLIP."""

import json
import string
from typing import Any

import tokenizers
from tokenizers import Regex, normalizers, processors

from jaxclip.data.text import Tokenizer
from jaxclip.data.vocabulary import FOLD, clip_tokenizer, wordpiece_tokenizer
from jaxclip.models.pretrained.sentencepiece_json import sentencepiece_tokenizer

# Texts that tell tokenizers apart; what a caption may have, and what it had better not.
PROBES = (
    "Axial T2-weighted MRI (arrow): a 3.5 cm lesion, SUVmax 11.4.", "  H&E,\tx200;  scale\n50 µm ",
    "ΔF508 in β-catenin; ΣΟΦΟΣ, naïve café, Ångström, été", "“curly” ‘quotes’ – dashes … ﬁbre",
    "TGF_beta1 / p < 0.05, 37 °C, 10⁻³ M, ½", "全角ＡＢＣ　１２ 心臓",
    "[SEP] <|endoftext|> </s> [MASK]",
    "a_b __init__ e.g. (A-C), 'it's' 50%", "", "word " * 300,
)  # fmt: skip


def tokenizer_files(tokenizer: Tokenizer) -> tuple[dict[str, bytes], list[str]]:
    """tokenizer.json and tokenizer_config.json, and what they do otherwise than ours."""
    names = tokenizer.special_tokens
    config: dict[str, Any] = {f"{name}_token": token for name, token in names.items()}
    config |= {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": tokenizer.context_length,
        "clean_up_tokenization_spaces": False,
        "padding_side": "right",
        "split_special_tokens": True,  # "[SEP]" in a caption is plain text
    }
    built = as_tokenizer_json(tokenizer)
    lines = []
    if differing := differing_texts(tokenizer, built):
        lines.append(
            f"tokenizer.json gives other ids than this run for {len(differing)} of {len(PROBES)} "
            f"odd texts, e.g. {differing[0]!r}: it cannot repair HTML entities as the cleaner "
            f"{tokenizer.clean!r} does, or its vocabulary is one that it cannot express"
        )
    return {"tokenizer.json": built.to_str().encode(),
            "tokenizer_config.json": json.dumps(config, indent=1).encode()}, lines  # fmt: skip


def as_tokenizer_json(tokenizer: Tokenizer) -> tokenizers.Tokenizer:
    """The vocabulary with our cleaning, bos, eos, padding and truncation."""
    build = {
        "clip": clip_tokenizer,
        "wordpiece": wordpiece_tokenizer,
        "sentencepiece": sentencepiece_tokenizer,
        "json": tokenizers.Tokenizer.from_buffer,
    }
    built = build[tokenizer.kind](tokenizer.content)
    steps = cleaning(tokenizer.clean) + ([built.normalizer] if built.normalizer else [])
    if steps:
        built.normalizer = normalizers.Sequence(steps)
    names = tokenizer.special_tokens
    ids = [(names[name], getattr(tokenizer, f"{name}_id")) for name in names]
    template = [*([names["bos"]] if "bos" in names else []), "$A", names["eos"]]
    built.post_processor = processors.TemplateProcessing(single=template, special_tokens=ids)
    built.enable_padding(
        pad_id=tokenizer.pad_id, pad_token=names["pad"], length=tokenizer.context_length
    )
    built.enable_truncation(tokenizer.context_length)
    return built


def differing_texts(tokenizer: Tokenizer, built: tokenizers.Tokenizer) -> list[str]:
    """Those of PROBES to which the two give other ids."""
    again = tokenizers.Tokenizer.from_str(built.to_str())
    again.encode_special_tokens = True  # as split_special_tokens
    ours = tokenizer.encode(PROBES).tolist()
    return [text for text, ids in zip(PROBES, ours, strict=True) if again.encode(text).ids != ids]


def cleaning(clean: str) -> list[Any]:
    """vocabulary.CLEANERS as steps of a tokenizer.json, which cannot undo HTML entities."""
    Replace = normalizers.Replace
    # Python lowers a sigma that ends a word otherwise than one within
    lower = [Replace(Regex(r"(?<=\p{L})Σ(?!\p{L})"), "ς"), normalizers.Lowercase()]
    single_spaces = [Replace(Regex(r"\s+"), " "), Replace(Regex("^ | $"), "")]
    marks = "".join(rf"\x{ord(c):02x}" for c in string.punctuation)
    punctuation = Replace(Regex(f"[{marks}]"), "")
    canonical = [Replace("_", " "), punctuation, *lower, *single_spaces]
    by_result: dict[str, list[str]] = {}
    for code, result in FOLD.items():
        by_result.setdefault(result or "", []).append(rf"\x{{{code:x}}}")
    fix: list[Any] = [
        Replace(Regex(f"[{''.join(chars)}]"), result) for result, chars in by_result.items()
    ]
    fix.append(normalizers.NFC())
    return {
        "none": [],
        "clip": [*fix, *single_spaces[:1], *lower],
        "lower_ascii": [Replace(c, c.lower()) for c in string.ascii_uppercase],
        "canonical": canonical,
        "openclip_whitespace": [*fix, *single_spaces],
        "openclip_canonical": [*fix, *canonical],
        "hf_siglip": [*lower, punctuation, *single_spaces],
        "lower": [normalizers.Lowercase()],
    }[clean]
