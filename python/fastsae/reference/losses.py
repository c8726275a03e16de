"""Reconstruction losses per element, and how they are reduced.

With targets ``x``, output pre-activations ``z`` and outputs ``y = activation(z)``, all ``[N, d]``, and sample
weights ``w`` with sum ``W``, the reconstruction term of J is ``factor / W * sum_i w_i sum_k value_ik``.
"""

# ruff: noqa: D102 - the abstract class documents the methods.
from __future__ import annotations

from abc import ABC, abstractmethod

import numpy as np

from fastsae.reference.activations import Array


class Loss(ABC):
    """A loss of one element."""

    @abstractmethod
    def value(self, x: Array, z: Array, y: Array) -> Array:
        """Loss of each element; same shape as `x`."""

    @abstractmethod
    def delta(self, x: Array, z: Array, y: Array, slope: Array) -> Array:
        """Derivative of `value` with respect to z, where ``slope = dy/dz``; same shape as `x`."""


class SquaredError(Loss):
    """``(y - x)^2``; the 1/2 of the CS294A notes (section 2.2) is in `factor`."""

    def value(self, x: Array, z: Array, y: Array) -> Array:
        return (y - x) ** 2

    def delta(self, x: Array, z: Array, y: Array, slope: Array) -> Array:
        return 2.0 * (y - x) * slope


class CrossEntropy(Loss):
    """``-x log(y) - (1 - x) log(1 - y)`` of a sigmoid output, computed from the logits z.

    Stable form and gradient as in PyTorch's ``BCEWithLogitsLoss``.
    """

    def value(self, x: Array, z: Array, y: Array) -> Array:
        return np.maximum(z, 0.0) - x * z + np.log1p(np.exp(-np.abs(z)))

    def delta(self, x: Array, z: Array, y: Array, slope: Array) -> Array:
        # The slope y (1 - y) of the sigmoid cancels against the derivative of the logarithms.
        return y - x


class CategoricalCrossEntropy(Loss):
    """``-x_k log(y_k)`` of a softmax output, computed from the logits z; its rows sum to the loss.

    Where the target is a distribution, its derivative by z is ``y - x`` (Bishop 2006, section 4.3.4).
    """

    def value(self, x: Array, z: Array, y: Array) -> Array:
        z = z - z.max(axis=1, keepdims=True)
        losses: Array = -x * (z - np.log(np.exp(z).sum(axis=1, keepdims=True)))
        return losses

    def delta(self, x: Array, z: Array, y: Array, slope: Array) -> Array:
        delta: Array = y * x.sum(axis=1, keepdims=True) - x
        return delta


LOSSES: dict[str, Loss] = {"squared_error": SquaredError(), "cross_entropy": CrossEntropy()}


def loss_of(loss: str, activation: str) -> Loss:
    """The loss of that name behind an output layer with that activation."""
    return CategoricalCrossEntropy() if activation == "softmax" else LOSSES[loss]


def factor(loss: str, reduction: str, n_features: int) -> float:
    """The factor of the sum over features, beside 1/W; see :mod:`fastsae.config`.

    Parameters
    ----------
    loss : {"squared_error", "cross_entropy"}
    reduction : {"ufldl", "sum", "mean"}
    n_features : int
        Width d of the output.

    Returns
    -------
    float
        1/2 for the squared error under ``ufldl``, 1/d under ``mean``, else 1.
    """
    if reduction == "mean":
        return 1.0 / n_features
    return 0.5 if reduction == "ufldl" and loss == "squared_error" else 1.0
