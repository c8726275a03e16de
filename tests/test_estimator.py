"""SparseAutoencoder as a scikit-learn transformer, and what each of its options promises."""

from __future__ import annotations

import copy
import io
import math
import pickle
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MinMaxScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

import fastsae
from fastsae import (
    L1SAE,
    BatchTopKSAE,
    ContractiveAutoencoder,
    DenoisingAutoencoder,
    GatedSAE,
    JumpReLUSAE,
    MatryoshkaSAE,
    SparseAutoencoder,
    TopKSAE,
    Transcoder,
    VariationalAutoencoder,
)

N, D, H = 60, 7, 4

# Checks of scikit-learn that are expected to fail: for which estimators, and why.
_NO_PARTIAL_FIT = (lambda sae: sae.solver == "lbfgs", "calls partial_fit, which solver='lbfgs' refuses")
EXPECTED_FAILURES = {
    "check_sample_weight_equivalence_on_dense_data": (
        lambda sae: (
            sae.dtype == "float32"
            or isinstance(sae, (VariationalAutoencoder, BatchTopKSAE))
            or getattr(sae, "corruption", "none") != "none"
        ),
        "asks for 1e-7 relative: float32 rounds by 6e-8 at each step; noise of a repeated row is not that of one row; "
        "BatchTopK keeps k for each row, however often it is repeated",
    ),
    "check_fit_score_takes_y": _NO_PARTIAL_FIT,
    "check_n_features_in_after_fitting": _NO_PARTIAL_FIT,
}

# One estimator for every kind of computation that the checks could trip over.
CHECKED = [
    SparseAutoencoder(n_hidden=3, max_epochs=2, verbose=False),
    SparseAutoencoder(n_hidden=3, max_epochs=2, verbose=False, dtype="float64"),
    SparseAutoencoder(n_hidden=3, max_epochs=2, verbose=False, activation="tanh", output_activation="tanh"),
    SparseAutoencoder(n_hidden=3, max_epochs=2, verbose=False, tied=True, penalty="l1", activation="relu"),
    SparseAutoencoder(n_hidden=3, max_epochs=2, verbose=False, solver="lbfgs", dtype="float64"),
    SparseAutoencoder(n_hidden=3, max_epochs=2, verbose=False, rho_hat="ema", batch_size=8),
    DenoisingAutoencoder(n_hidden=3, max_epochs=2, verbose=False),
    DenoisingAutoencoder(n_hidden=3, max_epochs=2, verbose=False, dtype="float64", corruption="gaussian", tied=True),
    VariationalAutoencoder(2, hidden=(3,), likelihood="gaussian", max_epochs=2, verbose=False, dtype="float64"),
    VariationalAutoencoder(2, hidden=(), likelihood="gaussian", max_epochs=2, verbose=False, warm_up=2, free_bits=0.1),
    ContractiveAutoencoder(n_hidden=3, max_epochs=2, verbose=False, dtype="float64"),
    ContractiveAutoencoder(n_hidden=3, max_epochs=2, verbose=False, contraction_hessian=0.5),
    TopKSAE(5, 2, max_epochs=2, verbose=False),
    TopKSAE(5, 2, max_epochs=2, verbose=False, dtype="float64"),
    BatchTopKSAE(5, 1.5, max_epochs=2, verbose=False, dtype="float64"),
    MatryoshkaSAE(5, 2, max_epochs=2, verbose=False),
    JumpReLUSAE(5, max_epochs=2, verbose=False, dtype="float64"),
    GatedSAE(5, max_epochs=2, verbose=False, dtype="float64"),
    L1SAE(5, max_epochs=2, verbose=False, dtype="float64"),
    TopKSAE(5, 2, preset="sparsify", max_epochs=2, verbose=False),
    Transcoder(5, k=2, max_epochs=2, verbose=False, dtype="float64"),
    Transcoder(5, architecture="relu", skip=True, max_epochs=2, verbose=False),
]


