"""Where a model's parameters come from: another run, or a checkpoint of somebody else's.

family = open_model("RUN")            # or a checkpoint's path, or a name on the hub
params, lines = start_params(config, inputs, tokenizer, state.params)
"""

import dataclasses

import jax
import numpy as np
from etils import epath

from jaxclip.checkpoint import directory, load_params
from jaxclip.config import TrainConfig, load_config
from jaxclip.data.text import Tokenizer
from jaxclip.evals.suite import model_inputs
from jaxclip.models import clip
from jaxclip.models.pretrained import leaves_of, load_into, open_checkpoint, tree_of
from jaxclip.models.pretrained.family import TOWERS, Family
from jaxclip.models.pretrained.files import Tensor, Weights
from jaxclip.models.pretrained.table import same
from jaxclip.workdir import run_tokenizer


def open_model(path_or_name: str) -> Family:
    """A run of jaxclip.train, or what models.pretrained.open_checkpoint takes.

    Raises:
      FileNotFoundError: nothing there, or a run without a checkpoint.
      ValueError: unreadable, or of no known family.
    """
    return open_run(path_or_name) if is_run(path_or_name) else open_checkpoint(path_or_name)


def is_run(path: epath.PathLike) -> bool:
    return (epath.Path(path) / "run.json").exists() or directory(path).exists()


def open_run(workdir: epath.PathLike) -> Family:
    """A run's newest parameters, described as a checkpoint of another format is."""
    config = load_config(workdir)
    tokenizer = run_tokenizer(workdir, config.data.tokenizer)
    inputs = model_inputs(config, tokenizer)
    shapes = jax.eval_shape(lambda: clip.init(config.model, inputs, jax.random.key(0)))
    on_one = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=on_one), shapes)
    step, params = load_params(workdir, like)
    tensors = {
        path: Tensor(leaf.shape, lambda leaf=leaf: np.asarray(leaf))
        for path, leaf in leaves_of(params).items()
    }
    (file,) = (epath.Path(workdir) / "tokenizer").iterdir()
    return Family(
        name=f"run of jaxclip, step {step:,}",
        model=config.model,
        image=config.data.image,
        tokenizer=dataclasses.replace(config.data.tokenizer, path=str(file)),
        vocab_size=inputs.vocab_size,
        pad_id=inputs.pad_id,
        eos_id=inputs.eos_id,
        weights=Weights(tensors),
        rules=[same(path, path) for path in tensors],
        source=str(workdir),
    )


def start_params(
    config: TrainConfig, tokenizer: Tokenizer, fresh: clip.Params
) -> tuple[clip.Params, list[str]]:
    """The parameters that config.init, init_image and init_text name; the rest stays `fresh`.

    Args:
      fresh: a state's parameters, on any devices.
    Returns:
      The tree, with NumPy arrays where something was loaded, and lines that say what was.
    Raises:
      FileNotFoundError, ValueError: as open_model; a tower that is not the config's.
    """
    leaves, lines = dict(leaves_of(fresh)), []
    for field, towers in (("init", TOWERS), ("init_image", ("image",)), ("init_text", ("text",))):
        if not (path := getattr(config, field)):
            continue
        family = open_model(path)
        if family.name.startswith("run") and "text" in towers:
            _check_vocabulary(field, path, tokenizer)
        loaded, report = load_into(family, config.model, fresh, towers)
        leaves |= loaded
        lines.append(f"{field} from {path} ({family.name}):")
        lines += [f"  {line}" for line in report.lines() + _differences(family, config, towers)]
    return tree_of(leaves), lines


def _check_vocabulary(field: str, workdir: str, tokenizer: Tokenizer) -> None:
    old = run_tokenizer(workdir, load_config(workdir).data.tokenizer)
    if old.content != tokenizer.content:
        raise ValueError(
            f"{field} ({workdir}) was trained with another vocabulary. Set data.tokenizer.path to "
            f"the file in {epath.Path(workdir) / 'tokenizer'}."
        )


def _differences(family: Family, config: TrainConfig, towers: tuple[str, ...]) -> list[str]:
    """What the checkpoint was made with and the config does otherwise, without being wrong."""
    pairs = []
    if "image" in towers:
        fields = ("resize", "mean", "std")
        pairs += [(f"data.image.{f}", family.image, config.data.image, f) for f in fields]
    if "text" in towers:
        pairs += [("model.text.pool", family.model.text, config.model.text, "pool")]
        pairs += [("model.text.mask_padding", family.model.text, config.model.text, "mask_padding")]
    lines = [
        f"{name} is {getattr(here, field)!r} here, and was {getattr(there, field)!r} there"
        for name, there, here, field in pairs
        if getattr(there, field) != getattr(here, field)
    ]
    return lines + [f"Assumed: {line}" for line in family.assumed]
