"""Name tables of Hugging Face's CLIP, SigLIP, SigLIP 2, ViT and BERT. See table.py."""

from typing import Any

from jaxclip.models.clip import ClipConfig
from jaxclip.models.pretrained.table import (
    Rule,
    batched,
    class_and_positions,
    fused,
    linear,
    matrix,
    norm,
    patch_convolution,
    prefix,
    same,
    shaped,
)
from jaxclip.models.vit import ViTConfig

BLOCK = (
    norm("norm1", "layer_norm1")
    + norm("norm2", "layer_norm2")
    + linear("attention/query", "self_attn.q_proj")
    + linear("attention/key", "self_attn.k_proj")
    + linear("attention/value", "self_attn.v_proj")
    + linear("attention/out", "self_attn.out_proj")
    + linear("mlp/up", "mlp.fc1")
    + linear("mlp/down", "mlp.fc2")
)
MAP_HEAD = [
    same("probe", "probe"),
    *fused(
        ("attention/query", "attention/key", "attention/value"),
        "attention.in_proj_weight",
        "attention.in_proj_bias",
    ),
    *linear("attention/out", "attention.out_proj"),
    *norm("norm", "layernorm"),
    *linear("mlp/up", "mlp.fc1"),
    *linear("mlp/down", "mlp.fc2"),
]
BERT_BLOCK = (
    linear("attention/query", "attention.self.query")
    + linear("attention/key", "attention.self.key")
    + linear("attention/value", "attention.self.value")
    + linear("attention/out", "attention.output.dense")
    + norm("norm1", "attention.output.LayerNorm")
    + linear("mlp/up", "intermediate.dense")
    + linear("mlp/down", "output.dense")
    + norm("norm2", "output.LayerNorm")
)
BERT = [
    same("token_embedding/embedding", "embeddings.word_embeddings.weight"),
    same("position_embedding", "embeddings.position_embeddings.weight"),
    same("token_type_embedding", "embeddings.token_type_embeddings.weight"),
    *norm("embedding_norm", "embeddings.LayerNorm"),
    *prefix(BERT_BLOCK, "transformer/blocks/", "encoder.layer.{i}."),
]
VIT_BLOCK = (
    norm("norm1", "layernorm_before")
    + norm("norm2", "layernorm_after")
    + linear("attention/query", "attention.attention.query")
    + linear("attention/key", "attention.attention.key")
    + linear("attention/value", "attention.attention.value")
    + linear("attention/out", "attention.output.dense")
    + linear("mlp/up", "intermediate.dense")
    + linear("mlp/down", "output.dense")
)
VIT = [
    batched(class_and_positions("embeddings.cls_token", "embeddings.position_embeddings")),
    patch_convolution("patch_embedding/kernel", "embeddings.patch_embeddings.projection.weight"),
    same("patch_embedding/bias", "embeddings.patch_embeddings.projection.bias"),
    *prefix(VIT_BLOCK, "transformer/blocks/", "encoder.layer.{i}."),
    *norm("final_norm", "layernorm"),
]


def rules(model: ClipConfig, towers: tuple[str, ...] = ("image", "text")) -> list[Rule]:
    """The table of CLIPModel, SiglipModel and Siglip2Model: what they differ in, the model has."""
    is_siglip = kind_of(model) != "clip"
    ndim = 1 if is_siglip else 0
    found = [shaped("logit_scale", "logit_scale", 0, ndim)]
    if is_siglip:
        found.append(shaped("logit_bias", "logit_bias", 0, ndim))
    if "image" in towers:
        found += prefix(_image_rules(model.image), "image/", "vision_model.")
        if model.image_projection:
            found.append(matrix("image/projection/kernel", "visual_projection.weight"))
    if "text" in towers:
        found += prefix(_text_rules(), "text/", "text_model.")
        theirs = "text_model.head" if is_siglip else "text_projection"
        if model.text_projection == "linear":
            found.append(matrix("text/projection/kernel", f"{theirs}.weight"))
            if model.projection_bias:
                found.append(same("text/projection/bias", f"{theirs}.bias"))
    return found


def _image_rules(image: Any) -> list[Rule]:
    assert isinstance(image, ViTConfig)
    patch = "embeddings.patch_embedding"
    to_patches = matrix if image.naflex else patch_convolution
    found = [to_patches("patch_embedding/kernel", f"{patch}.weight")]
    if image.patch_bias:
        found.append(same("patch_embedding/bias", f"{patch}.bias"))
    positions = "embeddings.position_embedding.weight"
    if image.pool == "class_token":
        found.append(class_and_positions("embeddings.class_embedding", positions))
    else:
        found.append(same("position_embedding", positions))
    if image.pre_norm:
        found += norm("pre_norm", "pre_layrnorm")  # sic
    found += prefix(BLOCK, "transformer/blocks/", "encoder.layers.{i}.")
    found += norm("final_norm", "post_layernorm")
    return found + (prefix(MAP_HEAD, "map_head/", "head.") if image.pool == "map" else [])


def _text_rules() -> list[Rule]:
    return [
        same("token_embedding/embedding", "embeddings.token_embedding.weight"),
        same("position_embedding", "embeddings.position_embedding.weight"),
        *prefix(BLOCK, "transformer/blocks/", "encoder.layers.{i}."),
        *norm("final_norm", "final_layer_norm"),
    ]


def kind_of(model: ClipConfig) -> str:
    """clip, siglip or siglip2 (which is what transformers calls NaFlex)."""
    if isinstance(model.image, ViTConfig) and model.image.naflex:
        return "siglip2"
    return "clip" if isinstance(model.image, ViTConfig) and model.image.pre_norm else "siglip"
