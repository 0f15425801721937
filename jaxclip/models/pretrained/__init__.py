"""Checkpoints of others: `open_checkpoint` describes one, `load_params` reads it.

    family = open_checkpoint("google/medsiglip-448")     # or a folder, or a file
    config.model, config.data.image, config.data.tokenizer = family.model, family.image, ...
    params, report = load_params(family)

Known: big_vision npz; Hugging Face CLIP, SigLIP, SigLIP 2, ViT, BERT; OpenCLIP with its own, timm's
and OpenAI's ResNet image towers and its own or BERT text towers; Open-PMC; PMC-CLIP.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from jaxclip.models import clip
from jaxclip.models.pretrained import big_vision, huggingface, openclip
from jaxclip.models.pretrained.family import TOWERS, Family
from jaxclip.models.pretrained.files import find, open_weights
from jaxclip.models.pretrained.table import Report, read
from jaxclip.optimizer import param_paths

FORMATS = (big_vision, openclip, huggingface)
# of a tower's config: what changes the function that the same weights compute, and is no accident
FIXED = ("transformer.num_heads", "transformer.activation", "transformer.norm_epsilon",
         "is_causal", "num_heads")  # fmt: skip


def open_checkpoint(path_or_name: str) -> Family:
    """Describes a checkpoint; its tensors are read later, one by one.

    Args:
      path_or_name: a folder, a weight file, or a name on the Hugging Face hub.
    Raises:
      FileNotFoundError: no such path or name.
      ValueError: a file that cannot be read, or of no family known here.
    """
    path = find(path_or_name)
    folder = path if path.is_dir() else path.parent
    weights = open_weights(path)
    for module in FORMATS:
        if (renamed := module.recognise(weights)) is not None:
            try:
                family = module.describe(renamed, folder, path.name)
            except ValueError as error:
                raise ValueError(f"{path_or_name} cannot be read: {error}") from error
            return dataclasses.replace(family, source=path_or_name)
    names = ", ".join(list(weights)[:3])
    raise ValueError(
        f"{path_or_name} is of no family known here: big_vision, Hugging Face (CLIP, SigLIP, ViT, "
        f"BERT) or OpenCLIP. Its tensors are called {names}, ..."
    )


def leaves_of(params: clip.Params) -> dict[str, Any]:
    """Leaves by path, as "image/final_norm/scale"."""
    return dict(zip(jax.tree.leaves(param_paths(params)), jax.tree.leaves(params), strict=True))


def tree_of(leaves: Mapping[str, Any]) -> clip.Params:
    """The inverse of leaves_of."""
    tree: dict[str, Any] = {}
    for path, leaf in leaves.items():
        *owners, name = path.split("/")
        node = tree
        for owner in owners:
            node = node.setdefault(owner, {})
        node[name] = leaf
    return tree


def param_shapes(model: clip.ClipConfig, inputs: clip.Inputs) -> dict[str, tuple[int, ...]]:
    shapes = jax.eval_shape(lambda: clip.init(model, inputs, jax.random.key(0)))
    return {path: leaf.shape for path, leaf in leaves_of(shapes).items()}


def may_be_fresh(path: str) -> bool:
    """Whether a file may lack it: what joins two towers, which a tower alone does not have."""
    return "/projection/" in path or path in ("logit_scale", "logit_bias")


def load_params(family: Family) -> tuple[clip.Params, Report]:
    """The parameters of the towers that a checkpoint has, float32 NumPy arrays.

    logit_scale and logit_bias are at the model's initial values where the file has none.

    Raises:
      ValueError: a tensor is missing or has another shape than the rest makes necessary.
    """
    wanted = set(family.towers)
    if family.towers == TOWERS:  # of the softmax loss, no format but ours has a bias
        scalars = ("logit_scale", "logit_bias")
        wanted |= {name for name in scalars if any(name in rule.ours for rule in family.rules)}
    shapes = {
        path: shape
        for path, shape in param_shapes(family.model, family.inputs).items()
        if path.split("/")[0] in wanted
    }
    leaves, report = read(family.rules, family.weights, shapes, family.source)
    report.assumed = list(family.assumed)
    initial = {
        "logit_scale": np.float32(-np.log(family.model.init_temperature)),
        "logit_bias": np.float32(family.model.init_logit_bias),
    }
    return tree_of(initial | leaves), report


def load_into(
    family: Family, model: clip.ClipConfig, shapes: clip.Params, towers: tuple[str, ...] = TOWERS
) -> tuple[dict[str, np.ndarray], Report]:
    """Leaves, by path, to start some towers of another config from; others stay as they are.

    Position embeddings are resized to the config's image size. With both towers, logit_scale and
    logit_bias are the file's, too. A projection that the file lacks, or that is of another
    embed_dim where only one tower is taken, stays fresh, and the report says so.

    Raises:
      ValueError: the file lacks a tower, or its tower is another one than the config's.
    """
    if missing := [tower for tower in towers if tower not in family.towers]:
        raise ValueError(
            f"{family.source} ({family.name}) has no {' and no '.join(missing)} tower. Name it in "
            f"{' and '.join(f'init_{tower}' for tower in family.towers)} instead of init."
        )
    whole = towers == TOWERS
    here = {
        path: leaf.shape
        for path, leaf in leaves_of(shapes).items()
        if path.split("/")[0] in towers or (whole and "/" not in path)
    }
    there = param_shapes(family.model, family.inputs)
    for path in list(here):
        is_projection = "/projection/" in path
        if is_projection and not whole and there.get(path) != here[path]:
            del here[path]
    _check_same_towers(family, model, here, there, towers)
    leaves, report = read(family.rules, family.weights, here, family.source)
    wanted = [path for path in leaves_of(shapes) if path.split("/")[0] in towers]
    report.assumed = list(family.assumed)
    report.fresh = [path for path in wanted if path not in leaves] + [
        path for path in ("logit_scale", "logit_bias") if whole and path not in leaves
    ]
    return leaves, report


def _check_same_towers(family, model, here, there, towers) -> None:
    """Raises ValueError where the config's towers are not those of the file."""
    differing = [
        f"{path} (only {'here' if path in here else 'there'})"
        for path in sorted(here.keys() ^ there.keys())
        if path.split("/")[0] in towers and not may_be_fresh(path)
    ]
    for tower in towers:
        ours, theirs = getattr(model, tower), getattr(family.model, tower)
        for field in FIXED:
            a, b = (_field(config, field) for config in (theirs, ours))
            if a != b:
                differing.append(f"model.{tower}.{field} ({a!r} there, {b!r} here)")
    if differing:
        raise ValueError(
            f"{family.source} ({family.name}) is another model than config.model: "
            f"{', '.join(differing[:5])}{', ...' if len(differing) > 5 else ''}. Make config.model "
            "that of the file; --config=configs/fine_tune.py:PATH does so by itself."
        )


def _field(config: Any, path: str) -> Any:
    for name in path.split("."):
        config = getattr(config, name, None)
    return config
