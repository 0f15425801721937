"""Which record is the i-th sample of a run: sources mixed and shuffled without end, by arithmetic.

The sequence is a pure function of the seed and the sources, so a position in it is one integer.
Imports no jax.
"""

import functools
import math
import sys
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from grain.experimental import index_shuffle


class Ref(NamedTuple):
    """One sample, not yet read."""

    source: int
    epoch: int
    position: int


class TrainSamples:
    """The endless sequence of a run: `samples[i] -> Ref`.

    Each source is in a new order every epoch. The sources are mixed in even strides: of the first
    n samples each has its share of n, rounded, so those with weights by size end their epochs
    together (grain's mix rounds weights to hundredths of the smallest).
    """

    def __init__(self, positions: Sequence[np.ndarray], weights: Sequence[float], seed: int):
        self.positions = positions
        self.seeds = [
            int(np.random.SeedSequence((seed, i)).generate_state(1)[0])
            for i in range(len(positions))
        ]
        self.shares = [weight / sum(weights[i:]) for i, weight in enumerate(weights)]

    def __len__(self) -> int:
        return sys.maxsize

    def __getitem__(self, index: int) -> Ref:
        source, index = self._mix(index)
        positions = self.positions[source]
        epoch, index = divmod(index, len(positions))
        seed = (self.seeds[source] + epoch) % 2**32
        return Ref(source, epoch, int(positions[_shuffled(index, len(positions), seed)]))

    def _mix(self, index: int) -> tuple[int, int]:
        """Number in the mixture -> (source, number among the samples of the source)."""
        for source, share in enumerate(self.shares):  # of what the sources before leave over
            before = math.floor(index * share + 0.5)
            if math.floor((index + 1) * share + 0.5) > before:
                return source, before
            index -= before
        raise AssertionError("the last share is 1")


def _shuffled(index: int, length: int, seed: int) -> int:
    if length < 2**16:  # of fewer places index_shuffle goes through 2**16, a millisecond for 20
        return int(_permutation(length, seed)[index])
    return index_shuffle(index, max_index=length - 1, seed=seed, rounds=4)


@functools.lru_cache(maxsize=64)
def _permutation(length: int, seed: int) -> np.ndarray:
    # raw bits: NumPy promises them for good, and not its own permutations
    return np.argsort(np.random.Philox(key=seed).random_raw(length), kind="stable")
