"""Activation functions ``a = f(z)``, their slopes and curvatures, written as functions of the output ``a``.

All keep the dtype of their argument. The C++ twin is ``cpp/math/activations.h``.
"""

# ruff: noqa: D102 - the abstract class documents the methods.
from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

#: A float32 or float64 array.
Array: TypeAlias = NDArray[np.floating[Any]]


class Activation(ABC):
    """An elementwise function of the pre-activation.

    Attributes
    ----------
    low, high : float
        Bounds of the output, infinite where there is none. The KL penalty maps (low, high) to (0, 1).
    """

    low: float = -math.inf
    high: float = math.inf

    @abstractmethod
    def value(self, z: Array) -> Array:
        """``a = f(z)``, any shape; finite for every finite z."""

    @abstractmethod
    def slope(self, a: Array) -> Array:
        """``f'(z)`` as a function of ``a = f(z)``, any shape."""

    @abstractmethod
    def curvature(self, a: Array) -> Array:
        """``f''(z)`` as a function of ``a = f(z)``, any shape."""


class Sigmoid(Activation):
    """``1 / (1 + exp(-z))`` (CS294A notes, section 2)."""

    low, high = 0.0, 1.0

    def value(self, z: Array) -> Array:
        # exp of a number <= 0 cannot overflow; sigmoid(z) = exp(z) / (1 + exp(z)) for negative z.
        e = np.exp(-np.abs(z))
        return np.where(z >= 0, 1.0, e) / (1.0 + e)

    def slope(self, a: Array) -> Array:
        return a * (1.0 - a)

    def curvature(self, a: Array) -> Array:
        curvature: Array = a * (1.0 - a) * (1.0 - 2.0 * a)
        return curvature


class Tanh(Activation):
    """``tanh(z)`` (CS294A notes, section 2)."""

    low, high = -1.0, 1.0

    def value(self, z: Array) -> Array:
        return np.tanh(z)

    def slope(self, a: Array) -> Array:
        return 1.0 - a * a

    def curvature(self, a: Array) -> Array:
        return -2.0 * a * (1.0 - a * a)


class Relu(Activation):
    """``max(z, 0)``; its slope at 0 is 0."""

    low = 0.0

    def value(self, z: Array) -> Array:
        return np.maximum(z, 0.0)

    def slope(self, a: Array) -> Array:
        return (a > 0).astype(a.dtype)

    def curvature(self, a: Array) -> Array:
        return np.zeros_like(a)


class Softplus(Activation):
    """``log(1 + exp(z))``; its slope is ``sigmoid(z) = 1 - exp(-a)``."""

    low = 0.0

    def value(self, z: Array) -> Array:
        return np.maximum(z, 0.0) + np.log1p(np.exp(-np.abs(z)))

    def slope(self, a: Array) -> Array:
        return -np.expm1(-a)

    def curvature(self, a: Array) -> Array:
        return -np.exp(-a) * np.expm1(-a)


class Identity(Activation):
    """``z``, for a linear decoder."""

    def value(self, z: Array) -> Array:
        return z

    def slope(self, a: Array) -> Array:
        return np.ones_like(a)

    def curvature(self, a: Array) -> Array:
        return np.zeros_like(a)


ACTIVATIONS: dict[str, Activation] = {
    "sigmoid": Sigmoid(),
    "tanh": Tanh(),
    "relu": Relu(),
    "softplus": Softplus(),
    "identity": Identity(),
}
