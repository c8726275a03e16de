"""The NumPy reference against finite differences, published values and closed forms."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest

from fastsae import config as options
from fastsae.config import Config, LayerConfig
from fastsae.reference import ACTIVATIONS, LOSSES, OPTIMIZERS, PENALTIES, Layered, StepScalars, clamp, factor
from fastsae.reference.schedules import average_share

D, H, N = 5, 3, 7
KINKED = ("relu", "l1")
RELATIVE_TO_SUM = {
    "squared_error": {"ufldl": 0.5, "sum": 1.0, "mean": 1 / D},
    "cross_entropy": {"ufldl": 1.0, "sum": 1.0, "mean": 1 / D},
}
OUTPUTS = [("squared_error", name) for name in options.ACTIVATIONS] + [("cross_entropy", "sigmoid")]
HIDDEN = [
    (activation, penalty)
    for activation in options.ACTIVATIONS
    for penalty in options.PENALTIES
    if penalty != "kl" or activation in options.BOUNDED_ACTIVATIONS
]


def two_layers(
    activation: str = "sigmoid",
    penalty: str = "none",
    output: str = "sigmoid",
    beta: float = 0.7,
    **rest: Any,
) -> Config:
    hidden = LayerConfig(H, activation, penalty, beta=beta, rho=0.3)
    return Config(D, (hidden, LayerConfig(D, output)), **{"weight_decay": 0.02, **rest})


def data(seed: int, n: int = N) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng([seed, 1])
    return rng.uniform(0.05, 0.95, (n, D)), rng.uniform(0.2, 3.0, n)


def randomised(config: Config, seed: int, dtype: str = "float64") -> Layered:
    model = Layered(config, dtype)
    rng = np.random.default_rng([seed, 2])
    model.set({name: rng.uniform(-0.8, 0.8, p.shape) for name, p in model.parameters.items()})
    return model


def away_from_kinks(config: Config) -> tuple[Layered, np.ndarray, np.ndarray]:
    """A model and data where no kinked function is near 0."""
    for seed in range(1000):
        model = randomised(config, seed)
        X, weights = data(seed)
        kinked = [
            np.abs(z)
            for (z, _), layer in zip(model.forward(X), config.layers, strict=True)
            if layer.activation in KINKED or layer.penalty in KINKED
        ]
        if all(z.min() > 0.012 for z in kinked):
            return model, X, weights
    raise AssertionError("no seed is away from the kinks")


def numeric_gradient(
    model: Layered, X: np.ndarray, weights: np.ndarray | None, eps: float = 1e-3
) -> dict[str, np.ndarray]:
    """Gradient of each part of the cost of `evaluate`, all parameters in one vector: 4-point stencil."""
    parts: dict[str, list[float]] = {"reconstruction": [], "penalty": [], "decay": []}
    for p in model.parameters.values():
        for index in np.ndindex(p.shape):
            centre, costs = p[index], []
            for k in (-2, -1, 1, 2):
                p[index] = centre + k * eps
                costs.append(model.evaluate(X, weights))
            p[index] = centre
            for part, slopes in parts.items():
                v = [cost[part] for cost in costs]
                slopes.append((8 * (v[2] - v[1]) - (v[3] - v[0])) / (12 * eps))
    return {part: np.array(slopes) for part, slopes in parts.items()}


def assert_gradient(
    model: Layered, X: np.ndarray, weights: np.ndarray | None, numeric: np.ndarray | None = None
) -> None:
    parts, gradients = model.value_and_gradient(X, weights)
    assert parts == pytest.approx(model.evaluate(X, weights), rel=1e-14)
    assert list(gradients) == list(model.parameters)
    num = sum(numeric_gradient(model, X, weights).values()) if numeric is None else numeric
    ana = np.concatenate([g.ravel() for g in gradients.values()])
    assert np.linalg.norm(ana) > 1e-3
    assert np.linalg.norm(num - ana) / np.linalg.norm(num + ana) < 1e-9


# --- names ---


def test_names_are_those_of_the_config() -> None:
    assert tuple(ACTIVATIONS) == options.ACTIVATIONS
    assert tuple(LOSSES) == options.LOSSES
    assert tuple(PENALTIES) == options.PENALTIES
    assert tuple(OPTIMIZERS) == options.OPTIMIZERS


def test_bounds_are_finite_for_the_activations_that_kl_accepts() -> None:
    bounded = [name for name, f in ACTIVATIONS.items() if math.isfinite(f.low) and math.isfinite(f.high)]
    assert tuple(bounded) == options.BOUNDED_ACTIVATIONS


# --- formulas ---


@pytest.mark.parametrize("name", options.ACTIVATIONS)
def test_activation(name: str) -> None:
    f = ACTIVATIONS[name]
    z = np.array([-3.0, -1.25, -0.1, 0.1, 0.5, 2.0, 4.0])
    a, eps = f.value(z), 1e-3
    v = [f.value(z + k * eps) for k in (-2, -1, 1, 2)]
    numeric = (8 * (v[2] - v[1]) - (v[3] - v[0])) / (12 * eps)
    np.testing.assert_allclose(f.slope(a), numeric, rtol=0, atol=1e-11)
    slopes = [f.slope(f.value(z + k * eps)) for k in (-2, -1, 1, 2)]
    numeric = (8 * (slopes[2] - slopes[1]) - (slopes[3] - slopes[0])) / (12 * eps)
    np.testing.assert_allclose(f.curvature(a), numeric, rtol=0, atol=1e-11)
    for dtype in (np.float32, np.float64):
        extreme = np.array([-1e30, -1000, -100, -0.0, 0, 100, 1000, 1e30], dtype)
        with np.errstate(over="raise", invalid="raise", divide="raise"):
            out = f.value(extreme)
            slope = f.slope(out)
        assert out.dtype == slope.dtype == dtype
        assert np.isfinite([out, slope]).all()
        assert ((out >= f.low) & (out <= f.high)).all()
        assert np.isnan(f.value(np.array([np.nan], dtype))).all()


def test_activation_values() -> None:
    """Known values, among them the far tail where a naive formula loses all digits."""
    z = np.array([0.0, math.log(3.0), -40.0])
    np.testing.assert_allclose(ACTIVATIONS["sigmoid"].value(z), [0.5, 0.75, math.exp(-40)], rtol=1e-15)
    softplus = [math.log(2.0), math.log(4.0), math.exp(-40)]
    np.testing.assert_allclose(ACTIVATIONS["softplus"].value(z), softplus, rtol=1e-15)
    np.testing.assert_allclose(ACTIVATIONS["tanh"].value(z), [0.0, 0.8, -1.0], rtol=1e-15)
    assert ACTIVATIONS["softplus"].slope(np.array([math.exp(-40)])) == pytest.approx(math.exp(-40), rel=1e-15, abs=0)
    assert ACTIVATIONS["relu"].value(z).tolist() == [0.0, math.log(3.0), 0.0]
    assert ACTIVATIONS["relu"].slope(np.zeros(1)) == 0.0
    assert ACTIVATIONS["identity"].value(z).tolist() == z.tolist()


def test_cross_entropy_value() -> None:
    x, z = np.array([0.0, 0.3, 1.0, 1.0, 0.0]), np.array([0.2, -1.0, 0.5, -800.0, 800.0])
    y = ACTIVATIONS["sigmoid"].value(z)
    value = LOSSES["cross_entropy"].value(x, z, y)
    direct = -x[:3] * np.log(y[:3]) - (1 - x[:3]) * np.log(1 - y[:3])
    np.testing.assert_allclose(value[:3], direct, rtol=1e-14)
    assert value[3:].tolist() == [800.0, 800.0]


@pytest.mark.parametrize(
    ("loss", "reduction", "expected"),
    [
        ("squared_error", "ufldl", 0.5),
        ("squared_error", "sum", 1.0),
        ("squared_error", "mean", 0.25),
        ("cross_entropy", "ufldl", 1.0),
        ("cross_entropy", "sum", 1.0),
        ("cross_entropy", "mean", 0.25),
    ],
)
def test_factor(loss: str, reduction: str, expected: float) -> None:
    assert factor(loss, reduction, 4) == expected


@pytest.mark.parametrize(
    ("rho", "q", "value", "slope"),
    [
        (0.05, 0.5, 0.494631937214073, 1.8),
        (0.05, 0.01, 0.041291085014358, -4.040404040404041),
        (0.1, 0.3, 0.116321756586005, 0.952380952380952),
        (0.2, 0.2, 0.0, 0.0),
    ],
)
def test_kl_values(rho: float, q: float, value: float, slope: float) -> None:
    kl: Any = PENALTIES["kl"]
    assert kl.value(np.array([q]), rho)[0] == pytest.approx(value, abs=1e-14)
    assert kl.slope(np.array([q]), rho)[0] == pytest.approx(slope, abs=1e-14)


@pytest.mark.parametrize(("dtype", "epsilon"), [("float32", 1e-7), ("float64", 1e-12)])
def test_kl_at_the_clamp(dtype: str, epsilon: float) -> None:
    """Finite at 0 and 1, with the slope of the clamped value and not zero."""
    kl: Any = PENALTIES["kl"]
    q = np.array([0.0, epsilon / 10, 1.0], dtype)
    assert clamp(q).dtype == kl.value(q, 0.05).dtype == kl.slope(q, 0.05).dtype == q.dtype
    high = float(q.dtype.type(1 - epsilon))
    rho, tolerance = 0.05, 1e-6 if dtype == "float32" else 1e-10
    bottom = rho * math.log(rho / epsilon) + (1 - rho) * math.log((1 - rho) / (1 - epsilon))
    top = rho * math.log(rho / high) + (1 - rho) * math.log((1 - rho) / (1 - high))
    np.testing.assert_allclose(kl.value(q, rho), [bottom, bottom, top], rtol=tolerance)
    below, above = -rho / epsilon + (1 - rho) / (1 - epsilon), -rho / high + (1 - rho) / (1 - high)
    np.testing.assert_allclose(kl.slope(q, rho), [below, below, above], rtol=tolerance)
    assert np.isnan(kl.value(np.array([np.nan], dtype), rho)).all()


def test_element_penalties() -> None:
    a = np.array([-2.0, 0.0, 0.5])
    l1, log, none = (PENALTIES[name] for name in ("l1", "log", "none"))
    assert l1.value(a).tolist() == [2.0, 0.0, 0.5]
    assert l1.slope(a).tolist() == [-1.0, 0.0, 1.0]
    np.testing.assert_allclose(log.value(a), [math.log(5.0), 0.0, math.log(1.25)], rtol=1e-15)
    np.testing.assert_allclose(log.slope(a), [-0.8, 0.0, 0.8], rtol=1e-15)
    assert none.value(a).tolist() == none.slope(a).tolist() == [0.0, 0.0, 0.0]


# --- cost and gradient ---


@pytest.mark.parametrize("transpose", [False, True])
@pytest.mark.parametrize(
    ("c", "published"),
    [
        (1.0, (1.190472606540, 1.197585812647)),
        (0.0, (0.15, 0.15)),
        (-1.0, (0.048800332266, 0.063466617408)),
    ],
)
def test_golden_costs_of_mlpack(c: float, published: tuple[float, float], transpose: bool) -> None:
    """Octave values from mlpack's sparse_autoencoder_test.cpp: every parameter is c."""
    X = np.outer(np.arange(1, 6) / 10, np.ones(5))
    model = Layered(two_layers(beta=0.0, weight_decay=0.0))
    model.set({name: np.full(p.shape, c) for name, p in model.parameters.items()})
    parts = model.evaluate(X.T if transpose else X)
    assert parts["loss"] == pytest.approx(published[transpose], abs=1e-12, rel=0)
    assert parts["loss"] == parts["reconstruction"]


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize(("loss", "output"), OUTPUTS)
@pytest.mark.parametrize(("activation", "penalty"), HIDDEN)
def test_gradient(activation: str, penalty: str, loss: str, output: str, tied: bool) -> None:
    """Each activation pair, penalty and loss, with and without weights; the reductions share differences."""
    config = two_layers(activation, penalty, output, loss=loss, loss_reduction="sum", tied=tied)
    model, X, w = away_from_kinks(config)
    for weights in (None, w):
        numeric = numeric_gradient(model, X, weights)
        for reduction, scale in RELATIVE_TO_SUM[loss].items():
            reduced = Layered(dataclasses.replace(config, loss_reduction=reduction))
            reduced.set(model.parameters)
            expected = scale * numeric["reconstruction"] + numeric["penalty"] + numeric["decay"]
            assert_gradient(reduced, X, weights, expected)


