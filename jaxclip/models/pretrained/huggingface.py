"""Hugging Face folders: CLIP, SigLIP, SigLIP 2 (fixed and NaFlex), and ViT and BERT as one tower.

`describe` reads config.json (whose fields that equal a class's defaults are left out), `config` and
`preprocessor` write it. Checked against transformers 5.23.
"""

import dataclasses
import re
from pathlib import Path
from typing import Any

from jaxclip.data.image import ImageConfig
from jaxclip.data.text import TokenizerConfig
from jaxclip.models.bert import BertConfig
from jaxclip.models.clip import ClipConfig
from jaxclip.models.layers import TransformerConfig
from jaxclip.models.pretrained.family import (
    CLIP_IMAGE,
    SIGLIP_IMAGE,
    Family,
    first_existing,
    lookup,
    special_tokens,
)
from jaxclip.models.pretrained.files import Weights, read_json
from jaxclip.models.pretrained.huggingface_table import BERT, VIT, rules
from jaxclip.models.pretrained.table import prefix
from jaxclip.models.text import TextConfig
from jaxclip.models.vit import ViTConfig

ACTIVATIONS = {
    "gelu": "gelu",
    "quick_gelu": "quick_gelu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
}
INTERPOLATIONS = {3: "pillow_bicubic", 2: "pillow_bilinear"}  # PIL.Image.Resampling
TWO_TOWERS = ("clip", "siglip", "siglip2")


def recognise(weights: Weights) -> Weights | None:
    """The weights under the names of a bare model: without "bert.", "vit.", "model."."""
    bases = ("embeddings.word_embeddings.weight", "embeddings.patch_embeddings.projection.weight",
             "vision_model.embeddings.patch_embedding.weight",
             "text_model.embeddings.token_embedding.weight")  # fmt: skip
    for base in bases:
        for name in weights:
            start = name.removesuffix(base)
            if name.endswith(base) and re.fullmatch(r"(\w+\.)?", start):
                # old files call the scale and bias of a norm gamma and beta
                return weights.renamed(
                    lambda n, start=start: re.sub(
                        r"\.(gamma|beta)$",
                        lambda m: {".gamma": ".weight", ".beta": ".bias"}[m[0]],
                        n.removeprefix(start),
                    )
                )
    return None


def describe(weights: Weights, folder: Path | None) -> Family:
    """Raises ValueError for a model_type that is not in the first line of this file."""
    if not folder or not (folder / "config.json").exists():
        raise ValueError(
            "it has Hugging Face's names, so it needs the config.json of its folder. Name the "
            "folder that has both."
        )
    config = read_json(folder / "config.json")
    kinds = {"clip": _describe_two, "siglip": _describe_two, "siglip2": _describe_two,
             "bert": _describe_bert, "vit": _describe_vit}  # fmt: skip
    kind = str(config.get("model_type", "")).removesuffix("_vision_model").removesuffix(
        "_text_model"
    )  # fmt: skip
    return lookup({"model_type": kind}, "model_type", "", kinds)(weights, folder, config, kind)


def _transformer(config: dict[str, Any], weights: Weights, block: str, up: str, **defaults: Any):
    """Sizes from the tensors; heads, activation and epsilon from the config."""
    pattern = re.compile(re.escape(block).replace(r"\{i\}", r"(\d+)") + re.escape(up))
    depth = len({m[1] for name in weights if (m := pattern.fullmatch(name))})
    hidden, width = weights.shape(block.replace("{i}", "0") + up)
    return TransformerConfig(
        width=width,
        depth=depth,
        num_heads=config.get("num_attention_heads", defaults["heads"]),
        mlp_width=0 if hidden == 4 * width else hidden,
        activation=lookup(config, "hidden_act", defaults["act"], ACTIVATIONS),
        norm_epsilon=config.get("layer_norm_eps", defaults["eps"]),
    )


