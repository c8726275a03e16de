"""Scaling of the input: its statistics, what the model sees, and that everything that comes out is inverted."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file
from scipy import stats
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV
from sklearn.preprocessing import MinMaxScaler, StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks
from test_estimator import EXPECTED_FAILURES

import fastsae
from fastsae import (
    AnomalyDetector,
    ContractiveAutoencoder,
    ConvAutoencoder,
    DeepAutoencoder,
    DenoisingAutoencoder,
    Engine,
    SparseAutoencoder,
    StackedClassifier,
    VariationalAutoencoder,
    check_gradient,
    scaling,
    stores,
)
from fastsae.scaling import Scaler

N, D = 90, 6
SCALERS = {"zscore": StandardScaler, "minmax": MinMaxScaler}
OUTPUT = {"zscore": "identity", "minmax": "sigmoid"}
SMALL: dict[str, Any] = {"max_epochs": 3, "batch_size": 16, "random_state": 0, "verbose": False}


def data(n: int = N, seed: int = 0, dtype: Any = np.float64) -> np.ndarray:
    """Columns of very different place and size; the third is constant."""
    X = np.random.default_rng(seed).normal(size=(n, D)) * [1, 1e-3, 0, 300, 5, 1] + [0, 1, 7, -1000, 1e4, 0.5]
    return X.astype(dtype)


def make(kind: str | None, **options: Any) -> SparseAutoencoder:
    output = {"output_activation": OUTPUT.get(str(kind), "identity")}
    return SparseAutoencoder(**{"n_hidden": 4, "scale": kind, **output, **SMALL, **options})


def by_hand(kind: str, X: np.ndarray, sample_weight: Any = None, fit_on: Any = None) -> tuple[np.ndarray, Any]:
    """Rows as scikit-learn scales them, in float64, and the scaler."""
    rows = X if fit_on is None else fit_on
    weights = {"sample_weight": sample_weight} if kind == "zscore" and sample_weight is not None else {}
    scaler = SCALERS[kind]().fit(rows.astype(np.float64), **weights)
    return scaler.transform(X.astype(np.float64)), scaler


def state(model: Any) -> list[bytes]:
    return [model._engine.get(name).tobytes() for name in model._engine.state_names()]


# --- statistics ---


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "int16", "uint8", "bool"])
@pytest.mark.parametrize("kind", SCALERS)
def test_statistics_are_those_of_scikit_learn(kind: str, dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    X = data().clip(-300, 255).astype(dtype)
    scaled, scaler = by_hand(kind, X)
    for at_once in (1 << 22, 7 * D):
        monkeypatch.setattr(scaling, "_ELEMENTS_AT_ONCE", at_once)
        model = make(kind).fit(X)
        assert model.center_.dtype == model.scale_.dtype == np.float64
        center, spread = (scaler.mean_, scaler.scale_) if kind == "zscore" else (scaler.data_min_, 1 / scaler.scale_)
        np.testing.assert_allclose(model.center_, center, rtol=1e-12, atol=1e-12)
        np.testing.assert_allclose(model.scale_, spread, rtol=1e-12)
        np.testing.assert_allclose(model._scaler.transform(X, "float64"), scaled, rtol=0, atol=1e-9)
    constant = np.ptp(X.astype(float), axis=0) == 0
    assert constant[2]
    np.testing.assert_array_equal(model.scale_[constant], 1.0)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_minmax_stays_in_the_unit_interval(dtype: str) -> None:
    """To the last bit, so that the cross-entropy takes it."""
    X = np.random.default_rng(0).normal(size=(2000, 50)) * np.logspace(-30, 30, 50)
    rows = Scaler.fit("minmax", X).transform(X, dtype)
    assert rows.min() == 0
    assert rows.max() == 1
    make("minmax", loss="cross_entropy", dtype=dtype, max_epochs=1).fit(X)


@pytest.mark.parametrize("kind", SCALERS)
def test_weights_count_as_repeated_rows(kind: str) -> None:
    X, weights = data(), np.random.default_rng(1).integers(0, 4, N)
    weights[np.abs(X[:, 0]).argmax()] = 0  # the farthest row is not there
    weighted = Scaler.fit(kind, X, weights.astype(float))
    repeated = Scaler.fit(kind, np.repeat(X, weights, axis=0))
    np.testing.assert_allclose(weighted.center, repeated.center, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(weighted.scale, repeated.scale, rtol=1e-10)
    model = make(kind).fit(X, sample_weight=weights)
    np.testing.assert_array_equal(model.center_, weighted.center)
    np.testing.assert_array_equal(model.scale_, weighted.scale)
    assert not np.array_equal(model.scale_, make(kind).fit(X).scale_)
    if kind == "zscore":
        _, scaler = by_hand(kind, X, sample_weight=weights)
        np.testing.assert_allclose(model.scale_, scaler.scale_, rtol=1e-12)


def test_without_scaling_there_are_none() -> None:
    model = SparseAutoencoder(n_hidden=3, **SMALL)
    for name in ("center_", "scale_"):
        assert not hasattr(model, name)
    model.fit(np.random.default_rng(0).random((20, 3)))
    assert model.center_ is None
    assert model.scale_ is None


# --- everything is that of a model of scaled rows, in X's units ---


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("kind", SCALERS)
def test_everything_is_as_if_scaled_by_hand(kind: str, dtype: str) -> None:
    X, other = data(), data(40, seed=1)
    model = make(kind, dtype=dtype).fit(X)
    scaler = model._scaler
    rows, new = (scaler.transform(one, dtype) for one in (X, other))
    np.testing.assert_allclose(rows, by_hand(kind, X)[0], rtol=0, atol=1e-6 if dtype == "float32" else 1e-12)
    plain = make(None, dtype=dtype, output_activation=OUTPUT[kind]).fit(rows)
    assert state(model) == state(plain)
    assert model.history_ == plain.history_
    codes = plain.transform(new)
    np.testing.assert_array_equal(model.transform(other), codes)
    np.testing.assert_array_equal(model.score_samples(other), plain.score_samples(new))
    assert model.score(other) == plain.score(new)
    np.testing.assert_array_equal(model.jacobian_norm(other), plain.jacobian_norm(new))
    back = (plain.reconstruct(new) * model.scale_ + model.center_).astype(dtype)
    np.testing.assert_array_equal(model.reconstruct(other), back)
    np.testing.assert_array_equal(model.inverse_transform(codes), back)
    np.testing.assert_array_equal(make(kind, dtype=dtype).fit_transform(X), model.transform(X))
    # Memory of the caller.
    for method, argument, width in (
        ("transform", other, 4),
        ("reconstruct", other, D),
        ("inverse_transform", codes, D),
    ):
        out = np.empty((40, width), dtype)
        assert getattr(model, method)(argument, out=out) is out
        np.testing.assert_array_equal(out, getattr(model, method)(argument))
        with pytest.raises(ValueError, match=r"^out: expected"):
            getattr(model, method)(argument, out=np.empty((39, width), dtype))


@pytest.mark.parametrize("kind", SCALERS)
@pytest.mark.parametrize("solver", ["adam", "lbfgs"])
@pytest.mark.parametrize("extra", [{}, {"validation_fraction": 0.2, "early_stopping": True}, {"batch_size": None}])
def test_every_way_of_training_sees_scaled_rows(extra: dict[str, Any], solver: str, kind: str) -> None:
    X, weights = data(), np.random.default_rng(2).uniform(0.5, 2, N)
    model = make(kind, solver=solver, **extra).fit(X, sample_weight=weights)
    plain = make(None, solver=solver, output_activation=OUTPUT[kind], **extra)
    assert state(model) == state(plain.fit(model._scaler.transform(X, "float32"), sample_weight=weights))
    assert model.history_ == plain.history_


@pytest.mark.parametrize("kind", SCALERS)
def test_reconstructions_are_near_to_x(kind: str) -> None:
    """In X's units, column by column, whatever their size."""
    X = np.random.default_rng(0).normal(size=(400, 2)) @ np.random.default_rng(1).normal(size=(2, D))
    X = X * [1, 1e-3, 2, 300, 5, 1] + [0, 1, 7, -1000, 1e4, 0.5]
    options = {"activation": "identity", "output_activation": "identity", "penalty": "none", "weight_decay": 0.0}
    model = make(kind, n_hidden=2, solver="lbfgs", max_epochs=300, dtype="float64", **options).fit(X)
    error = np.abs(model.reconstruct(X) - X).max(axis=0)
    assert (error < 1e-3 * X.std(axis=0)).all()


