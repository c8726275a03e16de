"""The sparse code of the C++ engine against the NumPy reference: every model and option."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from typing import Any

import numpy as np
import pytest
from test_parity import assert_near, single
from test_sparse_code_reference import CASES, LATENTS, make

from fastsae import Engine
from fastsae import config as general
from fastsae.reference import SparseCode
from fastsae.reference.sparse_activations import k_at
from fastsae.sparse_code import SparseCodeConfig

STEPS = 50
Oracle = SparseCode  # test_sparse_code_faults.py puts broken ones here
WIDE = {"activation": "jump_relu", "bandwidth": 0.8, "initial_threshold": 0.3}
# What no gradient sees, and the optimiser.
TRAINED: dict[str, dict[str, Any]] = {
    "started threshold": {"activation": "batch_topk", "threshold_decay": 0.8, "threshold_start": 0.3},
    "not projected": {"project_gradient": False},
    "falling thresholds": {**WIDE, "initial_threshold": 0.02},
    "rescaled dead": {"decoder_norm": "rescale", "aux_k": 1, "aux_weight": 2.0},
    "narrow window": {"activation": "jump_relu", "sparsity": "step", "sparsity_weight": 0.1},
    "falling k": {"activation": "batch_topk", "k": 1.7, "k_start": 4.3, "k_warm_up": 21},
    "sgd": {"optimizer": "sgd", "max_grad_norm": 0.4},
    "momentum": {"optimizer": "momentum", "momentum": 0.8, "decoder_norm": "free", "activation": "relu"},
    "nesterov": {"optimizer": "nesterov", "lr_schedule": "step", "lr_step_size": 7, "lr_gamma": 0.7},
    "clipped adam": {"beta1": 0.8, "beta2": 0.99, "epsilon": 1e-5, "max_grad_norm": 0.1, "activation": "batch_topk"},
    "line": {"lr_schedule": "linear", "lr_total_steps": 45, "lr_decay_steps": 20, "lr_final": 0.2},
    "signs": {"optimizer": "sign_sgd", "momentum": 0.9, "lr_warm_up": 5},
    "signs of batch_topk": {"optimizer": "sign_sgd", "activation": "batch_topk", "decoder_norm": "rescale"},
    "cosine": {"lr_schedule": "cosine", "lr_warm_up": 5, "lr_total_steps": 40, "lr_final": 0.1, **WIDE},
    "warm-up from nothing": {"lr_warm_up": 20, "lr_start": 0.0, "max_grad_norm": 0.2},
    "linear": {"lr_schedule": "linear", "lr_total_steps": 45, "lr_decay_steps": 21, "activation": "relu"},
    "signs of jumps": {"optimizer": "sign_sgd", "activation": "jump_relu", "decoder_norm": "free"},
    "clipped gates": {"activation": "gated", "max_grad_norm": 0.2, "optimizer": "momentum", "sparsity": "l1"},
    "clipped skip": {"transcoder": True, "skip": True, "max_grad_norm": 0.2, "optimizer": "sgd"},
}
ALL = {**CASES, **TRAINED}
PARTS = ("reconstruction", "penalty", "loss")


def test_cases_touch_every_option() -> None:
    fields = {field.name for field in dataclasses.fields(SparseCodeConfig)}
    default = SparseCodeConfig(5, LATENTS)
    configs = [make(**case) for case in ALL.values()]
    touched = {name for config in configs for name in fields if getattr(config, name) != getattr(default, name)}
    # Sizes, dtype and learning rate are others in every test; rounded factors and moments have tests of their own.
    assert fields - touched == {"n_features", "n_latents", "dtype", "learning_rate", "precision", "state_precision"}
    assert {config.optimizer for config in configs} == set(general.OPTIMIZERS) - {"adamw"}


# --- problems ---

Values = dict[str, np.ndarray]


def start(config: SparseCodeConfig) -> Values:
    """Parameters and states in the middle of a training; some latents are dead."""
    rng, n, values = np.random.default_rng(5), config.n_latents, Values()
    for name, shape in config.parameter_shapes.items():
        values[name] = single(rng.uniform(-1, 1, shape) * (0.5 if len(shape) == 1 else (6 / sum(shape)) ** 0.5))
    if "threshold" in values:
        values["threshold"] = single(config.initial_threshold * rng.uniform(0.2, 2.0, n))
    values["rows_since_fired"] = rng.choice([0.0, 15.0, 20.0, 21.0, 300.0], n)
    if config.loss_reduction == "fvu_data":
        values["data_variance"] = np.array([1.7])
    return values


def make_reference(
    config: SparseCodeConfig, values: Values, dtype: str, steps: int, kind: type[SparseCode] = SparseCode
) -> SparseCode:
    model = kind(config, dtype)
    model.set({name: value for name, value in values.items() if name in model.parameters})
    model.rows_since_fired, model.steps = values["rows_since_fired"].copy(), steps
    model.data_variance = float(values.get("data_variance", [1.0])[0])
    return model


def make_engine(config: SparseCodeConfig, values: Values, device: str, steps: int) -> Engine:
    engine = Engine(config, device)
    for name, value in values.items():
        engine.set(name, value)
    engine.steps = steps
    return engine


def gaps(scores: np.ndarray, k: int) -> np.ndarray:
    """Between the k-th largest of each row and the next."""
    if not 0 < k < scores.shape[1]:
        return np.full(len(scores), np.inf)
    ordered = -np.sort(-scores, axis=1)
    first, second = ordered[:, k - 1], ordered[:, k]
    return np.where((first == 0) & (second == 0), np.inf, first - second)  # zeros are exact


def margins(model: SparseCode, seen: Any) -> np.ndarray:
    """How far the nearest decision on each row is from another outcome; of a batch that competes, on all rows."""
    config, z, p = model.config, seen.z, model.parameters
    distances = [np.full((len(z), 1), np.inf)]
    if config.selects:
        k, whole = k_at(config, seen.t), config.activation == "batch_topk"
        scores = np.maximum(seen.scores, 0.0).reshape(1, -1) if whole else seen.scores
        distances.append(np.broadcast_to(gaps(scores, int(k * len(z)) if whole else int(k))[:, None], (len(z), 1)))
        distances.append(np.where(seen.on > 0, z, np.inf))
        if n_dead := int(seen.dead.sum()):
            dead = seen.scores[:, seen.dead]
            distances += [gaps(dead, min(config.core()["aux_k"], n_dead))[:, None], z[:, seen.dead]]
    elif config.activation == "jump_relu":
        distance = np.abs(z - p["threshold"])
        distances += [distance, distance - config.bandwidth / 2]
    else:
        distances.append(z)
    if config.activation == "gated":
        distances.append(np.exp(p["r_mag"]) * seen.projected + p["b_mag"])
    return np.abs(np.concatenate(distances, axis=1)).min(axis=1)


Batch = tuple[np.ndarray, np.ndarray, np.ndarray | None]


def draw(config: SparseCodeConfig, rng: np.random.Generator, rows: int) -> Batch:
    X, w = rng.normal(size=(rows, config.n_features)), rng.uniform(0.2, 3.0, rows)
    y = rng.normal(size=(rows, config.output_width)) if config.transcoder else None
    return single(X), single(w), None if y is None else single(y)


@functools.cache
def clear_start(config: SparseCodeConfig, t: int, sizes: tuple[int, ...], steps: int) -> list[Batch]:
    """The run from `start`, for both dtypes."""
    return clear_run(config, t, sizes, steps, start(config))


def clear_run(
    config: SparseCodeConfig, t: int, sizes: tuple[int, ...], steps: int, values: Values | None = None
) -> list[Batch]:
    """Batches for so many steps from step `t` on, whose decisions are clear of what float32 loses.

    Two correct runs then decide alike, and differ by rounding alone.
    """
    config = dataclasses.replace(config, dtype="float64")
    if values is None:
        return clear_start(config, t, sizes, steps)
    rng, run = np.random.default_rng([t, 6]), list[Batch]()
    exact, plain = (make_reference(config, values, dtype, t) for dtype in ("float64", "float32"))

    def clear(X: np.ndarray, w: np.ndarray | None, y: np.ndarray | None) -> np.ndarray:
        seen, rounded = exact._batch(X, w, y), plain._batch(X, w, y)
        noise = max(np.abs(seen.z - rounded.z).max(), np.abs(seen.scores - rounded.scores).max())
        return margins(exact, seen) > 8 * noise

    for rows in itertools.islice(itertools.cycle(sizes), steps):
        for _ in range(200):
            many = draw(config, rng, rows if config.activation == "batch_topk" else 2 * rows + 5)
            kept = np.flatnonzero(clear(*many))[:rows]
            X, w, y = (None if part is None else part[kept] for part in many)
            if len(kept) == rows and clear(X, w, y).all():
                break
        else:
            raise AssertionError("no batch is clear")
        run.append((X, w, y))
        if steps > 1:
            exact.step(X, w, targets=y)
            plain.step(X, w, targets=y)
    return run


def references(config: SparseCodeConfig, values: Values, steps: int) -> tuple[SparseCode, SparseCode]:
    """The exact twin, and the plain one in the engine's own precision."""
    return (
        make_reference(config, values, "float64", steps, Oracle),
        make_reference(config, values, config.dtype, steps, Oracle),
    )


