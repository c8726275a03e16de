"""The kinds of layers: every option of a layer, its meaning and its only default.

A layer maps the shape of a row, ``(channels, height, width)``, to another one; a vector of n numbers is ``(n, 1, 1)``.
Rows of images have one channel after the other (N x C x H x W, flattened to N x C*H*W).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, ClassVar

from fastsae.checks import check_choice, check_integer, check_real

Shape = tuple[int, int, int]

ACTIVATIONS = ("sigmoid", "tanh", "relu", "softplus", "identity")
#: What the last layer may have too: a softmax of each row, with ``loss="cross_entropy"``.
OUTPUT_ACTIVATIONS = (*ACTIVATIONS, "softmax")
#: Activations with a bounded range, for which the KL penalty has a meaning.
BOUNDED_ACTIVATIONS = ("sigmoid", "tanh")
PENALTIES = ("none", "kl", "l1", "log")

KINDS: dict[str, type[Layer]] = {}


class Layer:
    """What all kinds of layers have. A kind is known by its name from where its class is defined."""

    kind: ClassVar[str]
    __dataclass_fields__: ClassVar[dict[str, Any]]

    def __init_subclass__(cls) -> None:
        KINDS[cls.kind] = cls

    def out_shape(self, shape: Shape) -> Shape:
        """Shape of the output for an input of `shape`."""
        raise NotImplementedError

    def weight_shape(self, shape: Shape) -> tuple[int, int] | None:
        """Shape of W for an input of `shape`; None for a layer without weights."""
        return None

    def n_biases(self, shape: Shape) -> int:
        """Length of b: one for each channel of the output."""
        return self.out_shape(shape)[0]

    def multiplications(self, shape: Shape) -> int:
        """Multiply-adds of a forward pass of one row."""
        return math.prod(self.weight_shape(shape) or (0,))

    def validate(self, where: str, shape: Shape, *, is_last: bool) -> None:
        """Raise ValueError, naming the option after `where`, if one has no meaning for an input of `shape`."""
        raise NotImplementedError

    def mirrors(self, other: Layer) -> bool:
        """Whether a tied model may have this layer in the place of `other` in its second half."""
        return not hasattr(self, "activation") and not hasattr(other, "activation")

    def core(self) -> dict[str, Any]:
        """What the compiled layer is made from, beside what all have."""
        return {}


@dataclasses.dataclass(frozen=True)
class LayerConfig(Layer):
    """One linear layer, ``a = activation(x W' + b)``, and the penalty on its activations.

    Attributes
    ----------
    units : int
        Number of outputs, at least 1.
    activation : {"sigmoid", "tanh", "relu", "softplus", "identity", "softmax"}
        The function of the pre-activation. ``softmax`` is for the last layer: ``a_k = exp(z_k) / sum_j exp(z_j)``.
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
    weight_decay, weight_l1 : float or None
        lambda and mu of this layer, >= 0; None takes the model's.
    winners : {"", "lifetime"}
        ``lifetime`` makes a fully-connected winner-take-all layer (Makhzani and Frey, 2015, "Winner-take-all
        autoencoders"): in each training step, and in the cost J, a unit keeps its activation only in the
        ``ceil(lifetime * rows)`` rows of the batch where it is largest, of equal ones in the first, and is 0 in all
        others. Rows of weight 0 take no place and are not counted. Needs ``activation="relu"``, where a unit that
        was set to 0 has the slope 0, so that the gradient follows the winners; takes no penalty. Inference gives
        all activations.
    lifetime : float
        Share of the rows that ``winners="lifetime"`` keeps, in (0, 1].
    """

    kind: ClassVar[str] = "dense"

    units: int
    activation: str = "sigmoid"
    penalty: str = "none"
    beta: float = 3.0
    rho: float = 0.05
    weight_decay: float | None = None
    winners: str = ""
    lifetime: float = 0.05
    weight_l1: float | None = None

    def out_shape(self, shape: Shape) -> Shape:
        """``(units, 1, 1)``."""
        return int(self.units), 1, 1

    def weight_shape(self, shape: Shape) -> tuple[int, int]:
        """``(units, inputs)``."""
        return int(self.units), math.prod(shape)

    def validate(self, where: str, shape: Shape, *, is_last: bool) -> None:
        """See `Layer.validate`."""
        check_integer(where + "units", self.units, 1)
        check_penalty(self, where, is_last, OUTPUT_ACTIVATIONS if is_last else ACTIVATIONS)
        check_winners(self, where, ("", "lifetime"), is_last)

    def mirrors(self, other: Layer) -> bool:
        """See `Layer.mirrors`."""
        return isinstance(other, LayerConfig)

    def core(self) -> dict[str, Any]:
        """See `Layer.core`."""
        return activation_core(self)


@dataclasses.dataclass(frozen=True)
class GaussianConfig(Layer):
    """A code that is drawn from a normal distribution which the input sets (Kingma and Welling 2013).

    ``[mu, v] = x W' + b`` and ``z = mu + exp(v / 2) eps`` with fresh ``eps ~ N(0, 1)`` for each row and epoch in
    training; outside of it ``z = mu``. Only as the code layer of a model. Its part of J is, over W the sum of the
    weights of the rows,

    ``beta warm sum_j max(free_bits, KL_j)``,  ``KL_j = 1/W sum_i w_i (mu_ij^2 + exp(v_ij) - 1 - v_ij) / 2``

    the divergence from N(0, 1). v is clamped to [-30, 20]; outside, its slopes are those at the bound.

    Attributes
    ----------
    units : int
        Number of latents, at least 1: W has 2 * units rows, for the means and after them the log-variances.
    beta : float
        Weight of the divergence, >= 0 (Higgins et al. 2017); 1 gives the evidence lower bound.
    free_bits : float
        Nats that each latent costs at least, >= 0, so that it may as well use them: below, its divergence has no slope
        (Kingma et al. 2016).
    warm_up : float
        Epochs in which ``warm = epoch / warm_up`` rises from 0 to 1, >= 0; 0 means always 1.
    weight_decay, weight_l1 : float or None
        lambda and mu of this layer, >= 0; None takes the model's.
    """

    kind: ClassVar[str] = "gaussian"

    units: int
    beta: float = 1.0
    free_bits: float = 0.0
    warm_up: float = 0.0
    weight_decay: float | None = None
    weight_l1: float | None = None

    def out_shape(self, shape: Shape) -> Shape:
        """``(units, 1, 1)``."""
        return int(self.units), 1, 1

    def weight_shape(self, shape: Shape) -> tuple[int, int]:
        """``(2 * units, inputs)``."""
        return 2 * int(self.units), math.prod(shape)

    def n_biases(self, shape: Shape) -> int:
        """``2 * units``."""
        return 2 * int(self.units)

    def validate(self, where: str, shape: Shape, *, is_last: bool) -> None:
        """See `Layer.validate`."""
        check_integer(where + "units", self.units, 1)
        check_real(where + "beta", self.beta, 0.0)
        check_real(where + "free_bits", self.free_bits, 0.0)
        check_real(where + "warm_up", self.warm_up, 0.0)
        check_weight_costs(self, where)
        if is_last:
            raise ValueError(f"{where[:-1]}: a Gaussian code cannot be the last layer, which makes the output")

    def mirrors(self, other: Layer) -> bool:
        """See `Layer.mirrors`."""
        return isinstance(other, LayerConfig)

    def core(self) -> dict[str, Any]:
        """See `Layer.core`."""
        return {name: getattr(self, name) for name in ("beta", "free_bits", "warm_up")}


def check_penalty(layer: Any, where: str, is_last: bool, activations: tuple[str, ...] = ACTIVATIONS) -> None:
    """Check activation, penalty and weight decay of a layer with weights."""
    check_choice(where + "activation", layer.activation, activations)
    check_choice(where + "penalty", layer.penalty, PENALTIES)
    check_real(where + "beta", layer.beta, 0.0)
    check_real(where + "rho", layer.rho, 0.0, 1.0, "()")
    check_weight_costs(layer, where)
    if layer.penalty != "none" and is_last:
        raise ValueError(f"{where}penalty: the output layer takes no penalty, got {layer.penalty!r}")
    if layer.penalty == "kl" and layer.activation not in BOUNDED_ACTIVATIONS:
        raise ValueError(
            f"{where}penalty='kl' needs a bounded activation {BOUNDED_ACTIVATIONS}, "
            f"got {layer.activation!r}; use 'l1' or 'log'"
        )


def check_weight_costs(layer: Any, where: str) -> None:
    """Check a layer's own weight decay and L1 penalty."""
    for name in ("weight_decay", "weight_l1"):
        if getattr(layer, name) is not None:
            check_real(where + name, getattr(layer, name), 0.0)


def check_winners(layer: Any, where: str, choices: tuple[str, ...], is_last: bool) -> None:
    """Check the winner-take-all options of a layer with weights."""
    check_choice(where + "winners", layer.winners, choices)
    check_real(where + "lifetime", layer.lifetime, 0.0, 1.0, "(]")
    if not layer.winners:
        return
    if is_last:
        raise ValueError(f"{where}winners: the output layer takes none, got {layer.winners!r}")
    if layer.activation != "relu":
        raise ValueError(f"{where}winners={layer.winners!r} needs activation='relu', got {layer.activation!r}")
    if layer.penalty != "none":
        raise ValueError(f"{where}winners={layer.winners!r} takes the place of a penalty, got {layer.penalty!r}")


def activation_core(layer: Any) -> dict[str, Any]:
    """Activation, penalty and winners of a layer with weights, for the compiled part."""
    return {name: getattr(layer, name) for name in ("activation", "penalty", "beta", "rho", "winners", "lifetime")}


#: What the compiled part reads of every layer, with what it gets of a layer that has no such option.
_CORE: dict[str, Any] = {
    "activation": "identity",
    "penalty": "none",
    "beta": 0.0,
    "rho": 0.5,
    "per_position": False,
    "kernel": 1,
    "stride": 1,
    "padding": 0,
    "places_of": 0,
    "winners": "",
    "lifetime": 1.0,
    "free_bits": 0.0,
    "warm_up": 0.0,
}


def layer_core(layer: Layer, number: int, shape: Shape, weight_decay: float, weight_l1: float) -> dict[str, Any]:
    """All that the compiled layer is made from: `number` names its parameters, `shape` is that of its input.

    `weight_decay` and `weight_l1` are the model's, for a layer without its own.
    """
    decay, l1 = (getattr(layer, name, None) for name in ("weight_decay", "weight_l1"))
    return {
        **_CORE,
        "kind": layer.kind,
        "number": number,
        "in": shape,
        "out": layer.out_shape(shape),
        "weight_decay": weight_decay if decay is None else decay,
        "weight_l1": weight_l1 if l1 is None else l1,
        **layer.core(),
    }


def layer_to_dict(layer: Layer) -> dict[str, Any]:
    """As plain values; the inverse of `layer_from_dict`."""
    return {"kind": layer.kind, **dataclasses.asdict(layer)}


def layer_from_dict(values: Mapping[str, Any]) -> Layer:
    """A layer of the kind that `values` names; a dense one where they name none."""
    if not isinstance(values, Mapping):
        raise ValueError(f"config: layers: expected objects, got {type(values).__name__}")
    options = dict(values)
    kind = options.pop("kind", LayerConfig.kind)
    if not isinstance(kind, str) or kind not in KINDS:
        raise ValueError(f"layers: expected a kind of {', '.join(KINDS)}, got {kind!r}")
    return KINDS[kind](**{name: tuple(v) if isinstance(v, list) else v for name, v in options.items()})
