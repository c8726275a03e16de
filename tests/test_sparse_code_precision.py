"""Sparse codes whose products round their factors, on each device that has such products."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from test_parity import single
from test_precision import low, rounded, with_rounded_factors  # noqa: F401  (a fixture)
from test_sparse_code_few import MODELS as FEW
from test_sparse_code_few import TILE, rows
from test_sparse_code_few import N as MANY
from test_sparse_code_few import start as few_start
from test_sparse_code_parity import MODELS, draw, make_engine, make_reference, margins, start
from test_sparse_code_reference import make
from tolerances import rounded_bound

from fastsae.reference import SparseCode
from fastsae.sparse_code import SparseCodeConfig

Low = tuple[str, str]


def twin(config: SparseCodeConfig, values: dict[str, np.ndarray]) -> SparseCode:
    """The reference in float32 whose products round their factors."""
    model = make_reference(config, values, "float32", 0)
    precision = config.precision
    model.parameters = {name: with_rounded_factors(value, precision) for name, value in model.parameters.items()}
    return model


def clear_batch(exact: SparseCode, rounding: SparseCode, rng: np.random.Generator, count: int) -> Any:
    """Rows whose decisions rounded factors leave as they are; of a batch that competes, on all rows."""
    config, competes = exact.config, exact.config.activation == "batch_topk"
    for _ in range(2000):
        X, w, y = draw(config, rng, count if competes else 60 * count)
        seen, near = exact._batch(X, w, y), rounding._batch(X, w, y)
        noise = max(np.abs(seen.z - near.z).max(), np.abs(seen.scores - near.scores).max())
        kept = np.flatnonzero(margins(exact, seen) > 2 * noise)[:count]
        if len(kept) == count:
            return X[kept], w[kept], None if y is None else y[kept]
    raise AssertionError("no batch is clear")


def check(name: str, actual: Any, exactly: Any, roundedly: Any, precision: str) -> None:
    difference = np.abs(np.asarray(actual, np.float64) - exactly).max()
    allowed = rounded_bound(exactly, np.asarray(roundedly), precision)
    assert difference <= allowed, f"{name}: off by {difference:.3g}, allowed {allowed:.3g}"


@pytest.mark.parametrize("model", MODELS)
def test_low_precision_is_near(model: str, low: Low) -> None:  # noqa: F811
    """Code, loss and gradients, and the parameters after steps that all decide alike."""
    device, precision = low
    config = make(**MODELS[model], precision=precision, dtype="float32", optimizer="sgd", learning_rate=0.003)
    values, rng = start(config), np.random.default_rng(3)
    engine = make_engine(config, values, device, 0)
    exact, rounding = make_reference(config, values, "float64", 0), twin(config, values)
    for _ in range(3):
        X, w, y = clear_batch(exact, rounding, rng, 7)
        if model != "batch_topk":
            check("encode", engine.encode(X), exact.encode(X), rounding.encode(X), precision)
        parts = engine.gradient(X, w, targets=y)
        exact_parts, gradients = exact.value_and_gradient(X, w, targets=y)
        low_parts, low_gradients = rounding.value_and_gradient(X, w, targets=y)
        check("loss", parts["loss"], exact_parts["loss"], low_parts["loss"], precision)
        for name, value in gradients.items():
            check(name, engine.get("gradient." + name), value, low_gradients[name], precision)
        for each in (engine, exact, rounding):
            each.step(X, w, targets=y)
    for name, value in exact.parameters.items():
        check(name, engine.get(name), value, rounding.parameters[name], precision)
    np.testing.assert_array_equal(engine.get("fired_rows"), exact.fired_rows)


@pytest.mark.parametrize("activation", ["topk", "batch_topk", "relu", "jump_relu"])
@pytest.mark.parametrize("pre_bias", [False, True], ids=["as it is", "centred"])
def test_whole_numbers_are_exact(activation: str, pre_bias: bool, low: Low) -> None:  # noqa: F811
    """No product rounds them, so each batch's own code comes out: no copy of an earlier one is read."""
    device, precision = low
    rng = np.random.default_rng(0)
    config = SparseCodeConfig(
        24, 1300, activation=activation, pre_bias=pre_bias, precision=precision, optimizer="sgd", learning_rate=1e-30,
        decoder_norm="free", dead_after=5, **({"k": 7} if "topk" in activation else {}),
    )  # fmt: skip
    values = {name: rng.integers(-8, 9, shape).astype(float) for name, shape in config.parameter_shapes.items()}
    values["rows_since_fired"] = np.zeros(1300)
    values["b_enc"] += 0.5  # nothing is on the edge
    if activation == "jump_relu":
        values["threshold"] = np.full(1300, 150.0)
    engine = make_engine(config, values, device, 0)
    exact = make_reference(config, values, "float64", 0)
    for count in (40, 40, 1100, 40):
        X = rng.integers(-8, 9, (count, 24)).astype(float)
        if activation != "batch_topk":
            np.testing.assert_array_equal(engine.encode(X), exact.encode(X))
        for each in (engine, exact):
            each.step(X)
        np.testing.assert_array_equal(engine.get("fired_rows"), exact.fired_rows)


