"""The C++ engine against the NumPy reference: every option, every combination that has a meaning."""

from __future__ import annotations

import dataclasses
import itertools
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any
from unittest import mock

import numpy as np
import pytest
from tolerances import FLOAT64, GOLDEN, bound

from fastsae import Config, DeviceError, Engine, LayerConfig, _core
from fastsae import config as options
from fastsae.initializers import initialize
from fastsae.reference import ACTIVATIONS, CLAMP, LOSSES, OPTIMIZERS, PENALTIES, Layered

D, H, N = 7, 5, 11
Batch = tuple[np.ndarray, np.ndarray | None]
Parameters = dict[str, np.ndarray]

# --- problems ---


def two_layers(
    activation: str = "sigmoid",
    penalty: str = "none",
    output: str = "sigmoid",
    d: int = D,
    h: int = H,
    beta: float = 0.5,
    rho: float = 0.3,
    winners: str = "",
    **rest: Any,
) -> Config:
    hidden = LayerConfig(h, activation, penalty, beta=beta, rho=rho, winners=winners)
    return Config(d, (hidden, LayerConfig(d, output)), **{"weight_decay": 0.01, "learning_rate": 0.01, **rest})


def deep(tied: bool = False, **rest: Any) -> Config:
    """Four layers with a penalty on each hidden one."""
    layers = (
        LayerConfig(6, "tanh", "kl", beta=0.3, rho=0.4),
        LayerConfig(4, "softplus", "log", beta=0.2),
        LayerConfig(6, "sigmoid", "l1", beta=0.05),
        LayerConfig(D, "identity"),
    )
    return Config(D, layers, tied=tied, **{"weight_decay": 0.01, "learning_rate": 0.01, **rest})


BASE_MODELS: dict[str, Callable[..., Config]] = {
    "classic": lambda **rest: two_layers("sigmoid", "kl", **rest),
    "deep": deep,
    "tied deep": lambda **rest: deep(tied=True, **rest),
}


def single(values: np.ndarray) -> np.ndarray:
    """Float64 numbers that float32 holds exactly, so that all twins start from the same."""
    return values.astype(np.float32).astype(np.float64)


def data(n: int, d: int, seed: int = 0) -> np.ndarray:
    return single(np.random.default_rng([seed, 1]).uniform(0.05, 0.95, (n, d)))


def weights_for(n: int, seed: int = 0) -> np.ndarray:
    return single(np.random.default_rng([seed, 2]).uniform(0.2, 3.0, n))


def parameters_for(config: Config, seed: int = 0) -> Parameters:
    rng = np.random.default_rng([seed, 3])
    shapes = {name: p.shape for name, p in Layered(config).parameters.items()}
    return {
        name: single(rng.uniform(-1, 1, shape) * (0.8 if len(shape) == 1 else (6 / sum(shape)) ** 0.5))
        for name, shape in shapes.items()
    }


def rho_hats_for(config: Config) -> dict[int, np.ndarray]:
    """A started moving average for each layer that keeps one."""
    if config.rho_hat != "ema":
        return {}
    rng, shapes = np.random.default_rng(4), config.shapes
    return {
        number: rng.uniform(0.1, 0.6, shapes[number][0])
        for number, layer in enumerate(config.layers, 1)
        if getattr(layer, "penalty", None) == "kl" and layer.beta > 0  # type: ignore[attr-defined]
    }


def make_engine(
    config: Config, parameters: Parameters, device: str, full_batch_rows: int = 0, started: bool = False
) -> Engine:
    engine = Engine(config, device, full_batch_rows)
    engine.set_parameters(parameters)
    for number, mean in rho_hats_for(config).items() if started else ():
        engine.set(f"rho_hat{number}", mean)
        engine.steps = 1  # an average moves from the second step on
    return engine


class Exact(Layered):
    """The reference in float64, with the clamp of KL that the engine's own precision has."""

    def _penalty(self, *args: Any, **rest: Any) -> Any:
        with mock.patch.dict(CLAMP, float64=CLAMP[self.config.dtype]):
            return super()._penalty(*args, **rest)


def make_reference(config: Config, parameters: Parameters, dtype: str, started: bool = False) -> Layered:
    reference = Exact(config) if dtype == "float64" else Layered(config, dtype)
    reference.set(parameters)
    if started:
        reference.rho_hat = {number: mean.astype(dtype) for number, mean in rho_hats_for(config).items()}
        reference.steps = 1 if reference.rho_hat else 0
    return reference


