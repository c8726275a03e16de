"""Where batches come from."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastsae.engine import as_rows, readable

Order = NDArray[np.int64]


class ArrayStore:
    """The rows of an array or a memory map, handed out in any order.

    float32 and float64 rows are read in place. Rows of another type, or rows that are not contiguous, are converted
    a piece at a time, so that a memory map larger than memory can be trained on.

    Parameters
    ----------
    X : ndarray, shape (n_rows, n_features)
    dtype : {"float32", "float64"}
        What rows are converted to where they must be.
    """

    def __init__(self, X: NDArray[Any], dtype: str) -> None:
        self.X = X
        self.dtype = dtype
        self.in_place = readable(X)

    def __len__(self) -> int:
        return len(self.X)

    def piece(self, order: Order) -> tuple[NDArray[Any], Order | None]:
        """A chunk of rows and the order to take them in, for :meth:`fastsae.Engine.run_epoch`."""
        return (self.X, order) if self.in_place else (self.rows(order), None)

    def rows(self, order: Order | None = None) -> NDArray[Any]:
        """The rows, or all of them, in the wanted dtype.

        Raises
        ------
        ValueError
            If one holds NaN or infinity; the text says which row of X it is.
        """
        part = self.X if order is None else self.X[order]
        rows = as_rows("X", part, self.X.shape[1], self.dtype)
        finite = np.isfinite(rows).all(axis=1)
        if not finite.all():
            first = int(np.argmin(finite))
            row = first if order is None else int(order[first])
            raise ValueError(f"X: row {row} contains NaN, infinity or a number too large for {self.dtype}")
        return rows
