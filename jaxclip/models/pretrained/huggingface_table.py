"""Name tables of Hugging Face's CLIP, SigLIP, SigLIP 2, ViT and BERT. See table.py."""

from typing import Any

from jaxclip.models.clip import ClipConfig
from jaxclip.models.pretrained.table import (
    QKV,
    Rule,
    batched,
    block_rules,
    class_and_positions,
    fused,
    linear,
    matrix,
    norm,
    patch_convolution,
    prefix,
    same,
    separate,
    shaped,
)
from jaxclip.models.vit import ViTConfig

BLOCK = block_rules(
    "layer_norm1",
    "layer_norm2",
    separate("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    out="self_attn.out_proj",
    up="mlp.fc1",
    down="mlp.fc2",
)
MAP_HEAD = [
    same("probe", "probe"),
    *fused(QKV, "attention.in_proj_weight", "attention.in_proj_bias"),
    *linear("attention/out", "attention.out_proj"),
    *norm("norm", "layernorm"),
    *linear("mlp/up", "mlp.fc1"),
    *linear("mlp/down", "mlp.fc2"),
]
BERT_BLOCK = block_rules(
    "attention.output.LayerNorm",
    "output.LayerNorm",
    separate("attention.self.query", "attention.self.key", "attention.self.value"),
    out="attention.output.dense",
    up="intermediate.dense",
    down="output.dense",
)
BERT = [
    same("token_embedding/embedding", "embeddings.word_embeddings.weight"),
    same("position_embedding", "embeddings.position_embeddings.weight"),
    same("token_type_embedding", "embeddings.token_type_embeddings.weight"),
    *norm("embedding_norm", "embeddings.LayerNorm"),
    *prefix(BERT_BLOCK, "transformer/blocks/", "encoder.layer.{i}."),
]
VIT_BLOCK = block_rules(
    "layernorm_before",
    "layernorm_after",
    separate(*(f"attention.attention.{name}" for name in ("query", "key", "value"))),
    out="attention.output.dense",
    up="intermediate.dense",
    down="output.dense",
)
VIT = [
    batched(class_and_positions("embeddings.cls_token", "embeddings.position_embeddings")),
    patch_convolution("patch_embedding/kernel", "embeddings.patch_embeddings.projection.weight"),
    same("patch_embedding/bias", "embeddings.patch_embeddings.projection.bias"),
    *prefix(VIT_BLOCK, "transformer/blocks/", "encoder.layer.{i}."),
    *norm("final_norm", "layernorm"),
]


def rules(
    model: ClipConfig, towers: tuple[str, ...] = ("image", "text"), kind: str = ""
) -> list[Rule]:
    """The table of CLIPModel, SiglipModel and Siglip2Model.

    Args:
      kind: of kind_of, which looks at the image tower; to be given for a text tower alone.
    """
    is_siglip = (kind or kind_of(model)) != "clip"
    found = []
    if len(towers) == 2:
        scalars = ("logit_scale", "logit_bias") if is_siglip else ("logit_scale",)
        found += [shaped(name, name, 0, 1 if is_siglip else 0) for name in scalars]
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
