"""Hands a trained model to other tools: python -m jaxclip.export --workdir=RUN --to=hf --out=DIR

  hf          transformers.AutoModel.from_pretrained(DIR): CLIP, SigLIP, SigLIP 2
  openclip    open_clip.create_model_and_transforms("local-dir:DIR"): also ResNet and BERT; with a
              BERT its config has the folder's path, so give --bert=NAME for the hub
  big_vision  DIR/checkpoint.npz, as its SigLIP checkpoints are

DIR also gets configs, preprocessing, tokenizer and a model card. What was written is read back and
compared before DIR appears. --workdir may also be a checkpoint of another format. A run that scores
averaged parameters (eval.ema) is exported with these.
"""

import copy
import dataclasses
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import safetensors.numpy
from absl import flags

from jaxclip import command
from jaxclip.data.text import Tokenizer, load_tokenizer
from jaxclip.inference import precise
from jaxclip.model_card import model_card
from jaxclip.models import clip
from jaxclip.models.pretrained import (
    big_vision,
    huggingface,
    leaves_of,
    load_params,
    open_checkpoint,
    openclip,
)
from jaxclip.models.pretrained.family import Family
from jaxclip.models.pretrained.folders import (
    NotRepresentable,
    check_big_vision,
    formats_with_place,
    huggingface_files,
    openclip_files,
    openclip_text_prefix,
)
from jaxclip.models.pretrained.openclip_table import image_kind
from jaxclip.models.pretrained.table import write
from jaxclip.models.pretrained.timm_vit import timm_activation, timm_name
from jaxclip.models.pretrained.tokenizer_files import tokenizer_files
from jaxclip.models.vit import ViTConfig
from jaxclip.start import open_model

FORMATS = ("hf", "openclip", "big_vision")


def main(argv: Sequence[str]) -> None:
    del argv
    given = flags.FLAGS
    for flag in ("workdir", "to", "out"):
        if not given[flag].value:
            raise ValueError(f"--{flag} is not set. Give --workdir=RUN --to=hf --out=DIR.")
    print(*export(given.workdir, given.to, given.out, bert=given.bert), sep="\n")