def references(config: Config, parameters: Parameters, started: bool = False) -> tuple[Layered, Layered]:
    """The exact twin, and the plain one in the engine's own precision."""
    return (
        make_reference(config, parameters, "float64", started),
        make_reference(config, parameters, config.dtype, started),
    )


# --- comparisons; test_faults.py runs them against faulty references ---


def assert_near(name: str, actual: Any, exact: Any, plain: Any, dtype: str, **options: Any) -> None:
    actual, exact = np.asarray(actual, np.float64), np.asarray(exact, np.float64)
    assert actual.shape == exact.shape, f"{name}: shape {actual.shape}, expected {exact.shape}"
    difference, allowed = np.abs(actual - exact).max(initial=0.0), bound(exact, plain, dtype, **options)
    assert difference <= allowed, f"{name}: off by {difference:.3g}, allowed {allowed:.3g}"


def assert_parts(actual: dict[str, float], exact: dict[str, float], plain: dict[str, float], dtype: str) -> None:
    for part in ("reconstruction", "penalty", "decay", "loss"):
        # A small part of J is known to the precision of J: KL is a difference of logarithms.
        assert_near(part, actual[part], exact[part], plain[part], dtype, scale=abs(exact["loss"]))


def check_gradient(
    config: Config,
    device: str,
    n: int = N,
    weighted: bool = False,
    full_batch_rows: int = 0,
    parameters: Parameters | None = None,
    seed: int = 0,
) -> None:
    """The cost and its gradient, tensor by tensor; and the cost without a gradient."""
    parameters = parameters_for(config, seed) if parameters is None else parameters
    X, w = data(n, config.n_features, seed), weights_for(n, seed) if weighted else None
    engine = make_engine(config, parameters, device, full_batch_rows, started=True)
    exact, plain = references(config, parameters, started=True)
    parts = engine.gradient(X, w)
    exact_parts, exact_gradients = exact.value_and_gradient(X, w)
    plain_parts, plain_gradients = plain.value_and_gradient(X, w)
    assert_parts(parts, exact_parts, plain_parts, config.dtype)
    for name, g in exact_gradients.items():
        assert_near(name, engine.get("gradient." + name), g, plain_gradients[name], config.dtype)
    norm, plain_norm = (
        sum(float((np.asarray(g, np.float64) ** 2).sum()) for g in gradients.values()) ** 0.5
        for gradients in (exact_gradients, plain_gradients)
    )
    assert_near("gradient_norm", parts["gradient_norm"], norm, plain_norm, config.dtype)
    assert_parts(engine.evaluate(X, w), exact.evaluate(X, w), plain.evaluate(X, w), config.dtype)
    assert set(engine.get_parameters()) == set(parameters)
    assert all(np.array_equal(engine.get(name), p) for name, p in parameters.items())


def is_kinked(config: Config) -> bool:
    """Whether a rounding error can flip a slope, after which two correct runs part."""
    if config.weight_l1 or any(getattr(layer, "weight_l1", None) for layer in config.layers):
        return True
    return any(
        activation == "relu" or (penalty == "l1" and activation in ("tanh", "identity")) or mode == "max"
        for activation, penalty, mode in (
            [getattr(layer, name, None) for name in ("activation", "penalty", "mode")] for layer in config.layers
        )
    )


def alternate(batches: Sequence[Batch], steps: int) -> Iterator[Batch]:
    return itertools.islice(itertools.cycle(batches), steps)


def two_batches(d: int, weighted: bool = False) -> list[Batch]:
    """Of different sizes, so that a moving average and the scratch memory have something to do."""
    return [(data(n, d, seed), weights_for(n, seed) if weighted else None) for seed, n in ((0, N), (1, N - 3))]


