"""Learning rates that change from step to step: formulas, where steps are counted, resuming in the middle."""

from __future__ import annotations

import copy
import itertools
import math
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_clipping import BY_LENGTH
from test_parity import BASE_MODELS, D, N, check_training, data, make_engine, parameters_for, two_layers

import fastsae
from fastsae import DeepAutoencoder, Engine, SparseAutoencoder, StackedClassifier, sweep, trainer
from fastsae import config as options_of
from fastsae.reference.schedules import share
from fastsae.schedules import ENDING, SCHEDULES, steps_of

#: One of each, so short that 50 steps see all of it.
CASES: dict[str, dict[str, Any]] = {
    "warm-up": {"lr_warm_up": 20},
    "cosine": {"lr_schedule": "cosine", "lr_total_steps": 40, "lr_final": 0.1},
    "cosine after a warm-up": {"lr_schedule": "cosine", "lr_total_steps": 45, "lr_warm_up": 10},
    "linear": {"lr_schedule": "linear", "lr_total_steps": 40, "lr_decay_steps": 15, "lr_final": 0.1},
    "linear after a warm-up": {"lr_schedule": "linear", "lr_total_steps": 47, "lr_warm_up": 10},
    "step": {"lr_schedule": "step", "lr_step_size": 7, "lr_gamma": 0.5},
    "step after a warm-up": {"lr_schedule": "step", "lr_step_size": 15, "lr_gamma": 0.3, "lr_warm_up": 9},
}


def rows(n: int = 60) -> np.ndarray:
    return np.random.default_rng(0).uniform(0.05, 0.95, (n, D)).astype(np.float32)


def make(**options: Any) -> SparseAutoencoder:
    small = {"n_hidden": 4, "max_epochs": 4, "batch_size": 16, "learning_rate": 0.02, "random_state": 0}
    return SparseAutoencoder(**{**small, "verbose": False, **options})


def state(model: Any) -> list[bytes]:
    return [model._engine.get(name).tobytes() for name in model._engine.state_names()]


def shares(count: int, **options: Any) -> list[float]:
    config = two_layers(**options)
    return [share(config, t) for t in range(1, count + 1)]


# --- the formula ---


def test_every_schedule_has_a_case() -> None:
    assert {case.get("lr_schedule", "constant") for case in CASES.values()} == set(SCHEDULES)


def test_golden_shares() -> None:
    assert shares(4) == [1.0] * 4
    assert shares(6, lr_warm_up=4) == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]
    assert shares(6, lr_warm_up=4, lr_start=0.0) == [0.0, 0.25, 0.5, 0.75, 1.0, 1.0]
    assert shares(4, lr_warm_up=2, lr_start=0.5) == [0.5, 0.75, 1.0, 1.0]
    assert shares(4, lr_warm_up=2, lr_start=1.0) == [1.0] * 4
    assert shares(6, lr_schedule="step", lr_step_size=2, lr_gamma=0.5) == [1.0, 1.0, 0.5, 0.5, 0.25, 0.25]
    assert shares(5, lr_schedule="step", lr_step_size=2, lr_gamma=0.5, lr_warm_up=2) == [0.5, 1.0, 1.0, 1.0, 0.5]
    # (1 + cos) / 2 at 0, 60, 90, 120 and 180 degrees
    cosine = shares(8, lr_schedule="cosine", lr_total_steps=6)
    assert [cosine[i] for i in (0, 2, 3, 4, 6, 7)] == pytest.approx([1, 0.75, 0.5, 0.25, 0, 0], abs=1e-15)
    half = shares(8, lr_schedule="cosine", lr_total_steps=6, lr_final=0.5)
    assert half == pytest.approx([0.5 + value / 2 for value in cosine], abs=1e-15)
    with_warm_up = shares(9, lr_schedule="cosine", lr_total_steps=8, lr_warm_up=2)
    assert with_warm_up == pytest.approx([0.5, 1.0, *cosine[:7]], abs=1e-15)
    line: dict[str, Any] = {"lr_schedule": "linear", "lr_total_steps": 6}
    assert shares(8, **line, lr_decay_steps=4) == [1.0, 1.0, 1.0, 0.75, 0.5, 0.25, 0.0, 0.0]
    assert shares(8, **line, lr_decay_steps=4, lr_final=0.5) == [1.0, 1.0, 1.0, 0.875, 0.75, 0.625, 0.5, 0.5]
    assert shares(7, **line, lr_warm_up=2) == [0.5, 1.0, 1.0, 0.75, 0.5, 0.25, 0.0]
    assert [share(two_layers(lr_schedule="linear", lr_decay_steps=4, lr_warm_up=2), t, 3) for t in (2, 3)] == [1, 0.25]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_the_engine_takes_the_rate_of_each_step(optimizer: str, case: str, device: str) -> None:
    """Read from what a step does: gradient descent moves by rate times gradient, AdamW's decay by rate times decay."""
    decay = 0.3 if optimizer == "adamw" else 0.0
    config = two_layers(optimizer=optimizer, weight_decay=decay, dtype="float64", **CASES[case])
    engine, X = make_engine(config, parameters_for(config), device), data(N, D)
    if optimizer == "adamw":  # rows of 0 and biases whose slope is 0: W1 has no gradient, and only decays
        X = np.zeros_like(X)
    for t in range(1, 51):
        before = engine.get("W1")
        engine.gradient(X)
        moved_by = decay * before if optimizer == "adamw" else engine.get("gradient.W1")
        engine.step(X)
        rate = (before - engine.get("W1")).sum() / moved_by.sum()
        assert rate == pytest.approx(config.learning_rate * share(config, t), rel=1e-9, abs=1e-14), t