def test_rows_held_at_once_and_rows_scaled_in_pieces_give_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A memory map, frames, lists, Fortran order, and more rows than are scaled at once."""
    X = data(300)
    held = make("zscore").fit(X)
    results = [held.transform(X), held.reconstruct(X), held.score_samples(X)]
    path = tmp_path / "rows.npy"
    np.save(path, X)
    mapped = np.load(path, mmap_mode="r")
    forms = (mapped, np.asfortranarray(X), X.tolist(), pd.DataFrame(X))
    monkeypatch.setattr(stores, "_BYTES_IN_MEMORY", 1000)
    for rows in (X, *forms):
        model = make("zscore").fit(rows)
        assert state(model) == state(held)
        for method, expected in zip((model.transform, model.reconstruct, model.score_samples), results, strict=True):
            np.testing.assert_array_equal(method(rows), expected)
    calls: list[int] = []
    transform = Scaler.transform
    monkeypatch.setattr(
        Scaler, "transform", lambda self, rows, dtype: (calls.append(len(rows)), transform(self, rows, dtype))[1]
    )
    monkeypatch.setattr(stores, "_ROWS_AT_ONCE", 128)
    np.testing.assert_array_equal(held.transform(mapped), results[0])
    assert calls == [128, 128, 44]
    calls.clear()
    monkeypatch.setattr(fastsae.trainer, "_MOST_BATCHES_PER_PIECE", 4)
    make("zscore", max_epochs=1).fit(mapped)
    assert max(calls) == 64
    assert sum(calls) == 300


def test_inference_does_not_change_x() -> None:
    X = data()
    before = X.copy()
    model = make("zscore", dtype="float64").fit(X)
    codes = model.transform(X)
    kept = codes.copy()
    model.reconstruct(X), model.score_samples(X), model.inverse_transform(codes)
    np.testing.assert_array_equal(X, before)
    np.testing.assert_array_equal(codes, kept)


# --- partial_fit, resume, files ---


@pytest.mark.parametrize("kind", SCALERS)
def test_partial_fit_freezes_the_statistics_of_the_first_call(kind: str) -> None:
    X = data()
    model = make(kind).partial_fit(X[:30])
    first = Scaler.fit(kind, X[:30])
    plain = make(None, output_activation=OUTPUT[kind]).partial_fit(first.transform(X[:30], "float32"))
    for rows in (X[30:60], X[60:]):
        model.partial_fit(rows)
        plain.partial_fit(first.transform(rows, "float32"))
        np.testing.assert_array_equal(model.center_, first.center)
        np.testing.assert_array_equal(model.scale_, first.scale)
    assert state(model) == state(plain)
    assert state(make(kind, max_epochs=1).fit(X)) == state(make(kind).partial_fit(X))


@pytest.mark.parametrize("kind", SCALERS)
def test_files_and_copies_keep_them(kind: str, tmp_path: Path) -> None:
    X, other = data(), data(20, seed=3)
    whole = make(kind, max_epochs=4).fit(X)
    half = make(kind, max_epochs=2).fit(X)
    half.save(tmp_path / "half")
    expected = half.reconstruct(other)
    loaded = fastsae.load(tmp_path / "half")
    for model in (loaded, pickle.loads(pickle.dumps(half)), copy.deepcopy(half)):
        assert model.scale == kind
        np.testing.assert_array_equal(model.center_, half.center_)
        np.testing.assert_array_equal(model.scale_, half.scale_)
        np.testing.assert_array_equal(model.reconstruct(other), expected)
        assert state(model.set_params(max_epochs=4).resume(X)) == state(whole)
    assert not hasattr(clone(half), "scale_")
    assert clone(half).scale == kind


def test_damaged_statistics_are_refused(tmp_path: Path) -> None:
    make("zscore").fit(data()).save(tmp_path / "model")
    with safe_open(tmp_path / "model", framework="numpy") as file:
        metadata = file.metadata()
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    center, scale = "scaler.center", "scaler.scale"
    damages: list[tuple[dict[str, Any], dict[str, str], str]] = [
        ({scale: np.zeros(D)}, {}, "positive"),
        ({scale: -np.ones(D)}, {}, "positive"),
        ({center: np.full(D, np.nan)}, {}, "NaN"),
        ({center: np.zeros(D + 1)}, {}, "expected float64"),
        ({center: np.zeros(D, np.float32)}, {}, "expected float64"),
        ({center: None}, {}, "missing"),
        ({}, {"scale": '"other"'}, "scale"),
        ({}, {"scale": '""'}, "unknown"),
        ({}, {"scale": "3"}, "scale"),
    ]
    for changed, header, text in damages:
        kept = {name: value for name, value in {**tensors, **changed}.items() if value is not None}
        save_file(kept, tmp_path / "bad", {**metadata, **header})
        with pytest.raises(ValueError, match=f"not a usable fastsae checkpoint.*{text}"):
            fastsae.load(tmp_path / "bad")


@pytest.mark.parametrize(("before", "after"), [("zscore", "minmax"), ("zscore", None), (None, "minmax")])
def test_another_scale_is_refused(before: str | None, after: str | None) -> None:
    X = np.random.default_rng(0).random((40, 3))
    model = make(before, output_activation="identity").fit(X)
    kept, expected = state(model), model.reconstruct(X)
    model.set_params(scale=after)
    for call in (model.partial_fit, model.set_params(max_epochs=9).resume):
        with pytest.raises(
            ValueError, match=f"^scale: expected {before!r}, with which the training began, got {after!r}"
        ):
            call(X)
    assert state(model) == kept
    np.testing.assert_array_equal(model.reconstruct(X), expected)  # with what it was fitted with
    model.fit(X)
    assert (model.scale_ is None) == (after is None)


def test_a_failing_fit_keeps_the_statistics() -> None:
    X = data()
    model = make("zscore").fit(X)
    kept, expected = model.center_, model.reconstruct(X)
    for bad in ({"rho": 2}, {"loss": "cross_entropy", "output_activation": "sigmoid"}):
        changed = copy.deepcopy(model).set_params(**bad)
        with pytest.raises(ValueError):
            changed.fit(X + 1)
        np.testing.assert_array_equal(changed.center_, kept)
        np.testing.assert_array_equal(changed.reconstruct(X), expected)


# --- what cannot be scaled ---


def test_a_sigmoid_does_not_reach_standardised_rows() -> None:
    for output in ("sigmoid", "tanh", "relu", "softplus"):
        with pytest.raises(ValueError, match=f"^scale='zscore' gives numbers of any sign and size.*{output!r}"):
            make("zscore", output_activation=output).fit(data())
    make("minmax", output_activation="sigmoid").fit(data())
    DeepAutoencoder((3,), scale="minmax", **SMALL).fit(data())


def test_rows_too_far_away() -> None:
    X = data()
    for kind in SCALERS:
        model = make(kind).fit(X)
        far = data(40)
        far[23, 1] = 1e37
        for method in (model.transform, model.reconstruct, model.score_samples, model.score, model.jacobian_norm):
            with pytest.raises(ValueError, match=r"^X: row 23 is too far from the training rows for float32"):
                method(far)
        before = state(model)
        with pytest.raises(ValueError, match=r"^X: row 23 contains NaN, infinity or a number too large for float32"):
            model.partial_fit(far)
        assert state(model) == before
        assert np.isfinite(make(kind, dtype="float64").fit(X).transform(far)).all()


@pytest.mark.parametrize("kind", SCALERS)
def test_columns_that_cannot_be_scaled(kind: str, tmp_path: Path) -> None:
    X = data()
    X[::2, 4], X[1::2, 4] = 1e308, -1e308
    with np.errstate(all="ignore"), pytest.raises(ValueError, match=r"^X: column 4 is too large to be scaled"):
        make(kind, dtype="float64").fit(X)
    # A memory map is not searched for NaN before: the statistics leave it out, and the step that meets it raises.
    rows = data()
    rows[7, 1] = np.nan
    np.save(tmp_path / "rows.npy", rows)
    mapped = np.load(tmp_path / "rows.npy", mmap_mode="r")
    with pytest.raises(ValueError, match=r"^X: row 7 contains NaN"):
        make(kind, batch_size=None).fit(mapped)


class Elsewhere:
    """A tensor of a GPU."""

    shape = (N, D)

    def __dlpack__(self, **options: Any) -> Any:
        raise BufferError("on a GPU")

    def __dlpack_device__(self) -> tuple[int, int]:
        return 2, 0


def test_tensors_of_a_device_are_refused() -> None:
    """Statistics and scaling are computed on the host; nothing is copied there unasked."""
    X = data(dtype=np.float32)
    model = make("zscore").fit(X)
    held = model._engine.hold(X)
    for rows in (held, Elsewhere()):
        for call in (make("zscore").fit, make("zscore").partial_fit, model.transform, model.reconstruct, model.score):
            with pytest.raises(ValueError, match=r"^X: scale='zscore' needs numbers in host memory, got"):
                call(rows)
    with pytest.raises(ValueError, match=r"^sample_weight: scale='zscore' needs numbers in host memory"):
        make("zscore").fit(X, sample_weight=Elsewhere())
    codes = Engine(model._engine.config).hold(np.zeros((5, D), np.float32))
    with pytest.raises(ValueError, match=r"^H: "):
        model.inverse_transform(codes)


# --- every estimator ---


def test_denoising_and_contraction_see_scaled_rows() -> None:
    X = data()
    for kind in (DenoisingAutoencoder, ContractiveAutoencoder):
        options = {"n_hidden": 4, "output_activation": "identity", **SMALL}
        model = kind(scale="zscore", **options).fit(X)
        assert state(model) == state(kind(**options).fit(model._scaler.transform(X, "float32")))


@pytest.mark.parametrize("kind", SCALERS)
def test_deep(kind: str, tmp_path: Path) -> None:
    X = data()
    options = {"hidden": (5, 3), "pretrain_epochs": 2, "output_activation": OUTPUT[kind], **SMALL}
    model = DeepAutoencoder(scale=kind, **options).fit(X)
    rows = model._scaler.transform(X, "float32")
    plain = DeepAutoencoder(**options).fit(rows)
    assert state(model) == state(plain)
    assert model.pretrain_history_ == plain.pretrain_history_
    np.testing.assert_array_equal(
        model.reconstruct(X), (plain.reconstruct(rows) * model.scale_ + model.center_).astype(np.float32)
    )

    # Interrupted in the pretraining of the second layer.
    def stop(entry: dict[str, float]) -> None:
        if entry.get("layer") == 2:
            raise KeyboardInterrupt

    path = tmp_path / "deep"
    with pytest.raises(KeyboardInterrupt):
        DeepAutoencoder(scale=kind, checkpoint=path, callback=stop, **options).fit(X)
    assert state(fastsae.load(path).resume(X)) == state(model)
    single = make(kind).fit(X)
    with pytest.raises(ValueError, match=r"^layers\[0\]: expected scale=None"):
        DeepAutoencoder.from_layers([single])
    with pytest.raises(ValueError, match="scale: expected None, as the layers saw their rows"):
        DeepAutoencoder.from_layers([single], scale="zscore")


@pytest.mark.parametrize("kind", SCALERS)
def test_stacked(kind: str, tmp_path: Path) -> None:
    X = data()
    y = np.where(X[:, 0] > 0, "right", "left")
    options = {"head_epochs": 3, **SMALL}
    inside = SparseAutoencoder(n_hidden=5, output_activation="identity", **SMALL)
    model = StackedClassifier(inside, scale=kind, **options).fit(X, y)
    rows = model._scaler.transform(X, "float32")
    plain = StackedClassifier(inside, **options).fit(rows, y)
    assert state(model) == state(plain)
    np.testing.assert_array_equal(model.predict_proba(X), plain.predict_proba(rows))
    np.testing.assert_array_equal(model.predict(X), plain.predict(rows))
    model.save(tmp_path / "model")
    np.testing.assert_array_equal(fastsae.load(tmp_path / "model").predict_proba(X), model.predict_proba(X))
    with pytest.raises(ValueError, match=r"^autoencoder: expected one with scale=None"):
        StackedClassifier(make("minmax"), **options).fit(X, y)
    with pytest.raises(ValueError, match=r"^autoencoder: expected one with scale=None"):
        StackedClassifier(make("minmax").fit(X).set_params(scale=None), **options).fit(X, y)
    with pytest.raises(ValueError, match="scale: expected None with an autoencoder that is fitted already"):
        StackedClassifier(make(None).fit(X), **{**options, "scale": "minmax"}).fit(X, y)


def test_images() -> None:
    X = np.random.default_rng(0).normal(5, 3, (40, 2, 5, 4)).astype(np.float32)
    options = {"channels": (3,), "output_activation": "identity", **SMALL}
    model = ConvAutoencoder(scale="zscore", **options).fit(X)
    rows = model._scaler.transform(X.reshape(40, 40), "float32").reshape(X.shape)
    plain = ConvAutoencoder(**options).fit(rows)
    assert state(model) == state(plain)
    out = model.reconstruct(X)
    assert out.shape == X.shape
    expected = plain.reconstruct(rows).reshape(40, 40) * model.scale_ + model.center_
    np.testing.assert_array_equal(out.reshape(40, 40), expected.astype(np.float32))
    np.testing.assert_array_equal(model.inverse_transform(model.transform(X)), out)
    np.testing.assert_array_equal(model.reconstruct(X, out=np.empty_like(X)), out)


def test_variational_densities_are_those_of_x() -> None:
    """A linear model without noise in its code: log p(x) of a normal distribution, which SciPy has, in X's units."""
    X = np.random.default_rng(0).normal(size=(500, 3)) * [1, 0.1, 5] + [0, 5, -100]
    vae = VariationalAutoencoder(
        1, hidden=(), likelihood="gaussian", noise_std=0.5, scale="zscore", dtype="float64", **SMALL
    ).fit(X)
    decoder, bias = vae._engine.get("W2"), vae._engine.get("b2")
    covariance = decoder @ decoder.T + 0.25 * np.eye(3)
    exact = stats.multivariate_normal(bias * vae.scale_ + vae.center_, covariance * np.outer(vae.scale_, vae.scale_))
    estimate = vae.log_likelihood(X[:50], 3000)
    np.testing.assert_allclose(estimate, exact.logpdf(X[:50]), atol=0.05)
    assert (vae.score_samples(X[:50]).mean() < estimate.mean()).all()
    samples = vae.sample(2000, random_state=0)
    np.testing.assert_allclose(samples.mean(axis=0), bias * vae.scale_ + vae.center_, atol=0.1 * X.std(axis=0).max())