def check_training(
    config: Config,
    device: str,
    steps: int = 50,
    weighted: bool = False,
    full_batch_rows: int = 0,
    parameters: Parameters | None = None,
) -> None:
    """The loss curve, and after the last step the parameters, moments and moving averages."""
    parameters = parameters_for(config) if parameters is None else parameters
    engine = make_engine(config, parameters, device, full_batch_rows)
    exact, plain = references(config, parameters)
    curves: list[list[float]] = [[], [], []]
    for X, w in alternate(two_batches(config.n_features, weighted), steps):
        engine.reset_metrics()
        engine.step(X, w)
        losses = engine.metrics()["loss"], exact.step(X, w)["loss"], plain.step(X, w)["loss"]
        for curve, loss in zip(curves, losses, strict=True):
            curve.append(loss)
    assert engine.steps == exact.steps == steps
    assert_near("loss curve", *curves, config.dtype, trained=True)
    if config.dtype == "float32" and is_kinked(config):
        return
    for prefix, exact_group, plain_group in (
        ("", exact.parameters, plain.parameters),
        ("first_moment.", exact.first_moment, plain.first_moment),
        ("second_moment.", exact.second_moment, plain.second_moment),
        ("rho_hat", exact.rho_hat, plain.rho_hat),
    ):
        for name, value in exact_group.items():  # type: ignore[attr-defined]
            key = f"{prefix}{name}"
            assert_near(key, engine.get(key), value, plain_group[name], config.dtype, trained=True)  # type: ignore[index]


def check_outputs(config: Config, device: str, n: int = N, seed: int = 0) -> None:
    """Code, decoding, reconstruction and the loss of each row."""
    parameters = parameters_for(config, seed)
    engine = make_engine(config, parameters, device)
    exact, plain = references(config, parameters)
    X = data(n, config.n_features, seed)
    code = exact.encode(X)
    assert_near("encode", engine.encode(X), code, plain.encode(X), config.dtype)
    code = single(code)
    assert_near("decode", engine.decode(code), exact.decode(code), plain.decode(code), config.dtype)
    assert_near("reconstruct", engine.reconstruct(X), exact.reconstruct(X), plain.reconstruct(X), config.dtype)
    assert_near("score", engine.score(X), exact.row_losses(X), plain.row_losses(X), config.dtype)


# --- the full product ---

PAIRS = [("squared_error", output) for output in options.ACTIVATIONS] + [("cross_entropy", "sigmoid")]
HIDDEN = [
    (activation, penalty)
    for activation in options.ACTIVATIONS
    for penalty in options.PENALTIES
    if penalty != "kl" or activation in options.BOUNDED_ACTIVATIONS
]
PRODUCT = [
    {"activation": activation, "penalty": penalty, "output": output, "loss": loss, "rho_hat": rho_hat, "tied": tied}
    for (activation, penalty), (loss, output), rho_hat, tied in itertools.product(
        HIDDEN, PAIRS, options.RHO_HATS, (False, True)
    )
]


def label(case: dict[str, Any]) -> str:
    return "-".join("tied" if value is True else str(value) for value in case.values() if value is not False)


def test_the_product_is_full() -> None:
    """5 activations x 3 penalties and KL on 2; 6 outputs with a loss; 3 rho_hats; tied or not."""
    assert len(PRODUCT) == (5 * 3 + 2) * 6 * 3 * 2


@pytest.mark.isa
@pytest.mark.parametrize("dtype", options.DTYPES)
@pytest.mark.parametrize("case", PRODUCT, ids=label)
def test_gradient(case: dict[str, Any], dtype: str, device: str) -> None:
    check_gradient(two_layers(**case, dtype=dtype), device)


# rho_hat has no meaning without KL; test_rho_hat_without_kl shows that it has no effect either.
TRAINED = [case for case in PRODUCT if case["penalty"] == "kl" or case["rho_hat"] == "batch"]


@pytest.mark.parametrize("dtype", options.DTYPES)
@pytest.mark.parametrize("number", range(len(TRAINED)), ids=lambda i: label(TRAINED[i]))
def test_training(number: int, dtype: str, device: str) -> None:
    """50 steps; the optimisers take turns."""
    optimizer = options.OPTIMIZERS[number % len(options.OPTIMIZERS)]
    check_training(two_layers(**TRAINED[number], optimizer=optimizer, dtype=dtype), device)


@pytest.mark.parametrize("rho_hat", ["ema", "full"])
@pytest.mark.parametrize("penalty", ["none", "l1", "log"])
def test_rho_hat_without_kl(penalty: str, rho_hat: str, device: str) -> None:
    engines = []
    for name in ("batch", rho_hat):
        config = two_layers("tanh", penalty, rho_hat=name)
        engines.append(make_engine(config, parameters_for(config), device))
        for X, w in alternate(two_batches(D), 4):
            engines[-1].step(X, w)
    assert not any("rho_hat" in name for name in engines[1].names())
    for name in engines[0].state_names():
        np.testing.assert_array_equal(*(engine.get(name) for engine in engines))


# --- optimisers, reductions, first weights ---

