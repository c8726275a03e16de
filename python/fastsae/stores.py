"""Where batches come from."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastsae.engine import as_rows

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
        self.in_place = (
            X.dtype in (np.float32, np.float64)
            and X.dtype.isnative
            and (X.shape[1] == 1 or X.strides[1] == X.itemsize)
            and X.strides[0] > 0
        )

    def __len__(self) -> int:
        return len(self.X)

    def piece(self, order: Order) -> tuple[NDArray[Any], Order | None]:
        """A chunk of rows and the order to take them in, for :meth:`fastsae.Engine.run_epoch`."""
        return (self.X, order) if self.in_place else (self.rows(order), None)

    def rows(self, order: Order | None = None) -> NDArray[Any]:
        """The rows, or all of them, in the wanted dtype."""
        part = self.X if order is None else self.X[order]
        return as_rows("X", part, self.X.shape[1], self.dtype)