def data(n: int = N, d: int = D, dtype: Any = np.float32, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(0.05, 0.95, (n, d)).astype(dtype)


def make(**options: Any) -> SparseAutoencoder:
    small = {"n_hidden": H, "max_epochs": 3, "batch_size": 16, "random_state": 0, "verbose": False}
    return SparseAutoencoder(**{**small, **options})


def parameters(sae: SparseAutoencoder) -> dict[str, np.ndarray]:
    return {name: getattr(sae, name) for name in ("components_", "intercept_", "decoder_", "decoder_intercept_")}


def assert_same_bits(a: SparseAutoencoder, b: SparseAutoencoder) -> None:
    for (name, x), y in zip(parameters(a).items(), parameters(b).values(), strict=True):
        np.testing.assert_array_equal(x, y, err_msg=name, strict=True)
    assert a.history_ == b.history_


def differ(a: SparseAutoencoder, b: SparseAutoencoder) -> bool:
    return not np.array_equal(a.components_, b.components_)


# scikit-learn's own checks


_CHECKS = parametrize_with_checks(CHECKED).mark


@pytest.mark.parametrize(
    _CHECKS.args[0],
    list(_CHECKS.args[1]),  # scikit-learn 1.6 gives a generator, which pytest 9 refuses
    **_CHECKS.kwargs,
)
def test_scikit_learn_checks(estimator: SparseAutoencoder, check: Any) -> None:
    try:
        check(estimator)
    except (AssertionError, ValueError):
        applies, reason = EXPECTED_FAILURES.get(check.func.__name__, (lambda sae: False, ""))
        if not applies(estimator):
            raise
        pytest.xfail(reason)


# Shapes, types and attributes


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("tied", [False, True])
def test_shapes_and_dtypes(dtype: str, tied: bool) -> None:
    X = data()
    sae = make(dtype=dtype, tied=tied).fit(X)
    shapes = {name: value.shape for name, value in parameters(sae).items()}
    assert shapes == {
        "components_": (H, D),
        "intercept_": (H,),
        "decoder_": (D, H),
        "decoder_intercept_": (D,),
    }
    assert {value.dtype for value in parameters(sae).values()} == {np.dtype(dtype)}
    assert sae.transform(X).shape == (N, H)
    assert sae.transform(X).dtype == sae.reconstruct(X).dtype == np.dtype(dtype)
    assert sae.score_samples(X).dtype == np.float64
    assert sae.n_features_in_ == D
    assert sae.n_iter_ == 3
    assert np.array_equal(sae.decoder_, sae.components_.T) == tied


def test_transform_is_the_formula() -> None:
    X = data(dtype=np.float64)
    sae = make(dtype="float64").fit(X)
    code = 1 / (1 + np.exp(-(X @ sae.components_.T + sae.intercept_)))
    np.testing.assert_allclose(sae.transform(X), code, rtol=0, atol=1e-14)
    output = 1 / (1 + np.exp(-(code @ sae.decoder_.T + sae.decoder_intercept_)))
    np.testing.assert_allclose(sae.inverse_transform(code), output, rtol=0, atol=1e-14)
    losses = ((output - X) ** 2).sum(axis=1) / 2
    np.testing.assert_allclose(sae.score_samples(X), -losses, rtol=1e-13)
    assert sae.score(X) == pytest.approx(-losses.mean(), rel=1e-13)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"loss_reduction": "mean"},
        {"loss_reduction": "sum"},
        {"loss": "cross_entropy"},
        {"loss": "cross_entropy", "loss_reduction": "mean"},
    ],
)
def test_score_is_minus_the_reconstruction_cost(options: dict[str, Any]) -> None:
    X = data()
    sae = make(dtype="float64", **options).fit(X)
    assert -sae.score(X) == pytest.approx(sae._engine.evaluate(X)["reconstruction"], rel=1e-12)


@pytest.mark.parametrize("options", [{}, {"tied": True, "activation": "tanh"}, {"dtype": "float64"}])
def test_reconstruct_is_inverse_transform_of_transform(options: dict[str, Any]) -> None:
    X = data(2500)  # more than two blocks of inference
    sae = make(max_epochs=1, **options).fit(X)
    np.testing.assert_array_equal(sae.reconstruct(X), sae.inverse_transform(sae.transform(X)))


def test_attributes_are_absent_before_fit() -> None:
    sae = make()
    for name in ("components_", "intercept_", "decoder_", "decoder_intercept_", "history_", "n_iter_"):
        assert not hasattr(sae, name), name
    X = data()
    for call in (sae.transform, sae.inverse_transform, sae.reconstruct, sae.score_samples, sae.score, sae.resume):
        with pytest.raises(ValueError, match="not fitted yet"):
            call(X)
    with pytest.raises(ValueError, match="not fitted yet"):
        sae.save("never-written.safetensors")
    assert not Path("never-written.safetensors").exists()