# --- comparisons ---


def parts_of(parts: dict[str, float]) -> dict[str, float]:
    """In the words of the engine."""
    return {**parts, "penalty": parts["sparsity"] + parts["auxiliary"]}


def assert_parts(actual: dict[str, float], exact: dict[str, float], plain: dict[str, float], dtype: str) -> None:
    exact, plain = parts_of(exact), parts_of(plain)
    assert actual["decay"] == 0.0
    for part in PARTS:
        assert_near(part, actual[part], exact[part], plain[part], dtype, scale=abs(exact["loss"]))


def check_gradient(
    config: SparseCodeConfig, device: str, rows: int = 7, t: int = 3, values: Values | None = None
) -> None:
    """The parts of J and every gradient, tensor by tensor; nothing is changed."""
    ((X, w, y),) = clear_run(config, t, (rows,), 1, values)
    values = start(config) if values is None else values
    engine = make_engine(config, values, device, t)
    exact, plain = references(config, values, t)
    parts = engine.gradient(X, w, targets=y)
    exact_parts, exact_gradients = exact.value_and_gradient(X, w, targets=y)
    plain_parts, plain_gradients = plain.value_and_gradient(X, w, targets=y)
    assert_parts(parts, exact_parts, plain_parts, config.dtype)
    for name, gradient in exact_gradients.items():
        assert_near(name, engine.get("gradient." + name), gradient, plain_gradients[name], config.dtype)
    norm, plain_norm = (
        sum(float((np.asarray(g, np.float64) ** 2).sum()) for g in gradients.values()) ** 0.5
        for gradients in (exact_gradients, plain_gradients)
    )
    assert_near("gradient_norm", parts["gradient_norm"], norm, plain_norm, config.dtype)
    assert_parts(engine.evaluate(X, w, targets=y), exact_parts, plain_parts, config.dtype)
    assert set(engine.get_parameters()) == set(config.parameter_shapes)
    assert all(np.array_equal(engine.get(name), value) for name, value in values.items())


