"""StackedClassifier: an autoencoder's encoder, a softmax layer, and both trained together."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.optimize import minimize
from sklearn.base import clone
from sklearn.datasets import load_digits
from sklearn.model_selection import cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MinMaxScaler
from sklearn.utils.estimator_checks import parametrize_with_checks
from test_deep import stop_at
from test_estimator import _NO_PARTIAL_FIT, EXPECTED_FAILURES

import fastsae
from fastsae import DeepAutoencoder, SparseAutoencoder, StackedClassifier

N, D = 60, 9
FAST = {"verbose": False, "random_state": 0, "batch_size": 16}

EXPECTED = {**EXPECTED_FAILURES, "check_estimators_partial_fit_n_features": _NO_PARTIAL_FIT}

CHECKED = [
    StackedClassifier(max_epochs=60, learning_rate=0.03, verbose=False),
    StackedClassifier(
        DeepAutoencoder((6, 4), max_epochs=1, pretrain_epochs=1, verbose=False, dtype="float64",
                        output_activation="identity"),
        head_epochs=5, max_epochs=80, learning_rate=0.02, verbose=False, dtype="float64",
    ),
    StackedClassifier(max_epochs=20, verbose=False, dtype="float64", solver="lbfgs"),
]  # fmt: skip


def rows(n: int = N, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Three classes that one feature tells apart."""
    X = np.random.default_rng(seed).uniform(0.05, 0.95, (n, D)).astype(np.float32)
    return X, np.array(["low", "middle", "top"])[np.digitize(X[:, 0], [0.3, 0.6])]


def make(**options: Any) -> StackedClassifier:
    deep = DeepAutoencoder((6, 4), pretrain_epochs=2, max_epochs=1, code_activation="sigmoid", **FAST)
    return StackedClassifier(**{"autoencoder": deep, "head_epochs": 2, "max_epochs": 3, **FAST, **options})


def assert_same_bits(a: StackedClassifier, b: StackedClassifier) -> None:
    for name in a._engine.state_names():
        np.testing.assert_array_equal(a._engine.get(name), b._engine.get(name), err_msg=name)
    assert a.history_ == b.history_
    assert a.head_history_ == b.head_history_


_CHECKS = parametrize_with_checks(CHECKED).mark


@pytest.mark.parametrize(_CHECKS.args[0], list(_CHECKS.args[1]), **_CHECKS.kwargs)
def test_scikit_learn_checks(estimator: StackedClassifier, check: Any) -> None:
    try:
        check(estimator)
    except (AssertionError, ValueError):
        applies, reason = EXPECTED.get(check.func.__name__, (lambda model: False, ""))
        if not applies(estimator):
            raise
        pytest.xfail(reason)


def test_without_an_autoencoder_it_is_softmax_regression() -> None:
    """The minimum is that of the cost by the book, found by SciPy."""
    X, y = rows(200)
    X = X.astype(np.float64)
    w = np.random.default_rng(1).uniform(0.5, 2, len(X))
    model = StackedClassifier(None, solver="lbfgs", max_epochs=500, head_weight_decay=0.01, dtype="float64", **FAST)
    model.fit(X, y, sample_weight=w)
    hot = np.eye(3)[np.searchsorted(model.classes_, y)]

    def cost(theta: np.ndarray) -> float:
        W, b = theta[: 3 * D].reshape(3, D), theta[3 * D :]
        z = X @ W.T + b
        log_p = z - np.log(np.exp(z).sum(axis=1, keepdims=True))
        return float(-(w @ (hot * log_p).sum(axis=1)) / w.sum() + 0.005 * (W**2).sum())

    found = minimize(cost, np.zeros(3 * D + 3), method="L-BFGS-B", options={"maxiter": 1000, "maxfun": 10**6})
    assert model.history_["loss"][-1] == pytest.approx(found.fun, rel=1e-6)
    np.testing.assert_allclose(model._engine.get("W1").ravel(), found.x[: 3 * D], atol=2e-3)
    probability = model.predict_proba(X)
    np.testing.assert_allclose(probability.sum(axis=1), 1, rtol=1e-12)
    np.testing.assert_array_equal(model.predict(X), model.classes_[probability.argmax(axis=1)])
    np.testing.assert_allclose(np.exp(model.predict_log_proba(X)), probability, rtol=1e-12)


