"""The limit of the gradient's norm. test_schedules.py has whole trainings with it against the reference."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
from test_images import model as image_model
from test_parity import D, N, check_training, data, deep, make_engine, parameters_for, two_layers, weights_for

from fastsae import Config, ConvConfig, Engine, GaussianConfig, LayerConfig, SparseAutoencoder
from fastsae import config as options_of

RATE = 0.01
BY_LENGTH = [name for name in options_of.OPTIMIZERS if name != "sign_sgd"]  # to which a gradient's length is nothing


def variational(**rest: Any) -> Config:
    layers = (LayerConfig(6, "tanh"), GaussianConfig(3), LayerConfig(6, "tanh"), LayerConfig(D))
    return Config(D, layers, n_encoder_layers=2, **rest)


MODELS: dict[str, Any] = {
    "classic": lambda **rest: two_layers("sigmoid", "kl", **rest),
    "layers of different decay": lambda **rest: Config(
        D, (LayerConfig(5, weight_decay=0.5), LayerConfig(D, weight_decay=0.1)), **rest
    ),
    "moving averages": lambda **rest: two_layers("sigmoid", "kl", rho_hat="ema", **rest),
    "deep": deep,
    "tied deep": lambda **rest: deep(tied=True, **rest),
    "L1 on weights": lambda **rest: two_layers("tanh", "l1", weight_l1=0.1, **rest),
    "contractive": lambda **rest: two_layers("tanh", contraction=0.3, weight_l1=0.1, **rest),
    "softmax": lambda **rest: Config(D, (LayerConfig(4), LayerConfig(D, "softmax")), loss="cross_entropy", **rest),
    "variational": variational,
    "images": lambda **rest: image_model((1, D, 1), ConvConfig(2, 1, activation="tanh"), LayerConfig(D), **rest),
}


def moved(config: Config, device: str, full_batch_rows: int = 0) -> tuple[dict[str, np.ndarray], float, float]:
    """By what one step of gradient descent moves each parameter, over the rate; the gradient's norm and its own."""
    engine = make_engine(config, parameters_for(config), device, full_batch_rows)
    X, w, before = data(N, D), weights_for(N), engine.get_parameters()
    norm = engine.gradient(X, w)["gradient_norm"]
    engine.step(X, w)
    assert engine.metrics()["gradient_norm"] == pytest.approx(norm, rel=1e-12), "the norm is that before"
    by = {name: (before[name] - engine.get(name)) / RATE for name in before}
    return by, norm, math.sqrt(sum(float((value**2).sum()) for value in by.values()))


@pytest.mark.parametrize("full_batch_rows", [0, 4])
@pytest.mark.parametrize("model", MODELS)
def test_the_whole_gradient_is_scaled_down(model: str, full_batch_rows: int, device: str) -> None:
    """Decay and penalties included: the step keeps its direction and has the length that was asked for."""
    options: dict[str, Any] = {"optimizer": "sgd", "learning_rate": RATE, "dtype": "float64"}
    free, norm, _ = moved(MODELS[model](**options), device, full_batch_rows)
    for share in (0.9, 0.01, 1e-9):
        by, same, length = moved(MODELS[model](**options, max_grad_norm=share * norm), device, full_batch_rows)
        assert same == pytest.approx(norm, rel=1e-12)
        assert length == pytest.approx(share * norm, rel=1e-4 if share < 1e-6 else 1e-9)
        for name, value in free.items():
            np.testing.assert_allclose(by[name], share * value, rtol=0, atol=1e-12 * norm, err_msg=name)


@pytest.mark.parametrize("dtype", options_of.DTYPES)
@pytest.mark.parametrize("optimizer", BY_LENGTH)
def test_a_shorter_gradient_stays_as_it_is(optimizer: str, dtype: str, device: str) -> None:
    config = two_layers("sigmoid", "kl", optimizer=optimizer, dtype=dtype)
    limited = two_layers("sigmoid", "kl", optimizer=optimizer, dtype=dtype, max_grad_norm=1e6)
    engines = [make_engine(one, parameters_for(one), device) for one in (config, limited)]
    for engine in engines:
        engine.run_epoch(data(N, D), None, 3)
    for name in engines[0].state_names():
        np.testing.assert_array_equal(*(engine.get(name) for engine in engines))


