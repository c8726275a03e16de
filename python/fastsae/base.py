"""What all estimators share: training, inference, files and scikit-learn's conventions."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.utils import check_random_state
from sklearn.utils.validation import _check_sample_weight, check_array, check_is_fitted, validate_data

from fastsae import checkpoint as _checkpoint
from fastsae._core import DeviceArray, bf16_unit, is_readable
from fastsae.arrays import Rows, as_array, is_elsewhere
from fastsae.checks import check_choice, check_integer
from fastsae.config import Config, TrainingConfig
from fastsae.engine import Engine, ModelConfig
from fastsae.initializers import initialize
from fastsae.process import devices
from fastsae.scaling import COLUMN_SCALES, Scaler
from fastsae.stores import ArrayStore, pieces
from fastsae.trainer import Callback, Progress, Trainer, check_combination, check_values
from fastsae.trainer_state import TrainerState

if TYPE_CHECKING:
    from typing_extensions import Self

Array = NDArray[Any]
ConfigT = TypeVar("ConfigT", bound=ModelConfig)

# Options whose names the estimator shares with the configuration; the defaults are its too.
_TRAINING_OPTIONS = tuple(field.name for field in dataclasses.fields(TrainingConfig))


class Network(BaseEstimator, Generic[ConfigT]):  # type: ignore[misc]
    """An estimator around one model: a subclass says by `_config` which.

    Its options are the parameters of its ``__init__``, which gives them to `_take`. Those with the name of a field of
    :class:`fastsae.Config` or :class:`fastsae.TrainingConfig` have its meaning.
    """

    _engine: Engine[ConfigT]
    solver: str
    dtype: str
    precision: str
    device: str
    random_state: Any
    checkpoint: str | os.PathLike[str] | None
    checkpoint_every: int
    callback: Callback | None
    verbose: bool
    scale: str | None
    _scales: tuple[str, ...] = COLUMN_SCALES  # that `scale` may name
    _inverts = True  # whether what comes out of the model is in the units of scaled rows
    _scaler: Scaler | None = None  # of the rows that training began with

    def _take(self, options: dict[str, Any]) -> None:
        """Keep the arguments of ``__init__``, as scikit-learn wants them: each as the attribute of its name."""
        for name, value in options.items():
            if name not in ("self", "__class__"):
                setattr(self, name, value)

    # Files

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a checkpoint that :func:`fastsae.load` reads, atomically.

        The file holds the options (not a callback), the parameters and the state of training.

        Raises
        ------
        OSError
            If the file cannot be written; an older file of that name is untouched.
        """
        check_is_fitted(self)
        _checkpoint.save(self, path)

    @property
    def history_(self) -> dict[str, list[float]]:
        """Per epoch: epoch, loss and its parts."""
        self._fitted_engine("history_")
        return self._state.history

    @property
    def n_iter_(self) -> int:
        """Epochs done."""
        self._fitted_engine("n_iter_")
        return self._state.epoch

    @property
    def center_(self) -> NDArray[np.float64] | None:
        """What is subtracted from each column of X, shape (n_features_in_,); None with ``scale=None``."""
        self._fitted_engine("center_")
        return None if self._scaler is None else self._scaler.center

    @property
    def scale_(self) -> NDArray[np.float64] | None:
        """What each column is divided by after that, shape (n_features_in_,); None with ``scale=None``."""
        self._fitted_engine("scale_")
        return None if self._scaler is None else self._scaler.scale

    # scikit-learn

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        engine = self.__dict__.get("_engine")
        if engine is not None and not _is_here(self.device, self.precision):  # as `load` does
            self.device, self.precision = engine.device, engine.config.precision

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "_engine")

    # Details

    def _config(self, n_features: int) -> ConfigT:
        """The model for rows of this width; ValueError if an option has no meaning."""
        raise NotImplementedError

    @classmethod
    def _config_from_dict(cls, values: Any) -> ConfigT:
        """The inverse of its configuration's `to_dict`."""
        raise NotImplementedError

    @classmethod
    def _has_model(cls, config: Any) -> bool:
        """Whether a model of this estimator may have that configuration."""
        return True

    @classmethod
    def _names_of_options(cls, config: Any) -> dict[str, Any]:
        """The options of `config` under the estimator's names."""
        raise NotImplementedError

    def _kind_of_scale(self) -> str | None:
        return self.scale

    def _training_options(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in _TRAINING_OPTIONS if hasattr(self, name)}

    def _training_config(self) -> TrainingConfig:
        training = TrainingConfig(**self._training_options())
        training.validate()
        if (kind := self._kind_of_scale()) is not None:
            check_choice("scale", kind, self._scales)
        check_integer("checkpoint_every", self.checkpoint_every, 1)
        if self.callback is not None and not callable(self.callback):
            raise ValueError(f"callback: expected a callable or None, got {self.callback!r}")
        if self.checkpoint is not None:
            if not isinstance(self.checkpoint, (str, bytes, os.PathLike)):
                raise ValueError(f"checkpoint: expected a path or None, got {self.checkpoint!r}")
            _checkpoint.check_target(self.checkpoint)
        return training

    def _fit(
        self,
        X: Any,
        sample_weight: Any,
        progress: Progress | None = None,
        targets: NDArray[Any] | None = None,
    ) -> Self:
        """Train on `targets` [n_rows x n_outputs], if the output should be something else than the row."""
        with self._setting_up():
            training = self._training_config()
            X, weights = self._validate(X, sample_weight, reset=True)
            config = self._config(X.shape[1])
            scaler = self._new_scaler(X, weights)
            check_combination(config, training, X, targets, scaler=scaler)
            self._start(config, training, X.shape[0])
            self._scaler = scaler
            store, weights = self._store(X, weights, targets)
            self._place_first_parameters(config, store, weights, targets)
        self._prepare(X, weights, training, progress, targets)
        return self._train(store, weights, training, training.max_epochs, progress, targets)

    def _partial_fit(self, X: Any, sample_weight: Any, targets: NDArray[Any] | None = None) -> Self:
        first = not self.__sklearn_is_fitted__()
        with self._setting_up():
            training = self._training_config()
            training = dataclasses.replace(training, early_stopping=False, validation_fraction=0.0, max_steps=None)
            X, weights = self._validate(X, sample_weight, reset=first)
            config = self._config(X.shape[1])
            scaler = self._new_scaler(X, weights) if first else self._scaler
            check_combination(config, training, X, targets, scaler=scaler, one_pass=True)
            if first:
                self._start(config, training, X.shape[0])
                self._scaler = scaler
            else:
                self._continue(config)
            store, weights = self._store(X, weights, targets)
            if first:
                self._place_first_parameters(config, store, weights, targets)
        self._state.start_pass(len(store))
        self._train(store, weights, training, self._state.epoch + 1, targets=targets)
        self._state.n_rows = 0  # the pass is complete: what follows may have any number of rows
        return self

    def _resume(
        self,
        X: Any,
        sample_weight: Any,
        progress: Progress | None = None,
        targets: NDArray[Any] | None = None,
    ) -> Self:
        check_is_fitted(self)
        with self._setting_up():
            training = self._training_config()
            X, weights = self._validate(X, sample_weight, reset=False)
            config = self._config(X.shape[1])
            check_combination(config, training, X, targets, scaler=self._scaler)
            n_rows = X.shape[0]
            if self._state.n_rows not in (0, n_rows):
                raise ValueError(
                    f"X: resume needs the {self._state.n_rows} rows that training began with, got {n_rows}"
                )
            self._continue(config)
            store, weights = self._store(X, weights, targets)
        self._prepare(X, weights, training, progress, targets)
        return self._train(store, weights, training, training.max_epochs, progress, targets)

    def _prepare(
        self,
        X: Any,
        weights: NDArray[np.float64] | None,
        training: TrainingConfig,
        progress: Progress | None,
        targets: NDArray[Any] | None,
    ) -> None:
        """What `fit` and `resume` do before the training proper; `partial_fit` leaves it out."""

    def _more_state(self) -> dict[str, Any]:
        """What a checkpoint keeps beside the engine and its training, as JSON values."""
        return {}

    def _parts(self) -> dict[str, Network[Any]]:
        """Fitted estimators that a checkpoint keeps too, by name."""
        return {}

    def _restore_more(self, state: dict[str, Any], parts: dict[str, Network[Any]]) -> None:
        """The inverse of both; ValueError on what cannot be."""
        if state or parts:
            raise ValueError(f"its state holds more than that of a {type(self).__name__}")

    def _start(self, config: ConfigT, training: TrainingConfig, n_rows: int) -> None:
        """Take a new engine with first weights."""
        try:
            seed = int(check_random_state(self.random_state).randint(2**31 - 1))
        except ValueError as error:
            raise ValueError(f"random_state: {error}") from None
        engine = Engine(config, self.device)
        if isinstance(config, Config):
            engine.set_parameters(initialize(config, training.init, np.random.default_rng([seed, 2])))
        self._adopt(engine, TrainerState(seed, n_rows=n_rows))

    def _place_first_parameters(
        self, config: Any, store: ArrayStore, weights: NDArray[np.float64] | None, targets: Any
    ) -> None:
        """Those that depend on the rows; `fit` and the first `partial_fit` call it."""

    def _continue(self, config: ModelConfig) -> None:
        """Go on with the engine that there is, whose options must be those of `config`."""
        kind = None if self._scaler is None else self._scaler.kind
        if config == self._engine.config and self._kind_of_scale() == kind:
            return
        if self.solver == "lbfgs":  # which has no use for an optimiser
            config = dataclasses.replace(config, optimizer=self._engine.config.optimizer)
        now, fitted = self._names_of_options(config), self._names_of_options(self._engine.config)
        now["scale"], fitted["scale"] = self._kind_of_scale(), kind
        changed = [name for name in {**now, **fitted} if now.get(name) != fitted.get(name) and name != "learning_rate"]
        if changed:
            name = changed[0]
            raise ValueError(
                f"{name}: expected {fitted.get(name)!r}, with which the training began, got {now.get(name)!r}; "
                "fit starts anew"
            )
        if config.learning_rate != self._engine.config.learning_rate:
            self._engine.learning_rate = config.learning_rate

    @contextlib.contextmanager
    def _setting_up(self) -> Iterator[None]:
        """Of a training: what raises inside leaves the estimator as it was."""
        before = dict(self.__dict__)
        try:
            yield
        except BaseException:
            self.__dict__.clear()
            self.__dict__.update(before)
            raise

    def _adopt(self, engine: Engine[ConfigT], state: TrainerState) -> None:
        self._engine = engine
        self._state = state
        self.n_features_in_ = engine.config.n_features

    def _train(
        self,
        store: ArrayStore,
        weights: NDArray[np.float64] | None,
        training: TrainingConfig,
        until: int,
        progress: Progress | None = None,
        targets: NDArray[Any] | None = None,
    ) -> Self:
        path = self.checkpoint
        save = None if path is None else lambda: self.save(path)
        Trainer(
            self._engine,
            training,
            self._state,
            callback=self.callback,
            save=save,
            save_every=self.checkpoint_every,
            save_steps=getattr(self, "checkpoint_steps", None),
            verbose=bool(self.verbose),
            progress=progress,
        ).run(store, weights, until, targets)
        return self

    def _validate(self, X: Any, sample_weight: Any, reset: bool) -> tuple[Any, Any]:
        """Rows and weights, checked; what is on a device comes back as it is, and `_store` looks at its numbers."""
        if _on_device(X):
            self._check_shape(X, reset)
        else:
            X = self._validate_rows(X, reset)
        if sample_weight is None or is_elsewhere(sample_weight):
            return X, sample_weight
        sample_weight = tensor_as_array("sample_weight", sample_weight)
        return X, _not_all_zero(_check_sample_weight(sample_weight, X, dtype=np.float64, ensure_non_negative=True))

    def _validate_rows(self, X: Any, reset: bool) -> Any:
        # A memory map is not read twice: a step that meets a NaN names its row.
        finite = not is_mapped(X)
        if finite and not reset and self._passes(X):
            return X
        X = validate_data(self, tensor_as_array("X", X), reset=reset, dtype="numeric", ensure_all_finite=finite)
        if X.dtype.kind not in "fiub":
            raise ValueError(f"X: expected an array of real numbers, got dtype {X.dtype}")
        return X

    def _store(
        self, X: Any, weights: Any, targets: NDArray[Any] | None
    ) -> tuple[ArrayStore, NDArray[np.float64] | None]:
        """What `_validate` gave, for training with the engine that there is now."""
        engine = self._engine
        if _on_device(X):
            X = engine.rows("X", X, engine.config.n_features)
            if isinstance(X, DeviceArray):
                check_values("X", engine, X, as_target=targets is None)
        if is_elsewhere(weights):
            weights = _not_all_zero(engine.weights(weights, X.shape[0]))
        return ArrayStore(X, engine, self._scaler), weights

    def _new_scaler(self, X: Any, weights: Any) -> Scaler | None:
        if (kind := self._kind_of_scale()) is None:
            return None
        for name, value in (("X", X), ("sample_weight", weights)):
            _refuse_device(name, value, kind)
        return Scaler.fit(kind, X, weights)

    def _blocks_of(self, rows: Rows) -> Iterator[tuple[slice, Rows]]:
        """The rows as the model sees them, and where they are: all at once unless they are scaled."""
        if self._scaler is None:
            yield slice(0, len(rows)), rows
            return
        assert isinstance(rows, np.ndarray)  # see _check
        for piece in pieces(len(rows)):
            yield piece, self._scaler.transform_finite(rows[piece], self._engine.config.dtype, piece.start)

    def _infer(
        self, compute: Callable[[Rows, Any], Any], rows: Rows, out: Any, n_cols: int, *, scaled: bool, invert: bool
    ) -> Any:
        """`compute(rows, out)` of an engine, with rows that are `scaled` first and a result to `invert`."""
        scaler, invert = self._scaler, invert and self._inverts
        if scaler is None or not (scaled or invert):
            return compute(rows, out)
        _refuse_device("H", rows, scaler.kind)
        assert isinstance(rows, np.ndarray)
        target: Any = self._engine.output_for(rows, None if out is None else as_array("out", out), n_cols)
        if invert and not scaled:
            scaler.check_inverse()
        blocks = self._blocks_of(rows) if scaled else ((piece, rows[piece]) for piece in pieces(len(rows)))
        for piece, block in blocks:
            compute(block, target[piece])
            if invert:
                scaler.invert(target[piece], rows[piece] if scaled else None)
        return target if out is None else out

    def _check_shape(self, X: Any, reset: bool) -> None:
        """What scikit-learn checks of an array, for a tensor whose numbers it cannot read."""
        shape = tuple(getattr(X, "shape", ()))
        if len(shape) != 2 or 0 in shape:
            raise ValueError(f"X: expected a 2-D array with at least one row and one column, got shape {shape}")
        validate_data(self, X, reset=reset, skip_check_array=True)

    def _check(self, X: Any) -> Rows:
        if self._scaler is not None:
            _refuse_device("X", X, self._scaler.kind)
        if _on_device(X):
            self._check_shape(X, reset=False)
            rows = self._engine.rows("X", X, self._engine.config.n_features)
            if isinstance(rows, DeviceArray):
                check_values("X", self._engine, rows)
            return rows
        checked: Array = X
        if not self._passes(X):
            checked = validate_data(self, tensor_as_array("X", X), reset=False, dtype="numeric")
        if self._scaler is None:
            check_range("X", checked, self._engine.config.dtype)
        return checked

    def _passes(self, X: Any) -> bool:
        """Whether scikit-learn's checks, which take ten times what a row's code takes, would find nothing to say."""
        if type(X) is not np.ndarray or hasattr(self, "feature_names_in_") or not is_readable(X, self.n_features_in_):
            return False
        with np.errstate(over="ignore", invalid="ignore"):
            return len(X) > 0 and bool(np.isfinite(X.sum()))  # a sum that is too large is looked at again there

    def _fitted_engine(self, attribute: str) -> Engine[ConfigT]:
        if not hasattr(self, "_engine"):
            raise AttributeError(f"{type(self).__name__} has no {attribute} before fit")
        return self._engine


