"""Weights that need not be stored: a tensor's name and shape decide its values."""

import zlib

import numpy as np


def random_tensor(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """float32; matrices of a size that keeps activations near 1, no bias and no norm trivial."""
    x = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape)
    if name == "logit_scale":
        x = 2.3 + 0.1 * x
    elif name.endswith("running_var"):
        x = 0.5 + np.abs(x)
    elif len(shape) >= 2:
        x = 1.2 * x / np.sqrt(np.prod(shape[1:]))
    elif name.endswith("weight"):
        x = 1 + 0.2 * x
    else:
        x = 0.2 * x
    return np.asarray(x, np.float32)


def random_images(shape: tuple[int, ...]) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)


def random_tokens(vocab_size: int, length: int, eos_id: int, pad_id: int) -> np.ndarray:
    """int32 [3, length]: one that fills it, two with padding; eos and pad occur nowhere else."""
    rng = np.random.default_rng(1)
    special = max(4, eos_id + 1 if eos_id < vocab_size // 2 else 4)
    tokens = rng.integers(special, vocab_size - 1, (3, length)).astype(np.int32)
    for row, end in enumerate((length - 1, length // 2, 2)):
        tokens[row, end] = eos_id
        tokens[row, end + 1 :] = pad_id
    return tokens
