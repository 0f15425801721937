"""Name tables: which tensors of a public format are which of our parameters, in both directions.

A table is a list of Rules. One table serves reading and writing, so that what we write is what we
would read. Our paths are "/"-joined; what lies below "/blocks/" is stacked over the depth, and has
"{i}" in the format's name.

Shape letters: L blocks, D width, N heads, H head size, P patch size, T positions.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence

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
    optional: bool = False  # a file may lack it; ours then stay fresh

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
    Leading dimensions of size 1, as timm and Hugging Face's ViT have them, are written by `shaped`.
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
        return lines


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
    report, leaves, used, missing = Report(), {}, set(), []
    for rule in rules:
        paths = [path for path in rule.ours if path in shapes]
        if not paths:
            continue
        depth = shapes[paths[0]][0] if "{i}" in rule.theirs[0] else None
        names = [list(_names(rule.theirs, i)) for i in range(depth or 1)]
        absent = [name for block in names for name in block if name not in tensors]
        if absent:
            if rule.optional and len(absent) == sum(map(len, names)):
                continue
            missing += absent
            continue
        used.update(name for block in names for name in block)
        leaves |= _read_rule(rule, tensors, names, shapes, depth, source, report)
    if missing:
        raise ValueError(
            f"{source} lacks {len(missing)} tensors that the model needs: {', '.join(missing[:4])}"
            f"{', ...' if len(missing) > 4 else ''}. Is it complete, and of this family?"
        )
    report.loaded = list(leaves)
    report.fresh = [path for path in shapes if path not in leaves]
    report.unused = [name for name in tensors if name not in used]
    return leaves, report


def _contiguous(x: np.ndarray) -> np.ndarray:
    return np.asarray(x, order="C")  # np.ascontiguousarray would give a scalar a dimension


def _names(theirs: Sequence[str], i: int) -> Iterator[str]:
    return (name.replace("{i}", str(i)) for name in theirs)


def _read_rule(rule, tensors, names, shapes, depth, source, report) -> dict[str, np.ndarray]:
    """The leaves of one rule; blocks are stacked as they come, so that none is held twice."""
    leaves: dict[str, np.ndarray] = {}
    for i, block in enumerate(names):
        loaded = [np.asarray(tensors[name]) for name in block]
        try:
            values = rule.read(*loaded)
        except (ValueError, IndexError):  # of a rank or size that the layout cannot have
            values = tuple(loaded) * len(rule.ours)
        for path, value in zip(rule.ours, values, strict=False):
            if path not in shapes:
                continue
            expected = shapes[path] if depth is None else shapes[path][1:]
            theirs = f"{', '.join(block)} ({', '.join(str(list(x.shape)) for x in loaded)})"
            value = _fit(path, value.astype(np.float32), expected, f"{source}: {theirs}", report)
            if depth is None:
                leaves[path] = np.asarray(value, order="C")
            else:
                leaves.setdefault(path, np.empty((depth, *expected), np.float32))[i] = value
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
        if not all(path in leaves for path in rule.ours):
            assert rule.optional and not any(path in leaves for path in rule.ours), rule.ours
            continue
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
