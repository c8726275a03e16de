"""Sparse codes as SciPy matrices and as pairs of values and indices."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fastsae.arrays import Array, as_array

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

OUTPUTS = ("dense", "csr", "pairs")


def csr_of(parts: Sequence[tuple[Array, Array, Array]], n_latents: int) -> csr_matrix:
    """The rows of ``(indptr, indices, data)`` one below the other."""
    from scipy.sparse import csr_matrix

    starts = np.concatenate([[0], *(np.diff(indptr) for indptr, _, _ in parts)]).cumsum()
    indices, data = (np.concatenate([part[i] for part in parts]) for i in (1, 2))
    matrix = csr_matrix((data, indices, starts), shape=(len(starts) - 1, n_latents))
    matrix.has_sorted_indices = True
    return matrix


def pairs_of(codes: csr_matrix, width: int | None) -> tuple[Array, NDArray[np.int32]]:
    """Values and indices of each row, values falling; a row with fewer than `width` has zeros at its end."""
    counts = np.diff(codes.indptr)
    width = int(counts.max(initial=0)) if width is None else width
    rows = np.repeat(np.arange(len(counts)), counts)
    places = np.arange(codes.nnz) - np.repeat(codes.indptr[:-1], counts)
    values = np.zeros((len(counts), width), codes.dtype)
    indices = np.zeros((len(counts), width), np.int32)
    values[rows, places], indices[rows, places] = codes.data, codes.indices
    order = np.argsort(-values, axis=1, kind="stable")  # of equal ones the lower index first; zeros last
    return np.take_along_axis(values, order, axis=1), np.take_along_axis(indices, order, axis=1)


def as_csr(H: Any, n_latents: int) -> csr_matrix | None:
    """Codes in the form of a SciPy matrix or of pairs as compressed rows, checked; None for an array."""
    from scipy.sparse import csr_matrix, issparse

    if isinstance(H, tuple):
        codes = _from_pairs(H, n_latents)
    elif issparse(H):
        if H.ndim != 2 or H.shape[1] != n_latents:
            raise ValueError(f"H: expected a matrix with {n_latents} columns, got shape {H.shape}")
        codes = csr_matrix(H, copy=True)
    else:
        return None
    if codes.dtype.kind not in "fiub":
        raise ValueError(f"H: expected real numbers, got dtype {codes.dtype}")
    if codes.dtype not in (np.float32, np.float64):
        codes = codes.astype(np.float64)
    codes.sum_duplicates()  # which also sorts
    if not np.isfinite(codes.data).all():
        raise ValueError("H: expected finite numbers, got NaN or infinity")
    return codes


def _from_pairs(pairs: tuple[Any, ...], n_latents: int) -> csr_matrix:
    from scipy.sparse import csr_matrix

    if len(pairs) != 2:
        raise ValueError(f"H: expected a tuple (values, indices), got {len(pairs)} arrays")
    values, indices = as_array("H[0]", pairs[0]), as_array("H[1]", pairs[1])
    if values.ndim != 2 or values.shape != indices.shape:
        raise ValueError(f"H: expected values and indices of one shape, got {values.shape} and {indices.shape}")
    if values.dtype.kind not in "fiub" or indices.dtype.kind not in "iu":
        raise ValueError(f"H: expected real values and integer indices, got {values.dtype} and {indices.dtype}")
    if indices.size and not (indices.min() >= 0 and indices.max() < n_latents):
        raise ValueError(f"H: expected indices from 0 to {n_latents - 1}, got {indices.min()} to {indices.max()}")
    kept = values != 0
    starts = np.concatenate([[0], np.cumsum(kept.sum(axis=1))])
    return csr_matrix((values[kept], indices[kept], starts), shape=(len(values), n_latents))
