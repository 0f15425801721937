"""big_vision's npz: SigLIP, SigLIP 2, and ViT image towers (also the AugReg files of vit_jax).

Names may begin with "params/" or "opt/target/"; blocks are encoderblock_0, encoderblock_1, ... or,
scanned, one encoderblock with a leading axis. Attention kernels are [D, N, H] and [N, H, D].

Shape letters: D width, N heads, H head size, P patch size, T positions.
"""

import dataclasses
import math
import re
from pathlib import Path
from typing import Any

from jaxclip.data.image import ImageConfig
from jaxclip.data.text import TokenizerConfig
from jaxclip.models.clip import ClipConfig
from jaxclip.models.layers import TransformerConfig
from jaxclip.models.pretrained.family import Family, block_count, first_existing
from jaxclip.models.pretrained.files import Weights
from jaxclip.models.pretrained.table import (
    Rule,
    batched,
    class_and_positions,
    prefix,
    same,
    shaped,
)
from jaxclip.models.text import TextConfig, siglip_text
from jaxclip.models.vit import SIZES, ViTConfig

IMAGE = ImageConfig(resize="squash", interpolation="tf_bilinear", mean=(0.5,) * 3, std=(0.5,) * 3)
# its resize_to_sequence antialiases, and keeps fractions: Pillow has the same filter, and rounds
NAFLEX = dataclasses.replace(IMAGE, interpolation="pillow_bilinear")
# by size of the vocabulary: usual file, pad token, its id
TOKENIZERS = {
    32_000: ("c4_en", "</s>", 1),
    250_000: ("mc4", "</s>", 1),
    256_000: ("gemma", "<pad>", 0),
}
_BEFORE_2022 = (  # vit_jax: one counter for all modules of a block
    ("Transformer/posembed_input/pos_embedding", "pos_embedding"),
    ("MultiHeadDotProductAttention_1", "MultiHeadDotProductAttention_0"),
    ("LayerNorm_2", "LayerNorm_1"),
    ("MlpBlock_3", "MlpBlock_0"),
)


def recognise(weights: Weights) -> Weights | None:
    """The weights under the names that `rules` has; None if this is no big_vision file."""
    old = any("posembed_input" in name for name in weights)

    def rename(name: str) -> str:
        name = re.sub(r"^(params|opt/target)/", "", name)
        for before, after in _BEFORE_2022 if old else ():
            name = name.replace(before, after)
        return name

    weights = weights.renamed(rename)
    if "embedding/kernel" in weights:  # an image tower alone
        weights = weights.renamed(lambda name: f"img/{name}")
    is_ours = "img/embedding/kernel" in weights or "txt/Embed_0/embedding" in weights
    return weights if is_ours else None


def rules(
    model: ClipConfig,
    *,
    towers: tuple[str, ...] = ("image", "text"),
    has_bias: bool = True,
    scanned: tuple[str, ...] = (),
    old: bool = False,
) -> list[Rule]:
    """The table.

    Args:
      has_bias: of the logits; two_towers has none where its loss is the softmax.
      scanned: the towers whose blocks are scanned.
      old: the class token is in the table of positions, too.
    """
    found = []
    if len(towers) == 2:
        found = [shaped("logit_scale", "t", 0, 1)]
        found += [shaped("logit_bias", "b", 0, 1)] if has_bias else []
    if "image" in towers:
        assert isinstance(model.image, ViTConfig)
        positions = [shaped("position_embedding", "pos_embedding", 2, 3)]
        if model.image.pool == "class_token":
            positions.append(shaped("class_token", "cls", 1, 3))
        if old:
            positions = [batched(class_and_positions("cls", "pos_embedding"))]
        image = [
            _patches(model.image.patch_size, model.image.naflex),
            *_dense_bias("patch_embedding", "embedding"),
        ]
        image += _grid_positions() if model.image.naflex else positions
        image += _norm("final_norm", "Transformer/encoder_norm")
        image += _blocks("Transformer", model.image.transformer.num_heads, "image" in scanned)
        if model.image.pool == "map":
            image += prefix(_map_head(model.image.transformer.num_heads), "map_head/", "MAPHead_0/")
        found += prefix(image, "image/", "img/")
        if model.image_projection:
            found += [same("image/projection/kernel", "img/head/kernel")]
            found += _dense_bias("image/projection", "img/head")
    if "text" in towers:
        text = [same("token_embedding/embedding", "Embed_0/embedding")]
        text += [shaped("position_embedding", "pos_embedding", 2, 3)]
        text += _norm("final_norm", "Encoder_0/encoder_norm")
        text += _blocks("Encoder_0", model.text.transformer.num_heads, "text" in scanned)
        if model.text_projection != "none":
            text += [same("projection/kernel", "head/kernel")]
            text += [same("projection/bias", "head/bias")]
        found += prefix(text, "text/", "txt/")
    return found