@pytest.mark.parametrize(("count", "loud"), [(50, 0), (50, 50), (TILE + 40, TILE)], ids=str)
@pytest.mark.parametrize("model", ["relu", "l1", "transcoder"])
def test_lists_and_tiles(model: str, count: int, loud: int, low: Low) -> None:  # noqa: F811
    """Of codes that are continuous, so that a decision on what is almost 0 makes no difference."""
    device, precision = low
    config = SparseCodeConfig(13, MANY, dtype="float32", precision=precision, **FEW[model])
    values = {name: single(value) for name, value in few_start(config).items()}
    values["rows_since_fired"] = np.zeros(MANY)
    engine = make_engine(config, values, device, 0)
    exact, rounding = make_reference(config, values, "float64", 0), twin(config, values)
    other = rows(count, slice(count - loud), "float32")
    x, w = rows(count, slice(loud), "float32"), np.random.default_rng(5).random(count)
    of = {"targets": 2 * x} if config.transcoder else {}
    engine.gradient(other, targets=2 * other if config.transcoder else None)  # leaves nothing behind
    cost = engine.gradient(x, w, **of)
    (parts, gradients), (low_parts, low_gradients) = (m.value_and_gradient(x, w, **of) for m in (exact, rounding))
    check("loss", cost["loss"], parts["loss"], low_parts["loss"], precision)
    for name, gradient in gradients.items():
        check(name, engine.get("gradient." + name), gradient, low_gradients[name], precision)


@pytest.mark.parametrize("model", MODELS)
def test_gradients_are_those_of_the_batch(model: str, low: Low) -> None:  # noqa: F811
    """After other batches the bits are those of a new engine."""
    device, precision = low
    config = make(**MODELS[model], precision=precision, dtype="float32", learning_rate=0.01)
    used, rng = make_engine(config, start(config), device, 0), np.random.default_rng(1)
    for count in (30, 9, 9, 9):
        X, w, y = draw(config, rng, count)
        used.step(X, w, targets=y)
    new = make_engine(config, {name: used.get(name) for name in used.state_names()}, device, used.steps)
    X, w, y = draw(config, rng, 9)
    for engine in (used, new):
        engine.gradient(X, w, targets=y)
    for name in config.parameter_shapes:
        np.testing.assert_array_equal(used.get("gradient." + name), new.get("gradient." + name), err_msg=name)


def test_the_option_is_not_ignored(low: Low) -> None:  # noqa: F811
    device, precision = low
    config = make(activation="relu", precision=precision, dtype="float32")
    X, _, _ = draw(config, np.random.default_rng(2), 50)
    code = make_engine(config, start(config), device, 0).encode(X)
    exact = make_reference(config, start(config), "float64", 0).encode(X)
    assert np.abs(code - exact).max() > 2.0**-16 * np.abs(exact).max()
    assert rounded(np.float32([1.5]), precision)[0] == 1.5