def _describe_two(weights: Weights, folder: Path, config: dict[str, Any], kind: str) -> Family:
    towers = tuple(
        tower
        for tower, start in (("image", "vision_model."), ("text", "text_model."))
        if any(name.startswith(start) for name in weights)
    )
    is_clip = kind == "clip"
    text = config.get("text_config") or (config if "text" in towers else {})
    vision = config.get("vision_config") or (config if "image" in towers else {})
    act, eps = ("quick_gelu", 1e-5) if is_clip else ("gelu_pytorch_tanh", 1e-6)
    fields: dict[str, Any] = {"image_projection": is_clip and "visual_projection.weight" in weights}
    image, vocab_size = CLIP_IMAGE if is_clip else SIGLIP_IMAGE, 1
    if "image" in towers:
        t = _transformer(vision, weights, "vision_model.encoder.layers.{i}.", "mlp.fc1.weight",
                         heads=12, act=act, eps=eps)  # fmt: skip
        fields["image"], size = _describe_image(weights, vision, t, is_clip)
        image = read_preprocessor(folder, dataclasses.replace(image, size=size))
        fields["embed_dim"] = t.width
    if "text" in towers:
        t = _transformer(text, weights, "text_model.encoder.layers.{i}.", "mlp.fc1.weight",
                         heads=8 if is_clip else 12, act=act, eps=eps)  # fmt: skip
        head = "text_projection" if is_clip else "text_model.head"
        is_projected = f"{head}.weight" in weights
        fields["text"] = (
            TextConfig(transformer=t)
            if is_clip
            else TextConfig(transformer=t, is_causal=False, pool="last")
        )
        fields["text_projection"] = "linear" if is_projected else "none"
        fields["projection_bias"] = f"{head}.bias" in weights
        fields["embed_dim"] = weights.shape(f"{head}.weight")[0] if is_projected else t.width
        vocab_size = weights.shape("text_model.embeddings.token_embedding.weight")[0]
    start: dict[str, Any] = {} if is_clip else {"init_temperature": 0.1, "init_logit_bias": -10.0}
    model = ClipConfig(**fields, **start, dtype="float32")
    eos_id = text.get("eos_token_id", 49_407 if is_clip else 1)
    return Family(
        name=f"Hugging Face {kind}",
        model=model,
        image=image,
        tokenizer=_tokenizer(weights, folder, is_clip, vocab_size) if "text" in towers
        else TokenizerConfig(),
        vocab_size=vocab_size,
        pad_id=0 if is_clip or vocab_size == 256_000 else 1,
        eos_id=vocab_size - 1 if is_clip and eos_id == 2 else eos_id,  # 2: before the fix, argmax
        weights=weights,
        rules=rules(model, towers),
        towers=towers,
    )  # fmt: skip


def _describe_image(
    weights: Weights, config: dict[str, Any], t: TransformerConfig, is_clip: bool
) -> tuple[ViTConfig, int]:
    kernel = weights.shape("vision_model.embeddings.patch_embedding.weight")
    is_naflex = len(kernel) == 2
    patch_size = config.get("patch_size", 16) if is_naflex else kernel[-1]
    positions = weights.shape("vision_model.embeddings.position_embedding.weight")[0] - is_clip
    tower = ViTConfig(
        patch_size=patch_size,
        transformer=t,
        pool="class_token" if is_clip else "map",
        pre_norm=is_clip,
        patch_bias=not is_clip,
        naflex=is_naflex,
    )
    return tower, patch_size * round(positions**0.5)


def _tokenizer(weights: Weights, folder: Path, is_clip: bool, vocab_size: int) -> TokenizerConfig:
    length = weights.shape("text_model.embeddings.position_embedding.weight")[0]
    if is_clip:
        path = first_existing(folder, "tokenizer.json", "bpe_simple_vocab_16e6.txt.gz")
        special = {"pad": "<|endoftext|>"} | special_tokens(folder)
        return TokenizerConfig(
            path=path, context_length=length, **(special if path.endswith(".json") else {})
        )
    spiece = first_existing(folder, "spiece.model", "tokenizer.model")
    is_gemma = vocab_size == 256_000
    if not spiece and (path := first_existing(folder, "tokenizer.json")):
        special = {"eos": "<eos>", "pad": "<pad>"} if is_gemma else {"eos": "</s>", "pad": "</s>"}
        return TokenizerConfig(
            path=path, context_length=length, bos="", clean="lower_ascii", **special
        )
    pad = "<pad>" if is_gemma else "</s>"
    return TokenizerConfig(path=spiece, kind="sentencepiece", context_length=length, pad=pad)


