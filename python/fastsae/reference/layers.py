"""The kinds of layers: each maps an array [N, size of its input's shape] to [N, size of its output's shape].

A row of an image has one channel after the other, ``(channels, height, width)`` flattened.
"""

from __future__ import annotations

from typing import Any, Protocol

from fastsae.config import Shape
from fastsae.reference.activations import Array
from fastsae.reference.images import Conv, ConvTranspose, Pool, Reshape, Unpool, Upsample


class LayerOp(Protocol):
    """A layer without its bias and its activation.

    Attributes
    ----------
    in_shape, out_shape : tuple of int
        ``(channels, height, width)``.
    transposes_tied : bool
        Whether a tied layer takes the transpose of the other's W.
    """

    in_shape: Shape
    out_shape: Shape
    transposes_tied: bool

    def __init__(self, layer: Any, in_shape: Shape, out_shape: Shape) -> None: ...

    def forward(self, x: Array, weight: Array | None) -> Array:
        """The output [N, out] for the input `x` [N, in]."""
        ...

    def backward(self, delta: Array, weight: Array | None) -> Array:
        """The error [N, in] that `delta` [N, out], the derivative of J by the output, sends back to the input."""
        ...

    def weight_gradient(self, x: Array, delta: Array) -> Array:
        """The derivative of J by the weights, for the input `x` and `delta`."""
        ...


class Dense:
    """``z = x W'`` with W [units, inputs]."""

    transposes_tied = True

    def __init__(self, layer: Any, in_shape: Shape, out_shape: Shape) -> None:
        self.in_shape, self.out_shape = in_shape, out_shape

    def forward(self, x: Array, weight: Array | None) -> Array:
        """See `LayerOp`."""
        assert weight is not None
        z: Array = x @ weight.T
        return z

    def backward(self, delta: Array, weight: Array | None) -> Array:
        """See `LayerOp`."""
        assert weight is not None
        error: Array = delta @ weight
        return error

    def weight_gradient(self, x: Array, delta: Array) -> Array:
        """See `LayerOp`."""
        gradient: Array = delta.T @ x
        return gradient


#: By :attr:`fastsae.layers.Layer.kind`.
LAYERS: dict[str, type[LayerOp]] = {
    "dense": Dense,
    "gaussian": Dense,
    "conv": Conv,
    "conv_transpose": ConvTranspose,
    "pool": Pool,
    "unpool": Unpool,
    "upsample": Upsample,
    "reshape": Reshape,
}
