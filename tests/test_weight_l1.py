"""The L1 penalty on weights: its part of J, its slope, and which weights take it."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from test_images import model as image_model
from test_parity import (
    D,
    N,
    assert_near,
    check_gradient,
    check_training,
    data,
    deep,
    make_engine,
    parameters_for,
    two_layers,
    weights_for,
)

from fastsae import Config, ConvConfig, ConvTransposeConfig, Engine, GaussianConfig, LayerConfig, SparseAutoencoder
from fastsae import check_gradient as error_of_gradient
from fastsae import config as options_of

MU = 0.07


def own(*, decays: bool = True) -> Config:
    """Two layers with a penalty of their own each, and one with the model's."""
    layers = (
        LayerConfig(6, "tanh", weight_l1=0.3, weight_decay=0.2 if decays else None),
        LayerConfig(5, "sigmoid", weight_l1=0.0),
        LayerConfig(D, "identity"),
    )
    return Config(D, layers, weight_l1=MU, weight_decay=0.01)


MODELS: dict[str, Config] = {
    "classic": two_layers("sigmoid", "kl", weight_l1=MU),
    "without decay": two_layers("tanh", "l1", weight_l1=MU, weight_decay=0.0),
    "tied": two_layers("tanh", "log", weight_l1=MU, tied=True),
    "deep": deep(weight_l1=MU),
    "tied deep": deep(weight_l1=MU, tied=True),
    "layers of their own": own(),
    "contractive": two_layers("sigmoid", contraction=0.4, weight_l1=MU),
    "contractive to the second order": two_layers("tanh", contraction_hessian=0.4, weight_l1=MU),
    "deep contractive": deep(contraction=0.2, weight_l1=MU, n_encoder_layers=2),
    "adamw": two_layers("sigmoid", "kl", weight_l1=MU, optimizer="adamw", weight_decay=0.3),
    "variational": Config(
        D, (GaussianConfig(3, weight_l1=0.2), LayerConfig(D)), n_encoder_layers=1, weight_l1=MU, weight_decay=0.01
    ),
    "images": image_model(
        (1, D, 1), ConvConfig(2, 1, activation="tanh"), ConvTransposeConfig(1, 1, weight_l1=0.2), weight_l1=MU
    ),
    "tied images": image_model(
        (1, D, 1), ConvConfig(2, 1, activation="tanh"), ConvTransposeConfig(1, 1), weight_l1=MU, tied=True
    ),
}


@pytest.mark.parametrize("dtype", options_of.DTYPES)
@pytest.mark.parametrize("model", MODELS)
def test_parity(model: str, dtype: str, device: str) -> None:
    config = dataclasses.replace(MODELS[model], dtype=dtype)
    for rows in (0, 4):
        check_gradient(config, device, weighted=True, full_batch_rows=rows)
    check_training(dataclasses.replace(config, learning_rate=1e-3), device, weighted=True)


@pytest.mark.parametrize("dtype", options_of.DTYPES)
@pytest.mark.parametrize("size", [(333, 200, 77), (129, 31, 530)], ids=str)
def test_sizes(size: tuple[int, int, int], dtype: str, device: str) -> None:
    n, d, h = size
    check_gradient(two_layers("sigmoid", "kl", d=d, h=h, weight_l1=MU, dtype=dtype), device, n=n)


def test_golden_value_and_slope(device: str) -> None:
    """Against the same model without it: mu times the sum of absolute weights, and mu times their signs."""
    config = dataclasses.replace(own(), dtype="float64")
    layers = tuple(dataclasses.replace(layer, weight_l1=0.0) for layer in config.layers)
    without = dataclasses.replace(config, layers=layers, weight_l1=0.0)
    parameters = parameters_for(config)
    parameters["W1"][0] = 0.0
    engine, plain = (make_engine(one, parameters, device) for one in (config, without))
    X, w = data(N, D), weights_for(N)
    mu = {"W1": 0.3, "W2": 0.0, "W3": MU}
    expected = sum(mu[name] * np.abs(parameters[name]).sum() for name in mu)
    for call in ("evaluate", "gradient"):
        parts, base = getattr(engine, call)(X, w), getattr(plain, call)(X, w)
        assert parts["decay"] - base["decay"] == pytest.approx(expected, rel=1e-12)
        assert parts["loss"] - base["loss"] == pytest.approx(expected, rel=1e-12)
    for name, p in parameters.items():
        slope = mu.get(name, 0.0) * np.sign(p)  # 0 at 0, and of a bias
        by = plain.get("gradient." + name) + slope
        assert_near(name, engine.get("gradient." + name), by, None, "float64")
    # The cost alone leaves the gradient, and the weights, as they were.
    gradients = {name: engine.get("gradient." + name) for name in parameters}
    engine.evaluate(X)
    for name, p in parameters.items():
        np.testing.assert_array_equal(engine.get("gradient." + name), gradients[name])
        np.testing.assert_array_equal(engine.get(name), p)


@pytest.mark.parametrize("model", ["classic", "tied deep", "layers of their own", "contractive", "adamw"])
def test_finite_differences(model: str, device: str) -> None:
    """Away from 0, where the cost has a corner."""
    config = MODELS[model]
    layers = tuple(dataclasses.replace(layer, penalty="none") for layer in config.layers)
    config = dataclasses.replace(config, layers=layers, dtype="float64")
    engine = Engine(config, device)
    for name, p in parameters_for(config).items():
        engine.set(name, np.where(np.abs(p) < 0.01, 0.01, p))
    assert error_of_gradient(engine, data(N, D)) < 1e-9


@pytest.mark.parametrize("optimizer", options_of.OPTIMIZERS)
def test_it_is_part_of_j_with_every_optimiser(optimizer: str, device: str) -> None:
    """AdamW decouples the decay alone."""
    config = two_layers(weight_l1=MU, weight_decay=0.3, optimizer=optimizer, dtype="float64")
    engine = make_engine(config, parameters_for(config), device)
    l1 = MU * sum(np.abs(engine.get(name)).sum() for name in ("W1", "W2"))
    l2 = 0.15 * sum((engine.get(name) ** 2).sum() for name in ("W1", "W2"))
    assert engine.evaluate(data(N, D))["decay"] == pytest.approx(l1 + (optimizer != "adamw") * l2, rel=1e-12)


def test_it_drives_weights_to_zero() -> None:
    """Six units for two directions: most of their weights are not needed, and L1 alone finds which."""
    rng = np.random.default_rng(0)
    X = rng.normal(size=(300, 2)) @ rng.normal(size=(2, 8))
    options: dict[str, Any] = {"n_hidden": 6, "activation": "identity", "output_activation": "identity"}
    options |= {"penalty": "none", "learning_rate": 0.01, "max_epochs": 150, "random_state": 0, "batch_size": 50}
    options |= {"lr_schedule": "cosine", "dtype": "float64", "verbose": False}
    models = SparseAutoencoder(**options, weight_decay=0.05), SparseAutoencoder(**options, weight_l1=0.05)
    small = [float((np.abs(model.fit(X).components_) < 1e-3).mean()) for model in models]
    assert small[0] < 0.2 < 0.5 < small[1]
    assert np.abs(models[1].components_).max() > 0.1
