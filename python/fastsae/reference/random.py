"""Random numbers without a state: Philox4x32-10 (Salmon et al. 2011) and normals after Box and Muller (1958)."""

from __future__ import annotations

import dataclasses

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastsae.reference.activations import Array

#: What numbers are for.
STREAMS = {"corruption": 1, "code": 2, "direction": 3, "neighbour": 4, "rounding": 5}

Words = NDArray[np.uint64]  # of 32 bits


def philox(counter: tuple[Words, Words, Words, Words], key: tuple[int, int]) -> tuple[Words, Words, Words, Words]:
    """Four random words for each counter of four words and the key of two."""
    mask = np.uint64(0xFFFFFFFF)
    a, b, c, d = (np.asarray(word, np.uint64) for word in counter)
    k0, k1 = key
    for _ in range(10):
        left, right = a * np.uint64(0xD2511F53), c * np.uint64(0xCD9E8D57)
        shift = np.uint64(32)
        a, b, c, d = (
            (right >> shift) ^ b ^ np.uint64(k0),
            right & mask,
            (left >> shift) ^ d ^ np.uint64(k1),
            left & mask,
        )
        k0, k1 = (k0 + 0x9E3779B9) & 0xFFFFFFFF, (k1 + 0xBB67AE85) & 0xFFFFFFFF
    return a, b, c, d


def draw(stream: str, seed: int, epoch: int, rows: ArrayLike, columns: ArrayLike) -> tuple[Words, Words, Words, Words]:
    """Four words for each row of the data set and each column: arrays [rows, columns]."""
    row, column = np.broadcast_arrays(np.asarray(rows, np.uint64)[:, None], np.asarray(columns, np.uint64)[None, :])
    low, high = row & np.uint64(0xFFFFFFFF), row >> np.uint64(32)
    return philox((low, high, column, np.full_like(column, epoch)), (seed, STREAMS[stream]))


def uniform(word: Words) -> Array:
    """In (0, 1): the middle of the word's interval."""
    u: Array = (word.astype(np.float64) + 0.5) * 2.0**-32
    return u


def two_normals(word0: Words, word1: Words) -> tuple[Array, Array]:
    """``sqrt(-2 log u) (cos, sin)(2 pi v)`` with u and v the uniforms of the two words."""
    radius, turn = np.sqrt(-2.0 * np.log(uniform(word0))), 2.0 * np.pi * uniform(word1)
    return radius * np.cos(turn), radius * np.sin(turn)


def normals(stream: str, seed: int, epoch: int, rows: ArrayLike, n_columns: int) -> Array:
    """A standard normal number for each row of the data set and each column, [rows, n_columns].

    A row is cut into four runs of columns, the last of which may be shorter: the four numbers of one draw are those of
    its column in each run.
    """
    a, b, c, d = draw(stream, seed, epoch, rows, np.arange(-(-n_columns // 4)))
    runs: Array = np.concatenate([*two_normals(a, b), *two_normals(c, d)], axis=1)
    return runs[:, :n_columns]


@dataclasses.dataclass(frozen=True)
class Noise:
    """Where a step's random numbers come from.

    Attributes
    ----------
    seed, epoch : int
    numbers : array [N]
        Which row of the data set each one is.
    """

    seed: int
    epoch: int
    numbers: ArrayLike

    def normals(self, stream: str, like: Array) -> Array:
        """Standard normals in the shape and type of `like` [N, columns]."""
        return normals(stream, self.seed, self.epoch, self.numbers, like.shape[1]).astype(like.dtype)