class Autoencoder(ClassNamePrefixFeaturesOutMixin, TransformerMixin, Network[ConfigT]):  # type: ignore[misc]
    """A network whose output should be its input, as a transformer to its code."""

    # Training

    def fit(self, X: Any, y: Any = None, sample_weight: ArrayLike | None = None) -> Self:
        """Train from new weights.

        Parameters
        ----------
        X : array-like, shape (n_rows, n_features)
            NumPy array, memory map, DLPack tensor of the CPU or of `device`, data frame. float32 and float64 rows
            are read in place; on a GPU, rows of the host are copied there once if they fit, else they stream through.
        y : ignored
        sample_weight : array-like, shape (n_rows,), optional
            Weights >= 0; they divide the loss and the mean activations by their sum.

        Returns
        -------
        self

        Raises
        ------
        ValueError
            If an option or X is not usable; what was fitted before is kept then. A memory map is not searched for
            NaN before: the step that meets one raises, naming the row, and the model is the one of the step before.
        TypeError
            If X is sparse, or holds objects that are not numbers.
        OSError
            If `checkpoint` cannot be written.
        FloatingPointError
            If the loss is no longer finite; the parameters are those of the last good step.
        MemoryError
            If the model or its scratch does not fit.
        KeyboardInterrupt
            On Ctrl-C; the model is usable, and `resume` goes on.
        """
        return self._fit(X, sample_weight)

    def partial_fit(self, X: Any, y: Any = None, sample_weight: ArrayLike | None = None) -> Self:
        """Train one more pass over these rows: for data that comes in pieces. See `fit`.

        `learning_rate` may be changed between two calls; another changed option of the model is a ValueError. Nothing
        is held out and early stopping does not apply.
        """
        return self._partial_fit(X, sample_weight)

    def resume(self, X: Any, sample_weight: ArrayLike | None = None) -> Self:
        """Go on with an interrupted `fit` on the same rows until `max_epochs`.

        With a mini-batch solver the result is bit for bit that of the run that was never interrupted; ``lbfgs``
        starts a new approximation of the curvature. A `fit` that early stopping or a callback has ended stays ended;
        one that came to `max_epochs` goes on if that is larger now, with early stopping from its best parameters.

        Raises
        ------
        ValueError
            As `fit`; also if X has another number of rows than the training began with, or if an option of the model
            or its optimiser other than `learning_rate` has changed.
        """
        return self._resume(X, sample_weight)

    # Inference

    def transform(self, X: Any, out: Any = None) -> Any:
        """Hidden activations; safe to call from many threads.

        Parameters
        ----------
        X : array-like, shape (n_rows, n_features)
            As for `fit`.
        out : array, shape (n_rows, n_hidden), optional
            C-contiguous memory of the model's dtype to write to, a NumPy array or a tensor of `device`; nothing is
            allocated then but what `scale` needs.

        Returns
        -------
        ndarray or DeviceArray, shape (n_rows, n_hidden)
            `out` if it is given, else a new array: a :class:`fastsae.DeviceArray` where X is a tensor of the device.
        """
        check_is_fitted(self)
        engine = self._engine
        return self._infer(engine.encode, self._check(X), out, engine.code_width, scaled=True, invert=False)

    def inverse_transform(self, H: Any, out: Any = None) -> Any:
        """Reconstructions of hidden activations, shape (n_rows, n_features). Arrays as for `transform`."""
        check_is_fitted(self)
        decode, n_features = self._engine.decode, self._engine.config.output_width
        if _on_device(H):
            H = self._engine.rows("H", H, self._engine.code_width)
            if isinstance(H, DeviceArray):
                check_values("H", self._engine, H)
            return self._infer(decode, H, out, n_features, scaled=False, invert=True)
        H = check_array(tensor_as_array("H", H), dtype="numeric", ensure_min_samples=0, input_name="H")
        check_range("H", H, self._engine.config.dtype)
        return self._infer(decode, H, out, n_features, scaled=False, invert=True)

    def reconstruct(self, X: Any, out: Any = None) -> Any:
        """``inverse_transform(transform(X))``, shape (n_rows, n_features). Arrays as for `transform`."""
        check_is_fitted(self)
        engine = self._engine
        width = engine.config.output_width
        return self._infer(engine.reconstruct, self._check(X), out, width, scaled=True, invert=True)

    def score_samples(self, X: Any) -> NDArray[np.float64]:
        """Minus the reconstruction loss of each row, shape (n_rows,): low for rows unlike the training data.

        With `scale` it is that of scaled rows, as in training.
        """
        check_is_fitted(self)
        return -np.concatenate([self._engine.score(block) for _, block in self._blocks_of(self._check(X))])

    def score(self, X: Any, y: Any = None) -> float:
        """Mean of `score_samples`, so that a grid search keeps the best reconstruction."""
        return float(self.score_samples(X).mean())

    # scikit-learn

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.transformer_tags.preserves_dtype = [self.dtype]
        return tags

    @property
    def _n_features_out(self) -> int:
        return self._engine.code_width


