"""Scales of the lengths of rows: what the libraries for activations of language models offer."""

from __future__ import annotations

import copy
import math
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fastsae
from fastsae import SparseAutoencoder, VariationalAutoencoder, check_gradient, scaling, stores
from fastsae.scaling import COLUMN_SCALES, ROW_SCALES, SCALES, Scaler

N, D = 70, 6
LENGTHS = ("mean_norm", "mean_square_norm")
SMALL: dict[str, Any] = {"max_epochs": 3, "batch_size": 16, "random_state": 0, "verbose": False, "n_hidden": 4}


class Everything(SparseAutoencoder):
    """One that takes every scale."""

    _scales = SCALES


def data(n: int = N, seed: int = 0, dtype: Any = np.float64) -> np.ndarray:
    """Rows of very different lengths; the fourth is 0 and the fifth constant."""
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n, D)) * np.exp(rng.normal(0, 2, (n, 1))) + 0.1
    X[3], X[4] = 0.0, 2.5
    return X.astype(dtype)


def by_hand(kind: str, X: np.ndarray, fit_on: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scaled rows, center and scale, in the words of the libraries."""
    X = X.astype(np.float64)
    lengths = np.sqrt((X**2).sum(axis=1, keepdims=True))
    trained = np.sqrt(((X if fit_on is None else fit_on).astype(np.float64) ** 2).sum(axis=1))
    center: Any = 0.0
    scale: Any
    if kind == "mean_norm":
        scale = trained.mean() / math.sqrt(D)
    elif kind == "mean_square_norm":
        scale = math.sqrt((trained**2).mean())
    elif kind == "row_norm":
        scale = np.where(lengths == 0, 1.0, lengths / math.sqrt(D))
    else:
        center = X.mean(axis=1, keepdims=True)
        scale = np.sqrt(((X - center) ** 2).sum(axis=1, keepdims=True) / (D - 1)) + 1e-5
    return (X - center) / scale, center, scale


def make(kind: str | None, **options: Any) -> SparseAutoencoder:
    model = Everything if kind in ROW_SCALES else SparseAutoencoder
    return model(**{"scale": kind, "output_activation": "identity", **SMALL, **options})


def state(model: Any) -> list[bytes]:
    return [model._engine.get(name).tobytes() for name in model._engine.state_names()]


# --- statistics ---


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "int16", "bool"])
@pytest.mark.parametrize("kind", [*LENGTHS, *ROW_SCALES])
def test_formula(kind: str, dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    X = data().clip(-300, 300).astype(dtype)
    other = data(20, seed=1).clip(-300, 300).astype(dtype)
    expected, _, _ = by_hand(kind, other, fit_on=X)
    for at_once in (1 << 22, 7 * D):
        monkeypatch.setattr(scaling, "_ELEMENTS_AT_ONCE", at_once)
        monkeypatch.setattr(scaling, "_ELEMENTS_IN_CACHE", at_once)
        scaler = Scaler.fit(kind, X)
        assert scaler.center.shape == scaler.scale.shape == (D,)
        np.testing.assert_allclose(scaler.transform(other, "float64"), expected, rtol=1e-12, atol=1e-12)
        np.testing.assert_array_equal(
            scaler.transform(other, "float32"), scaler.transform(other, "float64").astype("f")
        )


def test_lengths_are_those_that_the_names_say() -> None:
    X = data()
    lengths = {kind: np.linalg.norm(Scaler.fit(kind, X).transform(X, "float64"), axis=1) for kind in SCALES}
    assert lengths["mean_norm"].mean() == pytest.approx(math.sqrt(D), rel=1e-12)
    assert (lengths["mean_square_norm"] ** 2).mean() == pytest.approx(1.0, rel=1e-12)
    some = np.arange(N) != 3
    np.testing.assert_allclose(lengths["row_norm"][some], math.sqrt(D), rtol=1e-12)
    assert lengths["row_norm"][3] == lengths["layer_norm"][3] == lengths["layer_norm"][4] == 0
    rows = Scaler.fit("layer_norm", X).transform(X, "float64")
    np.testing.assert_allclose(rows.mean(axis=1), 0, atol=1e-12)


@pytest.mark.parametrize("kind", LENGTHS)
def test_weights_count_as_repeated_rows(kind: str) -> None:
    X, weights = data(), np.random.default_rng(1).integers(0, 4, N)
    weighted = Scaler.fit(kind, X, weights.astype(float))
    repeated = Scaler.fit(kind, np.repeat(X, weights, axis=0))
    np.testing.assert_allclose(weighted.scale, repeated.scale, rtol=1e-12)
    assert not np.array_equal(weighted.scale, Scaler.fit(kind, X).scale)
    model = make(kind).fit(X, sample_weight=weights)
    np.testing.assert_array_equal(model.scale_, weighted.scale)
    np.testing.assert_array_equal(model.center_, 0.0)


@pytest.mark.parametrize("kind", SCALES)
def test_rows_of_nothing_stay(kind: str) -> None:
    X = np.zeros((5, D))
    scaler = Scaler.fit(kind, X)
    rows = scaler.transform_finite(X, "float32")
    np.testing.assert_array_equal(rows, 0)
    rows += 1
    scaler.invert(rows, X)
    assert np.isfinite(rows).all()
    if kind != "layer_norm":
        np.testing.assert_array_equal(rows, 1)


# --- everything is that of a model of scaled rows, in X's units ---


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("kind", [*LENGTHS, *ROW_SCALES])
def test_everything_is_as_if_scaled_by_hand(kind: str, dtype: str) -> None:
    X, other = data(), data(40, seed=1)
    model = make(kind, dtype=dtype).fit(X)
    rows, new = (by_hand(kind, one, fit_on=X)[0].astype(dtype) for one in (X, other))
    scaler = model._scaler
    assert scaler is not None
    tight = {"rtol": 1e-6, "atol": 1e-7} if dtype == "float32" else {"rtol": 1e-12, "atol": 1e-12}
    np.testing.assert_allclose(scaler.transform(X, dtype), rows, **tight)
    rows, new = scaler.transform(X, dtype), scaler.transform(other, dtype)
    plain = make(None, dtype=dtype).fit(rows)
    assert state(model) == state(plain)
    assert model.history_ == plain.history_
    np.testing.assert_array_equal(model.transform(other), plain.transform(new))
    np.testing.assert_array_equal(model.score_samples(other), plain.score_samples(new))
    _, center, scale = by_hand(kind, other, fit_on=X)
    back = model.reconstruct(other)
    np.testing.assert_allclose(back, plain.reconstruct(new) * scale + center, **tight)
    out = np.empty((40, D), dtype)
    assert model.reconstruct(other, out=out) is out
    np.testing.assert_array_equal(out, back)
    if kind in COLUMN_SCALES:
        np.testing.assert_array_equal(model.inverse_transform(model.transform(other)), back)


@pytest.mark.parametrize("kind", SCALES)
def test_scaling_and_back_is_nothing(kind: str) -> None:
    X = data()
    X[5] *= 1e6
    scaler = Scaler.fit(kind, X)
    rows = scaler.transform(X, "float64")
    scaler.invert(rows, X)
    np.testing.assert_allclose(rows, X, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("kind", ROW_SCALES)
def test_a_code_alone_does_not_tell_the_length_of_its_row(kind: str) -> None:
    X = data()
    model = make(kind).fit(X)
    with pytest.raises(ValueError, match=f"^scale='{kind}' is undone with the lengths of the rows of X"):
        model.inverse_transform(model.transform(X))
    # No scale of X as a whole is left: rows of any length have the code of the same direction.
    if kind == "row_norm":
        some = np.arange(N) != 3
        np.testing.assert_allclose(model.transform(1e3 * X)[some], model.transform(X)[some], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", ROW_SCALES)
def test_others_refuse_scales_of_rows(kind: str) -> None:
    for model in (SparseAutoencoder(**SMALL), VariationalAutoencoder(2, verbose=False)):
        model.set_params(scale=kind)
        for call in (model.fit, model.partial_fit):
            with pytest.raises(ValueError, match=r"^scale: expected one of 'zscore', 'minmax', 'mean_norm', .*got"):
                call(data())


def test_bounded_outputs_do_not_reach_them() -> None:
    for kind in LENGTHS:
        with pytest.raises(ValueError, match=f"^scale='{kind}' gives numbers of any sign and size.*'sigmoid'"):
            make(kind, output_activation="sigmoid").fit(data())


def test_layer_norm_needs_two_columns() -> None:
    with pytest.raises(ValueError, match=r"^scale: 'layer_norm' of a single column is always 0"):
        Scaler.fit("layer_norm", np.ones((4, 1)))
    assert Scaler.fit("row_norm", np.ones((4, 1))).transform(np.array([[-3.0]]), "float64") == -1.0


# --- pieces, memory maps, files ---


@pytest.mark.parametrize("kind", [*LENGTHS, *ROW_SCALES])
def test_rows_held_at_once_and_rows_scaled_in_pieces_give_the_same(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    X = data(300)
    held = make(kind).fit(X)
    results = [held.transform(X), held.reconstruct(X), held.score_samples(X)]
    np.save(tmp_path / "rows.npy", X)
    mapped = np.load(tmp_path / "rows.npy", mmap_mode="r")
    monkeypatch.setattr(stores, "_BYTES_IN_MEMORY", 1000)
    monkeypatch.setattr(stores, "_ROWS_AT_ONCE", 64)
    for rows in (X, mapped, np.asfortranarray(X)):
        model = make(kind).fit(rows)
        assert state(model) == state(held)
        for method, expected in zip((model.transform, model.reconstruct, model.score_samples), results, strict=True):
            np.testing.assert_array_equal(method(rows), expected)


@pytest.mark.parametrize("kind", [*LENGTHS, *ROW_SCALES])
def test_copies_and_resume(kind: str, tmp_path: Path) -> None:
    X, other = data(), data(20, seed=3)
    whole = make(kind, max_epochs=4).fit(X)
    half = make(kind, max_epochs=2).fit(X)
    copies = [pickle.loads(pickle.dumps(half)), copy.deepcopy(half)]
    if kind in LENGTHS:
        half.save(tmp_path / "half")
        copies.append(fastsae.load(tmp_path / "half"))
    for model in copies:
        np.testing.assert_array_equal(model.scale_, half.scale_)
        np.testing.assert_array_equal(model.reconstruct(other), half.reconstruct(other))
        assert state(model.set_params(max_epochs=4).resume(X)) == state(whole)


@pytest.mark.parametrize("kind", LENGTHS)
def test_densities_of_a_variational_model_are_those_of_x(kind: str) -> None:
    X = data()
    options: dict[str, Any] = {"hidden": (4,), "likelihood": "gaussian", "max_epochs": 2, "random_state": 0}
    model = VariationalAutoencoder(2, scale=kind, verbose=False, **options).fit(X)
    scale = float(model.scale_[0])
    plain = VariationalAutoencoder(2, verbose=False, **options).fit(model._scaler.transform(X, "float32"))
    there = plain.score_samples(model._scaler.transform(X, "float32"))
    np.testing.assert_allclose(model.score_samples(X), there - D * math.log(scale), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("kind", [*LENGTHS, *ROW_SCALES])
def test_the_gradient_check_scales_too(kind: str) -> None:
    X = data(20)
    assert check_gradient(make(kind, dtype="float64").fit(X), X) < 1e-9


# --- what cannot be scaled ---


@pytest.mark.parametrize("kind", [*LENGTHS, *ROW_SCALES])
def test_rows_that_cannot_be_scaled(kind: str, tmp_path: Path) -> None:
    X = data()
    model = make(kind, dtype="float64").fit(X)
    far = data(40)
    far[23] = [1e300, -1e300] * (D // 2)
    if kind in ROW_SCALES:
        for method in (model.transform, model.reconstruct, model.score_samples):
            with pytest.raises(ValueError, match=r"^X: row 23 is too large to be scaled"):
                method(far)
        with pytest.raises(ValueError, match=r"^X: row 23 contains NaN or infinity"):
            make(kind, dtype="float64").fit(far)
    else:
        with pytest.raises(ValueError, match=f"^X: its rows are too large for scale='{kind}'"):
            Scaler.fit(kind, np.full((3, D), 1e308))
        model = make(kind).fit(X)
        with pytest.raises(ValueError, match=r"^X: row 23 is too far from the training rows for float32"):
            model.transform(far)
    rows = data()
    rows[7, 1] = np.nan
    np.save(tmp_path / "rows.npy", rows)
    mapped = np.load(tmp_path / "rows.npy", mmap_mode="r")
    with pytest.raises(ValueError, match=r"^X: row 7 contains NaN"):
        make(kind, batch_size=None).fit(mapped)


@pytest.mark.parametrize("kind", LENGTHS)
def test_rows_of_nan_alone(kind: str) -> None:
    with pytest.raises(ValueError, match=f"^X: its rows are too large for scale='{kind}', or all of them hold NaN"):
        Scaler.fit(kind, np.full((3, D), np.nan))
