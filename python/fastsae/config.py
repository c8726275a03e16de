"""What a model and its training are: every option, its meaning and its only default.

Notation: ``N`` rows, ``W`` the sum of the sample weights (``N`` without weights), ``a`` the activations of
a hidden layer, ``z`` pre-activations. The cost of one batch is

``J = reconstruction + sum over hidden layers of penalty + weight_decay / 2 * sum of squared weights``

Biases are never decayed. ``adamw`` decays outside of ``J`` (decoupled, as in PyTorch).
"""

from __future__ import annotations

import dataclasses
import math
import operator
from collections.abc import Mapping
from typing import Any

ACTIVATIONS = ("sigmoid", "tanh", "relu", "softplus", "identity")
#: Activations with a bounded range, for which the KL penalty has a meaning.
BOUNDED_ACTIVATIONS = ("sigmoid", "tanh")
LOSSES = ("squared_error", "cross_entropy")
LOSS_REDUCTIONS = ("ufldl", "sum", "mean")
PENALTIES = ("none", "kl", "l1", "log")
RHO_HATS = ("batch", "ema", "full")
OPTIMIZERS = ("sgd", "momentum", "nesterov", "adam", "adamw")
SOLVERS = (*OPTIMIZERS, "lbfgs")
INITIALIZERS = ("cs294a", "glorot", "he")
DTYPES = ("float32", "float64")
PRECISIONS = ("full", "tf32", "bf16")


@dataclasses.dataclass(frozen=True)
class LayerConfig:
    """One linear layer, ``a = activation(x W' + b)``, and the penalty on its activations.

    Attributes
    ----------
    units : int
        Number of outputs, at least 1.
    activation : {"sigmoid", "tanh", "relu", "softplus", "identity"}
        The function of the pre-activation.
    penalty : {"none", "kl", "l1", "log"}
        Sparsity penalty of a hidden layer (the last layer has none), times `beta`:

        - ``kl``: ``sum_j KL(rho || rho_hat_j)``, ``rho_hat_j`` the mean activation of unit j mapped to
          (0, 1): itself for sigmoid, ``(mean + 1) / 2`` for tanh. Other activations are refused.
        - ``l1``: ``1/W sum_i w_i sum_j |a_ij|``.
        - ``log``: ``1/W sum_i w_i sum_j log(1 + a_ij^2)``.
    beta : float
        Weight of the penalty, >= 0. With 0 the penalty is skipped.
    rho : float
        Target of the mean activation for ``kl``, in (0, 1).
    """

    units: int
    activation: str = "sigmoid"
    penalty: str = "none"
    beta: float = 3.0
    rho: float = 0.05