def states_of(model: SparseCode) -> dict[str, Any]:
    states: dict[str, Any] = {name: getattr(model, name) for name in ("rows_since_fired", "fired_rows", "monitor")}
    if model.config.activation == "batch_topk":
        states["batch_threshold"] = np.array([model.batch_threshold])
    for group in ("first_moment", "second_moment"):
        states |= {f"{group}.{name}": moment for name, moment in getattr(model, group).items()}
    return states | model.parameters


def check_training(
    config: SparseCodeConfig,
    device: str,
    rows: tuple[int, ...] = (7, 5),
    steps: int = STEPS,
    values: Values | None = None,
) -> None:
    """The loss curve; after the last step the parameters, moments and states."""
    run = clear_run(config, 0, rows, steps, values)
    values = start(config) if values is None else values
    engine = make_engine(config, values, device, 0)
    exact, plain = references(config, values, 0)
    curves: list[list[float]] = [[], [], []]
    before = 0.0
    for X, w, y in run:
        engine.step(X, w, targets=y)
        sums = engine.metric_sums()["loss"]
        weight = len(X) if w is None else w.sum()
        losses = ((sums - before) / weight, exact.step(X, w, targets=y)["loss"], plain.step(X, w, targets=y)["loss"])
        before = sums
        for curve, loss in zip(curves, losses, strict=True):
            curve.append(loss)
    assert engine.steps == exact.steps == steps
    assert_near("loss curve", *curves, config.dtype, trained=True)
    for name, value in states_of(exact).items():
        assert_near(name, engine.get(name), value, states_of(plain)[name], config.dtype, trained=True)
    engine.reset_metrics()
    assert not engine.get("monitor").any()
    assert not engine.get("fired_rows").any()