def _describe_bert(weights: Weights, folder: Path, config: dict[str, Any], kind: str) -> Family:
    text, vocab_size = bert_tower(weights, config, folder=folder)
    return Family(
        name="Hugging Face bert",
        model=ClipConfig(
            text=text, embed_dim=text.transformer.width, text_projection="none", dtype="float32"
        ),
        tokenizer=bert_tokenizer(folder, min(256, text.max_positions)),
        vocab_size=vocab_size,
        pad_id=config.get("pad_token_id", 0),
        eos_id=-1,  # BERT's end is not looked at
        weights=weights,
        rules=prefix(BERT, "text/", ""),
        towers=("text",),
    )


def bert_tower(
    weights: Weights, config: dict[str, Any], start: str = "", folder: Path | None = None
) -> tuple[BertConfig, int]:
    """The tower and the size of its vocabulary; names begin with `start`."""
    embeddings = f"{start}embeddings."
    t = _transformer(config, weights, f"{start}encoder.layer.{{i}}.", "intermediate.dense.weight",
                     heads=12, act="gelu", eps=1e-12)  # fmt: skip
    tower = BertConfig(
        transformer=t,
        max_positions=weights.shape(f"{embeddings}position_embeddings.weight")[0],
        token_types=weights.shape(f"{embeddings}token_type_embeddings.weight")[0],
    )
    pooling = first_existing(folder, "1_Pooling/config.json")
    if pooling and read_json(Path(pooling)).get("pooling_mode_mean_tokens"):
        tower.pool = "mean"  # sentence-transformers
    return tower, weights.shape(f"{embeddings}word_embeddings.weight")[0]


def bert_tokenizer(folder: Path | None, context_length: int) -> TokenizerConfig:
    sentence = first_existing(folder, "sentence_bert_config.json")
    if sentence:
        context_length = read_json(Path(sentence)).get("max_seq_length", context_length)
    path = first_existing(folder, "tokenizer.json", "vocab.txt")
    return TokenizerConfig(path=path, context_length=context_length)


def _describe_vit(weights: Weights, folder: Path, config: dict[str, Any], kind: str) -> Family:
    t = _transformer(config, weights, "encoder.layer.{i}.", "intermediate.dense.weight",
                     heads=12, act="gelu", eps=1e-12)  # fmt: skip
    patch_size = weights.shape("embeddings.patch_embeddings.projection.weight")[-1]
    positions = weights.shape("embeddings.position_embeddings")[1] - 1
    tower = ViTConfig(patch_size=patch_size, transformer=t, pre_norm=False, patch_bias=True)
    image = dataclasses.replace(
        SIGLIP_IMAGE, size=patch_size * round(positions**0.5), interpolation="pillow_bilinear"
    )
    return Family(
        name="Hugging Face vit",
        model=ClipConfig(image=tower, embed_dim=t.width, image_projection=False, dtype="float32"),
        image=read_preprocessor(folder, image),
        weights=weights,
        rules=prefix(VIT, "image/", ""),
        towers=("image",),
    )


def read_preprocessor(folder: Path, default: ImageConfig) -> ImageConfig:
    """What preprocessor_config.json says, else the default; the size is the model's own."""
    file = first_existing(folder, "preprocessor_config.json", "processor_config.json")
    if not file:
        return default
    values = read_json(Path(file))
    values = values.get("image_processor", values)
    crops = values.get("do_center_crop", "shortest_edge" in (values.get("size") or {}))
    resample = 3 if default.interpolation == "pillow_bicubic" else 2
    return dataclasses.replace(
        default,
        resize="center_crop" if crops else "squash",
        interpolation=lookup(values, "resample", resample, INTERPOLATIONS),
        mean=tuple(values.get("image_mean", default.mean)),
        std=tuple(values.get("image_std", default.std)),
    )