def _not_all_zero(weights: Any) -> Any:
    if not weights.any():
        raise ValueError("sample_weight: expected at least one weight that is not zero")
    return weights


def check_range(name: str, rows: Array, dtype: str) -> None:
    """ValueError if a number of `rows` is too large for the model's type."""
    if rows.dtype.kind != "f" or rows.dtype.itemsize <= np.dtype(dtype).itemsize or rows.size == 0:
        return
    limit = float(np.finfo(dtype).max)
    if rows.max() > limit or rows.min() < -limit:
        row = int(np.flatnonzero((np.abs(rows) > limit).any(axis=1))[0])
        raise ValueError(f"{name}: row {row} contains a number too large for {dtype}")


def is_mapped(value: Any) -> bool:
    """Whether it is a memory map, or rows of one."""
    while isinstance(value, np.ndarray) and not isinstance(value, np.memmap):
        value = value.base
    return isinstance(value, np.memmap)


def _on_device(value: Any) -> bool:
    return isinstance(value, DeviceArray) or is_elsewhere(value)


def _refuse_device(name: str, value: Any, scale: str) -> None:
    if _on_device(value):
        raise ValueError(
            f"{name}: scale={scale!r} needs numbers in host memory, got {type(value).__name__}; pass a NumPy array, "
            "or scale=None"
        )


def tensor_as_array(name: str, value: Any) -> Any:
    """A DLPack tensor as an array; data frames and lists are left to scikit-learn."""
    tensor = hasattr(value, "__dlpack__") and not isinstance(value, np.ndarray)
    return as_array(name, value) if tensor else value


def _is_here(device: str, precision: str) -> bool:
    """Whether a model of this device and precision can be on it here."""
    here = devices()
    if device in ("auto", "cpu"):
        return precision != "bf16" or bf16_unit() is not None
    return device in here or (device == "cuda" and len(here) > 1)
