"""Noise on the input of a step (Vincent et al., "Stacked denoising autoencoders", JMLR 11, 2010, section 4)."""

from __future__ import annotations

import math

import numpy as np

from fastsae.config import Config
from fastsae.reference.activations import Array
from fastsae.reference.random import Noise, draw


def corrupt(config: Config, X: Array, target: Array, noise: Noise) -> tuple[Array, Array]:
    """`X` [N, d] with the noise of its rows.

    One draw gives four words. The columns are cut into four runs of ``ceil(d / 4)``, of which the last ones may be
    shorter: the words of draw c are those of column c of each run.

    Parameters
    ----------
    config : Config
    X : array [N, d]
    target : array [N, outputs]
    noise : Noise

    Returns
    -------
    x : array [N, d]
        The input of the step.
    weight : array [N, outputs]
        Weights of the elements of the loss.
    """
    ones = np.ones_like(target)
    if config.corruption == "none":
        return X, ones
    d, level = X.shape[1], float(config.corruption_level)
    if config.corruption == "gaussian":
        return X + X.dtype.type(level) * noise.normals("corruption", X), ones
    words = draw("corruption", noise.seed, noise.epoch, noise.numbers, np.arange(math.ceil(d / 4)))
    word = np.hstack(words)[:, :d]
    # The upper 31 bits say whether an element is corrupted, the last one to which value.
    chosen = (word >> np.uint64(1)) < np.uint64(math.floor(level * 2.0**31 + 0.5))
    low, high = (0.0, 0.0) if config.corruption == "masking" else (config.corruption_low, config.corruption_high)
    replacement = np.where(word & np.uint64(1), X.dtype.type(high), X.dtype.type(low))
    x = np.where(chosen, replacement, X)
    if config.emphasis == config.emphasis_rest == 1:
        return x, ones
    weight = np.where(chosen, X.dtype.type(config.emphasis), X.dtype.type(config.emphasis_rest))
    return x, weight
