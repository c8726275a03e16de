"""The engine's own behaviour: its tensors, its steps, what it takes and what it refuses."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import tracemalloc
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from test_parity import D, H, N, data, deep, make_engine, parameters_for, two_layers, weights_for

import fastsae
from fastsae import Config, Engine, LayerConfig, _core
from fastsae import config as options

DTYPES = options.DTYPES


def trained(device: str, dtype: str = "float64", **rest: Any) -> Engine:
    """An engine with all kinds of state."""
    config = two_layers("sigmoid", "kl", rho_hat="ema", dtype=dtype, **rest)
    engine = make_engine(config, parameters_for(config), device)
    for seed in range(3):
        engine.step(data(N, D, seed))
    return engine


def snapshot(engine: Engine) -> dict[str, Any]:
    """All that the next step depends on, and the metrics."""
    state: dict[str, Any] = {name: engine.get(name).tobytes() for name in engine.state_names()}
    return {**state, "steps": engine.steps, "learning_rate": engine.learning_rate, "metrics": engine.metric_sums()}


def assert_untouched(engine: Engine, before: dict[str, Any]) -> None:
    """Nothing has changed, and the model still learns."""
    assert snapshot(engine) == before
    engine.step(data(N, D, 7).astype(engine.config.dtype))
    assert engine.steps == before["steps"] + 1
    assert all(np.isfinite(engine.get(name)).all() for name in engine.names())
    assert engine.get("W1").tobytes() != before["W1"]


def python(code: str, timeout: float = 60, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs a script in a fresh interpreter."""
    env = {**os.environ, **environment}
    return subprocess.run(
        [sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=timeout, check=False
    )


# --- tensors ---


@pytest.mark.parametrize(
    ("optimizer", "moments"),
    [
        ("sgd", []),
        ("momentum", ["first_moment."]),
        ("nesterov", ["first_moment."]),
        ("adam", ["first_moment.", "second_moment."]),
        ("adamw", ["first_moment.", "second_moment."]),
    ],
)
@pytest.mark.parametrize("tied", [False, True])
def test_names(optimizer: str, moments: list[str], tied: bool, device: str) -> None:
    engine = Engine(deep(tied=tied, optimizer=optimizer, rho_hat="ema"), device)
    own = ["W1", "b1", "W2", "b2", "b3", "b4"] if tied else ["W1", "b1", "W2", "b2", "W3", "b3", "W4", "b4"]
    assert engine.parameter_names() == own
    state = {*own, *(m + name for m in moments for name in own), "rho_hat1"}
    assert set(engine.state_names()) == state
    assert set(engine.names()) == state | {"gradient." + name for name in own}
    assert len(engine.names()) == len(set(engine.names()))


@pytest.mark.parametrize("dtype", DTYPES)
def test_get_and_set(dtype: str, device: str) -> None:
    engine = Engine(two_layers(dtype=dtype, rho_hat="ema", penalty="kl"), device)
    shapes = {"W1": (H, D), "b1": (H,), "W2": (D, H), "b2": (D,)}
    assert {name: p.shape for name, p in engine.get_parameters().items()} == shapes
    assert not any(p.any() for p in engine.get_parameters().values())
    rng = np.random.default_rng(0)
    for name in engine.names():
        before = engine.get(name)
        assert before.dtype == ("float64" if name.startswith("rho_hat") else dtype)
        value = rng.normal(size=before.shape).astype(dtype)
        engine.set(name, value)
        np.testing.assert_array_equal(engine.get(name), value)
        copy = engine.get(name)
        copy[:] = 7
        np.testing.assert_array_equal(engine.get(name), value)
    engine.set("W1", np.asfortranarray(np.arange(H * D).reshape(H, D)))
    np.testing.assert_array_equal(engine.get("W1"), np.arange(H * D).reshape(H, D))
    engine.set("b1", [[1, 2, 3, 4, 5]])
    np.testing.assert_array_equal(engine.get("b1"), [1, 2, 3, 4, 5])


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("W3", np.zeros((H, D)), "W3"),
        ("", np.zeros(1), "name"),
        ("W1", np.zeros((D, H)), r"W1: expected shape \(5, 7\), got \(7, 5\)"),
        ("W1", np.zeros(H * D), "W1: expected shape"),
        ("b1", np.zeros(H + 1), "b1: expected shape"),
        ("b1", np.zeros((H, 1)), "b1: expected shape"),
        ("b1", 0.0, "b1: expected shape"),
        ("b1", [1, 2, None, 4, 5], "b1: expected an array of real numbers"),
        ("b1", ["1"] * H, "b1: expected an array of real numbers"),
        ("b1", np.ones(H) * 1j, "b1: expected an array of real numbers"),
        ("b1", [[1], [2, 3]], "b1: expected an array of numbers"),
        ("b1", [1, 2, np.nan, 4, 5], "b1: expected finite numbers"),
        ("b1", [1, 2, -np.inf, 4, 5], "b1: expected finite numbers"),
        ("b1", [1, 2, 1e300, 4, 5], "b1: expected finite numbers"),
    ],
)
def test_set_refuses(name: str, value: Any, message: str, device: str) -> None:
    engine = trained(device, "float32")
    before = snapshot(engine)
    with pytest.raises(ValueError, match=message):
        engine.set(name, value)
    assert_untouched(engine, before)


