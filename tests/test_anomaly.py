"""AnomalyDetector: its formulas, its conventions and what it refuses."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.base import clone
from sklearn.metrics import roc_auc_score
from sklearn.utils.estimator_checks import parametrize_with_checks

import fastsae
from fastsae import AnomalyDetector, SparseAutoencoder

N, D = 5000, 6  # more than one block of rows


def make(**options: Any) -> AnomalyDetector:
    small = SparseAutoencoder(
        3, activation="tanh", output_activation="identity", penalty="none", max_epochs=2, dtype="float64", verbose=False
    )
    return AnomalyDetector(**{"autoencoder": small, "random_state": 0, **options})


@pytest.fixture(scope="module")
def X() -> np.ndarray:
    rows = np.random.default_rng(0).normal(size=(N, D)) * [1, 2, 3, 10, 0.1, 0] + 5
    rows.flags.writeable = False
    return rows


@pytest.fixture(scope="module")
def fitted(X: np.ndarray) -> AnomalyDetector:
    return make().fit(X)


_CHECKS = parametrize_with_checks(
    [
        AnomalyDetector(),
        make(),
        make(contamination=0.1),
        make(scale=False, autoencoder=SparseAutoencoder(verbose=False)),
    ]
).mark


@pytest.mark.parametrize(_CHECKS.args[0], list(_CHECKS.args[1]), **_CHECKS.kwargs)
def test_scikit_learn_checks(estimator: AnomalyDetector, check: Any) -> None:
    check(estimator)


def test_scores_are_the_formula(fitted: AnomalyDetector, X: np.ndarray) -> None:
    np.testing.assert_allclose(fitted.mean_, X.mean(axis=0))
    np.testing.assert_allclose(fitted.scale_, [*X[:, :5].std(axis=0), 1])  # a constant column keeps its unit
    rows = (X - fitted.mean_) / fitted.scale_
    errors = (rows - fitted.autoencoder_.reconstruct(rows)) ** 2
    np.testing.assert_allclose(fitted.feature_errors(X), errors, rtol=1e-12)
    np.testing.assert_allclose(fitted.score_samples(X), -errors.mean(axis=1), rtol=1e-12)
    np.testing.assert_array_equal(fitted.decision_function(X), fitted.score_samples(X) - fitted.offset_)
    np.testing.assert_array_equal(fitted.predict(X), np.where(fitted.decision_function(X) < 0, -1, 1))


def test_without_scaling_the_autoencoder_sees_the_rows(X: np.ndarray) -> None:
    detector = make(scale=False).fit(X)
    alone = detector.autoencoder.set_params(random_state=0).fit(X)
    errors = (X - alone.reconstruct(X)) ** 2
    np.testing.assert_array_equal(detector.feature_errors(X), errors)
    assert (detector.mean_ == 0).all()
    assert (detector.scale_ == 1).all()


@pytest.mark.parametrize("contamination", [0.01, 0.1, 0.5])
def test_contamination_is_the_share_of_training_rows(contamination: float, X: np.ndarray) -> None:
    detector = make(contamination=contamination)
    assert (detector.fit_predict(X) == -1).mean() == pytest.approx(contamination, abs=2 / N)


def test_auto_is_tukeys_fence(fitted: AnomalyDetector, X: np.ndarray) -> None:
    low, high = np.percentile(-fitted.score_samples(X), [25, 75])
    assert fitted.offset_ == pytest.approx(-(high + 1.5 * (high - low)))


def test_the_feature_that_is_wrong_has_the_largest_error(X: np.ndarray) -> None:
    rows = X[:500].copy()
    rows[:, 1] = rows[:, 0]
    wrong = rows[:1].copy()
    wrong[0, 5] += 8  # the column that is constant
    detector = AnomalyDetector(random_state=0).fit(rows)
    assert detector.feature_errors(wrong).argmax() == 5
    assert detector.predict(wrong) == -1


def test_rows_off_a_plane_are_found() -> None:
    random = np.random.default_rng(0)
    plane = random.normal(size=(2, 10))
    normal = random.normal(size=(600, 2)) @ plane + 0.05 * random.normal(size=(600, 10))
    odd = random.normal(size=(100, 10)) * normal.std(axis=0)
    detector = AnomalyDetector(random_state=0).fit(normal[:300])
    scores = detector.score_samples(np.concatenate([normal[300:], odd]))
    assert roc_auc_score(np.arange(400) >= 300, -scores) > 0.99


def test_the_given_autoencoder_is_not_touched(fitted: AnomalyDetector) -> None:
    assert not hasattr(fitted.autoencoder, "_engine")
    assert fitted.autoencoder.random_state is None
    assert fitted.autoencoder_.random_state == 0


def test_one_column_and_one_row() -> None:
    assert AnomalyDetector().fit(np.arange(9.0)[:, None]).predict([[1e6]]) == -1
    assert make(contamination=0.1).fit_predict(np.ones((1, 3))) == 1


def test_data_frames_give_names(X: np.ndarray) -> None:
    frame = pd.DataFrame(X[:50], columns=list("abcdef"))
    detector = make().fit(frame)
    assert list(detector.feature_names_in_) == list("abcdef")
    # A frame's columns lie in another order in memory, and their means round otherwise.
    np.testing.assert_allclose(detector.score_samples(frame), make().fit(X[:50]).score_samples(X[:50]), rtol=1e-9)
    with pytest.raises(ValueError, match="feature names"):
        detector.predict(frame.rename(columns={"a": "g"}))


def test_refitting_is_the_same(fitted: AnomalyDetector, X: np.ndarray) -> None:
    again = clone(fitted).fit(X)
    np.testing.assert_array_equal(again.score_samples(X), fitted.score_samples(X))


@pytest.mark.parametrize("options", [{}, {"autoencoder": None, "contamination": 0.2}, {"scale": False}])
def test_files_and_pickles_hold_all(options: dict[str, Any], X: np.ndarray, tmp_path: Path) -> None:
    frame = pd.DataFrame(X[:200], columns=list("abcdef"))
    detector = make(**options).fit(frame)
    detector.save(tmp_path / "detector")
    for copy in (pickle.loads(pickle.dumps(detector)), fastsae.load(tmp_path / "detector")):
        assert type(copy) is AnomalyDetector
        np.testing.assert_array_equal(copy.decision_function(frame), detector.decision_function(frame))
        np.testing.assert_array_equal(copy.feature_errors(frame), detector.feature_errors(frame))
        assert list(copy.feature_names_in_) == list("abcdef")
        assert copy.contamination == detector.contamination
        assert copy.scale == detector.scale
        assert copy.autoencoder_.history_ == detector.autoencoder_.history_
        assert (copy.autoencoder is None) == (detector.autoencoder is None)
        np.testing.assert_array_equal(clone(copy).fit(frame).predict(frame), detector.predict(frame))


def test_damaged_files_are_refused(fitted: AnomalyDetector, tmp_path: Path) -> None:
    from safetensors import safe_open
    from safetensors.numpy import save_file

    path = tmp_path / "detector"
    fitted.save(path)
    with safe_open(path, "numpy") as file:
        tensors, header = {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118
    for damage, message in [
        ({"around.scale": np.zeros(D)}, "scale: expected positive"),
        ({"around.mean": np.zeros(D - 1)}, "around.mean"),
        ({"around.mean": np.full(D, np.nan)}, "around.mean"),
        ({"around.other": np.zeros(1)}, "around.other"),
        ({"around.offset": None}, "around.offset"),
    ]:
        save_file({n: value for n, value in {**tensors, **damage}.items() if value is not None}, path, header)
        with pytest.raises(ValueError, match=message):
            fastsae.load(path)
    save_file(tensors, path, {**header, "around": "Mystery"})
    with pytest.raises(ValueError, match="Mystery"):
        fastsae.load(path)
    save_file(tensors, path, {name: value for name, value in header.items() if name != "around"})
    with pytest.raises(ValueError, match=r"around\.\w+' is unknown"):
        fastsae.load(path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"contamination": 0.0}, r"contamination: expected a number in \(0, 0.5\]"),
        ({"contamination": 0.6}, "contamination"),
        ({"contamination": "some"}, "contamination"),
        ({"contamination": True}, "contamination"),
        ({"scale": 2}, "scale"),
        ({"random_state": "x"}, "random_state"),
        ({"autoencoder": 3}, "autoencoder: expected an autoencoder"),
        ({"autoencoder": SparseAutoencoder()}, "output layer of 'sigmoid'"),
        ({"autoencoder": SparseAutoencoder(0, output_activation="identity")}, "n_hidden"),
    ],
)
def test_bad_options_change_nothing(options: dict[str, Any], message: str, X: np.ndarray) -> None:
    detector = make().fit(X[:100])
    before = detector.score_samples(X)
    with pytest.raises(ValueError, match=message):
        detector.set_params(**options).fit(X[:50])
    np.testing.assert_array_equal(detector.score_samples(X), before)


def test_bad_rows_are_refused(fitted: AnomalyDetector, X: np.ndarray) -> None:
    for bad in (np.nan, np.inf):
        rows = X[:9].copy()
        rows[2, 3] = bad
        for call in (make().fit, fitted.predict, fitted.score_samples, fitted.feature_errors):
            with pytest.raises(ValueError, match="X contains"):
                call(rows)
    with pytest.raises(ValueError, match="features"):
        fitted.predict(X[:, :3])
    with pytest.raises(ValueError, match="column 1 is too large"):
        make().fit([[0, 1e300], [0, -1e300]])
    small = make(autoencoder=None).fit(X[:50])
    with pytest.raises(ValueError, match="row 1 is too far"):
        small.predict(X[:3] * [[1], [1e50], [1]])
