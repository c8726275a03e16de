"""The sparse code: the same bits for any number of threads, and after a training is taken up again."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from test_determinism import bits
from test_sparse_code_parity import MODELS, make_engine, sized, start
from test_sparse_code_reference import CASES, data, make

import fastsae
from fastsae import Engine
from fastsae import config as options

THREADS = (1, 2, 3)
# features, latents, outputs, k, rows of a batch: some latents have long lists, rows are in several tiles, and the last
# is large enough for a selection from rounded scores.
SIZES = [(5, 11, 5, 3, 7), (33, 1031, 33, 17, 300), (64, 300, 48, 40, 1100), (130, 2100, 20, 3, 260)]


def problem(model: str, size: tuple[int, ...], **rest: Any) -> tuple[Any, ...]:
    config = sized(model, size, learning_rate=0.01, **rest)
    values, rng = start(config), np.random.default_rng(1)
    X, y = rng.normal(size=(2 * size[-1], size[0])), rng.normal(size=(2 * size[-1], size[2]))
    X[:, 0] += 2.0  # some latents fire in most rows
    return config, values, X, y


@pytest.mark.parametrize("dtype", options.DTYPES)
@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("model", MODELS)
def test_training_does_not_depend_on_threads(
    model: str, size: tuple[int, ...], dtype: str, device: str, threads: None
) -> None:
    config, values, X, y = problem(model, size, dtype=dtype)
    order, weights = np.random.default_rng(0).permutation(len(X)), np.linspace(0.5, 2.0, len(X))
    results = []
    for count in THREADS:
        fastsae.set_num_threads(count)
        engine = make_engine(config, values, device, 0)
        for _ in range(3):
            engine.run_epoch(X, order, size[-1], weights, targets=y)
        assert engine.steps == 6
        state = {name: engine.get(name).tobytes() for name in engine.state_names()}
        results.append(
            (state, engine.metric_sums(), engine.gradient(X, targets=y), bits(engine), engine.evaluate(X, targets=y))
        )
    assert all(result == results[0] for result in results[1:])


@pytest.mark.parametrize("dtype", options.DTYPES)
@pytest.mark.parametrize("model", MODELS)
def test_inference_does_not_depend_on_threads(model: str, dtype: str, device: str, threads: None) -> None:
    config, values, X, y = problem(model, (33, 515, 20, 9, 1500), dtype=dtype)
    engine = make_engine(config, values, device, 0)
    engine.step(X, targets=y)
    results = []
    for count in THREADS:
        fastsae.set_num_threads(count)
        code = engine.encode_sparse(X)
        outputs = [engine.encode(X), engine.reconstruct(X), engine.score(X, y), *code, engine.decode_sparse(*code)]
        results.append([output.tobytes() for output in outputs])
    assert all(result == results[0] for result in results[1:])


def pickled(engine: Engine, device: str) -> Engine:
    return pickle.loads(pickle.dumps(engine))


def copied(engine: Engine, device: str) -> Engine:
    other = Engine(engine.config, device)
    for name in engine.state_names():
        other.set(name, engine.get(name))
    other.steps = engine.steps
    return other


@pytest.mark.parametrize("again", [pickled, copied])
@pytest.mark.parametrize("case", CASES)
def test_resume(case: str, again: Callable[[Engine, str], Engine], device: str) -> None:
    """All that training continues from is in the state: counters, moments and the threshold too."""
    config = make(**CASES[case], learning_rate=0.01)
    whole = make_engine(config, start(config), device, 0)
    X, weights, targets = data(config, n=40)
    for first in range(0, 20, 5):
        part = slice(first, first + 5)
        whole.step(X[part], weights[part], targets=None if targets is None else targets[part])
    resumed = again(whole, device)
    for engine in (whole, resumed):
        engine.run_epoch(X[20:], None, 5, weights[20:], targets=None if targets is None else targets[20:])
        engine.gradient(X, targets=targets)
    assert resumed.steps == whole.steps == 8
    assert bits(resumed) == bits(whole)


@pytest.mark.parametrize("model", MODELS)
def test_runs_are_repeatable(model: str, device: str) -> None:
    """Scratch memory that was used for other batches leaves no trace."""
    config = make(**MODELS[model], learning_rate=0.01)
    clean, used = (make_engine(config, start(config), device, 0) for _ in range(2))
    X, *_ = data(config, n=50)
    used.gradient(10 * data(config, 5, 300)[0])
    used.evaluate(data(config, 6, 30)[0])
    used.encode(data(config, 7, 2000)[0])
    used.score(data(config, 8, 300)[0])
    for engine in (clean, used):
        engine.run_epoch(X, None, 12)
    names = clean.state_names()
    assert [clean.get(name).tobytes() for name in names] == [used.get(name).tobytes() for name in names]