def test_gradient_of_one_layer() -> None:
    model, X, weights = away_from_kinks(Config(D, (LayerConfig(D, "tanh"),)))
    assert_gradient(model, X, weights)


@pytest.mark.parametrize(("widths", "tied"), [((4, 3, 5), False), ((4, 3, 4, 5), False), ((4, 3, 4, 5), True)])
@pytest.mark.parametrize(("loss", "output"), [("squared_error", "identity"), ("cross_entropy", "sigmoid")])
@pytest.mark.parametrize(("activation", "penalty"), HIDDEN)
def test_gradient_deep(
    activation: str, penalty: str, loss: str, output: str, widths: tuple[int, ...], tied: bool
) -> None:
    """Penalties on all hidden layers, also behind the code; activations alternate with tanh."""
    hidden = [
        LayerConfig(units, activation if i % 2 == 0 else "tanh", penalty, beta=0.3 + 0.2 * i, rho=0.4)
        for i, units in enumerate(widths[:-1])
    ]
    layers = (*hidden, LayerConfig(D, output))
    config = Config(D, layers, loss=loss, tied=tied, weight_decay=0.02)
    model, X, weights = away_from_kinks(config)
    assert_gradient(model, X, weights)


@pytest.mark.parametrize("rho_hat", options.RHO_HATS)
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_gradient_by_rho_hat_and_decay(rho_hat: str, optimizer: str) -> None:
    """The first ema batch is the batch mean, so its gradient is exact."""
    config = two_layers("tanh", "kl", rho_hat=rho_hat, optimizer=optimizer)
    model, X, weights = away_from_kinks(config)
    assert_gradient(model, X, weights)
    decay = model.evaluate(X)["decay"]
    squares = sum((p**2).sum() for name, p in model.parameters.items() if name.startswith("W"))
    assert decay == (0.0 if optimizer == "adamw" else pytest.approx(0.01 * squares, rel=1e-14))


