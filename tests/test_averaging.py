"""sign_sgd: what is learned is an average, x, and training goes on from y and z."""

from __future__ import annotations

import copy
import pickle
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file
from test_parity import (
    BASE_MODELS,
    D,
    N,
    Parameters,
    alternate,
    assert_near,
    data,
    make_engine,
    parameters_for,
    references,
    single,
    two_batches,
    two_layers,
)

import fastsae
from fastsae import Config, DeepAutoencoder, Engine, SparseAutoencoder
from fastsae import config as options_of
from fastsae.reference import OPTIMIZERS, SparseCode
from fastsae.sparse_code import SparseCodeConfig

MOMENTUM = 0.95


def averaging(model: str = "classic", **rest: Any) -> Config:
    return BASE_MODELS[model](**{"optimizer": "sign_sgd", "momentum": MOMENTUM, "lr_warm_up": 6, **rest})


def rows(n: int = 60) -> np.ndarray:
    return np.random.default_rng(0).uniform(0.05, 0.95, (n, D)).astype(np.float32)


def make(**options: Any) -> SparseAutoencoder:
    small = {"n_hidden": 4, "max_epochs": 4, "batch_size": 16, "learning_rate": 0.02, "random_state": 0}
    return SparseAutoencoder(**{**small, "solver": "sign_sgd", "verbose": False, **options})


def tensors(engine: Engine) -> Parameters:
    return {name: engine.get(name) for name in engine.state_names()}


def assert_same(a: Parameters, b: Parameters) -> None:
    assert list(a) == list(b)
    for name, value in a.items():
        np.testing.assert_array_equal(value, b[name], err_msg=name)


# --- the engine ---


@pytest.mark.parametrize("dtype", options_of.DTYPES)
@pytest.mark.parametrize("steps", [0, 1, 50])
@pytest.mark.parametrize("model", BASE_MODELS)
def test_parity_of_the_average(model: str, steps: int, dtype: str, device: str) -> None:
    config = averaging(model, dtype=dtype)
    parameters = parameters_for(config)
    exact, plain = references(config, parameters)
    engine = make_engine(config, parameters, device)
    for X, w in alternate(two_batches(D), steps):
        for one in (exact, plain):
            one.step(X, w)
        engine.step(X, w)
    before = tensors(engine)
    assert list(before) == [*parameters, *(f"first_moment.{name}" for name in parameters)]
    engine.averaged = True
    assert engine.averaged
    drift = plain.averages()
    for name, expected in exact.averages().items():
        assert_near(name, engine.get(name), expected, drift[name], dtype, trained=steps > 1)
        np.testing.assert_array_equal(engine.get(f"training.{name}"), before[name])
        assert steps < 2 or not np.array_equal(engine.get(name), before[name])
    assert engine.parameter_names() == list(parameters)
    np.testing.assert_array_equal(engine.get("first_moment.W1"), before["first_moment.W1"])
    outputs = engine.reconstruct(X) if steps else None
    engine.averaged = False
    assert_same(tensors(engine), before)
    if outputs is not None:
        assert not np.array_equal(outputs, engine.reconstruct(X)) or steps == 1


def test_three_sequences_agree_with_one_moment() -> None:
    """The recursion as it is published, with x, y and z each in memory, and weights by the square of the rate."""
    rng, rate, warm_up = np.random.default_rng(3), 0.02, 6
    config = averaging(learning_rate=rate, lr_warm_up=warm_up, weight_decay=0.0, dtype="float64")
    engine = make_engine(config, parameters_for(config), "cpu")
    x = {name: engine.get(name) for name in engine.parameter_names()}
    y, z, total = dict(x), dict(x), 0.0
    for t in range(1, 41):
        X = rng.uniform(0.1, 0.9, (N, D))
        engine.gradient(X)
        now = rate * min(1.0, t / warm_up)
        total += now**2
        for name in x:
            np.testing.assert_allclose(engine.get(name), y[name], rtol=0, atol=1e-13)
            z[name] = z[name] - now * np.sign(engine.get(f"gradient.{name}"))
            x[name] = (1 - now**2 / total) * x[name] + now**2 / total * z[name]
            y[name] = MOMENTUM * x[name] + (1 - MOMENTUM) * z[name]
        engine.step(X)
    engine.averaged = True
    for name, value in x.items():
        np.testing.assert_allclose(engine.get(name), value, rtol=0, atol=1e-13)