def _patches(P: int, is_flat: bool) -> Rule:
    theirs = "embedding/kernel"
    if is_flat:
        return same("patch_embedding/kernel", theirs)
    return Rule(
        ("patch_embedding/kernel",),
        (theirs,),
        lambda kernel: (kernel.reshape(-1, kernel.shape[-1]),),
        lambda kernel: (kernel.reshape(P, P, 3, -1),),
    )


def _grid_positions() -> list[Rule]:
    """NaFlex: a table [rows, columns, D]."""

    def write(table):
        side = math.isqrt(table.shape[0])
        return (table.reshape(side, side, -1),)

    ours, theirs = ("position_embedding",), ("pos_embedding",)
    return [Rule(ours, theirs, lambda table: (table.reshape(-1, table.shape[-1]),), write)]


def _norm(ours: str, theirs: str) -> list[Rule]:
    return [same(f"{ours}/{leaf}", f"{theirs}/{leaf}") for leaf in ("scale", "bias")]


def _dense_bias(ours: str, theirs: str) -> list[Rule]:
    return [same(f"{ours}/bias", f"{theirs}/bias")]


def _dense(ours: str, theirs: str) -> list[Rule]:
    return [same(f"{ours}/{leaf}", f"{theirs}/{leaf}") for leaf in ("kernel", "bias")]


def _attention(N: int) -> list[Rule]:
    """Works with and without a leading axis of blocks."""

    def merge(x):
        return (x.reshape(*x.shape[:-2], -1),)

    def split(x):
        return (x.reshape(*x.shape[:-1], N, -1),)

    def merge_rows(x):
        return (x.reshape(*x.shape[:-3], -1, x.shape[-1]),)

    def split_rows(x):
        return (x.reshape(*x.shape[:-2], N, -1, x.shape[-1]),)

    rules = [
        Rule((f"attention/{name}/{leaf}",), (f"{name}/{leaf}",), merge, split)
        for name in ("query", "key", "value")
        for leaf in ("kernel", "bias")
    ]
    rules += [Rule(("attention/out/kernel",), ("out/kernel",), merge_rows, split_rows)]
    rules += [same("attention/out/bias", "out/bias")]
    return prefix(rules, "", "MultiHeadDotProductAttention_0/")


def _mlp() -> list[Rule]:
    return prefix(_dense("mlp/up", "Dense_0") + _dense("mlp/down", "Dense_1"), "", "MlpBlock_0/")


def _blocks(encoder: str, N: int, is_scanned: bool) -> list[Rule]:
    rules = _norm("norm1", "LayerNorm_0") + _norm("norm2", "LayerNorm_1")
    block = "encoderblock" if is_scanned else "encoderblock_{i}"
    return prefix(rules + _attention(N) + _mlp(), "transformer/blocks/", f"{encoder}/{block}/")


def _map_head(N: int) -> list[Rule]:
    return [same("probe", "probe"), *_norm("norm", "LayerNorm_0"), *_attention(N), *_mlp()]


