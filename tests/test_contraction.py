"""The contractive penalty: closed form, estimate, second order; the estimator around it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_parity import (
    D,
    N,
    alternate,
    assert_near,
    assert_parts,
    check_epoch,
    check_gradient,
    check_training,
    data,
    deep,
    make_engine,
    parameters_for,
    references,
    two_batches,
    two_layers,
    weights_for,
)
from test_reference import assert_gradient
from tolerances import FLOAT64

import fastsae
from fastsae import Config, ContractiveAutoencoder, Engine, LayerConfig, SparseAutoencoder
from fastsae import config as options
from fastsae.jacobian import jacobian_norm
from fastsae.reference import Layered
from fastsae.reference.random import normals

SMOOTH = [name for name in options.ACTIVATIONS if name != "relu"]


def encoder(*activations: str, tied: bool = False, **rest: Any) -> Config:
    """A deep model whose encoder has these activations."""
    hidden = [LayerConfig(6 - i, name) for i, name in enumerate(activations)]
    mirrored = [LayerConfig(layer.units, "sigmoid") for layer in hidden[-2::-1]]
    layers = (*hidden, *mirrored, LayerConfig(D, "identity"))
    chosen = {"contraction": 0.4, "weight_decay": 0.01, "learning_rate": 0.01, "dtype": "float64", **rest}
    return Config(D, layers, tied=tied, **chosen)


# What draws noise and what does not, with other costs at the same time.
MODELS: dict[str, Callable[..., Config]] = {
    "one layer": lambda **rest: two_layers("sigmoid", "kl", **{"contraction": 0.4, **rest}),
    "second order": lambda **rest: two_layers("tanh", "kl", contraction=0.4, **{"contraction_hessian": 0.7, **rest}),
    "second order alone": lambda **rest: two_layers("softplus", "log", contraction_hessian=0.7, tied=True, **rest),
    "one layer of a deep model": lambda **rest: deep(contraction=0.4, n_encoder_layers=1, **rest),
    "two layers": lambda **rest: deep(contraction=0.4, **rest),
    "two layers tied": lambda **rest: deep(contraction=0.4, tied=True, **rest),
    "three layers": lambda **rest: encoder("sigmoid", "tanh", "softplus", **rest),
    "three of four layers": lambda **rest: deep(contraction=0.4, n_encoder_layers=3, **rest),
}


def jacobians(config: Config, parameters: dict[str, np.ndarray], X: np.ndarray) -> np.ndarray:
    """Of the code by the input, [N, code, d], by differences of the reference's code."""
    model, eps = Layered(config), 1e-3
    model.set(parameters)
    columns = []
    for move in np.eye(X.shape[1]):
        v = [model.encode(X + k * eps * move) for k in (-2, -1, 1, 2)]
        columns.append((8 * (v[2] - v[1]) - (v[3] - v[0])) / (12 * eps))
    return np.stack(columns, axis=2)


def squares(jacobian: np.ndarray) -> np.ndarray:
    return (jacobian**2).sum(axis=(1, 2))


def engine_for(config: Config, device: str = "cpu", seed: int = 0, epoch: int = 0, rows: int = 0) -> Engine:
    engine = make_engine(config, parameters_for(config), device, rows)
    engine.noise_seed, engine.epoch = seed, epoch
    return engine


# --- the reference ---


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("hessian", [0.0, 0.6])
@pytest.mark.parametrize("activation", SMOOTH)
def test_reference_gradient_of_one_layer(activation: str, hessian: float, tied: bool) -> None:
    config = two_layers(activation, contraction=0.3, contraction_hessian=hessian, tied=tied)
    model = Layered(config)
    model.set(parameters_for(config))
    model.noise_seed, model.epoch = 3, 2
    assert_gradient(model, data(N, D), weights_for(N))


@pytest.mark.parametrize("activations", [("sigmoid", "tanh"), ("softplus", "sigmoid", "identity")])
@pytest.mark.parametrize("tied", [False, True])
def test_reference_gradient_of_several_layers(activations: tuple[str, ...], tied: bool) -> None:
    config = encoder(*activations, tied=tied)
    model = Layered(config)
    model.set(parameters_for(config))
    assert_gradient(model, data(N, D), weights_for(N))


def test_reference_gradient_of_relu() -> None:
    """Away from its kinks; f'' is 0, and what is left is the gradient by the active units' weights."""
    config = two_layers("relu", contraction=0.3)
    model = Layered(config)
    model.set({**parameters_for(config), "b1": np.array([9.0, -9.0, 9.0, -9.0, 9.0])})
    assert_gradient(model, data(N, D), weights_for(N))