def test_defaults_are_those_of_the_configurations() -> None:
    from fastsae.config import Config, LayerConfig, TrainingConfig

    options = SparseAutoencoder().get_params()
    for config in (Config, TrainingConfig, LayerConfig):
        for name, field in config.__dataclass_fields__.items():
            own = config is LayerConfig and name in ("weight_decay", "weight_l1")  # None: the model's
            if name in options and name != "penalty" and not own:
                assert options[name] == field.default, name
    assert options["penalty"] == "kl"


# Composition


def test_pipeline_and_grid_search() -> None:
    X = data() * 3
    pipeline = make_pipeline(MinMaxScaler(), make())
    codes = pipeline.fit_transform(X)
    np.testing.assert_array_equal(codes, pipeline.transform(X))
    search = GridSearchCV(make(max_epochs=60, penalty="none", learning_rate=0.02), {"n_hidden": [1, 6]}, cv=2)
    search.fit(data())
    # Six units reconstruct better than one, and score() prefers that.
    assert search.best_params_ == {"n_hidden": 6}
    scores = search.cv_results_["mean_test_score"]
    assert scores[1] > scores[0]


def test_clone_pickle_and_deepcopy() -> None:
    X = data()
    sae = make(rho_hat="ema").fit(X)
    assert not hasattr(clone(sae), "components_")
    assert clone(sae).get_params() == sae.get_params()
    for twin in (pickle.loads(pickle.dumps(sae)), copy.deepcopy(sae)):
        assert_same_bits(sae, twin)
        np.testing.assert_array_equal(sae.transform(X), twin.transform(X))
        # The optimiser's state and the moving average come along: training goes on the same ...
        ahead = make(rho_hat="ema", max_epochs=5).fit(X)
        assert_same_bits(twin.set_params(max_epochs=5).resume(X), ahead)
        # ... and the copies share nothing.
        assert differ(sae, twin)


def test_engine_copies_keep_learning_rate_and_chunks() -> None:
    from fastsae import Config, Engine, LayerConfig

    config = Config(D, (LayerConfig(H), LayerConfig(D)), optimizer="sgd")
    engine = Engine(config, "cpu", full_batch_rows=16)
    engine.set("W1", data(H, D))
    engine.learning_rate = 0.5
    twin = copy.deepcopy(engine)
    assert twin.learning_rate == 0.5
    X = data()
    engine.step(X)
    twin.step(X)
    for name in engine.state_names():
        np.testing.assert_array_equal(engine.get(name), twin.get(name))
    assert twin._full_batch_rows == 16


def test_feature_names_and_set_output() -> None:
    frame = pd.DataFrame(data(), columns=[f"pixel{i}" for i in range(D)])
    sae = make().set_output(transform="pandas").fit(frame)
    assert list(sae.feature_names_in_) == list(frame.columns)
    names = [f"sparseautoencoder{i}" for i in range(H)]
    assert list(sae.get_feature_names_out()) == names
    out = sae.transform(frame)
    assert isinstance(out, pd.DataFrame)
    assert list(out.columns) == names
    np.testing.assert_array_equal(out.to_numpy(), make().fit(frame).transform(frame))
    with pytest.raises(ValueError, match="feature names"):
        sae.transform(frame[frame.columns[::-1]])
    # A code in a data frame is decoded as well.
    np.testing.assert_array_equal(sae.inverse_transform(out), sae.reconstruct(frame))


# Training


def test_history_has_one_entry_per_epoch() -> None:
    X = data()
    sae = make().fit(X)
    keys = ["epoch", "loss", "reconstruction", "penalty", "decay", "gradient_norm"]
    assert list(sae.history_) == keys
    assert sae.history_["epoch"] == [1, 2, 3]
    assert all(len(values) == 3 for values in sae.history_.values())
    parts = [sae.history_[name] for name in ("reconstruction", "penalty", "decay")]
    np.testing.assert_allclose(np.sum(parts, axis=0), sae.history_["loss"], rtol=1e-12)
    held = make(validation_fraction=0.25).fit(X)
    assert list(held.history_) == [*keys, "validation_loss", "validation_reconstruction"]
    assert all(len(values) == 3 for values in held.history_.values())


