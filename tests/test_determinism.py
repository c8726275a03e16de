"""The same bits for any number of threads; forks, worker processes and Ctrl-C."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from typing import Any

import numpy as np
import pytest
from test_engine import python
from test_parity import D, data, make_engine, parameters_for, two_layers, weights_for

import fastsae
from fastsae import Engine
from fastsae import config as options

THREADS = (1, 2, 3, 8)

# (features, units, rows of a batch) whose products are cut along rows, along columns, and in both.
SHAPES = [(7, 5, 11), (200, 77, 333), (64, 25, 1000), (301, 530, 300)]


def bits(engine: Engine) -> dict[str, bytes]:
    return {name: engine.get(name).tobytes() for name in engine.names()}


# --- threads ---


@pytest.mark.parametrize("dtype", options.DTYPES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_training_does_not_depend_on_threads(
    shape: tuple[int, int, int], dtype: str, device: str, threads: None
) -> None:
    """20 steps and the gradient of the whole; also with the rows of float64 that float32 gathers."""
    d, h, rows = shape
    config = two_layers("sigmoid", "kl", d=d, h=h, rho_hat="ema", dtype=dtype)
    X, w = data(2 * rows, d), weights_for(2 * rows)
    order = np.random.default_rng(0).permutation(len(X))
    results = []
    for count in THREADS:
        fastsae.set_num_threads(count)
        engine = make_engine(config, parameters_for(config), device)
        for _ in range(10):
            engine.run_epoch(X, order, rows, w)
        assert engine.steps == 20
        trained = bits(engine), engine.metric_sums()
        results.append((trained, engine.gradient(X), bits(engine), engine.evaluate(X, w)))
    assert all(result == results[0] for result in results[1:])


@pytest.mark.parametrize("dtype", options.DTYPES)
@pytest.mark.parametrize("tied", [False, True])
def test_inference_does_not_depend_on_threads(tied: bool, dtype: str, device: str, threads: None) -> None:
    config = two_layers("tanh", "none", d=64, h=300, tied=tied, dtype=dtype)
    engine, X = make_engine(config, parameters_for(config), device), data(1500, 64)
    results = []
    for count in THREADS:
        fastsae.set_num_threads(count)
        results.append([f(X).tobytes() for f in (engine.encode, engine.reconstruct, engine.score)])
    assert all(result == results[0] for result in results[1:])


def test_runs_are_repeatable(device: str) -> None:
    """Scratch memory that was used for other batches leaves no trace."""
    config = two_layers("tanh", "kl", rho_hat="ema")
    clean, used = (make_engine(config, parameters_for(config), device) for _ in range(2))
    used.gradient(data(300, D, 5))
    used.evaluate(data(30, D, 6))
    used.score(data(300, D, 7))
    for engine in (clean, used):
        engine.run_epoch(data(50, D), None, 12)
    assert bits(clean) == bits(used)


@pytest.mark.parametrize("dtype", options.DTYPES)
def test_chunks_of_whole_blocks_encode_alike(dtype: str, device: str) -> None:
    """Inference works in blocks of 1024 rows, so that chunks of whole blocks have the same bits."""
    config = two_layers(d=33, h=65, dtype=dtype)
    engine, X = make_engine(config, parameters_for(config), device), data(3 * 1024 + 100, 33).astype(dtype)
    whole = engine.encode(X), engine.reconstruct(X), engine.score(X)
    for chunk in (1024, 2048):
        parts = [X[first : first + chunk] for first in range(0, len(X), chunk)]
        for f, expected in zip((engine.encode, engine.reconstruct, engine.score), whole, strict=True):
            np.testing.assert_array_equal(np.concatenate([f(part) for part in parts]), expected)


def test_16_threads_encode_at_once(device: str, threads: None) -> None:
    """Each caller gets the bits that a single thread gets, whatever the others do."""
    fastsae.set_num_threads(1)
    config = two_layers(d=40, h=120)
    engine = make_engine(config, parameters_for(config), device)
    inputs = [data(100 + 300 * i, 40, i).astype(np.float32) for i in range(16)]
    expected = [(engine.encode(X), engine.score(X)) for X in inputs]
    fastsae.set_num_threads(4)
    start, wrong = threading.Barrier(16), []

    def work(i: int) -> None:
        out = np.empty_like(expected[i][0])
        start.wait()
        for _ in range(5):
            engine.encode(inputs[i], out=out)
            if not np.array_equal(out, expected[i][0]) or not np.array_equal(engine.score(inputs[i]), expected[i][1]):
                wrong.append(i)

    callers = [threading.Thread(target=work, args=(i,)) for i in range(16)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert not wrong


def test_engines_train_in_threads_at_once(device: str, threads: None) -> None:
    fastsae.set_num_threads(2)
    config = two_layers("sigmoid", "kl", d=50, h=40)
    X = data(400, 50).astype(np.float32)

    def train() -> dict[str, bytes]:
        engine = make_engine(config, parameters_for(config), device)
        engine.run_epoch(X, None, 100)
        return bits(engine)

    expected, results = train(), []
    callers = [threading.Thread(target=lambda: results.append(train())) for _ in range(6)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert len(results) == 6
    assert all(result == expected for result in results)


# --- processes ---

PROBLEM = """
import hashlib, json, os, sys, time
import numpy as np
import fastsae
from fastsae import Config, Engine, LayerConfig
from fastsae.initializers import initialize

