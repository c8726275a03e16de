"""SAELens: the folder that its ``save_model`` and ``load_from_disk`` write and read, as of version 6.

``cfg.json`` has the fields of its configuration classes, and ``sae_weights.safetensors`` the parameters: ``W_enc``
[d, n], ``W_dec`` [n, d_out] and ``b_dec``, with ``b_enc``, or ``b_gate``, ``b_mag`` and ``r_mag`` of a gated one, and
``threshold`` of a JumpReLU. ``sparsity.safetensors`` may hold ``log10(frequency + 1e-10)``.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save as to_safetensors

from fastsae.checkpoint import write_atomically
from fastsae.dictionaries import Dictionary
from fastsae.formats.files import Options, read_tensors, write_folder
from fastsae.formats.plain import made_of, plain_of, without_pre_bias
from fastsae.saes import L1SAE, BatchTopKSAE, GatedSAE, JumpReLUSAE, MatryoshkaSAE, TopKSAE
from fastsae.scaling import Scaler
from fastsae.transcoder import Transcoder

WEIGHTS = "sae_weights.safetensors"
SPARSITY = "sparsity.safetensors"
#: The version whose layout is written; SAELens converts what says less than 6.
VERSION = "6.54.12"

_NORMALIZATIONS = {None: "none", "row_norm": "constant_norm_rescale", "layer_norm": "layer_norm"}
_ROW_SCALES = {name: scale for scale, name in _NORMALIZATIONS.items()}
#: How a BatchTopK dictionary is used: with a threshold.
_WRITTEN = {"relu": "standard", "topk": "topk", "batch_topk": "jumprelu", "jump_relu": "jumprelu", "gated": "gated"}
_TRANSCODERS = {"standard": "transcoder", "jumprelu": "jumprelu_transcoder"}
_SKIPPING = {"transcoder": "skip_transcoder", "jumprelu_transcoder": "jumprelu_skip_transcoder"}
_READ = (
    *("standard", "topk", "batchtopk", "matryoshka_batchtopk", "jumprelu", "gated"),
    *_TRANSCODERS.values(),
    *_SKIPPING.values(),
)


def save_saelens(
    dictionary: Dictionary, folder: str | os.PathLike[str], metadata: Mapping[str, Any] | None = None
) -> None:
    """Write `folder` for ``sae_lens.SAE.load_from_disk``.

    What comes out there is what `transform` gives: norms of W_dec that are counted and a scale of columns are folded
    into the weights, BatchTopK and Matryoshka dictionaries are written as JumpReLU ones with `threshold_`, and
    latent frequencies are written where there are any.

    Parameters
    ----------
    dictionary : Dictionary
        Fitted.
    folder : path-like
        Made if it is not there. Files of those names are replaced.
    metadata : dict, optional
        Entries of ``metadata`` in cfg.json, such as ``model_name`` and ``hook_name``.

    Raises
    ------
    ValueError
        If SAELens has nothing that computes the same: a transcoder with topk or gated codes.
    OSError
        If the files cannot be written.
    """
    plain = plain_of(dictionary)
    config, tensors = plain.config, plain.tensors
    architecture = _WRITTEN[config.activation]
    if config.transcoder:
        if architecture not in _TRANSCODERS:
            raise ValueError(f"dictionary: SAELens has no transcoder with activation {config.activation!r}")
        architecture = _TRANSCODERS[architecture]
        without_pre_bias(plain)
    if config.skip:
        architecture = _SKIPPING[architecture]
        if plain.row_scale is not None:
            raise ValueError(f"dictionary: SAELens's skip does not see rows scaled by {plain.row_scale!r}")
    if plain.threshold is not None:
        tensors["threshold"] = np.full(config.n_latents, plain.threshold)
    tensors["W_enc"] = tensors["W_enc"].T
    about: dict[str, Any] = {
        "sae_lens_version": VERSION,
        "sae_lens_training_version": None,
        "training_architecture": type(dictionary).__name__,
        **(metadata or {}),
    }
    options = {
        "architecture": architecture,
        "d_in": config.n_features,
        "d_sae": config.n_latents,
        "dtype": config.dtype,
        "device": "cpu",
        "apply_b_dec_to_input": plain.pre_bias,
        "normalize_activations": _NORMALIZATIONS[plain.row_scale],
        "reshape_activations": "none",
        "metadata": about,
    }
    if architecture == "topk":
        options |= {"k": int(config.k), "rescale_acts_by_decoder_norm": False}
    if config.transcoder:
        options["d_out"] = config.output_width
    write_folder(folder, WEIGHTS, options, {name: value.astype(config.dtype) for name, value in tensors.items()})
    frequency = dictionary.latent_frequency_
    if np.isfinite(frequency).all():
        sparsity = np.log10(frequency + 1e-10).astype(np.float32)
        write_atomically(Path(os.fsdecode(folder)) / SPARSITY, to_safetensors({"sparsity": sparsity}))


def load_saelens(folder: str | os.PathLike[str], device: str = "auto") -> Dictionary:
    """The dictionary in a folder of SAELens 6 or newer.

    Parameters
    ----------
    folder : path-like
        With ``cfg.json`` and ``sae_weights.safetensors``, of a finished training or one of its checkpoints.
    device : {"auto", "cpu", "cuda", "cuda:N"}
        Where it computes.

    Returns
    -------
    TopKSAE, BatchTopKSAE, MatryoshkaSAE, JumpReLUSAE, GatedSAE, L1SAE or Transcoder
        Fitted, with weights in float32, or float64 where the file has that. `partial_fit` trains it further with
        options of ours.

    Raises
    ------
    FileNotFoundError, OSError
        If a file cannot be read.
    ValueError
        If one is damaged, or says something that we do not have: another architecture, or a normalisation of
        activations whose numbers are in other files.
    """
    options = Options(folder)
    architecture = options.choice("architecture", _READ)
    d, n = options.integer("d_in", 1), options.integer("d_sae", 1)
    dtype = "float64" if options.values.get("dtype") in ("float64", "torch.float64") else "float32"
    kind = options.choice("normalize_activations", tuple(_ROW_SCALES), "none")
    is_transcoder = "transcoder" in architecture
    pre_bias = options.flag("apply_b_dec_to_input", not is_transcoder)
    if is_transcoder and pre_bias:
        raise options.wrong("apply_b_dec_to_input", "false, as SAELens has it of transcoders", True)
    shapes = _shapes(options, architecture, d, n)
    tensors = read_tensors(options.path.parent / WEIGHTS, shapes)
    dictionary = _dictionary(options, architecture)
    dictionary.set_params(n_latents=n, pre_bias=pre_bias, dtype=dtype, device=device, scale=_ROW_SCALES[kind])
    threshold = tensors.pop("topk_threshold", None)
    tensors["W_enc"] = np.ascontiguousarray(tensors["W_enc"].T)
    if "threshold" in tensors and (tensors["threshold"] < 0).any():
        raise ValueError(f"{options.path.parent / WEIGHTS}: tensor 'threshold': expected numbers >= 0")
    made = made_of(dictionary, tensors, None if threshold is None else max(0.0, float(threshold)))
    if made.scale is not None:
        made._scaler = Scaler(made.scale, np.zeros(d), np.ones(d))
    return made


def _shapes(options: Options, architecture: str, d: int, n: int) -> dict[str, tuple[int, ...]]:
    o = options.integer("d_out", 1) if "transcoder" in architecture else d
    shapes: dict[str, tuple[int, ...]] = {"W_enc": (d, n), "W_dec": (n, o), "b_dec": (o,)}
    if architecture == "gated":
        shapes |= dict.fromkeys(("b_gate", "b_mag", "r_mag"), (n,))
    else:
        shapes["b_enc"] = (n,)
    if "jumprelu" in architecture:
        shapes["threshold"] = (n,)
    if "batchtopk" in architecture:
        shapes["topk_threshold"] = ()
    if "skip" in architecture:
        shapes["W_skip"] = (o, d)
    return shapes


def _dictionary(options: Options, architecture: str) -> Dictionary:
    """An estimator of that architecture, with the options that only it has."""
    if architecture in ("topk", "batchtopk", "matryoshka_batchtopk"):
        training = architecture != "topk"
        norm = "rescale" if options.flag("rescale_acts_by_decoder_norm", training) else "free"
        if architecture == "topk":
            return TopKSAE(k=options.integer("k", 1), decoder_norm=norm)
        k = options.number("k")
        if architecture == "batchtopk":
            return BatchTopKSAE(k=k, decoder_norm=norm)
        return MatryoshkaSAE(k=k, decoder_norm=norm, prefixes=options.integers("matryoshka_widths"))
    if "transcoder" in architecture:
        code = "jump_relu" if "jumprelu" in architecture else "relu"
        return Transcoder(architecture=code, skip="skip" in architecture, decoder_norm="free")
    kinds: dict[str, type[Dictionary]] = {"standard": L1SAE, "jumprelu": JumpReLUSAE, "gated": GatedSAE}
    return kinds[architecture](decoder_norm="free")