def test_training_lowers_the_loss_for_every_solver() -> None:
    X = data(200)
    solvers = {"sgd": 0.3, "momentum": 0.1, "nesterov": 0.1, "adam": 0.02, "adamw": 0.02, "lbfgs": 0.0}
    for solver, rate in solvers.items():
        sae = make(solver=solver, learning_rate=rate, max_epochs=20, rho=0.3).fit(X)
        loss = sae.history_["loss"]
        assert loss[-1] < 0.95 * loss[0], solver


def test_a_full_batch_step_of_the_history_is_the_cost_at_the_start() -> None:
    X = data(dtype=np.float64)
    start = make(dtype="float64", max_epochs=0).fit(X)
    cost = start._engine.gradient(X)
    sae = make(dtype="float64", batch_size=None, max_epochs=1).fit(X)
    for name in ("loss", "reconstruction", "penalty", "decay", "gradient_norm"):
        assert sae.history_[name] == pytest.approx([cost[name]], rel=1e-13), name


@pytest.mark.parametrize("solver", ["sgd", "adam", "lbfgs"])
@pytest.mark.parametrize("penalty", ["kl", "l1"])
def test_integer_weights_are_repeated_rows(solver: str, penalty: str) -> None:
    X = data(dtype=np.float64)
    weights = np.random.default_rng(1).integers(0, 4, N)
    options = {"dtype": "float64", "batch_size": None, "solver": solver, "penalty": penalty}
    weighted = make(**options).fit(X, sample_weight=weights)
    repeated = make(**options).fit(np.repeat(X, weights, axis=0))
    for x, y in zip(parameters(weighted).values(), parameters(repeated).values(), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-7, atol=1e-10)
    assert weighted.history_["loss"] == pytest.approx(repeated.history_["loss"], rel=1e-9)
    assert weighted.history_["loss"] != pytest.approx(make(**options).fit(X).history_["loss"], rel=1e-6)


def test_rows_of_weight_zero_teach_nothing() -> None:
    X = data(48)
    weights = np.ones(48)
    weights[16:32] = 0  # exactly the second batch
    with_row = make(shuffle=False, max_epochs=1).fit(X, sample_weight=weights)
    without = make(shuffle=False, max_epochs=1).fit(np.delete(X, np.s_[16:32], axis=0))
    assert_same_bits(with_row, without)
    X[weights == 0] = 0.5  # their values are not read either
    assert_same_bits(make(shuffle=False, max_epochs=1).fit(X, sample_weight=weights), with_row)


def test_one_weight_for_all_is_no_weight() -> None:
    X = data(dtype=np.float64)
    plain = make(dtype="float64").fit(X)
    for weights in (np.ones(N), 1.0):
        assert_same_bits(make(dtype="float64").fit(X, sample_weight=weights), plain)
    scaled = make(dtype="float64").fit(X, sample_weight=np.full(N, 7.0))
    np.testing.assert_allclose(scaled.components_, plain.components_, rtol=1e-9)


def test_partial_fit_on_the_same_rows_is_fit() -> None:
    X = data()
    sae = make()
    for _ in range(3):
        sae.partial_fit(X)
    assert_same_bits(sae, make(max_epochs=3).fit(X))


def test_partial_fit_streams() -> None:
    X = data(640)
    sae = make(learning_rate=0.02, rho=0.3)
    before = None
    for _ in range(5):
        for first in range(0, len(X), 100):  # pieces of different lengths: the last has 40 rows
            sae.partial_fit(X[first : first + 100])
            before = before or sae.history_["loss"][0]
    assert sae.n_iter_ == 35
    assert sae.history_["loss"][-1] < 0.9 * before
    assert sae.n_features_in_ == D


def test_partial_fit_goes_on_after_early_stopping() -> None:
    X = data()
    sae = make(early_stopping=True, n_iter_no_change=1, tol=10.0, max_epochs=50).fit(X)
    assert sae.n_iter_ == 2
    fitted = copy.deepcopy(sae)
    sae.partial_fit(X)
    assert sae.n_iter_ == 3
    assert differ(sae, fitted)


