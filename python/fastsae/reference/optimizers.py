"""One update of one parameter array, in PyTorch's form (``torch.optim``) where it is an optimiser of PyTorch's.

Scalars are Python floats: ``1 - beta`` and the bias corrections are computed in double precision also when
the arrays are float32.
"""

# ruff: noqa: D102 - the abstract class documents the methods.
from __future__ import annotations

import dataclasses
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping

import numpy as np

from fastsae.optimizer import OptimizerConfig
from fastsae.reference.activations import Array
from fastsae.reference.schedules import average_share, share


@dataclasses.dataclass(frozen=True)
class StepScalars:
    """The numbers that one update needs.

    Attributes
    ----------
    learning_rate : float
        That of the step, as the schedule has it.
    momentum, beta1, beta2, epsilon : float
        As in :class:`fastsae.optimizer.OptimizerConfig`.
    shrink : float
        What AdamW multiplies the parameter by first; 1 for biases.
    correction1, correction2 : float
        Adam's bias corrections ``1 - beta1^t`` and ``sqrt(1 - beta2^t)`` at step t = 1, 2, ...
    average_share : float
        Of this step in the average of all.
    """

    learning_rate: float
    momentum: float
    beta1: float
    beta2: float
    epsilon: float
    shrink: float
    correction1: float
    correction2: float
    average_share: float

    @classmethod
    def at(cls, config: OptimizerConfig, t: int, decay: float, total_steps: int | None = None) -> StepScalars:
        """The scalars of step `t`, counted from 1, for a parameter with that weight decay; 0 for a bias."""
        rate = float(config.learning_rate) * share(config, t, total_steps)
        beta1, beta2 = float(config.beta1), float(config.beta2)
        return cls(
            learning_rate=rate,
            momentum=float(config.momentum),
            beta1=beta1,
            beta2=beta2,
            epsilon=float(config.epsilon),
            shrink=1.0 - rate * decay,
            correction1=1.0 - beta1**t,
            correction2=math.sqrt(1.0 - beta2**t),
            average_share=average_share(config, t),
        )


def clip_factor(config: OptimizerConfig, gradients: Mapping[str, Array]) -> float:
    """What the whole gradient is multiplied by, so that its norm is at most ``config.max_grad_norm``."""
    norm = math.sqrt(sum(float((np.asarray(g, np.float64) ** 2).sum()) for g in gradients.values()))
    most = config.max_grad_norm
    return 1.0 if most is None or norm <= most else float(most) / norm


Moments = tuple[Array, ...]


class Optimizer(ABC):
    """The update of one array from its gradient and its moments, which start as `first_moments` says.

    Attributes
    ----------
    n_moments : int
        How many arrays of the parameter's shape are kept between steps: 0, 1 or 2.
    decoupled_decay : bool
        Whether weight decay is part of the update instead of J and its gradient.
    averages : bool
        Whether an average of the parameter is what is learned; see `average`.
    """

    n_moments: int = 0
    decoupled_decay: bool = False
    averages: bool = False

    def first_moments(self, p: Array) -> Moments:
        """The moments before the first step, each of the parameter's shape: zero."""
        return tuple(np.zeros_like(p) for _ in range(self.n_moments))

    def average(self, p: Array, moments: Moments, momentum: float) -> Array:
        """What has been learned: the parameter itself, unless it is averaged."""
        return p

    @abstractmethod
    def update(self, p: Array, g: Array, moments: Moments, s: StepScalars) -> tuple[Array, Moments]:
        """The new parameter and moments; all arrays have one shape and none is changed in place."""


class Sgd(Optimizer):
    """``p - lr g``."""

    def update(self, p: Array, g: Array, moments: Moments, s: StepScalars) -> tuple[Array, Moments]:
        return p - s.learning_rate * g, ()


class Momentum(Optimizer):
    """``buffer = mu buffer + g``; ``p - lr buffer``."""

    n_moments = 1

    def update(self, p: Array, g: Array, moments: Moments, s: StepScalars) -> tuple[Array, Moments]:
        buffer = s.momentum * moments[0] + g
        return p - s.learning_rate * buffer, (buffer,)


class Nesterov(Optimizer):
    """``buffer = mu buffer + g``; ``p - lr (g + mu buffer)``."""

    n_moments = 1

    def update(self, p: Array, g: Array, moments: Moments, s: StepScalars) -> tuple[Array, Moments]:
        buffer = s.momentum * moments[0] + g
        return p - s.learning_rate * (g + s.momentum * buffer), (buffer,)


class Adam(Optimizer):
    """Mean of g over the root of the mean of g^2, both corrected for the start at 0 (Kingma and Ba, 2015)."""

    n_moments = 2

    def update(self, p: Array, g: Array, moments: Moments, s: StepScalars) -> tuple[Array, Moments]:
        m = s.beta1 * moments[0] + (1.0 - s.beta1) * g
        v = s.beta2 * moments[1] + (1.0 - s.beta2) * (g * g)
        denominator = np.sqrt(v) / s.correction2 + s.epsilon
        return p - (s.learning_rate / s.correction1) * (m / denominator), (m, v)


class AdamW(Adam):
    """Adam after ``p = (1 - lr weight_decay) p`` (Loshchilov and Hutter, 2019)."""

    decoupled_decay = True

    def update(self, p: Array, g: Array, moments: Moments, s: StepScalars) -> tuple[Array, Moments]:
        return super().update(s.shrink * p, g, moments, s)


class SignSgd(Optimizer):
    """Steps ``lr sign(g)`` of z, and x, the average of its places; the parameter is ``y = mu x + (1 - mu) z``.

    x is what is learned (Defazio et al., 2024). It is not kept: y and z tell it. All three start at the same place.
    """

    n_moments = 1
    averages = True

    def first_moments(self, p: Array) -> Moments:
        return (p.copy(),)

    def average(self, p: Array, moments: Moments, momentum: float) -> Array:
        (z,) = moments
        return p + (1.0 - 1.0 / momentum) * (z - p)

    def update(self, p: Array, g: Array, moments: Moments, s: StepScalars) -> tuple[Array, Moments]:
        x = self.average(p, moments, s.momentum)
        z = moments[0] - s.learning_rate * np.sign(g)
        x = x + s.average_share * (z - x)
        return x + (1.0 - s.momentum) * (z - x), (z,)


OPTIMIZERS: dict[str, Optimizer] = {
    "sgd": Sgd(),
    "momentum": Momentum(),
    "nesterov": Nesterov(),
    "adam": Adam(),
    "adamw": AdamW(),
    "sign_sgd": SignSgd(),
}
