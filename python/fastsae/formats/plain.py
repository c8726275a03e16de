"""Dictionaries as plain parameters: what another library's file holds, and an estimator made from it."""

from __future__ import annotations

import dataclasses
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from sklearn.utils.validation import check_is_fitted

from fastsae.dictionaries import Dictionary
from fastsae.engine import Engine
from fastsae.scaling import ROW_SCALES
from fastsae.trainer_state import TrainerState
from fastsae.transcoder import Transcoder

Array = NDArray[Any]
Made = TypeVar("Made", bound=Dictionary)

_ENCODER_BIASES = ("b_enc", "b_gate", "b_mag")


@dataclasses.dataclass
class Plain:
    """A dictionary for rows in their own units, whose code is its coefficients.

    Attributes
    ----------
    config : SparseCodeConfig
        Of the dictionary that it was made of.
    tensors : dict of array
        Parameters by our names, in float64.
    pre_bias : bool
        Whether the encoder subtracts b_dec.
    row_scale : str or None
        What is still to be done to each row: "row_norm", "layer_norm" or nothing.
    threshold : float or None
        Of a BatchTopK dictionary: what a code must be above.
    """

    config: Any
    tensors: dict[str, Array]
    pre_bias: bool
    row_scale: str | None
    threshold: float | None


def plain_of(dictionary: Dictionary) -> Plain:
    """What `dictionary` computes, with nothing beside the parameters but a scale of each row's own.

    Norms of W_dec that selection and code count are folded into the encoder, and so is the scale of columns into both.
    """
    if not isinstance(dictionary, Dictionary):
        raise ValueError(f"dictionary: expected a fitted Dictionary, got {type(dictionary).__name__}")
    check_is_fitted(dictionary)
    engine, scaler = dictionary._engine, dictionary._scaler
    config = engine.config
    tensors = {name: value.astype(np.float64) for name, value in engine.get_parameters().items()}
    threshold = float(engine.get("batch_threshold")[0]) if config.activation == "batch_topk" else None
    if config.decoder_norm == "rescale":
        _fold_norms(tensors)
    row_scale = scaler.kind if scaler is not None and scaler.kind in ROW_SCALES else None
    plain = Plain(config, tensors, config.pre_bias, row_scale, threshold)
    if scaler is not None and row_scale is None:
        _fold_columns(plain, scaler.center, scaler.scale)
    return plain


def without_pre_bias(plain: Plain) -> None:
    """Leave to the biases of the encoder what it subtracts: ``W_enc (x - b_dec) + b = W_enc x + (b - W_enc b_dec)``."""
    if plain.pre_bias:
        _shift(plain.tensors, -_image_of_bias(plain))
        plain.pre_bias = False


def with_pre_bias(plain: Plain) -> None:
    """The inverse: an encoder that subtracts b_dec."""
    if not plain.pre_bias:
        _shift(plain.tensors, _image_of_bias(plain))
        plain.pre_bias = True


def made_of(dictionary: Made, tensors: dict[str, Array], threshold: float | None = None) -> Made:
    """`dictionary` fitted with these parameters.

    Raises
    ------
    ValueError, MemoryError, fastsae.DeviceError
        As :class:`fastsae.Engine`.
    """
    if isinstance(dictionary, Transcoder):
        dictionary._n_outputs = len(tensors["b_dec"])
    config = dictionary._config(tensors["W_enc"].shape[1])
    engine = Engine(config, dictionary.device)
    engine.set_parameters(tensors)
    if threshold is not None:
        engine.set("batch_threshold", [threshold])
    dictionary._adopt(engine, TrainerState(seed=0))
    return dictionary


def _image_of_bias(plain: Plain) -> Array:
    image: Array = plain.tensors["W_enc"] @ plain.tensors["b_dec"]
    return image


def _shift(tensors: dict[str, Array], shift: Array) -> None:
    """Add `shift` to z."""
    for name in _ENCODER_BIASES:
        if name in tensors:
            factor = np.exp(tensors["r_mag"]) if name == "b_mag" else 1.0
            tensors[name] = tensors[name] + shift * factor


def _fold_norms(tensors: dict[str, Array]) -> None:
    """Codes ``a |W_dec_j|`` of rows of norm 1 for coefficients a; a latent that writes nothing reads nothing."""
    norms = np.linalg.norm(tensors["W_dec"], axis=1)
    tensors["W_dec"] = tensors["W_dec"] / np.where(norms > 0, norms, 1.0)[:, None]
    tensors["W_enc"] = tensors["W_enc"] * norms[:, None]
    for name in (*_ENCODER_BIASES, "threshold"):
        if name in tensors:
            tensors[name] = tensors[name] * norms


def _fold_columns(plain: Plain, center: Array, scale: Array) -> None:
    """Parameters for x instead of ``(x - center) / scale``; a transcoder's output has its own units already."""
    tensors = plain.tensors
    if plain.config.transcoder:
        without_pre_bias(plain)
    tensors["W_enc"] = tensors["W_enc"] / scale
    if plain.config.transcoder:
        _shift(tensors, -(tensors["W_enc"] @ center))
        if "W_skip" in tensors:
            tensors["W_skip"] = tensors["W_skip"] / scale
            tensors["b_dec"] = tensors["b_dec"] - tensors["W_skip"] @ center
        return
    # With a bias that is subtracted, b_dec takes the center along: W_enc / scale (x - (center + scale b_dec)).
    tensors["b_dec"] = center + scale * tensors["b_dec"]
    tensors["W_dec"] = tensors["W_dec"] * scale
    if not plain.pre_bias:
        _shift(tensors, -(tensors["W_enc"] @ center))
