"""What a device may hide: records of steps that are replayed, memory that was used before, threads that end early.

Nothing here is special to CUDA, and all of it is a test of the CPU too; but it is where a GPU backend goes wrong.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import DEVICES
from test_determinism import INTERRUPTED, interrupt, report
from test_parity import (
    assert_near,
    check_gradient,
    check_outputs,
    data,
    make_engine,
    parameters_for,
    references,
    two_layers,
    weights_for,
)

import fastsae
from fastsae import Config, Engine, LayerConfig, SparseAutoencoder
from fastsae import config as options

Batch = tuple[np.ndarray, np.ndarray | None]
State = dict[str, Any]

# Features and units: a model that fits the shared memory of one multiprocessor, and one that does not.
MODELS = {"small": (7, 5), "large": (200, 300)}


def sanitized(cases: Iterable[Any], one: Any) -> list[Any]:
    """The cases, of which one also runs under compute-sanitizer."""
    return [pytest.param(case, marks=pytest.mark.gpu_sanitize if case == one else ()) for case in cases]


def state_of(engine: Engine) -> State:
    """All that the next step depends on."""
    return {**{name: engine.get(name) for name in engine.state_names()}, "steps": engine.steps}


def set_back(engine: Engine, state: State) -> None:
    for name in engine.state_names():
        engine.set(name, state[name])
    engine.steps = state["steps"]


def assert_same_bits(actual: State, expected: State) -> None:
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(actual[name], value, err_msg=name)


def model(name: str, dtype: str = "float32", **rest: Any) -> Config:
    d, h = MODELS[name]
    return two_layers("sigmoid", "kl", d=d, h=h, rho_hat="ema", dtype=dtype, **rest)


def fresh(config: Config, device: str, state: State | None = None) -> Engine:
    engine = make_engine(config, parameters_for(config), device)
    if state is not None:
        set_back(engine, state)
    return engine


def batches_of(config: Config, sizes: Sequence[int], weighted: bool = False) -> list[Batch]:
    d = config.n_features
    return [(data(n, d, seed), weights_for(n, seed) if weighted else None) for seed, n in enumerate(sizes)]


def never_recorded(config: Config, device: str, batches: Sequence[Batch]) -> list[State]:
    """The state after each step, each taken by an engine of its own: nothing is recorded and no scratch is old."""
    states: list[State] = []
    for X, w in batches:
        engine = fresh(config, device, states[-1] if states else None)
        engine.step(X, w)
        states.append(state_of(engine))
    return states


# --- steps that are recorded and replayed ---

SIZES = {
    "one size": [64] * 5,
    "two sizes in turn": [64, 40, 64, 40, 64, 40, 64],
    "more sizes than are kept": [*range(70, 58, -1)] * 3,
    "larger scratch in between": [8, 8, 8, 300, 8, 8, 8, 300, 300],
}


@pytest.mark.parametrize("dtype", options.DTYPES)
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("case", sanitized(SIZES, "two sizes in turn"))
def test_replay_equals_eager(case: str, name: str, dtype: str, device: str) -> None:
    """A device runs the first step of a size, records the second and replays the record from then on."""
    config = model(name, dtype)
    batches = batches_of(config, SIZES[case], weighted=True)
    engine = fresh(config, device)
    for (X, w), expected in zip(batches, never_recorded(config, device, batches), strict=True):
        engine.step(X, w)
        assert_same_bits(state_of(engine), expected)


@pytest.mark.parametrize("optimizer", options.OPTIMIZERS)
def test_records_serve_another_state(optimizer: str, device: str) -> None:
    """What changes between steps is read when a record is replayed, not when it was made."""
    config = model("small", optimizer=optimizer)
    batches = batches_of(config, [40, 24, 11] * 2)
    first, used = fresh(config, device), fresh(config, device)
    start = state_of(first)
    for X, w in batches * 2:
        used.learning_rate = 0.5
        used.step(X, w)
    set_back(used, start)
    used.learning_rate = config.learning_rate
    for engine in (first, used):
        engine.reset_metrics()
        for X, w in batches:
            engine.step(X, w)
    assert_same_bits(state_of(used), state_of(first))
    assert used.metric_sums() == first.metric_sums()


def test_a_record_takes_the_learning_rate_of_its_step(device: str) -> None:
    config = model("small", optimizer="sgd")
    engine = fresh(config, device)
    X = data(20, config.n_features)
    moved = []
    for rate in (0.01, 0.01, 0.01, 0.0, 0.02):
        engine.learning_rate = rate
        before = engine.get("W1")
        engine.step(X)
        moved.append(np.abs(engine.get("W1") - before).max())
    assert moved[3] == 0
    assert all(moved[i] > 0 for i in (0, 1, 2, 4))


def test_an_epoch_equals_its_steps(device: str) -> None:
    config = model("large")
    X = data(330, config.n_features).astype(np.float32)
    order = np.random.default_rng(3).permutation(len(X))
    whole, single_steps = fresh(config, device), fresh(config, device)
    for _ in range(3):
        whole.run_epoch(X, order, 64)
        for first in range(0, len(X), 64):
            single_steps.step(X[order[first : first + 64]])
    assert_same_bits(state_of(whole), state_of(single_steps))


@pytest.mark.parametrize("solver", ["adam", "momentum", "lbfgs"])
def test_the_same_seed_gives_the_same_bits(solver: str, device: str) -> None:
    X = data(500, 30).astype(np.float32)

    def fit(seed: int) -> dict[str, np.ndarray]:
        sae = SparseAutoencoder(
            20, solver=solver, batch_size=64, max_epochs=4, random_state=seed, device=device, verbose=False
        ).fit(X)
        return sae._engine.get_parameters() | {"loss": np.array(sae.history_["loss"])}

    first = fit(7)
    assert_same_bits(fit(7), first)
    assert not np.array_equal(fit(8)["W1"], first["W1"])


# --- memory that was used before ---

OUTPUTS: dict[str, Callable[[Engine], tuple[Callable[..., np.ndarray], int]]] = {
    "encode": lambda engine: (engine.encode, engine.config.n_features),
    "decode": lambda engine: (engine.decode, engine.code_width),
    "reconstruct": lambda engine: (engine.reconstruct, engine.config.n_features),
}


@pytest.mark.parametrize("dtype", options.DTYPES)
@pytest.mark.parametrize("rows", sanitized([0, 1, 33, 1024, 1025], 33))
@pytest.mark.parametrize("output", OUTPUTS)
def test_every_output_is_written(output: str, rows: int, dtype: str, device: str) -> None:
    engine = fresh(model("small", dtype), device)
    call, width = OUTPUTS[output](engine)
    X = data(rows, width).astype(dtype)
    expected = call(X)
    guarded = np.full((rows + 2, expected.shape[1]), np.nan, dtype)
    assert call(X, out=guarded[1:-1]) is not None
    np.testing.assert_array_equal(guarded[1:-1], expected)
    assert np.isfinite(expected).all()
    assert np.isnan(guarded[[0, -1]]).all(), "rows beside the output were written"


@pytest.mark.parametrize("dtype", options.DTYPES)
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("poison", [np.inf, -np.inf, np.nan])
def test_a_bad_batch_leaves_nothing_in_scratch(poison: float, name: str, dtype: str, device: str) -> None:
    """A larger batch full of infinities is refused; a smaller one after it finds its memory as if it were new."""
    config = model(name, dtype)
    engine = fresh(config, device)
    X = data(40, config.n_features)
    bad = np.full((300, config.n_features), poison, dtype)
    with pytest.raises(ValueError, match="X: row 0 contains NaN or infinity"):
        engine.step(bad)
    for call in (engine.gradient, engine.evaluate):
        with pytest.raises(ValueError, match="X: row 0 contains NaN or infinity"):
            call(bad)
    engine.encode(bad), engine.reconstruct(bad), engine.score(bad)
    assert engine.steps == 0
    untouched = fresh(config, device)
    for small in (40, 3, 1):
        assert engine.gradient(X[:small]) == untouched.gradient(X[:small])
        for output in OUTPUTS.values():
            (call, width), (again, _) = output(engine), output(untouched)
            np.testing.assert_array_equal(call(data(small, width)), again(data(small, width)))
        np.testing.assert_array_equal(engine.score(X[:small]), untouched.score(X[:small]))
        engine.step(X[:small])
        untouched.step(X[:small])
    assert_same_bits(state_of(engine), state_of(untouched))


# --- odd sizes ---

ODD = (1, 2, 31, 33, 63, 65, 127, 129, 255, 257)
#: Every pair of rows and features, of rows and units, of features and units.
PAIRWISE = [(ODD[i], ODD[j], ODD[(i + j) % len(ODD)]) for i in range(len(ODD)) for j in range(len(ODD))]


def test_all_pairs_of_odd_sizes_are_there() -> None:
    for first, second in ((0, 1), (0, 2), (1, 2)):
        assert len({(case[first], case[second]) for case in PAIRWISE}) == len(ODD) ** 2


@pytest.mark.parametrize("dtype", options.DTYPES)
@pytest.mark.parametrize(("rows", "d", "h"), PAIRWISE)
def test_odd_sizes(rows: int, d: int, h: int, dtype: str, device: str) -> None:
    """Outputs, cost, gradient, and two steps of momentum, which keep a rounding error what it is."""
    config = two_layers("sigmoid", "kl", d=d, h=h, dtype=dtype, optimizer="momentum")
    parameters = parameters_for(config)
    check_gradient(config, device, rows, weighted=True, parameters=parameters)
    check_outputs(config, device, rows)
    engine, (exact, plain) = make_engine(config, parameters, device), references(config, parameters)
    for seed in range(2):
        X, w = data(rows, d, seed), weights_for(rows, seed)
        for twin in (engine, exact, plain):
            twin.step(X, w)
    for name, value in exact.parameters.items():
        assert_near(name, engine.get(name), value, plain.parameters[name], dtype)


@pytest.mark.gpu_sanitize
@pytest.mark.parametrize(("rows", "d", "h"), [(1, 1, 1), (33, 31, 65), (129, 127, 33)])
def test_odd_sizes_under_the_sanitizer(rows: int, d: int, h: int, device: str) -> None:
    test_odd_sizes(rows, d, h, "float32", device)


# --- too little memory ---


def bytes_said(error: pytest.ExceptionInfo[MemoryError]) -> tuple[int, int]:
    match = re.fullmatch(r"could not allocate (\d+) bytes; (\d+) bytes are free", str(error.value))
    assert match is not None, str(error.value)
    return int(match[1]), int(match[2])


def test_a_model_that_does_not_fit_says_the_bytes(device: str) -> None:
    units = 2**36
    bystander = fresh(model("small"), device)
    X = data(20, 7)
    with pytest.raises(MemoryError) as caught:
        Engine(Config(3, (LayerConfig(units), LayerConfig(3))), device)
    asked, free = bytes_said(caught)
    assert asked >= 7 * 4 * units  # 3 inputs, 3 outputs and a bias of 4 bytes for each unit
    assert 0 < free < asked
    bystander.step(X)
    untouched = fresh(model("small"), device)
    untouched.step(X)
    assert_same_bits(state_of(bystander), state_of(untouched))


def test_a_batch_that_does_not_fit_leaves_the_engine(device: str) -> None:
    """The activations of 10^9 rows at once; later steps find the engine as it was."""
    config = Config(4, (LayerConfig(4096, penalty="kl"), LayerConfig(4)))
    rows = 10**9
    engine = make_engine(config, parameters_for(config), device, full_batch_rows=rows)
    untouched = make_engine(config, parameters_for(config), device)
    X = data(50, 4).astype(np.float32)
    engine.step(X)
    untouched.step(X)
    many = np.broadcast_to(X[:1], (rows, 4))  # which takes no memory of the host
    for call in (engine.step, engine.gradient, engine.evaluate):
        with pytest.raises(MemoryError) as caught:
            call(many)
        asked, free = bytes_said(caught)
        assert asked >= 4 * 4096 * rows
        assert 0 < free < asked
        for _ in range(3):
            engine.step(X)
            untouched.step(X)
        assert_same_bits(state_of(engine), state_of(untouched))


# --- Ctrl-C ---

# Follows PROBLEM of test_determinism.py, whose engine is on the CPU.
LONG_EPOCH = """
config = Config(40, (LayerConfig(120, "sigmoid", "kl"), LayerConfig(40)), rho_hat="ema")
engine = Engine(config, {device!r})
engine.set_parameters(initialize(config, "cs294a", np.random.default_rng(0)))
small, order = X[:10], np.arange(5_000_000) % len(X)
engine.step(small)
def train():
    engine.run_epoch(X, order, 100)
