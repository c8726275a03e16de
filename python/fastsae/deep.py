"""The autoencoder of several layers, pretrained layer by layer if wanted."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from sklearn.utils.validation import check_is_fitted

from fastsae.base import Array, Autoencoder, Network
from fastsae.checks import check_integer
from fastsae.config import BOUNDED_ACTIVATIONS, Config, Layer, LayerConfig, TrainingConfig
from fastsae.engine import Engine
from fastsae.estimators import SparseAutoencoder
from fastsae.layered import LayeredAutoencoder
from fastsae.parts import first_layers, train_part
from fastsae.stores import encoded, scaled
from fastsae.trainer import Callback, Progress

if TYPE_CHECKING:
    from typing_extensions import Self


class Dense(NamedTuple):
    """``activation(x weight' + bias)``: weight [units x inputs], bias [units]."""

    weight: Array
    bias: Array
    activation: str


class DeepAutoencoder(LayeredAutoencoder):
    """An encoder of several layers and its mirror image as the decoder (Hinton and Salakhutdinov, 2006).

    With `pretrain_epochs`, `fit` first trains each layer of the encoder, with the layer of the decoder that mirrors it,
    as a sparse autoencoder of the codes of the layers below (Bengio et al. 2007; UFLDL, "Stacked autoencoders"). Then
    all layers are trained together on

    ``J = reconstruction + sum over hidden layers of beta * penalty + weight_decay/2 sum_l |W_l|^2``

    Parameters
    ----------
    hidden : tuple of int, default (500, 250, 30)
        Units of the encoder's layers, the code's last; the decoder mirrors them. Or all hidden layers: an odd number of
        units that read the same from both ends, such as ``(500, 250, 30, 250, 500)``.
    mirror : bool or None
        True takes `hidden` as the encoder, False as all hidden layers. None tells by the rule above; units that are
        all the same, such as ``(30, 30, 30)``, could be either and need True or False.
    activation : {"sigmoid", "tanh", "relu", "softplus", "identity"} or tuple of them
        Of the hidden layers but the code; a tuple has one for each of the encoder's.
    code_activation : str
        Of the code.
    output_activation : str
        Of the reconstruction.
    penalty : {"none", "kl", "l1", "log"} or tuple of them
        One is that of every layer of the encoder. A tuple has one for each of these, or for each hidden layer.
    rho, beta : float or tuple of float
        Of the penalties. One serves all layers; a tuple is as that of `penalty`.
    pretrain_epochs : int, default 0
        Passes over X, or iterations of ``lbfgs``, for each layer before all are trained together.
    weight_decay : float
        lambda, >= 0. Biases are not decayed.
    weight_l1 : float
        mu, >= 0, of the penalty ``mu sum |W|``, which is part of J with every solver; biases take none.
    rho_hat : {"batch", "ema", "full"}
        Rows over which the mean activation is taken; ``full`` needs ``solver="lbfgs"`` or ``batch_size=None``.
    rho_hat_decay : float
        Decay of the moving average of ``ema``.
    loss : {"squared_error", "cross_entropy"}
        ``cross_entropy`` needs a sigmoid output and X in [0, 1].
    loss_reduction : {"ufldl", "sum", "mean"}
        See :class:`fastsae.Config`.
    tied : bool
        The decoder's weights are those of the encoder, transposed.
    solver : {"adam", "adamw", "sgd", "momentum", "nesterov", "sign_sgd", "lbfgs"}
        ``lbfgs`` is SciPy's L-BFGS-B over the cost and gradient of all rows.
    learning_rate, momentum, beta1, beta2, epsilon : float
        Of the mini-batch solvers, in PyTorch's form.
    lr_schedule : {"constant", "cosine", "linear", "step"}
        How the learning rate changes from step to step, after `lr_warm_up` steps in which it rises linearly; see
        :mod:`fastsae.schedules` for the formulas. Not with ``solver="lbfgs"``.
    lr_warm_up, lr_start, lr_total_steps, lr_decay_steps, lr_final, lr_step_size, lr_gamma
        Of the schedule; see :class:`fastsae.Config`. ``cosine`` and ``linear`` end with `max_epochs` unless
        `lr_total_steps` says where, which `partial_fit` needs.
    max_grad_norm : float or None
        Longest gradient of J, decay included, that the optimiser takes; a longer one is scaled down to it. Not with
        ``solver="lbfgs"`` or ``"sign_sgd"``. `gradient_norm` of the history is that before.
    batch_size : int or None
        Rows per step; None means all.
    max_epochs : int
        Passes over X, or iterations of ``lbfgs``, with all layers together.
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
    scale : {"zscore", "minmax", "mean_norm", "mean_square_norm"} or None
        Scaling of X, as of :class:`fastsae.SparseAutoencoder`; pretraining sees scaled rows too.
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
        Called after each epoch with a dict of that epoch's history; returning True ends the training. In pretraining
        the dict has the number of the `layer`, from 1, and True ends the training of that layer.
    verbose : bool
        Show a progress bar on a terminal when training takes more than a second.

    Attributes
    ----------
    components_ : ndarray, shape (n_units, n_features_in_)
        Weights of the first layer: one filter for each of its units.
    history_ : dict of list
        Per epoch of all layers together: as that of :class:`fastsae.SparseAutoencoder`.
    pretrain_history_ : list of dict
        The same for each pretrained layer, the first of the encoder first.
    n_iter_ : int
        Epochs, or iterations, of all layers together.
    n_features_in_ : int
        Width of X.

    Examples
    --------
    >>> import numpy as np
    >>> from fastsae import DeepAutoencoder
    >>> X = np.random.default_rng(0).random((500, 20), dtype=np.float32)
    >>> deep = DeepAutoencoder((12, 4), pretrain_epochs=2, max_epochs=5, random_state=0).fit(X)
    >>> deep.transform(X).shape
    (500, 4)
    """

    def __init__(
        self,
        hidden: Sequence[int] = (500, 250, 30),
        *,
        mirror: bool | None = None,
        activation: str | Sequence[str] = LayerConfig.activation,
        code_activation: str = "identity",
        output_activation: str = LayerConfig.activation,
        penalty: str | Sequence[str] = LayerConfig.penalty,
        rho: float | Sequence[float] = LayerConfig.rho,
        beta: float | Sequence[float] = LayerConfig.beta,
        pretrain_epochs: int = 0,
        weight_decay: float = Config.weight_decay,
        weight_l1: float = Config.weight_l1,
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

    _pretrained: int  # layers that are done
    _current: SparseAutoencoder | None  # the layer in work
    _pretrain_history: list[dict[str, list[float]]]

    @classmethod
    def from_layers(cls, layers: Iterable[Autoencoder[Any]], **options: Any) -> Self:
        """Stack fitted autoencoders: each one's encoder, and their decoders in reverse as the mirror image.

        Parameters
        ----------
        layers : iterable of fitted SparseAutoencoder
            Each trained on the code of the one before.
        **options
            Of the result, beside those that the layers give. Loss, decay, dtype and device are those of the first
            unless given.

        Returns
        -------
        DeepAutoencoder
            Fitted; `resume` trains all layers together for `max_epochs`.

        Raises
        ------
        ValueError
            If the layers do not fit on each other, or are not dense autoencoders with one hidden layer.
        """
        if options.get("scale") is not None:
            raise ValueError(f"scale: expected None, as the layers saw their rows, got {options['scale']!r}")
        stack = list(layers)
        pairs = [_pair(f"layers[{i}]", layer) for i, layer in enumerate(stack)]
        if not stack:
            raise ValueError("layers: expected at least one fitted autoencoder, got none")
        for i in range(1, len(stack)):
            below, output = pairs[i - 1][0], pairs[i][1]
            if stack[i].n_features_in_ != below.units:
                raise ValueError(
                    f"layers[{i}]: expected {below.units} features, the units of layers[{i - 1}], "
                    f"got {stack[i].n_features_in_}"
                )
            if output.activation != below.activation:
                raise ValueError(
                    f"layers[{i}]: expected output_activation={below.activation!r}, the activation of "
                    f"layers[{i - 1}], got {output.activation!r}"
                )
        engines = [layer._engine for layer in stack]
        if len({engine.config.tied for engine in engines}) > 1:
            raise ValueError("layers: expected all to be tied, or none")
        first, hidden = engines[0].config, [pair[0] for pair in pairs]
        given = {name: getattr(first, name) for name in ("loss", "loss_reduction", "weight_decay", "tied", "dtype")}
        given |= {name: tuple(getattr(layer, name) for layer in hidden) for name in ("penalty", "rho", "beta")}
        given |= {
            "hidden": tuple(layer.units for layer in hidden),
            "mirror": True,
            "activation": tuple(layer.activation for layer in hidden[:-1]) or LayerConfig.activation,
            "code_activation": hidden[-1].activation,
            "output_activation": pairs[0][1].activation,
            "device": stack[0].device,
        }
        deep = cls(**{**given, **options})
        training = deep._training_config()
        deep._start(deep._config(stack[0].n_features_in_), training, 0)
        if deep._engine.config.code_layer != len(stack):
            raise ValueError("hidden: expected the units of the layers")
        for number, engine in enumerate(engines, start=1):
            deep._place(engine, number)
        deep._pretrained = len(stack)
        return deep

    def unroll(self) -> tuple[list[Dense], list[Dense]]:
        """The layers of the encoder and of the decoder that mirrors it, each from its input to its output."""
        check_is_fitted(self)
        layers = []
        config = self._engine.config
        for number, layer in enumerate(config.layers, start=1):
            assert isinstance(layer, LayerConfig)
            name = f"W{number}"
            mirrored = name not in config.parameter_shapes
            weight = self._engine.get(self._mirror(name)).T if mirrored else self._engine.get(name)
            layers.append(Dense(weight, self._engine.get(f"b{number}"), layer.activation))
        return layers[: config.code_layer], layers[config.code_layer :]

    @property
    def pretrain_history_(self) -> list[dict[str, list[float]]]:
        """For each pretrained layer: per epoch, epoch, loss and its parts."""
        self._fitted_engine("pretrain_history_")
        return [*self._pretrain_history, *(part.history_ for part in self._parts().values())]

    # Pretraining

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
        if self._pretrained == self._engine.config.code_layer or not (self.pretrain_epochs or self._current):
            return
        with scaled(X, self._scaler, self._engine.config.dtype) as rows:
            while self._pretrained < self._engine.config.code_layer and (self.pretrain_epochs or self._current):
                self._pretrain_layer(rows, weights, progress)

    def _pretrain_layer(self, X: Any, weights: NDArray[np.float64] | None, progress: Progress | None) -> None:
        number, depth = self._pretrained + 1, self._engine.config.code_layer
        layer = self._current = self._current or self._layer_alone(number)
        layer.max_epochs = self.pretrain_epochs
        below = contextlib.nullcontext(X) if number == 1 else encoded(X, first_layers(self._engine, number - 1))
        with below as codes:
            train_part(
                self,
                layer,
                f"layer {number} of {depth}",
                lambda: self._place(layer._engine, number),
                codes,
                weights,
                callback=self.callback,
                note={"layer": float(number)},
                progress=progress,
            )
        self.__dict__.update(  # all at once, so that an interrupt finds the layer finished or not
            _pretrained=number, _current=None, _pretrain_history=[*self._pretrain_history, layer.history_]
        )

    def _layer_alone(self, number: int) -> SparseAutoencoder:
        """A layer of the encoder and its mirror image as an autoencoder of the code below."""
        layers: Any = self._engine.config.layers
        layer, mirror = layers[number - 1], layers[len(layers) - number]
        same = [name for name in SparseAutoencoder().get_params() if hasattr(self, name)]
        seed = np.random.default_rng([self._state.seed, 3, number]).integers(2**31 - 1)
        options = {name: getattr(self, name) for name in same} | {
            "n_hidden": layer.units,
            "activation": layer.activation,
            "output_activation": mirror.activation,
            "penalty": layer.penalty,
            "rho": layer.rho,
            "beta": layer.beta,
            "max_epochs": self.pretrain_epochs,
            "scale": None,  # it sees rows that are scaled already
            "random_state": int(seed),
            "checkpoint": None,
            "callback": None,
        }
        if number > 1:
            options["loss"] = Config.loss
        return SparseAutoencoder(**options)

    def _place(self, layer: Engine[Config], number: int) -> None:
        """Take over the parameters of a layer that was trained alone."""
        for name, own in (("W1", f"W{number}"), ("b1", f"b{number}")):
            self._engine.set(own, layer.get(name))
        for name, own in (("W2", self._mirror(f"W{number}")), ("b2", self._mirror(f"b{number}"))):
            if own in self._engine.config.parameter_shapes:
                self._engine.set(own, layer.get(name))

    def _mirror(self, name: str) -> str:
        return f"{name[0]}{len(self._engine.config.layers) + 1 - int(name[1:])}"

    # Details

    def _start(self, config: Config, training: TrainingConfig, n_rows: int) -> None:
        super()._start(config, training, n_rows)
        self._pretrained, self._current, self._pretrain_history = 0, None, []

    def _training_config(self) -> TrainingConfig:
        check_integer("pretrain_epochs", self.pretrain_epochs, 0)
        return super()._training_config()

    def _layers(self, n_features: int) -> tuple[Layer, ...]:
        units = self._encoder_units()
        depth = len(units)
        activations = self._each("activation", depth - 1) if depth > 1 else []
        activations = [*activations, self.code_activation, *activations[::-1]]
        penalties = self._each("penalty", depth, 2 * depth - 1, decoder="none")
        rhos, betas = (self._each(name, depth, 2 * depth - 1) for name in ("rho", "beta"))
        if depth > 1 and penalties[depth - 1] == "kl" and self.code_activation not in BOUNDED_ACTIVATIONS:
            raise ValueError(
                f"code_activation: penalty='kl' needs one of {BOUNDED_ACTIVATIONS}, got {self.code_activation!r}"
            )
        columns = zip([*units, *units[-2::-1]], activations, penalties, betas, rhos, strict=True)
        return (*(LayerConfig(*column) for column in columns), LayerConfig(n_features, self.output_activation))

    def _encoder_units(self) -> list[int]:
        if not isinstance(self.hidden, (tuple, list, np.ndarray)) or len(self.hidden) == 0:
            raise ValueError(f"hidden: expected a tuple of at least one number of units, got {self.hidden!r}")
        units = list(self.hidden)
        for entry in units:
            check_integer("hidden", entry, 1)
        units = [int(entry) for entry in units]
        if self.mirror not in (None, True, False):
            raise ValueError(f"mirror: expected True, False or None, got {self.mirror!r}")
        symmetric = len(units) % 2 == 1 and units == units[::-1]
        if self.mirror is None and symmetric and len(units) > 1 and len(set(units)) == 1:
            raise ValueError(
                f"hidden: {tuple(units)} may be the encoder (mirror=True) or all hidden layers (mirror=False)"
            )
        if self.mirror is False and not symmetric:
            raise ValueError(
                "hidden: mirror=False needs an odd number of units that read the same from both ends, "
                f"got {tuple(units)}"
            )
        whole = symmetric if self.mirror is None else not self.mirror
        return units[: len(units) // 2 + 1] if whole else units

    def _each(self, name: str, depth: int, whole: int = 0, decoder: Any = None) -> list[Any]:
        """One value for each layer of the encoder, or with `whole` for each hidden layer."""
        value = getattr(self, name)
        if not isinstance(value, (tuple, list, np.ndarray)):
            values = [value] * depth
        elif len(value) == whole:
            return list(value)
        elif len(value) == depth:
            values = list(value)
        else:
            counts = f"{depth} or {whole}" if whole > depth else str(depth)
            raise ValueError(f"{name}: expected one value or {counts} of them, got {len(value)}")
        if not whole:
            return values
        return values + [entry if decoder is None else decoder for entry in values[-2::-1]]

    @classmethod
    def _has_model(cls, config: Config) -> bool:
        dense = all(layer.kind == "dense" for layer in config.layers)
        mirrors = len(config.layers) % 2 == 0 and config.widths == config.widths[::-1]
        return dense and mirrors and config.code_layer == len(config.layers) // 2

    def _more_state(self) -> dict[str, Any]:
        return {"pretrained": self._pretrained, "pretrain_history": self._pretrain_history}

    def _parts(self) -> dict[str, Network[Any]]:
        begun = self._current is not None and self._current.__sklearn_is_fitted__()
        return {"layer": self._current} if begun else {}  # type: ignore[dict-item]

    def _restore_more(self, state: dict[str, Any], parts: dict[str, Network[Any]]) -> None:
        depth = self._engine.config.code_layer
        done: Any = state.get("pretrained")
        history: Any = state.get("pretrain_history")
        layer = parts.get("layer")
        check_integer("pretrained", done, 0, depth)
        if not _is_history(history):
            raise ValueError("its pretrain_history is damaged")
        self._pretrained, self._pretrain_history, self._current = done, history, None
        if layer is not None:
            widths = self._engine.config.widths
            if not isinstance(layer, SparseAutoencoder) or self._pretrained >= depth:
                raise ValueError("its layer in pretraining is not one of the model's")
            if layer._engine.config.widths[:2] != widths[self._pretrained : self._pretrained + 2]:
                raise ValueError("its layer in pretraining has other widths than the model")
            self._current = layer


def _pair(name: str, layer: Any) -> tuple[LayerConfig, LayerConfig]:
    if not isinstance(layer, Autoencoder) or not layer.__sklearn_is_fitted__():
        raise ValueError(f"{name}: expected a fitted autoencoder, got {type(layer).__name__}")
    if layer._scaler is not None:
        raise ValueError(f"{name}: expected scale=None, got {layer._scaler.kind!r}; scale X itself")
    layers: Any = getattr(layer._engine.config, "layers", ())
    if len(layers) != 2 or not all(isinstance(one, LayerConfig) for one in layers):
        raise ValueError(f"{name}: expected one hidden layer, got {len(layers) - 1}")
    return layers[0], layers[1]


def _is_history(value: Any) -> bool:
    if not isinstance(value, list) or not all(isinstance(one, dict) for one in value):
        return False
    lists = [entry for one in value for entry in one.values()]
    return all(isinstance(entry, list) and all(isinstance(n, (int, float)) for n in entry) for entry in lists)
