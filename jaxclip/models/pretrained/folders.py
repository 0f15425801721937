"""The files beside the weights of an exported model: configs and preprocessing.

The inverse of what huggingface.py and openclip.py read.
"""

import contextlib
from collections.abc import Callable
from typing import Any

from jaxclip.data.image import ImageConfig
from jaxclip.models.bert import BertConfig
from jaxclip.models.clip import ClipConfig, Inputs
from jaxclip.models.layers import TransformerConfig
from jaxclip.models.pretrained.huggingface_table import kind_of
from jaxclip.models.pretrained.openclip_table import image_kind
from jaxclip.models.pretrained.openclip_text import BERT_POOLS
from jaxclip.models.pretrained.timm_vit import TIMM, timm_name
from jaxclip.models.resnet import ResNetConfig
from jaxclip.models.text import TextConfig
from jaxclip.models.vit import ViTConfig

# Hugging Face's name of each activation; the last of several
HF_ACTIVATIONS = {"gelu": "gelu", "quick_gelu": "quick_gelu", "gelu_tanh": "gelu_pytorch_tanh"}


class NotRepresentable(ValueError):
    """A model that a format has no place for."""


def _require(to: str, model: ClipConfig, required: dict[str, tuple[Any, ...]]) -> None:
    """Raises NotRepresentable naming the first field of the model that is none of the allowed."""
    for path, allowed in required.items():
        value: Any = model
        for name in path.split("."):
            value = getattr(value, name, None)
        if value not in allowed:
            raise NotRepresentable(
                f"model.{path} ({value!r}) cannot be exported with --to={to}, which knows "
                f"{' and '.join(map(repr, allowed))} in such a model."
            )


def _require_class(to: str, model: ClipConfig, image: tuple, text: tuple) -> None:
    for tower, allowed in (("image", image), ("text", text)):
        kind = type(getattr(model, tower))
        if kind not in allowed:
            raise NotRepresentable(f"model.{tower} ({kind.__name__}) has no place in --to={to}.")


# --- Hugging Face ---------------------------------------------------------------------------------


