"""The encoder of a TopK sparse autoencoder."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastsae import _core
from fastsae._core import DeviceError
from fastsae.arrays import Array, as_array, as_rows, rows_for, target_for
from fastsae.checks import check_choice, check_integer
from fastsae.cuda import cuda_blas
from fastsae.optimizer import DTYPES, check_precision
from fastsae.process import check_device

MOST_K = 512


class TopKEncoder:
    """The k largest pre-activations of each row: the encoder of a TopK sparse autoencoder.

    For a row ``x`` these are the k largest elements of ``W x + b`` and the latents they belong to [1]_. Product and
    selection are one pass: the n_rows x n_latents matrix is never stored.

    Parameters
    ----------
    weight : array, shape (n_latents, n_features)
        ``W``, finite. A copy is kept on the device, in `dtype`.
    bias : array, shape (n_latents,), optional
        ``b``, finite. A bias of the decoder that is subtracted from ``x`` first belongs here as
        ``b - W @ decoder_bias``.
    k : int, default 32
        Latents per row, from 1 to 512 and at most n_latents.
    device : {"auto", "cpu", "cuda", "cuda:N"}
        Where the memory is and the arithmetic runs.
    dtype : {"float32", "float64"}
        Type of the arithmetic and of the values.
    precision : {"full", "tf32", "bf16"}
        What the factors of the product are rounded to, with float32: "tf32" on a GPU, "bf16" there and on a CPU with
        AVX512_BF16; sums stay float32.

    Attributes
    ----------
    n_features, n_latents, k : int
        The shapes.

    Raises
    ------
    ValueError
        If an argument has a wrong type, shape or value.
    MemoryError
        If the weights do not fit on the device.
    fastsae.DeviceError
        If the device, or the precision on it, is not available.

    Notes
    -----
    Published TopK autoencoders set negative values to 0 after the selection; that is left to the caller:
    ``np.maximum(values, 0)``. The indices are the same before and after.

    `encode` may be called from many threads at once. An encoder can be pickled.

    References
    ----------
    .. [1] L. Gao et al., "Scaling and evaluating sparse autoencoders", 2024, arXiv:2406.04093, section 2.3.

    Examples
    --------
    >>> encoder = TopKEncoder([[1, 0], [0, 1], [1, 1]], k=2)
    >>> values, indices = encoder.encode([[1, 2]])
    >>> values.tolist(), indices.tolist()
    ([[3.0, 2.0]], [[2, 1]])
    """

    def __init__(
        self,
        weight: Any,
        bias: Any = None,
        k: int = 32,
        *,
        device: str = "auto",
        dtype: str = "float32",
        precision: str = "full",
    ) -> None:
        check_device(device)
        check_choice("dtype", dtype, DTYPES)
        check_precision(precision, dtype)
        weight = as_array("weight", weight)
        if weight.ndim != 2 or 0 in weight.shape:
            raise ValueError(f"weight: expected a 2-D array (n_latents, n_features), got shape {weight.shape}")
        self.n_latents, self.n_features = (int(n) for n in weight.shape)
        check_integer("k", k, 1, min(MOST_K, self.n_latents))
        self.k = int(k)
        self.device, self.dtype, self.precision = device, dtype, precision
        weight = _finite("weight", as_rows("weight", weight, self.n_features, dtype))
        if bias is not None:
            bias = as_array("bias", bias)
            if bias.shape != (self.n_latents,):
                raise ValueError(f"bias: expected shape {(self.n_latents,)}, got {bias.shape}")
            bias = _finite("bias", as_rows("bias", bias.reshape(1, -1), self.n_latents, dtype))
        if device.startswith("cuda"):
            cuda_blas()
        self._core = _core.TopKEncoder(weight, bias, self.k, device, dtype, precision)

    def encode(self, X: Any, out: tuple[Any, Any] | None = None) -> tuple[Any, Any]:
        """The k largest pre-activations of each row and their latents.

        Parameters
        ----------
        X : array, shape (n_rows, n_features)
            NumPy array, memory map, or tensor of the encoder's device with ``__dlpack__``. Rows of the encoder's
            dtype are read in place.
        out : tuple of two arrays, optional
            ``(values, indices)`` of the shapes and types below to write into, C-contiguous.

        Returns
        -------
        values : array, shape (n_rows, k), of the encoder's dtype
            From the largest down. A row that holds NaN has NaN here. A NumPy array; a :class:`fastsae.DeviceArray`, as
            `indices` too, where X is a tensor of the device.
        indices : array of int32, shape (n_rows, k)
            The latent of each value. NaN comes before any number, and of equal values the lower latent comes first.

        Raises
        ------
        ValueError
            If an argument has a wrong shape or type.
        KeyboardInterrupt
            Within a second of Ctrl-C; what was written to `out` is then undefined.
        """
        rows = rows_for(self._core, "X", X, self.n_features, self.dtype)
        if out is not None and (not isinstance(out, tuple) or len(out) != 2):
            raise ValueError(f"out: expected a tuple (values, indices), got {type(out).__name__}")
        to_values, to_indices = out or (None, None)
        shape = (len(rows), self.k)
        values = target_for(self._core, "out[0]", to_values, shape, self.dtype, rows)
        indices = target_for(self._core, "out[1]", to_indices, shape, "int32", rows)
        if isinstance(values, np.ndarray) and isinstance(indices, np.ndarray) and np.may_share_memory(values, indices):
            raise ValueError("out: expected memory of its own for each array, got memory that both use")
        self._core.encode(rows, values, indices)
        # What was given is given back, also where it is a tensor of another library.
        return values if to_values is None else to_values, indices if to_indices is None else to_indices

    def __getstate__(self) -> dict[str, Any]:
        names = self._core.names()
        return {
            "weight": self._core.get("weight"),
            "bias": self._core.get("bias").reshape(-1) if "bias" in names else None,
            "k": self.k,
            "device": self.device,
            "dtype": self.dtype,
            "precision": self.precision,
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        try:
            self.__init__(**state)  # type: ignore[misc]
        except DeviceError:  # an encoder of a GPU or a precision that is not here
            self.__init__(**{**state, "device": "auto", "precision": "full"})  # type: ignore[misc]


def _finite(name: str, array: Array) -> Array:
    if not np.isfinite(array).all():
        raise ValueError(f"{name}: expected finite numbers, got NaN or infinity")
    return array
