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
from fastsae.engine import Engine, ModelConfig
from fastsae.scaling import Scaler

Order = NDArray[np.int64]

_BYTES_IN_MEMORY = 1 << 30  # of codes or scaled rows; more of them go to a temporary file
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
    scaler : Scaler, optional
        What is done to the rows of an array on their way out. They are scaled once if they are held and that takes at
        most 1 GiB, else a piece at a time.
    """

    def __init__(self, X: Rows, engine: Engine[ModelConfig], scaler: Scaler | None = None) -> None:
        self._X = X
        self._engine = engine
        self._scaler = scaler

    def __len__(self) -> int:
        return len(self._X)

    def hold(self) -> None:
        """Keep the rows in the device's memory if there is room: for more than one pass over them."""
        if self._scaler is not None:
            assert isinstance(self._X, np.ndarray)  # tensors of a device are not scaled
            dtype = np.dtype(self._engine.config.dtype)
            if self._X.shape[0] * self._X.shape[1] * dtype.itemsize > _BYTES_IN_MEMORY:
                return
            rows = np.empty(self._X.shape, dtype)
            self._scaler.transform_into(rows, self._X)
            self._X, self._scaler = rows, None
        held = self._engine.hold(self._X)
        if held is not None:
            self._X = held

    def piece(self, order: Order) -> tuple[Rows, Order | None]:
        """A chunk of rows and the order to take them in, for :meth:`fastsae.Engine.run_epoch`."""
        in_place = isinstance(self._X, DeviceArray) or is_readable(self._X, self._X.shape[1])
        if self._scaler is None and in_place:
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
            taken = self._X if order is None else self._X[order]
            if self._scaler is not None:
                rows = self._scaler.transform(taken, dtype)
            else:
                rows = as_rows("X", taken, self._X.shape[1], dtype)
            finite = np.isfinite(rows).all(axis=1)
            first = None if finite.all() else int(np.argmin(finite))
        if first is not None:
            row = first if order is None else int(order[first])
            raise ValueError(f"X: row {row} contains NaN, infinity or a number too large for {dtype}")
        return rows


@contextlib.contextmanager
def encoded(X: Any, engine: Engine[ModelConfig]) -> Iterator[Any]:
    """The codes of the rows of `X`, shape (n_rows, code_width), made a piece at a time.

    They are where X is. Of a host's rows, codes of more than 1 GiB go to a temporary file: a memory map that ends with
    the context.
    """
    if isinstance(X, DeviceArray) or is_elsewhere(X):
        yield engine.encode(X)
        return
    with _room((len(X), engine.code_width), engine.config.dtype) as codes:
        for piece in pieces(len(X)):
            engine.encode(X[piece], codes[piece])
        yield codes


@contextlib.contextmanager
def scaled(X: Any, scaler: Scaler | None, dtype: str) -> Iterator[Any]:
    """Scaled rows of `X` for as long as the context lasts, with the limit of `encoded`; X itself without a scaler."""
    if scaler is None:
        yield X
        return
    with _room(X.shape, dtype) as rows:
        scaler.transform_into(rows, X)
        yield rows


def pieces(n_rows: int) -> Iterator[slice]:
    """Of the size that inference gives the bits of one call in."""
    for first in range(0, n_rows, _ROWS_AT_ONCE):
        yield slice(first, min(n_rows, first + _ROWS_AT_ONCE))


@contextlib.contextmanager
def _room(shape: tuple[int, int], dtype: str) -> Iterator[NDArray[Any]]:
    if shape[0] * shape[1] * np.dtype(dtype).itemsize <= _BYTES_IN_MEMORY:
        yield np.empty(shape, dtype)
        return
    with tempfile.TemporaryFile() as file:
        yield np.memmap(file, dtype, "w+", shape=shape)
