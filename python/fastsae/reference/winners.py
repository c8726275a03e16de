"""Winner-take-all (Makhzani and Frey, 2015, "Winner-take-all autoencoders", sections 2 and 3)."""

from __future__ import annotations

import math

import numpy as np

from fastsae.reference.activations import Array


def keep_winners(a: Array, share: Array, winners: str, lifetime: float) -> Array:
    """The activations `a` [N, channels, positions] of a relu layer, with 0 in the place of all but the winners.

    The cost is then that of a network in which the others do not exist: their slope is 0, and as long as the order of
    the activations stays the same, so do the winners.

    Parameters
    ----------
    share : array [N]
        Weight of each row; one of weight 0 wins nothing under ``lifetime``, and is not counted.
    winners : {"", "spatial", "lifetime", "both"}
        ``spatial``: the first largest position of each map of each row wins. ``lifetime``: each map wins in the
        ``ceil(lifetime N)`` rows where its largest activation is largest, of equal ones in the first.
    lifetime : float
    """
    kept = np.ones(a.shape, bool)
    if winners in ("spatial", "both"):
        kept &= np.arange(a.shape[2]) == a.argmax(axis=2)[:, :, None]
    if winners in ("lifetime", "both"):
        weighted = np.flatnonzero(share > 0)
        # 1e-6: 0.07 of 100 rows are 7, though the product is a little more.
        count = max(1, math.ceil(lifetime * len(weighted) - 1e-6))
        order = np.argsort(-a[weighted].max(axis=2), axis=0, kind="stable")  # rows of `weighted`, best first
        wins = np.zeros(a.shape[:2], bool)
        np.put_along_axis(wins, weighted[order[:count]], True, axis=0)
        kept &= wins[:, :, None]
    return np.where(kept, a, 0.0).astype(a.dtype)