def test_variational_bernoulli_takes_minmax() -> None:
    X = data()
    vae = VariationalAutoencoder(2, hidden=(4,), scale="minmax", **SMALL).fit(X)
    assert np.isfinite(vae.score_samples(X)).all()
    outside = X.copy()
    outside[:, 0] += 1000
    with pytest.raises(ValueError, match=r"^X: likelihood='bernoulli' needs numbers in \[0, 1\], after scaling"):
        vae.score_samples(outside)
    with pytest.raises(ValueError, match=r"^X: loss='cross_entropy' needs numbers in \[0, 1\], got them from 0"):
        vae.partial_fit(outside)


def test_anomaly_detector(tmp_path: Path) -> None:
    """Its own scaling, and that of its autoencoder: the errors are in the detector's units."""
    X = data()
    options = {"n_hidden": 3, **SMALL}
    sigmoid = SparseAutoencoder(scale="minmax", **options)
    detector = AnomalyDetector(sigmoid, contamination=0.1).fit(X)
    detector.save(tmp_path / "detector")
    loaded = fastsae.load(tmp_path / "detector")
    np.testing.assert_array_equal(loaded.score_samples(X), detector.score_samples(X))
    rows = Scaler.fit("zscore", X).transform(X, "float32")
    errors = (detector.autoencoder_.reconstruct(rows).astype(float) - rows) ** 2
    np.testing.assert_array_equal(-detector.score_samples(X), errors.mean(axis=1))
    with pytest.raises(ValueError, match="scale='minmax' of the autoencoder"):
        AnomalyDetector(SparseAutoencoder(**options)).fit(X)
    alone = AnomalyDetector(make("zscore"), scale=False, contamination=0.1).fit(X)
    np.testing.assert_allclose(
        -alone.score_samples(X),
        ((alone.autoencoder_.reconstruct(X.astype(np.float32)) - X.astype(np.float32)) ** 2).mean(axis=1),
        rtol=1e-3,
    )


