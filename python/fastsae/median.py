"""The geometric median of rows: where the bias of a sparse autoencoder's decoder may begin."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastsae.checks import check_integer, check_real
from fastsae.scaling import pieces_of

_ELEMENTS_AT_ONCE = 1 << 16  # of rows in float64
_AT = 1e-12  # a row so near to an estimate, over the mean length of rows, is at it: rounding holds it as well


def geometric_median(
    X: NDArray[Any],
    sample_weight: NDArray[np.float64] | None = None,
    *,
    max_iter: int = 100,
    tol: float = 1e-5,
) -> NDArray[np.float64]:
    """The point m with the least ``sum_i w_i |x_i - m|``, by Weiszfeld's iteration from the mean.

    Unlike the mean it hardly moves with a few rows far away. An estimate that meets rows goes on from them, or stays if
    they are the median, by the step of Vardi and Zhang ("The multivariate L1-median and associated data depth", 2000).

    Parameters
    ----------
    X : ndarray, shape (n_rows, n_features)
        Read in pieces: a memory map need not fit into memory.
    sample_weight : ndarray, shape (n_rows,), optional
        w >= 0; a row of weight 0 does not count.
    max_iter : int
        Steps at most.
    tol : float
        Length >= 0 of the step that is the last, times the mean distance of the rows from the estimate where that is
        less than 1. With the default of 100 steps, that is dictionary_learning's.

    Returns
    -------
    ndarray of float64, shape (n_features,)

    Raises
    ------
    ValueError
        If an argument has a wrong shape or value, or a row that counts is not finite.
    """
    check_integer("max_iter", max_iter, 0)
    check_real("tol", tol, 0.0)
    if X.ndim != 2 or 0 in X.shape:
        raise ValueError(f"X: expected a 2-D array with at least one row and one column, got shape {X.shape}")
    weights = np.ones(len(X)) if sample_weight is None else np.asarray(sample_weight, np.float64)
    if weights.shape != (len(X),) or not (weights >= 0).all() or not 0 < (total := weights.sum()) < math.inf:
        raise ValueError(f"sample_weight: expected {len(X)} numbers >= 0, not all of them 0, got {sample_weight!r}")
    median, mean_length = np.zeros(X.shape[1]), 0.0
    for piece in pieces_of(X, _ELEMENTS_AT_ONCE):
        w = weights[piece]
        rows = np.array(X[piece], np.float64)
        finite = np.isfinite(rows).all(axis=1) | (w == 0)
        if not finite.all():
            raise ValueError(f"X: row {piece.start + int(np.argmin(finite))} contains NaN or infinity")
        rows[w == 0] = 0.0
        median += w @ rows
        mean_length += float(w @ np.linalg.norm(rows, axis=1)) / total
    median /= total
    for _ in range(max_iter):
        step, mean_distance = _step(X, weights, median, _AT * mean_length)
        median = median + step
        if np.linalg.norm(step) <= tol * min(1.0, mean_distance):
            break
    if not np.isfinite(median).all():
        raise ValueError("X: its rows are too large for their distances")
    return median


def _step(
    X: NDArray[Any], weights: NDArray[np.float64], at: NDArray[np.float64], near: float
) -> tuple[NDArray[np.float64], float]:
    """From `at` to the next estimate, and the mean distance of the rows from `at`.

    The rows elsewhere pull with ``R = sum_i w_i (x_i - at) / |x_i - at|``; those `near`, of weight v, hold it with v.
    The step is ``R / sum_i (w_i / |x_i - at|)``, as far as R is more than v.
    """
    pull, weight_by_distance, held = np.zeros(len(at)), 0.0, 0.0
    distances = 0.0
    for piece in pieces_of(X, _ELEMENTS_AT_ONCE):
        w = weights[piece]
        difference = np.asarray(X[piece][w > 0], np.float64) - at
        w = w[w > 0]
        distance = np.linalg.norm(difference, axis=1)
        away = distance > near
        share = w[away] / distance[away]
        pull += share @ difference[away]
        weight_by_distance += float(share.sum())
        held += float(w[~away].sum())
        distances += float(w @ distance)
    strength = float(np.linalg.norm(pull))
    if strength <= held:
        return np.zeros(len(at)), distances / float(weights.sum())
    return (1 - held / strength) * pull / weight_by_distance, distances / float(weights.sum())
