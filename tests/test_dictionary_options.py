"""The options of dictionaries: what they stand for by default, what is refused, and when they are looked at."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import scipy.sparse
from test_dictionaries import SMALL, D, M, data, fitted, make, one_thread, targets, y_of

from fastsae import BatchTopKSAE, JumpReLUSAE, TopKSAE, Transcoder
from fastsae.sparse_code import SparseCodeConfig

__all__ = ["one_thread"]  # for every test here


def test_the_learning_rate_by_default() -> None:
    assert TopKSAE(2**14).resolved_params()["learning_rate"] == 2e-4
    assert TopKSAE(2**16, learning_rate=None).resolved_params()["learning_rate"] == 1e-4
    assert TopKSAE(2**16, learning_rate=0.3).resolved_params()["learning_rate"] == 0.3


def test_the_schedule_ends_with_the_steps() -> None:
    rates = {"lr_schedule": "linear", "learning_rate": 0.1}
    assert fitted("topk", **rates)._engine.total_steps == 15
    assert fitted("topk", max_steps=7, **rates)._engine.total_steps == 7


BAD_OPTIONS: dict[str, tuple[str, dict[str, Any], str]] = {
    "k = 0": ("topk", {"k": 0}, "k: expected an integer in [1, 20], got 0"),
    "k > n": ("topk", {"k": M + 1}, "k: expected an integer in [1, 20], got 21"),
    "k is a share": ("topk", {"k": 2.5}, "k: expected an integer"),
    "k of a batch": ("batch topk", {"k": 0.0}, "k: expected a number in (0, 20], got 0.0"),
    "no latents": ("topk", {"n_latents": 0}, "n_latents: expected an integer >= 1, got 0"),
    "many": ("topk", {"n_latents": 3.5}, "n_latents: expected an integer >= 1, got 3.5"),
    "preset": ("topk", {"preset": "torch"}, "preset: expected one of"),
    "preset of another": (
        "gated",
        {"preset": "sparsify"},
        "preset: 'sparsify' is for topk, transcoder topk, got gated",
    ),
    "solver": ("topk", {"solver": "lbfgs"}, "solver: expected one of"),
    "scale": ("topk", {"scale": "whiten"}, "scale: expected one of"),
    "bias": ("topk", {"bias_init": "median"}, "bias_init: expected one of 'zeros', 'mean', 'geometric_median'"),
    "decoder norm": ("topk", {"decoder_init_norm": -1}, "decoder_init_norm: expected a number in [0, inf), got -1"),
    "no decoder": (
        "topk rescaled",
        {"decoder_init_norm": 0},
        "decoder_init_norm: expected a number in (0, inf)",
    ),
    "matched transcoder": (
        "transcoder",
        {"encoder_init_norm": "matched"},
        "encoder_init_norm: 'matched' is for TopKSAE, got Transcoder",
    ),
    "matched nothing": (
        "topk",
        {"encoder_init_norm": "matched", "decoder_norm": "free", "decoder_init_norm": 0.0},
        "decoder_init_norm (encoder_init_norm='matched'): expected a number in (0, inf), got 0.0",
    ),
    "matched encoder": (
        "l1",
        {"encoder_init_norm": "matched"},
        "encoder_init_norm: 'matched' is for TopKSAE, got L1SAE",
    ),
    "encoder norm": ("topk", {"encoder_init_norm": 0}, "encoder_init_norm: expected a number in (0, inf), got 0"),
    "steps": ("topk", {"max_steps": 0}, "max_steps: expected an integer >= 1, got 0"),
    "log": ("topk", {"log_every": 0}, "log_every: expected an integer >= 1, got 0"),
    "clip": ("sparsify", {"max_grad_norm": 1.0}, "max_grad_norm: 'sign_sgd' takes only the signs"),
    "prefixes": ("matryoshka", {"prefixes": (5, 30)}, "prefixes: expected an integer in [1, 20], got 30"),
    "architecture": ("transcoder", {"architecture": "l1"}, "architecture: expected one of"),
    "no use": ("transcoder", {"bandwidth": 0.1}, "bandwidth: other than 0.05 needs activation='jump_relu', got 0.1"),
    "target": ("jump relu", {"target_l0": 0}, "target_l0: expected a number in (0, 20], got 0"),
    "batch": ("topk", {"preset": "saelens", "batch_size": None}, "batch_size (preset='saelens' counts dead_after"),
}


@pytest.mark.parametrize("kind", BAD_OPTIONS)
def test_bad_options_are_refused(kind: str) -> None:
    name, options, text = BAD_OPTIONS[kind]
    model = make(name, **options)
    with pytest.raises(ValueError) as error:
        model.fit(data(), *y_of(model))
    assert text in str(error.value)
    assert not hasattr(model, "_engine")


def test_early_stopping_keeps_the_threshold_of_the_best_epoch() -> None:
    rng = np.random.default_rng(0)
    rows = (rng.normal(size=(60, 12)) @ rng.normal(size=(12, 12))).astype(np.float32)
    given = {"n_latents": 96, "k": 5, "batch_size": 16, "learning_rate": 1e-2, "validation_fraction": 0.3}
    given |= {"random_state": 0, "verbose": False}
    stopped = BatchTopKSAE(**given, max_epochs=80, early_stopping=True, n_iter_no_change=5, tol=0).fit(rows)
    best = int(np.argmin(stopped.history_["validation_loss"]))
    assert best + 1 < stopped.n_iter_
    until = BatchTopKSAE(**given, max_epochs=best + 1).fit(rows)
    np.testing.assert_array_equal(stopped.decoder_, until.decoder_)
    np.testing.assert_array_equal(stopped.threshold_, until.threshold_)


def test_a_fitted_transcoder_is_what_it_was_fitted_as() -> None:
    rows = np.random.default_rng(0).normal(size=(40, 6))
    model = Transcoder(16, k=2, max_epochs=1, verbose=False).fit(rows, rows[:, :2])
    before = model.jacobian_norm(rows[:3])
    np.testing.assert_array_equal(model.set_params(architecture="gated").jacobian_norm(rows[:3]), before)


def test_pairs_are_no_data_frame() -> None:
    pytest.importorskip("pandas")
    rows = np.random.default_rng(0).normal(size=(40, 6))
    model = TopKSAE(16, k=2, max_epochs=1, verbose=False).fit(rows).set_output(transform="pandas")
    assert model.transform(rows).shape == (40, 16)
    with pytest.raises(ValueError, match=r"^output: set_output\(transform='pandas'\) needs 'dense', got 'pairs'"):
        model.transform(rows, output="pairs")


# --- small calls ---


@pytest.mark.parametrize("kind", [TopKSAE, JumpReLUSAE, Transcoder])
def test_options_are_resolved_once_for_a_training(kind: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    calls, resolve = [], kind.resolved_params
    monkeypatch.setattr(kind, "resolved_params", lambda self: calls.append(1) or resolve(self))
    options = {"k": 2} if kind is not JumpReLUSAE else {}
    sae = kind(8, **options, batch_size=16, max_epochs=1, verbose=False, random_state=0)
    y = [targets()] if kind is Transcoder else []
    for train in (sae.fit, sae.partial_fit, sae.resume):
        calls.clear()
        train(data(), *y)
        assert len(calls) == 1, train
    sae.set_params(learning_rate=0.5)  # nothing of it is remembered
    assert sae.resolved_params()["learning_rate"] == 0.5
    sae.partial_fit(data(), *y)
    assert sae._engine.learning_rate == 0.5
    assert "_resolved" not in vars(sae)
    with pytest.raises(ValueError, match="solver"):
        sae.set_params(solver="sgd").partial_fit(data(), *y)
    assert "_resolved" not in vars(sae)


# --- what is refused says so ---


@pytest.mark.parametrize("solver", ["adamw", "lbfgs", "rmsprop"])
def test_solvers_that_a_dictionary_has_not(solver: str) -> None:
    wanted = "solver: expected one of 'sgd', 'momentum', 'nesterov', 'adam', 'sign_sgd', got "
    with pytest.raises(ValueError, match=rf"^{wanted}'{solver}'"):
        TopKSAE(M, 3, **{**SMALL, "solver": solver}).fit(data())


def test_numbers_that_only_float64_holds() -> None:
    model = TopKSAE(M, 3, **SMALL).fit(data())
    X = data(dtype=np.float64)
    X[5, 2] = -1e39
    good = model.transform(data())
    code = good.astype(np.float64)
    code[7, 1] = 1e39
    for call in (model.transform, model.reconstruct, model.score, model.fit):
        with pytest.raises(ValueError, match=r"^X: row 5 contains .*too large for float32"):
            call(X)
    with pytest.raises(ValueError, match=r"^X: row 5 contains a number too large for float32"):
        model.transform(X, output="csr")
    for form in (code, scipy.sparse.csr_matrix(code)):
        with pytest.raises(ValueError, match=r"^H: .*too large for float32"):
            model.inverse_transform(form)
    np.testing.assert_array_equal(model.transform(data()), good)
    y = targets().astype(np.float64)
    y[3, 0] = 1e39
    transcoder = Transcoder(M, k=3, **SMALL)
    with pytest.raises(ValueError, match=r"^y: row 3 contains a number too large for float32"):
        transcoder.fit(data(), y)
    with pytest.raises(ValueError, match=r"^y: row 3 contains a number too large for float32"):
        transcoder.fit(data(), targets()).score(data(), y)
    wide = TopKSAE(M, 3, **SMALL, dtype="float64").fit(X)
    assert np.isfinite(wide.transform(X)).all()


def test_an_engine_keeps_its_configuration() -> None:
    model = TopKSAE(M, 3, **SMALL).fit(data())
    with pytest.raises(AttributeError):
        model._engine.config = SparseCodeConfig(D, M)
    model._engine.learning_rate = 0.25
    assert model._engine.config.learning_rate == 0.25
