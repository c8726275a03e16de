"""The one table of tolerances: how far the C++ engine may be from the NumPy reference.

Every bound is relative to the largest element of the exact tensor, because a rounding error of a product is
proportional to its summands and not to what is left of them after cancellation.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.floating]

EPS = {"float32": float(np.finfo(np.float32).eps), "float64": float(np.finfo(np.float64).eps)}

#: float64, one pass: sums of up to 2000 summands in another order differ by at most 2000 eps = 4e-13, and the
#: elementary functions by a few eps more. In any order: a GPU adds up products in slabs, lists in pieces of 512
#: elements, and columns by tiles.
FLOAT64 = 1e-12

#: float64 after 50 steps: 50 times the error of one pass, because each step adds its own.
FLOAT64_TRAINED = 50 * FLOAT64

#: float32, one pass or 50 steps: a multiple of what plain NumPy in float32 loses against float64 from the same
#: numbers ...
FLOAT32_FACTOR = 4.0
#: ... plus this many eps, because on a tensor of five numbers NumPy may be exact by luck. Our elementary functions
#: have up to 2.5 ULP, and a delta is a product of about three of them. After 50 steps the drift of NumPy holds what
#: has added up.
FLOAT32_FLOOR = 8.0

#: Products whose factors are rounded: spacing of the rounded numbers next to 1. The hardware may cut off where the
#: twin rounds to nearest, which errs by up to one spacing instead of a half and always to the same side.
SPACING = {"tf32": 2.0**-10, "bf16": 2.0**-7}
#: So a bound is a multiple of what NumPy loses with the same rounding of the factors, plus two spacings, one for each
#: factor, because the errors of the twin average out and those of cut-off factors do not.
ROUNDED_FACTOR, ROUNDED_FLOOR = 4.0, 2.0

#: A gradient in float64 against a 4-point stencil with steps of 1e-3: eps / 1e-3 of rounding, and a fifth derivative
#: times 1e-12; relative to the norm of the gradient.
FINITE_DIFFERENCES = 1e-9

#: Published golden values have 12 digits after the point.
GOLDEN = 1e-12


def bound(exact: ArrayLike, plain: ArrayLike | None, dtype: str, trained: bool = False, scale: float = 0.0) -> float:
    """Largest allowed difference from `exact`.

    Parameters
    ----------
    exact : array
        By the reference in float64.
    plain : array
        By the reference in float32; not read for float64.
    dtype : {"float32", "float64"}
        Of the engine.
    trained : bool
        Whether 50 steps were taken or one pass was made.
    scale : float
        At least this much is taken as the largest element.
    """
    exact = np.asarray(exact, np.float64)
    scale = max(scale, float(np.abs(exact).max(initial=0.0)))
    if dtype == "float64":
        return (FLOAT64_TRAINED if trained else FLOAT64) * scale
    assert plain is not None
    drift = float(np.abs(np.asarray(plain, np.float64) - exact).max(initial=0.0))
    return FLOAT32_FACTOR * drift + FLOAT32_FLOOR * EPS["float32"] * scale


def kept_spacing(exact: ArrayLike, which: str, precision: str) -> Array:
    """How far apart the neighbours of each number are that moments in few bits are rounded to.

    In bfloat16 up to 2^-7 of it. In 8 bits there are 2^i levels in the decade that begins with 10^(i - n), so they are
    ``9 / 2^i 10^(i - n)`` apart; n is 7 or 8, and what is kept is a share of the largest in 256 columns.
    """
    size = np.abs(np.asarray(exact, np.float64))
    if precision == "bf16":
        return SPACING["bf16"] * size
    decades, spacing = {"first": 7, "second": 8}[which], np.empty_like(size)
    for at in range(0, size.shape[1], 256):
        block = size[:, at : at + 256]
        largest = np.maximum(block.max(axis=1, keepdims=True), np.finfo(np.float64).tiny)
        share = np.maximum(block / largest, 10.0**-decades)
        i = np.clip(np.floor(np.log10(share) + 1e-6) + decades, 0, decades - 1)
        spacing[:, at : at + 256] = largest * 9.0 * 10.0 ** (i - decades) / 2.0**i
    return spacing


def product_bound(X: Array, weight: Array, bias: Array, dtype: str) -> Array:
    """Largest error of each element of ``X W' + b`` in `dtype`, whatever the order of its sums.

    d products and d additions, each rounded once: ``gamma_{d+1} (|X| |W|' + |b|)`` with ``gamma_n = n u / (1 - n u)``
    and ``u = eps / 2`` (Higham, Accuracy and Stability of Numerical Algorithms, section 3.1).
    """
    n = (X.shape[1] + 1) * EPS[dtype] / 2
    return n / (1 - n) * (np.abs(X).astype(float) @ np.abs(weight).astype(float).T + np.abs(bias))


def rounded_bound(exact: ArrayLike, rounded: ArrayLike, precision: str) -> float:
    """Largest allowed difference from `exact` where products round their factors.

    Parameters
    ----------
    exact : array
        By the reference in float64.
    rounded : array
        By the reference in float32 with the factors of its products rounded to nearest.
    precision : {"tf32", "bf16"}
    """
    exact = np.asarray(exact, np.float64)
    drift = float(np.abs(np.asarray(rounded, np.float64) - exact).max(initial=0.0))
    return ROUNDED_FACTOR * drift + ROUNDED_FLOOR * SPACING[precision] * float(np.abs(exact).max(initial=0.0))
