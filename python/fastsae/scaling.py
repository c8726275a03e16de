"""Scaling of the rows that a model sees.

A row x of d numbers becomes ``(x - center) / scale``, computed in float64 and rounded to the model's dtype once.

With a center and a scale for each column, taken from the rows of `fit` and weighted by the sample weights:

- ``zscore``: `center` is the mean of the column and `scale` its standard deviation (of W, not W - 1): scikit-learn's
  ``StandardScaler``.
- ``minmax``: `center` is the least number of the column and `scale` its range, so that the rows that they were taken
  from are in [0, 1] exactly: ``MinMaxScaler``. A row of weight 0 does not count.

A constant column has the scale 1 and becomes 0, as in scikit-learn. With one scale for all columns and no center, the
usual for activations of language models:

- ``mean_norm``: ``mean |x| / sqrt(d)``, so that rows have the length ``sqrt(d)`` on average: SAELens's
  ``expected_average_only_in``.
- ``mean_square_norm``: ``sqrt(mean |x|^2)``, so that their mean squared length is 1: dictionary_learning's
  ``normalize_activations``.

Where all rows are 0 it is 1. With a center and a scale of each row's own, for models that see no lengths of rows:

- ``row_norm``: ``scale = |x| / sqrt(d)``: SAELens's ``constant_norm_rescale``. A row of 0 has the scale 1 and stays 0.
- ``layer_norm``: `center` is the mean of the row and ``scale = s + 1e-5`` with its standard deviation s (of d - 1, as
  PyTorch's ``std``): SAELens's ``layer_norm``, whose inverse leaves out the 1e-5. A constant row becomes 0.

The last two are undone with the rows that were scaled, which a code does not tell.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from fastsae.optimizer import OptimizerConfig

Array = NDArray[Any]

#: Those that a code alone is enough to undo, and those that need the row.
COLUMN_SCALES = ("zscore", "minmax", "mean_norm", "mean_square_norm")
ROW_SCALES = ("row_norm", "layer_norm")
SCALES = (*COLUMN_SCALES, *ROW_SCALES)

_LAYER_NORM_EPSILON = 1e-5
_ELEMENTS_AT_ONCE = 1 << 22  # of which statistics are taken
_ELEMENTS_IN_CACHE = 1 << 16


@dataclasses.dataclass(frozen=True)
class Scaler:
    """What is done to rows, and the statistics of columns that it takes.

    Attributes
    ----------
    kind : {"zscore", "minmax", "mean_norm", "mean_square_norm", "row_norm", "layer_norm"}
    center, scale : ndarray of float64, shape (n_features,)
        0 and 1 where each row has its own.
    """

    kind: str
    center: NDArray[np.float64]
    scale: NDArray[np.float64]

    @classmethod
    def fit(cls, kind: str, X: Array, weights: NDArray[np.float64] | None = None) -> Scaler:
        """Of the columns of `X`, read in pieces. ValueError if one cannot be scaled."""
        if kind not in ("zscore", "minmax"):
            if kind == "layer_norm" and X.shape[1] < 2:
                raise ValueError("scale: 'layer_norm' of a single column is always 0; expected at least 2, got 1")
            length = 1.0 if kind in ROW_SCALES else _length(kind, X, weights)
            return cls(kind, np.zeros(X.shape[1]), np.full(X.shape[1], length))
        center, scale = _standard(X, weights) if kind == "zscore" else _span(X, weights)
        bad = np.flatnonzero(~(np.isfinite(center) & np.isfinite(scale)))
        if bad.size:
            raise ValueError(f"X: column {bad[0]} is too large to be scaled, or holds NaN alone")
        return cls(kind, center, scale)

    def transform(self, rows: Array, dtype: str) -> Array:
        """Scaled rows in new memory; what is too large for `dtype` becomes infinite."""
        scaled: Array = np.empty(rows.shape, dtype)
        self.transform_into(scaled, rows)
        return scaled

    def transform_into(self, to: Array, rows: Array) -> None:
        """The same in memory that there is."""
        with np.errstate(over="ignore", invalid="ignore"):
            for piece in pieces_of(rows, _ELEMENTS_IN_CACHE):
                center, scale = self._of(rows[piece])
                block = np.subtract(rows[piece], center, dtype=np.float64)
                block /= scale
                to[piece] = block

    def transform_finite(self, rows: Array, dtype: str, first: int = 0) -> Array:
        """The same; ValueError for a row that cannot be scaled. `first` is the number of the first."""
        scaled = self.transform(rows, dtype)
        finite = np.isfinite(scaled).all(axis=1)
        if not finite.all():
            row = first + int(np.argmin(finite))
            if self.kind in ROW_SCALES:
                raise ValueError(f"X: row {row} is too large to be scaled")
            raise ValueError(f"X: row {row} is too far from the training rows for {dtype}")
        return scaled

    def invert(self, rows: Array, like: Array | None = None) -> None:
        """Bring scaled rows back, in place.

        `like` is what `transform` was given where these come from: the statistics of its rows are taken again. It is
        needed where each row has its own; see `check_inverse`.
        """
        if like is None:
            self.check_inverse()
        with np.errstate(over="ignore", invalid="ignore"):
            for piece in pieces_of(rows, _ELEMENTS_IN_CACHE):
                center, scale = self._of(rows[piece] if like is None else like[piece])
                rows[piece] = rows[piece] * scale + center

    def check_inverse(self) -> None:
        """Raise ValueError if rows cannot be brought back without those that they come from."""
        if self.kind in ROW_SCALES:
            raise ValueError(
                f"scale={self.kind!r} is undone with the lengths of the rows of X, which codes alone do not tell; "
                "use reconstruct, or another scale"
            )

    def _of(self, rows: Array) -> tuple[Array, Array]:
        """Center and scale of these rows, [n_features] or [n_rows, 1]; a scale of NaN where it is too large."""
        if self.kind not in ROW_SCALES:
            return self.center, self.scale
        rows = np.asarray(rows, np.float64)
        if self.kind == "row_norm":
            center = np.zeros((len(rows), 1))
            scale = np.linalg.norm(rows, axis=1, keepdims=True) / math.sqrt(rows.shape[1])
            scale[scale == 0] = 1.0
        else:
            center = rows.mean(axis=1, keepdims=True)
            scale = rows.std(axis=1, keepdims=True, ddof=1) + _LAYER_NORM_EPSILON
        scale[~np.isfinite(scale)] = np.nan
        return center, scale


def check_output(config: OptimizerConfig, scaler: Scaler | None) -> None:
    """Raise ValueError if the output layer cannot reach scaled rows; a sparse code's always can."""
    layers: tuple[object, ...] = getattr(config, "layers", ())
    output = getattr(layers[-1], "activation", "identity") if layers else "identity"
    if scaler is not None and scaler.kind != "minmax" and output != "identity":
        raise ValueError(
            f"scale={scaler.kind!r} gives numbers of any sign and size, which an output layer of "
            f"{output!r} does not reach; take an identity output layer, or scale='minmax'"
        )


