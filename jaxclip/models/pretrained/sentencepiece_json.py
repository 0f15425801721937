"""A SentencePiece model as a tokenizer of the tokenizers library, which writes a tokenizer.json."""

from typing import Any

import tokenizers
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from tokenizers import Regex, decoders, models, normalizers

NORMAL, USER_DEFINED = 1, 4  # types of pieces that a text can have
UNIGRAM, BPE = 1, 2  # types of models
# The part of sentencepiece_model.proto (github.com/google/sentencepiece) that is needed here: the
# package's own module asks for a newer protobuf than the rest of the environment takes.
# message -> (number, name, type, default)
MESSAGES = {
    "Piece": [(1, "piece", "STRING", ""), (2, "score", "FLOAT", "0"), (3, "type", "INT32", "1")],
    "Trainer": [(3, "model_type", "INT32", "1"), (35, "byte_fallback", "BOOL", "false"),
                (40, "unk_id", "INT32", "0"), (45, "unk_piece", "STRING", "<unk>")],
    "Normalizer": [(2, "precompiled_charsmap", "BYTES", ""),
                   (3, "add_dummy_prefix", "BOOL", "true"),
                   (4, "remove_extra_whitespaces", "BOOL", "true")],
    "Model": [(1, "pieces", "Piece", ""), (2, "trainer", "Trainer", ""),
              (3, "normalizer", "Normalizer", "")],
}  # fmt: skip


def _model_class() -> Any:
    file = descriptor_pb2.FileDescriptorProto(name="model.proto", package="spm", syntax="proto2")
    for name, fields in MESSAGES.items():
        message = file.message_type.add(name=name)
        for number, field, kind, default in fields:
            added = message.field.add(number=number, name=field)
            is_many = field == "pieces"
            added.label = added.LABEL_REPEATED if is_many else added.LABEL_OPTIONAL
            if kind in MESSAGES:
                added.type, added.type_name = added.TYPE_MESSAGE, f".spm.{kind}"
            else:
                added.type, added.default_value = getattr(added, f"TYPE_{kind}"), default
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("spm.Model"))


def sentencepiece_tokenizer(content: bytes) -> tokenizers.Tokenizer:
    """A unigram or BPE model, without its eos.

    Raises:
      ValueError: another kind of model.
    """
    proto = _model_class().FromString(content)
    trainer, spec = proto.trainer, proto.normalizer
    in_text = [p.type in (NORMAL, USER_DEFINED) for p in proto.pieces]
    if trainer.model_type == UNIGRAM:
        # never chosen in a text: "</s>", and bytes but by falling back to them
        vocab = [
            (p.piece, p.score if ok else -1e9) for p, ok in zip(proto.pieces, in_text, strict=True)
        ]
        model: Any = models.Unigram(vocab, trainer.unk_id, trainer.byte_fallback)
    elif trainer.model_type == BPE:
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
