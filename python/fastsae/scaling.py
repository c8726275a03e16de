"""Scaling of the rows that a model sees, column by column.

A row x becomes ``(x - center) / scale``, computed in float64 and rounded to the model's dtype once.

- ``zscore``: `center` is the mean of the column and `scale` its standard deviation (of W, not W - 1), weighted by the
  sample weights: scikit-learn's ``StandardScaler``.
- ``minmax``: `center` is the least number of the column and `scale` its range, so that the rows that they were taken
  from are in [0, 1] exactly: ``MinMaxScaler``. A row of weight 0 does not count.

A constant column has the scale 1 and becomes 0, as in scikit-learn.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from fastsae.config import Config

Array = NDArray[Any]

_ELEMENTS_AT_ONCE = 1 << 22  # of which statistics are taken
_ELEMENTS_IN_CACHE = 1 << 16


@dataclasses.dataclass(frozen=True)
class Scaler:
    """Statistics of columns, and what they do to rows.

    Attributes
    ----------
    kind : {"zscore", "minmax"}
    center, scale : ndarray of float64, shape (n_features,)
    """

    kind: str
    center: NDArray[np.float64]
    scale: NDArray[np.float64]

    @classmethod
    def fit(cls, kind: str, X: Array, weights: NDArray[np.float64] | None = None) -> Scaler:
        """Of the columns of `X`, read in pieces. ValueError if one cannot be scaled."""
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
            for piece in _pieces_of(rows, _ELEMENTS_IN_CACHE):
                block = np.subtract(rows[piece], self.center, dtype=np.float64)
                block /= self.scale
                to[piece] = block

    def transform_finite(self, rows: Array, dtype: str, first: int = 0) -> Array:
        """The same; ValueError for a row that is too far from those of `fit`. `first` is the number of the first."""
        scaled = self.transform(rows, dtype)
        finite = np.isfinite(scaled).all(axis=1)
        if not finite.all():
            raise ValueError(f"X: row {first + int(np.argmin(finite))} is too far from the training rows for {dtype}")
        return scaled

    def invert(self, rows: Array) -> None:
        """Bring scaled rows back, in place."""
        with np.errstate(over="ignore", invalid="ignore"):
            for piece in _pieces_of(rows, _ELEMENTS_IN_CACHE):
                rows[piece] = rows[piece] * self.scale + self.center


def check_output(config: Config, scaler: Scaler | None) -> None:
    """Raise ValueError if the output layer cannot reach scaled rows."""
    output = getattr(config.layers[-1], "activation", "identity")
    if scaler is not None and scaler.kind == "zscore" and output != "identity":
        raise ValueError(
            "scale='zscore' gives numbers of any sign and size, which an output layer of "
            f"{output!r} does not reach; take an identity output layer, or scale='minmax'"
        )


def _pieces_of(X: Array, elements: int) -> Iterator[slice]:
    at_once = max(1, elements // X.shape[1])
    for first in range(0, len(X), at_once):
        yield slice(first, first + at_once)


def _weighted(X: Array, weights: NDArray[np.float64] | None) -> Iterator[tuple[Array, NDArray[np.float64] | None]]:
    """Rows in float64 with their weights, piece by piece; those of weight 0 are left out."""
    for piece in _pieces_of(X, _ELEMENTS_AT_ONCE):
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


def _span(X: Array, weights: NDArray[np.float64] | None) -> tuple[Array, Array]:
    low, high = np.full(X.shape[1], np.inf), np.full(X.shape[1], -np.inf)
    for rows, _ in _weighted(X, weights):
        low, high = np.fmin(low, np.fmin.reduce(rows)), np.fmax(high, np.fmax.reduce(rows))
    with np.errstate(over="ignore", invalid="ignore"):
        span = high - low
    return low, np.where(span < 10 * np.finfo(np.float64).eps, 1.0, span)
