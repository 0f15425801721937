"""A run's tokenizer as a tokenizer.json, which gives the same ids in transformers and OpenCLIP."""

import json
import string
from typing import Any

import tokenizers
from sentencepiece import sentencepiece_model_pb2 as sentencepiece_proto
from tokenizers import Regex, decoders, models, normalizers, processors

from jaxclip.data.text import Tokenizer
from jaxclip.data.vocabulary import FOLD, clip_tokenizer, wordpiece_tokenizer

# Texts that tell tokenizers apart; what a caption may have, and what it had better not.
PROBES = (
    "Axial T2-weighted MRI (arrow): a 3.5 cm lesion, SUVmax 11.4.", "  H&E,\tx200;  scale\n50 µm ",
    "ΔF508 in β-catenin; ΣΟΦΟΣ, naïve café, Ångström, été", "“curly” ‘quotes’ – dashes … ﬁbre",
    "TGF_beta1 / p < 0.05, 37 °C, 10⁻³ M, ½", "全角ＡＢＣ　１２ 心臓",
    "[SEP] <|endoftext|> </s> [MASK]",
    "a_b __init__ e.g. (A-C), 'it's' 50%", "", "word " * 300,
)  # fmt: skip
NORMAL, USER_DEFINED = 1, 4  # SentencePiece's types of pieces that a text can have


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
    template = [names["bos"]] * ("bos" in names) + ["$A", names["eos"]]
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


def sentencepiece_tokenizer(content: bytes) -> tokenizers.Tokenizer:
    """A SentencePiece model, unigram or BPE, without its eos.

    Raises:
      ValueError: another kind of model.
    """
    proto: Any = sentencepiece_proto.ModelProto.FromString(content)  # pyright: ignore[reportAttributeAccessIssue]
    trainer, spec = proto.trainer_spec, proto.normalizer_spec
    in_text = [p.type in (NORMAL, USER_DEFINED) for p in proto.pieces]
    if trainer.model_type == trainer.UNIGRAM:
        # never chosen in a text: "</s>", and bytes but by falling back to them
        vocab = [
            (p.piece, p.score if ok else -1e9) for p, ok in zip(proto.pieces, in_text, strict=True)
        ]
        model = models.Unigram(vocab, trainer.unk_id, trainer.byte_fallback)
    elif trainer.model_type == trainer.BPE:
        ids = {p.piece: i for i, p in enumerate(proto.pieces)}
        usable = {p.piece: p.score for p, ok in zip(proto.pieces, in_text, strict=True) if ok}
        model = models.BPE(ids, merges_of(usable), unk_token=trainer.unk_piece, fuse_unk=True,
                           byte_fallback=trainer.byte_fallback)  # fmt: skip
    else:
        raise ValueError("a SentencePiece model of words or characters has no tokenizer.json.")
    tokenizer = tokenizers.Tokenizer(model)
    steps: list[Any] = []
    if spec.precompiled_charsmap:
        steps.append(normalizers.Precompiled(spec.precompiled_charsmap))
    if spec.remove_extra_whitespaces:
        steps += [normalizers.Replace(Regex(" +"), " "), normalizers.Replace(Regex("^ | $"), "")]
    if spec.add_dummy_prefix:
        steps.append(normalizers.Prepend("▁"))
    tokenizer.normalizer = normalizers.Sequence([*steps, normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    user = [p.piece for p in proto.pieces if p.type == USER_DEFINED]
    is_raw = spec.add_dummy_prefix  # else they would get the prefix, too
    tokenizer.add_tokens([tokenizers.AddedToken(piece, normalized=not is_raw) for piece in user])
    return tokenizer


def merges_of(scores: dict[str, float]) -> list[tuple[str, str]]:
    """The merges of a BPE that is given by its pieces: the best piece first, in all its parts."""
    found = []
    for piece, score in scores.items():
        parts = ((piece[:i], piece[i:]) for i in range(1, len(piece)))
        found += [(-score, *pair) for pair in parts if pair[0] in scores and pair[1] in scores]
    return [(left, right) for _, left, right in sorted(found)]
