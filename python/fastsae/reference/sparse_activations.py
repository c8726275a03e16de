"""Which latents are active, and the slopes of a jump that has none.

Scores and pre-activations are ``[B, n]``: rows of a batch and latents.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from fastsae.reference.activations import Array
from fastsae.reference.selection import select
from fastsae.sparse_code import SparseCodeConfig

Mask = NDArray[np.bool_]


def k_at(config: SparseCodeConfig, t: int) -> float:
    """How many latents of a row step `t`, counted from 1, keeps; an integer for ``topk``."""
    k = float(config.k)
    if config.k_start is not None:
        k += (float(config.k_start) - k) * max(0.0, 1.0 - (t - 1) / config.k_warm_up)
    return max(1, math.floor(k + 0.5)) if config.activation == "topk" else k


def largest_of_rows(scores: Array, k: int) -> Mask:
    """The k largest of each row; of equal ones those of the lower latents."""
    kept = np.zeros(scores.shape, bool)
    np.put_along_axis(kept, select(scores, k)[1], True, axis=1)
    return kept


def largest_of_batch(scores: Array, k: float) -> Mask:
    """The ``floor(k B)`` largest of all that are above 0; of equal ones those of the lower rows, then latents."""
    kept = np.zeros(scores.size, bool)
    kept[np.argsort(-scores.ravel(), kind="stable")[: math.floor(k * len(scores))]] = True
    return kept.reshape(scores.shape) & (scores > 0)


def window(z: Array, threshold: Array, bandwidth: float) -> Array:
    """``1 / eps`` where z is closer than ``eps / 2`` to the threshold, else 0: [B, n].

    The step ``1[z > threshold]`` takes minus this for its slope by the threshold (Rajamanoharan et al. 2024,
    "Jumping ahead: improving reconstruction fidelity with JumpReLU sparse autoencoders", equations 11 and 12).
    """
    near = np.abs((z - threshold) / bandwidth) < 0.5
    return near.astype(z.dtype) / bandwidth


def row_norms(weight: Array) -> Array:
    """The Euclidean norm of each row."""
    norms: Array = np.sqrt((weight**2).sum(axis=1))
    return norms


def directions(weight: Array) -> Array:
    """Rows of norm 1, the slope of each row's norm; a zero row stays."""
    norms = row_norms(weight)[:, None]
    return weight / np.where(norms > 0, norms, 1.0).astype(weight.dtype)
