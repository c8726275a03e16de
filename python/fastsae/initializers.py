"""First parameters, drawn by NumPy so that every device starts the same."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fastsae.checks import check_choice
from fastsae.config import INITIALIZERS, Config
from fastsae.median import geometric_median

if TYPE_CHECKING:
    from fastsae.sparse_code import SparseCodeConfig

CENTERS = ("zeros", "mean", "geometric_median")
#: Rows that the center of a sparse code's input is taken from, at most.
MOST_ROWS = 8192
#: The norm of a TopK encoder's rows that keeps that of random vectors.
MATCHED = "matched"


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
    encoder_norm: float | str | None = None,
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
    encoder_norm : float, "matched" or None
        Norm of the rows of W_enc, > 0. None takes that of the decoder, or 1 where that is 0. ``"matched"``, of
        ``topk``, divides W_enc by the mean norm of what 256 random unit vectors decode to (openai/sparse_autoencoder).
    input_center : array, shape (n_features,), optional
        Where z is to be 0 if the encoder does not subtract ``b_dec``: its biases become ``-W_enc input_center``.
    output_center : array, shape (n_outputs,), optional
        ``b_dec``; 0 by default.
    """
    shapes = config.parameter_shapes
    reading = _directions(shapes["W_enc"], config.dtype, random)
    writing = _directions(shapes["W_dec"], config.dtype, random) if config.transcoder else reading
    length = (None if isinstance(encoder_norm, str) else encoder_norm) or decoder_norm or 1.0
    W_enc = reading if length == 1 else reading * np.asarray(length, config.dtype)
    parameters = {
        name: np.zeros(shape, config.dtype) for name, shape in shapes.items() if name not in ("W_enc", "W_dec")
    }
    parameters["W_enc"] = W_enc
    tied = writing is reading and decoder_norm == length
    parameters["W_dec"] = W_enc if tied else writing * np.asarray(decoder_norm, config.dtype)
    if encoder_norm == MATCHED:
        rows = _directions((256, config.n_features), config.dtype, random)
        parameters["W_enc"] = W_enc / np.asarray(_output_norm(rows, parameters, int(config.k)), config.dtype)
    if output_center is not None:
        parameters["b_dec"][:] = output_center
    if input_center is not None and not config.pre_bias:
        for name in {"b_enc", "b_gate", "b_mag"} & set(shapes):
            parameters[name][:] = -(parameters["W_enc"] @ input_center.astype(config.dtype))
    if "threshold" in parameters:
        parameters["threshold"][:] = config.initial_threshold
    return parameters


def center_of(kind: str, X: NDArray[Any], weights: NDArray[np.float64] | None = None) -> NDArray[np.float64]:
    """The center of rows, shape (n_features,): zeros, their mean, or their geometric median."""
    check_choice("bias_init", kind, CENTERS)
    if kind == "geometric_median":
        return geometric_median(X, weights)
    mean: NDArray[np.float64] = np.average(np.asarray(X, np.float64), axis=0, weights=weights)
    return mean if kind == "mean" else np.zeros(X.shape[1])


def variance_of(X: NDArray[Any], weights: NDArray[np.float64] | None = None) -> float:
    """The mean squared distance of rows from their mean; 0 where rounding leaves as much of equal rows."""
    rows = np.asarray(X, np.float64)
    far = rows - center_of("mean", X, weights)
    variance, square = (float(np.average((v**2).sum(axis=1), weights=weights)) for v in (far, rows))
    rounding = float(np.finfo(X.dtype if X.dtype.kind == "f" else np.float64).eps)
    return variance if variance > (16.0 * rounding) ** 2 * square else 0.0


def _output_norm(rows: NDArray[Any], parameters: dict[str, NDArray[Any]], k: int) -> float:
    """The mean norm of what the k largest latents of each row decode to."""
    z = rows @ parameters["W_enc"].T
    a = np.where(z >= np.partition(z, -k, axis=1)[:, -k, None], np.maximum(z, 0.0), 0.0)
    return float(np.linalg.norm(a @ parameters["W_dec"], axis=1).mean())


def _directions(shape: tuple[int, ...], dtype: str, random: np.random.Generator) -> NDArray[Any]:
    """Rows of norm 1, uniform on the sphere."""
    rows: NDArray[Any] = random.standard_normal(shape, dtype=np.dtype(dtype).type)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return rows
