"""The softmax output against the reference, and the reference against finite differences and closed forms."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from test_parity import (
    D,
    H,
    N,
    assert_near,
    assert_parts,
    data,
    make_engine,
    parameters_for,
    references,
    single,
    two_layers,
    weights_for,
)
from tolerances import FLOAT64

import fastsae
from fastsae import Config, Engine, LayerConfig
from fastsae import config as options
from fastsae.reference import Layered

CLASSES = 4


def classifier(classes: int = CLASSES, d: int = D, **rest: Any) -> Config:
    """A sparse hidden layer and a head that alone is decayed."""
    hidden = LayerConfig(H, "tanh", "kl", beta=0.3, rho=0.4, weight_decay=0.0)
    head = LayerConfig(classes, "softmax", weight_decay=0.02)
    return Config(d, (hidden, head), n_outputs=classes, loss="cross_entropy", learning_rate=0.01, **rest)


def distributions(n: int, classes: int, seed: int = 0) -> np.ndarray:
    """Half of the rows are one-hot; the others float32 distributions."""
    rng = np.random.default_rng([seed, 5])
    rows = rng.dirichlet(np.ones(classes), n)
    rows[::2] = np.eye(classes)[rng.integers(classes, size=len(rows[::2]))]
    return single(rows)


def check(config: Config, device: str, n: int = N, weighted: bool = False, chunk: int = 0, scale: float = 1.0) -> None:
    """Cost, gradient, probabilities and row losses."""
    parameters = {name: scale * p for name, p in parameters_for(config).items()}
    X, T, w = data(n, config.n_features), distributions(n, config.output_width), weights_for(n) if weighted else None
    engine = make_engine(config, parameters, device, chunk, started=True)
    exact, plain = references(config, parameters, started=True)
    parts, norm_parts = engine.gradient(X, w, targets=T), engine.evaluate(X, w, targets=T)
    expected, gradients = exact.value_and_gradient(X, w, targets=T)
    plain_expected, plain_gradients = plain.value_and_gradient(X, w, targets=T)
    assert_parts(parts, expected, plain_expected, config.dtype)
    assert_parts(norm_parts, exact.evaluate(X, w, targets=T), plain.evaluate(X, w, targets=T), config.dtype)
    for name, g in gradients.items():
        # Elements of y - x are differences of numbers up to 1.
        floor = float(np.abs(exact.forward(X)[-2][1]).max()) / n if name == "W2" else 0.0
        assert_near(name, engine.get("gradient." + name), g, plain_gradients[name], config.dtype, scale=floor)
    assert_near("proba", engine.reconstruct(X), exact.reconstruct(X), plain.reconstruct(X), config.dtype)
    code = single(exact.encode(X))
    assert_near("decode", engine.decode(code), exact.decode(code), plain.decode(code), config.dtype)
    assert_near("score", engine.score(X, T), exact.row_losses(X, T), plain.row_losses(X, T), config.dtype)
    score_code = [
        twin._row_losses(T.astype(twin.dtype), twin._run(code, range(2, 3))[-1], np.ones_like(T, twin.dtype))
        for twin in (exact, plain)
    ]
    assert_near("score_code", engine.score_code(code, T), *score_code, config.dtype)


# The reference


@pytest.mark.parametrize("reduction", options.LOSS_REDUCTIONS)
def test_reference_gradient_is_the_slope_of_the_cost(reduction: str) -> None:
    """Also for targets that are no distributions."""
    config = classifier(dtype="float64", loss_reduction=reduction)
    reference = Layered(config)
    reference.set(parameters_for(config))
    X, w = data(N, D), weights_for(N)
    for T in (distributions(N, CLASSES), data(N, CLASSES, 3)):
        gradients = reference.value_and_gradient(X, w, targets=T)[1]
        for name, p in reference.parameters.items():
            for i in range(0, p.size, 3):
                costs = []
                for move in (-1e-5, 1e-5):
                    before = p.flat[i]
                    p.flat[i] += move
                    costs.append(reference.evaluate(X, w, targets=T)["loss"])
                    p.flat[i] = before
                assert gradients[name].flat[i] == pytest.approx((costs[1] - costs[0]) / 2e-5, abs=1e-9)


def test_reference_is_the_textbook() -> None:
    config = Config(2, (LayerConfig(3, "softmax"),), n_outputs=3, loss="cross_entropy", n_encoder_layers=0)
    reference = Layered(config)
    reference.set({"W1": [[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]]})
    y = reference.reconstruct([[np.log(2.0), np.log(3.0)]])
    np.testing.assert_allclose(y, [[2 / 6, 3 / 6, 1 / 6]], rtol=1e-15)
    loss = reference.row_losses([[np.log(2.0), np.log(3.0)]], [[0.0, 1.0, 0.0]])
    np.testing.assert_allclose(loss, [np.log(2)], rtol=1e-15)


# The engine


@pytest.mark.isa
@pytest.mark.parametrize("dtype", options.DTYPES)
@pytest.mark.parametrize("classes", [1, 2, 3, 10, 16, 17, 333, 1025])
@pytest.mark.parametrize("n", [1, N, 130])
def test_gradient_and_outputs(n: int, classes: int, dtype: str, device: str) -> None:
    """One class too: its probability is 1 and it learns nothing."""
    check(classifier(classes, dtype=dtype), device, n=n, weighted=True)


@pytest.mark.parametrize("dtype", options.DTYPES)
@pytest.mark.parametrize("reduction", options.LOSS_REDUCTIONS)
@pytest.mark.parametrize("chunk", [0, 1, 4])
def test_reductions_and_chunks(chunk: int, reduction: str, dtype: str, device: str) -> None:
    check(classifier(loss_reduction=reduction, dtype=dtype), device, weighted=True, chunk=chunk)


def test_more_rows_than_a_block_of_inference(device: str) -> None:
    check(classifier(dtype="float64"), device, n=2050)


@pytest.mark.isa
@pytest.mark.parametrize("dtype", options.DTYPES)
@pytest.mark.parametrize("optimizer", options.OPTIMIZERS)
def test_training(optimizer: str, dtype: str, device: str) -> None:
    """50 steps with batches of two sizes."""
    config = classifier(optimizer=optimizer, dtype=dtype, rho_hat="ema")
    parameters = parameters_for(config)
    engine, (exact, plain) = make_engine(config, parameters, device), references(config, parameters)
    for step in range(50):
        n, seed = (N, 0) if step % 2 else (N - 3, 1)
        batch = data(n, D, seed), weights_for(n, seed)
        T = distributions(n, CLASSES, seed)
        engine.reset_metrics()
        engine.step(*batch, targets=T)
        losses = engine.metrics()["loss"], exact.step(*batch, targets=T)["loss"], plain.step(*batch, targets=T)["loss"]
        assert_near("loss", *losses, dtype, trained=True)
    for name, p in exact.parameters.items():
        assert_near(name, engine.get(name), p, plain.parameters[name], dtype, trained=True)


@pytest.mark.parametrize("chunk", [0, 3])
@pytest.mark.parametrize("tied", [False, True])
def test_gradient_is_the_slope_of_the_cost(tied: bool, chunk: int, device: str) -> None:
    if tied:  # an autoencoder of counts
        config = two_layers("tanh", "kl", "softmax", loss="cross_entropy", tied=True, dtype="float64")
        T = None
    else:
        config, T = classifier(dtype="float64"), distributions(N, CLASSES)
    engine = make_engine(config, parameters_for(config), device, chunk)
    assert fastsae.check_gradient(engine, data(N, D), sample_weight=weights_for(N), targets=T) < 1e-9


@pytest.mark.parametrize("dtype", options.DTYPES)
@pytest.mark.parametrize("size", [1e2, 1e4, 1e15])
def test_huge_logits_are_finite(size: float, dtype: str, device: str) -> None:
    config = Config(3, (LayerConfig(3, "softmax"),), n_outputs=3, loss="cross_entropy", n_encoder_layers=0,
                    weight_decay=0.0, dtype=dtype)  # fmt: skip
    engine = Engine(config, device)
    engine.set("W1", size * np.eye(3))
    X = np.array([[1.0, -1.0, 1.0], [-1.0, 1.0, -1.0]])
    np.testing.assert_allclose(engine.reconstruct(X), [[0.5, 0, 0.5], [0, 1, 0]], rtol=0, atol=2 * np.exp(-200))
    T = np.array([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    np.testing.assert_allclose(engine.score(X, T), [np.log(2), 0], rtol=1e-6 if dtype == "float32" else FLOAT64)
    assert engine.gradient(X, targets=T)["loss"] == pytest.approx(np.log(2) / 2, rel=1e-6)
    np.testing.assert_allclose(engine.get("gradient.b1"), [-0.25, 0, 0.25], atol=1e-6)
    wrong = engine.gradient(X, targets=np.array([[0.0, 1.0, 0.0], [0.0, 1.0, 0.0]]))["loss"]
    assert wrong == pytest.approx(size + np.log(2) / 2, rel=1e-6)


@pytest.mark.parametrize("dtype", options.DTYPES)
def test_large_parameters(dtype: str, device: str) -> None:
    config = classifier(dtype=dtype)
    hidden = LayerConfig(H, "softplus", "log", beta=0.2)
    check(dataclasses.replace(config, layers=(hidden, config.layers[1])), device, scale=32.0)


def test_rows_without_a_target_cost_nothing(device: str) -> None:
    config = classifier(dtype="float64")
    config = dataclasses.replace(config, layers=(dataclasses.replace(config.layers[0], beta=0.0), config.layers[1]))
    X, T = data(N, D), distributions(N, CLASSES)
    T[3:] = 0
    engine = make_engine(config, parameters_for(config), device)
    engine.gradient(X, targets=T)
    found = engine.get("gradient.b2") * N
    engine.gradient(X[:3], targets=T[:3])
    np.testing.assert_allclose(found, engine.get("gradient.b2") * 3, rtol=1e-12)


# Where softmax may stand


def test_softmax_is_the_output_of_cross_entropy_alone() -> None:
    with pytest.raises(ValueError, match=r"layers\[0\].activation: expected one of .*, got 'softmax'"):
        Config(D, (LayerConfig(H, "softmax"), LayerConfig(D))).validate()
    with pytest.raises(ValueError, match="activation='softmax' needs loss='cross_entropy', got 'squared_error'"):
        Config(D, (LayerConfig(H), LayerConfig(D, "softmax"))).validate()
    assert set(options.OUTPUT_ACTIVATIONS) - set(options.ACTIVATIONS) == {"softmax"}


def test_an_autoencoder_of_distributions(device: str) -> None:
    """Softmax where the target is X itself: rows of shares."""
    X = distributions(40, D).astype(np.float32)
    sae = fastsae.SparseAutoencoder(
        6, output_activation="softmax", loss="cross_entropy", max_epochs=150, random_state=0, device=device,
        learning_rate=0.03, beta=0.0, verbose=False,
    ).fit(X)  # fmt: skip
    np.testing.assert_allclose(sae.reconstruct(X).sum(axis=1), 1, rtol=1e-5)
    assert sae.history_["loss"][-1] < 0.6 * sae.history_["loss"][0]