PAIRWISE = [
    (optimizer, reduction, options.INITIALIZERS[(i + j) % 3])
    for i, optimizer in enumerate(options.OPTIMIZERS)
    for j, reduction in enumerate(options.LOSS_REDUCTIONS)
]


def test_pairs_are_covered() -> None:
    for first, second in itertools.combinations(range(3), 2):
        lists = (options.OPTIMIZERS, options.LOSS_REDUCTIONS, options.INITIALIZERS)
        assert {(case[first], case[second]) for case in PAIRWISE} == set(itertools.product(lists[first], lists[second]))


@pytest.mark.isa
@pytest.mark.parametrize("dtype", options.DTYPES)
@pytest.mark.parametrize("model", BASE_MODELS)
@pytest.mark.parametrize(("optimizer", "reduction", "init"), PAIRWISE)
def test_optimizer_reduction_init(
    optimizer: str, reduction: str, init: str, model: str, dtype: str, device: str
) -> None:
    config = BASE_MODELS[model](optimizer=optimizer, loss_reduction=reduction, dtype=dtype)
    drawn = initialize(config, init, np.random.default_rng(5))
    check_training(config, device, weighted=True, parameters={name: single(p) for name, p in drawn.items()})


@pytest.mark.parametrize("dtype", options.DTYPES)
@pytest.mark.parametrize("loss", options.LOSSES)
@pytest.mark.parametrize("reduction", options.LOSS_REDUCTIONS)
def test_gradient_of_each_reduction(reduction: str, loss: str, dtype: str, device: str) -> None:
    check_gradient(two_layers("tanh", "log", loss=loss, loss_reduction=reduction, dtype=dtype), device, weighted=True)


@pytest.mark.parametrize("optimizer", options.OPTIMIZERS)
def test_learning_rate_may_change(optimizer: str, device: str) -> None:
    """A schedule: the state is kept, the next step takes the new rate."""
    config = two_layers("tanh", "kl", optimizer=optimizer, dtype="float64", weight_decay=0.1)
    parameters = parameters_for(config)
    engine, exact = make_engine(config, parameters, device), make_reference(config, parameters, "float64")
    for step, (X, w) in enumerate(alternate(two_batches(D), 8)):
        engine.learning_rate = 0.02 / (1 + step)
        exact.config = dataclasses.replace(config, learning_rate=0.02 / (1 + step))
        engine.step(X, w)
        exact.step(X, w)
        assert engine.learning_rate == 0.02 / (1 + step)
    for name, p in exact.parameters.items():
        assert_near(name, engine.get(name), p, None, "float64", trained=True)


# --- rows: weights, batches, chunks ---


@pytest.mark.parametrize("dtype", options.DTYPES)
@pytest.mark.parametrize("rho_hat", options.RHO_HATS)
@pytest.mark.parametrize(("activation", "penalty"), HIDDEN)
def test_sample_weight(activation: str, penalty: str, rho_hat: str, dtype: str, device: str) -> None:
    config = two_layers(activation, penalty, rho_hat=rho_hat, dtype=dtype)
    check_gradient(config, device, weighted=True)
    check_training(config, device, steps=6, weighted=True)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("penalty", options.PENALTIES)
def test_rows_of_no_weight_do_not_count(penalty: str, tied: bool, device: str) -> None:
    config = two_layers("tanh", penalty, tied=tied, dtype="float64")
    parameters, X = parameters_for(config), data(N, D)
    w = np.where(np.arange(N) % 3 == 1, 0.0, weights_for(N))
    with_zeros, without = (make_engine(config, parameters, device) for _ in range(2))
    parts, expected = with_zeros.gradient(X, w), without.gradient(X[w > 0], w[w > 0])
    assert parts == pytest.approx(expected, rel=FLOAT64)
    for name in parameters:
        key = "gradient." + name
        assert_near(key, with_zeros.get(key), without.get(key), None, "float64")


@pytest.mark.parametrize("scale", [1e-12, 1e12])
@pytest.mark.parametrize("dtype", options.DTYPES)
def test_only_shares_of_weights_matter(dtype: str, scale: float, device: str) -> None:
    for penalty in options.PENALTIES:
        config = two_layers("tanh", penalty, dtype=dtype)
        parameters, X, w = parameters_for(config), data(N, D), weights_for(N)
        engine = make_engine(config, parameters, device)
        exact, plain = references(config, parameters)
        assert_parts(engine.evaluate(X, scale * w), exact.evaluate(X, w), plain.evaluate(X, w), dtype)
        engine.gradient(X, scale * w)
        twins = exact.value_and_gradient(X, w)[1], plain.value_and_gradient(X, w)[1]
        for name in parameters:
            assert_near(name, engine.get("gradient." + name), *(g[name] for g in twins), dtype)