@pytest.mark.parametrize("dtype", options_of.DTYPES)
@pytest.mark.parametrize("activation", ["topk", "jump_relu"])
def test_average_of_a_sparse_code(activation: str, dtype: str, device: str) -> None:
    """Rows of W_dec are set to norm 1 where the next gradient is taken, and the average moves along, as in sparsify."""
    config = SparseCodeConfig(
        6, 20, activation=activation, k=4 if activation == "topk" else 32, optimizer="sign_sgd", dtype=dtype
    )
    rng = np.random.default_rng(7)
    drawn = {name: single(rng.uniform(-0.5, 0.5, shape)) for name, shape in config.parameter_shapes.items()}
    drawn |= {"threshold": np.abs(drawn["threshold"])} if "threshold" in drawn else {}
    engine, exact, plain = Engine(config, device), SparseCode(config), SparseCode(config, dtype)
    for model in (engine, exact, plain):
        getattr(model, "set_parameters" if model is engine else "set")(drawn)
    X = single(rng.normal(size=(40, 6)))
    for _ in range(20):
        for model in (engine, exact, plain):
            model.step(X)
    before = tensors(engine)
    np.testing.assert_allclose(np.linalg.norm(before["W_dec"], axis=1), 1, rtol=1e-5)
    engine.averaged = True
    drift = plain.averages()
    for name, expected in exact.averages().items():
        assert_near(name, engine.get(name), expected, drift[name], dtype, trained=True)
    assert not np.allclose(np.linalg.norm(engine.get("W_dec"), axis=1), 1, rtol=1e-5)
    engine.averaged = False
    assert_same(tensors(engine), before)


def test_no_step_is_taken_from_an_average(device: str) -> None:
    config = averaging()
    engine = make_engine(config, parameters_for(config), device)
    X = data(N, D).astype(np.float32)
    engine.step(X)
    engine.averaged = True
    before = tensors(engine)
    for call in (engine.step, engine.run_epoch):
        with pytest.raises(ValueError, match=r"^averaged: expected False to take steps, got True"):
            call(X)
    engine.gradient(X)  # of J at the average
    assert engine.steps == 1
    assert_same(tensors(engine), before)
    engine.averaged = False
    with pytest.raises(ValueError, match=r"no tensor is called 'training\.W1'"):
        engine.get("training.W1")


def test_other_optimizers_keep_no_average(device: str) -> None:
    for optimizer in options_of.OPTIMIZERS:
        engine = Engine(two_layers(optimizer=optimizer), device)
        assert engine.averaged is False
        engine.averaged = False
        if OPTIMIZERS[optimizer].averages:
            engine.averaged = True
            continue
        with pytest.raises(ValueError, match=r"^averaged: this optimizer keeps no average"):
            engine.averaged = True
        assert engine.averaged is False
    for value in (1, None, "yes"):
        with pytest.raises(ValueError, match=r"^averaged: expected True or False"):
            engine.averaged = value  # type: ignore[assignment]


@pytest.mark.parametrize("averaged", [False, True])
def test_a_parameter_that_is_set_starts_its_average_anew(averaged: bool, device: str) -> None:
    config = averaging(dtype="float64")
    engine = make_engine(config, parameters_for(config), device)
    X, new = data(N, D), parameters_for(config, seed=5)["W1"]
    for _ in range(3):
        engine.step(X)
    untouched = engine.get("first_moment.W2")
    engine.averaged = averaged
    engine.set("W1", new)
    engine.averaged = not averaged
    for name in ("W1", "first_moment.W1"):
        np.testing.assert_array_equal(engine.get(name), new)
    np.testing.assert_array_equal(engine.get("first_moment.W2"), untouched)


@pytest.mark.parametrize("averaged", [False, True])
def test_copies_go_on_with_the_same_bits(averaged: bool, device: str) -> None:
    config = averaging()
    engine = make_engine(config, parameters_for(config), device)
    X = data(N, D).astype(np.float32)
    for _ in range(5):
        engine.step(X)
    engine.averaged = averaged
    copies = [copy.deepcopy(engine), pickle.loads(pickle.dumps(engine))]
    for one in copies:
        assert one.averaged is averaged
        assert_same(tensors(one), tensors(engine))
    for one in (engine, *copies):
        one.averaged = False
        one.step(X)
        one.averaged = True
        assert_same(tensors(one), tensors(engine))