def test_get_refuses_an_unknown_name(device: str) -> None:
    with pytest.raises(ValueError, match="'W9'"):
        trained(device).get("W9")


def test_set_puts_a_state_back(device: str) -> None:
    """All of state_names, steps and the learning rate are the whole state: a copy goes on with the same bits."""
    engine = trained(device)
    engine.learning_rate = 0.003
    copy = Engine(engine.config, device)
    for name in engine.state_names():
        copy.set(name, engine.get(name))
    copy.steps, copy.learning_rate = engine.steps, engine.learning_rate
    for each in (engine, copy):
        each.run_epoch(data(30, D, 9), None, 7)
    assert {name: engine.get(name).tobytes() for name in engine.state_names()} == {
        name: copy.get(name).tobytes() for name in copy.state_names()
    }


def test_pickle_goes_on_with_the_same_bits(device: str) -> None:
    engine = trained(device)
    engine.learning_rate = 0.003
    copy = pickle.loads(pickle.dumps(engine))
    for each in (engine, copy):
        each.reset_metrics()
        each.step(data(N, D, 9))
    assert snapshot(copy) == snapshot(engine)


# --- steps and metrics ---


def test_metrics_are_weighted_means_over_steps(device: str) -> None:
    config = two_layers("tanh", "kl", dtype="float64")
    engine, twin = (make_engine(config, parameters_for(config), device) for _ in range(2))
    parts, sizes, totals = [], [], []
    for seed, n in enumerate((N, 3, 1)):
        X, w = data(n, D, seed), weights_for(n, seed)
        parts.append(twin.gradient(X, w))
        twin.step(X, w)
        engine.step(X, w)
        sizes.append(n)
        totals.append(w.sum())
    metrics = engine.metrics()
    assert metrics["steps"] == engine.steps == 3
    assert metrics["rows"] == sum(sizes)
    assert metrics["weight"] == pytest.approx(sum(totals), rel=1e-14)
    for part in ("loss", "reconstruction", "penalty", "decay", "gradient_norm"):
        mean = sum(total * p[part] for total, p in zip(totals, parts, strict=True)) / sum(totals)
        assert metrics[part] == pytest.approx(mean, rel=1e-13)
        assert engine.metric_sums()[part] == pytest.approx(mean * sum(totals), rel=1e-13)
    engine.reset_metrics()
    assert engine.metric_sums()["weight"] == engine.metric_sums()["loss"] == 0
    assert np.isnan(engine.metrics()["loss"])
    assert engine.steps == 3


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("batch_size", [1, 8, 23, 1000, 2**63 - 1, None])
def test_epoch_is_its_steps(batch_size: int | None, dtype: str, device: str) -> None:
    config = two_layers("tanh", "kl", rho_hat="ema", dtype=dtype)
    epoch, steps = (make_engine(config, parameters_for(config), device) for _ in range(2))
    X, w = data(23, D).astype(dtype), weights_for(23)
    order = np.random.default_rng(0).integers(0, 23, 30)
    epoch.run_epoch(X, order, batch_size, w)
    size = len(order) if batch_size is None else batch_size
    for first in range(0, len(order), size):
        rows = order[first : first + size]
        steps.step(X[rows], w[rows])
    assert snapshot(epoch) == snapshot(steps)


def test_rows_without_an_order_are_taken_as_they_are(device: str) -> None:
    config = two_layers(dtype="float64")
    engines = [make_engine(config, parameters_for(config), device) for _ in range(3)]
    X, w = data(23, D), weights_for(23)
    engines[0].run_epoch(X, None, 5, w)
    engines[1].run_epoch(X, np.arange(23), 5, w)
    engines[2].run_epoch(X, list(range(23)), np.int32(5), w.tolist())
    assert snapshot(engines[0]) == snapshot(engines[1]) == snapshot(engines[2])


