"""Noise on the input of a step (Vincent et al., "Stacked denoising autoencoders", JMLR 11, 2010, section 4)."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from fastsae.config import Config
from fastsae.reference.activations import Array
from fastsae.reference.random import draw, two_normals


class Corrupted(NamedTuple):
    """The input of a step.

    Attributes
    ----------
    x : array [N, d]
    weight : array [N, d]
        Weights of the elements of the loss.
    """

    x: Array
    weight: Array


def corrupt(config: Config, X: Array, numbers: ArrayLike, seed: int, epoch: int) -> Corrupted:
    """`X` [N, d] with the noise of its rows.

    One draw gives four words. The columns are cut into four runs of ``ceil(d / 4)``, of which the last ones may be
    shorter: the words of draw c are those of column c of each run.

    Parameters
    ----------
    config : Config
    X : array [N, d]
    numbers : array of int [N]
        Which row of the data set each one is.
    seed, epoch : int
    """
    ones = np.ones_like(X)
    if config.corruption == "none":
        return Corrupted(X, ones)
    d, level = X.shape[1], float(config.corruption_level)
    words = draw("corruption", seed, epoch, numbers, np.arange(math.ceil(d / 4)))
    if config.corruption == "gaussian":
        normals = np.hstack([*two_normals(words[0], words[1]), *two_normals(words[2], words[3])])[:, :d]
        return Corrupted(X + X.dtype.type(level) * normals.astype(X.dtype), ones)
    word = np.hstack(words)[:, :d]
    # The upper 31 bits say whether an element is corrupted, the last one to which value.
    chosen = (word >> np.uint64(1)) < np.uint64(math.floor(level * 2.0**31 + 0.5))
    low, high = (0.0, 0.0) if config.corruption == "masking" else (config.corruption_low, config.corruption_high)
    replacement = np.where(word & np.uint64(1), X.dtype.type(high), X.dtype.type(low))
    weight = np.where(chosen, X.dtype.type(config.emphasis), X.dtype.type(config.emphasis_rest))
    return Corrupted(np.where(chosen, replacement, X), weight)