def test_tied_equals_untied_with_the_transpose() -> None:
    tied = randomised(two_layers("tanh", "kl", tied=True), 3)
    assert list(tied.parameters) == ["W1", "b1", "b2"]
    untied = Layered(two_layers("tanh", "kl"))
    assert list(untied.parameters) == ["W1", "b1", "W2", "b2"]
    untied.set({**tied.parameters, "W2": tied.parameters["W1"].T})
    X, weights = data(3)
    parts, gradients = tied.value_and_gradient(X, weights)
    separate, twin = untied.value_and_gradient(X, weights)
    assert parts["reconstruction"] == separate["reconstruction"]
    assert separate["decay"] == pytest.approx(2 * parts["decay"], rel=1e-15)
    once = twin["W1"] + twin["W2"].T - 0.02 * tied.parameters["W1"]
    np.testing.assert_allclose(gradients["W1"], once, rtol=0, atol=1e-15)


def test_tied_mirror_of_four_layers() -> None:
    """Layer l of L takes W_{L+1-l} transposed: the outermost pair is 1 and 4."""
    layers = tuple(LayerConfig(units, "tanh") for units in (4, 3, 4, D))
    model = randomised(Config(D, layers, tied=True), 4)
    assert list(model.parameters) == ["W1", "b1", "W2", "b2", "b3", "b4"]
    p, (X, _) = model.parameters, data(4)
    code = np.tanh(np.tanh(X @ p["W1"].T + p["b1"]) @ p["W2"].T + p["b2"])
    out = np.tanh(np.tanh(code @ p["W2"] + p["b3"]) @ p["W1"] + p["b4"])
    np.testing.assert_allclose(model.encode(X), code, rtol=1e-14)
    np.testing.assert_allclose(model.reconstruct(X), out, rtol=1e-14)


