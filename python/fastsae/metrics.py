"""What a fitted model has learned, in numbers: how often units fire, which are alive, how Gabor-like filters are."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastsae.config import check_integer, check_real

Array = NDArray[np.float64]

# Levenberg-Marquardt: iterations, first damping, and the damping at which a fit is given up as converged.
_ITERATIONS = 60
_DAMPING = 1e-2
_LARGEST_DAMPING = 1e8
# Fits are run this many at a time, so that memory does not grow with the number of filters.
_BLOCK = 512
# Fourier peaks that a fit starts from, and the widths in periods of the peak, across and along the stripes.
_PEAKS = 3
_START_WIDTHS = ((0.3, 0.4), (0.6, 0.9))


def mean_activation(H: ArrayLike) -> Array:
    """Mean of each unit over the rows: the rho_hat of a sigmoid layer.

    Parameters
    ----------
    H : array, shape (n_samples, n_units)
        Activations, as `transform` returns them.

    Returns
    -------
    array, shape (n_units,), float64

    Raises
    ------
    ValueError
        If `H` is not a 2-D array of finite numbers with at least one row.
    """
    mean: Array = _matrix("H", H).mean(axis=0, dtype=np.float64)
    return mean


def live_units(H: ArrayLike, *, rtol: float = 0.1) -> NDArray[np.bool_]:
    """Which units respond to the data: those whose activation is not constant over the rows.

    A unit is live if its standard deviation is more than `rtol` times the root mean square of the standard
    deviations of all units. This finds a unit that is stuck at any value (a ReLU at 0, a sigmoid at rho), and does
    not depend on the scale of the activations.

    Parameters
    ----------
    H : array, shape (n_samples, n_units)
        Activations, as `transform` returns them.
    rtol : float
        The least standard deviation, relative to the layer's, in [0, 1).

    Returns
    -------
    array of bool, shape (n_units,)

    Raises
    ------
    ValueError
        If `H` is not a 2-D array of finite numbers with at least one row, or `rtol` is out of range.
    """
    check_real("rtol", rtol, 0.0, 1.0)
    codes = _matrix("H", H)
    spread = codes.std(axis=0, dtype=np.float64)
    # Rounding leaves a constant column a spread of some units in the last place of its value.
    precision = np.finfo(codes.dtype).eps if codes.dtype.kind == "f" else np.finfo(np.float64).eps
    noise = 8 * float(precision) * np.abs(codes).max(axis=0)
    live: NDArray[np.bool_] = spread > np.maximum(rtol * np.sqrt(np.mean(spread**2)), noise)
    return live


def gabor_r2(filters: ArrayLike, patch_shape: tuple[int, int]) -> Array:
    r"""How well a two-dimensional Gabor function describes each filter.

    The model, with coordinates ``(u, v)`` across and along the stripes, centred at ``(x0, y0)`` and turned by
    ``theta``, is

    ``offset + amplitude * exp(-u^2 / (2 s^2) - v^2 / (2 t^2)) * cos(2 pi f u + phase)``

    Parameters
    ----------
    filters : array, shape (n_units, n_pixels)
        One filter a row, such as ``components_``, pixels in row-major order. Its scale and mean do not matter.
    patch_shape : (int, int)
        Height and width of a patch in pixels, both at least 4.

    Returns
    -------
    array, shape (n_units,), float64
        ``1 - residual sum of squares / sum of squares about the filter's mean``, in [0, 1]; 0 for a constant filter.

    Raises
    ------
    ValueError
        If `filters` is not a finite 2-D array, or `patch_shape` does not fit its columns.

    Notes
    -----
    Nine numbers are fitted to a filter, so bounds keep the model from describing noise: the widths ``s`` and ``t``
    are at least one pixel (an envelope cannot single out a pixel) and at most the longer side, the frequency lies
    between half a cycle per longer side and 0.5 cycles per pixel, the centre is inside the patch, and the envelope
    shares the orientation of the stripes. On white noise of 8 x 8 pixels the mean R^2 is about 0.3, and less on
    larger patches; under 2 % of such filters exceed 0.5.

    Each fit starts from the highest peaks of the filter's Fourier spectrum, at the centre of its energy, with a
    round and a long envelope, and is improved by Levenberg-Marquardt steps; amplitude, phase and offset enter
    linearly and are eliminated (Golub and Pereyra 1973; Kaufman 1975). The best start counts. The result is
    deterministic.

    References
    ----------
    Jones and Palmer, "An evaluation of the two-dimensional Gabor filter model of simple receptive fields in cat
    striate cortex", J. Neurophysiology 58 (1987).
    """
    shape = _patch_shape(patch_shape, 4)
    images = _matrix("filters", filters, shape[0] * shape[1]).astype(np.float64)
    images -= images.mean(axis=1, keepdims=True)
    largest = np.abs(images).max(axis=1)
    r2 = np.zeros(len(images))
    fitted = np.flatnonzero(largest > 0)
    for first in range(0, len(fitted), _BLOCK):
        block = fitted[first : first + _BLOCK]
        unit = images[block] / largest[block, None]
        unit /= np.linalg.norm(unit, axis=1, keepdims=True)
        r2[block] = _best_fit(unit, shape)
    return r2


def gabor_share(
    filters: ArrayLike, patch_shape: tuple[int, int], *, threshold: float = 0.5, live: ArrayLike | None = None
) -> float:
    """Share of the live filters that a Gabor function fits with an R^2 above `threshold`.

    Parameters
    ----------
    filters : array, shape (n_units, n_pixels)
        One filter a row, such as ``components_``.
    patch_shape : (int, int)
        Height and width of a patch in pixels.
    threshold : float
        The R^2 to exceed, in [0, 1).
    live : array of bool, shape (n_units,), optional
        The filters that count, as `live_units` returns them; all by default.

    Returns
    -------
    float
        In [0, 1]; NaN if no filter counts.

    Raises
    ------
    ValueError
        As `gabor_r2`, and if `threshold` or `live` does not fit.
    """
    check_real("threshold", threshold, 0.0, 1.0)
    matrix = _matrix("filters", filters)
    if live is not None:
        mask = np.asarray(live)
        if mask.dtype != np.bool_ or mask.shape != (len(matrix),):
            raise ValueError(
                f"live: expected booleans of shape ({len(matrix)},), got {mask.dtype} of shape {mask.shape}"
            )
        matrix = matrix[mask]
        if not len(matrix):
            return float("nan")
    return float(np.mean(gabor_r2(matrix, patch_shape) > threshold))


def _best_fit(images: Array, shape: tuple[int, int]) -> Array:
    """R^2 of the best start for each image of norm 1 and mean 0."""
    best = np.zeros(len(images))
    for start in _starts(images, shape):
        best = np.maximum(best, 1.0 - _fit(images, start, shape))
    clipped: Array = np.clip(best, 0.0, 1.0)
    return clipped


def _bounds(shape: tuple[int, int]) -> tuple[Array, Array]:
    """Least and largest x0, y0, theta, f, s, t. The angle wraps, so its bounds are none."""
    height, width = shape
    side = max(shape)
    low = np.array([0.0, 0.0, -np.inf, 0.5 / side, 1.0, 1.0])
    high = np.array([width - 1.0, height - 1.0, np.inf, 0.5, side, side])
    return low, high


def _starts(images: Array, shape: tuple[int, int]) -> list[Array]:
    """First parameters of the fits, one array of shape (n_images, 6) a start."""
    low, high = _bounds(shape)
    x, y = _pixels(shape)
    # Squares of squares: the centre is where the filter is strong, not the middle of its faint surroundings.
    energy = images**4
    energy /= energy.sum(axis=1, keepdims=True)
    centre = np.stack([energy @ x, energy @ y], axis=1)
    starts = []
    for angle, frequency in _peaks(images, shape):
        for across, along in _START_WIDTHS:
            widths = np.stack([across / frequency, along / frequency], axis=1)
            start = np.concatenate([centre, angle[:, None], frequency[:, None], widths], axis=1)
            starts.append(np.clip(start, low, high))
    return starts


def _peaks(images: Array, shape: tuple[int, int]) -> list[tuple[Array, Array]]:
    """Angle and frequency of the highest peaks of each image's spectrum, one pair of arrays a peak."""
    height, width = shape
    rows, columns = 4 * height, 4 * width
    power = np.abs(np.fft.rfft2(images.reshape(-1, height, width), s=(rows, columns))) ** 2
    fy, fx = np.meshgrid(np.fft.fftfreq(rows), np.fft.rfftfreq(columns), indexing="ij")
    radius = np.hypot(fx, fy).ravel()
    flat = power.reshape(len(images), -1)
    flat[:, (radius < 0.5 / max(shape)) | (radius > 0.5)] = 0.0
    peaks = []
    for _ in range(_PEAKS):
        peak = flat.argmax(axis=1)
        px, py = fx.ravel()[peak], fy.ravel()[peak]
        peaks.append((np.arctan2(py, px), np.maximum(np.hypot(px, py), 0.5 / max(shape))))
        # What is left of this peak is within one cycle per patch of it, or of its mirror image.
        for sign in (1, -1):
            distance = np.hypot(fx.ravel() - sign * px[:, None], fy.ravel() - sign * py[:, None])
            flat[distance < 1.0 / max(shape)] = 0.0
    return peaks