def pieces_of(X: Array, elements: int) -> Iterator[slice]:
    """Slices of about so many elements of the rows of `X`, or of one row."""
    at_once = max(1, elements // X.shape[1])
    for first in range(0, len(X), at_once):
        yield slice(first, first + at_once)


def _weighted(X: Array, weights: NDArray[np.float64] | None) -> Iterator[tuple[Array, NDArray[np.float64] | None]]:
    """Rows in float64 with their weights, piece by piece; those of weight 0 are left out."""
    for piece in pieces_of(X, _ELEMENTS_AT_ONCE):
        rows, w = X[piece], None
        if weights is not None:
            w = weights[piece]
            rows, w = rows[w > 0], w[w > 0]
        if len(rows):
            yield np.asarray(rows, np.float64), w


def _standard(X: Array, weights: NDArray[np.float64] | None) -> tuple[Array, Array]:
    from sklearn.preprocessing import StandardScaler

    scaler = StandardScaler()
    with np.errstate(over="ignore", invalid="ignore"):
        for rows, w in _weighted(X, weights):
            scaler.partial_fit(rows, sample_weight=w)
    return scaler.mean_, np.where(np.isfinite(scaler.var_), scaler.scale_, np.nan)


def _length(kind: str, X: Array, weights: NDArray[np.float64] | None) -> float:
    """The one scale of all columns; rows with NaN are left out."""
    total = total_weight = 0.0
    with np.errstate(over="ignore", invalid="ignore"):
        for rows, w in _weighted(X, weights):
            lengths = np.linalg.norm(rows, axis=1)
            values = lengths / math.sqrt(X.shape[1]) if kind == "mean_norm" else lengths**2
            shares = np.ones(len(rows)) if w is None else w
            counted = ~np.isnan(values)
            total += float(values[counted] @ shares[counted])
            total_weight += float(shares[counted].sum())
    scale = total / total_weight if total_weight > 0 else math.nan
    if not math.isfinite(scale):
        raise ValueError(f"X: its rows are too large for scale={kind!r}, or all of them hold NaN")
    return (scale if kind == "mean_norm" else math.sqrt(scale)) or 1.0


def _span(X: Array, weights: NDArray[np.float64] | None) -> tuple[Array, Array]:
    low, high = np.full(X.shape[1], np.inf), np.full(X.shape[1], -np.inf)
    for rows, _ in _weighted(X, weights):
        low, high = np.fmin(low, np.fmin.reduce(rows)), np.fmax(high, np.fmax.reduce(rows))
    with np.errstate(over="ignore", invalid="ignore"):
        span = high - low
    return low, np.where(span < 10 * np.finfo(np.float64).eps, 1.0, span)