def make(d=40, h=120, **rest):
    config = Config(d, (LayerConfig(h, "sigmoid", "kl"), LayerConfig(d)), **rest)
    engine = Engine(config)
    engine.set_parameters(initialize(config, "cs294a", np.random.default_rng(0)))
    return engine

def digest(engine):
    return hashlib.sha256(b"".join(engine.get(name).tobytes() for name in engine.names())).hexdigest()

def digest_of_state(engine):
    return hashlib.sha256(b"".join(engine.get(name).tobytes() for name in engine.state_names())).hexdigest()

X = np.random.default_rng(1).random((1500, 40), dtype=np.float32)
"""


def report(script: str, timeout: float = 60, **environment: str) -> Any:
    """What a script prints, as JSON."""
    done = python(PROBLEM + script, timeout, **environment)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system has no fork")
def test_fork() -> None:
    """A child inherits an engine whose pool has threads that it does not have: it neither hangs nor errs."""
    result = report("""
fastsae.set_num_threads(3)
engine = make()
engine.run_epoch(X, None, 500)   # the pool runs
code = engine.encode(X)
sys.stdout.flush()
children = []
for i in range(3):
    child = os.fork()
    if child == 0:
        ok = np.array_equal(engine.encode(X), code)      # the inherited engine, in inference,
        engine.run_epoch(X, None, 500)                   # in training,
        fresh = make()                                   # and a new one
        fresh.run_epoch(X, None, 500)
        fresh.run_epoch(X, None, 500)
        os._exit(0 if ok and digest(fresh) == digest(engine) else 1)
    children.append(child)
codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
print(json.dumps({"codes": codes, "parent": bool(np.array_equal(engine.encode(X), code))}))
""")
    assert result == {"codes": [0, 0, 0], "parent": True}


def test_joblib_workers() -> None:
    """loky starts fresh processes, sends an engine by pickle and divides the processors among them."""
    result = report("""
from joblib import Parallel, delayed

def work(engine, X):
    engine.run_epoch(X, None, 500)
    return digest(engine), fastsae.get_num_threads(), os.environ.get("OMP_NUM_THREADS")

if __name__ == "__main__":
    engine = make()
    results = Parallel(n_jobs=2, backend="loky")(delayed(work)(engine, X) for _ in range(3))
    engine.run_epoch(X, None, 500)
    print(json.dumps({"here": digest(engine), "there": results}))
""")
    assert [digest for digest, *_ in result["there"]] == 3 * [result["here"]]
    for _, threads_used, given in result["there"]:
        assert str(threads_used) == given


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"OMP_NUM_THREADS": "3"}, 3),
        ({"OMP_NUM_THREADS": "3", "FASTSAE_NUM_THREADS": "5"}, 5),
        ({"OMP_NUM_THREADS": "3", "FASTSAE_NUM_THREADS": ""}, 3),
        ({"OMP_NUM_THREADS": "many", "FASTSAE_NUM_THREADS": "0"}, None),
        ({"OMP_NUM_THREADS": "", "FASTSAE_NUM_THREADS": "-4"}, None),
    ],
)
def test_threads_of_the_environment(environment: dict[str, str], expected: int | None) -> None:
    """What is no positive number counts as not given: then the processors that the process may use."""
    result = report(
        "print(json.dumps([fastsae.get_num_threads(), len(os.sched_getaffinity(0))]))"
        if hasattr(os, "sched_getaffinity")
        else "print(json.dumps([fastsae.get_num_threads(), os.cpu_count()]))",
        **{"FASTSAE_NUM_THREADS": "", "OMP_NUM_THREADS": "", **environment},
    )
    if expected is None:
        assert 1 <= result[0] <= result[1]
    else:
        assert result[0] == expected


def test_set_num_threads_is_for_the_process(threads: None) -> None:
    fastsae.set_num_threads(7)
    assert fastsae.get_num_threads() == 7
    seen = []
    caller = threading.Thread(target=lambda: seen.append(fastsae.get_num_threads()))
    caller.start()
    caller.join()
    assert seen == [7]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="counts threads in /proc")
def test_pool_starts_late_and_has_the_size_asked_for() -> None:
    result = report("""