def check_epoch(
    config: Config,
    device: str,
    batch_size: int | None,
    reference_order: np.ndarray | None = None,
    reference_rows: int | None = None,
) -> None:
    """`run_epoch` against one reference step a batch. The last two arguments seed faults."""
    n = 23
    parameters, X, w = parameters_for(config), data(n, D), weights_for(n)
    order = np.random.default_rng(6).permutation(n)[:21]
    engine, exact = make_engine(config, parameters, device), make_reference(config, parameters, "float64")
    engine.run_epoch(X, order, batch_size, w)
    order = order if reference_order is None else reference_order
    size = len(order) if batch_size is None else batch_size
    for first in range(0, len(order) if reference_rows is None else reference_rows, size):
        rows = order[first : first + size]
        exact.step(X[rows], w[rows])
    for name, p in exact.parameters.items():
        assert_near(name, engine.get(name), p, None, "float64", trained=True)
    assert engine.steps == exact.steps


@pytest.mark.parametrize("batch_size", [1, 4, 8, 20, 21, 50, None])
@pytest.mark.parametrize("rho_hat", ["batch", "ema"])
def test_epoch_with_a_short_last_batch(batch_size: int | None, rho_hat: str, device: str) -> None:
    check_epoch(two_layers("sigmoid", "kl", rho_hat=rho_hat, dtype="float64"), device, batch_size)


@pytest.mark.parametrize("chunk", [1, 4, 10])
@pytest.mark.parametrize("rho_hat", options.RHO_HATS)
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("penalty", options.PENALTIES)
def test_chunks_of_a_full_batch(
    penalty: str, weighted: bool, tied: bool, rho_hat: str, chunk: int, device: str
) -> None:
    """A batch in chunks of rows gives the cost and the gradient of the whole; the trained model too."""
    config = two_layers("tanh", penalty, rho_hat=rho_hat, tied=tied, dtype="float64")
    parameters, X = parameters_for(config), data(N, D)
    w = weights_for(N) if weighted else None
    whole, chunked = (make_engine(config, parameters, device, rows, started=True) for rows in (0, chunk))
    parts = whole.gradient(X, w), chunked.gradient(X, w)
    assert parts[0] == pytest.approx(parts[1], rel=FLOAT64)
    assert whole.evaluate(X, w) == pytest.approx(chunked.evaluate(X, w), rel=FLOAT64)
    for engine in (whole, chunked):
        for _ in range(3):
            engine.step(X, w)
    for name in whole.names():
        assert_near(name, chunked.get(name), whole.get(name), None, "float64")
    check_gradient(config, device, weighted=weighted, full_batch_rows=chunk)


@pytest.mark.parametrize("model", BASE_MODELS)
@pytest.mark.parametrize("dtype", options.DTYPES)
def test_chunks_against_the_reference(model: str, dtype: str, device: str) -> None:
    config = BASE_MODELS[model](dtype=dtype, rho_hat="ema")
    check_gradient(config, device, weighted=True, full_batch_rows=3)
    check_training(config, device, steps=10, weighted=True, full_batch_rows=3)


# --- sizes ---

# (rows, features, units). The large ones are cut in tiles along rows, columns and both; a sum over more than 512
# columns or 128 rows has its own loop; inference has blocks of 1024 rows.
SIZES = [
    (1, 7, 5),
    (2, 1, 1),
    (9, 6, 1),
    (5, 1, 4),
    (1, 33, 17),
    (333, 200, 77),
    (1000, 64, 25),
    (129, 31, 530),
    (300, 301, 530),
    (2050, 19, 70),
]


