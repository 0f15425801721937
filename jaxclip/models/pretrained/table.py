"""Name tables: which tensors of a public format are which of our parameters, in both directions.

A table is a list of Rules. One table serves reading and writing, so that what we write is what we
would read. Our paths are "/"-joined; what lies below "/blocks/" is stacked over the depth, and has
"{i}" in the format's name.

Shape letters: L blocks, D width, N heads, H head size, P patch size, T positions.
"""

import dataclasses
import math
import re
from collections.abc import Callable, Collection, Mapping, Sequence

import numpy as np

from jaxclip.models.vit import resize_position_embedding

Tensors = Mapping[str, np.ndarray]
POSITIONS = "image/position_embedding"


@dataclasses.dataclass(frozen=True)
class Rule:
    """Some of our leaves, some of their tensors, and the two functions between them.

    Of one block: `read` takes their tensors to ours, in the order of `ours`; `write` inverts it.
    """

    ours: tuple[str, ...]
    theirs: tuple[str, ...]
    read: Callable[..., tuple[np.ndarray, ...]] = lambda *x: x
    write: Callable[..., tuple[np.ndarray, ...]] = lambda *x: x

    def prefixed(self, ours: str, theirs: str) -> "Rule":
        return dataclasses.replace(
            self,
            ours=tuple(ours + name for name in self.ours),
            theirs=tuple(theirs + name for name in self.theirs),
        )


def prefix(rules: Sequence[Rule], ours: str, theirs: str) -> list[Rule]:
    return [rule.prefixed(ours, theirs) for rule in rules]


def same(ours: str, theirs: str) -> Rule:
    return Rule((ours,), (theirs,))


def matrix(ours: str, theirs: str) -> Rule:
    """PyTorch's [out, in] against our [in, out]."""
    return Rule((ours,), (theirs,), lambda w: (w.T,), lambda w: (w.T,))


def linear(ours: str, theirs: str) -> list[Rule]:
    """A Linear layer with bias: kernel and bias."""
    return [
        matrix(f"{ours}/kernel", f"{theirs}.weight"),
        same(f"{ours}/bias", f"{theirs}.bias"),
    ]


def norm(ours: str, theirs: str) -> list[Rule]:
    return [same(f"{ours}/scale", f"{theirs}.weight"), same(f"{ours}/bias", f"{theirs}.bias")]


def shaped(ours: str, theirs: str, ours_ndim: int, theirs_ndim: int) -> Rule:
    """Equal but for leading dimensions of size 1."""
    return Rule(
        (ours,),
        (theirs,),
        lambda x: (x.reshape(x.shape[x.ndim - ours_ndim :]),),
        lambda x: (x.reshape((1,) * (theirs_ndim - x.ndim) + x.shape),),
    )


def fused(ours: Sequence[str], weight: str, bias: str) -> list[Rule]:
    """Linear layers, as ("attention/query", ...), whose tensors lie above each other in one."""
    count = len(ours)
    return [
        Rule(
            tuple(f"{name}/kernel" for name in ours),
            (weight,),
            lambda w: tuple(part.T for part in np.split(w, count)),
            lambda *parts: (np.concatenate([part.T for part in parts]),),
        ),
        Rule(
            tuple(f"{name}/bias" for name in ours),
            (bias,),
            lambda b: tuple(np.split(b, count)),
            lambda *parts: (np.concatenate(parts),),
        ),
    ]


QKV = ("attention/query", "attention/key", "attention/value")


def separate(*theirs: str) -> list[Rule]:
    """Queries, keys and values in a linear layer each."""
    return [rule for ours, name in zip(QKV, theirs, strict=True) for rule in linear(ours, name)]


def block_rules(
    norm1: str, norm2: str, attention: Sequence[Rule], out: str, up: str, down: str
) -> list[Rule]:
    """A transformer block of PyTorch: norms, queries, keys and values, and linear layers."""
    layers = (("attention/out", out), ("mlp/up", up), ("mlp/down", down))
    found = norm("norm1", norm1) + norm("norm2", norm2) + list(attention)
    return found + [rule for ours, theirs in layers for rule in linear(ours, theirs)]


def convolution(ours: str, theirs: str) -> Rule:
    """PyTorch's [out, in, height, width] against our [height, width, in, out]."""
    return Rule(
        (ours,), (theirs,), lambda w: (w.transpose(2, 3, 1, 0),),
        lambda w: (w.transpose(3, 2, 0, 1),),
    )  # fmt: skip