count = lambda: len(os.listdir("/proc/self/task"))
engine = make()
counts = [count()]
for threads in (1, 4, 2):
    fastsae.set_num_threads(threads)
    engine.run_epoch(X, None, 500)
    counts.append(count())
del engine
print(json.dumps([n - counts[0] for n in counts] + [count() - counts[0]]))
""")
    # The BLAS may start threads of its own where it is first used, but none with one thread.
    assert result == [0, 0, 3, 1, 0]


# --- Ctrl-C ---

INTERRUPTED = """
print("ready", flush=True)
try:
    train()
    print(json.dumps({"error": "was not interrupted"}), flush=True)
except KeyboardInterrupt:
    now = time.monotonic()
    finite = all(np.isfinite(engine.get(name)).all() for name in engine.state_names())
    steps = engine.steps
    state = digest_of_state(engine)
    engine.step(small)
    usable = engine.steps == steps + 1 and bool(np.isfinite(engine.encode(small)).all())
    print(json.dumps({"now": now, "steps": steps, "finite": finite, "usable": usable, "state": state}), flush=True)
"""

MANY_STEPS = """
engine, small = make(rho_hat="ema"), X[:10]
order = np.arange(5_000_000) % len(X)
def train():
    engine.run_epoch(X, order, 100)
"""

ONE_LARGE_STEP = """
engine = make(784, 2000, learning_rate=1e-4)
X = np.random.default_rng(1).random((20_000, 784), dtype=np.float32)
small = X[:10]
order = np.tile(np.arange(len(X)), 20)
def train():
    engine.run_epoch(X, order, len(X))
"""

LONG_INFERENCE = """
engine, small = make(784, 2000), np.zeros((10, 784), np.float32)
many = np.broadcast_to(np.random.default_rng(1).random((1, 784), dtype=np.float32), (100_000, 784))
def train():
    while True:
        engine.score(many)
"""


def interrupt(script: str, after: float, threads_used: int) -> tuple[float, dict[str, Any]]:
    """Seconds from SIGINT to KeyboardInterrupt, and what the script reports."""
    with subprocess.Popen(
        [sys.executable, "-c", PROBLEM + script + INTERRUPTED],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "FASTSAE_NUM_THREADS": str(threads_used)},
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n", process.communicate()[1]
            time.sleep(after)
            sent = time.monotonic()  # one clock for all processes
            process.send_signal(signal.SIGINT)
            out, errors = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == 0, errors
    result = json.loads(out)
    return result["now"] - sent, result


@pytest.mark.parametrize("threads_used", [1, 2])
@pytest.mark.parametrize("script", [MANY_STEPS, ONE_LARGE_STEP, LONG_INFERENCE], ids=["many", "large", "inference"])
def test_interrupt(script: str, threads_used: int) -> None:
    """Within a second, with finite parameters, and the engine goes on. A busy machine gets a second try."""
    for _ in range(2):
        seconds, result = interrupt(script, 0.5, threads_used)
        assert result["finite"]
        assert result["usable"]
        if seconds < 1:
            break
    assert seconds < 1


def test_interrupted_epoch_has_whole_steps() -> None:
    """The state is that of the steps that were finished: a run of exactly so many has the same bits."""
    _, result = interrupt(MANY_STEPS, 0.3, 2)
    assert result["steps"] > 0
    again = report(
        MANY_STEPS
        + f"engine.run_epoch(X, order[: 100 * {result['steps']}], 100)\n"
        + "print(json.dumps([engine.steps, digest_of_state(engine)]))"
    )
    assert again == [result["steps"], result["state"]]


def test_interrupt_that_a_handler_takes() -> None:
    """A handler that does not raise lets the epoch go on to its end."""
    result = report("""
import signal, threading
hits = []
signal.signal(signal.SIGINT, lambda *_: hits.append(time.monotonic()))
engine = make()
start = time.monotonic()
engine.run_epoch(X, np.arange(100_000) % len(X), 1000)
steps = int(100 * max(1, 1.5 / (time.monotonic() - start)))   # of about 1.5 seconds
order = np.arange(1000 * steps) % len(X)
threading.Timer(0.2, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
engine.run_epoch(X, order, 1000)
end = time.monotonic()
print(json.dumps([len(hits), engine.steps == 100 + steps, hits[0] < end - 0.05 if hits else None]))
""")
    assert result == [1, True, True]
