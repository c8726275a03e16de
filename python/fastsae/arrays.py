"""What may be handed in as rows, weights and orders, and what becomes of it."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastsae._core import DeviceArray

Array = NDArray[Any]
#: Rows as the compiled part takes them.
Rows = Array | DeviceArray

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
    return array if readable(array) else np.array(array, order="C")


def readable(array: Array) -> bool:
    """Whether the compiled part can read the rows of a 2-D array where they are."""
    return (
        array.dtype in (np.float32, np.float64)
        and array.flags.aligned
        and (array.size == 0 or array.shape[1] == 1 or array.strides[1] == array.itemsize)
        and array.strides[0] >= 0
    )


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
    with np.errstate(over="ignore"):  # a number too large becomes infinite, which is refused later
        return array.astype(dtype)


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
