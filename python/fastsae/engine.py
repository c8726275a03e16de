"""The low level: one model, its optimiser and its memory on one device."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastsae import _core
from fastsae._core import DeviceError
from fastsae.config import Config, check_integer, check_real
from fastsae.cuda import cuda_blas

Array = NDArray[Any]


def get_num_threads() -> int:
    """Number of threads that CPU work uses.

    What :func:`set_num_threads` said, else the environment variables FASTSAE_NUM_THREADS or OMP_NUM_THREADS, else
    the processors this process may use.
    """
    return _core.num_threads()


def set_num_threads(count: int) -> None:
    """Set the number of threads of CPU work, for the whole process. Results do not depend on it.

    Raises
    ------
    ValueError
        If `count` is not an integer in [1, 1024].
    """
    check_integer("count", count, 1, 1024)
    _core.set_num_threads(int(count))


def devices() -> list[str]:
    """What `device` can be here: ``"cpu"``, and ``"cuda:0"``, ... for each usable GPU."""
    return _core.devices()


def cuda_unavailable_reason() -> str | None:
    """Why there is no CUDA device: no backend in this build, no driver, no GPU; None where there is one."""
    return _core.cuda_unavailable_reason() or None


def check_device(device: object) -> None:
    """Raise ValueError unless `device` can be the name of a device, here or elsewhere."""
    if not isinstance(device, str) or not re.fullmatch(r"auto|cpu|cuda(:\d{1,4})?", device):
        raise ValueError(f"device: expected 'auto', 'cpu', 'cuda' or 'cuda:N', got {device!r}")


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
            array = _cast(name, array, wanted)
    return array if readable(array) else np.array(array, order="C")


def readable(array: Array) -> bool:
    """Whether the compiled part can read the rows of a 2-D array where they are."""
    return (
        array.dtype in (np.float32, np.float64)
        and array.flags.aligned
        and (array.shape[1] <= 1 or array.strides[1] == array.itemsize)
        and array.strides[0] >= 0
    )


def as_array(name: str, value: Any) -> Array:
    """`value` as a NumPy array without a copy where that is possible."""
    if isinstance(value, np.ndarray):
        return value
    if hasattr(value, "__dlpack__"):
        try:
            return np.from_dlpack(value)
        except (BufferError, RuntimeError, TypeError, AttributeError) as error:
            raise ValueError(f"{name}: expected a tensor in CPU memory, got {type(value)}: {error}") from None
    try:
        return np.asarray(value)
    except ValueError as error:
        raise ValueError(f"{name}: expected an array of numbers: {error}") from None


def _cast(name: str, array: Array, dtype: np.dtype[Any]) -> Array:
    if array.dtype.kind not in "fiub":
        raise ValueError(f"{name}: expected an array of real numbers, got dtype {array.dtype}")
    with np.errstate(over="ignore"):  # a number too large becomes infinite, which is refused later
        return array.astype(dtype)


def _weights(value: ArrayLike | None, n_rows: int) -> NDArray[np.float64] | None:
    if value is None:
        return None
    array = as_array("sample_weight", value)
    weights = np.ascontiguousarray(_cast("sample_weight", array, np.dtype(np.float64)))
    if weights.shape != (n_rows,):
        raise ValueError(f"sample_weight: expected shape ({n_rows},), got {weights.shape}")
    if not np.isfinite(weights).all() or (weights < 0).any():
        raise ValueError("sample_weight: expected finite numbers >= 0")
    return weights


def _order(value: ArrayLike | None) -> NDArray[np.int64] | None:
    if value is None:
        return None
    order = as_array("order", value)
    if order.ndim != 1 or (order.size and order.dtype.kind not in "iu"):
        raise ValueError(f"order: expected a 1-D array of row numbers, got shape {order.shape} and dtype {order.dtype}")
    return np.ascontiguousarray(order, dtype=np.int64)


class Engine:
    """A model that computes: parameters, gradients and optimiser state, and the operations on them.

    Parameters
    ----------
    config : Config
        The model and its optimiser.
    device : {"auto", "cpu", "cuda", "cuda:N"}
        Where the memory is and the arithmetic runs.
    full_batch_rows : int, default 0
        Rows whose activations are held at once; a larger batch is computed in chunks that share its mean
        activations. 0 takes as many as fit in 1 GiB.

    Notes
    -----
    The parameters start at zero; :func:`fastsae.initializers.initialize` draws them. `encode`, `decode`,
    `reconstruct` and `score` may be called from many threads at once, as long as none trains.
    """

    def __init__(self, config: Config, device: str = "auto", full_batch_rows: int = 0) -> None:
        config.validate()
        check_device(device)
        check_integer("full_batch_rows", full_batch_rows, 0)
        self.config = config
        self.device = device
        self._full_batch_rows = full_batch_rows
        if device.startswith("cuda"):
            cuda_blas()
        self._core = _core.Engine(config.to_dict(), config.code_layer, device, full_batch_rows)

    @property
    def steps(self) -> int:
        """Number of optimiser steps taken; Adam's bias correction counts from it."""
        return self._core.steps

    @steps.setter
    def steps(self, value: int) -> None:
        check_integer("steps", value, 0)
        self._core.steps = int(value)

    @property
    def learning_rate(self) -> float:
        """The optimiser's learning rate, from the next step on."""
        return self._core.learning_rate

    @learning_rate.setter
    def learning_rate(self, value: float) -> None:
        check_real("learning_rate", value, 0.0)
        self._core.learning_rate = float(value)
        self.config = dataclasses.replace(self.config, learning_rate=float(value))

    @property
    def code_width(self) -> int:
        """Number of units of the code."""
        return self._core.code_width

    def step(self, X: Any, sample_weight: ArrayLike | None = None) -> None:
        """One optimiser step on all rows of `X`.

        Parameters
        ----------
        X : array, shape (n_rows, n_features)
            float32 or float64 rows are read in place.
        sample_weight : array, shape (n_rows,), optional
            Weights >= 0 of the rows.

        Raises
        ------
        ValueError
            If an argument has a wrong shape or type, or a row holds NaN or infinity. The model is unchanged.
        FloatingPointError
            If the loss or the gradient is not finite. The model is unchanged.
        """
        self.run_epoch(X, None, None, sample_weight)

    def run_epoch(
        self,
        chunk: Any,
        order: ArrayLike | None = None,
        batch_size: int | None = None,
        sample_weight: ArrayLike | None = None,
    ) -> None:
        """One optimiser step for each batch of the rows of `chunk` taken in `order`.

        Parameters
        ----------
        chunk : array, shape (n_rows, n_features)
            Rows in host memory.
        order : integer array, optional
            Row numbers; None takes the rows as they are.
        batch_size : int or None
            Rows per step; the last, shorter batch is kept. None takes all in one step.
        sample_weight : array, shape (n_rows,), optional
            Weights of the rows of `chunk`.

        Raises
        ------
        ValueError, FloatingPointError
            As `step`; the steps before the failing one are done.
        KeyboardInterrupt
            Within a second of Ctrl-C; the steps that were finished are done, and no other has begun to update.
        """
        rows = self._batch(chunk)
        indices = _order(order)
        count = len(rows) if indices is None else len(indices)
        size = max(1, count)
        if batch_size is not None:
            check_integer("batch_size", batch_size, 1)
            size = min(size, int(batch_size))
        if self.config.rho_hat == "full" and size < count:
            raise ValueError(f"batch_size: rho_hat='full' needs all {count} rows in one step, got {batch_size}")
        self._core.run(rows, indices, size, _weights(sample_weight, len(rows)))

    def gradient(self, X: Any, sample_weight: ArrayLike | None = None) -> dict[str, float]:
        """The cost J of all rows of `X` and its gradient, which `get` then reads; nothing is updated.

        Returns
        -------
        dict
            ``loss`` = ``reconstruction`` + ``penalty`` + ``decay``, and ``gradient_norm``.
        """
        rows = self._batch(X)
        return self._core.gradient(rows, _weights(sample_weight, len(rows)))

    def evaluate(self, X: Any, sample_weight: ArrayLike | None = None) -> dict[str, float]:
        """The parts of the cost J of all rows of `X`, without its gradient."""
        rows = self._batch(X)
        return self._core.evaluate(rows, _weights(sample_weight, len(rows)))

    def encode(self, X: Any, out: Array | None = None) -> Array:
        """The code of each row, shape (n_rows, code_width), into `out` if it is given."""
        rows = self._rows("X", X, self.config.n_features)
        result = self._output(out, rows, self.code_width)
        self._core.encode(rows, result)
        return result

    def decode(self, H: Any, out: Array | None = None) -> Array:
        """The reconstruction that each code gives, shape (n_rows, n_features)."""
        rows = self._rows("H", H, self.code_width)
        result = self._output(out, rows, self.config.n_features)
        self._core.decode(rows, result)
        return result

    def reconstruct(self, X: Any, out: Array | None = None) -> Array:
        """``decode(encode(X))`` without storing the code."""
        rows = self._rows("X", X, self.config.n_features)
        result = self._output(out, rows, self.config.n_features)
        self._core.reconstruct(rows, result)
        return result

    def score(self, X: Any) -> NDArray[np.float64]:
        """The reconstruction loss of each row, shape (n_rows,); their mean is the cost's reconstruction part."""
        return self._core.score(self._rows("X", X, self.config.n_features))

    def names(self) -> list[str]:
        """Names for `get` and `set`.

        Parameters ``W1, b1, W2, ...`` (``W`` of shape (units, inputs); a tied decoder has none), gradients
        ``gradient.W1, ...``, optimiser state ``first_moment.W1, second_moment.W1, ...``, and with
        ``rho_hat='ema'`` the averages ``rho_hat1, ...``.
        """
        return self._core.names()

    def parameter_names(self) -> list[str]:
        """The names of the parameters."""
        return [name for name in self.names() if name[0] in "Wb" and "." not in name]

    def state_names(self) -> list[str]:
        """The names of all that training continues from, beside `steps`: no gradients."""
        return [name for name in self.names() if not name.startswith("gradient.")]

    def get(self, name: str) -> Array:
        """A copy of a tensor; vectors are 1-D."""
        value = self._core.get(name)
        return value if name.rpartition(".")[2].startswith("W") else value.reshape(-1)

    def set(self, name: str, value: ArrayLike) -> None:
        """Overwrite a tensor.

        Raises
        ------
        ValueError
            If the name is unknown, the shape differs, or a value is not finite.
        """
        current = self._core.get(name)
        array = as_array(name, value)
        if array.shape != current.shape:
            if array.ndim != 1 or current.shape[0] != 1 or array.size != current.size:
                raise ValueError(f"{name}: expected shape {current.shape}, got {array.shape}")
            array = array.reshape(current.shape)
        array = np.ascontiguousarray(_cast(name, array, current.dtype))
        if not np.isfinite(array).all():
            raise ValueError(f"{name}: expected finite numbers, got NaN or infinity")
        self._core.set(name, array)

    def get_parameters(self) -> dict[str, Array]:
        """A copy of every parameter."""
        return {name: self.get(name) for name in self.parameter_names()}

    def set_parameters(self, values: Mapping[str, ArrayLike]) -> None:
        """Overwrite the named parameters."""
        for name, value in values.items():
            self.set(name, value)

    def metrics(self) -> dict[str, float]:
        """Means of the cost's parts over the steps since `reset_metrics`, and ``steps``, ``rows``, ``weight``.

        Each step counts with the weight of its rows.
        """
        sums: dict[str, float] = self._core.metrics()
        weight = sums["weight"]
        return {
            key: value if key in _COUNTS else value / weight if weight else float("nan") for key, value in sums.items()
        }

    def metric_sums(self) -> dict[str, float]:
        """The sums behind `metrics`, which can be added up over several resets."""
        return self._core.metrics()

    def reset_metrics(self) -> None:
        """Start `metrics` anew."""
        self._core.reset_metrics()

    def __getstate__(self) -> dict[str, Any]:
        tensors = {name: self.get(name) for name in self.state_names()}
        return {
            "config": self.config,
            "device": self.device,
            "full_batch_rows": self._full_batch_rows,
            "steps": self.steps,
            "tensors": tensors,
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        try:
            self.__init__(state["config"], state["device"], state["full_batch_rows"])  # type: ignore[misc]
        except DeviceError:  # a model of a GPU that is not here
            config = dataclasses.replace(state["config"], precision="full")
            self.__init__(config, "auto", state["full_batch_rows"])  # type: ignore[misc]
        self.set_parameters(state["tensors"])
        self.steps = state["steps"]

    def _rows(self, name: str, value: Any, n_cols: int) -> Array:
        return as_rows(name, value, n_cols, other=self.config.dtype)

    def _batch(self, value: Any) -> Array:
        rows = self._rows("X", value, self.config.n_features)
        if len(rows) == 0:
            raise ValueError("X: expected at least one row, got none")
        return rows

    def _output(self, out: Array | None, rows: Array, n_cols: int) -> Array:
        n_rows, dtype = len(rows), np.dtype(self.config.dtype)
        if out is None:
            return np.empty((n_rows, n_cols), dtype)
        if (
            not isinstance(out, np.ndarray)
            or out.shape != (n_rows, n_cols)
            or out.dtype != dtype
            or not out.flags.c_contiguous
            or not out.flags.writeable
        ):
            got = f"{out.dtype} {out.shape}" if isinstance(out, np.ndarray) else type(out).__name__
            raise ValueError(
                f"out: expected a writable C-contiguous {dtype} array of shape {(n_rows, n_cols)}, got {got}"
            )
        if np.may_share_memory(out, rows):
            raise ValueError("out: expected memory of its own, got memory that the input uses")
        return out


_COUNTS = ("steps", "rows", "weight")