def test_partial_fit_begins_at_the_first_row_after_an_interrupted_fit() -> None:
    X = data(64)
    sae = make(max_epochs=1).fit(X)
    sae._state.n_rows, sae._state.rows_done = 64, 48  # as Ctrl-C leaves it
    sae.partial_fit(X)
    assert sae._engine.steps == 8
    assert sae.n_iter_ == 2


def test_learning_rate_may_change_in_partial_fit_and_nothing_else() -> None:
    X = data()
    sae = make(solver="sgd").partial_fit(X)
    before = sae.components_
    sae.set_params(learning_rate=0.0).partial_fit(X)
    np.testing.assert_array_equal(sae.components_, before)
    changes = {
        "n_hidden": 5,
        "activation": "tanh",
        "output_activation": "identity",
        "penalty": "l1",
        "rho": 0.2,
        "beta": 1.0,
        "weight_decay": 0.5,
        "contraction": 0.5,
        "contraction_hessian": 0.5,
        "contraction_noise": 0.5,
        "rho_hat": "ema",
        "rho_hat_decay": 0.5,
        "loss_reduction": "mean",
        "loss": "cross_entropy",
        "tied": True,
        "solver": "momentum",
        "momentum": 0.5,
        "beta1": 0.5,
        "beta2": 0.5,
        "epsilon": 1e-3,
        "dtype": "float64",
    }
    for name, value in changes.items():
        changed = copy.deepcopy(sae).set_params(**{name: value})
        for call in (changed.partial_fit, changed.set_params(max_epochs=9).resume):
            with pytest.raises(ValueError, match=f"^{name}: expected"):
                call(X)
        np.testing.assert_array_equal(changed.components_, before)


def test_validation_rows_are_not_trained_on() -> None:
    X = data(40)
    options = {"validation_fraction": 0.25, "batch_size": None, "max_epochs": 4}
    sae = make(**options).fit(X)
    used = [
        row
        for row in range(40)
        if make(**options).fit(_with_row_changed(X, row)).history_["loss"] != sae.history_["loss"]
    ]
    assert len(used) == 30
    held_out = sorted(set(range(40)) - set(used))
    assert sae.history_["validation_loss"][-1] == sae._engine.evaluate(X[held_out])["loss"]
    changed = make(**options).fit(_with_row_changed(X, held_out))
    assert not differ(sae, changed)
    assert sae.history_["validation_loss"] != changed.history_["validation_loss"]
    # The split depends on the seed, and the weights of the rows go with them.
    other = make(**options, random_state=1)
    assert differ(other.fit(X), clone(other).fit(_with_row_changed(X, held_out)))
    weights = np.random.default_rng(0).uniform(0.5, 2, 40)
    weighted = make(**options).fit(X, sample_weight=weights)
    expected = weighted._engine.evaluate(X[held_out], weights[held_out])["loss"]
    assert weighted.history_["validation_loss"][-1] == expected


def _with_row_changed(X: np.ndarray, row: Any) -> np.ndarray:
    changed = X.copy()
    changed[row] = 1 - changed[row]
    return changed


@pytest.mark.parametrize("solver", ["adam", "lbfgs"])
@pytest.mark.parametrize("validation_fraction", [0.0, 0.3])
def test_early_stopping_restores_the_best_parameters(solver: str, validation_fraction: float) -> None:
    X = data(30)
    options = {
        "solver": solver,
        "learning_rate": 0.2,
        "early_stopping": True,
        "validation_fraction": validation_fraction,
        "n_iter_no_change": 3,
        "tol": 0.0,
        "max_epochs": 400,
        "penalty": "none",
        "weight_decay": 0.0,
        "n_hidden": 12,
        "output_activation": "identity",
    }
    sae = make(**options).fit(X)
    watched = sae.history_["validation_loss" if validation_fraction else "loss"]
    best = int(np.argmin(watched))
    if solver == "adam":
        assert len(watched) == best + 1 + 3 < 400
    until_best = make(**{**options, "early_stopping": False, "max_epochs": best + 1}).fit(X)
    for x, y in zip(parameters(sae).values(), parameters(until_best).values(), strict=True):
        np.testing.assert_array_equal(x, y)
    # Nothing is left to do.
    again = copy.deepcopy(sae).resume(X)
    assert_same_bits(again, sae)


