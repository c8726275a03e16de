"""What a fitted model has learned, in numbers: how often units fire, which are alive, how Gabor-like filters are."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastsae.checks import check_integer, check_real

Array = NDArray[np.float64]

# Least width of an envelope in pixels: with 1.0 a single pixel amid the patch has R^2 = 0.6.
_LEAST_WIDTH = 1.25
# Fourier peaks that a fit starts from, and the widths in periods of the peak, across and along the stripes.
_PEAKS = 2
_START_WIDTHS = ((0.4, 0.6),)


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

    A unit is live if its standard deviation exceeds `rtol` times its root mean square. This tells apart a unit that
    fires from one that is stuck at any value (a ReLU at 0, a sigmoid at rho), whatever its scale.

    Parameters
    ----------
    H : array, shape (n_samples, n_units)
        Activations, as `transform` returns them.
    rtol : float
        The least standard deviation, relative to the root mean square, in [0, 1).

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
    size = np.sqrt(codes.mean(axis=0, dtype=np.float64) ** 2 + spread**2)
    # Rounding gives a constant column a spread above 0, so that is asked of its values.
    live: NDArray[np.bool_] = (codes.max(axis=0) > codes.min(axis=0)) & (spread > rtol * size)
    return live


def frequency_histogram(
    frequency: ArrayLike, bins: int = 50, *, floor: float = 1e-10
) -> tuple[NDArray[np.int64], Array]:
    """How often latents fire, on a logarithmic scale: the histogram of ``log10(frequency)``.

    Parameters
    ----------
    frequency : array, shape (n_latents,)
        Share of the rows in which each latent fires, in [0, 1], such as ``latent_frequency_``.
    bins : int
        Bins of equal width from ``log10(floor)`` to 0.
    floor : float
        What a lower frequency counts as, in (0, 1): latents that never fire are in the first bin.

    Returns
    -------
    counts : array of int64, shape (bins,)
    edges : array of float64, shape (bins + 1,)

    Raises
    ------
    ValueError
        If an argument is out of range.
    """
    check_integer("bins", bins, 1)
    check_real("floor", floor, 0.0, 1.0, "()")
    shares = np.asarray(frequency, np.float64)
    if shares.ndim != 1 or not shares.size or not ((shares >= 0) & (shares <= 1)).all():
        got = "NaN: no rows were counted" if np.isnan(shares).any() else f"shape {shares.shape}"
        raise ValueError(f"frequency: expected a 1-D array of numbers in [0, 1], got {got}")
    logarithms = np.log10(np.maximum(shares, floor))
    counts, edges = np.histogram(logarithms, bins=int(bins), range=(float(np.log10(floor)), 0.0))
    return counts.astype(np.int64), edges


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
    are at least 1.25 pixels (so that a single pixel off the edge is no Gabor) and at most the longer side, the
    frequency lies between half a cycle per longer side and 0.5 cycles per pixel, the centre is inside the patch, and
    the envelope shares the orientation of the stripes.

    Of 600 filters of white noise none exceeds 0.5 (mean R^2 0.24 on 8 x 8 pixels, 0.12 on 12 x 12). Smooth noise is
    harder to tell from a Gabor: blurred by 0.8 pixels, 65 % exceed 0.5 on 8 x 8 pixels and 10 % on 12 x 12, so
    patches of 12 pixels or more make the stronger test.

    Each fit starts from the highest peaks of the filter's Fourier spectrum, at the centre of its energy, with a
    round and a long envelope, and is improved by :func:`scipy.optimize.least_squares`; amplitude, phase and offset
    enter linearly and are eliminated (Golub and Pereyra 1973; Kaufman 1975). The best start counts.

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
    for i in np.flatnonzero(largest > 0):
        unit = images[i] / largest[i]
        r2[i] = _best_fit(unit / np.linalg.norm(unit), shape)
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


def _best_fit(image: Array, shape: tuple[int, int]) -> float:
    """R^2 of the best start for an image of norm 1 and mean 0."""
    from scipy.optimize import least_squares

    model = _GaborModel(image, shape)
    low, high = model.bounds
    best = 0.0
    for start in model.starts():
        inside = np.clip(start, low + 1e-6, high - 1e-6)
        fit = least_squares(
            model.residual, inside, model.jacobian, (low, high), x_scale=model.scale, ftol=1e-4, max_nfev=40
        )
        best = max(best, 1.0 - 2.0 * fit.cost)
    return min(best, 1.0)


class _GaborModel:
    """The residual of one image in x0, y0, theta, f, s, t; amplitude, phase and offset are eliminated."""

    def __init__(self, image: Array, shape: tuple[int, int]) -> None:
        self.image = image
        self.shape = shape
        self.side = max(shape)
        self.x, self.y = _pixels(shape)
        # The angle wraps, so its bounds are none.
        self.bounds = (
            np.array([0.0, 0.0, -np.inf, 0.5 / self.side, _LEAST_WIDTH, _LEAST_WIDTH]),
            np.array([shape[1] - 1.0, shape[0] - 1.0, np.inf, 0.5, self.side, self.side]),
        )
        self.scale = np.array([1.0, 1.0, 0.3, 0.05, 1.0, 1.0])

    def starts(self) -> list[Array]:
        """First parameters of the fits: the highest peaks of the spectrum, at the centre of the energy."""
        # Squares of squares: the centre is where the filter is strong, not the middle of its faint surroundings.
        energy = self.image**4 / (self.image**4).sum()
        centre = [energy @ self.x, energy @ self.y]
        return [
            np.array([*centre, angle, frequency, across / frequency, along / frequency])
            for angle, frequency in _peaks(self.image.reshape(self.shape))
            for across, along in _START_WIDTHS
        ]

    def residual(self, parameters: Array) -> Array:
        """What is left of the image after the best amplitude, phase and offset."""
        residual: Array = self._project(parameters)[0]
        return residual

    def jacobian(self, parameters: Array) -> Array:
        """The derivative of the residual, less the part that the eliminated numbers take up (Kaufman 1975)."""
        _, q, u, v, even, odd, a, b = self._project(parameters)
        _, _, theta, f, s, t = parameters
        cos, sin = np.cos(theta), np.sin(theta)
        carrier = a * even + b * odd
        turned = 2 * np.pi * (b * even - a * odd)
        du = turned * f - carrier * u / s**2
        dv = -carrier * v / t**2
        model = [
            -du * cos + dv * sin,
            -du * sin - dv * cos,
            du * v - dv * u,
            turned * u,
            carrier * u**2 / s**3,
            carrier * v**2 / t**3,
        ]
        columns = np.stack(model, axis=1)
        slope: Array = q @ (q.T @ columns) - columns
        return slope

    def _project(self, parameters: Array) -> tuple[Any, ...]:
        x0, y0, theta, f, s, t = parameters
        cos, sin = np.cos(theta), np.sin(theta)
        u = (self.x - x0) * cos + (self.y - y0) * sin
        v = (self.y - y0) * cos - (self.x - x0) * sin
        envelope = np.exp(-0.5 * (u / s) ** 2 - 0.5 * (v / t) ** 2)
        even, odd = envelope * np.cos(2 * np.pi * f * u), envelope * np.sin(2 * np.pi * f * u)
        q, r = np.linalg.qr(np.stack([even, odd, np.ones_like(even)], axis=1))
        projection = q.T @ self.image
        # The carriers can coincide (f u = 0 on all pixels), so the triangle is solved with a trace of damping.
        a, b, _ = np.linalg.solve(r.T @ r + 1e-10 * np.eye(3), r.T @ projection)
        return self.image - q @ projection, q, u, v, even, odd, a, b


def _peaks(image: Array) -> list[tuple[float, float]]:
    """Angle and frequency of the highest peaks of an image's spectrum."""
    side = max(image.shape)
    rows, columns = 4 * image.shape[0], 4 * image.shape[1]
    power = np.abs(np.fft.rfft2(image, s=(rows, columns))) ** 2
    fy, fx = np.meshgrid(np.fft.fftfreq(rows), np.fft.rfftfreq(columns), indexing="ij")
    radius = np.hypot(fx, fy)
    power[(radius < 0.5 / side) | (radius > 0.5)] = 0.0
    peaks = []
    for _ in range(_PEAKS):
        peak = np.unravel_index(power.argmax(), power.shape)
        px, py = fx[peak], fy[peak]
        peaks.append((float(np.arctan2(py, px)), max(float(np.hypot(px, py)), 0.5 / side)))
        # What is left of this peak is within one cycle per patch of it, or of its mirror image.
        for sign in (1, -1):
            power[np.hypot(fx - sign * px, fy - sign * py) < 1.0 / side] = 0.0
    return peaks


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
