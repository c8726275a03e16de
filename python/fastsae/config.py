"""What a model and its training are: every option, its meaning and its only default.

Notation: ``N`` rows, ``W`` the sum of the sample weights (``N`` without weights), ``a`` the activations of
a hidden layer, ``z`` pre-activations. The cost of one batch is

``J = reconstruction + sum over hidden layers of penalty + weight_decay / 2 * sum of squared weights
+ weight_l1 * sum of absolute weights``

Biases are never decayed. ``adamw`` decays outside of ``J`` (decoupled, as in PyTorch); `weight_l1` is inside for all.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from fastsae.checks import check_bool, check_choice, check_integer, check_real
from fastsae.image_layers import (
    ConvConfig,
    ConvTransposeConfig,
    PoolConfig,
    ReshapeConfig,
    UnpoolConfig,
    UpsampleConfig,
)
from fastsae.layers import (
    ACTIVATIONS,
    BOUNDED_ACTIVATIONS,
    OUTPUT_ACTIVATIONS,
    PENALTIES,
    GaussianConfig,
    Layer,
    LayerConfig,
    Shape,
    layer_core,
    layer_from_dict,
    layer_to_dict,
)
from fastsae.optimizer import DTYPES, OPTIMIZERS, PRECISIONS, OptimizerConfig, check_precision, plain
from fastsae.scaling import SCALES

__all__ = [
    "ACTIVATIONS",
    "BOUNDED_ACTIVATIONS",
    "DTYPES",
    "OPTIMIZERS",
    "OUTPUT_ACTIVATIONS",
    "PENALTIES",
    "PRECISIONS",
    "Config",
    "ConvConfig",
    "ConvTransposeConfig",
    "GaussianConfig",
    "Layer",
    "LayerConfig",
    "PoolConfig",
    "ReshapeConfig",
    "Shape",
    "TrainingConfig",
    "UnpoolConfig",
    "UpsampleConfig",
    "check_precision",
]

LOSSES = ("squared_error", "cross_entropy")
LOSS_REDUCTIONS = ("ufldl", "sum", "mean")
RHO_HATS = ("batch", "ema", "full")
SOLVERS = (*OPTIMIZERS, "lbfgs")
INITIALIZERS = ("cs294a", "glorot", "he")
CORRUPTIONS = ("none", "masking", "gaussian", "salt_and_pepper")
#: Those that say of each element whether it is corrupted.
REPLACING_CORRUPTIONS = ("masking", "salt_and_pepper")


@dataclasses.dataclass(frozen=True)
class Config(OptimizerConfig):
    """A layered autoencoder and its optimiser: all that an :class:`fastsae.Engine` is built from.

    Attributes
    ----------
    n_features : int
        Width of the input.
    layers : tuple of LayerConfig, or of another kind of :mod:`fastsae.layers`
        First to last. The classic sparse autoencoder has two.
    input_shape : tuple of int or None
        ``(channels, height, width)`` of a row that is an image; None for a vector.
    n_outputs : int or None
        Width of the last layer; None means `n_features`. With another width training needs targets.
    n_encoder_layers : int or None
        How many of the layers lead to the code; None means half of them.
    loss : {"squared_error", "cross_entropy"}
        ``cross_entropy`` takes the logits of a sigmoid output layer and targets in [0, 1], or those of a softmax
        output layer and targets whose rows are distributions, such as one-hot labels: ``-sum_k x_k log(y_k)``.
    loss_reduction : {"ufldl", "sum", "mean"}
        Every one divides by ``W``. Squared error: ``ufldl`` is 1/2 the sum over features (CS294A), ``sum`` the
        sum, ``mean`` the mean over features. Cross-entropy: ``ufldl`` and ``sum`` are the sum over features.
    corruption : {"none", "masking", "gaussian", "salt_and_pepper"}
        Noise on the input of a step, fresh in each epoch; its target stays clean, and so does the input of encoding,
        reconstruction and scoring (Vincent et al., JMLR 11, 2010). ``masking`` sets elements to 0, and the others are
        not scaled up for it; ``gaussian`` adds normal numbers; ``salt_and_pepper`` sets elements to one of two values.
    corruption_level : float
        Share in [0, 1] of the elements that ``masking`` and ``salt_and_pepper`` corrupt, each on its own; standard
        deviation >= 0 of ``gaussian``.
    corruption_low, corruption_high : float
        What ``salt_and_pepper`` sets elements to, either with probability 1/2.
    emphasis, emphasis_rest : float
        Weights >= 0 of the loss on corrupted elements and on the others (alpha and beta of Vincent et al., section
        4.2); other than 1 they need ``masking`` or ``salt_and_pepper``.
    tied : bool
        Decoder weights are the transposed encoder weights; the layers must mirror each other. A tied matrix is
        decayed once. To a Gaussian code the weights of its means are tied.
    weight_decay : float
        lambda, >= 0.
    weight_l1 : float
        mu, >= 0, of the penalty ``mu sum |W|`` that is part of J with every optimiser. Its slope is ``mu sign(W)``, 0
        at 0: weights move to 0 and around it, and are not set to it.
    contraction : float
        lambda_c, >= 0, of the contractive penalty ``lambda_c / W sum_i w_i |J(x_i)|^2``: the squared Frobenius norm of
        the Jacobian of the code by the input that the encoder sees (Rifai et al., ICML 2011). It needs a dense
        encoder. One layer has it in closed form, for every activation; for several it is estimated, without bias, by
        ``|J u|^2`` with one normal direction u for each row and step.
    contraction_hessian : float
        gamma, >= 0, of ``gamma / W sum_i w_i |J(x_i) - J(x_i + e_i)|^2`` with one normal e for each row and step, the
        second-order penalty of CAE+H (Rifai et al., ECML 2011). It needs an encoder of one dense layer.
    contraction_noise : float
        Standard deviation of e, > 0.
    rho_hat : {"batch", "ema", "full"}
        Where the mean activation of the KL penalty is taken: over the batch; as the exponential moving average
        ``q = d q + (1 - d) batch mean`` that starts at the first batch mean (its gradient takes the slope of
        KL at q and leaves out ``1 - d``); or over the whole training set, which needs full-batch optimisation.
    rho_hat_decay : float
        d of ``ema``, in [0, 1).

    The optimiser's options, all by keyword, are those of :class:`fastsae.optimizer.OptimizerConfig`.
    """

    n_features: int
    layers: tuple[Layer, ...]
    input_shape: tuple[int, int, int] | None = None
    n_outputs: int | None = None
    n_encoder_layers: int | None = None
    loss: str = "squared_error"
    loss_reduction: str = "ufldl"
    corruption: str = "none"
    corruption_level: float = 0.3
    corruption_low: float = 0.0
    corruption_high: float = 1.0
    emphasis: float = 1.0
    emphasis_rest: float = 1.0
    tied: bool = False
    weight_decay: float = 1e-4
    weight_l1: float = 0.0
    contraction: float = 0.0
    contraction_hessian: float = 0.0
    contraction_noise: float = 0.1
    rho_hat: str = "batch"
    rho_hat_decay: float = 0.99

    @property
    def shapes(self) -> tuple[Shape, ...]:
        """Shape of the input and of every layer's output."""
        shapes: list[Shape] = [(int(self.n_features), 1, 1) if self.input_shape is None else self.input_shape]
        for layer in self.layers:
            shapes.append(layer.out_shape(shapes[-1]))
        return tuple(shapes)

    @property
    def widths(self) -> tuple[int, ...]:
        """Width of the input and of every layer."""
        return tuple(math.prod(shape) for shape in self.shapes)

    @property
    def multiplications(self) -> int:
        """Multiply-adds of one row's forward pass."""
        pairs = zip(self.layers, self.shapes, strict=False)
        return sum(layer.multiplications(shape) for layer, shape in pairs)

    @property
    def contraction_draws(self) -> bool:
        """Whether the contractive penalty is estimated with random numbers."""
        return bool(self.contraction_hessian or (self.contraction and self.code_layer > 1))

    @property
    def output_width(self) -> int:
        """Width of the last layer."""
        return self.n_features if self.n_outputs is None else self.n_outputs

    @property
    def code_layer(self) -> int:
        """Number of layers from the input to the code."""
        return len(self.layers) // 2 if self.n_encoder_layers is None else self.n_encoder_layers

    @property
    def parameter_shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of every parameter by name; a tied decoder layer has no weights of its own."""
        shapes: dict[str, tuple[int, ...]] = {}
        inputs = self.shapes
        for number, layer in enumerate(self.layers, start=1):
            weight = layer.weight_shape(inputs[number - 1])
            if weight is None:
                continue
            if not (self.tied and number > len(self.layers) // 2):
                shapes[f"W{number}"] = weight
            shapes[f"b{number}"] = (layer.n_biases(inputs[number - 1]),)
        return shapes

    @property
    def places_of(self) -> dict[int, int]:
        """Number of the max pool whose places each max unpooling reads, by its number; 0 where there is none."""
        shapes, free = self.shapes, list[int]()
        places: dict[int, int] = {}
        for number, layer in enumerate(self.layers, start=1):
            if isinstance(layer, PoolConfig) and layer.mode == "max":
                free.append(number)
            elif isinstance(layer, UnpoolConfig) and layer.mode == "max":
                wanted = (shapes[number - 1], layer.size)
                fitting = [pool for pool in free if (shapes[pool], self.layers[pool - 1].core()["kernel"]) == wanted]
                places[number] = fitting[-1] if fitting else 0
                free = [pool for pool in free if pool != places[number]]
        return places

    def check_decodable(self) -> None:
        """Raise ValueError if a code alone does not tell the output."""
        for number, pool in self.places_of.items():
            if pool <= self.code_layer < number:
                raise ValueError(
                    f"layers[{number - 1}]: puts maxima back where layers[{pool - 1}] found them, which a code alone "
                    "does not know; reconstruct the rows themselves, or use mode='mean' or UpsampleConfig"
                )

    def core(self) -> dict[str, Any]:
        """What the compiled engine is made from."""
        values = self._values() | {"code_layer": self.code_layer, "n_outputs": self.output_width}
        shapes, places = self.shapes, self.places_of
        values["layers"] = [
            {
                **layer_core(layer, number, shapes[number - 1], self.weight_decay, self.weight_l1),
                "places_of": places.get(number, 0),
            }
            for number, layer in enumerate(self.layers, start=1)
        ]
        core: dict[str, Any] = plain(values)
        return core

    def to_dict(self) -> dict[str, Any]:
        """As plain values that JSON can hold."""
        options: dict[str, Any] = plain(self._values() | {"layers": [layer_to_dict(layer) for layer in self.layers]})
        return options

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Config:
        """The inverse of `to_dict`; unknown or missing options raise ValueError."""
        options = cls._known(values)
        try:
            config = cls(**{**options, "layers": tuple(layer_from_dict(layer) for layer in values["layers"])})
        except (TypeError, KeyError) as error:
            raise ValueError(f"config: {error}") from None
        config.validate()
        return config

    def validate(self) -> None:
        """Raise ValueError, naming the option, if an option or a combination has no meaning."""
        check_integer("n_features", self.n_features, 1)
        if not isinstance(self.layers, (tuple, list)) or not self.layers:
            raise ValueError(f"layers: expected a tuple of at least one LayerConfig, got {self.layers!r}")
        self._validate_layers()
        if self.n_encoder_layers is not None:
            check_integer("n_encoder_layers", self.n_encoder_layers, 0, len(self.layers))
        for i, layer in enumerate(self.layers, start=1):
            if isinstance(layer, GaussianConfig) and i != self.code_layer:
                raise ValueError(
                    f"layers[{i - 1}]: a Gaussian code must be the code layer, the last of n_encoder_layers: "
                    f"expected n_encoder_layers={i}, got {self.code_layer}"
                )
        check_choice("loss", self.loss, LOSSES)
        check_choice("loss_reduction", self.loss_reduction, LOSS_REDUCTIONS)
        output = getattr(self.layers[-1], "activation", None)
        if self.loss == "cross_entropy" and output not in ("sigmoid", "softmax"):
            raise ValueError(f"loss='cross_entropy' needs a sigmoid output layer or softmax, got activation {output!r}")
        if output == "softmax" and self.loss != "cross_entropy":
            raise ValueError(f"activation='softmax' needs loss='cross_entropy', got {self.loss!r}")
        self._validate_corruption()
        check_bool("tied", self.tied)
        if self.tied:
            if len(self.layers) % 2 or self.shapes != self.shapes[::-1]:
                raise ValueError(f"tied=True needs layers that mirror each other, got widths {self.widths}")
            for i, (layer, mirror) in enumerate(zip(self.layers, self.layers[::-1], strict=True)):
                if 2 * i < len(self.layers) and not layer.mirrors(mirror):
                    j = len(self.layers) - 1 - i
                    raise ValueError(
                        f"tied=True needs layers that mirror each other: layers[{j}] does not undo layers[{i}], "
                        f"got {type(layer).__name__} and {type(mirror).__name__} of other windows or kinds"
                    )
            if self.code_layer != len(self.layers) // 2:
                raise ValueError("tied=True needs n_encoder_layers to be half of the layers")
        check_real("weight_decay", self.weight_decay, 0.0)
        check_real("weight_l1", self.weight_l1, 0.0)
        self._validate_contraction()
        check_choice("rho_hat", self.rho_hat, RHO_HATS)
        check_real("rho_hat_decay", self.rho_hat_decay, 0.0, 1.0, "[)")
        self._validate_optimizer()

    def _validate_corruption(self) -> None:
        check_choice("corruption", self.corruption, CORRUPTIONS)
        if self.corruption in REPLACING_CORRUPTIONS:
            check_real("corruption_level", self.corruption_level, 0.0, 1.0, "[]")
        else:
            check_real("corruption_level", self.corruption_level, 0.0)
        check_real("corruption_low", self.corruption_low, -math.inf)
        check_real("corruption_high", self.corruption_high, -math.inf)
        check_real("emphasis", self.emphasis, 0.0)
        check_real("emphasis_rest", self.emphasis_rest, 0.0)
        if self.emphasis == self.emphasis_rest == 1:
            return
        if self.corruption not in REPLACING_CORRUPTIONS:
            raise ValueError(
                f"emphasis, emphasis_rest: other than 1 they need corruption='masking' or 'salt_and_pepper', "
                f"got {self.corruption!r}"
            )
        if self.emphasis == self.emphasis_rest == 0:
            raise ValueError("emphasis, emphasis_rest: expected one of them above 0, else nothing is learned")
        if getattr(self.layers[-1], "activation", None) == "softmax":
            raise ValueError("emphasis, emphasis_rest: other than 1 they need a loss of single elements, not softmax's")
        if self.output_width != self.n_features:
            raise ValueError(
                f"emphasis, emphasis_rest: other than 1 they need n_outputs=n_features={self.n_features}, "
                f"got {self.output_width}"
            )

    def _validate_contraction(self) -> None:
        check_real("contraction", self.contraction, 0.0)
        check_real("contraction_hessian", self.contraction_hessian, 0.0)
        check_real("contraction_noise", self.contraction_noise, 0.0, math.inf, "()")
        if not (self.contraction or self.contraction_hessian):
            return
        name = "contraction" if self.contraction else "contraction_hessian"
        if not 0 < self.code_layer < len(self.layers):
            raise ValueError(
                f"{name}: the penalty needs layers before the code and after it, "
                f"got {self.code_layer} and {len(self.layers) - self.code_layer}"
            )
        for i, layer in enumerate(self.layers[: self.code_layer]):
            if not isinstance(layer, LayerConfig):
                raise ValueError(f"{name}: the penalty needs a dense encoder, got layers[{i}]={type(layer).__name__}")
        if self.contraction_hessian and self.code_layer > 1:
            raise ValueError(f"contraction_hessian: expected an encoder of one layer, got {self.code_layer}")

    def _validate_layers(self) -> None:
        shape: Shape = (int(self.n_features), 1, 1)
        if self.input_shape is not None:
            if not isinstance(self.input_shape, (tuple, list)) or len(self.input_shape) != 3:
                raise ValueError(f"input_shape: expected (channels, height, width), got {self.input_shape!r}")
            for size in self.input_shape:
                check_integer("input_shape", size, 1)
            shape = self.input_shape
            if math.prod(shape) != self.n_features:
                raise ValueError(f"input_shape: {shape} is not n_features={self.n_features} numbers")
        for i, layer in enumerate(self.layers):
            if not isinstance(layer, Layer):
                raise ValueError(f"layers[{i}]: expected a LayerConfig, got {type(layer).__name__}")
            layer.validate(f"layers[{i}].", shape, is_last=i == len(self.layers) - 1)
            shape = layer.out_shape(shape)
        for number, pool in self.places_of.items():
            if pool == 0:
                raise ValueError(
                    f"layers[{number - 1}].mode: 'max' needs a max pool before it, of the same size and with maps of "
                    f"shape {self.shapes[number - 1]}, that no other unpooling mirrors; got none"
                )
        if self.n_outputs is not None:
            check_integer("n_outputs", self.n_outputs, 1)
        if math.prod(shape) != self.output_width:
            name = "n_features" if self.n_outputs is None else "n_outputs"
            raise ValueError(
                f"layers: the last layer must have {name}={self.output_width} units, got {math.prod(shape)}"
            )
        if not hasattr(self.layers[-1], "activation"):
            raise ValueError(f"layers: the last layer must have weights, got {type(self.layers[-1]).__name__}")


@dataclasses.dataclass(frozen=True)
class TrainingConfig:
    """How a model is trained: all that the trainer needs beside the data and :class:`Config`.

    Attributes
    ----------
    solver : {"sgd", "momentum", "nesterov", "adam", "adamw", "sign_sgd", "lbfgs"}
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
    scale : {"zscore", "minmax", "mean_norm", "mean_square_norm", "row_norm", "layer_norm"} or None
        What is done to X before the model sees it; see :mod:`fastsae.scaling`. The last two are for models of
        activations: layered estimators refuse them, because a code alone does not tell how to undo them.
    max_steps : int or None
        Optimiser steps after which training ends, in the place of `max_epochs`.
    log_every : int or None
        Steps between two entries of the step history; None has none.
    resample_every : int or None
        Steps after which dead latents are given another start; see :mod:`fastsae.resampling`. None never does it.
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
    scale: str | None = None
    max_steps: int | None = None
    log_every: int | None = None
    resample_every: int | None = None

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
        if self.scale is not None:
            check_choice("scale", self.scale, SCALES)
        for name in ("max_steps", "log_every", "resample_every"):
            if getattr(self, name) is not None:
                check_integer(name, getattr(self, name), 1)
