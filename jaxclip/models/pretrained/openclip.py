"""OpenCLIP: its own, timm's (SigLIP, BiomedCLIP) and OpenAI's image towers; its own text, BERT.

Also what is built of the same parts: mmlearn's Lightning checkpoints (Open-PMC), PMC-CLIP, and a
timm ViT alone. Checked against open_clip 3.3 and timm 1.0.31.
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
from jaxclip.models.pretrained.family import (
    CLIP_IMAGE,
    SIGLIP_IMAGE,
    Family,
    first_existing,
    lookup,
    special_tokens,
)
from jaxclip.models.pretrained.files import Weights, read_json
from jaxclip.models.pretrained.huggingface import bert_tokenizer, bert_tower
from jaxclip.models.pretrained.openclip_table import rules
from jaxclip.models.resnet import ResNetConfig
from jaxclip.models.text import TextConfig
from jaxclip.models.vit import ViTConfig

INTERPOLATIONS = {"bicubic": "pillow_bicubic", "bilinear": "pillow_bilinear"}
RESIZE_MODES = {"shortest": "center_crop", "squash": "squash"}
HEADS_16 = (1024, 1152, 1280, 1408, 1536, 1664)  # widths of image towers with 16 heads; else D / 64
PMC_CLIP_ONLY = "img_special_token"
# of vision_cfg and text_cfg: what would change the model, and is not built here
UNKNOWN_FIELDS = (
    "attentional_pool", "embed_cls", "ls_init_value", "block_type", "attn_type", "pos_embed_type",
    "final_ln_after_pool", "no_ln_pre",
)  # fmt: skip


_MMLEARN = (  # ContrastivePretraining of mmlearn with Open-PMC's encoders
    (r"encoders\.rgb\.model\.", "visual."),
    (r"encoders\.text\.model\.", "text."),
    (r"postprocessors\..*\.log_logit_scale$", "logit_scale"),
)


def recognise(weights: Weights) -> Weights | None:
    """The weights under OpenCLIP's names; None if these are others."""
    if all(name.startswith("module.") for name in weights):  # of DistributedDataParallel
        weights = weights.renamed(lambda name: name.removeprefix("module."))
    if any(re.match(_MMLEARN[0][0], name) for name in weights):
        weights = weights.renamed(_from_mmlearn)
    if any(name.startswith("text_encoder.") for name in weights):
        weights = weights.renamed(_from_pmc_clip)
    if "patch_embed.proj.weight" in weights and "blocks.0.attn.qkv.weight" in weights:
        weights = weights.renamed(lambda name: f"visual.trunk.{name}")
    known = ("visual.conv1.weight", "visual.trunk.patch_embed.proj.weight")
    return weights if any(name in weights for name in known) else None


def _from_mmlearn(name: str) -> str | None:
    for pattern, replacement in _MMLEARN:
        if match := re.match(pattern, name):
            return replacement + name[match.end() :]
    return name


def _from_pmc_clip(name: str) -> str | None:
    """PMC-CLIP: its masked language model and fusion module are no part of a dual encoder."""
    name = re.sub(r"^text_encoder\.", "text.transformer.", name)
    return "text.proj" if name == "text_projection" else name


def describe(weights: Weights, folder: Path | None) -> Family:
    """From open_clip_config.json and the tensors' shapes; without it, OpenCLIP's conventions.

    Raises:
      ValueError: the config has a field that is not built here.
    """
    file = first_existing(folder, "open_clip_config.json")
    config = read_json(Path(file)) if file else {}
    model_config, preprocess = config.get("model_cfg", {}), config.get("preprocess_cfg", {})
    vision, text = model_config.get("vision_cfg", {}), model_config.get("text_cfg", {})
    for section, values in (("vision_cfg", vision), ("text_cfg", text)):
        for field in UNKNOWN_FIELDS:
            if values.get(field) and values[field] != "learnable":
                raise ValueError(f"{section}.{field} ({values[field]!r}) is not supported.")
    if any(name.startswith("visual.attn_pool.") for name in weights):
        raise ValueError("it is a CoCa model (visual.attn_pool), which is not supported.")
    text_prefix = "text." if any(name.startswith("text.") for name in weights) else ""
    towers = ("image", "text") if "logit_scale" in weights or text_prefix else ("image",)
    quick_gelu = bool(model_config.get("quick_gelu", "quickgelu" in str(folder).lower()))
    fields, size = _describe_image(weights, vision, quick_gelu)
    image = SIGLIP_IMAGE if not fields["image_projection"] else CLIP_IMAGE
    family: dict[str, Any] = {"image": _preprocessing(image, size, preprocess)}
    if "text" in towers:
        bert = config.get("bert_config", {})  # in what we export
        more, described = _describe_text(weights, text, text_prefix, quick_gelu, folder, bert)
        fields, family = fields | more, family | described
    has_bias = "logit_bias" in weights
    start: dict[str, Any] = {"init_temperature": 0.1, "init_logit_bias": -10.0} if has_bias else {}
    model = ClipConfig(**fields, **start, dtype="float32")
    said = ["activation gelu and heads of width 64: the file does not say"] if not config else []
    return Family(
        name="OpenCLIP",
        model=model,
        weights=weights,
        rules=rules(
            model,
            towers=towers,
            text_prefix=text_prefix,
            has_bias=has_bias,
            is_pmc_clip=PMC_CLIP_ONLY in weights,
        ),
        towers=towers,
        assumed=said,
        **family,
    )