def test_the_phases_are_those_of_the_exercise() -> None:
    """The encoder of the autoencoder, a softmax layer on its code, and both together; the head alone is decayed."""
    X, y = rows()
    before = make(max_epochs=0).fit(X, y)
    encoder, _ = before.autoencoder_.unroll()
    for number, layer in enumerate(encoder, 1):
        np.testing.assert_array_equal(before._engine.get(f"W{number}"), layer.weight)
        np.testing.assert_array_equal(before._engine.get(f"b{number}"), layer.bias)
    seed = int(np.random.default_rng([before._state.seed, 3]).integers(2**31 - 1))
    head = StackedClassifier(None, max_epochs=2, **{**FAST, "random_state": seed})
    head.fit(before.autoencoder_.transform(X), y)
    np.testing.assert_array_equal(before._engine.get("W3"), head._engine.get("W1"))
    assert before.head_history_ == head.history_
    decays = [layer.weight_decay for layer in before._engine.config.layers]
    assert (decays, before._engine.config.weight_decay) == ([None, None, 3e-3], 0.0)
    expected = before._engine.evaluate(X, targets=np.eye(3)[np.searchsorted(before.classes_, y)])
    assert expected["decay"] == pytest.approx(1.5e-3 * (before._engine.get("W3") ** 2).sum(), rel=1e-5)
    after = make().fit(X, y)
    assert_same_bits(before.set_params(max_epochs=3).resume(X, y), after)
    assert not np.array_equal(after._engine.get("W1"), encoder[0].weight)


def test_a_fitted_autoencoder_is_taken_as_it_is() -> None:
    X, y = rows()
    sae = SparseAutoencoder(5, max_epochs=2, **FAST).fit(X)
    model = make(autoencoder=sae, max_epochs=0).fit(X, y)
    assert model.autoencoder_ is sae
    np.testing.assert_array_equal(model._engine.get("W1"), sae.components_)
    np.testing.assert_array_equal(make(autoencoder=sae).partial_fit(X[:9], y[:9], ["low", "middle", "top"]).classes_,
                                  model.classes_)  # fmt: skip


@pytest.mark.parametrize("solver", ["adam", "lbfgs"])
def test_it_learns_digits(solver: str) -> None:
    X, y = load_digits(return_X_y=True)
    deep = DeepAutoencoder((60, 30), pretrain_epochs=20, max_epochs=0, code_activation="sigmoid", random_state=0,
                           learning_rate=0.01, verbose=False)  # fmt: skip
    model = StackedClassifier(
        deep, head_weight_decay=1e-4, solver=solver, head_epochs=40, max_epochs=30, learning_rate=0.01, **FAST
    )
    pipeline = make_pipeline(MinMaxScaler(), model)
    assert cross_val_score(pipeline, X, y, cv=2).mean() > 0.9


@pytest.mark.parametrize(
    "y", [np.arange(N) % 3 * 5, np.arange(N) % 2 == 0, np.array(["a", "b"])[np.arange(N) % 2],
          np.array(["a", "b"], object)[np.arange(N) % 2], (np.arange(N) % 2).astype(float)]
)  # fmt: skip
def test_labels_of_any_type_survive_a_file(y: np.ndarray, tmp_path: Path) -> None:
    X, _ = rows()
    model = make().fit(X, y)
    assert set(model.predict(X)) <= set(y.tolist())
    model.save(tmp_path / "model")
    loaded = fastsae.load(tmp_path / "model")
    assert isinstance(loaded, StackedClassifier)
    assert loaded.classes_.dtype == model.classes_.dtype
    np.testing.assert_array_equal(loaded.predict(X), model.predict(X))
    assert_same_bits(loaded, model)
    assert clone(loaded).autoencoder.get_params() == model.autoencoder.get_params()
    assert not hasattr(loaded.autoencoder, "_engine")


