"""What a dictionary begins with, and what resampled latents begin with again."""

from __future__ import annotations

import numpy as np
import pytest
from test_dictionaries import DYING, OUT, SMALL, D, M, N, data, fitted, make, names, one_thread

from fastsae import TopKSAE, Transcoder
from fastsae.initializers import MOST_ROWS, center_of, initialize_code
from fastsae.resampling import dead_latents, resample
from fastsae.sparse_code import SparseCodeConfig

__all__ = ["one_thread"]  # for every test here


# The first parameters


def test_a_matched_encoder_keeps_the_norm_of_random_rows() -> None:
    model = fitted("topk", max_epochs=0, dtype="float64", encoder_init_norm="matched", bias_init="zeros")
    X = np.random.default_rng(7).standard_normal((4000, model.n_features_in_))
    X /= np.linalg.norm(X, axis=1, keepdims=True)
    assert np.linalg.norm(model.reconstruct(X), axis=1).mean() == pytest.approx(1.0, rel=0.05)  # of 256 other rows
    cosines = (model.encoder_ * model.decoder_).sum(axis=1) / np.linalg.norm(model.encoder_, axis=1)
    np.testing.assert_allclose(cosines, 1.0, rtol=1e-12)


def test_a_matched_encoder_is_0_where_its_input_has_its_center() -> None:
    X = data() + 3.0
    model = make("topk", pre_bias=False, encoder_init_norm="matched", bias_init="mean", dtype="float64", max_epochs=0)
    model.fit(X)
    np.testing.assert_allclose(model.encoder_bias_, -model.encoder_ @ X.astype(np.float64).mean(axis=0), rtol=1e-10)


def test_rows_without_variance_teach_nothing() -> None:
    X = np.full((100, 8), 1e3 + 0.1)
    model = make("topk", loss_reduction="fvu_data", bias_init="zeros", dtype="float64", max_epochs=1).fit(X)
    assert model._engine.get("data_variance") == 0
    assert model.history_["loss"] == [0.0]


def test_the_variance_that_a_training_begins_with_divides_its_loss() -> None:
    X = data().astype(np.float64)
    for w in (None, np.arange(len(X)) % 3.0):
        model = make("topk", loss_reduction="fvu_data", dtype="float64", max_epochs=1).fit(X, sample_weight=w)
        expected = np.average(((X - np.average(X, axis=0, weights=w)) ** 2).sum(axis=1), weights=w)
        assert model._engine.get("data_variance") == pytest.approx(expected, rel=1e-12)
        model.partial_fit(X * 2)  # which does not change it
        assert model._engine.get("data_variance") == pytest.approx(expected, rel=1e-12)


@names
def test_first_parameters(name: str) -> None:
    model = fitted(name, max_epochs=0, dtype="float64", decoder_init_norm=0.5, encoder_init_norm=2.0)
    np.testing.assert_allclose(np.linalg.norm(model.encoder_, axis=1), 2.0, rtol=1e-12)
    np.testing.assert_allclose(np.linalg.norm(model.decoder_, axis=1), 0.5, rtol=1e-12)
    if not isinstance(model, Transcoder):
        np.testing.assert_allclose(model.encoder_, 4 * model.decoder_, rtol=1e-12)
    same = fitted(name, max_epochs=0, dtype="float64", decoder_init_norm=0.5, encoder_init_norm=2.0)
    np.testing.assert_array_equal(same.encoder_, model.encoder_)
    other = fitted(name, max_epochs=0, random_state=1)
    assert not np.allclose(other.encoder_, model.encoder_)
    default = fitted(name, max_epochs=0)
    length = {"topk rescaled": 0.5, "l1": 0.1, "sparsify": 1.0, "transcoder": 0.0, "skip transcoder": 0.1}.get(
        name, 1.0
    )
    np.testing.assert_allclose(np.linalg.norm(default.decoder_, axis=1), length, rtol=1e-6)


@pytest.mark.parametrize("kind", ["zeros", "mean", "geometric_median"])
def test_the_first_bias(kind: str) -> None:
    X, w = data(dtype=np.float64), np.random.default_rng(1).uniform(0, 2, N)
    X[0] += 1000
    w[5] = 0
    X[5] += 1e6
    model = make("topk", max_epochs=0, dtype="float64", bias_init=kind).fit(X, sample_weight=w)
    expected = center_of(kind, X, w)
    np.testing.assert_allclose(model.decoder_bias_, expected, rtol=1e-12)
    if kind == "geometric_median":
        pull = (w[:, None] * (X - expected) / np.linalg.norm(X - expected, axis=1, keepdims=True)).sum(axis=0)
        assert np.linalg.norm(pull) < 1e-3 * w.sum()
    else:
        np.testing.assert_allclose(expected, np.average(X, axis=0, weights=w) if kind == "mean" else 0, rtol=1e-12)
    # Without a bias that is subtracted, that of the encoder centres z; a transcoder's output has a center of its own.
    y = X[:, :OUT] ** 2
    for architecture in ("relu", "gated"):
        transcoder = Transcoder(M, architecture=architecture, scale=None, bias_init=kind, **SMALL)
        transcoder.set_params(max_epochs=0, dtype="float64").fit(X, y, sample_weight=w)
        np.testing.assert_allclose(transcoder.decoder_bias_, center_of(kind, y, w), rtol=1e-12)
        z = transcoder.encoder_ @ expected + transcoder.encoder_bias_
        np.testing.assert_allclose(z, 0, atol=1e-9 * max(1, abs(expected).max()))


