"""What an imported checkpoint is: the model, what it wants to see, and the table of its names."""

import dataclasses
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from jaxclip.data.image import ImageConfig
from jaxclip.data.text import TokenizerConfig
from jaxclip.models import clip
from jaxclip.models.clip import ClipConfig
from jaxclip.models.pretrained.files import Weights, read_json
from jaxclip.models.pretrained.table import Rule

TOWERS = ("image", "text")
CLIP_IMAGE = ImageConfig(interpolation="pillow_bicubic")
SIGLIP_IMAGE = ImageConfig(
    resize="squash", interpolation="pillow_bicubic", mean=(0.5,) * 3, std=(0.5,) * 3
)


@dataclasses.dataclass(kw_only=True)
class Family:
    """A checkpoint of somebody else's, described; its tensors are not yet read.

    Of a file with one tower, the fields of the other tower mean nothing.
    """

    name: str  # "Hugging Face CLIP", as reports have it
    model: ClipConfig
    image: ImageConfig = dataclasses.field(default_factory=lambda: CLIP_IMAGE)
    tokenizer: TokenizerConfig = dataclasses.field(default_factory=TokenizerConfig)
    vocab_size: int = 1
    pad_id: int = 0
    eos_id: int = 0
    weights: Weights
    rules: list[Rule]
    towers: tuple[str, ...] = TOWERS
    assumed: list[str] = dataclasses.field(default_factory=list)  # what the file does not say
    source: str = ""

    @property
    def inputs(self) -> clip.Inputs:
        return clip.Inputs(
            image_size=self.image.size,
            mean=self.image.mean,
            std=self.image.std,
            vocab_size=self.vocab_size,
            context_length=self.tokenizer.context_length,
            pad_id=self.pad_id,
            eos_id=self.eos_id,
        )


def first_existing(folder: Path | None, *names: str) -> str:
    """Path of the first of these files that is in the folder; "" if none is."""
    found = [folder / name for name in names if folder and (folder / name).exists()]
    return str(found[0]) if found else ""


def tokenizer_class(folder: Path | None) -> str:
    """Of transformers, by tokenizer_config.json; "" if that is not said."""
    file = first_existing(folder, "tokenizer_config.json")
    return (
        str(read_json(Path(file)).get("tokenizer_class", "")).removesuffix("Fast") if file else ""
    )


def special_tokens(folder: Path | None) -> dict[str, str]:
    """What tokenizer_config.json names: of TokenizerConfig's eos and pad those that it has."""
    file = first_existing(folder, "tokenizer_config.json")
    values = read_json(Path(file)) if file else {}
    found = {name: values.get(f"{name}_token") for name in ("eos", "pad")}
    # a token is written as a string, or with its properties
    found = {k: v.get("content") if isinstance(v, dict) else v for k, v in found.items()}
    return {k: v for k, v in found.items() if isinstance(v, str)}


def lookup(values: dict[str, Any], field: str, default: Any, allowed: dict[Any, Any]) -> Any:
    """allowed[values[field]], or a ValueError that names the field and what is known."""
    value = values.get(field, default)
    if not isinstance(value, (str, int)) or value not in allowed:
        known = ", ".join(map(str, allowed))
        raise ValueError(f"{field} ({value!r}) of the checkpoint's config must be one of {known}.")
    return allowed[value]


def check_sizes(section: str, said: dict[str, Any], found: dict[str, Any]) -> None:
    """Raises ValueError where a config and the tensors beside it are not of one model.

    Args:
      said: by the config; a field that it leaves out is not compared.
      found: the same fields, in the tensors' shapes and names.
    """
    differing = [
        f"{section}{field} is {said[field]} in the config and {value} in the weights"
        for field, value in found.items()
        if said.get(field) is not None and said[field] != value
    ]
    if differing:
        raise ValueError(
            f"{'; '.join(differing)}. The weights are incomplete, or not those of this config."
        )


def block_count(names: Iterable[str], start: str) -> int:
    """Number of blocks whose tensors are called `start`, a number, and more."""
    pattern = re.compile(re.escape(start) + r"(\d+)[./]")
    numbers = {int(m[1]) for name in names if (m := pattern.match(name))}
    return max(numbers, default=-1) + 1