def _fit(images: Array, start: Array, shape: tuple[int, int]) -> Array:
    """Residual sums of squares after Levenberg-Marquardt from `start`, all images at once."""
    low, high = _bounds(shape)
    now = start.copy()
    damping = np.full(len(images), _DAMPING)
    cost = np.empty(len(images))
    hessian = np.empty((len(images), 6, 6))
    slope = np.empty((len(images), 6))
    cost[:], hessian[:], slope[:] = _linearised(images, now, shape)
    active = np.arange(len(images))
    for _ in range(_ITERATIONS):
        trial = _step(now[active], hessian[active], slope[active], damping[active], low, high)
        new_cost, new_hessian, new_slope = _linearised(images[active], trial, shape)
        better = new_cost < cost[active]
        gain = cost[active] - new_cost
        taken = active[better]
        now[taken], cost[taken] = trial[better], new_cost[better]
        hessian[taken], slope[taken] = new_hessian[better], new_slope[better]
        damping[active] *= np.where(better, 0.2, 5.0)
        active = active[~(better & (gain < 1e-6)) & (damping[active] < _LARGEST_DAMPING)]
        if not len(active):
            break
    return cost


def _step(now: Array, hessian: Array, slope: Array, damping: Array, low: Array, high: Array) -> Array:
    """The damped Gauss-Newton step, among the parameters that it does not push out of their bounds."""
    blocked = ((now <= low) & (slope > 0)) | ((now >= high) & (slope < 0))
    free = ~blocked
    matrix = hessian * (free[:, :, None] & free[:, None, :])
    diagonal = np.arange(6)
    matrix[:, diagonal, diagonal] += damping[:, None] * matrix[:, diagonal, diagonal] + 1e-9 + blocked
    change = np.linalg.solve(matrix, np.where(free, slope, 0.0)[:, :, None])[:, :, 0]
    moved: Array = np.clip(now - change, low, high)
    return moved


