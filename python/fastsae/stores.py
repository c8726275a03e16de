"""Where batches come from."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastsae._core import DeviceArray, is_readable
from fastsae.arrays import Rows, as_rows, is_elsewhere
from fastsae.engine import Engine

Order = NDArray[np.int64]

_CODES_IN_MEMORY = 1 << 30  # bytes; more of them go to a temporary file
_ROWS_AT_ONCE = 8192  # a multiple of the block of inference, so that the codes have the bits of one call


class ArrayStore:
    """The rows of an array, a memory map or a tensor of the engine's device, handed out in any order.

    float32 and float64 rows are read in place, or from the device's memory once they are held there. Rows of another
    type, or rows that are not contiguous, are converted a piece at a time, so that a memory map larger than memory
    can be trained on.

    Parameters
    ----------
    X : ndarray or DeviceArray, shape (n_rows, n_features)
    engine : Engine
        Whose device and dtype the rows are for.
    """

    def __init__(self, X: Rows, engine: Engine) -> None:
        self._X = X
        self._engine = engine

    def __len__(self) -> int:
        return len(self._X)

    def hold(self) -> None:
        """Keep the rows in the device's memory if there is room: for more than one pass over them."""
        held = self._engine.hold(self._X)
        if held is not None:
            self._X = held

    def piece(self, order: Order) -> tuple[Rows, Order | None]:
        """A chunk of rows and the order to take them in, for :meth:`fastsae.Engine.run_epoch`."""
        if isinstance(self._X, DeviceArray) or is_readable(self._X, self._X.shape[1]):
            return self._X, order
        return self.rows(order), None

    def rows(self, order: Order | None = None) -> Rows:
        """Those rows, or all of them, in the engine's dtype.

        Raises
        ------
        ValueError
            If one holds NaN or infinity; the text says which row of X it is.
        """
        dtype = self._engine.config.dtype
        rows: Rows
        if isinstance(self._X, DeviceArray):
            in_place = order is None and self._X.dtype == dtype
            rows = self._X if in_place else self._engine.take(self._X, order)
            first = self._engine.first_row_outside(rows)
        else:
            rows = as_rows("X", self._X if order is None else self._X[order], self._X.shape[1], dtype)
            finite = np.isfinite(rows).all(axis=1)
            first = None if finite.all() else int(np.argmin(finite))
        if first is not None:
            row = first if order is None else int(order[first])
            raise ValueError(f"X: row {row} contains NaN, infinity or a number too large for {dtype}")
        return rows


@contextlib.contextmanager
def encoded(X: Any, engine: Engine) -> Iterator[Any]:
    """The codes of the rows of `X`, shape (n_rows, code_width), made a piece at a time.

    They are where X is. Of a host's rows, codes of more than 1 GiB go to a temporary file: a memory map that ends with
    the context.
    """
    if isinstance(X, DeviceArray) or is_elsewhere(X):
        yield engine.encode(X)
        return
    shape, dtype = (len(X), engine.code_width), np.dtype(engine.config.dtype)
    with contextlib.ExitStack() as stack:
        codes: NDArray[Any]
        if shape[0] * shape[1] * dtype.itemsize <= _CODES_IN_MEMORY:
            codes = np.empty(shape, dtype)
        else:
            codes = np.memmap(stack.enter_context(tempfile.TemporaryFile()), dtype, "w+", shape=shape)
        for first in range(0, len(X), _ROWS_AT_ONCE):
            piece = slice(first, first + _ROWS_AT_ONCE)
            engine.encode(X[piece], codes[piece])
        yield codes