@pytest.mark.parametrize("tol", [0.0, 0.003, 0.01, 0.05, 0.5])
@pytest.mark.parametrize("scale", [1.0, 100.0])
def test_tol_is_relative_improvement(tol: float, scale: float) -> None:
    X = data() * scale
    options = {"output_activation": "identity", "penalty": "none", "max_epochs": 60}
    patience = {"early_stopping": True, "n_iter_no_change": 2, "tol": tol}
    losses = make(**options).fit(X).history_["loss"]
    best, waited, expected = math.inf, 0, len(losses)
    for epoch, loss in enumerate(losses, start=1):
        if best == math.inf or loss < best * (1 - tol):
            best, waited = loss, 0
        else:
            waited += 1
        if waited == 2:
            expected = epoch
            break
    assert make(**options, **patience).fit(X).n_iter_ == expected


def test_callback_sees_each_epoch_and_stops() -> None:
    X = data()
    seen: list[dict[str, float]] = []

    def callback(entry: dict[str, float]) -> bool:
        seen.append(entry)
        return len(seen) == 2

    sae = make(callback=callback, max_epochs=10).fit(X)
    assert sae.n_iter_ == 2
    assert [entry["epoch"] for entry in seen] == [1, 2]
    assert [entry["loss"] for entry in seen] == sae.history_["loss"]
    np.testing.assert_array_equal(sae.components_, make(max_epochs=2).fit(X).components_)
    by_lbfgs = make(callback=lambda entry: entry["epoch"] == 2, solver="lbfgs", max_epochs=10).fit(X)
    assert by_lbfgs.n_iter_ == 2


def test_callback_cannot_change_the_history() -> None:
    sae = make(callback=lambda entry: entry.clear()).fit(data())
    assert len(sae.history_["loss"]) == 3


def test_random_state() -> None:
    X = data()
    assert_same_bits(make(random_state=3).fit(X), make(random_state=3).fit(X))
    assert_same_bits(make(random_state=np.int64(3)).fit(X), make(random_state=3).fit(X))
    assert differ(make(random_state=3).fit(X), make(random_state=4).fit(X))
    generator = np.random.RandomState(3)
    sae = make(random_state=generator)
    first = sae.fit(X).components_
    assert not np.array_equal(first, sae.fit(X).components_)  # the generator moves on
    np.testing.assert_array_equal(make(random_state=np.random.RandomState(3)).fit(X).components_, first)
    assert differ(make(random_state=None).fit(X), make(random_state=None).fit(X))
    # Refitting with a number starts anew.
    sae = make(random_state=3).fit(X)
    assert_same_bits(sae.fit(X), make(random_state=3).fit(X))


# Meaningless combinations


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"activation": "relu"}, "penalty='kl' needs a bounded activation"),
        ({"activation": "softplus"}, "penalty='kl' needs a bounded activation"),
        ({"activation": "identity"}, "penalty='kl' needs a bounded activation"),
        ({"rho_hat": "full"}, "rho_hat='full' needs full-batch"),
        ({"rho_hat": "ema", "solver": "lbfgs"}, "rho_hat='ema'"),
        ({"loss": "cross_entropy", "output_activation": "tanh"}, "cross_entropy' needs a sigmoid output"),
        ({"loss": "cross_entropy", "output_activation": "identity"}, "cross_entropy' needs a sigmoid output"),
        ({"validation_fraction": 0.999}, "validation_fraction=0.999 leaves no rows"),
    ],
)
def test_meaningless_combinations_are_refused(options: dict[str, Any], text: str) -> None:
    sae = make(**options)
    with pytest.raises(ValueError, match=text):
        sae.fit(data())
    assert not hasattr(sae, "components_")
    assert not hasattr(sae, "n_features_in_")


@pytest.mark.parametrize("options", [{"solver": "lbfgs"}, {"rho_hat": "full", "batch_size": None}])
def test_partial_fit_refuses_what_needs_all_rows(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="partial_fit"):
        make(**options).partial_fit(data())


def test_cross_entropy_refuses_targets_outside_0_1() -> None:
    X = data()
    sae = make(loss="cross_entropy").fit(X)
    before = sae.transform(X)
    for scale, shift in ((255.0, 0.0), (1.0, -0.2)):
        for call in (sae.fit, sae.partial_fit, sae.set_params(max_epochs=9).resume):
            with pytest.raises(ValueError, match=r"^X: .*cross_entropy.*\[0, 1\]"):
                call(X * scale + shift)
    np.testing.assert_array_equal(sae.transform(X), before)
    make(loss="cross_entropy").fit(np.round(X))  # the ends belong