@pytest.mark.parametrize(("activation", "low", "width"), [("sigmoid", 0.0, 1.0), ("tanh", -1.0, 2.0)])
def test_kl_of_the_mean_activation(activation: str, low: float, width: float) -> None:
    """The bias gradient of the penalty alone, by hand; a lost factor 1/2 of tanh would show."""
    model = randomised(two_layers(activation, "kl", beta=3.0, weight_decay=0.0), 5)
    plain = randomised(two_layers(activation, "none", weight_decay=0.0), 5)
    X, _ = data(5)
    a = model.encode(X)
    q = (a.mean(axis=0) - low) / width
    parts, gradients = model.value_and_gradient(X)
    kl = 0.3 * np.log(0.3 / q) + 0.7 * np.log(0.7 / (1 - q))
    assert parts["penalty"] == pytest.approx(3 * kl.sum(), rel=1e-14)
    slope = a * (1 - a) if activation == "sigmoid" else 1 - a**2
    expected = 3 * (-0.3 / q + 0.7 / (1 - q)) / width * slope.mean(axis=0)
    actual = gradients["b1"] - plain.value_and_gradient(X)[1]["b1"]
    np.testing.assert_allclose(actual, expected, rtol=1e-13)


@pytest.mark.parametrize("penalty", ["l1", "log"])
def test_element_penalty_is_a_weighted_mean_of_row_sums(penalty: str) -> None:
    model = randomised(two_layers("identity", penalty, beta=2.0), 6)
    X, w = data(6)
    a = model.encode(X)
    each = np.abs(a) if penalty == "l1" else np.log(1 + a**2)
    expected = 2 * (w * each.sum(axis=1)).sum() / w.sum()
    assert model.evaluate(X, w)["penalty"] == pytest.approx(expected, rel=1e-14)