def test_readers_beside_a_switch() -> None:
    """Names and tensors may be read while another thread puts averages in and out: what was there, or an error."""
    config = averaging()
    engine = make_engine(config, parameters_for(config), "cpu")
    engine.step(data(N, D).astype(np.float32))
    y = engine.get("W1")
    engine.averaged = True
    x, wrong, done = engine.get("W1"), list[str](), threading.Event()

    def read() -> None:
        while not done.is_set():
            value = engine.get("W1")
            if not (np.array_equal(value, x) or np.array_equal(value, y)):
                wrong.append("neither")
            if "training.W1" in engine.names():
                try:
                    if not np.array_equal(engine.get("training.W1"), y):
                        wrong.append("not y")
                except ValueError:  # brought back in between
                    pass

    readers = [threading.Thread(target=read) for _ in range(3)]
    for reader in readers:
        reader.start()
    for i in range(400):
        engine.averaged = i % 2 == 0
    done.set()
    for reader in readers:
        reader.join()
    assert wrong == []


def test_a_switch_while_steps_are_taken() -> None:
    """It comes between two steps, where the next is refused, or after all: nothing steps from an average."""
    config = two_layers("relu", d=64, h=96, optimizer="sign_sgd", dtype="float64")
    X = data(20_000, 64)
    engine, twin = (make_engine(config, parameters_for(config), "cpu") for _ in range(2))
    raised: list[str] = []

    def train() -> None:
        try:
            engine.run_epoch(X, None, 40)
        except ValueError as error:
            raised.append(str(error))

    trainer = threading.Thread(target=train)
    trainer.start()
    while engine.steps < 5:
        pass
    engine.averaged = True
    trainer.join()
    steps = engine.steps
    assert raised == ["averaged: expected False to take steps, got True"] * (steps < 500)
    engine.averaged = False
    twin.run_epoch(X[: 40 * steps], None, 40)
    assert_same(tensors(engine), tensors(twin))


# --- estimators: the average after training, and whenever somebody looks ---


def test_a_trained_model_is_the_average(tmp_path: Path) -> None:
    X = rows()
    model = make().fit(X)
    engine = model._engine
    assert engine.averaged
    x, codes = engine.get("W1"), model.transform(X)
    np.testing.assert_array_equal(model.components_, x)
    model.save(tmp_path / "model")
    with safe_open(tmp_path / "model", framework="numpy") as file:
        np.testing.assert_array_equal(file.get_tensor("W1"), x)
    loaded = fastsae.load(tmp_path / "model")
    np.testing.assert_array_equal(loaded.transform(X), codes)
    assert_same(tensors(loaded._engine), tensors(engine))
    engine.averaged = False
    assert not np.array_equal(model.transform(X), codes)


def test_looking_changes_nothing() -> None:
    """Callbacks, validation and checkpoints see the average, and training goes on as if nobody had looked."""
    X, seen = rows(), []
    plain = make().fit(X)

    def look(entry: dict[str, float]) -> None:
        seen.append((model._engine.averaged, model.score(X)))

    model = make(callback=look)
    model.fit(X)
    assert [averaged for averaged, _ in seen] == [True] * 4
    assert seen[-1][1] == plain.score(X)
    assert_same(tensors(model._engine), tensors(plain._engine))
    held = make(validation_fraction=0.25, penalty="none", weight_decay=0.0)
    held.fit(X)
    _, held_out = np.split(np.random.default_rng([held._state.seed, 0]).permutation(60)[::-1], [45])
    expected = held._engine.evaluate(X[np.sort(held_out)])["loss"]
    assert held.history_["validation_loss"][-1] == pytest.approx(expected, rel=1e-6)


def test_pieces_and_the_end_of_training() -> None:
    X = rows()
    whole = make().fit(X)
    half = make(max_epochs=2).fit(X)
    half.set_params(max_epochs=4).resume(X)
    assert_same(tensors(half._engine), tensors(whole._engine))
    passes = make()
    for _ in range(4):
        passes.partial_fit(X)
        assert passes._engine.averaged
    assert_same(tensors(passes._engine), tensors(whole._engine))
    untrained = make(max_epochs=0).fit(X)
    np.testing.assert_array_equal(untrained._engine.get("training.W1"), untrained.components_)


