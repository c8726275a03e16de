"""check_gradient: right gradients pass, wrong ones do not, and what has no gradient is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fastsae import Config, Engine, LayerConfig, SparseAutoencoder, check_gradient

N, D, H = 12, 6, 4
BOUND = 1e-9

SMOOTH: dict[str, dict[str, Any]] = {
    "sigmoid, KL": {"rho": 0.2},
    "tanh, KL": {"activation": "tanh", "output_activation": "tanh", "rho": 0.2},
    "softplus": {"activation": "softplus", "output_activation": "softplus", "penalty": "none"},
    "identity": {"activation": "identity", "output_activation": "identity", "penalty": "none"},
    "log": {"penalty": "log", "activation": "tanh"},
    "l1 of a positive layer": {"penalty": "l1"},
    "cross-entropy": {"loss": "cross_entropy", "rho": 0.2},
    "mean": {"loss_reduction": "mean", "rho": 0.2},
    "tied": {"tied": True, "weight_decay": 0.5},
    "decay": {"weight_decay": 0.5},
    "all rows": {"rho_hat": "full", "batch_size": None, "rho": 0.2},
}
KINKED: dict[str, dict[str, Any]] = {
    "relu": {"activation": "relu", "penalty": "none"},
    "relu, l1": {"activation": "relu", "penalty": "l1"},
    "l1 of tanh": {"activation": "tanh", "penalty": "l1"},
}


def data(n: int = N) -> np.ndarray:
    return np.random.default_rng(0).uniform(0.05, 0.95, (n, D))


def make(**options: Any) -> SparseAutoencoder:
    small = {"n_hidden": H, "max_epochs": 1, "random_state": 0, "verbose": False}
    return SparseAutoencoder(**{**small, **options}).fit(data())


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("name", SMOOTH)
def test_right_gradients_pass(name: str, dtype: str, weighted: bool) -> None:
    sae = make(**SMOOTH[name], dtype=dtype)
    weights = np.random.default_rng(1).uniform(0.2, 3, N) if weighted else None
    error = check_gradient(sae, data(), sample_weight=weights)
    assert 0 < error < BOUND
    assert 0 < check_gradient(sae._engine, data(), sample_weight=weights) < BOUND


@pytest.mark.parametrize("name", KINKED)
def test_right_gradients_pass_away_from_kinks(name: str) -> None:
    engine = make(**KINKED[name], dtype="float64")._engine
    random = np.random.default_rng(0)
    engine.set("W1", random.uniform(0.3, 1, (H, D)) * np.sign(random.standard_normal((H, 1))))
    engine.set("b1", np.sign(engine.get("W1")[:, 0]))
    assert np.abs(data() @ engine.get("W1").T + engine.get("b1")).min() > 0.1
    assert check_gradient(engine, data()) < BOUND


@pytest.mark.parametrize("tied", [False, True])
def test_deep_models(tied: bool) -> None:
    hidden = LayerConfig(5, "tanh", "kl", rho=0.2), LayerConfig(3, "sigmoid", "log"), LayerConfig(5, "softplus")
    engine = Engine(Config(D, (*hidden, LayerConfig(D, "identity")), tied=tied))
    random = np.random.default_rng(0)
    for name in engine.parameter_names():
        engine.set(name, random.uniform(-0.7, 0.7, engine.get(name).shape))
    assert check_gradient(engine, data()) < BOUND


@pytest.mark.parametrize("tensor", ["W1", "b1", "W2", "b2"])
@pytest.mark.parametrize("factor", [0.0, 0.5, -1.0, 1.001])
def test_wrong_gradients_do_not_pass(tensor: str, factor: float, monkeypatch: pytest.MonkeyPatch) -> None:
    sae = make(rho=0.2, dtype="float64")
    get = Engine.get

    def wrong(self: Engine, name: str) -> Any:
        return get(self, name) * (factor if name == "gradient." + tensor else 1.0)

    sae._engine.gradient(data())
    right = {name: get(sae._engine, "gradient." + name).ravel() for name in sae._engine.parameter_names()}
    fault = {name: value * (1 - factor) * (name == tensor) for name, value in right.items()}
    all_of = [np.concatenate(list(part.values())) for part in (right, fault)]
    expected = np.linalg.norm(all_of[1]) / np.linalg.norm(2 * all_of[0] - all_of[1])
    monkeypatch.setattr(Engine, "get", wrong)
    assert check_gradient(sae, data()) == pytest.approx(expected, rel=1e-4)
    assert expected > 1e-6


def test_one_wrong_coordinate_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    sae = make(rho=0.2)
    get = Engine.get

    def wrong(self: Engine, name: str) -> Any:
        value = get(self, name)
        if name == "gradient.W1":
            value[2, 3] += 1e-4
        return value

    monkeypatch.setattr(Engine, "get", wrong)
    assert check_gradient(sae, data()) > 1e-6


def test_a_wrong_cost_does_not_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    sae = make(rho=0.2)
    evaluate = Engine.evaluate

    def wrong(self: Engine, X: Any, *arguments: Any, **rest: Any) -> dict[str, float]:
        parts = evaluate(self, X, *arguments, **rest)
        return {**parts, "loss": parts["loss"] - parts["decay"]}

    monkeypatch.setattr(Engine, "evaluate", wrong)
    assert check_gradient(sae, data()) > 1e-6


def test_the_model_is_left_alone() -> None:
    sae = make(dtype="float32")
    names = sae._engine.names()
    before = [sae._engine.get(name).tobytes() for name in names]
    check_gradient(sae, data())
    assert [sae._engine.get(name).tobytes() for name in names] == before
    assert sae._engine.steps == 1


def test_coordinates_are_drawn_by_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    sae = make(dtype="float64", rho=0.2)
    errors = [check_gradient(sae, data(), n_coordinates=2, random_state=seed) for seed in (0, 0, 1)]
    assert errors[0] == errors[1] != errors[2]
    calls = []
    evaluate = Engine.evaluate

    def spy(self: Engine, *arguments: Any, **rest: Any) -> dict[str, float]:
        calls.append(1)
        return evaluate(self, *arguments, **rest)

    monkeypatch.setattr(Engine, "evaluate", spy)
    check_gradient(sae, data(), n_coordinates=2)
    assert len(calls) == 4 * 4 * 2  # points of the stencil, tensors, coordinates
    calls.clear()
    check_gradient(sae, data(), n_coordinates=10**6)
    assert len(calls) == 4 * (2 * H * D + H + D)


def test_many_chunks_and_float32_rows() -> None:
    sae = make(rho=0.2)
    assert check_gradient(sae, data(700).astype(np.float32), n_coordinates=5) < BOUND
    assert check_gradient(sae, data().tolist()) < BOUND


def test_what_is_refused() -> None:
    with pytest.raises(ValueError, match="rho_hat='ema'"):
        check_gradient(make(rho_hat="ema"), data())
    for model in (SparseAutoencoder(), None, "model", 5):
        with pytest.raises(ValueError, match=r"^model: expected a fitted estimator or an Engine"):
            check_gradient(model, data())
    sae = make()
    for X in (data()[0], data()[:, :3], data() * 1j, "x", [[1], [1, 2]], data()[:0]):
        with pytest.raises(ValueError, match=r"^X: expected"):
            check_gradient(sae, X)
    X = data()
    X[3, 1] = np.nan
    with pytest.raises(ValueError, match=r"^X: row 3 contains NaN"):
        check_gradient(sae, X)
    for weights in (np.ones(3), -np.ones(N), np.zeros(N), ["x"] * N):
        with pytest.raises(ValueError, match=r"^sample_weight: expected"):
            check_gradient(sae, data(), sample_weight=weights)
    for count in (0, -1, 1.5, "x", None, True):
        with pytest.raises(ValueError, match=r"^n_coordinates: expected"):
            check_gradient(sae, data(), n_coordinates=count)