@pytest.mark.parametrize(("activation", "penalty", "bias"), [("sigmoid", "kl", -1e4), ("relu", "log", 1e200)])
def test_zero_beta_skips_the_penalty(activation: str, penalty: str, bias: float) -> None:
    """Where KL is at its clamp, and where a^2 overflows and 0 * inf would be NaN."""
    model = Layered(two_layers(activation, penalty, beta=0.0))
    model.set({"b1": np.full(H, bias)})
    X, _ = data(7)
    parts, gradients = model.value_and_gradient(X)
    assert parts["penalty"] == 0.0
    assert all(np.isfinite(g).all() for g in gradients.values())


def test_dead_unit_feels_kl() -> None:
    """The clamped KL pulls with the slope at the clamp where autodiff of a clip would give zero."""
    model = Layered(two_layers("tanh", "kl", beta=1.0, weight_decay=0.0))
    model.set({"b1": np.full(H, -14.5)})
    X, _ = data(7)
    a = model.encode(X)
    assert ((a.mean(axis=0) + 1) / 2 < 1e-12).all()
    assert (a > -1).all()
    pull = (1e-12 - 0.3) / (1e-12 * (1 - 1e-12)) / 2
    expected = pull * (1 - a**2).mean(axis=0)
    np.testing.assert_allclose(model.value_and_gradient(X)[1]["b1"], expected, rtol=1e-10)


# --- outputs ---


def test_encode_decode_reconstruct() -> None:
    layers = (LayerConfig(4, "tanh"), LayerConfig(3), LayerConfig(D, "identity"))
    X, _ = data(8)
    for n_encoder_layers, width in ((None, 4), (0, D), (1, 4), (2, 3), (3, D)):
        config = Config(D, layers, n_encoder_layers=n_encoder_layers)
        model = randomised(config, 8)
        outputs = [X, *(a for _, a in model.forward(X))]
        assert model.encode(X).shape == (N, width)
        np.testing.assert_array_equal(model.encode(X), outputs[config.code_layer])
        np.testing.assert_allclose(model.decode(model.encode(X)), outputs[-1], rtol=1e-14)
        np.testing.assert_array_equal(model.reconstruct(X), outputs[-1])


@pytest.mark.parametrize("loss", options.LOSSES)
@pytest.mark.parametrize("reduction", options.LOSS_REDUCTIONS)
def test_row_losses_average_to_the_reconstruction(loss: str, reduction: str) -> None:
    model = randomised(two_layers(loss=loss, loss_reduction=reduction), 9)
    X, w = data(9)
    rows = model.row_losses(X)
    assert rows.shape == (N,)
    assert model.evaluate(X, w)["reconstruction"] == pytest.approx((w * rows).sum() / w.sum(), rel=1e-14)
    assert model.evaluate(X)["reconstruction"] == pytest.approx(rows.mean(), rel=1e-14)
    if loss == "squared_error":
        squares = ((model.reconstruct(X) - X) ** 2).sum(axis=1)
        np.testing.assert_allclose(rows, squares * RELATIVE_TO_SUM[loss][reduction], rtol=1e-14)


def test_set_refuses_what_does_not_fit() -> None:
    model = Layered(two_layers())
    with pytest.raises(ValueError, match="W3"):
        model.set({"W3": np.zeros((H, D))})
    with pytest.raises(ValueError, match=r"W1: expected shape \(3, 5\), got \(5, 3\)"):
        model.set({"W1": np.zeros((D, H))})
    given = np.ones((H, D))
    model.set({"W1": given})
    given[:] = 2
    assert (model.parameters["W1"] == 1).all()


# --- sample weights ---


@pytest.mark.parametrize(("activation", "penalty"), HIDDEN)
def test_integer_weights_equal_repeated_rows(activation: str, penalty: str) -> None:
    model = randomised(two_layers(activation, penalty), 10)
    X, _ = data(10)
    counts = np.array([1, 2, 0, 3, 1, 1, 4])
    weighted = model.value_and_gradient(X, counts)
    repeated = model.value_and_gradient(np.repeat(X, counts, axis=0))
    scaled = model.value_and_gradient(X, 1e3 * counts)
    for other in (repeated, scaled):
        assert other[0] == pytest.approx(weighted[0], rel=1e-13)
        for name, gradient in weighted[1].items():
            np.testing.assert_allclose(other[1][name], gradient, rtol=1e-12, atol=1e-14)


