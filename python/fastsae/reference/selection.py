"""The selection of a TopK encoder, and the order it is made in."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastsae.reference.activations import Array


def select(z: ArrayLike, k: int) -> tuple[Array, NDArray[np.int32]]:
    """The k largest elements of each row of `z` [N, n] and their columns, in order: two arrays [N, k].

    Greater values come first and NaN before all of them. Of equal values, and -0 equals 0, the lower column comes
    first.
    """
    z = np.asarray(z)
    key = np.where(np.isnan(z), -np.inf, -z)  # ascending; NaN is told from infinity by the second key
    columns = np.broadcast_to(np.arange(z.shape[1]), z.shape)
    order = np.lexsort((columns, ~np.isnan(z), key))[:, :k]  # the last key is the first that is compared
    return np.take_along_axis(z, order, axis=1), order.astype(np.int32)


def encode_topk(X: ArrayLike, weight: ArrayLike, bias: ArrayLike | None, k: int) -> tuple[Array, NDArray[np.int32]]:
    """The k largest elements of each row of ``X W' + b`` and their columns (Gao et al. 2024, section 2.3)."""
    z = np.asarray(X, np.float64) @ np.asarray(weight, np.float64).T
    return select(z if bias is None else z + np.asarray(bias, np.float64), k)
