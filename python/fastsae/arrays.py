"""What may be handed in as rows, weights and orders, and what becomes of it."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastsae._core import DeviceArray, is_readable, is_writable

Array = NDArray[Any]
#: Rows as the compiled part takes them.
Rows = Array | DeviceArray

_MOST_ROWS = 2**52  # of a data set: their numbers travel as doubles, and noise takes 52 bits of them
_HOST = (1, 3, 11, 13)  # DLPack's numbers for CPU memory, pinned (CUDA, ROCm) and managed memory


def as_rows(name: str, value: Any, n_cols: int, dtype: str | None = None, other: str = "float32") -> Array:
    """A 2-D float array with contiguous rows; no copy where `value` already is one.

    Takes NumPy arrays and memory maps, CPU tensors with ``__dlpack__``, and nested sequences. With `dtype` None,
    float32 and float64 stay what they are and anything else becomes `other`.
    """
    array = as_array(name, value)
    if array.ndim != 2 or array.shape[1] != n_cols:
        raise ValueError(f"{name}: expected a 2-D array with {n_cols} columns, got shape {array.shape}")
    if dtype is not None or array.dtype not in (np.float32, np.float64):
        wanted = np.dtype(dtype or other)
        if array.dtype != wanted or not array.dtype.isnative:
            array = cast(name, array, wanted)
    return array if is_readable(array, n_cols) else np.array(array, order="C")


def as_array(name: str, value: Any) -> Array:
    """`value` as a NumPy array without a copy where that is possible."""
    if isinstance(value, np.ndarray):
        return value
    if is_elsewhere(value):
        kind, index = value.__dlpack_device__()
        where = f"cuda:{index}" if kind == 2 else f"device {index} of DLPack's type {kind}"
        raise ValueError(f"{name}: expected a tensor in CPU memory, got {type(value).__name__} on {where}")
    if hasattr(value, "__dlpack__"):
        try:
            return np.from_dlpack(value)
        except (BufferError, RuntimeError, TypeError, AttributeError) as error:
            raise ValueError(f"{name}: expected a tensor in CPU memory, got {type(value)}: {error}") from None
    try:
        return np.asarray(value)
    except ValueError as error:
        raise ValueError(f"{name}: expected an array of numbers: {error}") from None


def is_elsewhere(value: Any) -> bool:
    """Whether `value` is a tensor that speaks DLPack and is not in the host's memory."""
    if isinstance(value, np.ndarray) or not hasattr(value, "__dlpack__"):
        return False
    try:
        kind, _ = value.__dlpack_device__()
    except (AttributeError, TypeError, ValueError):
        return False
    return kind not in _HOST


def cast(name: str, array: Array, dtype: np.dtype[Any]) -> Array:
    """Real numbers as another type; one that is too large becomes infinite."""
    if array.dtype.kind not in "fiub":
        raise ValueError(f"{name}: expected an array of real numbers, got dtype {array.dtype}")
    if dtype.kind == "u" and array.dtype != dtype:
        raise ValueError(f"{name}: expected an array of {dtype}, which are bits, got dtype {array.dtype}")
    with np.errstate(over="ignore"):  # a number too large becomes infinite, which is refused later
        return array.astype(dtype)


def numbers_of(stored: Array) -> Array:
    """The numbers that a tensor of an engine holds: uint16 are bits of bfloat16, which NumPy has not."""
    return (stored.astype(np.uint32) << 16).view(np.float32) if stored.dtype == np.uint16 else stored


def as_weights(value: Any, n_rows: int) -> NDArray[np.float64] | None:
    """Weights of rows, checked."""
    if value is None:
        return None
    array = as_array("sample_weight", value)
    weights = np.ascontiguousarray(cast("sample_weight", array, np.dtype(np.float64)))
    if weights.shape != (n_rows,):
        raise ValueError(f"sample_weight: expected shape ({n_rows},), got {weights.shape}")
    if not np.isfinite(weights).all() or (weights < 0).any():
        raise ValueError("sample_weight: expected finite numbers >= 0")
    return weights


def as_order(value: ArrayLike | None) -> NDArray[np.int64] | None:
    """Row numbers, checked."""
    if value is None:
        return None
    order = as_array("order", value)
    if order.ndim != 1 or (order.size and order.dtype.kind not in "iu"):
        raise ValueError(f"order: expected a 1-D array of row numbers, got shape {order.shape} and dtype {order.dtype}")
    return np.ascontiguousarray(order, dtype=np.int64)