def test_sample_weight_of_wrong_length() -> None:
    X, _ = data(10)
    with pytest.raises(ValueError, match=r"sample_weight: expected shape \(7,\), got \(6,\)"):
        randomised(two_layers(), 10).evaluate(X, np.ones(6))


# --- optimisers ---

RATE, MU, BETA1, BETA2, EPS = 0.1, 0.8, 0.7, 0.95, 1e-3


def run_optimizer(name: str, gradients: list[float], decay: float = 0.0, is_weight: bool = True) -> list[float]:
    """Parameter after every step, from 2."""
    config = two_layers(
        optimizer=name,
        learning_rate=RATE,
        momentum=MU,
        beta1=BETA1,
        beta2=BETA2,
        epsilon=EPS,
        weight_decay=decay,
    )
    optimizer, p, path = OPTIMIZERS[name], np.array([2.0]), []
    moments: tuple[Any, ...] = (np.zeros(1),) * optimizer.n_moments
    for t, g in enumerate(gradients, 1):
        p, moments = optimizer.update(p, np.array([g]), moments, StepScalars.at(config, t, decay if is_weight else 0.0))
        path.append(float(p[0]))
    return path


def test_sgd_momentum_and_nesterov_by_hand() -> None:
    g = [1.0, -2.0, 0.5]
    assert run_optimizer("sgd", g) == pytest.approx([1.9, 2.1, 2.05], rel=1e-14)
    # buffers 1, -1.2, -0.46
    assert run_optimizer("momentum", g) == pytest.approx([1.9, 2.02, 2.066], rel=1e-14)
    # g + 0.8 buffer: 1.8, -2.96, 0.132
    assert run_optimizer("nesterov", g) == pytest.approx([1.82, 2.116, 2.1028], rel=1e-14)


def test_adam_on_a_constant_gradient() -> None:
    """Both corrected moments are exact at every step: each step is lr g / (|g| + eps)."""
    for g in (0.25, -3.0):
        path = run_optimizer("adam", [g] * 20)
        expected = 2 - RATE * g / (abs(g) + EPS) * np.arange(1, 21)
        assert path == pytest.approx(expected.tolist(), rel=1e-13)


def test_adam_two_steps_by_hand() -> None:
    # m = 0.3, then 0.21 - 0.6 = -0.39, correction 1 - 0.7^2 = 0.51.
    # v = 0.05, then 0.0475 + 0.2 = 0.2475, correction 1 - 0.95^2 = 0.0975.
    first = 2 - 0.1 / 1.001
    second = first + 0.1 * (0.39 / 0.51) / (math.sqrt(0.2475 / 0.0975) + 1e-3)
    assert run_optimizer("adam", [1.0, -2.0]) == pytest.approx([first, second], rel=1e-14)
    assert run_optimizer("adamw", [1.0, -2.0]) == pytest.approx([first, second], rel=1e-14)


def test_adamw_decays_before_the_step_and_never_a_bias() -> None:
    move = 0.1 / 1.001
    first = 2 * (1 - 0.1 * 0.5) - move
    second = first * (1 - 0.1 * 0.5) - move
    assert run_optimizer("adamw", [1.0, 1.0], decay=0.5) == pytest.approx([first, second], rel=1e-14)
    plain = run_optimizer("adam", [1.0, 1.0], decay=0.5)
    assert run_optimizer("adamw", [1.0, 1.0], decay=0.5, is_weight=False) == plain


def test_sign_sgd_by_hand() -> None:
    """Three steps of 0.1 from 2, mu = 0.8: the average's shares are 1, 1/2, 1/3."""
    # z 1.9, 2.0, 2.0: the last gradient has no sign. x 1.9, 1.95, 1.95 + 0.05 / 3.
    x, z = [1.9, 1.95, 1.95 + 0.05 / 3], [1.9, 2.0, 2.0]
    config = two_layers(optimizer="sign_sgd", learning_rate=RATE, momentum=MU)
    rule, p = OPTIMIZERS["sign_sgd"], np.array([2.0])
    moments = rule.first_moments(p)
    for t, g in enumerate([3.0, -1e-9, 0.0], 1):
        p, moments = rule.update(p, np.array([g]), moments, StepScalars.at(config, t, 0.0))
        assert moments[0][0] == pytest.approx(z[t - 1], rel=1e-14)
        assert rule.average(p, moments, MU)[0] == pytest.approx(x[t - 1], rel=1e-14)
        assert p[0] == pytest.approx(MU * x[t - 1] + (1 - MU) * z[t - 1], rel=1e-14)