@pytest.mark.parametrize("dtype", options_of.DTYPES)
@pytest.mark.parametrize("model", BASE_MODELS)
@pytest.mark.parametrize(
    ("case", "optimizer", "longest"),
    [
        (case, names[(i + j) % len(names)], longest)
        for j, (longest, names) in enumerate(((None, options_of.OPTIMIZERS), (0.05, BY_LENGTH)))
        for i, case in enumerate(CASES)
    ],
)
def test_parity(case: str, optimizer: str, longest: float | None, model: str, dtype: str, device: str) -> None:
    config = BASE_MODELS[model](optimizer=optimizer, max_grad_norm=longest, dtype=dtype, **CASES[case])
    check_training(config, device, weighted=True)


@pytest.mark.parametrize("case", CASES)
def test_many_steps_of_one_call_are_those_of_many_calls(case: str, device: str) -> None:
    config = two_layers("sigmoid", "kl", **CASES[case])
    one, many = (make_engine(config, parameters_for(config), device) for _ in range(2))
    X = data(N, D)
    for _ in range(6):
        one.run_epoch(X, None, 1)
        for row in X:
            many.step(row[None])
    for name in one.state_names():
        np.testing.assert_array_equal(one.get(name), many.get(name), err_msg=name)


# --- where the cosine ends ---


def test_steps_of() -> None:
    assert [steps_of(10, size, 3) for size in (1, 3, 10, 50, None)] == [30, 12, 3, 3, 3]


@pytest.mark.parametrize("name", ENDING)
@pytest.mark.parametrize("extra", [{}, {"validation_fraction": 0.25}, {"batch_size": None}])
def test_the_schedule_of_fit_ends_with_its_last_epoch(extra: dict[str, Any], name: str) -> None:
    X = rows()
    trained = 45 if "validation_fraction" in extra else 60
    total = steps_of(trained, extra.get("batch_size", 16), 4)
    one = make(lr_schedule=name, **extra).fit(X)
    assert one._engine.steps == one._engine.total_steps == total
    assert state(one) == state(make(lr_schedule=name, lr_total_steps=total, **extra).fit(X))
    assert state(one) != state(make(lr_schedule=name, lr_total_steps=total + 1, **extra).fit(X))