def as_numbers(value: ArrayLike | None) -> NDArray[np.int64] | None:
    """Which rows of the data set they are, checked."""
    if value is None:
        return None
    numbers = as_array("numbers", value)
    if numbers.ndim != 1 or (numbers.size and numbers.dtype.kind not in "iu"):
        shape = numbers.shape
        raise ValueError(f"numbers: expected a 1-D array of integers, got shape {shape} and dtype {numbers.dtype}")
    if numbers.size and not (numbers.min() >= 0 and numbers.max() < _MOST_ROWS):
        raise ValueError(f"numbers: expected integers from 0 to 2^52 - 1, got {numbers.min()} to {numbers.max()}")
    return np.ascontiguousarray(numbers, dtype=np.int64)


class Core(Protocol):
    """What of an engine or an encoder is asked about the memory of its device."""

    @property
    def place(self) -> tuple[int, int]:
        """DLPack's type and number of the device."""

    def borrow(self, name: str, tensor: object, integers: bool = False) -> DeviceArray:
        """A tensor of the device where it is."""

    def empty(self, rows: int, cols: int, dtype: str) -> DeviceArray:
        """New memory of the device."""


def rows_for(core: Core, name: str, value: Any, n_cols: int, other: str) -> Rows:
    """`value` as rows that `core` reads: a tensor of its device where it is, or what `as_rows` makes of it."""
    if is_readable(value, n_cols):
        return value  # type: ignore[no-any-return]
    return device_rows(core, name, value, n_cols) if is_of(core, value) else as_rows(name, value, n_cols, other=other)


def is_of(core: Core, value: Any) -> bool:
    """Whether `value` is taken as a tensor of the device of `core`."""
    # What is on another device still is refused there, with a text that says where it is.
    return is_elsewhere(value) or (isinstance(value, DeviceArray) and value.__dlpack_device__() == core.place)


def device_rows(core: Core, name: str, value: Any, n_cols: int) -> DeviceArray:
    """A tensor of the device of `core` where it is, for as long as the result lives."""
    rows = value if isinstance(value, DeviceArray) else core.borrow(name, value)
    if len(rows.shape) != 2 or rows.shape[1] != n_cols:
        raise ValueError(f"{name}: expected a 2-D array with {n_cols} columns, got shape {rows.shape}")
    return rows


def target_for(core: Core, name: str, out: Any, shape: tuple[int, int], dtype: str, rows: Rows) -> Rows:
    """`out`, or a new array where `rows` are, for results that are computed from them."""
    if out is None:
        return np.empty(shape, dtype) if isinstance(rows, np.ndarray) else core.empty(*shape, dtype)
    if isinstance(rows, np.ndarray) and is_writable(out, rows, shape[1], dtype):
        return out  # type: ignore[no-any-return]
    if isinstance(out, DeviceArray):
        return out
    if hasattr(out, "__dlpack__") and not isinstance(out, np.ndarray):
        return core.borrow(name, out, dtype == "int32")
    if (
        not isinstance(out, np.ndarray)
        or out.shape != shape
        or out.dtype != dtype
        or not out.flags.c_contiguous
        or not out.flags.writeable
    ):
        got = f"{out.dtype} {out.shape}" if isinstance(out, np.ndarray) else type(out).__name__
        raise ValueError(f"{name}: expected a writable C-contiguous {dtype} array of shape {shape}, got {got}")
    if isinstance(rows, np.ndarray) and np.may_share_memory(out, rows):
        raise ValueError(f"{name}: expected memory of its own, got memory that the input uses")
    return out


def as_sparse_rows(
    indptr: ArrayLike, indices: ArrayLike, data: ArrayLike, n_cols: int, dtype: str
) -> tuple[NDArray[np.int64], NDArray[np.int64], Array]:
    """The three arrays of a CSR matrix of `n_cols` columns, checked; duplicates are not looked for."""
    arrays = [np.asarray(value) for value in (indptr, indices, data)]
    for name, array in zip(("indptr", "indices"), arrays, strict=False):
        if array.ndim != 1 or (array.size > 0 and array.dtype.kind not in "iu"):
            raise ValueError(f"{name}: expected a 1-D array of integers, got shape {array.shape}, dtype {array.dtype}")
    starts, columns, values = arrays
    if values.ndim != 1 or values.dtype.kind not in "fiub":
        raise ValueError(f"data: expected a 1-D array of real numbers, got shape {values.shape}, dtype {values.dtype}")
    if len(columns) != len(values):
        raise ValueError(f"indices: expected {len(values)}, as many as data, got {len(columns)}")
    if len(starts) == 0 or starts[0] != 0 or starts[-1] != len(values) or (np.diff(starts.astype(np.int64)) < 0).any():
        raise ValueError(f"indptr: expected rising numbers from 0 to {len(values)}, got {starts!r}")
    if len(columns) and (columns.min() < 0 or columns.max() >= n_cols):
        raise ValueError(f"indices: expected columns in [0, {n_cols}), got {columns.min()} to {columns.max()}")
    return starts.astype(np.int64), columns.astype(np.int64), cast("data", values, np.dtype(dtype))