def test_shares_of_the_average() -> None:
    """Every step has the weight of its share of the rate, squared; after the warm-up it is that of a whole one."""
    plain = two_layers(optimizer="sign_sgd")
    assert [average_share(plain, t) for t in (1, 2, 3, 4)] == pytest.approx([1, 1 / 2, 1 / 3, 1 / 4], rel=1e-15)
    for schedule in ({}, {"lr_schedule": "step", "lr_step_size": 1}, {"lr_schedule": "cosine", "lr_total_steps": 9}):
        warm = two_layers(optimizer="sign_sgd", lr_warm_up=3, **schedule)
        weights = np.array([1, 4, 9, 9, 9]) / 9
        expected = weights / weights.cumsum()
        assert [average_share(warm, t) for t in range(1, 6)] == pytest.approx(expected.tolist(), rel=1e-15)


@pytest.mark.parametrize("optimizer", options.OPTIMIZERS)
def test_first_step_of_the_model(optimizer: str) -> None:
    config = two_layers("tanh", "kl", optimizer=optimizer, learning_rate=0.01, weight_decay=0.5)
    model = randomised(config, 11)
    before = dict(model.parameters)
    X, w = data(11)
    parts, gradients = model.value_and_gradient(X, w)
    assert model.step(X, w) == parts
    assert model.steps == 1
    for name, g in gradients.items():
        start = before[name]
        if optimizer in ("adam", "adamw"):
            move = g / (np.abs(g) + 1e-8)
        elif optimizer == "sign_sgd":
            move = np.sign(g)
        else:
            move = {"sgd": 1.0, "momentum": 1.0, "nesterov": 1.9}[optimizer] * g
        if optimizer == "adamw" and name.startswith("W"):
            start = start * (1 - 0.01 * 0.5)
        np.testing.assert_allclose(model.parameters[name], start - 0.01 * move, rtol=1e-12, atol=1e-14)
    n_moments = {"sgd": 0, "momentum": 1, "nesterov": 1, "adam": 2, "adamw": 2, "sign_sgd": 1}[optimizer]
    for i, moment in enumerate((model.first_moment, model.second_moment)):
        assert list(moment) == (list(gradients) if i < n_moments else [])


@pytest.mark.parametrize("optimizer", options.OPTIMIZERS)
def test_second_step_uses_the_state(optimizer: str) -> None:
    """Two steps of the model equal two bare updates of each parameter."""
    model = randomised(two_layers(optimizer=optimizer, learning_rate=0.01), 12)
    rule = OPTIMIZERS[optimizer]
    state = {name: rule.first_moments(p) for name, p in model.parameters.items()}
    X, _ = data(12)
    for t in (1, 2):
        _, gradients = model.value_and_gradient(X)
        expected = {}
        for name, p in model.parameters.items():
            scalars = StepScalars.at(model.config, t, model.config.weight_decay * name.startswith("W"))
            expected[name], state[name] = rule.update(p, gradients[name], state[name], scalars)
        model.step(X)
        for name, p in model.parameters.items():
            np.testing.assert_array_equal(p, expected[name])


@pytest.mark.parametrize("optimizer", options.OPTIMIZERS)
def test_training_lowers_the_loss(optimizer: str) -> None:
    rate = 0.05 if OPTIMIZERS[optimizer].n_moments < 2 else 0.01
    model = randomised(two_layers("sigmoid", "kl", optimizer=optimizer, learning_rate=rate), 13)
    X, _ = data(13)
    losses = [model.step(X)["loss"] for _ in range(60)]
    assert losses[-1] < 0.9 * losses[0]


# --- moving average ---