@pytest.mark.parametrize("name", ENDING)
def test_an_engine_must_be_told_where_the_schedule_ends(name: str, device: str) -> None:
    config = two_layers(lr_schedule=name)
    engine = make_engine(config, parameters_for(config), device)
    X = data(N, D)
    assert engine.total_steps is None
    for call in (engine.step, engine.run_epoch):
        with pytest.raises(ValueError, match=f"^lr_total_steps: lr_schedule='{name}' needs the number of all steps"):
            call(X)
    assert engine.steps == 0
    engine.gradient(X)  # takes no step
    for value in (0, -1, 1.5, "3", None, True):
        with pytest.raises(ValueError, match=r"^total_steps: expected"):
            engine.total_steps = value  # type: ignore[assignment]
    engine.total_steps = 5
    engine.step(X)
    told = make_engine(two_layers(lr_schedule=name, lr_total_steps=5), parameters_for(config), device)
    assert told.total_steps == 5
    told.step(X)
    copied = pickle.loads(pickle.dumps(engine))
    assert copied.total_steps == 5
    for one in (engine, copied):
        one.step(X)
    told.step(X)
    for tensor in told.state_names():
        np.testing.assert_array_equal(engine.get(tensor), told.get(tensor))
        np.testing.assert_array_equal(copied.get(tensor), told.get(tensor))


@pytest.mark.parametrize("name", ENDING)
def test_partial_fit_needs_the_end_of_the_schedule(name: str) -> None:
    X = rows()
    model = make(lr_schedule=name)
    with pytest.raises(ValueError, match=r"^lr_total_steps: expected an integer: partial_fit does not know"):
        model.partial_fit(X)
    assert not hasattr(model, "components_")
    model.set_params(lr_total_steps=16)
    for _ in range(4):
        model.partial_fit(X)
    assert state(model) == state(make(lr_schedule=name).fit(X))
    # Other schedules know no end.
    stepped = make(lr_schedule="step", lr_step_size=5, lr_warm_up=3)
    for _ in range(4):
        stepped.partial_fit(X)
    assert state(stepped) == state(clone_of(stepped).fit(X))


def clone_of(model: SparseAutoencoder) -> SparseAutoencoder:
    return SparseAutoencoder(**model.get_params())


@pytest.mark.parametrize(
    ("name", "value"), [("lr_schedule", "cosine"), ("lr_schedule", "step"), ("lr_warm_up", 3), ("max_grad_norm", 1.0)]
)
def test_lbfgs_refuses(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"^{name}: solver='lbfgs' finds the length of its steps itself"):
        make(solver="lbfgs", **{name: value}).fit(rows())


def test_a_cosine_must_be_longer_than_its_warm_up() -> None:
    with pytest.raises(ValueError, match=r"^lr_total_steps: expected more than lr_warm_up=9, got 9"):
        make(lr_schedule="cosine", lr_total_steps=9, lr_warm_up=9).fit(rows())
    with pytest.raises(ValueError, match=r"^lr_total_steps: expected more than lr_warm_up=9, got 9"):
        make(lr_schedule="linear", lr_total_steps=9, lr_warm_up=9).fit(rows())
    make(lr_schedule="step", lr_total_steps=9, lr_warm_up=9).fit(rows())  # which does not end


def test_steps_of_decay_without_a_line_or_too_many() -> None:
    with pytest.raises(ValueError, match=r"^lr_decay_steps: a number needs lr_schedule='linear', got 'cosine'"):
        make(lr_schedule="cosine", lr_decay_steps=3).fit(rows())
    line = {"lr_schedule": "linear", "lr_total_steps": 9, "lr_warm_up": 4}
    with pytest.raises(ValueError, match=r"^lr_decay_steps: expected at most lr_total_steps - lr_warm_up = 5, got 6"):
        make(**line, lr_decay_steps=6).fit(rows())
    assert state(make(**line, lr_decay_steps=5).fit(rows())) == state(make(**line).fit(rows()))


# --- resuming ---