def test_full_rho_hat_is_batch_rho_hat_of_all_rows() -> None:
    X = data()
    for options in ({"solver": "lbfgs"}, {"batch_size": None}):
        assert_same_bits(make(rho_hat="full", **options).fit(X), make(rho_hat="batch", **options).fit(X))


# Kinds of input


class Tensor:
    """What another library's tensor looks like: DLPack and nothing else."""

    def __init__(self, array: np.ndarray) -> None:
        self._array = array

    def __dlpack__(self, **options: Any) -> Any:
        return self._array.__dlpack__(**options)

    def __dlpack_device__(self) -> tuple[int, int]:
        return self._array.__dlpack_device__()


def _read_only(X: np.ndarray) -> np.ndarray:
    X = X.copy()
    X.flags.writeable = False
    return X


def _unaligned(X: np.ndarray) -> np.ndarray:
    memory = bytearray(X.nbytes + 1)
    view = np.frombuffer(memory, X.dtype, X.size, offset=1).reshape(X.shape)
    view[...] = X
    assert not view.flags.aligned
    return view


KINDS = {
    "fortran": np.asfortranarray,
    "every second row": lambda X: np.repeat(X, 2, axis=0)[::2],
    "every second column": lambda X: np.repeat(X, 2, axis=1)[:, ::2],
    "reversed rows": lambda X: X[::-1].copy()[::-1],
    "reversed columns": lambda X: X[:, ::-1].copy()[:, ::-1],
    "columns of a wider array": lambda X: np.hstack([X, X])[:, :D],
    "read-only": _read_only,
    "unaligned": _unaligned,
    "other byte order": lambda X: X.astype(X.dtype.newbyteorder()),
    "list": lambda X: X.tolist(),
    "objects": lambda X: X.astype(object),
    "data frame": lambda X: pd.DataFrame(X),
    "DLPack": Tensor,
    "read-only DLPack": lambda X: Tensor(_read_only(X)),
    "DLPack of strided rows": lambda X: Tensor(np.repeat(X, 2, axis=0)[::2]),
    "float64": lambda X: X.astype(np.float64),
    "long double": lambda X: X.astype(np.longdouble),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_array_gives_the_same_bits(kind: str) -> None:
    X = data()
    other = KINDS[kind](X)
    sae = make().fit(X)
    assert_same_bits(make().fit(other), sae)
    assert_same_bits(make().partial_fit(other), make(max_epochs=1).fit(X))
    np.testing.assert_array_equal(sae.transform(other), sae.transform(X))
    np.testing.assert_array_equal(sae.reconstruct(other), sae.reconstruct(X))
    np.testing.assert_array_equal(sae.score_samples(other), sae.score_samples(X))
    code = sae.transform(X)
    if kind != "columns of a wider array":
        np.testing.assert_array_equal(sae.inverse_transform(KINDS[kind](code)), sae.inverse_transform(code))


def test_all_rows_alike() -> None:
    row = data(1)
    broadcast = np.broadcast_to(row, (N, D))
    assert_same_bits(make().fit(broadcast), make().fit(np.repeat(row, N, axis=0)))


def test_overlapping_windows_of_a_signal() -> None:
    windows = np.lib.stride_tricks.sliding_window_view(data(1, 90)[0], D)
    assert_same_bits(make().fit(windows), make().fit(windows.copy()))


def test_weights_may_be_a_list_a_series_or_a_tensor() -> None:
    X = data()
    weights = np.random.default_rng(0).uniform(0.5, 2, N)
    expected = make().fit(X, sample_weight=weights)
    for kind in (list, pd.Series, Tensor, _read_only, lambda w: np.repeat(w, 2)[::2]):
        assert_same_bits(make().fit(X, sample_weight=kind(weights)), expected)


@pytest.mark.parametrize("dtype", ["float32", "float64", "uint8", "float16", ">f4"])
def test_memory_maps(tmp_path: Path, dtype: str) -> None:
    X = data() if dtype != "uint8" else np.round(data() * 255)
    X = X.astype(dtype)
    X.tofile(tmp_path / "X")
    mapped = np.memmap(tmp_path / "X", dtype, "r", shape=X.shape)
    assert_same_bits(make().fit(mapped), make().fit(X))
    held = {"validation_fraction": 0.2, "early_stopping": True}
    assert_same_bits(make(**held).fit(mapped), make(**held).fit(X))
    np.testing.assert_array_equal(make().fit(X).transform(mapped), make().fit(X).transform(X))


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", ">f4"])
@pytest.mark.parametrize("options", [{}, {"solver": "lbfgs"}, {"validation_fraction": 0.4}])
def test_nan_in_a_memory_map_names_its_row(tmp_path: Path, dtype: str, options: dict[str, Any]) -> None:
    for row in (0, 17, 41, N - 1):
        mapped = np.memmap(tmp_path / "X", dtype, "w+", shape=(N, D))
        mapped[:] = data()
        mapped[row, 3] = np.nan
        sae = make(**options)
        with pytest.raises(ValueError, match=f"^X: row {row} contains NaN"):
            sae.fit(mapped)
        # The model is the one of the step before, and usable.
        assert np.isfinite(sae.transform(data())).all()
        with pytest.raises(ValueError, match="NaN"):
            sae.transform(mapped)


# Inference


def test_transform_into_memory_that_is_given() -> None:
    X = data()
    sae = make().fit(X)
    out = np.full((N, H), -1, np.float32)
    assert sae.transform(X, out=out) is out
    np.testing.assert_array_equal(out, sae.transform(X))
    rows = np.empty((N, D), np.float32)
    assert sae.reconstruct(X, out=rows) is rows
    np.testing.assert_array_equal(rows, sae.reconstruct(X))
    assert sae.inverse_transform(out, out=rows) is rows
    np.testing.assert_array_equal(rows, sae.reconstruct(X))


@pytest.mark.parametrize("method", ["transform", "reconstruct", "score_samples"])
def test_sixteen_threads_give_the_single_thread_bits(method: str) -> None:
    X = data(3000, 24)
    sae = make(n_hidden=20, max_epochs=1).fit(X)
    expected = getattr(sae, method)(X)
    slices = [np.s_[i * 37 : i * 37 + 1024 + 64 * i] for i in range(16)]
    parts = [getattr(sae, method)(X[part]) for part in slices]
    wrong: list[int] = []
    barrier = threading.Barrier(16)

    def work(number: int) -> None:
        barrier.wait()
        for _ in range(5):
            if not np.array_equal(getattr(sae, method)(X), expected):
                wrong.append(number)
            if not np.array_equal(getattr(sae, method)(X[slices[number]]), parts[number]):
                wrong.append(number)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


@pytest.mark.usefixtures("restored_threads")
def test_the_number_of_threads_changes_no_bit() -> None:
    X = data(500, 24)
    results = []
    for count in (1, 2, 3, 8):
        fastsae.set_num_threads(count)
        results.append(make(n_hidden=20).fit(X))
    for sae in results[1:]:
        assert_same_bits(sae, results[0])


@pytest.fixture
def restored_threads() -> Any:
    before = fastsae.get_num_threads()
    yield
    fastsae.set_num_threads(before)


# The progress bar


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("solver", ["adam", "lbfgs"])
@pytest.mark.parametrize(
    ("verbose", "stream", "seconds", "shown"),
    [
        (True, Terminal, 1.5, True),
        (True, Terminal, 0.0, False),  # over before one would look
        (True, io.StringIO, 1.5, False),  # a file or a pipe
        (False, Terminal, 1.5, False),
    ],
)
def test_progress_bar(
    monkeypatch: pytest.MonkeyPatch, solver: str, verbose: bool, stream: Any, seconds: float, shown: bool
) -> None:
    stderr = stream()
    monkeypatch.setattr(sys, "stderr", stderr)
    passed = [0.0]  # the bar's clock goes ahead by itself, so that nobody waits
    monkeypatch.setattr("tqdm.std.time", lambda: time.time() + passed[0])

    def callback(entry: dict[str, float]) -> None:
        passed[0] += seconds

    make(verbose=verbose, callback=callback, max_epochs=4, solver=solver).fit(data())
    text = stderr.getvalue()
    assert ("fastsae" in text) == shown
    if shown:
        assert "loss=" in text
    else:
        assert text == ""