def test_the_center_of_many_rows_is_that_of_some(monkeypatch: pytest.MonkeyPatch) -> None:
    assert MOST_ROWS >= 4096
    monkeypatch.setattr("fastsae.dictionaries.MOST_ROWS", 10)
    X = np.arange(50.0)[:, None] ** np.arange(1, 4)
    first = TopKSAE(M, 3, max_epochs=0, bias_init="mean", random_state=0, dtype="float64").fit(X).decoder_bias_
    again = TopKSAE(M, 3, max_epochs=0, bias_init="mean", random_state=0, dtype="float64").fit(X).decoder_bias_
    np.testing.assert_array_equal(first, again)
    assert first[0] != X[:, 0].mean()
    total = first[0] * 10
    assert total == pytest.approx(round(total))  # ten of the numbers 0 ... 49


def test_first_parameters_by_hand() -> None:
    config = SparseCodeConfig(D, M, activation="gated", sparsity="l1", pre_bias=False, dtype="float64")
    center = np.arange(1.0, D + 1)
    made = initialize_code(
        config, np.random.default_rng(0), decoder_norm=0.0, input_center=center, output_center=-center
    )
    np.testing.assert_allclose(np.linalg.norm(made["W_enc"], axis=1), 1.0)
    assert not made["W_dec"].any()
    assert not made["r_mag"].any()
    np.testing.assert_allclose(made["b_gate"], -made["W_enc"] @ center)
    np.testing.assert_array_equal(made["b_mag"], made["b_gate"])
    np.testing.assert_array_equal(made["b_dec"], -center)
    jumping = SparseCodeConfig(D, M, activation="jump_relu", initial_threshold=0.25)
    assert (initialize_code(jumping, np.random.default_rng(0))["threshold"] == 0.25).all()
    assert set(made) == set(config.parameter_shapes)


# Resampling


def test_resampling_by_hand() -> None:
    X = data(dtype=np.float64)
    model = fitted("l1 resampled", dtype="float64", scale=None, resample_every=None, dead_after=20)
    engine = model._engine
    since = np.zeros(M)
    dead = np.array([2, 7, 11])
    since[dead] = 21
    engine.set("rows_since_fired", since)
    np.testing.assert_array_equal(np.flatnonzero(dead_latents(engine)), dead)
    alive = np.setdiff1d(np.arange(M), dead)
    changed = resample(engine, X, np.random.default_rng(0))
    before = {name: engine.get(name) for name in changed}
    for name in ("first_moment.W_enc", "second_moment.W_dec", "first_moment.b_enc", "b_enc", "rows_since_fired"):
        assert not changed[name][dead].any()
    for name, value in changed.items():
        np.testing.assert_array_equal(value[alive], before[name][alive], err_msg=name)
    v = changed["W_dec"][dead]
    np.testing.assert_allclose(np.linalg.norm(v, axis=1), 1.0)
    length = 0.2 * np.linalg.norm(before["W_enc"][alive], axis=1).mean()
    np.testing.assert_allclose(changed["W_enc"][dead], length * v)
    directions = X - engine.get("b_dec")
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    assert all(np.isclose(directions, row, atol=1e-12).all(axis=1).any() for row in v)
    # Rows that are reconstructed well are not drawn.
    few = resample(engine, X[:2], np.random.default_rng(0))
    np.testing.assert_array_equal(np.flatnonzero((few["W_enc"] != before["W_enc"]).any(axis=1)), dead[:2])
    engine.set("rows_since_fired", np.zeros(M))
    assert resample(engine, X, np.random.default_rng(0)) == {}


def test_rows_with_a_large_error_are_drawn_more_often() -> None:
    model = fitted("l1 resampled", dtype="float64", scale=None, resample_every=None, dead_after=20)
    engine = model._engine
    since = np.zeros(M)
    since[3] = 21
    engine.set("rows_since_fired", since)
    X = np.stack([engine.get("b_dec") + np.eye(D)[0], engine.get("b_dec") + 100 * np.eye(D)[1]])
    error = np.linalg.norm(X - engine.reconstruct(X), axis=1)
    drawn = [resample(engine, X, np.random.default_rng(i))["W_dec"][3, 1] > 0.5 for i in range(300)]
    share = error[1] / error.sum()
    assert abs(np.mean(drawn) - share) < 4 * np.sqrt(share * (1 - share) / 300) + 1e-9


def test_resampling_in_training() -> None:
    sparse = {**DYING, "max_epochs": 6}
    with_it, without = fitted("l1 resampled", **sparse), fitted("l1 resampled", resample_every=None, **sparse)
    assert not np.array_equal(with_it.encoder_, without.encoder_)
    assert with_it._state.resampled == 28
    assert fitted("l1 resampled")._engine.config.dead_after == round(7 / 2 * 16)
    with pytest.raises(ValueError, match="resample_every: resampling is that of"):
        fitted("l1 resampled", solver="sign_sgd")
    with pytest.raises(ValueError, match="counts dead_after in steps"):
        fitted("l1 resampled", batch_size=None)
