"""VariationalAutoencoder: its scores against closed forms, and what its options promise."""

from __future__ import annotations

import math
import pickle
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import multivariate_normal
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV
from tolerances import FLOAT64

import fastsae
from fastsae import VariationalAutoencoder, check_gradient

N, D, Z = 60, 7, 2


def data(n: int = N, dtype: Any = np.float32, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(0.05, 0.95, (n, D)).astype(dtype)


def make(**options: Any) -> VariationalAutoencoder:
    small = {"hidden": (5,), "max_epochs": 3, "batch_size": 16, "random_state": 0, "verbose": False}
    return VariationalAutoencoder(Z, **{**small, **options})


def state(vae: VariationalAutoencoder) -> dict[str, bytes]:
    return {name: vae._engine.get(name).tobytes() for name in vae._engine.state_names()}


def linear(noise_std: float, exact: bool, device: str = "cpu") -> tuple[VariationalAutoencoder, np.ndarray, np.ndarray]:
    """A linear-Gaussian model ``x = A z + m + s e``, N rows of it, and their exact ``log p(x)``.

    The columns of A are orthogonal, so that the posterior of z is a product of normal distributions: with `exact` the
    encoder is that posterior (Tipping and Bishop 1999), else it has too small a variance.
    """
    vae = make(hidden=(), likelihood="gaussian", noise_std=noise_std, dtype="float64", device=device).fit(data())
    random = np.random.default_rng(3)
    A = np.linalg.qr(random.normal(size=(D, Z)))[0] * [1.5, 0.4]
    m = random.normal(size=D)
    precision = (A**2).sum(axis=0) / noise_std**2 + 1
    means = (A / noise_std**2 / precision).T
    log_variance = -np.log(precision) - (0 if exact else 1)
    vae._engine.set_parameters(
        {
            "W1": np.concatenate([means, np.zeros_like(means)]),
            "b1": np.concatenate([-means @ m, log_variance]),
            "W2": A,
            "b2": m,
        }
    )
    X = random.normal(size=(N, Z)) @ A.T + m + noise_std * random.normal(size=(N, D))
    log_p = multivariate_normal(m, A @ A.T + noise_std**2 * np.eye(D)).logpdf(X)
    return vae, X, log_p


# Scores


@pytest.mark.parametrize("noise_std", [0.3, 1.0, 2.5])
def test_log_likelihood_is_exact_where_the_posterior_is(noise_std: float, device: str) -> None:
    """Every importance weight is then p(x) itself."""
    vae, X, log_p = linear(noise_std, exact=True, device=device)
    for n_importance in (1, 3):
        np.testing.assert_allclose(vae.log_likelihood(X, n_importance), log_p, rtol=1e-10, atol=1e-10)
    assert vae.score(X) == pytest.approx(log_p.mean(), abs=0.3)  # one draw a row: right in the mean


def test_log_likelihood_rises_to_the_exact_one(device: str) -> None:
    vae, X, log_p = linear(0.5, exact=False, device=device)
    bounds = [vae.score(X)] + [vae.log_likelihood(X, n).mean() for n in (4, 64, 4096)]
    assert bounds == sorted(bounds)
    assert bounds[-1] == pytest.approx(log_p.mean(), abs=0.02)
    assert bounds[0] < log_p.mean() - 0.2
    # The divergence of q from the posterior is the gap: per latent (e^-1 - 1 + 1) / 2.
    assert log_p.mean() - bounds[0] == pytest.approx(Z * math.exp(-1) / 2, abs=0.3)


@pytest.mark.parametrize("likelihood", ["bernoulli", "gaussian"])
def test_scores_are_the_formula(likelihood: str) -> None:
    X = data(dtype=np.float64)
    vae = make(likelihood=likelihood, noise_std=0.4, dtype="float64").fit(X)
    noise = next(vae._noise(X))
    mean, log_variance = np.split(vae._engine.encode_distribution(X), 2, axis=1)
    z = mean + np.exp(log_variance / 2) * noise
    y = vae.inverse_transform(z)
    if likelihood == "bernoulli":
        log_p = (X * np.log(y) + (1 - X) * np.log1p(-y)).sum(axis=1)
    else:
        log_p = -((X - y) ** 2).sum(axis=1) / (2 * 0.4**2) - D / 2 * np.log(2 * np.pi * 0.4**2)
    divergence = ((mean**2 + np.exp(log_variance) - 1 - log_variance) / 2).sum(axis=1)
    np.testing.assert_allclose(vae.score_samples(X), log_p - divergence, rtol=FLOAT64)
    ratio = (np.log(np.exp(-(z**2) / 2)) - (np.log(np.exp(-(noise**2) / 2)) - log_variance / 2)).sum(axis=1)
    np.testing.assert_allclose(vae.log_likelihood(X, 1), log_p + ratio, rtol=FLOAT64)
    assert vae.score(X) == pytest.approx(vae.score_samples(X).mean(), rel=FLOAT64)
    np.testing.assert_array_equal(vae.transform(X), mean)
    np.testing.assert_array_equal(vae.reconstruct(X), vae.inverse_transform(mean))


def test_draws_are_of_the_row_alone() -> None:
    """Whatever stands before it; other rows, latents and draws have others, which are normal."""
    vae, X = make(dtype="float64").fit(data()), data(4200)
    scores, order = vae.score_samples(X), np.random.default_rng(0).permutation(len(X))
    np.testing.assert_allclose(vae.score_samples(X[order]), scores[order], rtol=FLOAT64)
    np.testing.assert_allclose(vae.score_samples(X[4097:4099]), scores[4097:4099], rtol=FLOAT64)
    draws = vae._noise(np.array(X, np.float64))
    noise = np.concatenate([next(draws) for _ in range(5)], axis=1)
    assert len(np.unique(noise)) == noise.size
    assert np.abs(np.corrcoef(noise.T) - np.eye(10)).max() < 5 / len(X) ** 0.5
    assert abs(noise.mean()) < 5 / noise.size**0.5
    assert noise.std() == pytest.approx(1, abs=5 / (2 * noise.size) ** 0.5)
    other = next(make(random_state=1, dtype="float64").fit(data())._noise(np.array(X, np.float64)))
    assert not np.isclose(other, noise[:, :Z]).any()
    zeros = next(vae._noise(np.array([[0.0] * D, [-0.0] * D])))
    np.testing.assert_array_equal(zeros[0], zeros[1])


def test_cost_of_the_gaussian_is_the_scaled_bound() -> None:
    X, std = data(3000), 0.3
    vae = make(likelihood="gaussian", noise_std=std, dtype="float64").fit(X)
    parts = vae._engine.evaluate(X)
    bound = (parts["reconstruction"] + parts["penalty"]) / std**2 + D / 2 * math.log(2 * math.pi * std**2)
    assert -vae.score(X) == pytest.approx(bound, abs=0.1)
    assert parts["penalty"] > 0.01 * std**2


def test_log_likelihood_can_be_interrupted() -> None:
    vae = make().fit(data())
    began = time.monotonic()
    signal.setitimer(signal.ITIMER_REAL, 0.3)
    before = signal.signal(signal.SIGALRM, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            vae.log_likelihood(data(), 10**8)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert time.monotonic() - began < 5
    assert np.isfinite(vae.score(data()))


# The generative model


def test_samples_have_the_distribution_of_the_decoder(device: str) -> None:
    vae, _, _ = linear(0.5, exact=True, device=device)
    A, m = vae._engine.get("W2"), vae._engine.get("b2")
    X = vae.sample(20_000, random_state=1)
    np.testing.assert_allclose(X.mean(axis=0), m, atol=0.06)
    np.testing.assert_allclose(np.cov(X.T), A @ A.T, atol=0.06)


def test_samples() -> None:
    vae = make().fit(data())
    X = vae.sample(9, random_state=3)
    assert X.shape == (9, D)
    assert X.dtype == np.float32
    assert X.min() >= 0
    assert X.max() <= 1
    np.testing.assert_array_equal(X, vae.sample(9, random_state=3))
    assert not np.array_equal(X, vae.sample(9))
    assert vae.sample().shape == (1, D)


# Training


@pytest.mark.parametrize("likelihood", ["bernoulli", "gaussian"])
def test_training_raises_the_bound(likelihood: str) -> None:
    random = np.random.default_rng(0)
    X = 1 / (1 + np.exp(-3 * random.normal(size=(500, 2)) @ random.normal(size=(2, D))))
    vae = make(likelihood=likelihood, noise_std=0.3, learning_rate=1e-2, max_epochs=0).fit(X)
    before = vae.score(X)
    vae = vae.set_params(max_epochs=40).resume(X)
    assert vae.score(X) > before + 0.5
    loss, sums = (np.array(vae.history_[name]) for name in ("loss", "reconstruction"))
    np.testing.assert_allclose(loss, sums + vae.history_["penalty"], rtol=1e-12)  # no decay
    assert loss[-1] < loss[0]


def test_resume_and_checkpoint_give_the_same_bits(tmp_path: Path) -> None:
    X, path = data(), tmp_path / "vae.safetensors"
    options = {"hidden": (6, 5), "warm_up": 4, "free_bits": 0.02, "validation_fraction": 0.2}
    whole = make(max_epochs=7, **options).fit(X)
    calls = []
    stopped = make(max_epochs=3, checkpoint=path, **options).fit(X)
    restored = fastsae.load(path)
    assert isinstance(restored, VariationalAutoencoder)
    assert restored.hidden == (6, 5)
    assert {n: v for n, v in restored.get_params().items() if n != "checkpoint"} == {
        n: v for n, v in stopped.get_params().items() if n != "checkpoint"
    }
    np.testing.assert_array_equal(restored.score_samples(X), stopped.score_samples(X))
    restored.set_params(max_epochs=7, checkpoint=None).resume(X)
    assert state(restored) == state(whole)
    assert restored.history_ == whole.history_
    np.testing.assert_array_equal(restored.log_likelihood(X, 5), whole.log_likelihood(X, 5))

    def interrupt(entry: dict[str, float]) -> None:
        calls.append(entry)
        if len(calls) == 2:
            raise KeyboardInterrupt

    broken = make(max_epochs=7, callback=interrupt, **options)
    with pytest.raises(KeyboardInterrupt):
        broken.fit(X)
    copy = pickle.loads(pickle.dumps(broken.set_params(callback=None)))
    assert state(copy.resume(X)) == state(whole)


def test_partial_fit_draws_anew_in_each_pass() -> None:
    X = data()
    a, b = make(), make().fit(X)
    for _ in range(3):
        a.partial_fit(X)
    assert state(a) == state(b)
    fixed = make(batch_size=None, learning_rate=0.0)
    costs = [fixed.partial_fit(X).history_["loss"][-1] for _ in range(3)]
    assert len(set(costs)) == 3


def test_lbfgs_keeps_its_draws() -> None:
    vae = make(solver="lbfgs", max_epochs=15, dtype="float64").fit(data())
    loss = np.array(vae.history_["loss"])
    assert (np.diff(loss) < 0).all()
    with pytest.raises(ValueError, match="warm_up: solver='lbfgs'"):
        make(solver="lbfgs", warm_up=3).fit(data())


@pytest.mark.parametrize("likelihood", ["bernoulli", "gaussian"])
def test_gradient(likelihood: str) -> None:
    vae = make(likelihood=likelihood, noise_std=0.5, activation="tanh", hidden=(6, 4)).fit(data())
    assert 0 < check_gradient(vae, data()[:10]) < 1e-9


def test_no_option_is_ignored() -> None:
    X = data()
    base = state(make(likelihood="gaussian").fit(X))
    for options in (
        {"n_latents": 3},
        {"hidden": (4,)},
        {"hidden": (5, 4)},
        {"activation": "tanh"},
        {"likelihood": "bernoulli"},
        {"noise_std": 0.5},
        {"beta": 2.0},
        {"free_bits": 0.5},
        {"warm_up": 2},
        {"weight_decay": 0.1},
        {"init": "he"},
        {"random_state": 1},
    ):
        assert state(make(**{"likelihood": "gaussian"}).set_params(**options).fit(X)) != base, options


# scikit-learn and bad input


def test_conventions() -> None:
    X = data()
    vae = make(hidden=[5]).fit(X)
    assert list(vae.get_feature_names_out()) == ["variationalautoencoder0", "variationalautoencoder1"]
    twin = clone(vae)
    assert twin.get_params() == vae.get_params()
    assert state(twin.fit(X)) == state(vae)
    search = GridSearchCV(make(), {"hidden": [(3,), (4, 3)], "beta": [0.5, 1.0]}, cv=2).fit(X)
    assert np.isfinite(search.cv_results_["mean_test_score"]).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_latents": 0}, "n_latents: expected an integer >= 1, got 0"),
        ({"hidden": 5}, "hidden: expected a tuple of integers, got 5"),
        ({"hidden": (5, 0)}, "hidden: expected an integer >= 1, got 0"),
        ({"hidden": "ab"}, "hidden"),
        ({"activation": "gelu"}, "activation"),
        ({"activation": "gelu", "hidden": ()}, "activation"),
        ({"likelihood": "poisson"}, "likelihood: expected one of 'bernoulli', 'gaussian', got 'poisson'"),
        ({"noise_std": 0.0}, "noise_std: expected a number in"),
        ({"noise_std": math.inf}, "noise_std"),
        ({"beta": -1.0}, "^beta: expected a number"),
        ({"beta": math.nan}, "^beta"),
        ({"free_bits": -1.0}, "^free_bits: expected a number"),
        ({"warm_up": -1}, "^warm_up: expected a number"),
        ({"weight_decay": -1}, "weight_decay"),
        ({"init": "zeros"}, "init"),
    ],
)
def test_bad_options(options: dict[str, Any], message: str) -> None:
    X = data()
    vae = make().fit(X)
    before = state(vae)
    with pytest.raises(ValueError, match=message):
        vae.set_params(**options).fit(X)
    assert state(vae) == before


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"n_latents": 3}, "^n_latents: expected 2"),
        ({"hidden": (5, 4)}, r"^hidden: expected \(5,\)"),
        ({"activation": "tanh"}, "^activation"),
        ({"likelihood": "gaussian"}, "^likelihood: expected 'bernoulli'"),
        ({"beta": 2.0}, "^beta: expected 1.0"),
        ({"free_bits": 2.0}, "^free_bits: expected 0.0"),
        ({"warm_up": 2.0}, "^warm_up: expected 0.0"),
        ({"weight_decay": 2.0}, "^weight_decay: expected 0.0"),
    ],
)
def test_resume_names_a_changed_option(changed: dict[str, Any], message: str) -> None:
    vae = make().fit(data()).set_params(max_epochs=5, **changed)
    with pytest.raises(ValueError, match=message):
        vae.resume(data())


def test_bad_rows() -> None:
    vae, X = make().fit(data()), data()
    wrong = X.copy()
    wrong[3, 2] = 1.5
    for call in (vae.score_samples, vae.log_likelihood, make().fit):
        with pytest.raises(ValueError, match=r"X: .*needs numbers in \[0, 1\]"):
            call(wrong)
    make(likelihood="gaussian").fit(wrong).score(wrong)
    for n_importance in (0, 1.5, True):
        with pytest.raises(ValueError, match="n_importance: expected an integer >= 1"):
            vae.log_likelihood(X, n_importance)
    for n_samples in (0, 2.5):
        with pytest.raises(ValueError, match="n_samples: expected an integer >= 1"):
            vae.sample(n_samples)
    with pytest.raises(ValueError, match="random_state"):
        vae.sample(2, random_state="x")
    with pytest.raises(ValueError, match="NaN"):
        vae.score_samples(np.full((2, D), np.nan))
