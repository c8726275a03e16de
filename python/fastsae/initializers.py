"""First parameters, drawn by NumPy so that every device starts the same."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fastsae.checks import check_choice
from fastsae.config import INITIALIZERS, Config

if TYPE_CHECKING:
    from fastsae.sparse_code import SparseCodeConfig

CENTERS = ("zeros", "mean", "geometric_median")
#: Rows that the center of a sparse code's input is taken from, at most.
MOST_ROWS = 8192

_MOST_ITERATIONS = 1000
_TOLERANCE = 1e-9  # of the median's last move, relative to the mean distance from it


def initialize(config: Config, init: str, random: np.random.Generator) -> dict[str, NDArray[np.float64]]:
    """Weights and biases by name, in float64.

    Parameters
    ----------
    config : Config
        The model.
    init : {"cs294a", "glorot", "he"}
        Weights of a layer with n inputs and m units. ``cs294a``: uniform in +-sqrt(6 / (n + m + 1)) (Ng, CS294A
        lecture notes); ``glorot``: uniform in +-sqrt(6 / (n + m)) (Glorot and Bengio 2010); ``he``: normal with
        variance 2 / n (He et al. 2015). Biases are 0.
    random : numpy.random.Generator
        Source of the weights, layer after layer.
    """
    check_choice("init", init, INITIALIZERS)
    parameters: dict[str, NDArray[np.float64]] = {}
    for name, shape in config.parameter_shapes.items():
        if name.startswith("b"):
            parameters[name] = np.zeros(shape)
        elif init == "he":
            parameters[name] = random.standard_normal(shape) * math.sqrt(2 / shape[1])
        else:
            limit = math.sqrt(6 / (sum(shape) + (init == "cs294a")))
            parameters[name] = random.uniform(-limit, limit, shape)
    return parameters


def initialize_code(
    config: SparseCodeConfig,
    random: np.random.Generator,
    *,
    decoder_norm: float = 1.0,
    encoder_norm: float | None = None,
    input_center: NDArray[np.float64] | None = None,
    output_center: NDArray[np.float64] | None = None,
) -> dict[str, NDArray[Any]]:
    """First parameters of a sparse code by name, in its dtype.

    Each latent writes in a random direction, uniform on the sphere. An autoencoder is tied: a latent reads in the
    direction in which it writes. A transcoder's latents read in directions of their own.

    Parameters
    ----------
    config : SparseCodeConfig
        The model.
    random : numpy.random.Generator
        Source of the directions.
    decoder_norm : float
        Norm of the rows of W_dec, >= 0.
    encoder_norm : float or None
        Norm of the rows of W_enc, > 0. None takes that of the decoder, or 1 where that is 0.
    input_center : array, shape (n_features,), optional
        Where z is to be 0 if the encoder does not subtract ``b_dec``: its biases become ``-W_enc input_center``.
    output_center : array, shape (n_outputs,), optional
        ``b_dec``; 0 by default.
    """
    shapes = config.parameter_shapes
    reading = _directions(shapes["W_enc"], config.dtype, random)
    writing = _directions(shapes["W_dec"], config.dtype, random) if config.transcoder else reading
    length = encoder_norm or decoder_norm or 1.0
    W_enc = reading if length == 1 else reading * np.asarray(length, config.dtype)
    parameters = {name: np.zeros(shape, config.dtype) for name, shape in shapes.items() if name not in ("W_enc", "W_dec")}
    parameters["W_enc"] = W_enc
    tied = writing is reading and decoder_norm == length
    parameters["W_dec"] = W_enc if tied else writing * np.asarray(decoder_norm, config.dtype)
    if output_center is not None:
        parameters["b_dec"][:] = output_center
    if input_center is not None and not config.pre_bias:
        for name in {"b_enc", "b_gate", "b_mag"} & set(shapes):
            parameters[name][:] = -(W_enc @ input_center.astype(config.dtype))
    if "threshold" in parameters:
        parameters["threshold"][:] = config.initial_threshold
    return parameters


def center_of(kind: str, X: NDArray[Any], weights: NDArray[np.float64] | None = None) -> NDArray[np.float64]:
    """The center of rows, shape (n_features,): zeros, their mean, or their geometric median."""
    check_choice("bias_init", kind, CENTERS)
    if kind == "zeros":
        return np.zeros(X.shape[1])
    rows = np.asarray(X, np.float64)
    if kind == "mean":
        mean: NDArray[np.float64] = np.average(rows, axis=0, weights=weights)
        return mean
    return geometric_median(rows, weights)


def geometric_median(X: NDArray[Any], weights: NDArray[np.float64] | None = None) -> NDArray[np.float64]:
    """The point with the least ``sum_i w_i |x_i - m|``: a center that few far rows do not move.

    By Weiszfeld's iteration in the form of Vardi and Zhang (2000), which also converges where the iterate meets a row.

    Parameters
    ----------
    X : array, shape (n_rows, n_features)
    weights : array, shape (n_rows,), optional
        w >= 0, not all 0.

    Returns
    -------
    array of float64, shape (n_features,)
    """
    rows = np.asarray(X, np.float64)
    w = np.ones(len(rows)) if weights is None else np.asarray(weights, np.float64)
    mean = np.average(rows, axis=0, weights=w)
    rows = rows - mean  # distances from products lose no digits around 0
    squares = np.einsum("ij,ij->i", rows, rows)
    nothing = 1e-14 * float(squares.max())  # the square of a distance that is rounding
    median = np.zeros(rows.shape[1])
    for _ in range(_MOST_ITERATIONS):
        distances = np.sqrt(np.maximum(squares - 2 * (rows @ median) + median @ median, 0))
        here = distances**2 <= nothing
        pull = np.divide(w, distances, out=np.zeros_like(w), where=~here)
        if not pull.any():
            break
        target = (pull @ rows) / pull.sum()
        force = float(np.linalg.norm(target - median)) * pull.sum()
        stay = 1.0 if force == 0 else min(1.0, float(w[here].sum()) / force)
        move = (1 - stay) * (target - median)
        median = median + move
        if np.linalg.norm(move) <= _TOLERANCE * np.average(distances, weights=w):
            break
    return median + mean


def _directions(shape: tuple[int, ...], dtype: str, random: np.random.Generator) -> NDArray[Any]:
    """Rows of norm 1, uniform on the sphere."""
    rows: NDArray[Any] = random.standard_normal(shape, dtype=np.dtype(dtype).type)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return rows