# --- the value is what it says ---


@pytest.mark.parametrize("activation", options.ACTIVATIONS)
@pytest.mark.parametrize("tied", [False, True])
def test_closed_form_is_the_norm_of_the_jacobian(activation: str, tied: bool, device: str) -> None:
    config = two_layers(activation, contraction=0.3, tied=tied, dtype="float64")
    X, w = data(N, D), weights_for(N)
    expected = 0.3 * (w / w.sum()) @ squares(jacobians(config, parameters_for(config), X))
    engine = engine_for(config, device)
    assert engine.evaluate(X, w)["penalty"] == pytest.approx(expected, rel=1e-9)
    assert engine.gradient(X, w)["penalty"] == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("activation", options.ACTIVATIONS)
def test_second_order_is_the_change_of_the_jacobian(activation: str, device: str) -> None:
    config = two_layers(activation, contraction=0.3, contraction_hessian=0.6, contraction_noise=0.25, dtype="float64")
    X, w, numbers = data(N, D), weights_for(N), np.arange(N) * 5 + 2
    near = X + 0.25 * normals("neighbour", 7, 3, numbers, D)
    at, there = (jacobians(config, parameters_for(config), rows) for rows in (X, near))
    expected = (w / w.sum()) @ (0.3 * squares(at) + 0.6 * squares(at - there))
    parts = engine_for(config, device, 7, 3).evaluate(X, w, numbers=numbers)
    assert parts["penalty"] == pytest.approx(expected, rel=1e-8)


@pytest.mark.parametrize("activations", [("sigmoid", "tanh"), ("softplus", "relu", "identity")])
def test_estimate_is_unbiased(activations: tuple[str, ...], device: str) -> None:
    """The mean over 600 epochs is within four standard errors, and these are small."""
    config = encoder(*activations, contraction=1.0)
    engine, X, w = engine_for(config, device), data(N, D), weights_for(N)
    draws = []
    for epoch in range(600):
        engine.epoch = epoch
        draws.append(engine.evaluate(X, w)["penalty"])
    exact = (w / w.sum()) @ squares(jacobians(config, parameters_for(config), X))
    error = np.std(draws) / 600**0.5
    assert error < 0.05 * exact
    assert abs(np.mean(draws) - exact) < 4 * error


def test_gradient_of_the_estimate_is_unbiased(device: str) -> None:
    """Against the gradient of the exact penalty, by differences of `jacobian_norm`."""
    config = encoder("sigmoid", "tanh", contraction=1.0, weight_decay=0.0)
    plain = dataclasses.replace(config, contraction=0.0)
    engine, X = engine_for(config, device), data(N, D)
    base = engine_for(plain, device)
    base.gradient(X)
    draws = []
    for epoch in range(600):
        engine.epoch = epoch
        engine.gradient(X)
        draws.append(engine.get("gradient.W1") - base.get("gradient.W1"))
    parameters, eps = parameters_for(config), 1e-5
    exact = np.empty_like(draws[0])
    for index in np.ndindex(exact.shape):
        values = []
        for sign in (1, -1):
            moved = {**parameters, "W1": parameters["W1"].copy()}
            moved["W1"][index] += sign * eps
            values.append((jacobian_norm(config, moved, X) ** 2).mean())
        exact[index] = (values[0] - values[1]) / (2 * eps)
    error = np.std(draws, axis=0) / 600**0.5
    assert np.linalg.norm(error) < 0.2 * np.linalg.norm(exact)
    assert (np.abs(np.mean(draws, axis=0) - exact) < 4.5 * error).all()


def test_normals_are_normal() -> None:
    """Four runs of columns, the last one shorter, with fresh numbers for each stream, seed, epoch and row."""
    many = normals("direction", 1, 2, np.arange(20000), 7)
    assert many.shape == (20000, 7)
    assert np.abs(many.mean(axis=0)).max() < 4 / 20000**0.5
    assert np.abs(np.cov(many.T) - np.eye(7)).max() < 5 / 20000**0.5
    others = [("neighbour", 1, 2), ("direction", 2, 2), ("direction", 1, 3)]
    for stream, seed, epoch in others:
        other = normals(stream, seed, epoch, np.arange(20000), 7)
        assert abs((many * other).mean()) < 4 / 140000**0.5


