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
from jaxclip.models.clip import ClipConfig
from jaxclip.models.layers import ACTIVATIONS, TransformerConfig
from jaxclip.models.pretrained.family import (
    CLIP_IMAGE,
    SIGLIP_IMAGE,
    Family,
    block_count,
    check_sizes,
    first_existing,
    lookup,
)
from jaxclip.models.pretrained.files import Weights, read_json
from jaxclip.models.pretrained.openclip_table import rules
from jaxclip.models.pretrained.openclip_text import (
    PMC_CLIP_ONLY,
    activation,
    describe_text,
    epsilon,
)
from jaxclip.models.pretrained.timm_vit import TIMM, timm_activation, timm_name, timm_sizes
from jaxclip.models.resnet import ResNetConfig
from jaxclip.models.vit import ViTConfig

INTERPOLATIONS = {"bicubic": "pillow_bicubic", "bilinear": "pillow_bilinear"}
RESIZE_MODES = {"shortest": "center_crop", "squash": "squash"}
HEADS_16 = (1024, 1152, 1280, 1408, 1536, 1664)  # widths of image towers with 16 heads; else D / 64
OPENAI_ONLY = "input_resolution"  # a number in the state dicts of OpenAI's files
# what a vision_cfg leaves out (CLIPVisionCfg)
DEFAULTS = {"layers": 12, "width": 768, "head_width": 64, "patch_size": 16, "image_size": 224}
# of vision_cfg and text_cfg: what would change the model, and is not built here
UNKNOWN_FIELDS = (
    "attentional_pool", "embed_cls", "ls_init_value", "block_type", "attn_type", "pos_embed_type",
    "final_ln_after_pool", "no_ln_pre", "timm_proj_bias",
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
    if "attnpool.positional_embedding" in weights:  # PMC-CLIP's image tower alone
        weights = weights.renamed(lambda name: f"visual.{name}")
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
    # as in the training checkpoint, and as the name of the published file
    return "text.proj" if name in ("text_projection", "text_projection_layer") else name


def describe(weights: Weights, folder: Path | None, file_name: str = "") -> Family:
    """From open_clip_config.json and the tensors' shapes; without it, OpenCLIP's conventions.

    Raises:
      ValueError: the config has a field that is not built here, or is not that of the tensors.
    """
    file = first_existing(folder, "open_clip_config.json")
    file = read_json(Path(file)) if file else {}
    config, preprocess = file.get("model_cfg", {}), file.get("preprocess_cfg", {})
    vision, text = config.get("vision_cfg"), config.get("text_cfg")
    for section, values in (("vision_cfg", vision), ("text_cfg", text)):
        for field in UNKNOWN_FIELDS:
            value = (values or {}).get(field)
            if value and value != "learnable":
                raise ValueError(f"{section}.{field} ({value!r}) is not supported.")
    if any(name.startswith("visual.attn_pool.") for name in weights):
        raise ValueError("it is a CoCa model (visual.attn_pool), which is not supported.")
    start = "text." if any(name.startswith("text.") for name in weights) else ""
    towers = ("image", "text") if "logit_scale" in weights or start or text else ("image",)
    quick_gelu, assumed = _quick_gelu(weights, config, file_name)
    fields, size, unsure = _describe_image(weights, vision, quick_gelu)
    if ours := file.get("jaxclip"):  # of what we exported: what its config has no field for
        activation_of = {name: name for name in ACTIVATIONS}
        fields["image"].transformer.activation = lookup(ours, "image_activation", "", activation_of)
    is_siglip = getattr(fields["image"], "pool", "") == "map"
    image = _preprocessing(CLIP_IMAGE if fields["image_projection"] else SIGLIP_IMAGE, preprocess)
    family: dict[str, Any] = {"image": dataclasses.replace(image, size=size)}
    if "text" in towers:
        more, described = describe_text(weights, text, start=start, quick_gelu=quick_gelu,
                                        folder=folder, is_siglip=is_siglip)  # fmt: skip
        fields, family = fields | more, family | described
    check_sizes("", config, {"embed_dim": fields["embed_dim"]})
    has_bias, is_pmc_clip = "logit_bias" in weights, PMC_CLIP_ONLY in weights
    has_scale = "logit_scale" in weights or not is_pmc_clip
    if is_pmc_clip:
        assumed += _assumed_of_pmc_clip(has_scale)
    if has_bias:
        fields |= {"init_temperature": 0.1, "init_logit_bias": -10.0}
    model = ClipConfig(**fields, dtype="float32")
    return Family(
        name="OpenCLIP",
        model=model,
        weights=weights,
        rules=rules(model, towers=towers, text_prefix=start, has_bias=has_bias,
                    has_scale=has_scale, is_pmc_clip=is_pmc_clip),
        towers=towers,
        assumed=assumed + unsure,
        **family,
    )  # fmt: skip


def _quick_gelu(weights: Weights, config: dict[str, Any], file_name: str) -> tuple[bool, list[str]]:
    """Whether OpenCLIP's own towers have QuickGELU, and what was assumed for it."""
    if config:
        return bool(config.get("quick_gelu", False)), []
    if OPENAI_ONLY in weights:
        return True, []
    if not any("transformer.resblocks." in name for name in weights):
        return False, []
    if "quickgelu" in file_name.lower():  # as OpenCLIP's files: vit_b_32-quickgelu-laion400m_e32
        return True, [f"activation quick_gelu, as the name {file_name} says"]
    return False, [
        "activation gelu: the file does not say. If it is quick_gelu, put an open_clip_config.json "
        'beside it: {"model_cfg": {"quick_gelu": true}}'
    ]


def _assumed_of_pmc_clip(has_scale: bool) -> list[str]:
    lines = [
        "texts are pooled at [CLS] of the last layer and padding is looked at, as in PMC-CLIP's "
        "training; public loaders of its files mask it, and some take BERT's pooler"
    ]
    if not has_scale:
        lines.append("logit_scale log(1 / 0.07), where training started: it was not published")
    return lines


def _preprocessing(image: ImageConfig, values: dict[str, Any]) -> ImageConfig:
    mode = "shortest" if image.resize == "center_crop" else "squash"
    return dataclasses.replace(
        image,
        resize=lookup(values, "resize_mode", mode, RESIZE_MODES),
        interpolation=lookup(values, "interpolation", "bicubic", INTERPOLATIONS),
        mean=tuple(values.get("mean", image.mean)),
        std=tuple(values.get("std", image.std)),
    )


Described = tuple[dict[str, Any], int, list[str]]  # fields of ClipConfig, image size, assumptions


def _describe_image(weights: Weights, config: dict[str, Any] | None, quick_gelu: bool) -> Described:
    """An image tower; config: vision_cfg, None if there is none."""
    if any(name.startswith("visual.layer1.") for name in weights):
        return _describe_resnet(weights, config or {})
    if any(name.startswith("visual.trunk.") for name in weights):
        return _describe_timm(weights, config)
    kernel = weights.shape("visual.conv1.weight")
    D, patch_size = kernel[0], kernel[-1]
    depth = block_count(weights, "visual.transformer.resblocks.")
    hidden = weights.shape("visual.transformer.resblocks.0.mlp.c_fc.weight")[0]
    size = patch_size * math.isqrt(weights.shape("visual.positional_embedding")[-2] - 1)
    heads, unsure = 16 if D in HEADS_16 else max(1, D // 64), []
    if config is None:
        unsure.append(f"{heads} heads and {depth} blocks of the image tower: there is no config")
    else:
        config = DEFAULTS | config
        found = {"width": D, "layers": depth, "patch_size": patch_size, "image_size": size}
        check_sizes("vision_cfg.", config, found)
        heads = D // config["head_width"]
    transformer = TransformerConfig(
        width=D,
        depth=depth,
        num_heads=heads,
        mlp_width=0 if hidden == 4 * D else hidden,
        activation=activation(config or {}, quick_gelu),
        norm_epsilon=epsilon(config or {}),
    )
    fields = {"image": ViTConfig(patch_size=patch_size, transformer=transformer),
              "image_projection": True, "embed_dim": weights.shape("visual.proj")[1]}  # fmt: skip
    return fields, size, unsure


def _describe_timm(weights: Weights, config: dict[str, Any] | None) -> Described:
    """A ViT of timm: its name fixes its sizes, and its activation."""
    kernel = weights.shape("visual.trunk.patch_embed.proj.weight")
    D, patch_size = kernel[0], kernel[-1]
    depth = block_count(weights, "visual.trunk.blocks.")
    hidden = weights.shape("visual.trunk.blocks.0.mlp.fc1.weight")[0]
    is_map = any(name.startswith("visual.trunk.attn_pool.") for name in weights)
    pool = "map" if is_map else "class_token"
    size = patch_size * math.isqrt(weights.shape("visual.trunk.pos_embed")[-2] - (not is_map))
    usual = timm_name(pool, D, depth, patch_size, size)
    name = (config or {}).get("timm_model_name", usual)
    if (said := timm_sizes(name)) and said != (pool, D, depth):
        raise ValueError(
            f"vision_cfg.timm_model_name is {name} in the config, whose pool, width and depth are "
            f"{said}, and the weights have {(pool, D, depth)}. They are incomplete, or not those "
            "of this config."
        )
    kind = TIMM.get((pool, D, depth))
    unsure = (
        [] if said else [f"activation gelu and {depth} blocks: no ViT of timm known here is so"]
    )
    transformer = TransformerConfig(
        width=D,
        depth=depth,
        num_heads=kind.num_heads if kind else max(1, D // 64),
        mlp_width=0 if hidden == 4 * D else hidden,
        activation=timm_activation(name),
        norm_epsilon=1e-6,
    )
    tower = ViTConfig(patch_size=patch_size, transformer=transformer, pool=pool, pre_norm=False,
                      patch_bias=True)  # fmt: skip
    is_projected = "visual.head.proj.weight" in weights
    if config is not None:
        lookup(config, "timm_pool", "avg", {"map": None} if is_map else {"": None, "token": None})
        kinds = {"linear": True, "none": False, "": False}
        is_projected = lookup(config, "timm_proj", "linear", kinds)
    embed_dim = weights.shape("visual.head.proj.weight")[0] if is_projected else D
    fields = {"image": tower, "image_projection": is_projected, "embed_dim": embed_dim}
    return fields, size, unsure


def _describe_resnet(weights: Weights, config: dict[str, Any]) -> Described:
    stages = []
    while depth := block_count(weights, f"visual.layer{len(stages) + 1}."):
        stages.append(depth)
    tower = ResNetConfig(stages=tuple(stages), stem_width=weights.shape("visual.conv3.weight")[0])
    tower.num_heads = max(1, tower.width // config.get("head_width", 64))
    unsure = [] if config else [
        f"{tower.num_heads} heads of the attention pool: there is no config. Public loaders of "
        "PMC-CLIP's files take 8, its training code 32. For other heads put an "
        'open_clip_config.json beside it: {"model_cfg": {"vision_cfg": {"head_width": '
        f"{tower.width // 8}}}}}}}"
    ]  # fmt: skip
    positions = weights.shape("visual.attnpool.positional_embedding")[0] - 1
    size = tower.stride * math.isqrt(positions)
    found = {"layers": stages, "width": tower.stem_width, "image_size": size}
    check_sizes("vision_cfg.", config, found)
    embed_dim = weights.shape("visual.attnpool.c_proj.weight")[0]
    return {"image": tower, "image_projection": True, "embed_dim": embed_dim}, size, unsure