@pytest.mark.isa
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("dtype", options.DTYPES)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_sizes(size: tuple[int, int, int], dtype: str, tied: bool, device: str) -> None:
    n, d, h = size
    config = two_layers("sigmoid", "kl", d=d, h=h, tied=tied, dtype=dtype)
    check_gradient(config, device, n=n, weighted=True)
    check_outputs(config, device, n=n)
    if n > 1:
        check_gradient(config, device, n=n, full_batch_rows=n // 2)


@pytest.mark.isa
@pytest.mark.parametrize("dtype", options.DTYPES)
@pytest.mark.parametrize("optimizer", options.OPTIMIZERS)
def test_updates_of_a_large_matrix(optimizer: str, dtype: str, device: str) -> None:
    """More than one block of elements in every update."""
    config = two_layers("tanh", "log", d=310, h=233, optimizer=optimizer, dtype=dtype)
    check_training(config, device, steps=4)


# --- outputs ---


@pytest.mark.isa
@pytest.mark.parametrize("dtype", options.DTYPES)
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("activation", options.ACTIVATIONS)
@pytest.mark.parametrize(("loss", "output"), PAIRS)
def test_outputs(loss: str, output: str, activation: str, tied: bool, dtype: str, device: str) -> None:
    check_outputs(two_layers(activation, output=output, loss=loss, tied=tied, dtype=dtype), device)


@pytest.mark.parametrize("n_encoder_layers", [None, 0, 1, 2, 3, 4])
@pytest.mark.parametrize("reduction", options.LOSS_REDUCTIONS)
def test_outputs_of_a_deep_model(n_encoder_layers: int | None, reduction: str, device: str) -> None:
    config = deep(n_encoder_layers=n_encoder_layers, loss_reduction=reduction, dtype="float64")
    check_outputs(config, device, n=1027)
    widths = {None: 4, 0: D, 1: 6, 2: 4, 3: 6, 4: D}
    assert Engine(config, device).code_width == widths[n_encoder_layers]


@pytest.mark.parametrize("dtype", options.DTYPES)
def test_scores_average_to_the_cost(dtype: str, device: str) -> None:
    config = deep(dtype=dtype)
    engine, X, w = make_engine(config, parameters_for(config), device), data(N, D), weights_for(N)
    mean = (w * engine.score(X)).sum() / w.sum()
    assert mean == pytest.approx(engine.evaluate(X, w)["reconstruction"], rel=1e-6 if dtype == "float32" else FLOAT64)


@pytest.mark.parametrize("layers", [1, 2, 3, 5])
@pytest.mark.parametrize("dtype", options.DTYPES)
def test_depths(layers: int, dtype: str, device: str) -> None:
    units = [LayerConfig(3 + i, "tanh", "log" if i % 2 else "kl", beta=0.2, rho=0.4) for i in range(layers - 1)]
    config = Config(D, (*units, LayerConfig(D)), loss="cross_entropy", learning_rate=0.01, dtype=dtype)
    check_gradient(config, device, weighted=True)
    check_training(config, device, steps=10)
    check_outputs(config, device)


# --- extremes ---


@pytest.mark.parametrize("dtype", options.DTYPES)
@pytest.mark.parametrize(
    ("activation", "bias"),
    [("sigmoid", -18.0), ("sigmoid", -29.0), ("sigmoid", -40.0), ("sigmoid", 40.0), ("tanh", -40.0), ("tanh", 40.0)],
)
def test_saturated_units_feel_kl(activation: str, bias: float, dtype: str, device: str) -> None:
    """At the clamp of KL: finite, with the slope of the clamped mean.

    At -18 (float32) and -29 (float64) a sigmoid is beyond the clamp and its gradient is still large; at 40 it is 1,
    and tanh +-1, to the last bit.
    """
    config = two_layers(activation, "kl", beta=3.0, dtype=dtype)
    parameters = parameters_for(config)
    parameters["b1"][:2] = bias
    check_gradient(config, device, parameters=parameters)


@pytest.mark.parametrize("dtype", options.DTYPES)
@pytest.mark.parametrize(("loss", "output"), PAIRS)
def test_large_logits(loss: str, output: str, dtype: str, device: str) -> None:
    config = two_layers("softplus", "log", output, loss=loss, dtype=dtype)
    parameters = {name: 32 * p for name, p in parameters_for(config).items()}
    check_gradient(config, device, parameters=parameters)


# --- golden values ---


@pytest.mark.parametrize("transpose", [False, True])
@pytest.mark.parametrize(
    ("c", "published"),
    [
        (1.0, (1.190472606540, 1.197585812647)),
        (0.0, (0.15, 0.15)),
        (-1.0, (0.048800332266, 0.063466617408)),
    ],
)
def test_golden_costs_of_mlpack(c: float, published: tuple[float, float], transpose: bool, device: str) -> None:
    """Octave values from mlpack's sparse_autoencoder_test.cpp: every parameter is c."""
    X = np.outer(np.arange(1, 6) / 10, np.ones(5))
    engine = Engine(two_layers(d=5, h=3, beta=0.0, weight_decay=0.0, dtype="float64"), device)
    engine.set_parameters({name: np.full(p.shape, c) for name, p in engine.get_parameters().items()})
    parts = engine.evaluate(X.T if transpose else X)
    assert parts["loss"] == pytest.approx(published[transpose], abs=GOLDEN, rel=0)
    assert engine.gradient(X.T if transpose else X)["loss"] == pytest.approx(published[transpose], abs=GOLDEN, rel=0)


@pytest.mark.parametrize(
    ("rho", "q", "value", "slope"),
    [
        (0.05, 0.5, 0.494631937214073, 1.8),
        (0.05, 0.01, 0.041291085014358, -4.040404040404041),
        (0.1, 0.3, 0.116321756586005, 0.952380952380952),
    ],
)
@pytest.mark.parametrize("activation", options.BOUNDED_ACTIVATIONS)
def test_golden_kl(activation: str, rho: float, q: float, value: float, slope: float, device: str) -> None:
    """A bias alone sets the mean activation to q, whose KL and slope are known; tanh maps by (a + 1) / 2."""
    config = two_layers(activation, "kl", d=3, h=2, beta=1.0, rho=rho, weight_decay=0.0, dtype="float64")
    engine = Engine(config, device)
    bias = np.log(q / (1 - q)) / (1 if activation == "sigmoid" else 2)
    engine.set("b1", np.full(2, bias))
    parts = engine.gradient(data(N, 3))
    assert parts["penalty"] == pytest.approx(2 * value, abs=GOLDEN, rel=0)
    # d rho_hat / d bias: q (1 - q), for tanh 1/2 (1 - tanh^2) = 2 q (1 - q).
    by_bias = q * (1 - q) * (1 if activation == "sigmoid" else 2)
    np.testing.assert_allclose(engine.get("gradient.b1"), slope * by_bias, rtol=0, atol=GOLDEN)


# --- the lists, and every option ---


@pytest.mark.isa
def test_instruction_set_is_the_one_asked_for() -> None:
    """test_isa.py runs the tests marked `isa` again and relies on this."""
    assert _core.isa() in (os.environ.get("FASTSAE_ISA") or ("baseline", "avx2", "avx512"))


def test_both_sides_have_the_same_names() -> None:
    names = {kind: set(listed) for kind, listed in _core.kernel_names().items()}
    assert names == {
        "activations": set(ACTIVATIONS),
        "losses": set(LOSSES),
        "penalties": set(PENALTIES),
        "optimizers": set(OPTIMIZERS) - {"adamw"},  # Adam's kernel with another scalar
    }
    assert set(options.ACTIVATIONS) == set(ACTIVATIONS)
    assert set(options.LOSSES) == set(LOSSES)
    assert set(options.PENALTIES) == set(PENALTIES)
    assert set(options.OPTIMIZERS) == set(OPTIMIZERS)


# Field -> (options of the model it is changed in, other values). A value must change a result or raise.
FIELDS: dict[str, tuple[dict[str, Any], list[Any]]] = {
    "n_features": ({}, [D + 1]),
    "input_shape": ({}, [(1, D + 1, 1)]),
    "n_outputs": ({}, [D + 1]),
    "n_encoder_layers": ({}, [0, 2]),
    "loss": ({}, ["cross_entropy"]),
    "loss_reduction": ({}, ["sum", "mean"]),
    "corruption": ({}, ["masking", "gaussian", "salt_and_pepper"]),
    "corruption_level": ({"corruption": "masking"}, [0.0, 0.6]),
    "corruption_low": ({"corruption": "salt_and_pepper"}, [-1.0]),
    "corruption_high": ({"corruption": "salt_and_pepper"}, [2.0]),
    "emphasis": ({"corruption": "masking"}, [0.0, 2.0]),
    "emphasis_rest": ({"corruption": "salt_and_pepper"}, [0.0, 2.0]),
    "tied": ({}, [True]),
    "weight_decay": ({}, [0.0, 0.3]),
    "weight_l1": ({}, [0.05]),
    "contraction": ({}, [0.5]),
    "contraction_hessian": ({}, [0.5]),
    "contraction_noise": ({"contraction_hessian": 0.5}, [0.3]),
    "rho_hat": ({"penalty": "kl"}, ["ema", "full"]),
    "rho_hat_decay": ({"penalty": "kl", "rho_hat": "ema"}, [0.0, 0.5]),
    "optimizer": ({"optimizer": "adam"}, ["sgd", "momentum", "nesterov", "adamw", "sign_sgd"]),
    "learning_rate": ({}, [0.0, 0.03]),
    "momentum": ({"optimizer": "momentum"}, [0.0, 0.5]),
    "beta1": ({}, [0.0, 0.5]),
    "beta2": ({}, [0.0, 0.5]),
    "epsilon": ({}, [1e-2]),
    "lr_schedule": ({"lr_total_steps": 3, "lr_step_size": 1}, ["cosine", "linear", "step"]),
    "lr_warm_up": ({}, [2]),
    "lr_start": ({"lr_warm_up": 3}, [0.0, 0.5]),
    "lr_total_steps": ({"lr_schedule": "cosine", "lr_total_steps": 3}, [2, 9, None]),
    "lr_decay_steps": ({"lr_schedule": "linear", "lr_total_steps": 3}, [1, 2]),
    "lr_final": ({"lr_schedule": "cosine", "lr_total_steps": 3}, [0.5]),
    "lr_step_size": ({"lr_schedule": "step", "lr_step_size": 1}, [2]),
    "lr_gamma": ({"lr_schedule": "step", "lr_step_size": 1}, [0.5]),
    "max_grad_norm": ({}, [0.01]),
    "dtype": ({}, ["float32"]),
    "precision": ({"dtype": "float32"}, ["tf32", "bf16"]),
}
LAYER_FIELDS: dict[str, tuple[dict[str, Any], list[Any]]] = {
    "units": ({}, [H + 1]),
    "activation": ({}, [name for name in options.ACTIVATIONS if name != "sigmoid"]),
    "penalty": ({}, ["kl", "l1", "log"]),
    "beta": ({"penalty": "kl"}, [0.0, 1.5]),
    "rho": ({"penalty": "kl"}, [0.1, 0.9]),
    "weight_decay": ({}, [0.0, 0.3]),
    "weight_l1": ({}, [0.05]),
    "winners": ({"activation": "relu"}, ["lifetime"]),
    "lifetime": ({"activation": "relu", "winners": "lifetime"}, [0.5]),
}


def fingerprint(config: Config, device: str) -> list[np.ndarray]:
    """All that a model computes, from fixed parameters: outputs, and the state after an epoch of mini-batches."""
    engine = make_engine(config, parameters_for(config), device)
    X = data(N, D)
    engine.run_epoch(X, None, 4)
    outputs = [engine.encode(X), engine.reconstruct(X), engine.score(X)]
    return outputs + [engine.get(name) for name in engine.state_names()]


def changes(config: Config, changed: Config, device: str) -> bool:
    try:
        after = fingerprint(changed, device)
    except (ValueError, DeviceError):
        return True
    before = fingerprint(config, device)
    return len(before) != len(after) or any(
        a.shape != b.shape or a.dtype != b.dtype or not np.array_equal(a, b) for a, b in zip(before, after, strict=True)
    )


def test_every_field_is_listed() -> None:
    assert set(FIELDS) | {"layers"} == {field.name for field in dataclasses.fields(Config)}
    assert set(LAYER_FIELDS) == {field.name for field in dataclasses.fields(LayerConfig)}
    config = two_layers("sigmoid", "kl", dtype="float64")
    assert not changes(config, dataclasses.replace(config), "cpu")


@pytest.mark.parametrize(
    ("field", "value"), [(field, value) for field, (_, values) in FIELDS.items() for value in values]
)
def test_no_field_is_ignored(field: str, value: Any, device: str) -> None:
    config = two_layers(**{"dtype": "float64", **FIELDS[field][0]})
    assert getattr(config, field) != value
    assert changes(config, dataclasses.replace(config, **{field: value}), device)


@pytest.mark.parametrize(
    ("field", "value"), [(field, value) for field, (_, values) in LAYER_FIELDS.items() for value in values]
)
@pytest.mark.parametrize("index", [0, 1])
def test_no_layer_field_is_ignored(index: int, field: str, value: Any, device: str) -> None:
    config = two_layers(**{"dtype": "float64", **LAYER_FIELDS[field][0]})
    if index == 1 and field in ("beta", "rho", "lifetime"):
        index = 0  # the output layer takes no penalty and no winners, which these options of it show to raise
    layers = list(config.layers)
    assert getattr(layers[index], field) != value
    layers[index] = dataclasses.replace(layers[index], **{field: value})
    assert changes(config, dataclasses.replace(config, layers=tuple(layers)), device)