def test_batches_of_no_weight_take_no_step(device: str) -> None:
    engine = trained(device)
    w = np.ones(12)
    w[4:8] = 0
    engine.run_epoch(data(12, D), None, 4, w)
    assert engine.steps == 5
    assert engine.metric_sums()["rows"] == 3 * N + 12
    for method in (engine.gradient, engine.evaluate):
        with pytest.raises(ValueError, match="sample_weight: expected a positive sum"):
            method(data(4, D), np.zeros(4))


def test_gradient_and_evaluate_change_nothing(device: str) -> None:
    engine = trained(device)
    before = snapshot(engine)
    engine.gradient(data(N, D, 8))
    gradients = [engine.get("gradient." + name) for name in engine.parameter_names()]
    engine.evaluate(data(N, D, 9), weights_for(N))
    for name, g in zip(engine.parameter_names(), gradients, strict=True):
        np.testing.assert_array_equal(engine.get("gradient." + name), g)
    engine.encode(data(N, D)), engine.reconstruct(data(N, D)), engine.score(data(N, D))
    assert_untouched(engine, before)


def test_empty_order_is_no_step(device: str) -> None:
    engine = trained(device)
    before = snapshot(engine)
    engine.run_epoch(data(N, D), [], 4)
    engine.run_epoch(data(N, D), np.empty(0, np.int64))
    assert_untouched(engine, before)


# --- inputs ---


class OnlyDlpack:
    """A tensor that gives itself away by the DLPack protocol alone."""

    def __init__(self, array: np.ndarray) -> None:
        self.array = array

    def __dlpack__(self, **options: Any) -> Any:
        return self.array.__dlpack__(**options)

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.array.__dlpack_device__()


def padded(X: np.ndarray) -> np.ndarray:
    wide = np.full((len(X), X.shape[1] + 3), np.nan, X.dtype)
    wide[:, 1:-2] = X
    return wide[:, 1:-2]


def odd_stride(X: np.ndarray) -> np.ndarray:
    """Rows that do not begin at a multiple of their item size."""
    step = X.shape[1] * X.itemsize + 3
    rows = np.ndarray(X.shape, X.dtype, np.zeros(step * len(X) + 8, np.uint8), 0, (step, X.itemsize))
    rows[:] = X
    return rows


def read_only(X: np.ndarray) -> np.ndarray:
    X = X.copy()
    X.flags.writeable = False
    return X