def check_outputs(config: SparseCodeConfig, device: str, rows: int = 7, threshold: float = 0.4) -> None:
    """Code, decoding, reconstruction and the loss of each row; the code as its elements that are not 0."""
    values = start(config)
    ((X, _, y),) = clear_run(config, 0, (rows,), 1)
    engine = make_engine(config, values, device, 0)
    exact, plain = references(config, values, 0)
    if config.activation == "batch_topk":
        engine.set("batch_threshold", [threshold])
        exact.batch_threshold = plain.batch_threshold = threshold
    code = exact.encode(X)
    made = engine.encode(X)
    assert_near("encode", made, code, plain.encode(X), config.dtype)
    np.testing.assert_array_equal(made > 0, code > 0)
    assert_near("reconstruct", engine.reconstruct(X), exact.reconstruct(X), plain.reconstruct(X), config.dtype)
    assert_near("score", engine.score(X, y), exact.row_losses(X, y), plain.row_losses(X, y), config.dtype)
    code = single(code)
    assert_near("decode", engine.decode(code), exact.decode(code), plain.decode(code), config.dtype)
    starts, latents, elements = engine.encode_sparse(X)
    assert (starts.dtype, latents.dtype, elements.dtype) == (np.int64, np.int32, np.dtype(config.dtype))
    np.testing.assert_array_equal(starts, np.r_[0, np.count_nonzero(made, axis=1).cumsum()])
    np.testing.assert_array_equal(latents, np.nonzero(made)[1])
    np.testing.assert_array_equal(elements, made[made != 0])
    assert_near(
        "decode_sparse",
        engine.decode_sparse(starts, latents, elements),
        exact.decode(made),
        plain.decode(made),
        config.dtype,
    )


# --- every model and option ---


@pytest.mark.isa
@pytest.mark.parametrize("dtype", general.DTYPES)
@pytest.mark.parametrize("case", ALL)
def test_gradient(case: str, dtype: str, device: str) -> None:
    check_gradient(make(**ALL[case], dtype=dtype), device)


@pytest.mark.parametrize("dtype", general.DTYPES)
@pytest.mark.parametrize("case", ALL)
def test_training(case: str, dtype: str, device: str) -> None:
    """50 steps over batches of two sizes; latents die and come back."""
    check_training(make(**ALL[case], learning_rate=0.003, dtype=dtype), device)


@pytest.mark.isa
@pytest.mark.parametrize("dtype", general.DTYPES)
@pytest.mark.parametrize("case", CASES)
def test_outputs(case: str, dtype: str, device: str) -> None:
    check_outputs(make(**CASES[case], dtype=dtype), device)


# --- sizes ---

MODELS: dict[str, dict[str, Any]] = {
    "topk": {"aux_weight": 0.5},
    "rescaled": {"decoder_norm": "rescale", "aux_weight": 0.5},
    "batch_topk": {"activation": "batch_topk", "aux_weight": 0.5},
    "relu": {"activation": "relu", "sparsity": "l1", "sparsity_weight": 0.01},
    "jump_relu": {**WIDE, "sparsity": "step", "sparsity_weight": 0.01, "pre_act_weight": 0.01},
    "gated": {"activation": "gated", "sparsity": "l1", "sparsity_weight": 0.01},
}
# features, latents, outputs, k, rows
SIZES: list[Any] = [
    (1, 1, 1, 1, 1),
    (3, 1, 2, 1, 4),
    (1, 17, 1, 17, 3),
    pytest.param((33, 65, 31, 1, 2), marks=pytest.mark.gpu_sanitize),
    (65, 1031, 33, 33, 67),
    (16, 64, 16, 8, 1100),
]


def sized(model: str, size: tuple[int, ...], **rest: Any) -> SparseCodeConfig:
    d, n, o, k, _ = size
    options: dict[str, Any] = {"transcoder": True, "n_outputs": o, "pre_bias": d == o, "dead_after": 20, **rest}
    options |= MODELS[model] | ({} if "activation" in MODELS[model] and model != "batch_topk" else {"k": k})
    return SparseCodeConfig(d, n, **options)


@pytest.mark.isa
@pytest.mark.parametrize("dtype", general.DTYPES)
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_sizes(size: tuple[int, ...], model: str, dtype: str, device: str) -> None:
    """Odd, tiny, and larger than a tile of rows."""
    config = sized(model, size, dtype=dtype)
    check_gradient(config, device, rows=size[-1])
    check_outputs(config, device, rows=size[-1])


@pytest.mark.isa
@pytest.mark.sanitize
@pytest.mark.parametrize("dtype", general.DTYPES)
@pytest.mark.parametrize("model", MODELS)
def test_training_of_many_latents(model: str, dtype: str, device: str) -> None:
    """Lists of rows that are long for some latents, and empty for most."""
    config = sized(model, (33, 257, 33, 5, 0), learning_rate=1e-3, dtype=dtype)
    check_training(config, device, rows=(130, 71), steps=6)


# --- corners ---