def export(source: str, to: str, out: str, *, bert: str = "") -> list[str]:
    """Writes the folder `out`; returns lines that say what was written and checked.

    Raises:
      FileExistsError: `out` exists.
      ValueError: the model has no place in the format, or what was written reads back as another.
    """
    target = Path(out)
    if to not in FORMATS:
        raise ValueError(f"--to ({to!r}) must be one of {', '.join(FORMATS)}.")
    if target.exists():
        raise FileExistsError(f"--out ({out}) exists. Name a folder to be made.")
    family = open_model(source)
    if family.towers != ("image", "text"):
        raise ValueError(f"--workdir ({source}) has only one tower: {family.towers[0]}.")
    params, report = load_params(family)
    tokenizer = load_tokenizer(family.tokenizer) if family.tokenizer.path else None
    partial = target.with_name(f"{target.name}.partial-{np.random.default_rng().integers(2**32)}")
    partial.mkdir(parents=True)
    try:
        bert = bert or str(target.absolute())
        notes = write_folder(family, params, tokenizer, to, partial, bert, source)
        notes += check(family, params, to, partial)
        partial.rename(target)
    except NotRepresentable as error:
        known = formats_with_place(family.model, family.image, family.inputs)
        others = " and ".join(f"--to={name}" for name in known)
        raise NotRepresentable(
            f"{error} It can go to {others}."
            if others
            else f"{error} No format here has a place for it; jaxclip.load reads {source} itself."
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    size = sum(file.stat().st_size for file in target.iterdir() if file.is_file())
    written = f"Written to {out}: {size / 1e6:.1f} MB, {len(list(target.iterdir()))} files"
    return [f"From {source} ({family.name}):", *(f"  {x}" for x in report.lines()), written, *notes]


def write_folder(
    family: Family, params: clip.Params, tokenizer: Tokenizer | None, to: str, folder: Path,
    bert: str, source: str,
) -> list[str]:  # fmt: skip
    """All files of the format; returns what did not come along."""
    model, inputs, notes = family.model, family.inputs, []
    leaves = {path: np.asarray(leaf) for path, leaf in leaves_of(params).items()}
    files: dict[str, Any] = {}
    has_bias = bool(model.init_logit_bias or leaves["logit_bias"])
    if to == "hf":
        files = huggingface_files(model, family.image, inputs)
        rules = huggingface.rules(model)
    elif to == "openclip":
        is_clip_bpe = tokenizer.kind == "clip" if tokenizer else inputs.vocab_size == 49_408
        files = openclip_files(model, family.image, inputs, is_clip_bpe, bert, has_bias)
        rules = openclip.rules(model, text_prefix=openclip_text_prefix(model), has_bias=has_bias)
    else:
        check_big_vision(model)
        rules = big_vision.rules(model, has_bias=has_bias)
    if not any("logit_bias" in rule.ours for rule in rules):
        bias = float(leaves.pop("logit_bias"))
        notes += [f"logit_bias ({bias}) has no place in this format"] if bias else []
    tensors = write(rules, leaves)
    if to == "big_vision":
        arrays: dict[str, Any] = {f"params/{k}": v for k, v in tensors.items()}
        np.savez(folder / "checkpoint.npz", **arrays)
    else:
        name = "model.safetensors" if to == "hf" else "open_clip_model.safetensors"
        safetensors.numpy.save_file(tensors, folder / name, metadata={"format": "pt"})
    for name, values in files.items():
        (folder / name).write_text(json.dumps(values, indent=2) + "\n")
    is_naflex = family.image.naflex_patch_size > 0
    notes += write_tokenizer(tokenizer, to, folder, is_naflex)
    if family.image.interpolation not in ("pillow_bicubic", "pillow_bilinear"):
        notes.append(
            f"Images were resized with {family.image.interpolation!r}; the nearest that others "
            "have is written. Embeddings of images differ a little for it"
        )
    if to == "openclip" and (activation := _activation_of_timm(model, inputs)):
        notes.append(_differs_in_timm(model, inputs, params, activation))
    (folder / "README.md").write_text(model_card(family, params, tokenizer, to, source, notes))
    return notes


def write_tokenizer(
    tokenizer: Tokenizer | None, to: str, folder: Path, is_naflex: bool
) -> list[str]:
    """The tokenizer's files; returns what they do otherwise."""
    if tokenizer is None:
        return ["No tokenizer: the checkpoint came without one"]
    files, notes = {}, []
    if to != "big_vision":
        files, notes = tokenizer_files(tokenizer)
    if to == "hf" and is_naflex:
        notes.append(
            "Open the tokenizer with transformers.PreTrainedTokenizerFast: AutoTokenizer has one "
            "of its own for NaFlex, which also lower-cases"
        )
    if to == "openclip":
        notes.append("OpenCLIP repairs wrongly decoded characters and HTML entities in texts first")
    if to == "big_vision" or tokenizer.kind == "clip":  # OpenCLIP has CLIP's by itself; for jaxclip
        files[tokenizer.file_name] = tokenizer.content
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return notes


def check(family: Family, params: clip.Params, to: str, folder: Path) -> list[str]:
    """Reads the folder as a stranger would, and compares parameters and embeddings.

    Raises:
      ValueError: they differ.
    """
    path = folder / "checkpoint.npz" if to == "big_vision" else folder
    again = open_checkpoint(str(path))
    params_again, report = load_params(again)
    ours, theirs = leaves_of(params), leaves_of(params_again)
    for name, leaf in ours.items():
        if name == "logit_bias" and "logit_bias" not in report.loaded:
            continue
        if name not in theirs or not np.array_equal(leaf, theirs[name]):
            raise ValueError(f"{folder} does not read back as what was written: {name} differs.")
    embedded = [
        embed_examples(family.model, family.inputs, params),
        embed_examples(again.model, family.inputs, params_again),
    ]
    difference = max(float(np.abs(a - b).max()) for a, b in zip(*embedded, strict=True))
    if not difference <= 1e-5:  # float32, of one program and another
        raise ValueError(
            f"{folder} does not read back as what was written: embeddings differ by {difference}."
        )
    return [f"Read back: parameters equal, embeddings within {difference:.1e}"]


def _activation_of_timm(model: clip.ClipConfig, inputs: clip.Inputs) -> str:
    """What OpenCLIP computes in a ViT of timm, where that is not the model's own; else ""."""
    image = model.image
    if not isinstance(image, ViTConfig) or image_kind(model) != "timm":
        return ""
    t = image.transformer
    name = timm_name(image.pool, t.width, t.depth, image.patch_size, inputs.image_size)
    activation = timm_activation(name)
    return "" if activation == t.activation else activation


def _differs_in_timm(
    model: clip.ClipConfig, inputs: clip.Inputs, params: clip.Params, activation: str
) -> str:
    """A line on what open_clip makes of the model, and of the same parameters jaxclip does."""
    theirs = copy.deepcopy(model)
    assert isinstance(theirs.image, ViTConfig)
    ours, theirs.image.transformer.activation = theirs.image.transformer.activation, activation
    a, b = (embed_examples(m, inputs, params)[0] for m in (model, theirs))
    return (
        f"open_clip computes {activation} in the image tower, as timm has it, where this model has "
        f"{ours}: its embeddings of two random images differ by up to {np.abs(a - b).max():.1e}"
    )


def embed_examples(
    model: clip.ClipConfig, inputs: clip.Inputs, params: clip.Params
) -> list[np.ndarray]:
    """Embeddings of example_batch, in float32."""
    model = dataclasses.replace(model, dtype="float32")
    embed = jax.jit(precise(clip.apply, model, inputs))
    return [np.asarray(x) for x in embed(params, example_batch(model, inputs))]


def example_batch(model: clip.ClipConfig, inputs: clip.Inputs) -> dict[str, np.ndarray]:
    """Two random images and texts."""
    rng = np.random.default_rng(0)
    S, T = inputs.image_size, inputs.context_length
    tokens = rng.integers(0, inputs.vocab_size, (2, T)).astype(np.int32)
    tokens[1, T // 2 :] = inputs.pad_id
    if 0 <= inputs.eos_id < inputs.vocab_size:
        tokens[:, T // 2 - 1] = inputs.eos_id
    image = rng.integers(0, 256, (2, S, S, 3)).astype(np.uint8)
    if isinstance(model.image, ViTConfig) and model.image.naflex:
        G = S // model.image.patch_size
        patches = image.reshape(2, G * G, -1)
        return {"image": patches, "grid": np.array([[G, G], [1, G]]), "tokens": tokens}
    return {"image": image, "tokens": tokens}


if __name__ == "__main__":  # not above: train.py, which tests import too, has a workdir of its own
    flags.DEFINE_string("workdir", None, "The run to export, or a checkpoint.")
    flags.DEFINE_enum("to", None, FORMATS, "The format.")
    flags.DEFINE_string("out", None, "The folder to write; must not exist.")
    flags.DEFINE_string(
        "bert",
        "",
        "openclip, BERT text: the hub name of what is written here, or of a BERT of its sizes.",
    )
    command.run(main)