# --- the engine against the reference ---


@pytest.mark.isa
@pytest.mark.parametrize("dtype", options.DTYPES)
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("hessian", [0.0, 0.6])
@pytest.mark.parametrize("activation", options.ACTIVATIONS)
def test_gradient_of_one_layer(activation: str, hessian: float, tied: bool, dtype: str, device: str) -> None:
    config = two_layers(
        activation, "l1", contraction=0.3, contraction_hessian=hessian, tied=tied, dtype=dtype, contraction_noise=0.2
    )
    check_gradient(config, device)
    check_gradient(config, device, weighted=True, full_batch_rows=4)


@pytest.mark.isa
@pytest.mark.parametrize("dtype", options.DTYPES)
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("second", options.ACTIVATIONS)
@pytest.mark.parametrize("first", options.ACTIVATIONS)
def test_gradient_of_two_layers(first: str, second: str, tied: bool, dtype: str, device: str) -> None:
    config = encoder(first, second, tied=tied, dtype=dtype)
    check_gradient(config, device)
    check_gradient(config, device, weighted=True, full_batch_rows=4)


@pytest.mark.isa
@pytest.mark.parametrize("dtype", options.DTYPES)
@pytest.mark.parametrize("model", MODELS)
def test_training(model: str, dtype: str, device: str) -> None:
    check_training(MODELS[model](dtype=dtype), device)


@pytest.mark.parametrize("optimizer", options.OPTIMIZERS)
@pytest.mark.parametrize("model", ["one layer", "second order", "two layers tied"])
def test_training_with_each_optimizer(model: str, optimizer: str, device: str) -> None:
    check_training(MODELS[model](optimizer=optimizer, dtype="float64"), device, weighted=True)


@pytest.mark.parametrize("chunk", [1, 4, 10])
@pytest.mark.parametrize("rho_hat", options.RHO_HATS)
@pytest.mark.parametrize("model", MODELS)
def test_chunks(model: str, rho_hat: str, chunk: int, device: str) -> None:
    """The mean of the squared slopes is that of the whole batch."""
    config = MODELS[model](rho_hat=rho_hat, dtype="float64")
    check_gradient(config, device, weighted=True, full_batch_rows=chunk)
    check_training(config, device, steps=6, full_batch_rows=chunk)