@pytest.mark.parametrize(("activation", "low", "width"), [("sigmoid", 0.0, 1.0), ("tanh", -1.0, 2.0)])
def test_ema(activation: str, low: float, width: float) -> None:
    config = two_layers(activation, "kl", beta=2.0, rho_hat="ema", rho_hat_decay=0.9, weight_decay=0.0)
    model = randomised(config, 14)
    (first, w), (second, _) = data(14), data(15)
    model.value_and_gradient(first)
    model.evaluate(first)
    assert model.rho_hat == {}
    mean = w @ model.encode(first) / w.sum()
    model.step(first, w)
    assert list(model.rho_hat) == [1]
    np.testing.assert_allclose(model.rho_hat[1], mean, rtol=1e-14)

    a = model.encode(second)
    moving = 0.9 * mean + 0.1 * a.mean(axis=0)
    q, batch_q = (moving - low) / width, (a.mean(axis=0) - low) / width
    kl: Any = PENALTIES["kl"]
    parts, gradients = model.value_and_gradient(second)
    assert parts["penalty"] == pytest.approx(2 * kl.value(q, 0.3).sum(), rel=1e-13)
    assert model.evaluate(second)["penalty"] == pytest.approx(2 * kl.value(batch_q, 0.3).sum(), rel=1e-13)
    np.testing.assert_allclose(model.rho_hat[1], mean, rtol=1e-14)

    # The gradient is that of the batch mean with the slope of KL at the moving average, without 1 - d.
    plain = Layered(dataclasses.replace(config, layers=(LayerConfig(H, activation), config.layers[1])))
    plain.set(model.parameters)
    slope = a * (1 - a) if activation == "sigmoid" else 1 - a**2
    expected = 2 * (-0.3 / q + 0.7 / (1 - q)) / width * slope.mean(axis=0)
    actual = gradients["b1"] - plain.value_and_gradient(second)[1]["b1"]
    np.testing.assert_allclose(actual, expected, rtol=1e-12)
    model.step(second)
    np.testing.assert_allclose(model.rho_hat[1], moving, rtol=1e-14)


@pytest.mark.parametrize("rho_hat", ["batch", "full"])
def test_no_state_without_ema(rho_hat: str) -> None:
    model = randomised(two_layers("tanh", "kl", rho_hat=rho_hat), 16)
    X, _ = data(16)
    model.step(X)
    assert model.rho_hat == {}


def test_ema_is_kept_for_kl_layers_alone() -> None:
    layers = (
        LayerConfig(4, "tanh", "kl"),
        LayerConfig(3, "tanh", "log"),
        LayerConfig(4, "tanh", "kl", beta=0.0),
        LayerConfig(3, "sigmoid", "kl"),
        LayerConfig(D),
    )
    model = randomised(Config(D, layers, rho_hat="ema"), 17)
    model.step(data(17)[0])
    assert sorted(model.rho_hat) == [1, 4]


# --- float32 ---


def arrays_of(model: Layered, X: np.ndarray, w: np.ndarray) -> list[np.ndarray]:
    _, gradients = model.value_and_gradient(X, w)
    held = (model.parameters, gradients, model.first_moment, model.second_moment, model.rho_hat)
    outputs = [model.encode(X), model.decode(model.encode(X)), model.reconstruct(X), model.row_losses(X)]
    return [
        *(a for group in held for a in group.values()),
        *outputs,
        *(a for pair in model.forward(X) for a in pair),
    ]


@pytest.mark.parametrize("optimizer", options.OPTIMIZERS)
@pytest.mark.parametrize(("activation", "penalty"), HIDDEN)
def test_float32_stays_float32(activation: str, penalty: str, optimizer: str) -> None:
    """Also with float64 data and NumPy scalars as options; and it follows float64 to its precision."""
    config = two_layers(
        activation,
        penalty,
        loss="cross_entropy",
        optimizer=optimizer,
        rho_hat="ema",
        beta=np.float64(0.5),
        learning_rate=np.float64(1e-2),
        weight_decay=np.float64(1e-3),
        rho_hat_decay=np.float64(0.9),
        epsilon=np.float64(1e-4),
    )
    X, w = data(18)
    single, double = randomised(config, 18, "float32"), randomised(config, 18)
    for _ in range(3):
        narrow, wide = single.step(X, w), double.step(X, w)
        assert narrow == pytest.approx(wide, rel=1e-5)
        assert all(type(value) is float for value in narrow.values())
    assert {a.dtype.name for a in arrays_of(single, X, w)} == {"float32"}
    assert {a.dtype.name for a in arrays_of(double, X, w)} == {"float64"}


@pytest.mark.parametrize("loss", options.LOSSES)
@pytest.mark.parametrize("name", options.ACTIVATIONS)
def test_float32_formulas(name: str, loss: str) -> None:
    z = np.linspace(-3, 3, 7, dtype=np.float32)
    y = ACTIVATIONS[name].value(z)
    slope, x = ACTIVATIONS[name].slope(y), np.full_like(z, 0.5)
    assert {a.dtype.name for a in (y, slope)} == {"float32"}
    assert LOSSES[loss].value(x, z, y).dtype == LOSSES[loss].delta(x, z, y, slope).dtype == np.float32
