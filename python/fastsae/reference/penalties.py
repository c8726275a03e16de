"""Sparsity penalties on the activations of a hidden layer.

``l1`` and ``log`` are functions of one activation and are averaged over the rows. ``kl`` is a function of one
unit's mean activation, mapped to (0, 1).
"""

# ruff: noqa: D102 - the abstract class documents the methods.
from __future__ import annotations

import math
from abc import ABC, abstractmethod

import numpy as np

from fastsae.reference.activations import Array

#: How close to 0 and 1 the mean activation of the KL penalty may come, by dtype.
CLAMP = {"float32": 1e-7, "float64": 1e-12}


class ElementPenalty(ABC):
    """A penalty on each activation; all arrays have the shape of `a`."""

    @abstractmethod
    def value(self, a: Array) -> Array:
        """Penalty of each activation."""

    @abstractmethod
    def slope(self, a: Array) -> Array:
        """Derivative of `value` with respect to a."""


class NoPenalty(ElementPenalty):
    """Zero."""

    def value(self, a: Array) -> Array:
        return np.zeros_like(a)

    def slope(self, a: Array) -> Array:
        return np.zeros_like(a)


class L1Penalty(ElementPenalty):
    """``|a|``; its slope at 0 is 0."""

    def value(self, a: Array) -> Array:
        return np.abs(a)

    def slope(self, a: Array) -> Array:
        return np.sign(a)


class LogPenalty(ElementPenalty):
    """``log(1 + a^2)`` (Olshausen and Field, 1996)."""

    def value(self, a: Array) -> Array:
        return np.log1p(a * a)

    def slope(self, a: Array) -> Array:
        return 2.0 * a / (1.0 + a * a)


class KlPenalty:
    """``KL(rho || q) = rho log(rho / q) + (1 - rho) log((1 - rho) / (1 - q))`` (CS294A notes, section 3).

    q is clamped in the value and in the slope alike. Beyond the clamp the slope is that at the clamp, not
    zero, so that a dead unit still feels the penalty. mlpack's SparseAutoencoder has no clamp.
    """

    def value(self, q: Array, rho: float) -> Array:
        """Penalty of each unit, [units]; `q` is its mean activation in [0, 1], `rho` the target."""
        q = clamp(q)
        value: Array = rho * np.log(rho / q) + (1.0 - rho) * (math.log1p(-rho) - np.log1p(-q))
        return value

    def slope(self, q: Array, rho: float) -> Array:
        """Derivative of `value` with respect to q, [units]: ``-rho/q + (1-rho)/(1-q)`` in one division."""
        q = clamp(q)
        return (q - rho) / (q * (1.0 - q))


def clamp(q: Array) -> Array:
    """`q` limited to [e, 1 - e], e = 1e-12 for float64 and 1e-7 for float32."""
    q = np.asarray(q)
    epsilon = CLAMP[q.dtype.name]
    return np.minimum(np.maximum(q, epsilon), 1.0 - epsilon)


PENALTIES: dict[str, ElementPenalty | KlPenalty] = {
    "none": NoPenalty(),
    "kl": KlPenalty(),
    "l1": L1Penalty(),
    "log": LogPenalty(),
}
