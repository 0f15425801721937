"""Name tables of OpenCLIP's own towers, timm's ViT and OpenAI's ResNet. See table.py."""

from jaxclip.models.clip import ClipConfig
from jaxclip.models.pretrained.huggingface_table import BERT
from jaxclip.models.pretrained.table import (
    QKV,
    Rule,
    batched,
    block_rules,
    class_and_positions,
    convolution,
    fused,
    linear,
    matrix,
    norm,
    patch_convolution,
    prefix,
    same,
    shaped,
)
from jaxclip.models.resnet import ResNetConfig
from jaxclip.models.text import TextConfig
from jaxclip.models.vit import ViTConfig

BLOCK = block_rules(
    "ln_1",
    "ln_2",
    fused(QKV, "attn.in_proj_weight", "attn.in_proj_bias"),
    out="attn.out_proj",
    up="mlp.c_fc",
    down="mlp.c_proj",
)
TIMM_BLOCK = block_rules(
    "norm1",
    "norm2",
    fused(QKV, "attn.qkv.weight", "attn.qkv.bias"),
    out="attn.proj",
    up="mlp.fc1",
    down="mlp.fc2",
)
TIMM_MAP_HEAD = [
    same("probe", "latent"),
    *linear("attention/query", "q"),
    *fused(("attention/key", "attention/value"), "kv.weight", "kv.bias"),
    *linear("attention/out", "proj"),
    *norm("norm", "norm"),
    *linear("mlp/up", "mlp.fc1"),
    *linear("mlp/down", "mlp.fc2"),
]
VIT = [
    class_and_positions("class_embedding", "positional_embedding"),
    patch_convolution("patch_embedding/kernel", "conv1.weight"),
    *norm("pre_norm", "ln_pre"),
    *prefix(BLOCK, "transformer/blocks/", "transformer.resblocks.{i}."),
    *norm("final_norm", "ln_post"),
]
TEXT = [
    same("token_embedding/embedding", "token_embedding.weight"),
    same("position_embedding", "positional_embedding"),
    *prefix(BLOCK, "transformer/blocks/", "transformer.resblocks.{i}."),
    *norm("final_norm", "ln_final"),
]


def timm_rules(image: ViTConfig) -> list[Rule]:
    found = [
        patch_convolution("patch_embedding/kernel", "patch_embed.proj.weight"),
        same("patch_embedding/bias", "patch_embed.proj.bias"),
        *prefix(TIMM_BLOCK, "transformer/blocks/", "blocks.{i}."),
        *norm("final_norm", "norm"),
    ]
    if image.pool == "class_token":
        found.append(batched(class_and_positions("cls_token", "pos_embed")))
    else:
        found.append(shaped("position_embedding", "pos_embed", 2, 3))
    return found + (prefix(TIMM_MAP_HEAD, "map_head/", "attn_pool.") if image.pool == "map" else [])


def resnet_rules(image: ResNetConfig) -> list[Rule]:
    found = []
    for i in (1, 2, 3):
        found += [convolution(f"stem{i}/kernel", f"conv{i}.weight")]
        found += _batch_norm(f"stem_norm{i}", f"bn{i}")
    for stage, blocks in enumerate(image.stages):
        for block in range(blocks):
            ours, theirs = f"stage{stage}_{block}/", f"layer{stage + 1}.{block}."
            for i in (1, 2, 3):
                found.append(convolution(f"{ours}conv{i}/kernel", f"{theirs}conv{i}.weight"))
                found += _batch_norm(f"{ours}norm{i}", f"{theirs}bn{i}")
            if not block:
                theirs += "downsample."
                found.append(convolution(f"{ours}shortcut/kernel", f"{theirs}0.weight"))
                found += _batch_norm(f"{ours}shortcut_norm", f"{theirs}1")
    pool = [same("position_embedding", "positional_embedding")]
    for ours, theirs in (("query", "q_proj"), ("key", "k_proj"), ("value", "v_proj")):
        pool += linear(ours, theirs)
    found += prefix(pool, "attention_pool/", "attnpool.")
    return found + linear("projection", "attnpool.c_proj")


def _batch_norm(ours: str, theirs: str) -> list[Rule]:
    statistics = (("mean", "running_mean"), ("variance", "running_var"))
    return norm(ours, theirs) + [same(f"{ours}/{a}", f"{theirs}.{b}") for a, b in statistics]


def image_kind(model: ClipConfig) -> str:
    """resnet, native (OpenCLIP's own ViT) or timm."""
    if isinstance(model.image, ResNetConfig):
        return "resnet"
    return "native" if model.image.pre_norm else "timm"


def rules(
    model: ClipConfig,
    *,
    towers: tuple[str, ...] = ("image", "text"),
    text_prefix: str,
    has_bias: bool,
    has_scale: bool = True,
    is_pmc_clip: bool = False,
) -> list[Rule]:
    """The table of CLIP (text_prefix "") or CustomTextCLIP ("text.")."""
    scalars = ["logit_scale"] * has_scale + ["logit_bias"] * has_bias
    found = [shaped(name, name, 0, 0) for name in scalars] if len(towers) == 2 else []
    kind = image_kind(model)
    if "image" in towers and kind == "resnet":
        assert isinstance(model.image, ResNetConfig)
        found += prefix(resnet_rules(model.image), "image/", "visual.")
    elif "image" in towers:
        assert isinstance(model.image, ViTConfig)
        table, start = (VIT, "") if kind == "native" else (timm_rules(model.image), "trunk.")
        found += prefix(table, "image/", f"visual.{start}")
        if model.image_projection and kind == "native":
            found.append(same("image/projection/kernel", "visual.proj"))
        elif model.image_projection:
            found.append(matrix("image/projection/kernel", "visual.head.proj.weight"))
    if "text" in towers:
        found += _text_rules(model, text_prefix, is_pmc_clip)
    return found


def _text_rules(model: ClipConfig, start: str, is_pmc_clip: bool) -> list[Rule]:
    if not isinstance(model.text, TextConfig):
        found = prefix(BERT, "text/", f"{start}transformer.")
        if model.text_projection == "mlp":
            found.append(matrix("text/projection/up/kernel", f"{start}proj.0.weight"))
            found.append(matrix("text/projection/down/kernel", f"{start}proj.2.weight"))
        elif model.text_projection == "linear" and is_pmc_clip:
            found.append(same("text/projection/kernel", f"{start}proj"))
        elif model.text_projection == "linear":
            found.append(matrix("text/projection/kernel", f"{start}proj.weight"))
        return found
    found = prefix(TEXT, "text/", start)
    name = f"{start}text_projection"
    if model.text_projection == "linear" and model.projection_bias:
        return found + linear("text/projection", name)
    if model.text_projection == "linear":
        found.append(same("text/projection/kernel", name))
    return found