"""


def test_an_interrupted_epoch_has_whole_steps(device: str) -> None:
    script = LONG_EPOCH.format(device=device)
    assert "engine.step(small)" in INTERRUPTED
    for _ in range(2):  # a busy machine gets a second try
        seconds, result = interrupt(script, 0.5, 2)
        assert result["finite"]
        assert result["usable"]
        if seconds < 1:
            break
    assert seconds < 1
    steps = result["steps"]
    assert steps > 1
    again = report(
        script
        + f"engine.run_epoch(X, order[: 100 * {steps - 1}], 100)\n"
        + "print(json.dumps([engine.steps, digest_of_state(engine)]))",
        timeout=300,
    )
    assert again == [steps, result["state"]]


# --- many at once ---


def test_engines_of_many_sizes_work_at_once(device: str, threads: None) -> None:
    """Some are made, record and train while others encode; each gets the bits that it gets alone."""
    fastsae.set_num_threads(2)
    shapes = [(7, 5), (64, 25), (33, 130), (129, 31), (200, 300), (65, 65)]

    def work(number: int) -> tuple[State, np.ndarray]:
        d, h = shapes[number % len(shapes)]
        config = two_layers("sigmoid", "kl", d=d, h=h, rho_hat="ema")
        engine = make_engine(config, parameters_for(config, number), device)
        X = data(200, d, number).astype(np.float32)
        for _ in range(3):
            engine.run_epoch(X, None, 48)
            code = engine.encode(X)
        return state_of(engine), code

    count = 2 * len(shapes)
    expected = [work(number) for number in range(count)]
    start, results = threading.Barrier(count), {}

    def run(number: int) -> None:
        start.wait()
        results[number] = work(number)

    callers = [threading.Thread(target=run, args=(number,)) for number in range(count)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert len(results) == count
    for number, (state, code) in enumerate(expected):
        assert_same_bits(results[number][0], state)
        np.testing.assert_array_equal(results[number][1], code)


def test_a_run_keeps_its_weights(device: str) -> None:
    """Other weights that a thread brings while a run lets it in are its own."""
    config = model("large")
    X = data(2000, config.n_features).astype(np.float32)
    alone, watched = fresh(config, device), fresh(config, device)
    alone.run_epoch(X, None, 10, weights_for(len(X), 1))
    expected = alone.evaluate(X, weights_for(len(X), 2))
    done = threading.Event()

    def watch() -> None:
        while not done.is_set():
            watched.evaluate(X, weights_for(len(X), 2))

    watcher = threading.Thread(target=watch)
    watcher.start()
    watched.run_epoch(X, None, 10, weights_for(len(X), 1))
    done.set()
    watcher.join()
    assert_same_bits(state_of(watched), state_of(alone))
    assert watched.evaluate(X, weights_for(len(X), 2)) == expected


# --- the switch of conftest.py ---


@pytest.mark.skipif("cuda" in DEVICES, reason="there is a GPU")
def test_a_gpu_that_is_required_and_missing_is_a_failure() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "--collect-only", "-q", Path(__file__).with_name("test_devices.py")],
        env={**os.environ, "FASTSAE_REQUIRE_CUDA": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode != 0
    reason = fastsae.cuda_unavailable_reason()
    assert reason
    assert reason in done.stdout + done.stderr