def _linearised(images: Array, parameters: Array, shape: tuple[int, int]) -> tuple[Array, Array, Array]:
    """Residual sum of squares, and the Gauss-Newton matrix and slope in the six nonlinear parameters."""
    x, y = _pixels(shape)
    x0, y0, theta, f, s, t = (column[:, None] for column in parameters.T)
    cos, sin = np.cos(theta), np.sin(theta)
    u = (x - x0) * cos + (y - y0) * sin
    v = (y - y0) * cos - (x - x0) * sin
    envelope = np.exp(-0.5 * (u / s) ** 2 - 0.5 * (v / t) ** 2)
    even, odd = envelope * np.cos(2 * np.pi * f * u), envelope * np.sin(2 * np.pi * f * u)
    basis = np.linalg.qr(np.stack([even, odd, np.ones_like(even)], axis=2))
    q, r = basis.Q, basis.R
    projection = np.einsum("npk,np->nk", q, images)
    residual = images - np.einsum("npk,nk->np", q, projection)
    # The carriers can coincide (f u = 0 on all pixels), so the triangle is solved with a trace of damping.
    gram = np.swapaxes(r, 1, 2) @ r + 1e-10 * np.eye(3)
    a, b, _ = np.linalg.solve(gram, np.swapaxes(r, 1, 2) @ projection[:, :, None])[:, :, 0].T[:, :, None]
    carrier = a * even + b * odd
    turned = 2 * np.pi * (b * even - a * odd)
    du = turned * f - carrier * u / s**2
    dv = -carrier * v / t**2
    jacobian = np.stack(
        [
            -du * cos + dv * sin,
            -du * sin - dv * cos,
            du * v - dv * u,
            turned * u,
            carrier * u**2 / s**3,
            carrier * v**2 / t**3,
        ],
        axis=2,
    )
    jacobian -= q @ (np.swapaxes(q, 1, 2) @ jacobian)
    cost = np.einsum("np,np->n", residual, residual)
    transposed = np.swapaxes(jacobian, 1, 2)
    return cost, transposed @ jacobian, -(transposed @ residual[:, :, None])[:, :, 0]


def _pixels(shape: tuple[int, int]) -> tuple[Array, Array]:
    """Column and row numbers of the pixels of a patch in row-major order."""
    y, x = np.mgrid[: shape[0], : shape[1]]
    return x.ravel().astype(np.float64), y.ravel().astype(np.float64)


def _patch_shape(value: Any, least: int) -> tuple[int, int]:
    if not isinstance(value, (tuple, list)) or len(value) != 2:
        raise ValueError(f"patch_shape: expected (height, width), got {value!r}")
    for side in value:
        check_integer("patch_shape", side, least)
    return int(value[0]), int(value[1])


def _matrix(name: str, value: ArrayLike, n_columns: int | None = None) -> NDArray[Any]:
    array = np.asarray(value)
    if array.ndim != 2 or 0 in array.shape or array.dtype.kind not in "fiub":
        raise ValueError(
            f"{name}: expected a 2-D array of real numbers, not empty, got {array.dtype} of shape {array.shape}"
        )
    if n_columns is not None and array.shape[1] != n_columns:
        raise ValueError(f"{name}: expected {n_columns} columns for patch_shape, got shape {array.shape}")
    if not np.isfinite(array).all():
        raise ValueError(f"{name}: expected finite numbers, got NaN or infinity")
    return array
