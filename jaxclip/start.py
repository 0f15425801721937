"""Where a model's parameters come from: another run, or a checkpoint of somebody else's.

family = open_model("RUN")            # or a checkpoint's path, or a name on the hub
params, lines = start_params(config, inputs, tokenizer, state.params)
"""

import dataclasses

import jax
import numpy as np
from etils import epath

from jaxclip.checkpoint import load_params
from jaxclip.config import TrainConfig, load_config
from jaxclip.data.text import Tokenizer, load_tokenizer
from jaxclip.models import clip
from jaxclip.models.pretrained import leaves_of, load_into, open_checkpoint, tree_of
from jaxclip.models.pretrained.family import TOWERS, Family
from jaxclip.models.pretrained.files import Tensor, Weights
from jaxclip.models.pretrained.table import same
from jaxclip.workdir import run_tokenizer


def model_inputs(config: TrainConfig, tokenizer: Tokenizer) -> clip.Inputs:
    """What the model takes in, from the image config and the tokenizer."""
    return clip.Inputs(
        image_size=config.data.image.size,
        mean=config.data.image.mean,
        std=config.data.image.std,
        vocab_size=tokenizer.vocab_size,
        context_length=tokenizer.context_length,
        pad_id=tokenizer.pad_id,
        eos_id=tokenizer.eos_id,
    )


def open_model(path_or_name: str) -> Family:
    """A run of jaxclip.train, or what models.pretrained.open_checkpoint takes.

    Raises:
      FileNotFoundError: nothing there, or a run without a checkpoint.
      ValueError: unreadable, or of no known family.
    """
    return open_run(path_or_name) if is_run(path_or_name) else open_checkpoint(path_or_name)


def is_run(path: epath.PathLike) -> bool:
    """Whether it is the folder of a run of jaxclip.train."""
    return all((epath.Path(path) / file).exists() for file in ("config.json", "run.json"))


def open_run(workdir: epath.PathLike) -> Family:
    """A run's newest parameters, described as a checkpoint of another format is.

    They are the averaged ones where the run scores those (eval.ema), as jaxclip.evaluate does.
    """
    config = load_config(workdir)
    tokenizer = run_tokenizer(workdir, config.data.tokenizer)
    inputs = model_inputs(config, tokenizer)
    shapes = jax.eval_shape(lambda: clip.init(config.model, inputs, jax.random.key(0)))
    on_one = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=on_one), shapes)
    ema = config.eval.ema
    step, params = load_params(workdir, like, ema=ema)
    tensors = {
        path: Tensor(leaf.shape, lambda leaf=leaf: np.asarray(leaf))
        for path, leaf in leaves_of(params).items()
    }
    (file,) = (epath.Path(workdir) / "tokenizer").iterdir()
    return Family(
        name=f"run of jaxclip, step {step:,}{', averaged parameters' if ema else ''}",
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
        differing = _check_vocabulary(field, family, tokenizer) if "text" in towers else []
        loaded, report = load_into(family, config.model, fresh, towers)
        leaves |= loaded
        lines.append(f"{field} from {path} ({family.name}):")
        differing += _differences(family, config, towers)
        lines += [f"  {line}" for line in report.lines() + differing]
    return tree_of(leaves), lines


# Plain words and digits, which every cleaner leaves alone: other ids are of another vocabulary.
WORDS = ("chest radiograph of the left lung", "histology section at day 7", "immunofluorescence")


def _check_vocabulary(field: str, family: Family, tokenizer: Tokenizer) -> list[str]:
    """Lines on what else the texts go through here than there.

    Raises:
      ValueError: the text tower was trained with another vocabulary.
    """
    if not family.tokenizer.path:
        if tokenizer.vocab_size > family.vocab_size:
            raise ValueError(
                f"{field} ({family.source}) has {family.vocab_size:,} token embeddings, and "
                f"data.tokenizer ({tokenizer.file_name}) has {tokenizer.vocab_size:,} ids. Set "
                "data.tokenizer.path to the vocabulary that it was trained with."
            )
        return [f"No vocabulary comes with it: that {tokenizer.file_name} is its own is for you "
                "to know"]  # fmt: skip
    theirs = load_tokenizer(family.tokenizer)
    ids = zip(_plain_ids(tokenizer), _plain_ids(theirs), strict=True)
    # as far as both contexts reach
    if any(here[: len(there)] != there[: len(here)] for here, there in ids):
        raise ValueError(
            f"{field} ({family.source}) was trained with another vocabulary than data.tokenizer "
            f"({tokenizer.file_name}). Set data.tokenizer.path to {family.tokenizer.path}; "
            "--config=configs/fine_tune.py:PATH does so by itself."
        )
    pairs = [(name, getattr(theirs, name), getattr(tokenizer, name))
             for name in ("clean", "bos_id", "eos_id", "pad_id")]  # fmt: skip
    return [
        f"The tokenizer's {name} is {here!r} here, and was {there!r} there"
        for name, there, here in pairs
        if there != here
    ]


def _plain_ids(tokenizer: Tokenizer) -> list[list[int]]:
    """Ids of WORDS, without those that a setting adds."""
    special = {tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id}
    return [[i for i in ids if i not in special] for ids in tokenizer.encode(WORDS).tolist()]


def _differences(family: Family, config: TrainConfig, towers: tuple[str, ...]) -> list[str]:
    """What the checkpoint was made with and the config does otherwise, without being wrong."""
    pairs = []
    if "image" in towers:
        fields = ("resize", "mean", "std")
        pairs += [(f"data.image.{f}", family.image, config.data.image, f) for f in fields]
    if "text" in towers:
        pairs += [("model.text.pool", family.model.text, config.model.text, "pool")]
        pairs += [("model.text.mask_padding", family.model.text, config.model.text, "mask_padding")]
    return [
        f"{name} is {getattr(here, field)!r} here, and was {getattr(there, field)!r} there"
        for name, there, here, field in pairs
        if getattr(there, field) != getattr(here, field)
    ]