@dataclasses.dataclass(frozen=True)
class Config:
    """A layered autoencoder and its optimiser: all that an :class:`fastsae.Engine` is built from.

    Attributes
    ----------
    n_features : int
        Width of the input, which is also the width of the last layer.
    layers : tuple of LayerConfig
        First to last. The classic sparse autoencoder has two.
    n_encoder_layers : int or None
        How many of the layers lead to the code; None means half of them.
    loss : {"squared_error", "cross_entropy"}
        ``cross_entropy`` takes the logits of a sigmoid output layer and targets in [0, 1].
    loss_reduction : {"ufldl", "sum", "mean"}
        Every one divides by ``W``. Squared error: ``ufldl`` is 1/2 the sum over features (CS294A), ``sum`` the
        sum, ``mean`` the mean over features. Cross-entropy: ``ufldl`` and ``sum`` are the sum over features.
    tied : bool
        Decoder weights are the transposed encoder weights; the layers must mirror each other. A tied matrix is
        decayed once.
    weight_decay : float
        lambda, >= 0.
    rho_hat : {"batch", "ema", "full"}
        Where the mean activation of the KL penalty is taken: over the batch; as the exponential moving average
        ``q = d q + (1 - d) batch mean`` that starts at the first batch mean (its gradient takes the slope of
        KL at q and leaves out ``1 - d``); or over the whole training set, which needs full-batch optimisation.
    rho_hat_decay : float
        d of ``ema``, in [0, 1).
    optimizer : {"sgd", "momentum", "nesterov", "adam", "adamw"}
        In PyTorch's form.
    learning_rate, momentum, beta1, beta2, epsilon : float
        Constants of the optimisers. `momentum` serves momentum and nesterov; the last three Adam and AdamW.
    dtype : {"float32", "float64"}
        Type of the parameters and of all arithmetic.
    precision : {"full", "tf32", "bf16"}
        What the factors of matrix products are rounded to, on a GPU with ``dtype="float32"``: not at all, to 10
        bits of mantissa, or to 7 bits. Sums, parameters and everything else stay float32.
    """

    n_features: int
    layers: tuple[LayerConfig, ...]
    n_encoder_layers: int | None = None
    loss: str = "squared_error"
    loss_reduction: str = "ufldl"
    tied: bool = False
    weight_decay: float = 1e-4
    rho_hat: str = "batch"
    rho_hat_decay: float = 0.99
    optimizer: str = "adam"
    learning_rate: float = 1e-3
    momentum: float = 0.9
    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8
    dtype: str = "float32"
    precision: str = "full"

    @property
    def widths(self) -> tuple[int, ...]:
        """Width of the input and of every layer."""
        return (self.n_features, *(layer.units for layer in self.layers))

    @property
    def code_layer(self) -> int:
        """Number of layers from the input to the code."""
        return len(self.layers) // 2 if self.n_encoder_layers is None else self.n_encoder_layers

    @property
    def parameter_shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of every parameter by name; a tied decoder layer has no weights of its own."""
        shapes: dict[str, tuple[int, ...]] = {}
        for number, layer in enumerate(self.layers, start=1):
            if not (self.tied and number > len(self.layers) // 2):
                shapes[f"W{number}"] = (layer.units, self.widths[number - 1])
            shapes[f"b{number}"] = (layer.units,)
        return shapes

    def to_dict(self) -> dict[str, Any]:
        """As plain values that JSON can hold."""
        values: dict[str, Any] = _plain(dataclasses.asdict(self))
        return values

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Config:
        """The inverse of `to_dict`; unknown or missing options raise ValueError."""
        if not isinstance(values, Mapping):
            raise ValueError(f"config: expected an object, got {type(values).__name__}")
        known = {field.name for field in dataclasses.fields(cls)}
        if unknown := sorted(set(values) - known):
            raise ValueError(f"config: unknown option {unknown[0]!r}")
        try:
            layers = tuple(LayerConfig(**layer) for layer in values["layers"])
            config = cls(**{**values, "layers": layers})
        except (TypeError, KeyError) as error:
            raise ValueError(f"config: {error}") from None
        config.validate()
        return config

    def validate(self) -> None:
        """Raise ValueError, naming the option, if an option or a combination has no meaning."""
        check_integer("n_features", self.n_features, 1)
        if not isinstance(self.layers, (tuple, list)) or not self.layers:
            raise ValueError(f"layers: expected a tuple of at least one LayerConfig, got {self.layers!r}")
        for i, layer in enumerate(self.layers):
            self._validate_layer(i, layer)
        if self.layers[-1].units != self.n_features:
            raise ValueError(
                f"layers: the last layer must have n_features={self.n_features} units, got {self.layers[-1].units}"
            )
        if self.n_encoder_layers is not None:
            check_integer("n_encoder_layers", self.n_encoder_layers, 0, len(self.layers))
        check_choice("loss", self.loss, LOSSES)
        check_choice("loss_reduction", self.loss_reduction, LOSS_REDUCTIONS)
        if self.loss == "cross_entropy" and self.layers[-1].activation != "sigmoid":
            raise ValueError(
                f"loss='cross_entropy' needs a sigmoid output layer, got activation {self.layers[-1].activation!r}"
            )
        check_bool("tied", self.tied)
        if self.tied:
            if len(self.layers) % 2 or self.widths != self.widths[::-1]:
                raise ValueError(f"tied=True needs layers that mirror each other, got widths {self.widths}")
            if self.code_layer != len(self.layers) // 2:
                raise ValueError("tied=True needs n_encoder_layers to be half of the layers")
        check_real("weight_decay", self.weight_decay, 0.0)
        check_choice("rho_hat", self.rho_hat, RHO_HATS)
        check_real("rho_hat_decay", self.rho_hat_decay, 0.0, 1.0, "[)")
        check_choice("optimizer", self.optimizer, OPTIMIZERS)
        check_real("learning_rate", self.learning_rate, 0.0)
        check_real("momentum", self.momentum, 0.0, 1.0, "[)")
        check_real("beta1", self.beta1, 0.0, 1.0, "[)")
        check_real("beta2", self.beta2, 0.0, 1.0, "[)")
        check_real("epsilon", self.epsilon, 0.0, math.inf, "()")
        check_choice("dtype", self.dtype, DTYPES)
        check_precision(self.precision, self.dtype)

    def _validate_layer(self, index: int, layer: LayerConfig) -> None:
        if not isinstance(layer, LayerConfig):
            raise ValueError(f"layers[{index}]: expected a LayerConfig, got {type(layer).__name__}")
        where = f"layers[{index}]."
        check_integer(where + "units", layer.units, 1)
        check_choice(where + "activation", layer.activation, ACTIVATIONS)
        check_choice(where + "penalty", layer.penalty, PENALTIES)
        check_real(where + "beta", layer.beta, 0.0)
        check_real(where + "rho", layer.rho, 0.0, 1.0, "()")
        if layer.penalty != "none" and index == len(self.layers) - 1:
            raise ValueError(f"{where}penalty: the output layer takes no penalty, got {layer.penalty!r}")
        if layer.penalty == "kl" and layer.activation not in BOUNDED_ACTIVATIONS:
            raise ValueError(
                f"{where}penalty='kl' needs a bounded activation {BOUNDED_ACTIVATIONS}, "
                f"got {layer.activation!r}; use 'l1' or 'log'"
            )


@dataclasses.dataclass(frozen=True)
class TrainingConfig:
    """How a model is trained: all that the trainer needs beside the data and :class:`Config`.

    Attributes
    ----------
    solver : {"sgd", "momentum", "nesterov", "adam", "adamw", "lbfgs"}
        A mini-batch optimiser, or SciPy's full-batch L-BFGS over fastsae's value and gradient.
    batch_size : int or None
        Rows per step; the last, shorter batch of an epoch is kept. None means all rows at once.
    max_epochs : int
        Passes over the data; iterations for ``lbfgs``.
    shuffle : bool
        Draw a new row order each epoch, from `random_state` and the epoch number alone.
    validation_fraction : float
        Share of the rows that is held out, in [0, 1). 0 holds out nothing.
    early_stopping : bool
        Stop when the monitored loss (validation if rows are held out, else training) has not improved by `tol`
        for `n_iter_no_change` epochs, and restore the best parameters.
    n_iter_no_change : int
        Patience in epochs, at least 1.
    tol : float
        Least improvement, relative to the best loss, that counts.
    init : {"cs294a", "glorot", "he"}
        First weights, drawn by NumPy; biases start at 0. See :mod:`fastsae.initializers`.
    """

    solver: str = "adam"
    batch_size: int | None = 256
    max_epochs: int = 100
    shuffle: bool = True
    validation_fraction: float = 0.0
    early_stopping: bool = False
    n_iter_no_change: int = 10
    tol: float = 1e-4
    init: str = "cs294a"

    def validate(self) -> None:
        """Raise ValueError, naming the option, if one is out of range."""
        check_choice("solver", self.solver, SOLVERS)
        if self.batch_size is not None:
            check_integer("batch_size", self.batch_size, 1)
        check_integer("max_epochs", self.max_epochs, 0)
        check_bool("shuffle", self.shuffle)
        check_real("validation_fraction", self.validation_fraction, 0.0, 1.0, "[)")
        check_bool("early_stopping", self.early_stopping)
        check_integer("n_iter_no_change", self.n_iter_no_change, 1)
        check_real("tol", self.tol, 0.0)
        check_choice("init", self.init, INITIALIZERS)


def check_choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    """Raise ValueError unless `value` is one of `choices`."""
    if not isinstance(value, str) or value not in choices:
        raise ValueError(f"{name}: expected one of {', '.join(map(repr, choices))}, got {value!r}")


def check_precision(precision: object, dtype: str) -> None:
    """Raise ValueError unless `precision` is one that `dtype` can have."""
    check_choice("precision", precision, PRECISIONS)
    if precision != "full" and dtype != "float32":
        raise ValueError(f"precision={precision!r} needs dtype='float32', got {dtype!r}")


def check_integer(name: str, value: object, low: int, high: int | None = None) -> None:
    """Raise ValueError unless `value` is an integer in [low, high]."""
    wanted = f"an integer >= {low}" if high is None else f"an integer in [{low}, {high}]"
    high = 2**63 - 1 if high is None else high  # what the compiled part can hold
    if _is_bool(value):
        raise ValueError(f"{name}: expected {wanted}, got {value!r}")
    try:
        number = operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        raise ValueError(f"{name}: expected {wanted}, got {value!r}") from None
    if not low <= number <= high:
        raise ValueError(f"{name}: expected {wanted}, got {value!r}")


def check_real(name: str, value: object, low: float, high: float = math.inf, ends: str = "[)") -> None:
    """Raise ValueError unless `value` is a finite number in the interval, `ends` saying which ends belong."""
    wanted = f"a number in {ends[0]}{low:g}, {high:g}{ends[1]}"
    try:
        number = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        raise ValueError(f"{name}: expected {wanted}, got {value!r}") from None
    above = number >= low if ends[0] == "[" else number > low
    below = number <= high if ends[1] == "]" else number < high
    if _is_bool(value) or isinstance(value, (str, bytes)) or not (math.isfinite(number) and above and below):
        raise ValueError(f"{name}: expected {wanted}, got {value!r}")


def check_bool(name: str, value: object) -> None:
    """Raise ValueError unless `value` is True or False."""
    if not _is_bool(value):
        raise ValueError(f"{name}: expected True or False, got {value!r}")


def _is_bool(value: object) -> bool:
    return type(value).__name__ in ("bool", "bool_")  # NumPy's too, without importing it


def _plain(value: Any) -> Any:
    """`value` with NumPy's scalars, fractions and the like as Python's int, float and bool."""
    if isinstance(value, dict):
        return {key: _plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(map(_plain, value))
    if value is None or isinstance(value, str):
        return value
    if _is_bool(value):
        return bool(value)
    return operator.index(value) if hasattr(value, "__index__") else float(value)