@pytest.mark.parametrize("optimizer", BY_LENGTH)
def test_some_steps_are_limited_and_some_are_not(optimizer: str, device: str) -> None:
    """The limit lies between the norms of the first and the last steps, and each step is judged by its own."""
    config = two_layers("tanh", "none", optimizer=optimizer, dtype="float64", learning_rate=0.1)
    engine, norms = make_engine(config, parameters_for(config), device), []
    for _ in range(50):
        engine.reset_metrics()
        engine.step(data(N, D))
        norms.append(engine.metrics()["gradient_norm"])
    assert min(norms) < 0.7 * max(norms)
    between = float(np.mean([min(norms), max(norms)]))
    for rows in (0, 3):
        check_training(dataclasses.replace(config, max_grad_norm=between), device, full_batch_rows=rows)


def test_decoupled_decay_is_not_limited(device: str) -> None:
    """AdamW's decay is no part of J: a gradient of next to nothing leaves it whole."""
    config = two_layers(optimizer="adamw", weight_decay=0.5, max_grad_norm=1e-300, epsilon=1.0, dtype="float64")
    engine = make_engine(config, parameters_for(config), device)
    before = engine.get_parameters()
    engine.step(data(N, D))
    for name, value in before.items():
        kept = 1 - config.learning_rate * 0.5 if name.startswith("W") else 1.0
        np.testing.assert_allclose(engine.get(name), kept * value, rtol=1e-14, err_msg=name)


def test_numbers_that_are_not_finite_are_not_hidden(device: str) -> None:
    """No limit makes a step of an infinite gradient: it raises, and the next one is limited by its own norm."""
    config = two_layers("identity", output="identity", max_grad_norm=0.1, optimizer="sgd", dtype="float64")
    engine, twin = (make_engine(config, parameters_for(config), device) for _ in range(2))
    with pytest.raises(FloatingPointError):
        engine.step(np.full((N, D), 1e200))
    for one in (engine, twin):
        one.step(data(N, D))
    for name in twin.state_names():
        np.testing.assert_array_equal(engine.get(name), twin.get(name))


def test_signs_have_no_length() -> None:
    with pytest.raises(ValueError, match=r"^max_grad_norm: 'sign_sgd' takes only the signs of a gradient.* got 2.0"):
        two_layers(optimizer="sign_sgd", max_grad_norm=2.0).validate()


def test_large_gradients_do_no_harm() -> None:
    """A row far out throws plain gradient descent off; the limit keeps it, and the loss on the others falls."""
    X = np.random.default_rng(0).normal(size=(200, 5))
    X[::50] *= 1000
    usual = X[1:50]
    options: dict[str, Any] = {"solver": "sgd", "learning_rate": 0.01, "batch_size": 10, "penalty": "none"}
    options |= {"activation": "identity", "output_activation": "identity", "n_hidden": 3, "dtype": "float64"}
    options |= {"max_epochs": 20, "random_state": 0, "verbose": False}
    with pytest.raises(FloatingPointError):
        SparseAutoencoder(**options).fit(X)
    model = SparseAutoencoder(**options, max_grad_norm=1.0).fit(X)
    untrained = SparseAutoencoder(**{**options, "max_epochs": 0}).fit(X)
    assert model.score(usual) > untrained.score(usual)
    assert max(model.history_["gradient_norm"]) > 1.0


def test_the_limit_is_none_unless_asked_for() -> None:
    assert Config.max_grad_norm is SparseAutoencoder().max_grad_norm is None
    engine = Engine(two_layers())
    assert engine.config.max_grad_norm is None
