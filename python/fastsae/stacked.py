"""A classifier on top of an autoencoder's encoder."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import ClassifierMixin, clone
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import _check_y, check_consistent_length, check_is_fitted

from fastsae._core import DeviceArray
from fastsae.base import Array, Autoencoder, Network
from fastsae.checks import check_integer, check_real
from fastsae.config import Config, Layer, LayerConfig, TrainingConfig
from fastsae.layered import Layered
from fastsae.parts import first_layers, train_part
from fastsae.stores import encoded, scaled
from fastsae.trainer import Callback, Progress

if TYPE_CHECKING:
    from typing_extensions import Self


class StackedClassifier(ClassifierMixin, Layered):  # type: ignore[misc]
    """An autoencoder's encoder and a softmax layer on its code (Bengio et al. 2007; UFLDL, "Stacked autoencoders").

    `fit` trains the autoencoder on X alone, then the softmax layer on the codes, then all layers together on

    ``J = -1/W sum_i w_i log p(y_i | x_i) + head_weight_decay/2 |W_softmax|^2 + weight_decay/2 sum_l |W_l|^2``

    Parameters
    ----------
    autoencoder : estimator or None
        One whose encoder has dense layers, such as :class:`fastsae.DeepAutoencoder`. It is cloned and fitted; one that
        is fitted already is taken as it is. With None there is only the softmax layer, on X itself.
    head_weight_decay : float, default 3e-3
        Of the softmax layer, >= 0.
    weight_decay : float, default 0.0
        Of the encoder while all layers are trained together, >= 0.
    weight_l1 : float
        mu, >= 0, of the penalty ``mu sum |W|`` on all weights, the softmax layer's too; biases take none.
    head_epochs : int, default 100
        Passes over X, or iterations of ``lbfgs``, for the softmax layer alone.
    solver : {"adam", "adamw", "sgd", "momentum", "nesterov", "sign_sgd", "lbfgs"}
        ``lbfgs`` is SciPy's L-BFGS-B over the cost and gradient of all rows.
    learning_rate, momentum, beta1, beta2, epsilon : float
        Of the mini-batch solvers, in PyTorch's form.
    lr_schedule, lr_warm_up, lr_start, lr_total_steps, lr_decay_steps, lr_final, lr_step_size, lr_gamma, max_grad_norm
        As of :class:`fastsae.SparseAutoencoder`.
    max_epochs : int
        Passes over X, or iterations of ``lbfgs``, of encoder and softmax layer together; 0 leaves the encoder.
    batch_size, shuffle, validation_fraction, early_stopping, n_iter_no_change, tol, init
        See :class:`fastsae.TrainingConfig`.
    scale : {"zscore", "minmax", "mean_norm", "mean_square_norm"} or None
        Scaling of X, as of :class:`fastsae.SparseAutoencoder`; `autoencoder_` sees scaled rows and has no `scale`.
    dtype : {"float32", "float64"}
        Of parameters, arithmetic and outputs.
    precision : {"full", "tf32", "bf16"}
        What the factors of matrix products are rounded to, with float32: "tf32" on a GPU, "bf16" there and on a
        CPU with AVX512_BF16.
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
        Called after each epoch with a dict of that epoch's history; returning True ends the training. While the softmax
        layer is trained alone the dict has an entry `head`, and True ends that part.
    verbose : bool
        Show a progress bar on a terminal when training takes more than a second.

    Attributes
    ----------
    classes_ : ndarray, shape (n_classes,)
        The labels, sorted.
    autoencoder_ : estimator or None
        As it was trained on X alone.
    head_history_ : dict of list
        Per epoch of the softmax layer alone, as `history_`; empty without an autoencoder.
    history_ : dict of list
        Per epoch of all layers together: epoch, loss, reconstruction (the cross-entropy), penalty (0), decay,
        gradient_norm and, with held-out rows, validation_loss and validation_reconstruction.
    n_iter_ : int
        Epochs, or iterations, of all layers together.
    n_features_in_ : int
        Width of X.

    Examples
    --------
    >>> import numpy as np
    >>> from fastsae import DeepAutoencoder, StackedClassifier
    >>> X = np.random.default_rng(0).random((500, 20), dtype=np.float32)
    >>> y = np.where(X[:, 0] > 0.5, "high", "low")
    >>> deep = DeepAutoencoder((12, 6), pretrain_epochs=2, max_epochs=2, random_state=0)
    >>> classifier = StackedClassifier(deep, head_epochs=5, max_epochs=5, random_state=0).fit(X, y)
    >>> classifier.predict_proba(X).shape
    (500, 2)
    """

    def __init__(
        self,
        autoencoder: Any = None,
        *,
        head_weight_decay: float = 3e-3,
        weight_decay: float = 0.0,
        weight_l1: float = Config.weight_l1,
        head_epochs: int = 100,
        solver: str = TrainingConfig.solver,
        learning_rate: float = Config.learning_rate,
        momentum: float = Config.momentum,
        beta1: float = Config.beta1,
        beta2: float = Config.beta2,
        epsilon: float = Config.epsilon,
        lr_schedule: str = Config.lr_schedule,
        lr_warm_up: int = Config.lr_warm_up,
        lr_start: float | None = Config.lr_start,
        lr_total_steps: int | None = Config.lr_total_steps,
        lr_decay_steps: int | None = Config.lr_decay_steps,
        lr_final: float = Config.lr_final,
        lr_step_size: int = Config.lr_step_size,
        lr_gamma: float = Config.lr_gamma,
        max_grad_norm: float | None = Config.max_grad_norm,
        batch_size: int | None = TrainingConfig.batch_size,
        max_epochs: int = TrainingConfig.max_epochs,
        shuffle: bool = TrainingConfig.shuffle,
        validation_fraction: float = TrainingConfig.validation_fraction,
        early_stopping: bool = TrainingConfig.early_stopping,
        n_iter_no_change: int = TrainingConfig.n_iter_no_change,
        tol: float = TrainingConfig.tol,
        init: str = TrainingConfig.init,
        scale: str | None = TrainingConfig.scale,
        dtype: str = Config.dtype,
        precision: str = Config.precision,
        device: str = "auto",
        random_state: Any = None,
        checkpoint: str | os.PathLike[str] | None = None,
        checkpoint_every: int = 1,
        callback: Callback | None = None,
        verbose: bool = True,
    ) -> None:
        self._take(locals())

    autoencoder: Any
    autoencoder_: Any
    _phase: int  # 0: the autoencoder is in training, 1: the softmax layer, 2: all
    _fitted_before: bool  # the autoencoder
    _head: StackedClassifier | None

    # Training

    def fit(self, X: Any, y: Any, sample_weight: ArrayLike | None = None) -> Self:
        """Train from new weights; arguments and errors as those of :meth:`fastsae.SparseAutoencoder.fit`.

        Parameters
        ----------
        X : array-like, shape (n_rows, n_features)
        y : array-like, shape (n_rows,)
            Labels of any type: numbers or strings, of at least two classes.
        sample_weight : array-like, shape (n_rows,), optional
            Weights >= 0; they count for the autoencoder too.
        """
        before = dict(self.__dict__)
        try:
            classes, numbers = np.unique(self._labels(X, y), return_inverse=True)
            self._set_classes(classes)
            return self._fit(X, sample_weight, targets=self._one_hot(numbers))
        except BaseException:
            self._forget_unless_begun(before)
            raise

    def partial_fit(
        self, X: Any, y: Any, classes: ArrayLike | None = None, sample_weight: ArrayLike | None = None
    ) -> Self:
        """Train all layers together for one pass over these rows: for data that comes in pieces.

        Nothing is pretrained; an autoencoder that is fitted already gives its encoder. The first call needs `classes`,
        all labels that will come.
        """
        before = dict(self.__dict__)
        try:
            if not self.__sklearn_is_fitted__():
                if classes is None:
                    raise ValueError("classes: the first call of partial_fit needs all labels, got None")
                self._set_classes(np.unique(np.asarray(classes)))
            elif classes is not None and not np.array_equal(np.unique(np.asarray(classes)), self.classes_):
                raise ValueError(f"classes: expected those of the first call, {self.classes_}, got {classes}")
            targets = self._one_hot(self._numbers(self._labels(X, y)))
            return self._partial_fit(X, sample_weight, targets)
        except BaseException:
            self._forget_unless_begun(before)
            raise

    def resume(self, X: Any, y: Any, sample_weight: ArrayLike | None = None) -> Self:
        """Go on with an interrupted `fit` on the same rows and labels; see `SparseAutoencoder.resume`."""
        check_is_fitted(self)
        return self._resume(X, sample_weight, targets=self._one_hot(self._numbers(self._labels(X, y))))

    # Inference

    def predict_proba(self, X: Any) -> Array:
        """Probability of each class, shape (n_rows, n_classes), in the order of `classes_`."""
        check_is_fitted(self)
        engine, width = self._engine, len(self.classes_)
        shares = self._infer(engine.reconstruct, self._check(X), None, width, scaled=True, invert=False)
        return shares.numpy() if isinstance(shares, DeviceArray) else shares

    def predict_log_proba(self, X: Any) -> Array:
        """Its logarithm."""
        with np.errstate(divide="ignore"):
            logarithms: Array = np.log(self.predict_proba(X))
        return logarithms

    def predict(self, X: Any) -> NDArray[Any]:
        """The most probable label of each row, shape (n_rows,)."""
        best = self.predict_proba(X).argmax(axis=1)
        labels: NDArray[Any] = self.classes_[best]
        return labels

    @property
    def head_history_(self) -> dict[str, list[float]]:
        """Per epoch of the softmax layer alone: epoch, loss and its parts."""
        self._fitted_engine("head_history_")
        begun = self._head is not None and self._head.__sklearn_is_fitted__()
        return self._head.history_ if begun else {}  # type: ignore[union-attr]

    # Labels

    def _labels(self, X: Any, y: Any) -> NDArray[Any]:
        if y is None:
            raise ValueError(f"This {type(self).__name__} requires y to be passed, but the target y is None.")
        labels: NDArray[Any] = _check_y(y, estimator=self)
        check_consistent_length(X, labels)
        check_classification_targets(labels)
        return labels

    def _set_classes(self, classes: NDArray[Any]) -> None:
        if len(classes) < 2:
            raise ValueError(f"y: expected at least 2 classes, got {len(classes)} class")
        if self.autoencoder is not None and not isinstance(self.autoencoder, Autoencoder):
            raise ValueError(f"autoencoder: expected an autoencoder or None, got {type(self.autoencoder).__name__}")
        if self.autoencoder is not None and (self.autoencoder._kind_of_scale() is not None or self.autoencoder._scaler):
            raise ValueError("autoencoder: expected one with scale=None; give scale to the classifier, for both")
        fitted = _is_fitted(self.autoencoder)
        if fitted and self.scale is not None:
            raise ValueError(f"scale: expected None with an autoencoder that is fitted already, got {self.scale!r}")
        self.classes_ = classes
        self._fitted_before = fitted
        self.autoencoder_ = self.autoencoder if fitted or self.autoencoder is None else clone(self.autoencoder)

    def _numbers(self, labels: NDArray[Any]) -> NDArray[np.int64]:
        unknown = ~np.isin(labels, self.classes_)
        if unknown.any():
            row = int(unknown.argmax())
            label = labels[row : row + 1].tolist()[0]
            raise ValueError(f"y: row {row} has the label {label!r}, expected one of {self.classes_.tolist()}")
        return np.searchsorted(self.classes_, labels)

    def _one_hot(self, numbers: NDArray[np.int64]) -> NDArray[np.float32]:
        targets = np.zeros((len(numbers), len(self.classes_)), np.float32)
        targets[np.arange(len(numbers)), numbers] = 1
        return targets

    def _forget_unless_begun(self, before: dict[str, Any]) -> None:
        if self.__dict__.get("_engine") is before.get("_engine"):
            self.__dict__.clear()
            self.__dict__.update(before)

    # Parts

    def _prepare(
        self,
        X: Any,
        weights: NDArray[np.float64] | None,
        training: TrainingConfig,
        progress: Progress | None,
        targets: NDArray[Any] | None,
    ) -> None:
        if self._state.epoch or self._state.rows_done:
            return  # all layers are in training
        if self._phase == 2:
            return
        with scaled(X, self._scaler, self._engine.config.dtype) as rows:
            if self._phase == 0:
                train_part(self, self.autoencoder_, "autoencoder", self._place_encoder, rows, weights,
                           callback=self.autoencoder_.callback, progress=progress)  # fmt: skip
                self._phase = 1
            self._train_head(rows, weights, targets, progress)
            self._phase = 2

    def _train_head(self, X: Any, weights: Any, targets: NDArray[Any] | None, progress: Progress | None) -> None:
        if self._head is None:
            seed = int(np.random.default_rng([self._state.seed, 3]).integers(2**31 - 1))
            options = {**self.get_params(deep=False), "autoencoder": None, "random_state": seed, "checkpoint": None}
            self._head = StackedClassifier(**{**options, "callback": None, "scale": None})
            self._head._set_classes(self.classes_)
        head = self._head
        head.max_epochs = self.head_epochs
        with encoded(X, first_layers(self._engine, self._engine.config.code_layer)) as codes:
            train_part(self, head, "softmax layer", self._place_head, codes, weights, targets,
                       callback=self.callback, note={"head": 1.0}, progress=progress)  # fmt: skip

    def _place_encoder(self) -> None:
        encoder = self.autoencoder_._engine
        for number in range(1, self._engine.config.code_layer + 1):
            for name in (f"W{number}", f"b{number}"):
                self._engine.set(name, encoder.get(name))

    def _place_head(self) -> None:
        assert self._head is not None
        number = len(self._engine.config.layers)
        for name in "Wb":
            self._engine.set(f"{name}{number}", self._head._engine.get(f"{name}1"))

    # Details

    def _start(self, config: Config, training: TrainingConfig, n_rows: int) -> None:
        super()._start(config, training, n_rows)
        self._head = None
        self._phase = 2 if self.autoencoder_ is None else 1 if self._fitted_before else 0
        if self._phase == 1:
            self._place_encoder()
        elif self._phase == 0 and self.autoencoder_.random_state is None:
            self.autoencoder_.random_state = int(np.random.default_rng([self._state.seed, 4]).integers(2**31 - 1))

    def _training_config(self) -> TrainingConfig:
        check_integer("head_epochs", self.head_epochs, 0)
        check_real("head_weight_decay", self.head_weight_decay, 0.0)
        return super()._training_config()

    def _layers(self, n_features: int) -> tuple[Layer, ...]:
        head = LayerConfig(len(self.classes_), "softmax", weight_decay=self.head_weight_decay)
        if self.autoencoder_ is None:
            return (head,)
        fitted = _is_fitted(self.autoencoder_)
        config = self.autoencoder_._engine.config if fitted else self.autoencoder_._config(n_features)
        if config.n_features != n_features:
            raise ValueError(f"autoencoder: it was fitted on {config.n_features} features, got {n_features}")
        encoder: Any = config.layers[: config.code_layer] if isinstance(config, Config) else ()
        if not encoder or not all(isinstance(layer, LayerConfig) for layer in encoder):
            raise ValueError("autoencoder: expected an encoder of dense layers")
        return (*(LayerConfig(layer.units, layer.activation) for layer in encoder), head)

    def _model_options(self, n_features: int) -> dict[str, Any]:
        depth = len(self._layers(n_features)) - 1
        return {"n_outputs": len(self.classes_), "n_encoder_layers": depth, "loss": "cross_entropy"}

    @classmethod
    def _has_model(cls, config: Config) -> bool:
        head = config.layers[-1]
        dense = all(layer.kind == "dense" for layer in config.layers)
        return dense and config.code_layer == len(config.layers) - 1 and head.activation == "softmax"  # type: ignore[attr-defined]

    @classmethod
    def _names_of_options(cls, config: Config) -> dict[str, Any]:
        options = super()._names_of_options(config)
        options["head_weight_decay"] = options.pop(f"layers[{len(config.layers) - 1}].weight_decay")
        return options

    def _more_state(self) -> dict[str, Any]:
        classes = {"classes": self.classes_.tolist(), "type": self.classes_.dtype.str}
        return {**classes, "phase": self._phase, "fitted_before": self._fitted_before}

    def _parts(self) -> dict[str, Network[Any]]:
        parts = {"autoencoder": self.autoencoder_, "head": self._head}
        return {name: part for name, part in parts.items() if part is not None and _is_fitted(part)}

    def _restore_more(self, state: dict[str, Any], parts: dict[str, Network[Any]]) -> None:
        config = self._engine.config
        try:
            classes = np.asarray(state["classes"], dtype=state["type"])
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"its classes are damaged: {error}") from None
        if classes.shape != (config.output_width,) or len(np.unique(classes)) != len(classes):
            raise ValueError(f"it holds {classes.size} classes, and the model has {config.output_width}")
        check_integer("phase", state.get("phase"), 0, 2)
        depth = config.code_layer
        autoencoder, head = parts.get("autoencoder"), parts.get("head")
        if (autoencoder is None) != (depth == 0) or (depth == 0 and state["phase"] < 2):
            raise ValueError("its autoencoder is missing or has no place in the model")
        if autoencoder is not None and autoencoder._engine.config.widths[: depth + 1] != config.widths[: depth + 1]:
            raise ValueError("its autoencoder has other widths than the model")
        if head is not None and (
            not isinstance(head, StackedClassifier) or head._engine.config.widths != config.widths[depth:]
        ):
            raise ValueError("its head has other widths than the model")
        self.classes_, self._phase, self._head = classes, int(state["phase"]), head
        self.autoencoder_, self._fitted_before = autoencoder, bool(state.get("fitted_before"))
        if autoencoder is not None:
            self.autoencoder = autoencoder if self._fitted_before else clone(autoencoder)


def _is_fitted(model: Any) -> bool:
    return isinstance(model, Network) and model.__sklearn_is_fitted__()