def describe(weights: Weights, folder: Path | None, file_name: str = "") -> Family:
    """All from the tensors' shapes: the format has no config.

    Args:
      weights: from `recognise`.
      folder: where a tokenizer may lie.
    """
    towers = tuple(
        tower
        for tower, name in (("image", "img/embedding/kernel"), ("text", "txt/Embed_0/embedding"))
        if name in weights
    )
    scanned = tuple(
        tower
        for tower, encoder in (("image", "img/Transformer"), ("text", "txt/Encoder_0"))
        if f"{encoder}/encoderblock/LayerNorm_0/scale" in weights
    )
    fields: dict[str, Any] = {}
    image, old = IMAGE, False
    if "image" in towers:
        fields["image"], size, old = _describe_image(weights, "image" in scanned)
        P = fields["image"].patch_size if fields["image"].naflex else 0
        image = dataclasses.replace(NAFLEX if P else IMAGE, size=size, naflex_patch_size=P)
        fields["image_projection"] = (
            "txt/Embed_0/embedding" in weights and "img/head/kernel" in weights
        )
        fields["image_projection_bias"] = fields["image_projection"]
        fields["embed_dim"] = fields["image"].transformer.width
    tokenizer, vocab_size, pad_id = TokenizerConfig(), 1, 0
    if "text" in towers:
        fields["text"] = _describe_text(weights, "text" in scanned)
        fields["text_projection"] = "linear" if "txt/head/kernel" in weights else "none"
        fields["projection_bias"] = "txt/head/bias" in weights
        fields["embed_dim"] = fields["text"].transformer.width
        if "txt/head/kernel" in weights:
            fields["embed_dim"] = weights.shape("txt/head/kernel")[1]
        vocab_size = weights.shape("txt/Embed_0/embedding")[0]
        _, pad, pad_id = TOKENIZERS.get(vocab_size, ("", "auto", 1))
        tokenizer = TokenizerConfig(
            path=first_existing(folder, "spiece.model", "tokenizer.model", "sentencepiece.model"),
            kind="sentencepiece",
            context_length=weights.shape("txt/pos_embedding")[1],
            pad=pad,
        )
    has_bias = "b" in weights
    if has_bias:
        fields |= {"init_temperature": 0.1, "init_logit_bias": -10.0}
    model = ClipConfig(**fields, dtype="float32")
    return Family(
        name="big_vision",
        model=model,
        image=image,
        tokenizer=tokenizer,
        vocab_size=vocab_size,
        pad_id=pad_id,
        eos_id=1,
        weights=weights,
        rules=rules(model, towers=towers, has_bias=has_bias, scanned=scanned, old=old),
        towers=towers,
        assumed=_unusual(fields, towers, has_bias),
    )


def _unusual(fields: dict[str, Any], towers: tuple[str, ...], has_bias: bool) -> list[str]:
    """What no published SigLIP is, and a file that lacks tensors would look like."""
    usual = {width: depth for width, depth, _, _ in SIZES.values()}
    lines = []
    for tower in towers:
        t = fields[tower].transformer
        if t.depth != usual.get(t.width, t.depth):
            lines.append(
                f"{t.depth} blocks in the {tower} tower; {usual[t.width]} are usual of its width"
            )
    if "image" in towers and fields["image"].pool == "mean":
        lines.append("mean pooling of the image tower: it has neither MAPHead_0 nor cls")
    if "text" in towers and fields["text_projection"] == "none":
        lines.append("no projection of the text tower: it has no head")
    if len(towers) == 2 and not has_bias:
        lines.append("trained with the softmax loss, which has no logit bias: it has no b")
    return lines


def _describe_image(weights: Weights, is_scanned: bool) -> tuple[ViTConfig, int, bool]:
    """The tower, the size of its images, and whether the table of positions has the class token."""
    kernel = weights.shape("img/embedding/kernel")
    is_naflex = len(kernel) == 2
    patch_size = math.isqrt(kernel[0] // 3) if is_naflex else kernel[0]
    positions = math.prod(weights.shape("img/pos_embedding")[:-1])
    old = math.isqrt(positions) ** 2 != positions
    has_map_head = any(name.startswith("img/MAPHead_0/") for name in weights)
    pool = "map" if has_map_head else "class_token" if "img/cls" in weights else "mean"
    tower = ViTConfig(
        patch_size=patch_size,
        transformer=_transformer(weights, "img/Transformer", is_scanned),
        pool=pool,
        pre_norm=False,
        patch_bias=True,
        naflex=is_naflex,
    )
    return tower, patch_size * math.isqrt(positions), old


def _describe_text(weights: Weights, is_scanned: bool) -> TextConfig:
    t = _transformer(weights, "txt/Encoder_0", is_scanned)
    return siglip_text(t.width, t.depth, t.num_heads, t.mlp_width)


def _transformer(weights: Weights, encoder: str, is_scanned: bool) -> TransformerConfig:
    block = "encoderblock" if is_scanned else "encoderblock_0"
    D, N, _ = weights.shape(
        f"{encoder}/{block}/MultiHeadDotProductAttention_0/query/kernel"
    )[-3:]  # fmt: skip
    scale = weights.shape(f"{encoder}/{block}/LayerNorm_0/scale")
    hidden = weights.shape(f"{encoder}/{block}/MlpBlock_0/Dense_0/kernel")[-1]
    return TransformerConfig(
        width=D,
        depth=scale[0] if is_scanned else block_count(weights, f"{encoder}/encoderblock_"),
        num_heads=N,
        mlp_width=0 if hidden == 4 * D else hidden,
        activation="gelu_tanh",
        norm_epsilon=1e-6,
    )