def patch_convolution(ours: str, theirs: str) -> Rule:
    """A convolution [D, 3, P, P] against our matrix [P*P*3, D], rows (row, column, channel)."""

    def write(kernel):
        P = math.isqrt(kernel.shape[0] // 3)
        return (kernel.reshape(P, P, 3, -1).transpose(3, 2, 0, 1),)

    return Rule(
        (ours,), (theirs,), lambda w: (w.transpose(2, 3, 1, 0).reshape(-1, w.shape[0]),), write
    )


def class_and_positions(class_token: str, positions: str) -> Rule:
    """A class token, and positions whose row 0 is the class token's.

    Ours is the sum of token and row 0. Written back, the token has all of it and row 0 is zeros.
    Leading dimensions of size 1, which timm and Hugging Face's ViT have, are written by `batched`.
    """

    def read(token, table):
        table = table.reshape(-1, table.shape[-1])
        return token.reshape(-1) + table[0], table[1:]

    def write(token, table):
        return token, np.concatenate([np.zeros_like(table[:1]), table])

    return Rule(("class_token", "position_embedding"), (class_token, positions), read, write)


def batched(rule: Rule, ndim: int = 3) -> Rule:
    """The same with leading dimensions of size 1, up to `ndim`, in the file."""

    def write(*leaves):
        return tuple(x.reshape((1,) * (ndim - x.ndim) + x.shape) for x in rule.write(*leaves))

    return dataclasses.replace(rule, write=write)


@dataclasses.dataclass
class Report:
    """What became of the tensors of a file."""

    loaded: list[str] = dataclasses.field(default_factory=list)  # our paths
    resized: list[str] = dataclasses.field(default_factory=list)  # "path: [16, 8] -> [25, 8]"
    fresh: list[str] = dataclasses.field(default_factory=list)  # our paths, left at random
    unused: list[str] = dataclasses.field(default_factory=list)  # their names
    assumed: list[str] = dataclasses.field(default_factory=list)  # what the file does not say

    def lines(self) -> list[str]:
        lines = [f"Loaded {len(self.loaded)} parameters"]
        for field, what in (
            ("resized", "Resized"),
            ("fresh", "Left at their initial values"),
            ("unused", "In the file, but not used"),
        ):
            if names := getattr(self, field):
                shown = ", ".join(names[:6]) + (", ..." if len(names) > 6 else "")
                lines.append(f"{what} ({len(names)}): {shown}")
        return lines + [f"Assumed: {line}" for line in self.assumed]

    @property
    def is_plain(self) -> bool:
        """Whether all was loaded as it is, and nothing else was there."""
        return not (self.resized or self.fresh or self.unused or self.assumed)


def read(
    rules: Sequence[Rule], tensors: Tensors, shapes: Mapping[str, tuple[int, ...]], source: str
) -> tuple[dict[str, np.ndarray], Report]:
    """Our leaves, by path, from a file's tensors.

    Args:
      shapes: of the leaves that the model has; others are not read.
      source: how to call the file in an error.
    Returns:
      float32 arrays, and what was loaded, resized, left out and not used.
    Raises:
      ValueError: a tensor is missing, or its shape does not fit; names both sides.
    """
    matched, missing, unused = match(rules, tensors, shapes)
    if missing:
        raise ValueError(
            f"{source} lacks {len(missing)} tensors that the model needs: {', '.join(missing[:4])}"
            f"{', ...' if len(missing) > 4 else ''}. Is it complete, and of this family?"
        )
    if strange := in_blocks(unused, matched):
        raise ValueError(
            f"{source} has {len(strange)} tensors in its blocks that the model has no place for: "
            f"{', '.join(strange[:4])}{', ...' if len(strange) > 4 else ''}. It is deeper than its "
            "config says, or has parts that are not built here."
        )
    report, leaves = Report(unused=unused), {}
    for rule, blocks in matched:
        leaves |= _read_rule(rule, tensors, blocks, shapes, source, report)
    report.loaded = list(leaves)
    report.fresh = [path for path in shapes if path not in leaves]
    return leaves, report


Matched = list[tuple[Rule, list[list[str]]]]  # rules, and their tensors' names, block by block


def match(
    rules: Sequence[Rule], names: Collection[str], shapes: Mapping[str, tuple[int, ...]]
) -> tuple[Matched, list[str], list[str]]:
    """Which tensors are which leaves, by name alone.

    Returns:
      The rules of these leaves with their tensors' names; names that the file lacks; names in it
      that are not used.
    """
    matched: Matched = []
    for rule in rules:
        path = next((path for path in rule.ours if path in shapes), None)
        if path is None:
            continue
        depth = shapes[path][0] if "{i}" in rule.theirs[0] else 1
        matched.append((rule, [_names(rule.theirs, i) for i in range(depth)]))
    wanted = dict.fromkeys(name for _, blocks in matched for block in blocks for name in block)
    missing = [name for name in wanted if name not in names]
    return matched, missing, [name for name in names if name not in wanted]


def in_blocks(names: Sequence[str], matched: Matched) -> list[str]:
    """Those that belong to the blocks of a tower that is read: without them it is another one."""
    starts = {name.split("{i}")[0] for rule, _ in matched for name in rule.theirs if "{i}" in name}
    pattern = re.compile(f"({'|'.join(map(re.escape, starts))})\\d+[./]") if starts else None
    return [name for name in names if pattern and pattern.match(name)]


def _contiguous(x: np.ndarray) -> np.ndarray:
    return np.asarray(x, order="C")  # np.ascontiguousarray would give a scalar a dimension


def _names(theirs: Sequence[str], i: int) -> list[str]:
    return [name.replace("{i}", str(i)) for name in theirs]


def _read_rule(rule, tensors, blocks, shapes, source, report) -> dict[str, np.ndarray]:
    """The leaves of one rule; blocks are stacked as they come, so that none is held twice."""
    leaves: dict[str, np.ndarray] = {}
    is_stacked = "{i}" in rule.theirs[0]
    for i, block in enumerate(blocks):
        loaded = [np.asarray(tensors[name]) for name in block]
        try:
            values = rule.read(*loaded)
        except (ValueError, IndexError):  # of a rank or size that the layout cannot have
            values = tuple(loaded) * len(rule.ours)
        for path, value in zip(rule.ours, values, strict=False):
            if path not in shapes:
                continue
            expected = shapes[path][1:] if is_stacked else shapes[path]
            theirs = f"{', '.join(block)} ({', '.join(str(list(x.shape)) for x in loaded)})"
            value = _fit(path, value.astype(np.float32), expected, f"{source}: {theirs}", report)
            if is_stacked:
                leaves.setdefault(path, np.empty(shapes[path], np.float32))[i] = value
            else:
                leaves[path] = np.asarray(value, order="C")
    return leaves


def _fit(path, value, expected, theirs, report):
    """`value` in the shape that the model has; position embeddings are resized or cut."""
    if value.shape == expected:
        return value
    same_width = value.ndim == len(expected) == 2 and value.shape[1] == expected[1]
    is_square = all(math.isqrt(n) ** 2 == n for n in (value.shape[:1] + expected[:1]))
    if path == POSITIONS and same_width and is_square:
        report.resized.append(f"{path} {list(value.shape)} -> {list(expected)}")
        return np.asarray(resize_position_embedding(value, expected[0]))
    if path == "text/position_embedding" and same_width and value.shape[0] > expected[0]:
        report.resized.append(f"{path} first {expected[0]} rows of {value.shape[0]}")
        return value[: expected[0]]
    raise ValueError(
        f"{theirs} does not fit {path}, which has shape {list(expected)} in the model. "
        "Make config.model (and data.image.size, data.tokenizer) that of the file."
    )


def write(rules: Sequence[Rule], leaves: Tensors) -> dict[str, np.ndarray]:
    """A file's tensors from our leaves, by path. What no rule names must be none: an assert."""
    tensors: dict[str, np.ndarray] = {}
    written = set()
    for rule in rules:
        values = [np.asarray(leaves[path], np.float32) for path in rule.ours]
        written.update(rule.ours)
        if "{i}" in rule.theirs[0]:
            for i in range(len(values[0])):
                block = rule.write(*(value[i] for value in values))
                tensors |= zip(_names(rule.theirs, i), map(_contiguous, block), strict=True)
        else:
            block = map(_contiguous, rule.write(*values))
            tensors |= zip(rule.theirs, block, strict=True)
    assert written == set(leaves), sorted(set(leaves) - written)
    return tensors
