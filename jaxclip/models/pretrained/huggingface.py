"""Hugging Face folders: CLIP, SigLIP, SigLIP 2 (fixed and NaFlex), and ViT and BERT as one tower.

`describe` reads config.json, whose sizes must be those of the tensors; folders.py writes it.
Checked against transformers 5.23.
"""

import dataclasses
import math
import re
from pathlib import Path
from typing import Any

from jaxclip.data.image import ImageConfig
from jaxclip.data.text import TokenizerConfig
from jaxclip.models.clip import ClipConfig
from jaxclip.models.pretrained.family import (
    CLIP_IMAGE,
    SIGLIP_IMAGE,
    TOWERS,
    Family,
    check_sizes,
    first_existing,
    lookup,
    special_tokens,
    tokenizer_class,
)
from jaxclip.models.pretrained.files import Weights, read_json
from jaxclip.models.pretrained.huggingface_table import BERT, VIT, rules
from jaxclip.models.pretrained.huggingface_towers import (
    DEFAULTS,
    bert_tokenizer,
    bert_tower,
    transformer,
)
from jaxclip.models.pretrained.table import prefix
from jaxclip.models.text import TextConfig
from jaxclip.models.vit import ViTConfig

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


def describe(weights: Weights, folder: Path | None, file_name: str = "") -> Family:
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


def _towers(weights: Weights, config: dict[str, Any]) -> tuple[str, ...]:
    """Those in the weights; raises ValueError if the config is of a class with another, too."""
    starts = {"image": "vision_model.", "text": "text_model."}
    found = tuple(t for t in TOWERS if any(name.startswith(starts[t]) for name in weights))
    classes = config.get("architectures") or []
    is_one = any("Vision" in name or "Text" in name for name in classes)
    if config.get("model_type") in TWO_TOWERS and len(found) < 2 and not is_one:
        raise ValueError(
            f"config.json (model_type {config['model_type']!r}) is of a model with two towers, and "
            f"the weights have only the {' '.join(found)} tower. Fetch all files."
        )
    return found


def _describe_two(weights: Weights, folder: Path, config: dict[str, Any], kind: str) -> Family:
    towers, is_clip = _towers(weights, config), kind == "clip"
    # a tower that is not there has a projection, so that it may have any width
    fields: dict[str, Any] = {
        "image_projection": "image" not in towers,
        "text_projection": "none" if "text" in towers else "linear",
    }
    image, tokenizer, vocab_size, pad_id, eos_id = CLIP_IMAGE, TokenizerConfig(), 1, 0, 1
    assumed: list[str] = []
    whole = len(towers) == 2  # then no projection may be missing
    if "image" in towers:
        vision = _section(config, "vision", kind, whole)
        fields["image"], size = _describe_image(weights, vision, is_clip)
        if vision.get("image_size", size) != size:  # so400m-patch14-384
            assumed.append(
                f"images of {size} pixels, where transformers resizes to {vision['image_size']} "
                "and leaves out what is no whole patch"
            )
        image = read_preprocessor(
            folder, dataclasses.replace(CLIP_IMAGE if is_clip else SIGLIP_IMAGE, size=size)
        )
        if fields["image"].naflex:
            image.naflex_patch_size = fields["image"].patch_size
        fields["embed_dim"] = fields["image"].transformer.width
        if is_clip and (whole or "visual_projection.weight" in weights):
            fields["image_projection"] = True
            fields["embed_dim"] = _rows(weights, vision, "visual_projection", "projection_dim")
    if "text" in towers:
        text = _section(config, "text", kind, whole)
        fields["text"], vocab_size = _describe_text(weights, text, is_clip)
        fields["embed_dim"] = fields["text"].transformer.width
        head, field = ("text_projection", "projection_dim") if is_clip else (
            "text_model.head", "projection_size")  # fmt: skip
        if whole or not is_clip or f"{head}.weight" in weights:
            fields |= {"text_projection": "linear", "projection_bias": not is_clip,
                       "embed_dim": _rows(weights, text, head, field)}  # fmt: skip
        tokenizer = _tokenizer(weights, folder, is_clip, vocab_size)
        pad_id = 0 if is_clip or vocab_size == 256_000 else 1
        eos_id = text["eos_token_id"] if is_clip else 1
        if is_clip and eos_id == 2:  # files from before eos was looked for: the largest id
            eos_id = vocab_size - 1
    start: dict[str, Any] = {} if is_clip else {"init_temperature": 0.1, "init_logit_bias": -10.0}
    model = ClipConfig(**fields, **start, dtype="float32")
    return Family(
        name=f"Hugging Face {kind}",
        model=model,
        image=image,
        tokenizer=tokenizer,
        vocab_size=vocab_size,
        pad_id=pad_id,
        eos_id=eos_id,
        weights=weights,
        rules=rules(model, towers, kind),
        towers=towers,
        assumed=assumed,
    )


