"""Mean activations, live units, and the fit of Gabor functions to filters."""

import time

import numpy as np
import pytest

from fastsae import metrics


def gabor(shape, x0, y0, theta, frequency, across, along, phase):
    y, x = np.mgrid[: shape[0], : shape[1]]
    u = (x - x0) * np.cos(theta) + (y - y0) * np.sin(theta)
    v = (y - y0) * np.cos(theta) - (x - x0) * np.sin(theta)
    envelope = np.exp(-(u**2) / (2 * across**2) - v**2 / (2 * along**2))
    return (envelope * np.cos(2 * np.pi * frequency * u + phase)).ravel()


def planted(shape, count, seed=0):
    random = np.random.default_rng(seed)
    rows = []
    for _ in range(count):
        centre = random.uniform(1, shape[1] - 2), random.uniform(1, shape[0] - 2)
        widths = random.uniform(1.3, min(shape) / 3, 2)
        rows.append(
            gabor(shape, *centre, random.uniform(0, np.pi), random.uniform(0.1, 0.4), *widths, random.uniform(0, 7))
        )
    return np.array(rows)


@pytest.mark.parametrize("shape", [(8, 8), (12, 12), (9, 14)])
def test_planted_gabors_are_found(shape):
    filters = planted(shape, 60)
    scale = np.random.default_rng(1).uniform(-100, 100, (60, 1))
    r2 = metrics.gabor_r2(scale * filters + 3.0, shape)
    assert r2.shape == (60,)
    assert r2.dtype == np.float64
    assert r2.min() > 0.999


def test_noise_lowers_r2_by_its_share():
    shape = (12, 12)
    filters = planted(shape, 60)
    filters /= filters.std(axis=1, keepdims=True)
    noise = np.random.default_rng(1).standard_normal(filters.shape)
    # Noise of half the standard deviation is a fifth of the variance, of which the fit explains a little.
    r2 = metrics.gabor_r2(filters + 0.5 * noise, shape)
    assert r2.min() > 0.65
    assert 0.78 < r2.mean() < 0.9


@pytest.mark.parametrize("side", [8, 10, 12])
@pytest.mark.parametrize("draw", ["standard_normal", "uniform"])
def test_white_noise_is_rejected(side, draw):
    noise = getattr(np.random.default_rng(2), draw)(size=(60, side * side))
    assert metrics.gabor_share(noise, (side, side)) < 0.02


def test_single_pixels_off_the_edge_are_no_gabors():
    pixels = np.eye(100)[np.arange(100).reshape(10, 10)[1:-1, 1:-1].ravel()]
    assert metrics.gabor_share(pixels, (10, 10)) == 0


def test_r2_is_the_definition():
    """A filter plus what is orthogonal to every change of the fit keeps the fit, and R^2 is known."""
    shape = (12, 12)
    filters = planted(shape, 1)
    best = metrics.gabor_r2(filters, shape)[0]
    assert best == pytest.approx(1.0, abs=1e-6)
    tiny = 1e-3 * np.random.default_rng(3).standard_normal(144)
    mixed = filters + tiny
    explained = 1 - (tiny**2).sum() / ((mixed - mixed.mean()) ** 2).sum()
    assert metrics.gabor_r2(mixed, shape)[0] == pytest.approx(explained, abs=0.15 * (1 - explained))


def test_constant_filters_and_extreme_scales():
    filters = planted((8, 8), 1)
    rows = np.concatenate([np.zeros((1, 64)), np.full((1, 64), 7.0), 1e-200 * filters, 1e200 * filters])
    assert metrics.gabor_r2(rows, (8, 8)) == pytest.approx([0, 0, 1, 1], abs=1e-3)


def test_fits_are_quick_and_independent():
    filters = np.random.default_rng(4).standard_normal((100, 144))
    start = time.perf_counter()
    r2 = metrics.gabor_r2(filters, (12, 12))
    assert time.perf_counter() - start < 10.0
    np.testing.assert_allclose(metrics.gabor_r2(filters[3:5], (12, 12)), r2[3:5], rtol=1e-6)


def test_share_counts_live_filters():
    shape = (12, 12)
    rows = np.concatenate([planted(shape, 3), np.random.default_rng(5).standard_normal((5, 144))])
    live = np.array([1, 1, 0, 1, 0, 0, 0, 0], dtype=bool)
    assert metrics.gabor_share(rows, shape) == 3 / 8
    assert metrics.gabor_share(rows, shape, live=live) == 2 / 3
    assert np.isnan(metrics.gabor_share(rows, shape, live=np.zeros(8, dtype=bool)))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_live_units(dtype):
    random = np.random.default_rng(6)
    H = np.zeros((1000, 6), dtype=dtype)
    H[:, 1] = 0.05
    H[:, 2] = 0.05 + 1e-3 * random.standard_normal(1000)
    H[:, 3] = random.random(1000) < 0.01
    H[:, 4] = 0.5 + 0.1 * random.standard_normal(1000)
    H[:, 5] = 1e-6 * random.random(1000)
    assert metrics.live_units(H).tolist() == [False, False, False, True, True, True]
    assert metrics.live_units(H, rtol=0.0).tolist() == [False, False, True, True, True, True]


def test_mean_activation_adds_in_double():
    H = np.full((100_000, 2), 0.1, dtype=np.float32)
    mean = metrics.mean_activation(H)
    assert mean.dtype == np.float64
    np.testing.assert_allclose(mean, np.float32(0.1), rtol=1e-12)


@pytest.mark.parametrize(
    ("call", "name"),
    [
        (lambda: metrics.mean_activation(np.zeros(3)), "H"),
        (lambda: metrics.mean_activation(np.zeros((0, 3))), "H"),
        (lambda: metrics.live_units([[np.nan]]), "H"),
        (lambda: metrics.live_units([["a"]]), "H"),
        (lambda: metrics.live_units([[1.0]], rtol=1.0), "rtol"),
        (lambda: metrics.gabor_r2(np.zeros(64), (8, 8)), "filters"),
        (lambda: metrics.gabor_r2(np.zeros((2, 63)), (8, 8)), "filters"),
        (lambda: metrics.gabor_r2(np.full((2, 64), np.inf), (8, 8)), "filters"),
        (lambda: metrics.gabor_r2(np.zeros((2, 64)), 8), "patch_shape"),
        (lambda: metrics.gabor_r2(np.zeros((2, 6)), (2, 3)), "patch_shape"),
        (lambda: metrics.gabor_share(np.zeros((2, 64)), (8, 8), threshold=1.0), "threshold"),
        (lambda: metrics.gabor_share(np.zeros((2, 64)), (8, 8), live=[1, 0]), "live"),
        (lambda: metrics.gabor_share(np.zeros((2, 64)), (8, 8), live=[True]), "live"),
    ],
)
def test_bad_input_is_named(call, name):
    with pytest.raises(ValueError, match=f"^{name}: expected"):
        call()
