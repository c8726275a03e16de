"""The low level: one model, its optimiser and its memory on one device."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastsae import _core
from fastsae._core import DeviceArray, DeviceError, is_readable
from fastsae.arrays import (
    Array,
    Rows,
    as_array,
    as_numbers,
    as_order,
    as_rows,
    as_sparse_rows,
    as_weights,
    cast,
    device_rows,
    is_elsewhere,
    is_of,
    numbers_of,
    rows_for,
    target_for,
)
from fastsae.checks import check_bool, check_integer, check_real
from fastsae.config import Config
from fastsae.cuda import cuda_blas
from fastsae.process import check_device
from fastsae.sparse_code import SparseCodeConfig

#: What a model may be made from.
ModelConfig = Config | SparseCodeConfig
ConfigT_co = TypeVar("ConfigT_co", bound=ModelConfig, covariant=True)

_ELEMENTS_AT_ONCE = 1 << 23  # of rows on their way to the device


class Engine(Generic[ConfigT_co]):
    """A model that computes: parameters, gradients and optimiser state, and the operations on them.

    Parameters
    ----------
    config : Config or SparseCodeConfig
        The model and its optimiser.
    device : {"auto", "cpu", "cuda", "cuda:N"}
        Where the memory is and the arithmetic runs.
    full_batch_rows : int, default 0
        Rows whose activations are held at once; a larger batch is computed in chunks that share its mean
        activations. 0 takes as many as fit in 1 GiB.

    Raises
    ------
    ValueError, MemoryError, fastsae.DeviceError
        If an argument is wrong, the model does not fit on the device, or the device lacks the precision or is missing.

    Notes
    -----
    The parameters start at zero; :func:`fastsae.initializers.initialize` draws them. `encode`, `decode`,
    `reconstruct` and `score` may be called from many threads at once, as long as none trains.
    """

    def __init__(self, config: ConfigT_co, device: str = "auto", full_batch_rows: int = 0) -> None:
        config.validate()
        check_device(device)
        check_integer("full_batch_rows", full_batch_rows, 0)
        self._config = config
        self.device = device
        self._full_batch_rows = full_batch_rows
        if device.startswith("cuda"):
            cuda_blas()
        core = config.core()
        self._core = _core.Engine(core, device, full_batch_rows)
        if core.get("activation") == "batch_topk":
            self.set("batch_threshold", [core["threshold_start"]])
        if core["loss_reduction"] == "fvu_data":
            self.set("data_variance", [1.0])

    @property
    def config(self) -> ConfigT_co:
        """The model and its optimiser, with the learning rate that is set now."""
        return self._config

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
        """The optimiser's learning rate, from the next step on; a schedule multiplies it."""
        return self._core.learning_rate

    @learning_rate.setter
    def learning_rate(self, value: float) -> None:
        check_real("learning_rate", value, 0.0)
        self._core.learning_rate = float(value)
        self._config = dataclasses.replace(self._config, learning_rate=float(value))

    @property
    def averaged(self) -> bool:
        """Whether the parameters are what an averaging optimiser has learned, x, instead of where it goes on, y.

        True puts the averages of ``optimizer="sign_sgd"`` in the place of the parameters, which until then are
        ``training.W1, ...``, and no step can be taken; False brings them back, bit for bit. Both are one pass over the
        parameters. Other optimisers keep no average and raise ValueError.
        """
        return self._core.averaged

    @averaged.setter
    def averaged(self, value: bool) -> None:
        check_bool("averaged", value)
        self._core.averaged = bool(value)

    @property
    def total_steps(self) -> int | None:
        """Number of the step with which a cosine or linear `lr_schedule` ends; None where it is not known."""
        return self._core.total_steps or None

    @total_steps.setter
    def total_steps(self, value: int) -> None:
        check_integer("total_steps", value, 1)
        self._core.total_steps = int(value)

    @property
    def noise_seed(self) -> int:
        """Seed of all noise that steps draw: of the input's corruption, a stochastic code and the contraction."""
        return self._core.noise_seed

    @noise_seed.setter
    def noise_seed(self, value: int) -> None:
        check_integer("noise_seed", value, 0, 2**32 - 1)
        self._core.noise_seed = int(value)

    @property
    def epoch(self) -> int:
        """Number of the pass over the data, from 0: noise is fresh in each, and warm-ups count them."""
        return self._core.epoch

    @epoch.setter
    def epoch(self, value: int) -> None:
        check_integer("epoch", value, 0, 2**32 - 1)
        self._core.epoch = int(value)

    @property
    def code_width(self) -> int:
        """Number of units of the code."""
        return self._core.code_width

    def step(
        self,
        X: Any,
        sample_weight: ArrayLike | None = None,
        *,
        targets: Any = None,
        numbers: ArrayLike | None = None,
    ) -> None:
        """One optimiser step on all rows of `X`.

        Parameters
        ----------
        X : array, shape (n_rows, n_features)
            NumPy array, memory map, or tensor of the engine's device with ``__dlpack__``. Rows of float32 or
            float64 (on a device also float16 or bfloat16) are read where they are.
        sample_weight : array, shape (n_rows,), optional
            Weights >= 0 of the rows.
        targets : array, shape (n_rows, n_outputs), optional
            What the output of each row should be; None means X.
        numbers : integer array, shape (n_rows,), optional
            Which row of the data set each one is, from 0: noise depends on it alone, on `noise_seed` and on `epoch`.
            None means 0, 1, ...

        Raises
        ------
        ValueError
            If an argument has a wrong shape or type, or a row holds NaN or infinity. The model is unchanged.
        FloatingPointError
            If the loss or the gradient is not finite. The model is unchanged.
        """
        self.run_epoch(X, None, None, sample_weight, targets=targets, numbers=numbers)

    def run_epoch(
        self,
        chunk: Any,
        order: ArrayLike | None = None,
        batch_size: int | None = None,
        sample_weight: ArrayLike | None = None,
        *,
        targets: Any = None,
        numbers: ArrayLike | None = None,
    ) -> None:
        """One optimiser step for each batch of the rows of `chunk` taken in `order`.

        Parameters
        ----------
        chunk : array, shape (n_rows, n_features)
            NumPy array, memory map, or tensor of the engine's device with ``__dlpack__``; see `hold`.
        order : integer array, optional
            Row numbers; None takes the rows as they are.
        batch_size : int or None
            Rows per step; the last, shorter batch is kept. None takes all in one step.
        sample_weight : array, shape (n_rows,), optional
            Weights of the rows of `chunk`.
        targets, numbers
            Of the rows of `chunk`; see `step`.

        Raises
        ------
        ValueError, FloatingPointError
            As `step`; the steps before the failing one are done.
        KeyboardInterrupt
            Within a second of Ctrl-C; the steps that were finished are done, and no other has begun to update.
        """
        rows = self._batch(chunk)
        indices = as_order(order)
        count = len(rows) if indices is None else len(indices)
        size = max(1, count)
        if batch_size is not None:
            check_integer("batch_size", batch_size, 1)
            size = min(size, int(batch_size))
        if getattr(self.config, "rho_hat", None) == "full" and size < count:
            raise ValueError(f"batch_size: rho_hat='full' needs all {count} rows in one step, got {batch_size}")
        self._core.run(rows, indices, size, *self._examples(rows, sample_weight, targets, numbers))

    def gradient(
        self,
        X: Any,
        sample_weight: ArrayLike | None = None,
        *,
        targets: Any = None,
        numbers: ArrayLike | None = None,
    ) -> dict[str, float]:
        """The cost J of all rows of `X` and its gradient, which `get` then reads; nothing is updated.

        Parameters
        ----------
        X : array, shape (n_rows, n_features)
            NumPy array, memory map, or tensor of the engine's device with ``__dlpack__``.
        sample_weight : array, shape (n_rows,), optional
            Weights >= 0 of the rows.
        targets, numbers
            See `step`.

        Notes
        -----
        J is as training sees it: with ``Config.corruption`` of corrupted rows, whose noise is that of `epoch`.

        Returns
        -------
        dict
            ``loss`` = ``reconstruction`` + ``penalty`` + ``decay``, and ``gradient_norm``.
        """
        rows = self._batch(X)
        return self._core.gradient(rows, *self._examples(rows, sample_weight, targets, numbers))

    def evaluate(
        self,
        X: Any,
        sample_weight: ArrayLike | None = None,
        *,
        targets: Any = None,
        numbers: ArrayLike | None = None,
    ) -> dict[str, float]:
        """The parts of the cost J of all rows of `X`, without its gradient. Arguments and noise as for `gradient`."""
        rows = self._batch(X)
        return self._core.evaluate(rows, *self._examples(rows, sample_weight, targets, numbers))

    def encode(self, X: Any, out: Any = None) -> Any:
        """The code of each row.

        Parameters
        ----------
        X : array, shape (n_rows, n_features)
            NumPy array, memory map, or tensor of the engine's device with ``__dlpack__``.
        out : array, shape (n_rows, code_width), optional
            Dense memory of the model's dtype to write to: a NumPy array, or a tensor of the engine's device.

        Returns
        -------
        ndarray or DeviceArray, shape (n_rows, code_width)
            `out` if it is given, else a new array of the model's dtype: on the device where X is a tensor of it.

        Raises
        ------
        ValueError
            If an argument has a wrong shape or type.
        KeyboardInterrupt
            Within a second of Ctrl-C; what was written to `out` is then undefined.
        """
        return self._infer(self._core.encode, self.rows("X", X, self.config.n_features), out, self.code_width)

    def encode_sparse(self, X: Any) -> tuple[NDArray[np.int64], NDArray[np.int32], Array]:
        """The elements of each row's code that are not 0, for codes that mostly are.

        Parameters
        ----------
        X : array, shape (n_rows, n_features)
            NumPy array, memory map, or tensor of the engine's device with ``__dlpack__``.

        Returns
        -------
        starts : ndarray of int64, shape (n_rows + 1,)
            Where each row begins, and the end: ``indptr`` of :class:`scipy.sparse.csr_array`.
        latents : ndarray of int32, shape (n_elements,)
            Ascending in each row.
        values : ndarray, shape (n_elements,)
            Of the model's dtype.
        """
        starts, latents, values = self._core.encode_sparse(self.rows("X", X, self.config.n_features))
        return starts, latents, values

    def decode_sparse(self, starts: ArrayLike, latents: ArrayLike, values: ArrayLike) -> Array:
        """The reconstruction of each row of a code that is given by its elements.

        Parameters
        ----------
        starts, latents, values
            As :meth:`encode_sparse` gives them: ``indptr``, ``indices`` and ``data`` of a CSR array.

        Returns
        -------
        ndarray, shape (n_rows, n_outputs)
            Of the model's dtype.

        Raises
        ------
        ValueError
            If the arrays do not fit each other or the model.
        """
        self.config.check_decodable()
        indptr, indices, data = as_sparse_rows(starts, latents, values, self.code_width, self.config.dtype)
        out = np.empty((len(indptr) - 1, self.config.output_width), self.config.dtype)
        at_once = max(1, _ELEMENTS_AT_ONCE // self.code_width)
        for first in range(0, len(out), at_once):
            last = min(first + at_once, len(out))
            begin, end = indptr[first], indptr[last]
            dense = np.zeros((last - first, self.code_width), self.config.dtype)
            rows = np.repeat(np.arange(last - first), np.diff(indptr[first : last + 1]))
            dense[rows, indices[begin:end]] = data[begin:end]
            self.decode(dense, out[first:last])
        return out

    def decode(self, H: Any, out: Any = None) -> Any:
        """The reconstruction that each code gives, shape (n_rows, n_outputs). Arrays as for `encode`.

        ValueError if the model unpools maxima of its encoder, whose places a code does not hold.
        """
        self.config.check_decodable()
        return self._infer(self._core.decode, self.rows("H", H, self.code_width), out, self.config.output_width)

    def reconstruct(self, X: Any, out: Any = None) -> Any:
        """``decode(encode(X))`` without storing the code. Arrays as for `encode`."""
        rows = self.rows("X", X, self.config.n_features)
        return self._infer(self._core.reconstruct, rows, out, self.config.output_width)

    def encode_distribution(self, X: Any, out: Any = None) -> Any:
        """Mean and log-variance of each row's Gaussian code, shape (n_rows, 2 code_width). Arrays as for `encode`."""
        rows = self.rows("X", X, self.config.n_features)
        return self._infer(self._core.encode_distribution, rows, out, 2 * self.code_width)

    def score(self, X: Any, targets: Any = None) -> NDArray[np.float64]:
        """The reconstruction loss of each row, shape (n_rows,), as a NumPy array wherever X is.

        Their mean is the cost's reconstruction part where no noise is drawn. `targets` as for `step`.
        """
        return self._core.score(self.rows("X", X, self.config.n_features), self._targets(targets))

    def score_code(self, H: Any, targets: Any) -> NDArray[np.float64]:
        """The reconstruction loss of each row of `targets` when it is decoded from that row of `H`, shape (n_rows,)."""
        self.config.check_decodable()
        goal = self.rows("targets", targets, self.config.output_width)
        return self._core.score_code(self.rows("H", H, self.code_width), goal)

    def hold(self, X: Any) -> DeviceArray | None:
        """The rows of `X` in the device's memory, for calls that read them again and again.

        On a GPU, rows of the host are copied there, in the model's dtype. On the CPU, and for a tensor of the engine's
        device, nothing is copied: the result keeps X alive, and changes of X show.

        Parameters
        ----------
        X : array, shape (n_rows, n_features)
            NumPy array, memory map, or tensor of the engine's device with ``__dlpack__``.

        Returns
        -------
        DeviceArray or None
            None where they would take more than 0.7 of the free memory, or on the CPU another dtype or layout.
        """
        if is_of(self._core, X):
            return device_rows(self._core, "X", X, self.config.n_features)
        rows = as_array("X", X)
        if rows.ndim != 2 or rows.shape[1] != self.config.n_features:
            rows = as_rows("X", rows, self.config.n_features)  # says what is wrong
        held = self._core.view(rows) if is_readable(rows, self.config.n_features) else None
        if held is not None:
            return held
        if not self._core.has_room(rows.size * np.dtype(self.config.dtype).itemsize):
            return None
        try:
            held = self._core.empty(len(rows), rows.shape[1], self.config.dtype)
        except MemoryError:
            return None
        at_once = max(1, _ELEMENTS_AT_ONCE // rows.shape[1])
        for first in range(0, len(rows), at_once):
            piece = as_rows("X", rows[first : first + at_once], rows.shape[1], other=self.config.dtype)
            self._core.take(piece, None, held, first)
        return held

    def take(self, X: DeviceArray, order: ArrayLike | None = None) -> DeviceArray:
        """The rows of `X` in an order, in new memory of the device.

        Parameters
        ----------
        X : DeviceArray, shape (n_rows, n_features)
            What `hold` gave.
        order : integer array, shape (n_taken,), optional
            Row numbers; None takes the rows as they are.

        Returns
        -------
        DeviceArray, shape (n_taken, n_features)
            In the model's dtype.

        Raises
        ------
        ValueError, MemoryError
            If an argument has a wrong shape or value; if the rows do not fit on the device.
        """
        rows, indices = device_rows(self._core, "X", X, self.config.n_features), as_order(order)
        taken = self._core.empty(len(rows if indices is None else indices), rows.shape[1], self.config.dtype)
        self._core.take(rows, indices, taken, 0)
        return taken

    def first_row_outside(self, X: DeviceArray, low: float = -math.inf, high: float = math.inf) -> int | None:
        """The first row of `X` with NaN or a number outside [low, high] or infinite; None if there is none."""
        limit = float(np.finfo(self.config.dtype).max)
        row = self._core.first_row_outside(X, max(low, -limit), min(high, limit))
        return None if row < 0 else row

    def names(self) -> list[str]:
        """Names for `get` and `set`.

        Parameters ``W1, b1, W2, ...`` (``W`` of shape (units, inputs); a tied decoder has none), gradients
        ``gradient.W1, ...``, optimiser state ``first_moment.W1, second_moment.W1, ...`` (z of ``sign_sgd``), and with
        ``rho_hat='ema'`` the averages ``rho_hat1, ...``. While `averaged`, also ``training.W1, ...``.
        """
        return self._core.names()

    def parameter_names(self) -> list[str]:
        """The names of the parameters."""
        return list(self.config.parameter_shapes)

    def state_names(self) -> list[str]:
        """The names of all that training continues from, beside `steps`: no gradients."""
        return [name for name in self.names() if not name.startswith("gradient.")]

    def get(self, name: str) -> Array:
        """A copy of a tensor; vectors are 1-D.

        Moments in few bits are as they are kept: bits of bfloat16 as uint16, or codes as uint8 beside the scales of
        their blocks, ``first_scale.W_enc``; :mod:`fastsae.reference.moments` says what numbers they are.
        """
        value = self._core.get(name)
        return value if name.rpartition(".")[2].startswith("W") else value.reshape(-1)

    def set(self, name: str, value: ArrayLike) -> None:
        """Overwrite a tensor. Where parameters are averaged, one that is set starts its average anew.

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
        array = np.ascontiguousarray(cast(name, array, current.dtype))
        if not np.isfinite(numbers_of(array)).all():
            raise ValueError(f"{name}: expected finite numbers, got NaN or infinity")
        if name == "data_variance" and array.min() < 0:
            raise ValueError(f"{name}: expected a number >= 0, got {float(array.min())!r}")
        self._core.set(name, array)

    def get_parameters(self) -> dict[str, Array]:
        """A copy of every parameter."""
        return {name: self.get(name) for name in self.parameter_names()}

    def get_learned(self) -> dict[str, Array]:
        """A copy of all that inference reads: the parameters, and a threshold that follows them."""
        return {name: self.get(name) for name in self.learned_names()}

    def learned_names(self) -> list[str]:
        """The names of what `get_learned` gives."""
        return [*self.parameter_names(), *(name for name in self.names() if name == "batch_threshold")]

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
            "averaged": self.averaged,
            "steps": self.steps,
            "total_steps": self.total_steps,
            "noise": (self.noise_seed, self.epoch),
            "tensors": tensors,
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        try:
            self.__init__(state["config"], state["device"], state["full_batch_rows"])  # type: ignore[misc]
        except DeviceError:  # a model of a GPU or a precision that is not here
            config = dataclasses.replace(state["config"], precision="full")
            self.__init__(config, "auto", state["full_batch_rows"])  # type: ignore[misc]
        self.averaged = state["averaged"]
        self.set_parameters(state["tensors"])  # in the order of `names`: a parameter before what belongs to it
        self.steps = state["steps"]
        if state["total_steps"] is not None:
            self.total_steps = state["total_steps"]
        self.noise_seed, self.epoch = state["noise"]

    def rows(self, name: str, value: Any, n_cols: int) -> Rows:
        """`value` as rows that this engine reads; `name` is what an error calls it.

        A tensor of the engine's device stays where it is, for as long as the result lives; the work that its
        producer has begun comes before the engine's.
        """
        return rows_for(self._core, name, value, n_cols, self.config.dtype)

    def _batch(self, value: Any) -> Rows:
        rows = self.rows("X", value, self.config.n_features)
        if len(rows) == 0:
            raise ValueError("X: expected at least one row, got none")
        return rows

    def weights(self, value: Any, n_rows: int) -> NDArray[np.float64] | None:
        """Weights of rows, checked."""
        if value is None:
            return None
        # Their sums are made on the host: those of a device come over once.
        return as_weights(self._core.borrow("sample_weight", value).numpy() if is_elsewhere(value) else value, n_rows)

    def _targets(self, value: Any) -> Rows | None:
        if value is None:
            return None
        if isinstance(self.config, SparseCodeConfig) and not self.config.transcoder:
            raise ValueError("targets: expected None, since the target of this code is X; they need transcoder=True")
        return self.rows("targets", value, self.config.output_width)

    def _examples(self, rows: Rows, sample_weight: Any, targets: Any, numbers: Any) -> tuple[Any, ...]:
        return self.weights(sample_weight, len(rows)), self._targets(targets), as_numbers(numbers)

    def output_for(self, rows: Rows, out: Any, n_cols: int) -> Rows:
        """`out`, checked, or new memory for results of so many columns."""
        return target_for(self._core, "out", out, (len(rows), n_cols), self.config.dtype, rows)

    def _infer(self, compute: Callable[[Rows, Rows], None], rows: Rows, out: Any, n_cols: int) -> Any:
        target = self.output_for(rows, out, n_cols)
        compute(rows, target)
        return target if out is None else out


_COUNTS = ("steps", "rows", "weight")
