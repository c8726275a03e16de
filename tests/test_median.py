"""The geometric median: against its definition, where it is known, and where Weiszfeld's step has no meaning."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.optimize import minimize

from fastsae import median
from fastsae.median import geometric_median


def rows(n: int = 60, d: int = 4, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, d)) * [1, 3, 0.5, 10][:d] + rng.exponential(size=(n, d))


def cost(X: np.ndarray, at: np.ndarray, weights: Any = 1.0) -> float:
    return float((weights * np.linalg.norm(X - at, axis=1)).sum())


@pytest.mark.parametrize("weighted", [False, True])
def test_it_is_the_point_of_least_distance(weighted: bool) -> None:
    X = rows()
    weights = np.random.default_rng(1).integers(0, 4, len(X)).astype(float) if weighted else None
    found = geometric_median(X, weights, max_iter=1000, tol=1e-12)
    w = 1.0 if weights is None else weights
    exact = minimize(lambda m: cost(X, m, w), X.mean(axis=0), method="BFGS", options={"gtol": 1e-9}).x
    assert cost(X, found, w) <= cost(X, exact, w) * (1 + 1e-14)
    np.testing.assert_allclose(found, exact, rtol=0, atol=1e-5)
    assert cost(X, found, w) < cost(X, X.mean(axis=0), w)
    if weights is not None:
        repeated = np.repeat(X, weights.astype(int), axis=0)
        np.testing.assert_allclose(geometric_median(repeated, max_iter=1000, tol=1e-12), found, atol=1e-9)
        assert not np.allclose(geometric_median(X), found, atol=1e-4)


def test_iterations_are_weiszfelds() -> None:
    """As they are written: rows weighted by one over their distances, from the mean."""
    X = rows()
    guess = X.mean(axis=0)
    for count in range(6):
        np.testing.assert_allclose(geometric_median(X, max_iter=count, tol=0.0), guess, rtol=1e-13)
        weights = 1 / np.linalg.norm(X - guess, axis=1)
        guess = (weights[:, None] * X).sum(axis=0) / weights.sum()


def test_it_stops_where_steps_are_short(monkeypatch: pytest.MonkeyPatch) -> None:
    X = rows()
    step, lengths = median._step, list[float]()

    def counted(*args: Any) -> Any:
        moved, distance = step(*args)
        lengths.append(float(np.linalg.norm(moved)))
        return moved, distance

    monkeypatch.setattr(median, "_step", counted)
    geometric_median(X)
    assert lengths[-1] <= 1e-5 < min(lengths[:-1])
    assert len(lengths) < 100
    count = len(lengths)
    # In small units the last step is as short as in large ones.
    lengths.clear()
    np.testing.assert_allclose(1e8 * geometric_median(1e-8 * X), geometric_median(X), atol=1e-3)
    assert lengths[0] < 1e-5
    assert count - 15 < len(lengths)
    lengths.clear()
    geometric_median(X, max_iter=3, tol=0.0)
    assert len(lengths) == 3


def test_known_medians() -> None:
    # The middle one of three on a line; of four corners the point where the diagonals meet.
    line = np.array([[0.0, 0.0], [1.0, 2.0], [10.0, 20.0]])
    np.testing.assert_allclose(geometric_median(line, max_iter=10_000, tol=0.0), [1.0, 2.0], atol=1e-3)
    corners = np.array([[0.0, 0.0], [4.0, 4.0], [0.0, 3.0], [3.0, 0.0]])
    np.testing.assert_allclose(geometric_median(corners, max_iter=1000, tol=1e-13), [1.5, 1.5], atol=1e-9)
    # Fermat's point of a triangle with an angle of at least 120 degrees is that corner.
    flat = np.array([[0.0, 0.0], [5.0, 1.0], [-5.0, 1.0]])
    np.testing.assert_allclose(geometric_median(flat, max_iter=10_000, tol=0.0), [0.0, 0.0], atol=1e-3)
    np.testing.assert_array_equal(geometric_median(np.full((5, 3), 7.0)), 7.0)
    np.testing.assert_array_equal(geometric_median(np.array([[1.0, -2.0]])), [1.0, -2.0])


def test_an_estimate_that_is_a_row() -> None:
    """The first one, the mean: it stays where that is the median, and goes on where it is not."""
    star = np.array([[0.0, 0.0], [1.0, 0.0], [-1.0, 0.0], [0.0, 2.0], [0.0, -2.0]])
    np.testing.assert_array_equal(geometric_median(star), [0.0, 0.0])
    # The mean of these is their first row, and their median is nearer to the three.
    X = np.array([[0.0, 0.0], [-1.0, 0.1], [-1.0, -0.1], [-1.0, 0.0], [3.0, 0.0]])
    np.testing.assert_array_equal(X.mean(axis=0), X[0])
    found = geometric_median(X, max_iter=10_000, tol=1e-14)
    assert np.isfinite(found).all()
    assert cost(X, found) < cost(X, X[0]) - 0.1
    around = found + 1e-3 * np.random.default_rng(0).normal(size=(200, 2))
    assert min(cost(X, at) for at in around) > cost(X, found) - 1e-7
    # Rounding puts the mean beside that row and not on it.
    for shift in (1e-16, -3e-15, 1 / 3, 1e5):
        near = geometric_median(X + shift, max_iter=10_000, tol=1e-14)
        np.testing.assert_allclose(near - shift, found, atol=1e-6)
    # Heavy enough, the row itself is.
    np.testing.assert_array_equal(geometric_median(X, np.array([3.0, 1, 1, 1, 1])), X[0])


def test_rows_far_away_hardly_matter() -> None:
    X = rows(200)
    bad = X.copy()
    bad[:10] += 1e6
    assert np.linalg.norm(geometric_median(bad) - geometric_median(X)) < 2
    assert np.linalg.norm(bad.mean(axis=0) - X.mean(axis=0)) > 1e4


@pytest.mark.parametrize("dtype", ["float16", "float32", "int16"])
def test_any_dtype_and_pieces(dtype: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    X = rows().astype(dtype)
    expected = geometric_median(X.astype(np.float64))
    assert expected.dtype == np.float64
    np.testing.assert_array_equal(geometric_median(X), expected)
    np.save(tmp_path / "rows.npy", X)
    monkeypatch.setattr(median, "_ELEMENTS_AT_ONCE", 28)
    np.testing.assert_allclose(geometric_median(np.load(tmp_path / "rows.npy", mmap_mode="r")), expected, rtol=1e-12)


def test_bad_input() -> None:
    X = rows()
    for shape in ((0, 3), (3, 0), (4,)):
        with pytest.raises(ValueError, match=r"^X: expected a 2-D array"):
            geometric_median(np.zeros(shape))
    for value in (np.nan, np.inf):
        bad = X.copy()
        bad[17, 2] = value
        with pytest.raises(ValueError, match=r"^X: row 17 contains NaN or infinity"):
            geometric_median(bad)
        weights = np.ones(len(X))
        weights[17] = 0
        np.testing.assert_allclose(geometric_median(bad, weights), geometric_median(np.delete(X, 17, 0)), atol=1e-12)
    for weights in (np.ones(3), -np.ones(len(X)), np.zeros(len(X)), np.full(len(X), np.nan), np.full(len(X), np.inf)):
        with pytest.raises(ValueError, match=r"^sample_weight: expected 60 numbers >= 0, not all of them 0"):
            geometric_median(X, weights)
    with np.errstate(all="ignore"), pytest.raises(ValueError, match=r"^X: its rows are too large for their distances"):
        geometric_median(np.full((60, 2), 1e308) * np.sign(X[:, :2]))
    with pytest.raises(ValueError, match=r"^max_iter: expected an integer >= 0"):
        geometric_median(X, max_iter=-1)
    with pytest.raises(ValueError, match=r"^tol: expected a number"):
        geometric_median(X, tol=-1.0)