def test_the_gradient_check_scales_too() -> None:
    X = data(20)
    model = make("zscore", dtype="float64").fit(X)
    assert check_gradient(model, X) < 1e-9


def test_pipelines_grids_and_frames() -> None:
    X = data(60)
    search = GridSearchCV(make(None, penalty="none", max_epochs=20), {"scale": [None, "zscore", "minmax"]}, cv=2).fit(X)
    assert search.best_params_["scale"] in ("zscore", "minmax")
    assert np.isfinite(search.cv_results_["mean_test_score"][1:]).all()
    frame = pd.DataFrame(X, columns=list("abcdef"))
    model = make("minmax").fit(frame)
    np.testing.assert_array_equal(model.transform(frame), make("minmax").fit(X).transform(X))


CHECKED = [
    SparseAutoencoder(n_hidden=3, max_epochs=2, verbose=False, scale="minmax", dtype="float64"),
    SparseAutoencoder(
        n_hidden=3,
        max_epochs=2,
        verbose=False,
        scale="zscore",
        output_activation="identity",
        solver="lbfgs",
        dtype="float64",
    ),
    SparseAutoencoder(
        n_hidden=3,
        max_epochs=2,
        verbose=False,
        scale="zscore",
        output_activation="identity",
        dtype="float64",
        lr_schedule="cosine",
        lr_total_steps=50,
        lr_warm_up=2,
        max_grad_norm=0.5,
        weight_l1=0.01,
    ),
    DeepAutoencoder((4, 3), max_epochs=2, pretrain_epochs=1, verbose=False, scale="minmax", dtype="float64"),
    VariationalAutoencoder(2, hidden=(3,), max_epochs=2, verbose=False, scale="minmax"),
    StackedClassifier(max_epochs=60, learning_rate=0.03, verbose=False, scale="zscore", dtype="float64"),
]


def expected_failures(estimator: Any) -> dict[str, str]:
    failures = {name: reason for name, (where, reason) in EXPECTED_FAILURES.items() if where(estimator)}
    if not isinstance(estimator, VariationalAutoencoder):  # others in float64 and without noise
        failures.pop("check_sample_weight_equivalence_on_dense_data", None)
    return failures


@parametrize_with_checks(CHECKED, expected_failed_checks=expected_failures)
def test_scikit_learn_checks(estimator: Any, check: Any) -> None:
    check(estimator)
