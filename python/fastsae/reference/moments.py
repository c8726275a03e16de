"""Moments of an optimiser in few bits, rounded up or down by chance.

A number between two neighbours a < x < b that can be kept becomes b with the probability ``(x - a) / (b - a)``, so that
its mean is x. To the nearest one it would often not move: a second moment changes by ``1 - beta2`` of itself, 0.001,
while neighbours are up to 0.8 % apart in bfloat16, and more in 8 bits.

**bf16**: float32 with 7 bits of mantissa.

**8bit**: block-wise quantisation with a dynamic tree (Dettmers, Lewis, Shleifer and Zettlemoyer, "8-bit optimizers via
block-wise quantization", 2022, arXiv:2110.02861; Dettmers, "8-bit approximations for parallelism in deep learning",
2016). A block is up to 256 neighbouring columns of a row; what is kept of a number is the share of its size in that of
the block's largest one, its scale. The levels ``D(1), D(2), ..., D(2^n) = 1`` of a share are those of the line through
the points ``(2^i, 10^(i - n))``: n decades, of which each has twice as many levels as the one below. A first moment has
a sign and n = 7, and 0 in the place of its lowest level 1e-7. A second moment has n = 8, and no 0: it divides, and one
that vanished before the first moment did would make a step without bounds. So a share is kept as 1e-8 or more, and
neighbouring levels differ by a factor of 10 or less: one rounding makes a step at most sqrt(10) times as long.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastsae.reference.activations import Array
from fastsae.reference.random import Words, draw

BLOCK = 256
#: Parameters with a row for each latent, whose moments are kept so; the others are small.
MATRICES = ("W_enc", "W_dec")
_DECADES = {"first": 7, "second": 8}


def chances(matrix: str, shape: tuple[int, int], seed: int, step: int) -> tuple[Words, Words]:
    """Numbers of 16 random bits for both moments of a matrix in step 1, 2, ...: arrays of its shape.

    Column c takes word ``c % 1024 // 256`` of the draw at column ``c // 1024 * 256 + c % 256``: the lower half is for
    the first moment, the upper half for the second.
    """
    rows = 2 * np.arange(shape[0]) + MATRICES.index(matrix)
    column = np.arange(shape[1])
    words = np.stack(draw("rounding", seed, step, rows, column // (4 * BLOCK) * BLOCK + column % BLOCK))
    word = np.take_along_axis(words, np.broadcast_to(column % (4 * BLOCK) // BLOCK, (1, *shape)), axis=0)[0]
    return word & np.uint64(0xFFFF), word >> np.uint64(16)


def kept(moment: Array, which: str, state_precision: str, chance: Words) -> Array:
    """What is left of a moment [n, columns] between two steps.

    Parameters
    ----------
    moment : array [n, columns]
    which : {"first", "second"}
    state_precision : {"bf16", "8bit"}
    chance : array [n, columns]
        Whole numbers below 2^16.
    """
    if state_precision == "bf16":
        return bf16_values(to_bf16(moment, which, chance)).astype(moment.dtype)
    return byte_values(*to_bytes(moment, which, chance), which)


def to_bf16(moment: Array, which: str, chance: Words) -> NDArray[np.uint16]:
    """The bits of bfloat16; of a positive second moment at least those of its smallest normal number."""
    if which == "second":
        moment = np.where(moment > 0, np.maximum(moment, np.finfo(np.float32).tiny), moment)
    with np.errstate(over="ignore"):
        bits = moment.astype(np.float32).view(np.uint32)
    size = np.minimum(bits & np.uint32(0x7FFFFFFF), np.uint32(0x7F7F0000))
    rounded: NDArray[np.uint16] = (((bits & np.uint32(0x80000000)) | (size + chance)).astype(np.uint32) >> 16).astype(
        np.uint16
    )
    return rounded


def bf16_values(bits: NDArray[np.uint16]) -> NDArray[np.float32]:
    """The numbers that these bits are."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def levels(which: str, dtype: Any = np.float64) -> Array:
    """The shares that can be kept, ascending from code 0."""
    n, dtype = _DECADES[which], np.dtype(dtype)
    u = np.arange(1, 2**n + 1).astype(dtype)
    lines = [dtype.type(10.0 ** (i - n)) * (dtype.type(9) * (u / dtype.type(2**i)) - dtype.type(8)) for i in range(n)]
    if which == "first":
        lines[0] = dtype.type(1e-6) * (u - dtype.type(1))
    highest: Array = np.max(lines, axis=0)  # the line is convex
    return highest


def to_bytes(moment: Array, which: str, chance: Words) -> tuple[NDArray[np.uint8], Array]:
    """Codes [n, columns], with the sign in the highest bit of a first moment, and scales [n, blocks]."""
    n, number = _DECADES[which], moment.dtype.type
    tiny = np.finfo(moment.dtype).tiny
    starts = range(0, moment.shape[1], BLOCK)
    largest = np.stack([np.abs(moment[:, at : at + BLOCK]).max(axis=1) for at in starts], axis=1)
    scale: Array = np.where(largest < tiny, number(0), np.minimum(largest, number(1) / tiny))
    inverse = np.where(scale > 0, number(1) / np.where(scale > 0, scale, number(1)), number(0))
    with np.errstate(over="ignore"):
        share = np.minimum(np.abs(moment) * _spread(inverse, moment), number(1))
    lines = [number(8 * 2**i) + number(2**i * 10 ** (n - i)) * share for i in range(n)]
    lines[0] = number(9) + number(9e6) * share if which == "first" else np.maximum(lines[0], number(9))
    place = np.min(lines, axis=0) * number(1 / 9) + chance.astype(moment.dtype) * number(2.0**-16)  # concave
    code = np.minimum(place.astype(np.int64) - 1, 2**n - 1)
    if which == "first":
        code |= np.where(moment < 0, 0x80, 0)
    return code.astype(np.uint8), scale


def byte_values(codes: NDArray[np.uint8], scale: Array, which: str) -> Array:
    """The numbers that these codes and scales are."""
    shares = levels(which, scale.dtype)
    if which == "first":
        shares = np.concatenate([shares, -shares])
    values: Array = shares[codes] * _spread(scale, codes)
    return values


def _spread(of_blocks: Array, like: NDArray[Any]) -> Array:
    """Numbers [n, blocks] for each column of their block."""
    spread: Array = np.repeat(of_blocks, BLOCK, axis=1)[:, : like.shape[1]]
    return spread