def huggingface_files(
    model: ClipConfig, image: ImageConfig, inputs: Inputs
) -> dict[str, dict[str, Any]]:
    """config.json and preprocessor_config.json of a CLIPModel, SiglipModel or Siglip2Model.

    Raises:
      NotRepresentable: another model than those three can be.
    """
    _require_class("hf", model, (ViTConfig,), (TextConfig,))
    assert isinstance(model.image, ViTConfig) and isinstance(model.text, TextConfig)
    kind = kind_of(model)
    is_clip = kind == "clip"
    _require("hf", model, {
        "image.pool": ("class_token",) if is_clip else ("map",),
        "image.patch_bias": (not is_clip,),
        "image.pre_norm": (is_clip,),
        "image_projection": (is_clip,),
        "image_projection_bias": (False,),
        "text.is_causal": (is_clip,),
        "text.pool": ("eot",) if is_clip else ("last",),
        "text.mask_padding": (False,),
        "text_projection": ("linear",),
        "projection_bias": (not is_clip,),
    })  # fmt: skip
    vision = _hf_transformer(model.image.transformer) | {"patch_size": model.image.patch_size}
    if model.image.naflex:
        vision["num_patches"] = (inputs.image_size // model.image.patch_size) ** 2
    else:
        vision["image_size"] = inputs.image_size
    text = _hf_transformer(model.text.transformer) | {
        "vocab_size": inputs.vocab_size,
        "max_position_embeddings": inputs.context_length,
        "pad_token_id": inputs.pad_id,
        "eos_token_id": inputs.eos_id,
    }
    if is_clip and inputs.eos_id == 2:  # transformers takes 2 for "the largest id"
        raise NotRepresentable("eos id 2 cannot be exported with --to=hf, where it means the last.")
    config = {
        "architectures": [{"clip": "CLIPModel", "siglip": "SiglipModel"}.get(kind, "Siglip2Model")],
        "model_type": kind,
        "torch_dtype": "float32",
        "text_config": text | {"model_type": f"{kind}_text_model"},
        "vision_config": vision | {"model_type": f"{kind}_vision_model"},
    }
    if is_clip:
        config |= {"projection_dim": model.embed_dim}
        config["text_config"]["projection_dim"] = model.embed_dim
        config["vision_config"]["projection_dim"] = model.embed_dim
    else:
        config["text_config"]["projection_size"] = model.embed_dim
    return {"config.json": config, "preprocessor_config.json": _preprocessor(image, model, kind)}


def _hf_transformer(t: TransformerConfig) -> dict[str, Any]:
    return {
        "hidden_size": t.width,
        "intermediate_size": t.hidden_width,
        "num_hidden_layers": t.depth,
        "num_attention_heads": t.num_heads,
        "hidden_act": HF_ACTIVATIONS[t.activation],
        "layer_norm_eps": t.norm_epsilon,
    }


def _preprocessor(image: ImageConfig, model: ClipConfig, kind: str) -> dict[str, Any]:
    values: dict[str, Any] = {
        "do_convert_rgb": True,
        "do_resize": True,
        "resample": 2 if image.interpolation.endswith("bilinear") else 3,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(image.mean),
        "image_std": list(image.std),
    }
    side = {"height": image.size, "width": image.size}
    if kind == "siglip2":
        assert isinstance(model.image, ViTConfig)
        P = model.image.patch_size
        return values | {"image_processor_type": "Siglip2ImageProcessor", "patch_size": P,
                         "max_num_patches": (image.size // P) ** 2}  # fmt: skip
    if image.resize == "squash":
        return values | {"image_processor_type": "SiglipImageProcessor", "size": side}
    return values | {"image_processor_type": "CLIPImageProcessor", "do_center_crop": True,
                     "size": {"shortest_edge": image.size}, "crop_size": side}  # fmt: skip


# --- OpenCLIP -------------------------------------------------------------------------------------


def openclip_files(
    model: ClipConfig,
    image: ImageConfig,
    inputs: Inputs,
    is_clip_bpe: bool,
    bert: str,
    has_bias: bool,
) -> dict[str, dict[str, Any]]:
    """open_clip_config.json, and with a BERT its config.json.

    Args:
      is_clip_bpe: the vocabulary is CLIP's, which OpenCLIP has by itself.
      bert: folder or name, on the hub, where OpenCLIP finds that config.json.
    Raises:
      NotRepresentable: another model than OpenCLIP and timm have.
    """
    text: dict[str, Any] = {"context_length": inputs.context_length}
    if not is_clip_bpe:
        text["hf_tokenizer_name"] = "."  # the folder's own, as it is a local-dir
    if isinstance(model.text, BertConfig):
        _require("openclip", model, {"text.mask_padding": (True,)})
        poolers = {pool: name for name, pool in BERT_POOLS.items()}
        text |= {"hf_model_name": bert, "hf_model_pretrained": False,
                 "hf_pooler_type": poolers[model.text.pool],
                 "hf_proj_type": model.text_projection.replace("none", "") or None}  # fmt: skip
    else:
        text |= _openclip_text(model, inputs)
    vision = _openclip_vision(model, inputs)
    config: dict[str, Any] = {"embed_dim": model.embed_dim, "vision_cfg": vision, "text_cfg": text}
    if "quick_gelu" in (_activation(model, "image"), _activation(model, "text")):
        is_vit = isinstance(model.image, ViTConfig)
        _require("openclip", model, {"text.transformer.activation": ("quick_gelu",)} | (
            {"image.transformer.activation": ("quick_gelu",)} if is_vit else {}))  # fmt: skip
        config["quick_gelu"] = True
    if openclip_text_prefix(model):
        config["custom_text"] = True
    if has_bias:
        config["init_logit_bias"] = model.init_logit_bias
    preprocess = {
        "size": image.size,
        "mean": list(image.mean),
        "std": list(image.std),
        "interpolation": "bilinear" if image.interpolation.endswith("bilinear") else "bicubic",
        "resize_mode": "shortest" if image.resize == "center_crop" else "squash",
    }
    described: dict[str, Any] = {"model_cfg": config, "preprocess_cfg": preprocess}
    if image_kind(model) == "timm":  # a ViT of timm computes its name's; open_clip does not read it
        described["jaxclip"] = {"image_activation": _activation(model, "image")}
    files = {"open_clip_config.json": described}
    if isinstance(model.text, BertConfig):
        files["config.json"] = bert_config(model.text, inputs)
    return files


def openclip_text_prefix(model: ClipConfig) -> str:
    """Which of OpenCLIP's two classes: CustomTextCLIP has its text tower under "text."."""
    is_custom = image_kind(model) == "timm" or isinstance(model.text, BertConfig)
    return "text." if is_custom or model.projection_bias else ""


def bert_config(text: BertConfig, inputs: Inputs) -> dict[str, Any]:
    return _hf_transformer(text.transformer) | {
        "model_type": "bert",
        "vocab_size": inputs.vocab_size,
        "max_position_embeddings": text.max_positions,
        "type_vocab_size": text.token_types,
        "pad_token_id": inputs.pad_id,
    }


def _activation(model: ClipConfig, tower: str) -> str:
    transformer = getattr(getattr(model, tower), "transformer", None)
    return transformer.activation if transformer else ""


def _openclip_transformer(t: TransformerConfig) -> dict[str, Any]:
    values: dict[str, Any] = {"width": t.width, "layers": t.depth}
    values["mlp_ratio"] = t.hidden_width / t.width
    values["norm_kwargs"] = {"eps": t.norm_epsilon}
    if t.activation == "gelu_tanh":
        values["act_kwargs"] = {"approximate": "tanh"}
    return values


def _openclip_text(model: ClipConfig, inputs: Inputs) -> dict[str, Any]:
    assert isinstance(model.text, TextConfig)
    _require("openclip", model, {"text.mask_padding": (False,), "text_projection": ("linear",),
                                 "text.pool": ("eot", "last", "first")})  # fmt: skip
    text, t = model.text, model.text.transformer
    is_largest = inputs.eos_id == inputs.vocab_size - 1
    pool = {"eot": "argmax" if is_largest else "eos"}.get(text.pool, text.pool)
    return _openclip_transformer(t) | {
        "vocab_size": inputs.vocab_size,
        "heads": t.num_heads,
        "no_causal_mask": not text.is_causal,
        "pool_type": pool,
        "proj_bias": model.projection_bias,
        "eos_id": inputs.eos_id,
        "pad_id": inputs.pad_id,
    }


def _openclip_vision(model: ClipConfig, inputs: Inputs) -> dict[str, Any]:
    tower = model.image
    _require("openclip", model, {"image_projection_bias": (False,)})
    if isinstance(tower, ResNetConfig):
        _require("openclip", model, {"image_projection": (True,), "image.norm": ("frozen_batch",)})
        return {"image_size": inputs.image_size, "layers": list(tower.stages),
                "width": tower.stem_width, "head_width": tower.width // tower.num_heads,
                "patch_size": None}  # fmt: skip
    _require("openclip", model, {"image.naflex": (False,)})
    t = tower.transformer
    if tower.pre_norm:
        _require("openclip", model, {"image.pool": ("class_token",), "image.patch_bias": (False,),
                                     "image_projection": (True,)})  # fmt: skip
        return _openclip_transformer(t) | {"image_size": inputs.image_size,
                                           "head_width": t.width // t.num_heads,
                                           "patch_size": tower.patch_size}  # fmt: skip
    _require("openclip", model, {
        "image.pool": ("map", "class_token"), "image.patch_bias": (True,),
        "image.transformer.norm_epsilon": (1e-6,),
        "image.transformer.activation": ("gelu", "gelu_tanh"),
        "image_projection": (tower.pool == "class_token",),
    })  # fmt: skip
    name = timm_name(tower.pool, t.width, t.depth, tower.patch_size, inputs.image_size)
    kind = TIMM.get((tower.pool, t.width, t.depth))
    if not name or not kind or (kind.num_heads, kind.mlp_width) != (t.num_heads, t.hidden_width):
        raise NotRepresentable(
            f"model.image (width {t.width}, depth {t.depth}, {t.num_heads} heads, patch size "
            f"{tower.patch_size}, image size {inputs.image_size}, pool {tower.pool!r}) cannot be "
            "exported with --to=openclip: timm has no such ViT."
        )
    is_map = tower.pool == "map"
    return {
        "image_size": inputs.image_size,
        "timm_model_name": name,
        "timm_model_pretrained": False,
        "timm_pool": "map" if is_map else "",
        "timm_proj": "none" if is_map else "linear",
    }


# --- big_vision -----------------------------------------------------------------------------------


def check_big_vision(model: ClipConfig) -> None:
    """Raises NotRepresentable for what models/vit.py and text_transformer.py cannot be."""
    _require_class("big_vision", model, (ViTConfig,), (TextConfig,))
    _require("big_vision", model, {
        "image.pre_norm": (False,), "image.patch_bias": (True,),
        "image_projection_bias": (model.image_projection,),
        "image.transformer.norm_epsilon": (1e-6,), "image.transformer.activation": ("gelu_tanh",),
        "text.transformer.norm_epsilon": (1e-6,), "text.transformer.activation": ("gelu_tanh",),
        "text.is_causal": (False,), "text.pool": ("last",), "text.mask_padding": (False,),
        "text_projection": ("linear",), "projection_bias": (True,),
    })  # fmt: skip


# --- All ------------------------------------------------------------------------------------------


def formats_with_place(model: ClipConfig, image: ImageConfig, inputs: Inputs) -> list[str]:
    """The formats, by their names in --to, that this model can be exported to."""
    attempts: dict[str, Callable[[], Any]] = {
        "hf": lambda: huggingface_files(model, image, inputs),
        "openclip": lambda: openclip_files(model, image, inputs, True, "", False),
        "big_vision": lambda: check_big_vision(model),
    }
    found = []
    for name, attempt in attempts.items():
        with contextlib.suppress(NotRepresentable):
            attempt()
            found.append(name)
    return found