@pytest.mark.isa
@pytest.mark.parametrize("dtype", options.DTYPES)
@pytest.mark.parametrize("size", [(1, 7, 5), (2, 1, 1), (5, 1, 4), (9, 6, 1), (333, 201, 77), (129, 31, 530)], ids=str)
@pytest.mark.parametrize("hessian", [0.0, 0.6])
def test_sizes(size: tuple[int, int, int], hessian: float, dtype: str, device: str) -> None:
    n, d, h = size
    config = two_layers(d=d, h=h, contraction=0.3, contraction_hessian=hessian, dtype=dtype)
    check_gradient(config, device, n=n, weighted=True)
    layers = (LayerConfig(h), LayerConfig(max(3, h // 2), "sigmoid"), LayerConfig(h, "tanh"), LayerConfig(d))
    check_gradient(Config(d, layers, contraction=0.3, dtype=dtype), device, n=n, weighted=True)


@pytest.mark.parametrize("model", MODELS)
def test_gradient_by_differences_of_the_engine(model: str) -> None:
    engine = engine_for(MODELS[model](dtype="float64"))
    assert fastsae.check_gradient(engine, data(N, D), sample_weight=weights_for(N)) < 1e-9


def test_a_short_last_batch(device: str) -> None:
    for batch_size in (4, 20, None):
        check_epoch(MODELS["one layer"](dtype="float64"), device, batch_size)


def test_saturated_units_are_finite(device: str) -> None:
    config = two_layers("sigmoid", contraction=0.5, contraction_hessian=0.5)
    for bias in (-40.0, 40.0):
        parameters = parameters_for(config)
        parameters["b1"][:2] = bias
        check_gradient(config, device, parameters=parameters)


# --- noise ---

NOISY = ["second order", "two layers"]


@pytest.mark.parametrize("model", NOISY)
@pytest.mark.parametrize("dtype", options.DTYPES)
def test_noise_is_that_of_seed_epoch_and_row(model: str, dtype: str, device: str) -> None:
    config = MODELS[model](dtype=dtype)
    X, numbers = data(N, D), np.random.default_rng(1).integers(0, 2**40, N)
    engine = engine_for(config, device, 2**32 - 1, 17)
    twins = references(config, parameters_for(config))
    for twin in twins:
        twin.noise_seed, twin.epoch = 2**32 - 1, 17
    (exact, gradients), (plain, plain_gradients) = (twin.value_and_gradient(X, None, numbers) for twin in twins)
    assert_parts(engine.gradient(X, numbers=numbers), exact, plain, dtype)
    for name, g in gradients.items():
        assert_near(name, engine.get("gradient." + name), g, plain_gradients[name], dtype)
    penalties = {engine.evaluate(X, numbers=numbers)["penalty"], engine.evaluate(X)["penalty"]}
    engine.epoch = 18
    penalties.add(engine.evaluate(X, numbers=numbers)["penalty"])
    engine.noise_seed = 5
    penalties.add(engine.evaluate(X, numbers=numbers)["penalty"])
    assert len(penalties) == 4


@pytest.mark.parametrize("model", NOISY)
def test_noise_does_not_depend_on_the_batch(model: str, device: str) -> None:
    config = dataclasses.replace(MODELS[model](dtype="float64"), weight_decay=0.0)
    config = dataclasses.replace(
        config, layers=tuple(dataclasses.replace(layer, penalty="none") for layer in config.layers)
    )
    engine, X = engine_for(config, device), data(N, D)
    whole = engine.evaluate(X)["penalty"]
    alone = [engine.evaluate(X[i : i + 1], numbers=[i])["penalty"] for i in range(N)]
    assert whole == pytest.approx(np.mean(alone), rel=FLOAT64)


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("model", MODELS)
def test_bits_do_not_depend_on_threads(model: str) -> None:
    gradients = []
    for count in (1, 3):
        fastsae.set_num_threads(count)
        engine = engine_for(MODELS[model]())
        for X, w in alternate(two_batches(D, weighted=True), 3):
            engine.step(X, w)
        gradients.append(engine.get_parameters())
    for name, value in gradients[0].items():
        np.testing.assert_array_equal(value, gradients[1][name])


def test_nothing_is_drawn_in_inference(device: str) -> None:
    for model in NOISY:
        config = MODELS[model]()
        engine, plain = (
            engine_for(c, device) for c in (config, dataclasses.replace(config, contraction=0, contraction_hessian=0))
        )
        np.testing.assert_array_equal(engine.reconstruct(data(N, D)), plain.reconstruct(data(N, D)))
        np.testing.assert_array_equal(engine.score(data(N, D)), plain.score(data(N, D)))


# --- options ---


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"n_encoder_layers": 0}, r"^contraction: the penalty needs layers before the code and after it, got 0 and 4$"),
        ({"n_encoder_layers": 4}, r"^contraction: the penalty needs layers before the code and after it, got 4 and 0$"),
        ({"contraction_hessian": 0.1}, r"^contraction_hessian: expected an encoder of one layer, got 2$"),
        ({"contraction": -0.1}, r"^contraction: expected a number in \[0, inf\), got -0.1$"),
        ({"contraction_noise": 0.0}, r"^contraction_noise: expected a number in \(0, inf\), got 0.0$"),
        ({"contraction_hessian": float("nan")}, r"^contraction_hessian: expected a number"),
    ],
)
def test_refusals(bad: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Engine(deep(**{"contraction": 0.4, **bad}))


def test_the_compiled_part_refuses_what_it_cannot_do() -> None:
    core = deep(contraction=0.4).core()
    core["layers"][0]["winners"] = "lifetime"
    with pytest.raises(ValueError, match=r"^contraction: needs a dense encoder, but layers\[0\] .* with winners"):
        fastsae._core.Engine(core, "cpu", 0)


# --- the Jacobian ---


@pytest.mark.parametrize("activation", options.ACTIVATIONS)
@pytest.mark.parametrize("h", [3, 12])
def test_jacobian_norm(activation: str, h: int) -> None:
    for config in (two_layers(activation, h=h), encoder(activation, "tanh"), encoder("sigmoid", activation, "tanh")):
        parameters, X = parameters_for(config), data(N, D)
        expected = np.sqrt(squares(jacobians(config, parameters, X)))
        np.testing.assert_allclose(jacobian_norm(config, parameters, X), expected, rtol=1e-8)


def test_jacobian_norm_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    for config in (two_layers(), encoder("sigmoid", "tanh"), two_layers(n_encoder_layers=0)):
        whole = jacobian_norm(config, parameters_for(config), data(N, D))
        assert whole.shape == (N,)
        with monkeypatch.context() as patch:
            patch.setattr("fastsae.jacobian._ELEMENTS_AT_ONCE", 1)
            np.testing.assert_allclose(jacobian_norm(config, parameters_for(config), data(N, D)), whole, rtol=1e-13)


# --- the estimator ---

ROWS = data(60, D).astype(np.float32)


def make(**rest: Any) -> ContractiveAutoencoder:
    small = {"n_hidden": 4, "max_epochs": 3, "batch_size": 16, "random_state": 0, "verbose": False}
    return ContractiveAutoencoder(**{**small, **rest})


def assert_same(a: SparseAutoencoder, b: SparseAutoencoder) -> None:
    for name in ("components_", "intercept_", "decoder_", "decoder_intercept_"):
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name), err_msg=name)
    assert a.history_ == b.history_


