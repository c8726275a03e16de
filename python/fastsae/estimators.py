"""Estimators after scikit-learn's conventions."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.utils import check_random_state
from sklearn.utils.validation import _check_sample_weight, check_array, check_is_fitted, validate_data

from fastsae import checkpoint as _checkpoint
from fastsae._core import DeviceArray
from fastsae.arrays import Rows, as_array, is_elsewhere
from fastsae.config import Config, LayerConfig, TrainingConfig, check_integer
from fastsae.engine import Engine
from fastsae.initializers import initialize
from fastsae.process import devices
from fastsae.stores import ArrayStore
from fastsae.trainer import Callback, Progress, Trainer, TrainerState, check_combination, check_values

Array = NDArray[Any]

# Options whose names the estimator shares with the configurations; the defaults are theirs too.
_MODEL_OPTIONS = tuple(field.name for field in dataclasses.fields(Config))
_TRAINING_OPTIONS = tuple(field.name for field in dataclasses.fields(TrainingConfig))


class SparseAutoencoder(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):  # type: ignore[misc]
    """The sparse autoencoder with one hidden layer (Ng, CS294A lecture notes, 2011).

    ``x_hat = g(W2 f(W1 x + b1) + b2)`` minimises, over N rows,

    ``J = 1/(2N) sum |x_hat - x|^2 + beta sum_j KL(rho || rho_hat_j) + weight_decay/2 (|W1|^2 + |W2|^2)``

    where ``rho_hat_j`` is the mean activation of hidden unit j. A sigmoid output reaches (0, 1): scale X to it, or
    take ``output_activation="identity"``.

    Parameters
    ----------
    n_hidden : int, default 100
        Number of hidden units.
    activation, output_activation : {"sigmoid", "tanh", "relu", "softplus", "identity"}
        f and g.
    penalty : {"kl", "l1", "log", "none"}
        Sparsity penalty of the hidden layer; see :class:`fastsae.LayerConfig`.
    rho : float
        Target of the mean activation for ``kl``, in (0, 1).
    beta : float
        Weight of the penalty, >= 0.
    weight_decay : float
        lambda, >= 0. Biases are not decayed. With ``solver="adamw"`` the decay is decoupled.
    rho_hat : {"batch", "ema", "full"}
        Rows over which the mean activation is taken; ``full`` needs ``solver="lbfgs"`` or ``batch_size=None``.
    rho_hat_decay : float
        Decay of the moving average of ``ema``.
    loss : {"squared_error", "cross_entropy"}
        ``cross_entropy`` needs a sigmoid output and X in [0, 1].
    loss_reduction : {"ufldl", "sum", "mean"}
        See :class:`fastsae.Config`.
    tied : bool
        W2 is the transpose of W1.
    solver : {"adam", "adamw", "sgd", "momentum", "nesterov", "lbfgs"}
        ``lbfgs`` is SciPy's L-BFGS-B over the cost and gradient of all rows.
    learning_rate, momentum, beta1, beta2, epsilon : float
        Of the mini-batch solvers, in PyTorch's form.
    batch_size : int or None
        Rows per step; None means all.
    max_epochs : int
        Passes over X, or iterations of ``lbfgs``.
    shuffle : bool
        New row order each epoch.
    validation_fraction : float
        Share of rows held out, in [0, 1).
    early_stopping : bool
        Stop when the validation loss (training loss if nothing is held out) stalls, and keep the best parameters.
    n_iter_no_change, tol
        Patience in epochs, and the least relative improvement.
    init : {"cs294a", "glorot", "he"}
        First weights.
    dtype : {"float32", "float64"}
        Of parameters, arithmetic and outputs.
    precision : {"full", "tf32", "bf16"}
        What the factors of matrix products are rounded to, on a GPU with float32.
    device : {"auto", "cpu", "cuda", "cuda:N"}
        Where to compute.
    random_state : int, RandomState or None
        Seed of the first weights, the row orders and the validation split.
    checkpoint : path, optional
        File that `fit` writes every `checkpoint_every` epochs and at its end, also when it is interrupted.
        ``fastsae.load(path).resume(X)`` then goes on as if nothing had happened.
    checkpoint_every : int
        In epochs.
    callback : callable, optional
        Called after each epoch with a dict of that epoch's history; returning True ends the training.
    verbose : bool
        Show a progress bar on a terminal when training takes more than a second.

    Attributes
    ----------
    components_ : ndarray, shape (n_hidden, n_features_in_)
        W1: one filter per hidden unit.
    intercept_ : ndarray, shape (n_hidden,)
        b1.
    decoder_ : ndarray, shape (n_features_in_, n_hidden)
        W2.
    decoder_intercept_ : ndarray, shape (n_features_in_,)
        b2.
    history_ : dict of list
        Per epoch: epoch, loss, reconstruction, penalty, decay, gradient_norm and, with held-out rows,
        validation_loss and validation_reconstruction. Parts of J are means over the epoch's steps.
    n_iter_ : int
        Epochs, or iterations, done.
    n_features_in_ : int
        Width of X.

    Examples
    --------
    >>> import numpy as np
    >>> from fastsae import SparseAutoencoder
    >>> X = np.random.default_rng(0).random((500, 20), dtype=np.float32)
    >>> sae = SparseAutoencoder(n_hidden=8, max_epochs=5, random_state=0).fit(X)
    >>> sae.transform(X).shape
    (500, 8)
    """

    def __init__(
        self,
        n_hidden: int = 100,
        *,
        activation: str = LayerConfig.activation,
        output_activation: str = LayerConfig.activation,
        penalty: str = "kl",
        rho: float = LayerConfig.rho,
        beta: float = LayerConfig.beta,
        weight_decay: float = Config.weight_decay,
        rho_hat: str = Config.rho_hat,
        rho_hat_decay: float = Config.rho_hat_decay,
        loss: str = Config.loss,
        loss_reduction: str = Config.loss_reduction,
        tied: bool = Config.tied,
        solver: str = TrainingConfig.solver,
        learning_rate: float = Config.learning_rate,
        momentum: float = Config.momentum,
        beta1: float = Config.beta1,
        beta2: float = Config.beta2,
        epsilon: float = Config.epsilon,
        batch_size: int | None = TrainingConfig.batch_size,
        max_epochs: int = TrainingConfig.max_epochs,
        shuffle: bool = TrainingConfig.shuffle,
        validation_fraction: float = TrainingConfig.validation_fraction,
        early_stopping: bool = TrainingConfig.early_stopping,
        n_iter_no_change: int = TrainingConfig.n_iter_no_change,
        tol: float = TrainingConfig.tol,
        init: str = TrainingConfig.init,
        dtype: str = Config.dtype,
        precision: str = Config.precision,
        device: str = "auto",
        random_state: Any = None,
        checkpoint: str | os.PathLike[str] | None = None,
        checkpoint_every: int = 1,
        callback: Callback | None = None,
        verbose: bool = True,
    ) -> None:
        self.n_hidden = n_hidden
        self.activation = activation
        self.output_activation = output_activation
        self.penalty = penalty
        self.rho = rho
        self.beta = beta
        self.weight_decay = weight_decay
        self.rho_hat = rho_hat
        self.rho_hat_decay = rho_hat_decay
        self.loss = loss
        self.loss_reduction = loss_reduction
        self.tied = tied
        self.solver = solver
        self.learning_rate = learning_rate
        self.momentum = momentum
        self.beta1 = beta1
        self.beta2 = beta2
        self.epsilon = epsilon
        self.batch_size = batch_size
        self.max_epochs = max_epochs
        self.shuffle = shuffle
        self.validation_fraction = validation_fraction
        self.early_stopping = early_stopping
        self.n_iter_no_change = n_iter_no_change
        self.tol = tol
        self.init = init
        self.dtype = dtype
        self.precision = precision
        self.device = device
        self.random_state = random_state
        self.checkpoint = checkpoint
        self.checkpoint_every = checkpoint_every
        self.callback = callback
        self.verbose = verbose

    # Training

    def fit(self, X: Any, y: Any = None, sample_weight: ArrayLike | None = None) -> SparseAutoencoder:
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

    def partial_fit(self, X: Any, y: Any = None, sample_weight: ArrayLike | None = None) -> SparseAutoencoder:
        """Train one more pass over these rows: for data that comes in pieces. See `fit`.

        `learning_rate` may be changed between two calls; another changed option of the model is a ValueError. Nothing
        is held out and early stopping does not apply.
        """
        first = not self.__sklearn_is_fitted__()
        training = dataclasses.replace(self._training_config(), early_stopping=False, validation_fraction=0.0)
        with self._unchanged_on_error():
            X, weights = self._validate(X, sample_weight, reset=first)
            config = self._config(X.shape[1])
            check_combination(config, training, X, one_pass=True)
            if first:
                self._start(config, training, X.shape[0])
            else:
                self._continue(config)
            store, weights = self._store(X, weights)
        self._state.start_pass(len(store))
        self._train(store, weights, training, self._state.epoch + 1)
        self._state.n_rows = 0  # the pass is complete: what follows may have any number of rows
        return self

    def resume(self, X: Any, sample_weight: ArrayLike | None = None) -> SparseAutoencoder:
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
        check_is_fitted(self)
        training = self._training_config()
        X, weights = self._validate(X, sample_weight, reset=False)
        config = self._config(X.shape[1])
        check_combination(config, training, X)
        n_rows = X.shape[0]
        if self._state.n_rows not in (0, n_rows):
            raise ValueError(f"X: resume needs the {self._state.n_rows} rows that training began with, got {n_rows}")
        self._continue(config)
        store, weights = self._store(X, weights)
        return self._train(store, weights, training, training.max_epochs)

    # Inference

    def transform(self, X: Any, out: Any = None) -> Any:
        """Hidden activations; safe to call from many threads.

        Parameters
        ----------
        X : array-like, shape (n_rows, n_features)
            As for `fit`.
        out : array, shape (n_rows, n_hidden), optional
            C-contiguous memory of the model's dtype to write to, a NumPy array or a tensor of `device`; nothing is
            allocated then.

        Returns
        -------
        ndarray or DeviceArray, shape (n_rows, n_hidden)
            `out` if it is given, else a new array: a :class:`fastsae.DeviceArray` where X is a tensor of the device.
        """
        check_is_fitted(self)
        return self._engine.encode(self._check(X), out)

    def inverse_transform(self, H: Any, out: Any = None) -> Any:
        """Reconstructions of hidden activations, shape (n_rows, n_features). Arrays as for `transform`."""
        check_is_fitted(self)
        if _on_device(H):
            H = self._engine.rows("H", H, self._engine.code_width)
            if isinstance(H, DeviceArray):
                check_values("H", self._engine, H)
            return self._engine.decode(H, out)
        H = check_array(_tensor_as_array("H", H), dtype="numeric", ensure_min_samples=0, input_name="H")
        return self._engine.decode(H, out)

    def reconstruct(self, X: Any, out: Any = None) -> Any:
        """``inverse_transform(transform(X))``, shape (n_rows, n_features). Arrays as for `transform`."""
        check_is_fitted(self)
        return self._engine.reconstruct(self._check(X), out)

    def score_samples(self, X: Any) -> NDArray[np.float64]:
        """Minus the reconstruction loss of each row, shape (n_rows,): low for rows unlike the training data."""
        check_is_fitted(self)
        return -self._engine.score(self._check(X))

    def score(self, X: Any, y: Any = None) -> float:
        """Mean of `score_samples`, so that a grid search keeps the best reconstruction."""
        return float(self.score_samples(X).mean())

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

    # Fitted attributes

    @property
    def components_(self) -> Array:
        """W1, shape (n_hidden, n_features_in_)."""
        return self._fitted_engine("components_").get("W1")

    @property
    def intercept_(self) -> Array:
        """b1, shape (n_hidden,)."""
        return self._fitted_engine("intercept_").get("b1")

    @property
    def decoder_(self) -> Array:
        """W2, shape (n_features_in_, n_hidden)."""
        engine = self._fitted_engine("decoder_")
        return engine.get("W1").T if engine.config.tied else engine.get("W2")

    @property
    def decoder_intercept_(self) -> Array:
        """b2, shape (n_features_in_,)."""
        return self._fitted_engine("decoder_intercept_").get("b2")

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

    # scikit-learn

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        engine = self.__dict__.get("_engine")
        if engine is not None and not _is_here(self.device):  # as `load` does
            self.device, self.precision = engine.device, engine.config.precision

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "_engine")

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.transformer_tags.preserves_dtype = [self.dtype]
        return tags

    @property
    def _n_features_out(self) -> int:
        return self._engine.code_width

    # Details

    def _config(self, n_features: int) -> Config:
        check_integer("n_hidden", self.n_hidden, 1)
        optimizer = Config.optimizer if self.solver == "lbfgs" else self.solver
        hidden = LayerConfig(int(self.n_hidden), self.activation, self.penalty, self.beta, self.rho)
        same = {name: getattr(self, name) for name in _MODEL_OPTIONS if hasattr(self, name)}
        config = Config(
            n_features=n_features,
            layers=(hidden, LayerConfig(n_features, self.output_activation)),
            optimizer=optimizer,
            **same,
        )
        config.validate()
        return config

    def _training_config(self) -> TrainingConfig:
        training = TrainingConfig(**{name: getattr(self, name) for name in _TRAINING_OPTIONS})
        training.validate()
        check_integer("checkpoint_every", self.checkpoint_every, 1)
        if self.callback is not None and not callable(self.callback):
            raise ValueError(f"callback: expected a callable or None, got {self.callback!r}")
        if self.checkpoint is not None:
            if not isinstance(self.checkpoint, (str, bytes, os.PathLike)):
                raise ValueError(f"checkpoint: expected a path or None, got {self.checkpoint!r}")
            _checkpoint.check_target(self.checkpoint)
        return training

    def _fit(self, X: Any, sample_weight: ArrayLike | None, progress: Progress | None = None) -> SparseAutoencoder:
        training = self._training_config()
        with self._unchanged_on_error():
            X, weights = self._validate(X, sample_weight, reset=True)
            config = self._config(X.shape[1])
            check_combination(config, training, X)
            self._start(config, training, X.shape[0])
            store, weights = self._store(X, weights)
        return self._train(store, weights, training, training.max_epochs, progress)

    def _start(self, config: Config, training: TrainingConfig, n_rows: int) -> None:
        """Take a new engine with first weights."""
        try:
            seed = int(check_random_state(self.random_state).randint(2**31 - 1))
        except ValueError as error:
            raise ValueError(f"random_state: {error}") from None
        engine = Engine(config, self.device)
        engine.set_parameters(initialize(config, training.init, np.random.default_rng([seed, 2])))
        self._adopt(engine, TrainerState(seed, n_rows=n_rows))

    def _continue(self, config: Config) -> None:
        """Go on with the engine that there is, whose options must be those of `config`."""
        if self.solver == "lbfgs":  # which has no use for an optimiser
            config = dataclasses.replace(config, optimizer=self._engine.config.optimizer)
        now, fitted = _flat(config), _flat(self._engine.config)
        changed = [name for name in now if now[name] != fitted[name] and name != "learning_rate"]
        if changed:
            name = changed[0]
            raise ValueError(
                f"{name}: expected {fitted[name]!r}, with which the training began, got {now[name]!r}; fit starts anew"
            )
        if config.learning_rate != self._engine.config.learning_rate:
            self._engine.learning_rate = config.learning_rate

    @contextlib.contextmanager
    def _unchanged_on_error(self) -> Iterator[None]:
        before = dict(self.__dict__)
        try:
            yield
        except BaseException:
            self.__dict__.clear()
            self.__dict__.update(before)
            raise

    def _adopt(self, engine: Engine, state: TrainerState) -> None:
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
    ) -> SparseAutoencoder:
        path = self.checkpoint
        save = None if path is None else lambda: self.save(path)
        Trainer(
            self._engine,
            training,
            self._state,
            callback=self.callback,
            save=save,
            save_every=self.checkpoint_every,
            verbose=bool(self.verbose),
            progress=progress,
        ).run(store, weights, until)
        return self

    def _validate(self, X: Any, sample_weight: Any, reset: bool) -> tuple[Any, Any]:
        """Rows and weights, checked; what is on a device comes back as it is, and `_store` looks at its numbers."""
        if _on_device(X):
            self._check_shape(X, reset)
        else:
            X = self._validate_rows(X, reset)
        if sample_weight is None or is_elsewhere(sample_weight):
            return X, sample_weight
        sample_weight = _tensor_as_array("sample_weight", sample_weight)
        return X, _not_all_zero(_check_sample_weight(sample_weight, X, dtype=np.float64, ensure_non_negative=True))

    def _validate_rows(self, X: Any, reset: bool) -> Any:
        # A memory map is not read twice: a step that meets a NaN names its row.
        finite = not isinstance(X, np.memmap)
        X = validate_data(self, _tensor_as_array("X", X), reset=reset, dtype="numeric", ensure_all_finite=finite)
        if X.dtype.kind not in "fiub":
            raise ValueError(f"X: expected an array of real numbers, got dtype {X.dtype}")
        return X

    def _store(self, X: Any, weights: Any) -> tuple[ArrayStore, NDArray[np.float64] | None]:
        """What `_validate` gave, for training with the engine that there is now."""
        engine = self._engine
        if _on_device(X):
            X = engine.rows("X", X, engine.config.n_features)
            if isinstance(X, DeviceArray):
                check_values("X", engine, X, as_target=True)
        if is_elsewhere(weights):
            weights = _not_all_zero(engine.weights(weights, X.shape[0]))
        return ArrayStore(X, engine), weights

    def _check_shape(self, X: Any, reset: bool) -> None:
        """What scikit-learn checks of an array, for a tensor whose numbers it cannot read."""
        shape = tuple(getattr(X, "shape", ()))
        if len(shape) != 2 or 0 in shape:
            raise ValueError(f"X: expected a 2-D array with at least one row and one column, got shape {shape}")
        validate_data(self, X, reset=reset, skip_check_array=True)

    def _check(self, X: Any) -> Rows:
        if _on_device(X):
            self._check_shape(X, reset=False)
            rows = self._engine.rows("X", X, self._engine.config.n_features)
            if isinstance(rows, DeviceArray):
                check_values("X", self._engine, rows)
            return rows
        checked: Array = validate_data(self, _tensor_as_array("X", X), reset=False, dtype="numeric")
        return checked

    def _fitted_engine(self, attribute: str) -> Engine:
        if not hasattr(self, "_engine"):
            raise AttributeError(f"{type(self).__name__} has no {attribute} before fit")
        return self._engine


def _not_all_zero(weights: Any) -> Any:
    if not weights.any():
        raise ValueError("sample_weight: expected at least one weight that is not zero")
    return weights


def _on_device(value: Any) -> bool:
    return isinstance(value, DeviceArray) or is_elsewhere(value)


def _tensor_as_array(name: str, value: Any) -> Any:
    """A DLPack tensor as an array; data frames and lists are left to scikit-learn."""
    tensor = hasattr(value, "__dlpack__") and not isinstance(value, np.ndarray)
    return as_array(name, value) if tensor else value


def _is_here(device: str) -> bool:
    """Whether a model of this device can be on it here."""
    here = devices()
    return device in ("auto", *here) or (device == "cuda" and len(here) > 1)


def _flat(config: Config) -> dict[str, Any]:
    """The options of `config` under the estimator's names."""
    hidden, output = config.layers
    renamed = {"units": "n_hidden", "optimizer": "solver"}
    options = {name: getattr(config, name) for name in _MODEL_OPTIONS if name != "layers"}
    options |= {**dataclasses.asdict(hidden), "output_activation": output.activation}
    return {renamed.get(name, name): value for name, value in options.items()}


ESTIMATORS = {"SparseAutoencoder": SparseAutoencoder}