def _section(config: dict[str, Any], tower: str, kind: str, whole: bool) -> dict[str, Any]:
    """The config of a tower, with the defaults that config.json leaves out."""
    said = config.get(f"{tower}_config") or {} if whole or f"{tower}_config" in config else config
    said = said | (config.get(f"{tower}_config_dict") or {})  # of old files; it overrides
    if whole and kind == "clip":  # the sections may have another, which is not looked at
        said = said | {"projection_dim": config.get("projection_dim", 512)}
    return DEFAULTS[f"{kind}_{tower}"] | said


def _rows(weights: Weights, config: dict[str, Any], name: str, field: str) -> int:
    """Of a projection: the size of the common space."""
    rows = weights.shape(f"{name}.weight")[0]
    check_sizes("", config, {field: rows})
    return rows


def _describe_image(
    weights: Weights, config: dict[str, Any], is_clip: bool
) -> tuple[ViTConfig, int]:
    """The tower, and the size of its images."""
    embeddings = "vision_model.embeddings."
    kernel = weights.shape(f"{embeddings}patch_embedding.weight")
    is_naflex = len(kernel) == 2
    patch_size = config["patch_size"] if is_naflex else kernel[-1]
    positions = weights.shape(f"{embeddings}position_embedding.weight")[0] - is_clip
    size = patch_size * math.isqrt(positions)
    found = {"num_patches": positions} if is_naflex else {"image_size": size}
    if not is_naflex:  # so400m-patch14-384 looks at 378 pixels of 384
        config = config | {"image_size": config["image_size"] // patch_size * patch_size}
    check_sizes("vision ", config, found | {"patch_size": patch_size})
    lookup(config, "vision_use_head", True, {True: None})
    tower = ViTConfig(
        patch_size=patch_size,
        transformer=transformer(config, weights, "vision_model.encoder.layers.", "mlp.fc1.weight"),
        pool="class_token" if is_clip else "map",
        pre_norm=is_clip,
        patch_bias=not is_clip,
        naflex=is_naflex,
    )
    return tower, size


def _describe_text(
    weights: Weights, config: dict[str, Any], is_clip: bool
) -> tuple[TextConfig, int]:
    """The tower, and the size of its vocabulary."""
    embeddings = "text_model.embeddings."
    vocab_size = weights.shape(f"{embeddings}token_embedding.weight")[0]
    length = weights.shape(f"{embeddings}position_embedding.weight")[0]
    check_sizes("text ", config, {"vocab_size": vocab_size, "max_position_embeddings": length})
    t = transformer(config, weights, "text_model.encoder.layers.", "mlp.fc1.weight")
    if is_clip:
        return TextConfig(transformer=t), vocab_size
    return TextConfig(transformer=t, is_causal=False, pool="last"), vocab_size


# What each class of transformers does to a text before the vocabulary: vocabulary.CLEANERS. Others,
# as PreTrainedTokenizerFast, do what tokenizer.json says and no more.
CLEANER_OF_CLASS = {
    "SiglipTokenizer": "hf_siglip",
    "Siglip2Tokenizer": "lower",
    "GemmaTokenizer": "lower_ascii",  # of SigLIP 2, which was trained on lower-case text
}


def _tokenizer(weights: Weights, folder: Path, is_clip: bool, vocab_size: int) -> TokenizerConfig:
    length = weights.shape("text_model.embeddings.position_embedding.weight")[0]
    if is_clip:
        path = first_existing(folder, "tokenizer.json", "bpe_simple_vocab_16e6.txt.gz")
        special = {"pad": "<|endoftext|>"} | special_tokens(folder)
        return TokenizerConfig(
            path=path, context_length=length, **(special if path.endswith(".json") else {})
        )
    kind = tokenizer_class(folder) or "SiglipTokenizer"
    is_gemma = vocab_size == 256_000
    spiece = first_existing(folder, "spiece.model", "tokenizer.model")
    json_file = first_existing(folder, "tokenizer.json")
    if json_file and (kind not in CLEANER_OF_CLASS or not spiece):
        special = {"eos": "<eos>", "pad": "<pad>"} if is_gemma else {"eos": "</s>", "pad": "</s>"}
        special |= special_tokens(folder)
        return TokenizerConfig(path=json_file, context_length=length, bos="",
                               clean=CLEANER_OF_CLASS.get(kind, "none"), **special)  # fmt: skip
    return TokenizerConfig(
        path=spiece,
        kind="sentencepiece",
        context_length=length,
        pad="<pad>" if is_gemma else "</s>",
        clean="lower_ascii" if is_gemma else CLEANER_OF_CLASS.get(kind, "lower_ascii"),
    )


def _describe_bert(weights: Weights, folder: Path, config: dict[str, Any], kind: str) -> Family:
    text, vocab_size = bert_tower(weights, DEFAULTS["bert"] | config, folder=folder)
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


def _describe_vit(weights: Weights, folder: Path, config: dict[str, Any], kind: str) -> Family:
    config = DEFAULTS["vit"] | config
    t = transformer(config, weights, "encoder.layer.", "intermediate.dense.weight")
    patch_size = weights.shape("embeddings.patch_embeddings.projection.weight")[-1]
    size = patch_size * math.isqrt(weights.shape("embeddings.position_embeddings")[1] - 1)
    check_sizes("", config, {"patch_size": patch_size, "image_size": size})
    tower = ViTConfig(patch_size=patch_size, transformer=t, pre_norm=False, patch_bias=True)
    image = dataclasses.replace(SIGLIP_IMAGE, size=size, interpolation="pillow_bilinear")
    return Family(
        name="Hugging Face vit",
        model=ClipConfig(image=tower, embed_dim=t.width, image_projection=False, dtype="float32"),
        image=read_preprocessor(folder, image),
        weights=weights,
        rules=prefix(VIT, "image/", ""),
        towers=("image",),
    )


def read_preprocessor(folder: Path, default: ImageConfig) -> ImageConfig:
    """What preprocessor_config.json says, else the default; the size is the model's own.

    Raises:
      ValueError: images that are not resized, or to another size than the one that is cropped.
    """
    file = first_existing(folder, "preprocessor_config.json", "processor_config.json")
    if not file:
        return default
    values = read_json(Path(file))
    values = values.get("image_processor", values)
    lookup(values, "do_resize", True, {True: None})
    size = values.get("size") or {}
    has_short = isinstance(size, dict) and "shortest_edge" in size
    crops = values.get("do_center_crop", has_short)
    side, crop = _side(size), _side(values.get("crop_size") or {})
    if crops and side and crop and side != crop:
        raise ValueError(
            f"size ({side}) of {Path(file).name} must be crop_size ({crop}): a margin that is cut "
            "off after resizing is not built here. Set both to the model's image size to do "
            "without it."
        )
    is_square = isinstance(size, dict) and "height" in size
    mean, std = values.get("image_mean", default.mean), values.get("image_std", default.std)
    if not values.get("do_normalize", True):
        mean, std = (0.0,) * 3, (1.0,) * 3
    # of pixels in [0, 1], whatever range it gives them
    scale = 255 * values.get("rescale_factor", 1 / 255) if values.get("do_rescale", True) else 255
    resample = 3 if default.interpolation == "pillow_bicubic" else 2
    return dataclasses.replace(
        default,
        resize="center_crop" if crops and not is_square else "squash",
        interpolation=lookup(values, "resample", resample, INTERPOLATIONS),
        mean=tuple(x / scale for x in mean),
        std=tuple(x / scale for x in std),
    )


def _side(size: Any) -> int | None:
    """Of {"shortest_edge": 224}, {"height": 224, "width": 224} or, until 2022, 224."""
    return size.get("shortest_edge", size.get("height")) if isinstance(size, dict) else size