@pytest.mark.parametrize("stop", [1, 6, 9])
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("solver", ["nesterov", "sign_sgd"])
def test_resume_in_the_middle(
    solver: str, case: str, stop: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An interrupt after any number of steps, in the middle of an epoch too: the same bits in the end."""
    X, options = rows(), {**CASES[case], "checkpoint": tmp_path / "model", "solver": solver}
    if "lr_total_steps" in options:
        options["lr_total_steps"] = None if stop == 6 else 14
    if "lr_decay_steps" in options:
        options["lr_decay_steps"] = 7
    whole = make(**{**options, "checkpoint": None}).fit(X)
    monkeypatch.setattr(trainer, "_MOST_BATCHES_PER_PIECE", 1)
    run, calls = Engine.run_epoch, itertools.count()

    def interrupted(self: Engine, *args: Any, **rest: Any) -> None:
        if next(calls) == stop:
            raise KeyboardInterrupt
        run(self, *args, **rest)

    model = make(**options)
    with monkeypatch.context() as patch:
        patch.setattr(Engine, "run_epoch", interrupted)
        with pytest.raises(KeyboardInterrupt):
            model.fit(X)
    assert model._engine.steps == stop
    loaded = fastsae.load(tmp_path / "model")
    for other in (loaded, copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert state(other.resume(X)) == state(whole)


def test_resume_with_more_epochs_has_the_longer_cosine() -> None:
    X = rows()
    model = make(lr_schedule="cosine", max_epochs=2).fit(X)
    model.set_params(max_epochs=4).resume(X)
    assert model._engine.total_steps == model._engine.steps == 16


@pytest.mark.parametrize("name", ["lr_schedule", "lr_warm_up", "lr_step_size", "lr_gamma", "lr_final", "max_grad_norm"])
def test_a_changed_option_is_refused(name: str) -> None:
    X, value = rows(), {"lr_schedule": "step", "lr_gamma": 0.5, "lr_final": 0.5, "max_grad_norm": 1.0}.get(name, 7)
    model = make().fit(X)
    before = state(model)
    with pytest.raises(ValueError, match=f"^{name}: expected"):
        model.set_params(**{name: value}).partial_fit(X)
    assert state(model) == before


# --- elsewhere ---


def test_each_part_of_a_deep_autoencoder_has_a_schedule_of_its_own() -> None:
    X = rows()
    options: dict[str, Any] = {"max_epochs": 3, "pretrain_epochs": 2, "batch_size": 16, "random_state": 0}
    deep = DeepAutoencoder((5, 3), lr_schedule="cosine", verbose=False, **options).fit(X)
    assert deep._engine.total_steps == deep._engine.steps == 12
    layer = deep._layer_alone(1)
    layer.set_params(verbose=False).fit(X)
    assert layer._engine.total_steps == layer._engine.steps == 8
    y = np.arange(60) % 2
    head = {"head_epochs": 5, "max_epochs": 3, "random_state": 0, "batch_size": 16, "verbose": False}
    classifier = StackedClassifier(make(), lr_schedule="cosine", **head).fit(X, y)
    assert (classifier._engine.total_steps, classifier._head._engine.total_steps) == (12, 20)


def test_a_sweep_over_schedules() -> None:
    X = rows()
    grid = [{"lr_schedule": "cosine"}, {"lr_schedule": "step", "lr_step_size": 3}, {"lr_warm_up": 5}]
    grid += [{"lr_schedule": "linear", "lr_decay_steps": 4}, {"solver": "sign_sgd", "lr_warm_up": 3}]
    grid += [{"max_grad_norm": 0.01}, {"weight_l1": 0.01}, {"scale": "minmax"}]
    common = {name: value for name, value in make().get_params().items() if name != "verbose"}
    models = sweep(grid, X, **common, verbose=False)
    for options, model in zip(grid, models, strict=True):
        assert state(model) == state(make(**options).fit(X))
    assert len({state(model)[0] for model in models}) == len(grid)


def test_a_cosine_ends_nearer_to_the_minimum() -> None:
    """Gradient descent with noise of batches: a rate that goes to 0 ends where the constant one does not get."""
    X = np.random.default_rng(1).normal(size=(400, 3)) @ np.random.default_rng(2).normal(size=(3, D))
    options = {"penalty": "none", "activation": "identity", "output_activation": "identity", "solver": "sgd"}
    options |= {"batch_size": 4, "max_epochs": 30, "learning_rate": 0.02, "dtype": "float64", "n_hidden": 2}
    loss = {name: make(**options, lr_schedule=name).fit(X).score(X) for name in ("constant", "cosine")}
    assert loss["cosine"] > loss["constant"]
    assert math.isfinite(loss["constant"])