@pytest.mark.parametrize("dtype", general.DTYPES)
@pytest.mark.parametrize("model", ["topk", "rescaled", "batch_topk"])
def test_ties(model: str, dtype: str, device: str) -> None:
    """Whole numbers, which no order of sums rounds: the lower latent and row win, to the last one."""
    rng = np.random.default_rng(0)
    config = make(**MODELS[model], dtype=dtype, aux_k=2)
    values = {name: rng.integers(-1, 2, np.shape(v)).astype(float) for name, v in start(config).items()}
    values["W_dec"] = np.sign(values["W_enc"]) * [4.0, 0.0, 0.0, 0.0, 0.0] + [3.0, 0.0, 0.0, 0.0, 0.0]  # norms 1, 3, 7
    values["rows_since_fired"] = rng.choice([0.0, 21.0], LATENTS)
    engine, exact = make_engine(config, values, device, 0), make_reference(config, values, "float64", 0)
    X = rng.integers(-2, 3, (40, 5)).astype(float)
    seen = exact._batch(X, None, None)
    assert sum(len(set(row)) < LATENTS for row in seen.scores) > 30
    np.testing.assert_array_equal(engine.encode(X), exact.encode(X))
    engine.gradient(X)
    _, gradients = exact.value_and_gradient(X)
    for name, gradient in gradients.items():
        assert_near(name, engine.get("gradient." + name), gradient, gradient, dtype)
    engine.step(X)
    exact.step(X)
    np.testing.assert_array_equal(engine.get("fired_rows"), exact.fired_rows)


@pytest.mark.parametrize("dtype", general.DTYPES)
@pytest.mark.parametrize("dead", [0.0, 21.0], ids=["none dead", "all dead"])
@pytest.mark.parametrize("model", MODELS)
def test_dead_latents(model: str, dead: float, dtype: str, device: str) -> None:
    config = make(**MODELS[model], dtype=dtype)
    values = {**start(config), "rows_since_fired": np.full(LATENTS, dead)}
    check_gradient(config, device, values=values)


@pytest.mark.parametrize("dtype", general.DTYPES)
@pytest.mark.parametrize("norm", ["unit", "rescale", "free"])
@pytest.mark.parametrize("model", MODELS)
def test_zero_rows_of_the_decoder(model: str, norm: str, dtype: str, device: str) -> None:
    # Not Adam, which would make signs of rounding errors.
    config = make(**{**MODELS[model], "decoder_norm": norm}, optimizer="sgd", dtype=dtype)
    values = start(config)
    values["W_dec"][3:6] = 0.0
    bias = "b_gate" if "b_gate" in values else "b_enc"
    values[bias][3], values[bias][4] = 5.0, -5.0
    check_gradient(config, device, values=values)
    check_training(config, device, steps=3, values=values)


@pytest.mark.parametrize("dtype", general.DTYPES)
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("reduction", ["sum", "fvu"])
def test_rows_without_variance(reduction: str, model: str, dtype: str, device: str) -> None:
    """One row, rows of no weight, equal rows: what has no variance teaches nothing."""
    config = make(**MODELS[model], loss_reduction=reduction, dtype=dtype)
    values = start(config)
    engine, exact = make_engine(config, values, device, 0), make_reference(config, values, "float64", 0)
    plain = make_reference(config, values, dtype, 0)
    X, _, _ = clear_run(config, 0, (3,), 1, values)[0]
    same, u = np.repeat(X[:1], 6, axis=0), np.array([0.3, 1.1, 0.0, 2.3, 0.7, 0.1])
    for rows, w in ((X[:1], None), (X[:1], u[4:5]), (X, u[2:5] * [1, 1, 0]), (same, None), (same, u)):
        parts, gradients = exact.value_and_gradient(rows, w)
        assert_parts(engine.gradient(rows, w), parts, plain.value_and_gradient(rows, w)[0], dtype)
        for name, gradient in gradients.items():
            assert_near(
                name, engine.get("gradient." + name), gradient, plain.value_and_gradient(rows, w)[1][name], dtype
            )


@pytest.mark.parametrize("dtype", general.DTYPES)
@pytest.mark.parametrize("activation", ["topk", "batch_topk"])
def test_no_active_latent(activation: str, dtype: str, device: str) -> None:
    """All z below 0: nothing is active, nothing breaks, and the threshold of inference stays."""
    config = make(activation=activation, dtype=dtype, learning_rate=0.01, threshold_start=None)
    values = start(config)
    values["b_enc"][:] = -50.0
    check_training(config, device, steps=4, values=values)
    engine = make_engine(config, values, device, 0)
    X, _, _ = clear_run(config, 0, (3,), 1, values)[0]
    assert not engine.encode(X).any()
    starts, latents, elements = engine.encode_sparse(X)
    assert (starts.tolist(), len(latents), len(elements)) == ([0, 0, 0, 0], 0, 0)
    assert_near(
        "decode_sparse", engine.decode_sparse(starts, latents, elements), [values["b_dec"]] * 3, None, "float64"
    )