def test_early_stopping_keeps_the_best_average() -> None:
    X = rows()
    seen: list[tuple[float, np.ndarray]] = []
    options = {"max_epochs": 40, "learning_rate": 0.3, "early_stopping": True, "n_iter_no_change": 2, "tol": 0.0}
    model = make(**options, callback=lambda entry: seen.append((entry["loss"], model.components_)) or False)
    model.fit(X)
    assert len(seen) < 40
    best = min(seen, key=lambda entry: entry[0])[1]
    np.testing.assert_array_equal(model.components_, best)
    for name in ("training.W1", "first_moment.W1"):  # from there it goes on
        np.testing.assert_array_equal(model._engine.get(name), best)


def test_lbfgs_goes_on_from_the_average_and_leaves_none_behind() -> None:
    X = rows()
    model = make(penalty="none").fit(X)
    before = model.score(X)
    model.set_params(solver="lbfgs", max_epochs=10).resume(X)
    assert model.score(X) > before
    for name in ("training.W1", "first_moment.W1"):
        np.testing.assert_array_equal(model._engine.get(name), model.components_)
    fresh = make(solver="lbfgs").fit(X)
    assert fresh._engine.config.optimizer == Config.optimizer


def test_parts_of_a_deep_model_begin_with_averages() -> None:
    X = rows()
    options: dict[str, Any] = {"pretrain_epochs": 2, "batch_size": 16, "random_state": 0, "verbose": False}
    deep = DeepAutoencoder((5, 3), solver="sign_sgd", max_epochs=0, **options).fit(X)
    first = deep._layer_alone(1).set_params(verbose=False).fit(X)
    np.testing.assert_array_equal(deep._engine.get("W1"), first.components_)
    np.testing.assert_array_equal(deep._engine.get("training.W1"), first.components_)


def test_damaged_files(tmp_path: Path) -> None:
    make().fit(rows()).save(tmp_path / "model")
    with safe_open(tmp_path / "model", framework="numpy") as file:
        metadata = file.metadata()
        stored = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    make(solver="adam").fit(rows()).save(tmp_path / "adam")
    with safe_open(tmp_path / "adam", framework="numpy") as file:
        other = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    short = {name: value for name, value in stored.items() if name != "training.W1"}
    nan = {**stored, "training.W1": np.full_like(stored["training.W1"], np.nan)}
    for changed, header, text in (
        (short, metadata, "'training.W1' is missing"),
        (nan, metadata, "'training.W1' holds NaN"),
        (stored, {**metadata, "averaged": "0"}, "'training.W1' is unknown"),
        (stored, {**metadata, "averaged": "true"}, "'averaged' is not of type int"),
        (other[1], {**other[0], "averaged": "1"}, "averaged: this optimizer keeps no average"),
    ):
        save_file(changed, tmp_path / "bad", header)
        with pytest.raises(ValueError, match=f"not a usable fastsae checkpoint.*{text}"):
            fastsae.load(tmp_path / "bad")


def test_momentum_must_allow_a_division() -> None:
    for value in (0.0, 0.4, 1.0):
        with pytest.raises(ValueError, match=r"^momentum: expected a number in \[0.5, 1\)"):
            make(momentum=value).fit(rows())


def test_it_learns() -> None:
    """Rows of a plane: the average comes nearer to it than the point that takes the steps."""
    X = np.random.default_rng(1).normal(size=(400, 2)) @ np.random.default_rng(2).normal(size=(2, D))
    options = {"activation": "identity", "output_activation": "identity", "penalty": "none", "weight_decay": 0.0}
    options |= {"n_hidden": 2, "max_epochs": 40, "learning_rate": 0.01, "dtype": "float64", "momentum": 0.9}
    model = make(**options).fit(X)
    averaged = model.score(X)
    engine = model._engine
    for name in engine.parameter_names():
        engine.set(name, engine.get(f"first_moment.{name}"))
    at_z = model.score(X)
    assert averaged > at_z
    assert -averaged < 0.05 * 0.5 * (X**2).sum(axis=1).mean()
