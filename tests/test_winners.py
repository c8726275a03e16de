"""Winner-take-all layers, and penalties of single positions: the C++ engine against the NumPy reference."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from test_parity import (
    assert_near,
    assert_parts,
    data,
    make_engine,
    make_reference,
    parameters_for,
    references,
    single,
    weights_for,
)
from tolerances import FLOAT64

from fastsae import Config, ConvConfig, ConvTransposeConfig, Engine, LayerConfig, ReshapeConfig, check_gradient
from fastsae import config as options
from fastsae.image_layers import WINNERS
from fastsae.reference import Layered
from fastsae.reference.winners import keep_winners

SHAPE = (2, 5, 4)
D = 40
N = 13
KINDS = [kind for kind in WINNERS if kind]


def dense(lifetime: float = 0.3, **rest: Any) -> Config:
    hidden = LayerConfig(9, "relu", winners="lifetime", lifetime=lifetime)
    return Config(D, (hidden, LayerConfig(D)), **{"weight_decay": 0.01, "learning_rate": 0.01, **rest})


def conv(winners: str = "both", lifetime: float = 0.3, **rest: Any) -> Config:
    """A convolution, a winner-take-all one, and two back; the last two could be any."""
    layers = (
        ConvConfig(3, 3, padding=1, activation="tanh"),
        ConvConfig(4, 3, padding=1, activation="relu", winners=winners, lifetime=lifetime),
        ConvTransposeConfig(3, 3, padding=1, activation="tanh"),
        ConvTransposeConfig(2, 3, padding=1, activation="identity"),
    )
    return Config(D, layers, SHAPE, **{"weight_decay": 0.01, "learning_rate": 0.01, **rest})


def transposed(in_maps: bool = True, **rest: Any) -> Config:
    """Winners in the decoder, behind a dense code; without maps each unit of the code is a map of one position."""
    layers = (
        ConvConfig(3, 3, padding=1, activation="relu", winners="spatial"),
        LayerConfig(D, "relu", winners="lifetime", lifetime=0.4),
        ReshapeConfig(SHAPE if in_maps else (D, 1, 1)),
        ConvTransposeConfig(3, 3, padding=1, activation="relu", winners="both", lifetime=0.4),
        LayerConfig(D, "identity"),
    )
    return Config(D, layers, SHAPE, **{"weight_decay": 0.01, "learning_rate": 0.01, **rest})


MODELS = {
    "dense": dense,
    **{kind: (lambda kind=kind, **rest: conv(kind, **rest)) for kind in KINDS},
    "tied": lambda **rest: conv(tied=True, **rest),
    "transposed": transposed,
    "one position": lambda **rest: transposed(in_maps=False, **rest),
}


def by_position(penalty: str, activation: str = "sigmoid", per_position: bool = True, **rest: Any) -> Config:
    """Penalties of single positions in the encoder, on a strided map, and in the decoder."""
    options = {"activation": activation, "penalty": penalty, "beta": 0.4, "rho": 0.3, "per_position": per_position}
    layers = (
        ConvConfig(3, 3, padding=1, **options),
        ConvConfig(2, 3, stride=2, padding=1, **options),
        ConvTransposeConfig(3, 3, stride=2, padding=1, output_padding=0, **options),
        LayerConfig(D, "identity"),
    )
    return Config(D, layers, SHAPE, **{"weight_decay": 0.01, "learning_rate": 0.01, **rest})


def check(config: Config, device: str, n: int = N, w: np.ndarray | None = None, full_batch_rows: int = 0) -> None:
    """Cost and gradient, tensor by tensor, and the cost alone."""
    parameters, X = parameters_for(config), data(n, config.n_features)
    engine = make_engine(config, parameters, device, full_batch_rows)
    exact, plain = references(config, parameters)
    parts = engine.gradient(X, w)
    exact_parts, exact_gradients = exact.value_and_gradient(X, w)
    plain_parts, plain_gradients = plain.value_and_gradient(X, w)
    assert_parts(parts, exact_parts, plain_parts, config.dtype)
    for name, g in exact_gradients.items():
        assert_near(name, engine.get("gradient." + name), g, plain_gradients[name], config.dtype)
    assert_parts(engine.evaluate(X, w), exact.evaluate(X, w), plain.evaluate(X, w), config.dtype)


def check_steps(config: Config, device: str, steps: int, full_batch_rows: int = 0) -> None:
    parameters = parameters_for(config)
    engine, exact = (
        make_engine(config, parameters, device, full_batch_rows),
        make_reference(config, parameters, "float64"),
    )
    plain = make_reference(config, parameters, config.dtype)
    for step in range(steps):
        n = N - 3 * (step % 2)
        X, w = data(n, config.n_features, step % 2), weights_for(n, step % 2)
        engine.step(X, w)
        exact.step(X, w)
        plain.step(X, w)
    for name, p in exact.parameters.items():
        assert_near(name, engine.get(name), p, plain.parameters[name], config.dtype, trained=True)
    for number, mean in exact.rho_hat.items():
        name = f"rho_hat{number}"
        assert_near(name, engine.get(name), mean, plain.rho_hat[number], config.dtype, trained=True)


# --- winners ---


@pytest.mark.isa
@pytest.mark.parametrize("dtype", options.DTYPES)
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("model", MODELS)
def test_gradient_of_winners(model: str, weighted: bool, dtype: str, device: str) -> None:
    config = MODELS[model](dtype=dtype)
    for n in (1, 2, N):
        check(config, device, n, weights_for(n) if weighted else None)


@pytest.mark.parametrize("lifetime", [0.001, 0.07, 0.25, 0.5, 1.0])
@pytest.mark.parametrize("n", [1, 8, 100])
def test_shares_of_rows(n: int, lifetime: float, device: str) -> None:
    check(dense(lifetime, dtype="float64"), device, n)
    check(conv("both", lifetime, dtype="float64"), device, n)


@pytest.mark.parametrize("model", MODELS)
def test_training_with_winners(model: str, device: str) -> None:
    check_steps(MODELS[model](dtype="float64"), device, steps=50)


@pytest.mark.parametrize("model", MODELS)
def test_gradient_of_winners_by_differences(model: str, device: str) -> None:
    """The winners stay the same in a neighbourhood of almost every point, and the gradient is that of the survivors."""
    config = MODELS[model](dtype="float64")
    engine = make_engine(config, parameters_for(config, seed=3), device)
    assert check_gradient(engine, data(6, D, seed=5), n_coordinates=60) < 1e-9


def test_reference_of_winners_by_differences() -> None:
    """The reference is the derivative of its own cost."""
    config = conv("both", 0.4, dtype="float64")
    model = Layered(config)
    model.set(parameters_for(config, seed=3))
    X = data(6, D, seed=5)
    gradients = model.value_and_gradient(X)[1]
    rng = np.random.default_rng(0)
    for name, value in model.parameters.items():
        direction = rng.standard_normal(value.shape)
        costs = []
        for e in (-2e-4, -1e-4, 1e-4, 2e-4):
            model.parameters[name] = value + e * direction
            costs.append(model.evaluate(X)["loss"])
        model.parameters[name] = value
        slope = (costs[0] - 8 * costs[1] + 8 * costs[2] - costs[3]) / 12e-4
        assert slope == pytest.approx(float((gradients[name] * direction).sum()), rel=1e-8, abs=1e-10), name


def test_the_reference_by_hand() -> None:
    a = np.array([[[1.0, 5.0, 5.0]], [[2.0, 0.0, 1.0]], [[9.0, 9.0, 0.0]], [[0.0, 5.0, 4.0]]])
    share = np.array([1.0, 1.0, 0.0, 1.0])
    spatial = np.array([[[0, 5, 0]], [[2, 0, 0]], [[9, 0, 0]], [[0, 5, 0]]])
    np.testing.assert_array_equal(keep_winners(a, share, "spatial", 1.0), spatial)
    # Row 2 has no weight; rows 0 and 3 are equal, and the first of them wins.
    np.testing.assert_array_equal(keep_winners(a, share, "lifetime", 1 / 3), a * [[[1]], [[0]], [[0]], [[0]]])
    np.testing.assert_array_equal(keep_winners(a, share, "lifetime", 0.34), a * [[[1]], [[0]], [[0]], [[1]]])
    np.testing.assert_array_equal(keep_winners(a, share, "both", 0.34), spatial * [[[1]], [[0]], [[0]], [[1]]])


def test_ties_go_to_the_lower_row(device: str) -> None:
    """Equal rows: only the first of them teaches."""
    config = dense(0.25, dtype="float64", weight_decay=0.0)
    parameters = parameters_for(config)
    X = np.repeat(data(1, D), 8, axis=0)
    engine, reference = make_engine(config, parameters, device), make_reference(config, parameters, "float64")
    engine.gradient(X)
    np.testing.assert_allclose(engine.get("gradient.W1"), reference.value_and_gradient(X)[1]["W1"], rtol=0, atol=1e-12)
    two_of_eight = engine.get("gradient.W1")
    all_config = dataclasses.replace(config, layers=(LayerConfig(9, "relu"), LayerConfig(D)))
    everybody = make_engine(all_config, parameters, device)
    everybody.gradient(X)
    np.testing.assert_allclose(4 * two_of_eight, everybody.get("gradient.W1"), rtol=0, atol=1e-12)


@pytest.mark.parametrize("model", ["dense", "both", "lifetime"])
def test_rows_of_no_weight_are_not_there(model: str, device: str) -> None:
    """They take no place and are not counted, however large their activations are."""
    config = MODELS[model](dtype="float64")
    parameters, X, w = parameters_for(config), data(N, D), weights_for(N)
    w[[2, 5, 11]] = 0
    X[[2, 5, 11]] *= 40
    engine, fewer = (make_engine(config, parameters, device) for _ in range(2))
    parts, without = engine.gradient(X, w), fewer.gradient(X[w > 0], w[w > 0])
    assert parts == pytest.approx(without, rel=FLOAT64)
    for name in parameters:
        assert_near(name, engine.get("gradient." + name), fewer.get("gradient." + name), None, "float64")


@pytest.mark.parametrize("model", MODELS)
def test_inference_has_all_activations(model: str, device: str) -> None:
    config = MODELS[model](dtype="float64")
    layers = tuple(
        dataclasses.replace(layer, winners="") if hasattr(layer, "winners") else layer for layer in config.layers
    )
    plain = dataclasses.replace(config, layers=layers)
    parameters, X = parameters_for(config), data(N, D)
    one, other = make_engine(config, parameters, device), make_engine(plain, parameters, device)
    for compute in ("encode", "reconstruct", "score"):
        np.testing.assert_array_equal(getattr(one, compute)(X), getattr(other, compute)(X))
    assert one.evaluate(X)["loss"] != other.evaluate(X)["loss"]


def test_lifetime_winners_need_the_whole_batch(device: str) -> None:
    """More rows than are held at once cannot compete; the model stays what it was."""
    X = data(N, D)
    for config in (dense(), conv("lifetime"), conv("both")):
        engine = make_engine(config, parameters_for(config), device, full_batch_rows=N - 1)
        before = engine.get_parameters()
        for call in (engine.gradient, engine.evaluate, engine.step):
            with pytest.raises(ValueError, match=r"winners='lifetime'.* 13 .*full_batch_rows=12"):
                call(X)
        assert all(np.array_equal(engine.get(name), value) for name, value in before.items())
        assert engine.steps == 0
        engine.run_epoch(X, None, N - 1)
        assert engine.steps == 2
    check(conv("spatial", dtype="float64"), device, full_batch_rows=5)  # rows do not compete there


def test_a_row_that_is_not_finite_is_named(device: str) -> None:
    config = conv("both")
    engine = make_engine(config, parameters_for(config), device)
    X = data(N, D).astype(np.float32)
    X[4, 7] = np.nan
    with pytest.raises(ValueError, match="row 4"):
        engine.step(X)
    assert engine.steps == 0


BAD = [
    (ConvConfig(2, winners="most", activation="relu"), "winners: expected one of"),
    (ConvConfig(2, winners=True, activation="relu"), "winners: expected one of"),  # type: ignore[arg-type]
    (ConvConfig(2, winners="both", activation="tanh"), "needs activation='relu', got 'tanh'"),
    (ConvConfig(2, winners="spatial", penalty="l1"), "takes the place of a penalty, got 'l1'"),
    (ConvConfig(2, lifetime=0.0), r"lifetime: expected a number in \(0, 1\]"),
    (ConvConfig(2, lifetime=1.5), r"lifetime: expected a number in \(0, 1\]"),
    (ConvConfig(2, lifetime="all"), r"lifetime: expected a number in \(0, 1\]"),  # type: ignore[arg-type]
    (ConvConfig(2, per_position=1), "per_position: expected True or False"),  # type: ignore[arg-type]
    (ConvTransposeConfig(2, winners="most"), "winners: expected one of"),
    (ConvTransposeConfig(2, per_position="yes"), "per_position: expected True or False"),  # type: ignore[arg-type]
    (LayerConfig(2, "relu", winners="spatial"), "winners: expected one of '', 'lifetime', got 'spatial'"),
    (LayerConfig(2, "relu", winners="both"), "winners: expected one of '', 'lifetime', got 'both'"),
    (LayerConfig(2, "sigmoid", winners="lifetime"), "needs activation='relu', got 'sigmoid'"),
    (LayerConfig(2, "relu", "log", winners="lifetime"), "takes the place of a penalty, got 'log'"),
    (LayerConfig(2, lifetime=float("nan")), r"lifetime: expected a number in \(0, 1\]"),
]


@pytest.mark.parametrize(("layer", "says"), BAD, ids=lambda value: getattr(value, "kind", ""))
def test_what_has_no_meaning_is_refused(layer: Any, says: str) -> None:
    config = Config(D, (layer, LayerConfig(D)), SHAPE)
    with pytest.raises(ValueError, match=rf"layers\[0\]\.{says}|layers\[0\]\.winners=.*{says}"):
        Engine(config)


@pytest.mark.parametrize("last", [LayerConfig(D, "relu", winners="lifetime"), ConvConfig(2, padding=1, winners="both")])
def test_an_output_takes_no_winners(last: Any) -> None:
    with pytest.raises(ValueError, match=r"layers\[1\]\.winners: the output layer takes none"):
        Engine(Config(D, (ConvConfig(2, padding=1), last), SHAPE))


# --- penalties of single positions ---

PENALISED = [("kl", "sigmoid"), ("kl", "tanh"), ("l1", "relu"), ("l1", "sigmoid"), ("log", "softplus")]


@pytest.mark.isa
@pytest.mark.parametrize("dtype", options.DTYPES)
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(("penalty", "activation"), PENALISED)
def test_gradient_by_position(penalty: str, activation: str, weighted: bool, dtype: str, device: str) -> None:
    config = by_position(penalty, activation, dtype=dtype)
    for n in (1, N):
        w = weights_for(n) if weighted else None
        check(config, device, n, w)
        check(config, device, n, w, full_batch_rows=3)


@pytest.mark.parametrize("rho_hat", options.RHO_HATS)
@pytest.mark.parametrize(("penalty", "activation"), PENALISED)
def test_training_by_position(penalty: str, activation: str, rho_hat: str, device: str) -> None:
    check_steps(by_position(penalty, activation, rho_hat=rho_hat, dtype="float64"), device, steps=50)
    check_steps(by_position(penalty, activation, rho_hat=rho_hat, dtype="float64"), device, 10, full_batch_rows=4)


@pytest.mark.parametrize(("penalty", "activation"), PENALISED)
def test_gradient_by_position_by_differences(penalty: str, activation: str, device: str) -> None:
    config = by_position(penalty, activation, dtype="float64")
    engine = make_engine(config, parameters_for(config, seed=3), device)
    assert check_gradient(engine, data(6, D, seed=5), n_coordinates=60) < 1e-9


def test_each_position_has_a_moving_average(device: str) -> None:
    """The numbers of the first position come first, as many as there are maps."""
    config = by_position("kl", rho_hat="ema", dtype="float64")
    engine = make_engine(config, parameters_for(config), device)
    X = data(N, D)
    shape = config.shapes[1]
    codes = Engine(dataclasses.replace(config, n_encoder_layers=1), device)
    codes.set_parameters(engine.get_parameters())
    means = codes.encode(X).mean(axis=0).reshape(shape)
    engine.step(X)
    assert engine.get("rho_hat1").shape == (np.prod(shape),)
    np.testing.assert_allclose(engine.get("rho_hat1"), means.transpose(1, 2, 0).ravel(), rtol=0, atol=1e-14)


@pytest.mark.parametrize("penalty", ["kl", "l1"])
def test_positions_are_units_of_their_own(penalty: str, device: str) -> None:
    """The sum over positions of an elementwise penalty is their number times the mean; of KL it is not."""
    layers = (ConvConfig(3, 3, padding=1, activation="sigmoid", penalty=penalty, beta=0.4), LayerConfig(D, "identity"))
    whole = Config(D, layers, SHAPE, dtype="float64")
    single_ones = dataclasses.replace(whole, layers=(dataclasses.replace(layers[0], per_position=True), layers[1]))
    parameters, X = parameters_for(whole), single(data(N, D))
    of_maps = make_engine(whole, parameters, device).evaluate(X)["penalty"]
    of_positions = make_engine(single_ones, parameters, device).evaluate(X)["penalty"]
    positions = SHAPE[1] * SHAPE[2]
    if penalty == "l1":
        assert of_positions == pytest.approx(positions * of_maps, rel=1e-12)
    else:
        assert of_positions > positions * of_maps  # KL is convex: the mean of the KLs is above the KL of the mean


def test_one_position_is_a_dense_unit(device: str) -> None:
    """A convolution over the whole image has one position, so that all three are the same."""
    parameters = None
    costs = []
    for per_position in (False, True):
        hidden = ConvConfig(4, 5, activation="sigmoid", penalty="kl", beta=0.4, per_position=per_position)
        config = Config(50, (hidden, LayerConfig(50, "identity")), (2, 5, 5), dtype="float64")
        parameters = parameters_for(config)
        costs.append(make_engine(config, parameters, device).gradient(data(N, 50)))
    unit = Config(50, (LayerConfig(4, "sigmoid", "kl", 0.4), LayerConfig(50, "identity")), dtype="float64")
    assert parameters is not None
    flat = {**parameters, "W1": parameters["W1"].reshape(4, 25, 2).transpose(0, 2, 1).reshape(4, 50)}
    costs.append(make_engine(unit, flat, device).gradient(data(N, 50)))
    assert costs[0] == pytest.approx(costs[1], rel=FLOAT64)
    assert costs[0] == pytest.approx(costs[2], rel=FLOAT64)
