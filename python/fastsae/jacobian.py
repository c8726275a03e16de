"""The Jacobian of an encoder."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastsae._core import DeviceArray
from fastsae.arrays import Rows
from fastsae.config import Config, LayerConfig
from fastsae.reference.activations import ACTIVATIONS

Array = NDArray[np.float64]

_ELEMENTS_AT_ONCE = 1 << 22  # of the Jacobians of a chunk of rows


def jacobian_norm(config: Config, parameters: dict[str, NDArray[np.floating]], X: Rows) -> Array:
    """``|J(x)|_F`` of each row of `X`, in float64, J the Jacobian of the code by the input.

    ``J = D_L W_L ... D_1 W_1`` with ``D_l = diag(f'(z_l))``. As ``W_1 = R' Q'`` with orthonormal columns of Q, J has
    the norm of ``D_L W_L ... D_1 R'``, whose rows are no longer than those of W_1. With one layer no J is made at all:
    ``|J|^2 = sum_j f'(z_j)^2 |W_1j|^2``.

    Raises
    ------
    ValueError
        If a layer of the encoder is not dense.
    """
    layers = config.layers[: config.code_layer]
    for i, layer in enumerate(layers):
        if not isinstance(layer, LayerConfig):
            raise ValueError(f"jacobian_norm: expected a dense encoder, got layers[{i}]={type(layer).__name__}")
    if not layers:
        return np.full(len(X), np.sqrt(config.n_features))
    weights = [np.asarray(parameters[f"W{number}"], np.float64) for number in range(1, len(layers) + 1)]
    biases = [np.asarray(parameters[f"b{number}"], np.float64) for number in range(1, len(layers) + 1)]
    activations = [ACTIVATIONS[layer.activation] for layer in layers]  # type: ignore[attr-defined]
    first = weights[0]
    if first.shape[0] < first.shape[1]:
        r: Array = np.linalg.qr(first.T, mode="r")  # type: ignore[assignment]
        first = r.T
    squares = (weights[0] ** 2).sum(axis=1)
    at_once = max(1, _ELEMENTS_AT_ONCE // (max(config.widths) * (1 if len(layers) == 1 else first.shape[1])))
    rows = X.numpy() if isinstance(X, DeviceArray) else X
    norms = np.empty(len(rows))
    for begin in range(0, len(rows), at_once):
        a: NDArray[Any] = np.asarray(rows[begin : begin + at_once], np.float64)
        slopes = []
        for f, w, b in zip(activations, weights, biases, strict=True):
            a = f.value(a @ w.T + b)
            slopes.append(f.slope(a))
        if len(layers) == 1:
            squared = slopes[0] ** 2 @ squares
        else:
            jacobian = slopes[0][:, :, None] * first
            for slope, w in zip(slopes[1:], weights[1:], strict=True):
                jacobian = slope[:, :, None] * (w @ jacobian)
            squared = (jacobian**2).sum(axis=(1, 2))
        norms[begin : begin + at_once] = np.sqrt(squared)
    return norms
