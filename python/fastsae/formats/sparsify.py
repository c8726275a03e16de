"""sparsify (EleutherAI): the folder of one hookpoint, as its ``SparseCoder`` writes and reads it.

``cfg.json`` has the fields of its ``SparseCoderConfig`` and ``d_in``, and ``sae.safetensors`` the parameters
``encoder.weight`` [n, d], ``encoder.bias``, ``W_dec`` [n, d], ``b_dec`` and, of a skip transcoder, ``W_skip``.
"""

from __future__ import annotations

import os

from fastsae.dictionaries import Dictionary
from fastsae.formats.files import Options, read_tensors, write_folder
from fastsae.formats.plain import made_of, plain_of, with_pre_bias, without_pre_bias
from fastsae.saes import TopKSAE
from fastsae.transcoder import Transcoder

WEIGHTS = "sae.safetensors"

_NAMES = {"W_enc": "encoder.weight", "b_enc": "encoder.bias", "W_dec": "W_dec", "b_dec": "b_dec", "W_skip": "W_skip"}


def save_sparsify(dictionary: Dictionary, folder: str | os.PathLike[str]) -> None:
    """Write `folder` for ``sparsify.SparseCoder.load_from_disk``.

    What comes out there is what `transform` gives: norms of W_dec that are counted and a scale of columns are folded
    into the weights.

    Parameters
    ----------
    dictionary : TopKSAE, or Transcoder with architecture "topk"
        Fitted; a transcoder's y must be as wide as its X.
    folder : path-like
        Made if it is not there. Files of those names are replaced.

    Raises
    ------
    ValueError
        If sparsify has nothing that computes the same.
    OSError
        If the files cannot be written.
    """
    plain = plain_of(dictionary)
    config = plain.config
    if config.activation != "topk":
        raise ValueError(f"dictionary: sparsify has activation 'topk', got {config.activation!r}")
    if config.output_width != config.n_features:
        raise ValueError(
            f"dictionary: sparsify's outputs are as wide as its inputs, got {config.n_features} and "
            f"{config.output_width}"
        )
    if plain.row_scale is not None:
        raise ValueError(f"dictionary: sparsify does not scale rows, got scale={plain.row_scale!r}")
    if config.transcoder:
        without_pre_bias(plain)
    else:
        with_pre_bias(plain)
    options = {
        "activation": "topk",
        "expansion_factor": max(1, config.n_latents // config.n_features),
        "normalize_decoder": config.decoder_norm == "unit" and dictionary._scaler is None,
        "num_latents": config.n_latents,
        "k": int(config.k),
        "multi_topk": False,
        "skip_connection": config.skip,
        "transcode": config.transcoder,
        "d_in": config.n_features,
    }
    tensors = {_NAMES[name]: value.astype(config.dtype) for name, value in plain.tensors.items()}
    write_folder(folder, WEIGHTS, options, tensors)


def load_sparsify(folder: str | os.PathLike[str], device: str = "auto") -> TopKSAE | Transcoder:
    """The dictionary in a hookpoint's folder of sparsify.

    Parameters
    ----------
    folder : path-like
        With ``cfg.json`` and ``sae.safetensors``.
    device : {"auto", "cpu", "cuda", "cuda:N"}
        Where it computes.

    Returns
    -------
    TopKSAE or Transcoder
        Fitted, with weights in float32, or float64 where the file has that.

    Raises
    ------
    FileNotFoundError, OSError
        If a file cannot be read.
    ValueError
        If one is damaged, or says something that we do not have: ``activation="groupmax"``.
    """
    options = Options(folder)
    options.choice("activation", ("topk",), "topk")
    d, k = options.integer("d_in", 1), options.integer("k", 1)
    n = options.integer("num_latents", 0, 0) or d * options.integer("expansion_factor", 1, 32)
    transcode, skip = options.flag("transcode", False), options.flag("skip_connection", False)
    norm = "unit" if options.flag("normalize_decoder", True) and not transcode else "free"
    shapes: dict[str, tuple[int, ...]] = {"W_enc": (n, d), "b_enc": (n,), "W_dec": (n, d), "b_dec": (d,)}
    if skip:
        if not transcode:
            raise options.wrong("skip_connection", "false where transcode is false", True)
        shapes["W_skip"] = (d, d)
    stored = read_tensors(options.path.parent / WEIGHTS, {_NAMES[name]: shape for name, shape in shapes.items()})
    tensors = {name: stored[_NAMES[name]] for name in shapes}
    dtype = "float64" if tensors["W_enc"].dtype == "float64" else "float32"
    common = {"decoder_norm": norm, "pre_bias": not transcode, "dtype": dtype, "device": device}
    kind: type[TopKSAE | Transcoder] = Transcoder if transcode else TopKSAE
    return made_of(kind(n, k=k, **common, **({"skip": True} if skip else {})), tensors)  # type: ignore[arg-type]