def _preprocessing(image: ImageConfig, size: int, values: dict[str, Any]) -> ImageConfig:
    mode = "shortest" if image.resize == "center_crop" else "squash"
    return dataclasses.replace(
        image,
        size=size,
        resize=lookup(values, "resize_mode", mode, RESIZE_MODES),
        interpolation=lookup(values, "interpolation", "bicubic", INTERPOLATIONS),
        mean=tuple(values.get("mean", image.mean)),
        std=tuple(values.get("std", image.std)),
    )


def _depth(weights: Weights, start: str) -> int:
    """Number of blocks whose names are `start` and a number."""
    pattern = re.compile(re.escape(start) + r"\.(\d+)\.")
    return len({m[1] for name in weights if (m := pattern.match(name))})


def _describe_image(
    weights: Weights, vision: dict[str, Any], quick_gelu: bool
) -> tuple[dict[str, Any], int]:
    """Fields of ClipConfig, and the size of images."""
    if "visual.layer1.0.conv1.weight" in weights:
        return _describe_resnet(weights)
    is_timm = "visual.trunk.patch_embed.proj.weight" in weights
    start = "visual.trunk." if is_timm else "visual."
    kernel = weights.shape(f"{start}{'patch_embed.proj' if is_timm else 'conv1'}.weight")
    block = "blocks" if is_timm else "transformer.resblocks"
    D, patch_size = kernel[0], kernel[-1]
    hidden = weights.shape(f"{start}{block}.0.mlp.{'fc1' if is_timm else 'c_fc'}.weight")[0]
    is_map = "visual.trunk.attn_pool.latent" in weights
    heads = 16 if D in HEADS_16 else max(1, D // 64)
    if "head_width" in vision:
        heads = D // vision["head_width"]
    eps = 1e-6 if is_timm else vision.get("norm_kwargs", {}).get("eps", 1e-5)
    transformer = TransformerConfig(
        width=D,
        depth=_depth(weights, start + block),
        num_heads=heads,
        mlp_width=0 if hidden == 4 * D else hidden,
        activation=_activation(vision, quick_gelu and not is_timm),
        norm_epsilon=eps,
    )
    name = f"{start}{'pos_embed' if is_timm else 'positional_embedding'}"
    positions = weights.shape(name)[-2] - (not is_map)
    tower = ViTConfig(
        patch_size=patch_size,
        transformer=transformer,
        pool="map" if is_map else "class_token",
        pre_norm=not is_timm,
        patch_bias=is_timm,
    )
    proj = "visual.proj" if not is_timm else "visual.head.proj.weight"
    fields = {"image": tower, "image_projection": proj in weights, "embed_dim": D}
    if proj in weights:
        fields["embed_dim"] = weights.shape(proj)[0 if is_timm else 1]
    return fields, patch_size * math.isqrt(positions)


def _describe_resnet(weights: Weights) -> tuple[dict[str, Any], int]:
    stages = []
    while depth := _depth(weights, f"visual.layer{len(stages) + 1}"):
        stages.append(depth)
    tower = ResNetConfig(stages=tuple(stages), stem_width=weights.shape("visual.conv3.weight")[0])
    tower.num_heads = max(1, tower.width // 64)
    positions = weights.shape("visual.attnpool.positional_embedding")[0] - 1
    embed_dim = weights.shape("visual.attnpool.c_proj.weight")[0]
    fields = {"image": tower, "image_projection": True, "embed_dim": embed_dim}
    return fields, tower.stride * math.isqrt(positions)


def _activation(values: dict[str, Any], quick_gelu: bool) -> str:
    is_tanh = values.get("act_kwargs", {}).get("approximate") == "tanh"
    return "quick_gelu" if quick_gelu else "gelu_tanh" if is_tanh else "gelu"


def _describe_text(
    weights: Weights,
    text: dict[str, Any],
    start: str,
    quick_gelu: bool,
    folder: Path | None,
    bert: dict[str, Any],
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Fields of ClipConfig, and of Family."""
    if f"{start}transformer.embeddings.word_embeddings.weight" in weights:
        return _describe_bert(weights, text, start, folder, bert)
    length, D = weights.shape(f"{start}positional_embedding")
    hidden = weights.shape(f"{start}transformer.resblocks.0.mlp.c_fc.weight")[0]
    is_siglip = text.get("no_causal_mask", "logit_bias" in weights)
    transformer = TransformerConfig(
        width=D,
        depth=_depth(weights, f"{start}transformer.resblocks"),
        num_heads=text.get("heads", max(1, D // 64)),
        mlp_width=0 if hidden == 4 * D else hidden,
        activation=_activation(text, quick_gelu),
        norm_epsilon=text.get("norm_kwargs", {}).get("eps", 1e-6 if is_siglip else 1e-5),
    )
    pools = {"argmax": "eot", "eos": "eot", "last": "last", "first": "first"}
    pool = lookup(text, "pool_type", "last" if is_siglip else "argmax", pools)
    name = f"{start}text_projection"
    has_bias = f"{name}.bias" in weights
    vocab_size = weights.shape(f"{start}token_embedding.weight")[0]
    fields = {
        "text": TextConfig(transformer=transformer, is_causal=not is_siglip, pool=pool),
        "text_projection": "linear" if has_bias or name in weights else "none",
        "projection_bias": has_bias,
    }
    spiece = first_existing(folder, "spiece.model", "tokenizer.model")
    if is_siglip:
        is_gemma = vocab_size == 256_000
        path = spiece or first_existing(folder, "tokenizer.json")
        special = {"eos": "<eos>", "pad": "<pad>"} if is_gemma else {"eos": "</s>", "pad": "</s>"}
        # open_clip's clean=canonicalize
        tokenizer = TokenizerConfig(
            path=path, context_length=length, bos="", clean="canonical", **special
        )
        return fields, {"tokenizer": tokenizer, "vocab_size": vocab_size, "eos_id": 1,
                        "pad_id": 0 if is_gemma else 1}  # fmt: skip
    path = first_existing(folder, "bpe_simple_vocab_16e6.txt.gz", "tokenizer.json")
    special = special_tokens(folder) if path.endswith(".json") else {}
    if special and vocab_size == 49_408:
        special["pad"] = "!"  # id 0, as open_clip pads
    tokenizer = TokenizerConfig(path=path, context_length=length, **special)
    return fields, {"tokenizer": tokenizer, "vocab_size": vocab_size, "eos_id": vocab_size - 1}


def _describe_bert(
    weights: Weights,
    text: dict[str, Any],
    start: str,
    folder: Path | None,
    config: dict[str, Any],
) -> tuple[dict[str, Any], dict[str, Any]]:
    tower, vocab_size = bert_tower(
        weights, _with_heads(weights, config, start), f"{start}transformer."
    )
    is_pmc_clip = PMC_CLIP_ONLY in weights  # it gives BERT no attention mask
    tower.mask_padding = not is_pmc_clip
    poolers = {"cls_last_hidden_state_pooler": "first", "mean_pooler": "mean"}
    tower.pool = lookup(text, "hf_pooler_type", "cls_last_hidden_state_pooler", poolers)
    projection = {f"{start}proj.0.weight": "mlp", f"{start}proj.weight": "linear",
                  f"{start}proj": "linear"}  # fmt: skip
    found = [kind for name, kind in projection.items() if name in weights]
    return {"text": tower, "text_projection": found[0] if found else "none"}, {
        "tokenizer": bert_tokenizer(
            folder, min(tower.max_positions, text.get("context_length", 77 if is_pmc_clip else 256))
        ),
        "vocab_size": vocab_size,
        "pad_id": config.get("pad_token_id", 0),
        "eos_id": -1,
    }


def _with_heads(weights: Weights, config: dict[str, Any], start: str) -> dict[str, Any]:
    width = weights.shape(f"{start}transformer.embeddings.word_embeddings.weight")[1]
    return {"num_attention_heads": max(1, width // 64)} | config