# 2 x 2 epochs of the layers, 1 of the autoencoder, 2 of the head, 3 of all
@pytest.mark.parametrize("way", ["here", "pickle", "checkpoint"])
@pytest.mark.parametrize("count", [1, 3, 5, 6, 7, 8, 10])
def test_an_interrupt_anywhere_changes_nothing(count: int, way: str, tmp_path: Path) -> None:
    X, y = rows()
    expected = make().fit(X, y)
    path = tmp_path / "model.safetensors"
    model = make(checkpoint=path if way == "checkpoint" else None)
    where = model.autoencoder if count <= 5 else model
    where.set_params(callback=stop_at(count if count <= 5 else count - 5))
    with pytest.raises(KeyboardInterrupt):
        model.fit(X, y)
    assert np.isfinite(model.predict_proba(X)).all()  # usable
    model.set_params(callback=None)
    model.autoencoder.set_params(callback=None)
    model.autoencoder_.set_params(callback=None)
    if way == "pickle":
        model = pickle.loads(pickle.dumps(model))
    if way == "checkpoint":
        loaded = fastsae.load(path)
        assert isinstance(loaded, StackedClassifier)
        np.testing.assert_array_equal(loaded.predict_proba(X), model.predict_proba(X))
        model = loaded
    assert_same_bits(model.resume(X, y), expected)


def test_partial_fit_trains_all_layers() -> None:
    X, y = rows()
    model = make().partial_fit(X[:30], y[:30], classes=["top", "low", "middle"])
    model.partial_fit(X[30:], y[30:])
    assert (model.n_iter_, model.head_history_) == (2, {})
    assert model.classes_.tolist() == ["low", "middle", "top"]
    with pytest.raises(ValueError, match="y: row 1 has the label 'other', expected one of"):
        model.partial_fit(X[:2], ["low", "other"])
    with pytest.raises(ValueError, match="classes: expected those of the first call"):
        model.partial_fit(X, y, classes=["low", "top"])
    with pytest.raises(ValueError, match="classes: the first call of partial_fit needs all labels"):
        make().partial_fit(X, y)


@pytest.mark.parametrize(
    ("options", "y", "text"),
    [
        ({}, np.zeros(N), "y: expected at least 2 classes, got 1 class"),
        ({}, np.zeros(N - 1), "inconsistent numbers of samples"),
        ({"autoencoder": 3}, None, "autoencoder: expected an autoencoder or None, got int"),
        ({"autoencoder": StackedClassifier()}, None, "autoencoder: expected an autoencoder or None, got Stacked"),
        ({"head_epochs": -1}, None, "head_epochs: expected an integer >= 0"),
        ({"head_weight_decay": -1.0}, None, r"head_weight_decay: expected a number in \[0"),
        ({"weight_decay": "x"}, None, "weight_decay: expected a number"),
    ],
)
def test_bad_input_is_named_and_changes_nothing(options: dict[str, Any], y: Any, text: str) -> None:
    X, labels = rows()
    model = make().fit(X, labels)
    before = model.predict_proba(X)
    with pytest.raises(ValueError, match=text):
        model.set_params(**options).fit(X, labels if y is None else y)
    np.testing.assert_array_equal(model.predict_proba(X), before)
    assert model.classes_.tolist() == ["low", "middle", "top"]


def test_an_autoencoder_of_other_rows_is_refused() -> None:
    X, y = rows()
    sae = SparseAutoencoder(3, max_epochs=1, **FAST).fit(X[:, :4])
    with pytest.raises(ValueError, match="autoencoder: it was fitted on 4 features, got 9"):
        make(autoencoder=sae).fit(X, y)