INPUTS: dict[str, Callable[[np.ndarray], Any]] = {
    "padded rows": padded,
    "every second row": lambda X: np.repeat(X, 2, axis=0)[::2],
    "reversed rows": lambda X: X[::-1].copy()[::-1],
    "reversed columns": lambda X: X[:, ::-1].copy()[:, ::-1],
    "every second column": lambda X: np.repeat(X, 2, axis=1)[:, ::2],
    "Fortran order": np.asfortranarray,
    "odd stride": odd_stride,
    "read-only": read_only,
    "other byte order": lambda X: X.astype(X.dtype.newbyteorder()),
    "DLPack": OnlyDlpack,
    "list": lambda X: X.tolist(),
    "subclass": lambda X: X.view(np.recarray),
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", INPUTS)
def test_input_layouts(kind: str, dtype: str, device: str) -> None:
    """Every layout gives the bits of a plain array, in inference, in a step and in an epoch."""
    X = data(23, D).astype(dtype)
    code = data(23, H, 1).astype(dtype)
    given, given_code = INPUTS[kind](X), INPUTS[kind](code)
    engine, twin = trained(device, dtype), trained(device, dtype)
    np.testing.assert_array_equal(engine.encode(given), twin.encode(X))
    np.testing.assert_array_equal(engine.decode(given_code), twin.decode(code))
    np.testing.assert_array_equal(engine.score(given), twin.score(X))
    assert engine.evaluate(given) == twin.evaluate(X)
    for each, rows in ((engine, given), (twin, X)):
        each.step(rows)
        each.run_epoch(rows, [5, 3, 22, 0], 3)
    assert snapshot(engine) == snapshot(twin)


@pytest.mark.parametrize("given", ["float32", "float64", "float16", "int64", "uint8", "bool", "longdouble"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_input_types(given: str, dtype: str, device: str) -> None:
    """Rows are converted to the type of the model, and to no other on the way."""
    X = np.random.default_rng(0).integers(0, 2, (N, D)).astype(given)
    if given in ("float64", "longdouble"):
        X += np.random.default_rng(0).uniform(0, 1e-9, X.shape).astype(given)
    if given == "int64":
        X = X * (2**24 + 1)  # not a float32
    engine, twin = trained(device, dtype), trained(device, dtype)
    np.testing.assert_array_equal(engine.reconstruct(X), twin.reconstruct(X.astype(dtype)))
    engine.step(X), twin.step(X.astype(dtype))
    assert snapshot(engine) == snapshot(twin)


def test_one_row_seen_many_times(device: str) -> None:
    engine, twin = trained(device), trained(device)
    row = data(1, D)
    engine.step(np.broadcast_to(row, (6, D)))
    twin.step(np.repeat(row, 6, axis=0))
    assert snapshot(engine) == snapshot(twin)


def test_single_columns(device: str) -> None:
    config = Config(1, (LayerConfig(1), LayerConfig(1)), dtype="float64")
    engine = make_engine(config, parameters_for(config), device)
    X = data(9, 4)
    np.testing.assert_array_equal(engine.encode(X[:, 2:3]), engine.encode(X[:, 2:3].copy()))


def test_no_rows(device: str) -> None:
    engine = trained(device)
    none = np.empty((0, D))
    assert engine.encode(none).shape == (0, H)
    assert engine.decode(np.empty((0, H))).shape == engine.reconstruct(none).shape == (0, D)
    assert engine.score(none).shape == (0,)
    before = snapshot(engine)
    for method in (engine.step, engine.run_epoch, engine.gradient, engine.evaluate):
        with pytest.raises(ValueError, match="X: expected at least one row"):
            method(none)
    assert_untouched(engine, before)


BAD_ROWS: dict[str, tuple[Any, str]] = {
    "columns": (np.zeros((4, D + 1)), r"X: expected a 2-D array with 7 columns, got shape \(4, 8\)"),
    "1-D": (np.zeros(D), "X: expected a 2-D array"),
    "3-D": (np.zeros((2, 2, D)), "X: expected a 2-D array"),
    "0-D": (3.0, "X: expected a 2-D array"),
    "None": (None, "X: expected a 2-D array"),
    "string": ("abc", "X: expected a 2-D array"),
    "ragged": ([[1.0] * D, [2.0]], "X: expected an array of numbers"),
    "object": (np.full((4, D), 1.0, object), "X: expected an array of real numbers, got dtype object"),
    "complex": (np.ones((4, D)) * 1j, "X: expected an array of real numbers, got dtype complex128"),
    "strings": (np.full((4, D), "1"), "X: expected an array of real numbers, got dtype <U1"),
    "dates": (np.zeros((4, D), "datetime64[s]"), "X: expected an array of real numbers, got dtype datetime64"),
}


@pytest.mark.parametrize("kind", BAD_ROWS)
@pytest.mark.parametrize("method", ["step", "run_epoch", "gradient", "evaluate", "encode", "reconstruct", "score"])
def test_bad_rows(method: str, kind: str, device: str) -> None:
    engine = trained(device)
    before = snapshot(engine)
    value, message = BAD_ROWS[kind]
    with pytest.raises(ValueError, match=message):
        getattr(engine, method)(value)
    assert_untouched(engine, before)


def test_bad_code(device: str) -> None:
    engine = trained(device)
    with pytest.raises(ValueError, match=r"H: expected a 2-D array with 5 columns, got shape \(4, 7\)"):
        engine.decode(np.zeros((4, D)))


class ElsewhereDlpack:
    def __dlpack__(self, **options: Any) -> Any:
        raise BufferError("the tensor is on another device")

    def __dlpack_device__(self) -> tuple[int, int]:
        return 2, 0


def test_tensor_on_another_device(device: str) -> None:
    with pytest.raises(ValueError, match=r"X: expected a tensor .*in CPU memory"):
        trained(device).encode(ElsewhereDlpack())


@pytest.mark.parametrize(
    ("order", "message"),
    [
        ([0, N], r"order: expected row numbers in \[0, 11\), got 11"),
        ([0, -1], r"order: expected row numbers in \[0, 11\), got -1"),
        ([[0, 1]], "order: expected a 1-D array of row numbers"),
        (3, "order: expected a 1-D array of row numbers"),
        ([0.5, 1.5], "order: expected a 1-D array of row numbers"),
        (np.ones(N, bool), "order: expected a 1-D array of row numbers"),
        (["a"], "order: expected a 1-D array of row numbers"),
        ([None], "order: expected a 1-D array of row numbers"),
        ([2**70], "order: expected a 1-D array of row numbers"),
        (np.array([2**64 - 1], np.uint64), "order: expected row numbers"),
    ],
)
def test_bad_order(order: Any, message: str, device: str) -> None:
    """Also where the first batch would be fine: no step is taken."""
    engine = trained(device)
    before = snapshot(engine)
    with pytest.raises(ValueError, match=message):
        engine.run_epoch(data(N, D), order, 1)
    assert_untouched(engine, before)


@pytest.mark.parametrize("batch_size", [0, -1, 1.5, "2", True, 2**64])
def test_bad_batch_size(batch_size: Any, device: str) -> None:
    engine = trained(device)
    before = snapshot(engine)
    with pytest.raises(ValueError, match="batch_size: expected an integer"):
        engine.run_epoch(data(N, D), None, batch_size)
    assert_untouched(engine, before)


def test_full_rho_hat_takes_no_mini_batches(device: str) -> None:
    config = two_layers("tanh", "kl", rho_hat="full")
    engine = make_engine(config, parameters_for(config), device)
    with pytest.raises(ValueError, match="batch_size: rho_hat='full' needs all 11 rows"):
        engine.run_epoch(data(N, D), None, N - 1)
    engine.run_epoch(data(N, D), None, N)
    assert engine.steps == 1


@pytest.mark.parametrize(
    "weights",
    [
        np.ones(N - 1),
        np.ones((N, 1)),
        1.0,
        [1.0] * (N - 1) + [np.nan],
        [1.0] * (N - 1) + [np.inf],
        [1.0] * (N - 1) + [-1e-9],
        ["1"] * N,
        [None] * N,
        np.ones(N) * 1j,
    ],
    ids=str,
)
@pytest.mark.parametrize("method", ["step", "gradient", "evaluate"])
def test_bad_weights(method: str, weights: Any, device: str) -> None:
    engine = trained(device)
    before = snapshot(engine)
    with pytest.raises(ValueError, match="sample_weight: expected"):
        getattr(engine, method)(data(N, D), weights)
    assert_untouched(engine, before)


@pytest.mark.parametrize("value", [-1, 1.5, "3", 2**64, None])
def test_bad_steps(value: Any, device: str) -> None:
    engine = trained(device)
    with pytest.raises(ValueError, match="steps: expected an integer"):
        engine.steps = value
    assert engine.steps == 3


@pytest.mark.parametrize("value", [-1.0, np.nan, np.inf, "fast", None])
def test_bad_learning_rate(value: Any, device: str) -> None:
    engine = trained(device)
    with pytest.raises(ValueError, match="learning_rate: expected a number"):
        engine.learning_rate = value
    assert engine.learning_rate == 0.01


@pytest.mark.parametrize("name", ["tpu", "", None, 0, "CPU"])
def test_bad_device(name: Any) -> None:
    with pytest.raises(ValueError, match="device: expected 'auto', 'cpu', 'cuda' or 'cuda:N'"):
        Engine(two_layers(), name)


# --- out ---


@pytest.mark.parametrize("dtype", DTYPES)
def test_out(dtype: str, device: str) -> None:
    engine = trained(device, dtype)
    X, code = data(N, D), data(N, H)
    for method, rows, width in ((engine.encode, X, H), (engine.decode, code, D), (engine.reconstruct, X, D)):
        out = np.full((N, width), np.nan, dtype)
        assert method(rows, out=out) is out
        np.testing.assert_array_equal(out, method(rows))


def test_out_of_an_equal_dtype(device: str) -> None:
    """A dtype that went through pickle is another object, as in the arrays that workers send back."""
    dtype = pickle.loads(pickle.dumps(np.dtype("float64")))
    out = np.empty((N, H), dtype)
    trained(device).encode(data(N, D), out=out)
    np.testing.assert_array_equal(out, trained(device).encode(data(N, D)))


@pytest.mark.parametrize(
    "out",
    [
        np.empty((N, H), np.float32),
        np.empty((N, H), np.dtype("float64").newbyteorder()),
        np.empty((N + 1, H)),
        np.empty((N, H + 1)),
        np.empty((H, N)).T,
        np.empty((N, 2 * H))[:, :H],
        read_only(np.empty((N, H))),
        [[0.0] * H] * N,
        None,
    ],
    ids=lambda out: f"{type(out).__name__} {getattr(out, 'shape', '')} {getattr(out, 'dtype', '')}",
)
def test_bad_out(out: Any, device: str) -> None:
    engine = trained(device)
    if out is None:
        X = data(N, D)
        out, rows = X[:, :H], X  # the memory of the input
    else:
        rows = data(N, D)
    with pytest.raises(ValueError, match="out: expected"):
        engine.encode(rows, out=out)


def test_out_may_not_be_the_input(device: str) -> None:
    engine = trained(device)
    X = data(N, D)
    before = X.copy()
    with pytest.raises(ValueError, match="out: expected memory of its own"):
        engine.reconstruct(X, out=X)
    np.testing.assert_array_equal(X, before)


class Subclass(np.ndarray[Any, Any]):
    pass


@pytest.mark.parametrize(
    ("X", "readable"),
    [
        (np.ones((3, D), np.float32), True),
        (np.ones((3, D)), True),
        (np.ones((0, D)), True),
        (np.ones((3, 2 * D))[:, :D], True),
        (np.ones((3, D))[::2], True),
        (np.broadcast_to(np.ones(D), (3, D)), True),
        (read_only(np.ones((3, D))), True),
        (np.ones((3, D)).view(Subclass), True),
        (pickle.loads(pickle.dumps(np.ones((3, D)))), True),
        (np.ones((3, D))[::-1], False),
        (np.ones((3, 2 * D))[:, ::2], False),
        (np.ones((D, 3)).T, False),
        (np.frombuffer(b"\0" * (24 * D + 1), np.uint8)[1:].view(np.float64).reshape(3, D), False),
        (np.ones((3, D), np.dtype(np.float64).newbyteorder()), False),
        (np.ones((3, D), np.int32), False),
        (np.ones((3, D), np.float16), False),
        (np.ones((3, D), np.longdouble), False),
        (np.ones((3, D), [("a", "f8")]), False),
        (np.ones((3, D + 1)), False),
        (np.ones(D), False),
        (np.ones((1, 3, D)), False),
        (np.float64(1), False),
        ([[1.0] * D] * 3, False),
        (None, False),
    ],
    ids=lambda X: f"{type(X).__name__} {getattr(X, 'shape', '')} {getattr(X, 'dtype', '')}",
)
def test_rows_are_read_where_they_are(X: Any, readable: bool) -> None:
    """Where that is not possible the engine takes what NumPy makes of them, with the same numbers."""
    assert _core.is_readable(X, D) is readable
    engine = trained("cpu")
    if readable:
        assert engine.rows("X", X, D) is X
    try:
        rows = engine.rows("X", X, D)
    except ValueError:
        assert np.ndim(X) != 2 or np.shape(X) != (3, D) or X.dtype.names
    else:
        np.testing.assert_array_equal(engine.encode(X), engine.encode(np.ascontiguousarray(np.asarray(X), rows.dtype)))


def test_results_are_written_where_they_are() -> None:
    X, dtype = np.ones((3, D)), "float64"
    memory = np.ones(3 * (D + H))
    rows, beside = memory[: 3 * D].reshape(3, D), memory[3 * D :].reshape(3, H)
    over = memory[3 * D - 1 : 3 * (D + H) - 1].reshape(3, H)
    assert _core.is_writable(np.empty((3, H)), X, H, dtype)
    assert _core.is_writable(np.empty((3, H), np.int32), X, H, "int32")
    assert _core.is_writable(np.empty((0, H)), X[:0], H, dtype)
    assert _core.is_writable(beside, rows, H, dtype)
    for out in (
        over, np.empty((3, H), np.float32), np.empty((2, H)), np.empty((3, H + 1)), np.empty((H, 3)).T, np.empty(H),
        read_only(np.empty((3, H))), np.empty((3, H), np.dtype(dtype).newbyteorder()), [[0.0] * H] * 3, None,
    ):  # fmt: skip
        assert not _core.is_writable(out, rows, H, dtype)
    with pytest.raises(ValueError, match="dtype: expected"):
        _core.is_writable(beside, rows, H, "float16")


@pytest.mark.parametrize("rows", [1, 8])
def test_nothing_is_allocated_with_out(rows: int, device: str) -> None:
    """A service that encodes row after row has no garbage; NumPy tells tracemalloc of its arrays."""
    if device != "cpu":
        pytest.skip("the memory of a device is not NumPy's")
    engine = trained(device)
    X, code, output = data(rows, D), np.empty((rows, H)), np.empty((rows, D))
    for _ in range(2):
        tracemalloc.start()
        engine.encode(X, out=code)
        engine.reconstruct(X, out=output)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert peak < 1000


# --- numbers that are not finite ---


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("given", DTYPES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("activation", options.ACTIVATIONS)
@pytest.mark.parametrize("loss", options.LOSSES)
def test_bad_row_is_named(value: float, given: str, dtype: str, activation: str, loss: str, device: str) -> None:
    config = two_layers(activation, "log", loss=loss, dtype=dtype)
    engine = make_engine(config, parameters_for(config), device)
    engine.step(data(N, D))
    X = data(N, D).astype(given)
    X[8, 3] = value
    before = snapshot(engine)
    for train in (engine.step, engine.gradient, engine.evaluate, lambda X: engine.run_epoch(X, [3, 8, 1])):
        with pytest.raises(ValueError, match="X: row 8 contains NaN or infinity"):
            train(X)
    assert_untouched(engine, before)


def test_bad_row_in_a_later_batch(device: str) -> None:
    """The steps before it are done, the row is named by its number in X, and nothing after it happens."""
    engine, twin = trained(device), trained(device)
    X = data(N, D)
    order = np.arange(N)[::-1]
    twin.run_epoch(X, order[:8], 4)
    X[1, 0] = np.nan
    with pytest.raises(ValueError, match="X: row 1 contains"):
        engine.run_epoch(X, order, 4)
    assert snapshot(engine) == snapshot(twin)
    assert_untouched(engine, snapshot(twin))


def test_bad_row_in_a_chunk(device: str) -> None:
    config = two_layers("sigmoid", "kl", rho_hat="ema", dtype="float64")
    engine = make_engine(config, parameters_for(config), device, full_batch_rows=4)
    engine.step(data(N, D))
    before = snapshot(engine)
    X = data(N, D)
    X[10, 6] = np.nan
    with pytest.raises(ValueError, match="X: row 10 contains"):
        engine.step(X)
    assert_untouched(engine, before)


def test_nan_stays_visible_in_outputs(device: str) -> None:
    engine = trained(device)
    X = data(N, D)
    clean = engine.reconstruct(X)
    X[4, 2] = np.nan
    for output in (engine.encode(X), engine.reconstruct(X), engine.score(X)[:, None]):
        assert np.isnan(output[4]).all()
        assert np.isfinite(np.delete(output, 4, axis=0)).all()
    np.testing.assert_array_equal(np.delete(engine.reconstruct(X), 4, axis=0), np.delete(clean, 4, axis=0))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("optimizer", options.OPTIMIZERS)
def test_divergence_leaves_the_last_good_state(optimizer: str, dtype: str, device: str) -> None:
    rate = 1e6 if dtype == "float32" else 1e100
    config = two_layers("identity", "none", "identity", optimizer=optimizer, learning_rate=rate, dtype=dtype)
    engine = make_engine(config, parameters_for(config), device)
    X = data(N, D)

    before: dict[str, Any] = {}

    def diverge() -> None:
        for _ in range(300):
            before.update(snapshot(engine))
            engine.step(X)

    with pytest.raises(FloatingPointError, match=r"step \d+: the loss is .* Lower learning_rate") as raised:
        diverge()
    assert f"step {engine.steps + 1}:" in str(raised.value)
    assert snapshot(engine) == before
    assert all(np.isfinite(engine.get(name)).all() for name in engine.state_names())
    engine.learning_rate = 1e-3
    engine.set_parameters(parameters_for(config))
    for name in engine.state_names():
        if "moment" in name:
            engine.set(name, np.zeros_like(engine.get(name)))
    engine.step(X)
    assert engine.steps == before["steps"] + 1


# --- sizes ---


@pytest.mark.parametrize(
    ("n_features", "units", "depth"),
    [
        (3, 2**36, 2),
        (3, 2**62, 2),
        (3, 2**63 - 1, 2),
        (3, 2**64, 2),
        (2**40, 2**40, 2),
        (2**63 - 1, 2**63 - 1, 2),
        (2**29, 2**29, 8),  # 8 matrices of 2^61 bytes: their sum wraps around to the biases alone
    ],
)
@pytest.mark.parametrize("dtype", DTYPES)
def test_models_that_do_not_fit(n_features: int, units: int, depth: int, dtype: str, device: str) -> None:
    layers = [LayerConfig(units)] * (depth - 1)
    config = Config(n_features, (*layers, LayerConfig(n_features)), dtype=dtype)
    with pytest.raises((MemoryError, ValueError), match=r"bytes|addressed|expected an integer"):
        Engine(config, device)


def test_memory_error_says_how_much(device: str) -> None:
    with pytest.raises(MemoryError, match=r"could not allocate \d+ bytes; \d+ bytes are free"):
        Engine(Config(3, (LayerConfig(2**36), LayerConfig(3))), device)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="address-space limits are those of Linux")
def test_failed_allocation_leaves_the_model() -> None:
    """A batch whose activations do not fit the address space; afterwards a smaller one does."""
    script = """
import resource, numpy as np
from fastsae import Config, Engine, LayerConfig
engine = Engine(Config(4, (LayerConfig(2000), LayerConfig(4))), "cpu")
X = np.zeros((60_000, 4), np.float32)  # 1 GB of activations and deltas
engine.step(X[:10])
W1 = engine.get("W1")
in_use = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (in_use + 2**28, resource.RLIM_INFINITY))
try:
    engine.step(X)
except MemoryError as error:
    print("refused:", error)
assert engine.steps == 1 and (engine.get("W1") == W1).all()
engine.step(X[:10])
print("steps", engine.steps)
"""
    done = python(script, OPENBLAS_NUM_THREADS="1", FASTSAE_NUM_THREADS="1")
    assert done.returncode == 0, done.stderr
    assert "refused:" in done.stdout
    assert "steps 2" in done.stdout


@pytest.mark.parametrize("value", [-1, 1.5, 2**64])
def test_bad_full_batch_rows(value: Any, device: str) -> None:
    with pytest.raises(ValueError, match="full_batch_rows: expected an integer"):
        Engine(two_layers(), device, value)


# --- environment ---


@pytest.mark.parametrize("value", ["sse9", "AVX2", " avx2"])
def test_unknown_isa(value: str) -> None:
    done = python("import fastsae; fastsae.Engine(fastsae.Config(1, (fastsae.LayerConfig(1),)))", FASTSAE_ISA=value)
    assert done.returncode == 1
    assert f"ValueError: FASTSAE_ISA: expected baseline, avx2 or avx512, got '{value}'" in done.stderr


def test_isa_that_the_processor_lacks() -> None:
    levels = ["baseline", "avx2", "avx512"]
    lacking = levels[levels.index(python("from fastsae import _core; print(_core.isa())").stdout.strip()) + 1 :]
    if not lacking:
        pytest.skip("this processor has every level")
    done = python("from fastsae import _core; _core.isa()", FASTSAE_ISA=lacking[0])
    assert done.returncode == 1
    assert f"DeviceError: FASTSAE_ISA={lacking[0]}: this processor has only" in done.stderr


def test_empty_isa_is_the_best() -> None:
    best = python("from fastsae import _core; print(_core.isa())", FASTSAE_ISA="").stdout
    assert best.strip() in ("baseline", "avx2", "avx512")


@pytest.mark.parametrize("count", [0, -1, 1025, 1.5, "2", True])
def test_bad_number_of_threads(count: Any) -> None:
    before = fastsae.get_num_threads()
    with pytest.raises(ValueError, match="count: expected an integer"):
        fastsae.set_num_threads(count)
    assert fastsae.get_num_threads() == before


# --- denormals ---


def denormals_work() -> bool:
    """Whether this thread computes with numbers below the normal range."""
    tiny32, tiny64 = np.float32(1e-40), np.float64(5e-324)
    return bool(
        tiny32 * np.float32(1) == tiny32 != 0
        and tiny64 * np.float64(1) == tiny64 != 0
        and np.float32(1e-30) * np.float32(1e-10) > 0
    )


def test_caller_keeps_denormals(device: str, threads: None) -> None:
    assert denormals_work()
    for count in (1, 2):
        fastsae.set_num_threads(count)
        engine = trained(device, "float32")
        X = data(300, D)
        for call in (engine.step, engine.encode, engine.score, engine.evaluate, engine.gradient):
            call(X)
            assert denormals_work()
        X[4] = np.nan
        with pytest.raises(ValueError, match="row 4"):
            engine.step(X)
        assert denormals_work()


def test_state_never_turns_denormal(device: str) -> None:
    """Adam's moments of a unit whose gradient has stopped decay to zero, not into the slow denormal range."""
    config = two_layers("relu", "none", optimizer="adam", weight_decay=0.0, beta1=0.5, beta2=0.5)
    engine = make_engine(config, parameters_for(config), device)
    X = data(N, D).astype(np.float32)
    engine.step(X)
    engine.set("b1", np.r_[-1e6, np.zeros(H - 1)])  # a dead unit
    assert engine.get("first_moment.W1")[0].any()
    moments = ("first_moment.W1", "second_moment.W1")
    for _ in range(200):
        engine.step(X)
        for moment in (engine.get(name) for name in moments if device == "cpu"):  # a GPU is as fast with them
            assert not ((moment != 0) & (np.abs(moment) < np.finfo(np.float32).tiny)).any()
    assert not any(engine.get(name)[0].any() for name in moments)


def test_no_warnings_at_import() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert python("import fastsae.engine").stderr == ""
    assert _core.blas()