def test_it_is_the_sparse_autoencoder_with_other_defaults() -> None:
    own = ContractiveAutoencoder().get_params()
    other = {"contraction": 0.1, "penalty": "none", "tied": True, "weight_decay": 0.0}
    assert own == {**SparseAutoencoder().get_params(), **other}
    assert_same(make().fit(ROWS), SparseAutoencoder(**make().get_params()).fit(ROWS))


def test_history_holds_the_penalty() -> None:
    cae = make(contraction=0.7, dtype="float64", learning_rate=0.0).fit(ROWS)
    norms = cae.jacobian_norm(ROWS)
    assert norms.shape == (60,)
    assert cae.history_["penalty"][-1] == pytest.approx(0.7 * (norms**2).mean(), rel=1e-12)


@pytest.mark.parametrize("hessian", [0.0, 1.0])
def test_the_penalty_shrinks_the_jacobian(hessian: float) -> None:
    plain, contracted = (
        make(contraction=c, contraction_hessian=hessian * c, max_epochs=60, learning_rate=0.02).fit(ROWS)
        for c in (0.0, 0.3)
    )
    assert contracted.jacobian_norm(ROWS).mean() < 0.7 * plain.jacobian_norm(ROWS).mean()


@pytest.mark.parametrize("hessian", [0.0, 0.5])
def test_checkpoint_and_resume(hessian: float, tmp_path: Path) -> None:
    chosen = {"contraction_hessian": hessian, "max_epochs": 6}
    straight = make(**chosen).fit(ROWS)
    make(**{**chosen, "max_epochs": 2}).fit(ROWS).save(tmp_path / "cae")
    loaded = fastsae.load(tmp_path / "cae")
    assert type(loaded) is ContractiveAutoencoder
    assert loaded.get_params() == make(**{**chosen, "max_epochs": 2}).get_params()
    assert_same(loaded.set_params(max_epochs=6).resume(ROWS), straight)


def test_partial_fit_draws_new_neighbours() -> None:
    cae = make(contraction_hessian=0.5, learning_rate=0.0)
    for _ in range(3):
        cae.partial_fit(ROWS)
    assert cae.n_iter_ == 3
    assert len(set(cae.history_["penalty"])) == 3
    with pytest.raises(ValueError, match=r"^contraction: expected 0.1, with which the training began, got 0.2"):
        cae.set_params(contraction=0.2).partial_fit(ROWS)


def test_lbfgs_needs_a_cost_that_stays() -> None:
    cae = make(solver="lbfgs", max_epochs=20).fit(ROWS)
    assert cae.history_["loss"][-1] < cae.history_["loss"][0]
    with pytest.raises(ValueError, match=r"^contraction_hessian=0.5 is estimated .* mini-batch solver$"):
        make(solver="lbfgs", contraction_hessian=0.5).fit(ROWS)


def test_sweep() -> None:
    fitted = fastsae.sweep(
        [{"contraction": 0.05}, {"contraction": 0.5}], ROWS, n_hidden=4, max_epochs=3, random_state=0, verbose=False
    )
    assert [sae.contraction for sae in fitted] == [0.05, 0.5]
    assert fitted[1].jacobian_norm(ROWS).mean() < fitted[0].jacobian_norm(ROWS).mean()


def test_jacobian_norm_needs_a_fitted_model_and_its_rows() -> None:
    with pytest.raises(ValueError, match="not fitted yet"):
        make().jacobian_norm(ROWS)
    with pytest.raises(ValueError, match="features"):
        make().fit(ROWS).jacobian_norm(ROWS[:, 1:])
