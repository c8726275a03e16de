"""The training loop: what an interruption leaves behind, and that going on gives the run never interrupted."""

from __future__ import annotations

import copy
import itertools
import os
import random
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fastsae
from fastsae import Engine, SparseAutoencoder, trainer

N, D, H = 50, 6, 4

# Every kind of state that must survive an interruption.
STATES: dict[str, dict[str, Any]] = {
    "adam": {},
    "adamw": {"solver": "adamw"},
    "momentum": {"solver": "momentum", "learning_rate": 0.1},
    "nesterov": {"solver": "nesterov", "learning_rate": 0.1},
    "sgd": {"solver": "sgd", "learning_rate": 0.1},
    "moving average": {"rho_hat": "ema", "rho_hat_decay": 0.9},
    "validation": {"validation_fraction": 0.3},
    "early stopping": {"early_stopping": True, "n_iter_no_change": 2, "tol": 0.02, "validation_fraction": 0.3},
    "tied float64": {"tied": True, "dtype": "float64"},
    "full batch": {"batch_size": None, "rho_hat": "full"},
    "no shuffle": {"shuffle": False},
    "generator": {"random_state": "generator"},
}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Small models are fastest on one thread, whatever else the machine does; no bit depends on it."""
    before = fastsae.get_num_threads()
    fastsae.set_num_threads(1)
    yield
    fastsae.set_num_threads(before)


def data(n: int = N, dtype: Any = np.float32) -> np.ndarray:
    return np.random.default_rng(0).uniform(0.05, 0.95, (n, D)).astype(dtype)


def make(**options: Any) -> SparseAutoencoder:
    small = {
        "n_hidden": H,
        "max_epochs": 6,
        "batch_size": 8,
        "learning_rate": 0.02,
        "random_state": 0,
        "verbose": False,
    }
    options = {**small, **options}
    if options["random_state"] == "generator":
        options["random_state"] = np.random.RandomState(0)
    return SparseAutoencoder(**options)


def assert_same_bits(a: SparseAutoencoder, b: SparseAutoencoder) -> None:
    assert a._engine.state_names() == b._engine.state_names()
    for name in a._engine.state_names():
        np.testing.assert_array_equal(a._engine.get(name), b._engine.get(name), err_msg=name, strict=True)
    assert a._engine.steps == b._engine.steps
    assert a.history_ == b.history_
    assert a.n_iter_ == b.n_iter_


def weights() -> np.ndarray:
    return np.random.default_rng(1).uniform(0.5, 2.0, N)


# Resume


@pytest.mark.parametrize("name", STATES)
def test_resume_after_max_epochs(name: str) -> None:
    X = data()
    options = {**STATES[name], "early_stopping": False}
    whole = make(**options).fit(X, sample_weight=weights())
    parts = make(**{**options, "max_epochs": 2}).fit(X, sample_weight=weights())
    parts.set_params(max_epochs=3).resume(X, sample_weight=weights())
    parts.set_params(max_epochs=6).resume(X, sample_weight=weights())
    assert_same_bits(parts, whole)


@pytest.mark.parametrize("name", STATES)
def test_resume_from_the_checkpoint_after_a_callback_raised(name: str, tmp_path: Path) -> None:
    X = data()
    path = tmp_path / "model.safetensors"
    whole = make(**STATES[name]).fit(X)
    n_epochs = whole.n_iter_
    for last in range(1, n_epochs):

        def callback(entry: dict[str, float], last: int = last) -> None:
            if entry["epoch"] == last:
                raise KeyboardInterrupt

        sae = make(**STATES[name], callback=callback, checkpoint=path)
        with pytest.raises(KeyboardInterrupt):
            sae.fit(X)
        assert sae.n_iter_ == last
        loaded = fastsae.load(path)
        assert_same_bits(loaded, sae)
        assert_same_bits(loaded.resume(X), whole)
        # The checkpoint followed.
        assert_same_bits(fastsae.load(path), whole)


class Interrupt:
    """Raises KeyboardInterrupt at the n-th line that trainer.py runs."""

    def __init__(self, line: int) -> None:
        self.lines_left = line

    def __enter__(self) -> Interrupt:
        self._before = sys.gettrace()
        sys.settrace(self._call)
        return self

    def __exit__(self, *error: object) -> None:
        sys.settrace(self._before)

    def _call(self, frame: Any, event: str, arg: Any) -> Any:
        return self._line if frame.f_code.co_filename == trainer.__file__ else None

    def _line(self, frame: Any, event: str, arg: Any) -> Any:
        if event == "line":
            self.lines_left -= 1
            if self.lines_left == 0:
                raise KeyboardInterrupt
        return self._line


@pytest.mark.parametrize(("name", "kind"), [("moving average", "in place"), ("early stopping", "converted")])
def test_an_interrupt_at_any_line_loses_nothing(
    name: str, kind: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(trainer, "_MOST_BATCHES_PER_PIECE", 3)
    X = data(45) if kind == "in place" else np.asfortranarray(data(45))
    options = {**STATES[name], "max_epochs": 3}
    whole = make(**options).fit(X)
    start = make(**{**options, "max_epochs": 0}).fit(X).set_params(max_epochs=3)
    path = tmp_path / "model.safetensors"
    line, finished = 0, False
    while not finished:
        line += 1
        sae = copy.deepcopy(start)
        interrupt = Interrupt(line)
        try:
            with interrupt:
                sae.resume(X)
        except KeyboardInterrupt:
            pass
        finished = interrupt.lines_left > 0
        assert all(len(entries) == sae.n_iter_ for entries in sae.history_.values()), line
        if line % 7 == 0:  # going through a file changes nothing, and is slower
            sae.save(path)
            sae = fastsae.load(path)
        assert_same_bits(sae.resume(X), whole)
    assert line > 100


@pytest.fixture
def alarm() -> Iterator[Callable[[float], None]]:
    """Raises KeyboardInterrupt after so many seconds of work."""

    def handler(number: int, frame: Any) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGVTALRM, handler)
    yield lambda seconds: signal.setitimer(signal.ITIMER_VIRTUAL, seconds)
    signal.setitimer(signal.ITIMER_VIRTUAL, 0)
    signal.signal(signal.SIGVTALRM, before)


@pytest.mark.parametrize("name", ["momentum", "moving average", "early stopping"])
def test_interrupts_at_any_time_lose_nothing(name: str, alarm: Callable[[float], None]) -> None:
    X = np.random.default_rng(0).random((900, 30), dtype=np.float32)
    options = {**STATES[name], "n_hidden": 20, "max_epochs": 60, "batch_size": 7, "n_iter_no_change": 60}
    whole = make(**options).fit(X)
    sae = make(**{**options, "max_epochs": 0}).fit(X).set_params(max_epochs=60)
    delays = random.Random(0)
    interrupts = 0
    finished = False
    while not finished:
        try:
            alarm(0.001 * (1 + interrupts / 50) + delays.expovariate(500))
            sae.resume(X)
            finished = True
            alarm(0)
        except KeyboardInterrupt:
            interrupts += 1
        assert interrupts < 1000
    assert interrupts >= 3
    assert_same_bits(sae, whole)


_CHILD = """
import os, signal, threading, time
import numpy as np
from fastsae import SparseAutoencoder

def press_ctrl_c():
    time.sleep(0.01)
    sent.append(time.perf_counter())
    os.kill(os.getpid(), signal.SIGINT)

def callback(entry):
    if entry["epoch"] == 1:
        threading.Thread(target=press_ctrl_c).start()

X = np.random.default_rng(0).random((6000, 64), dtype=np.float32)
for name, options in {options!r}.items():
    sent = []
    sae = SparseAutoencoder(**options, checkpoint={folder!r} + "/" + name, callback=callback, verbose=False)
    try:
        sae.fit(X)
    except KeyboardInterrupt:
        assert time.perf_counter() - sent[0] < 1, "too late"
        assert np.isfinite(sae.transform(X)).all()
        print(name, sae.n_iter_, sae._state.rows_done)
"""


def test_ctrl_c_stops_at_once_and_resume_gives_the_same_bits(tmp_path: Path) -> None:
    common = {"n_hidden": 64, "batch_size": 32, "max_epochs": 12, "random_state": 0}
    options = {
        "adam": {**common},
        "ema": {**common, "solver": "momentum", "rho_hat": "ema", "validation_fraction": 0.2},
        "lbfgs": {**common, "solver": "lbfgs", "max_epochs": 100000},
    }
    script = _CHILD.format(options=options, folder=str(tmp_path))
    child = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "FASTSAE_NUM_THREADS": "2"},
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert child.returncode == 0, child.stderr
    done = {name: (int(epochs), int(rows)) for name, epochs, rows in map(str.split, child.stdout.splitlines())}
    assert list(done) == list(options)  # none came to its end
    X = np.random.default_rng(0).random((6000, 64), dtype=np.float32)
    for name in ("adam", "ema"):
        sae = fastsae.load(tmp_path / name).set_params(verbose=False)
        assert (sae.n_iter_, sae._state.rows_done) == done[name]
        assert_same_bits(sae.resume(X), SparseAutoencoder(**options[name], verbose=False).fit(X))
    sae = fastsae.load(tmp_path / "lbfgs").set_params(verbose=False)
    assert sae.n_iter_ == done["lbfgs"][0]
    assert sae._engine.gradient(X)["loss"] == sae.history_["loss"][-1]
    sae.set_params(max_epochs=sae.n_iter_ + 2).resume(X)
    assert sae.history_["loss"][-1] < sae.history_["loss"][-3]


def test_resume_needs_the_same_rows(tmp_path: Path) -> None:
    X = data()
    sae = make(max_epochs=2).fit(X)
    before = sae.components_
    sae.set_params(max_epochs=4)
    for model in (sae, copy.deepcopy(sae)):
        with pytest.raises(ValueError, match=r"^X: resume needs the 50 rows .*, got 49"):
            model.resume(X[:-1])
    np.testing.assert_array_equal(sae.components_, before)
    # After partial_fit there are no certain rows.
    sae.partial_fit(X[:20]).set_params(max_epochs=5).resume(X[:30])
    assert sae.n_iter_ == 5


def test_resume_refuses_another_batch_size_within_an_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    X = data()
    sae = make(max_epochs=0).fit(X).set_params(max_epochs=2)
    run_epoch = Engine.run_epoch

    def interrupted(self: Engine, chunk: Any, order: Any, batch_size: int, sample_weight: Any, **rest: Any) -> None:
        run_epoch(self, chunk, order[: 3 * batch_size], batch_size, sample_weight, **rest)
        raise KeyboardInterrupt

    monkeypatch.setattr(Engine, "run_epoch", interrupted)
    with pytest.raises(KeyboardInterrupt):
        sae.resume(X)
    monkeypatch.undo()
    assert sae._state.rows_done == 24
    with pytest.raises(ValueError, match=r"^batch_size: 7 does not divide"):
        sae.set_params(batch_size=7).resume(X)
    assert_same_bits(sae.set_params(batch_size=8).resume(X), make(max_epochs=2).fit(X))


def test_an_ended_training_stays_ended() -> None:
    X = data()
    sae = make(callback=lambda entry: entry["epoch"] == 2).fit(X)
    ended = copy.deepcopy(sae)
    assert_same_bits(sae.set_params(callback=None).resume(X), ended)
    assert ended.n_iter_ == 2
    assert sae.fit(X).n_iter_ == 6  # fit starts anew


# Orders and pieces


@pytest.fixture
def orders(monkeypatch: pytest.MonkeyPatch) -> list[np.ndarray]:
    """The row orders that the engine is given."""
    seen: list[np.ndarray] = []
    run_epoch = Engine.run_epoch

    def spy(self: Engine, chunk: Any, order: Any = None, *rest: Any, **named: Any) -> None:
        seen.append(np.array(order))
        run_epoch(self, chunk, order, *rest, **named)

    monkeypatch.setattr(Engine, "run_epoch", spy)
    return seen


def epochs(orders: list[np.ndarray]) -> list[list[int]]:
    order = np.concatenate(orders).reshape(-1, N).tolist()
    orders.clear()
    return order


def test_row_orders_depend_on_seed_and_epoch_alone(orders: list[np.ndarray]) -> None:
    X = data()
    make(max_epochs=4).fit(X)
    expected = epochs(orders)
    assert all(sorted(order) == list(range(N)) for order in expected)
    assert len({tuple(order) for order in expected}) == 4
    for options in ({"batch_size": 3}, {"solver": "sgd"}, {"n_hidden": 2}, {"dtype": "float64"}):
        make(max_epochs=4, **options).fit(X)
        assert epochs(orders) == expected, options
    sae = make()
    for _ in range(4):
        sae.partial_fit(X)
    assert epochs(orders) == expected
    make(max_epochs=4, random_state=1).fit(X)
    assert epochs(orders) != expected
    make(max_epochs=4, shuffle=False).fit(X)
    assert epochs(orders) == [list(range(N))] * 4


@pytest.mark.parametrize("kind", [np.ascontiguousarray, np.asfortranarray])
def test_pieces_change_no_bit(kind: Any, monkeypatch: pytest.MonkeyPatch, orders: list[np.ndarray]) -> None:
    X = kind(data())
    whole = make(validation_fraction=0.1, rho_hat="ema").fit(X, sample_weight=weights())
    n_pieces = len(orders)
    for most in (1, 2, 5):
        monkeypatch.setattr(trainer, "_MOST_BATCHES_PER_PIECE", most)
        cut = make(validation_fraction=0.1, rho_hat="ema").fit(X, sample_weight=weights())
        assert len(orders) > n_pieces
        for name in whole._engine.state_names():
            np.testing.assert_array_equal(whole._engine.get(name), cut._engine.get(name))
        # Sums of the costs are grouped by pieces, whose lengths follow from the shapes alone.
        for name, values in whole.history_.items():
            assert cut.history_[name] == pytest.approx(values, rel=1e-13)


def test_the_last_short_batch_is_kept() -> None:
    sae = make(batch_size=16, max_epochs=1).fit(data())
    assert sae._engine.steps == 4  # 16 + 16 + 16 + 2


def test_a_batch_larger_than_the_data_is_all_rows() -> None:
    X = data()
    assert_same_bits(make(batch_size=10**9).fit(X), make(batch_size=None).fit(X))


# Checkpoints while training


def test_checkpoints_are_written_every_so_many_epochs(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    found = []

    def callback(entry: dict[str, float]) -> None:
        found.append(fastsae.load(path).n_iter_ if path.exists() else None)

    make(checkpoint=path, checkpoint_every=2, max_epochs=5, callback=callback).fit(data())
    assert found == [None, None, 2, 2, 4]
    assert fastsae.load(path).n_iter_ == 5
    assert [file.name for file in tmp_path.iterdir()] == ["model.safetensors"]


def test_a_failing_checkpoint_leaves_a_usable_model(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "model.safetensors"
    path.parent.mkdir()
    X = data()

    def callback(entry: dict[str, float]) -> None:
        if entry["epoch"] == 2:
            path.unlink()
            path.parent.rmdir()

    sae = make(checkpoint=path, callback=callback)
    with pytest.raises(FileNotFoundError):
        sae.fit(X)
    assert sae.n_iter_ == 2
    assert_same_bits(sae.set_params(checkpoint=None, callback=None).resume(X), make().fit(X))


def test_a_diverging_training_keeps_the_last_good_step() -> None:
    X = data() * 100
    sae = make(solver="sgd", learning_rate=1e6, output_activation="identity", activation="relu", penalty="none")
    with pytest.raises(FloatingPointError, match="learning_rate"):
        sae.fit(X)
    assert all(np.isfinite(sae._engine.get(name)).all() for name in sae._engine.state_names())
    assert np.isfinite(sae.transform(X)).all()
    assert sae.set_params(learning_rate=1e-6).fit(X).n_iter_ == 6


# L-BFGS


def lbfgs(**options: Any) -> SparseAutoencoder:
    return make(**{"solver": "lbfgs", "dtype": "float64", "max_epochs": 12, **options})


def test_lbfgs_has_one_entry_per_iteration_and_never_rises() -> None:
    X = data(dtype=np.float64)
    points = []
    sae = lbfgs()
    sae.set_params(callback=lambda entry: points.append((entry, sae.components_))).fit(X)
    assert sae.n_iter_ == len(points) == 12
    losses = sae.history_["loss"]
    assert all(a > b for a, b in itertools.pairwise(losses))
    assert sae.history_["epoch"] == list(range(1, 13))
    # What the callback sees is the accepted point, and its cost.
    np.testing.assert_array_equal(points[-1][1], sae.components_)
    cost = sae._engine.gradient(X)
    for name in ("loss", "reconstruction", "penalty", "decay", "gradient_norm"):
        assert sae.history_[name][-1] == cost[name]


def test_lbfgs_is_scipys_minimum_of_the_reference() -> None:
    from scipy.optimize import minimize

    from fastsae.reference import Layered

    X = data(dtype=np.float64)
    start = lbfgs(max_epochs=0).fit(X)
    sae = lbfgs(max_epochs=400, weight_decay=0.01).fit(X)
    model = Layered(sae._engine.config, "float64")
    model.set({name: start._engine.get(name) for name in model.parameters})
    shapes = {name: value.shape for name, value in model.parameters.items()}

    def cost(theta: np.ndarray) -> tuple[float, np.ndarray]:
        parts = np.split(theta, np.cumsum([np.prod(shape) for shape in shapes.values()])[:-1])
        model.set({name: part.reshape(shapes[name]) for name, part in zip(shapes, parts, strict=True)})
        costs, gradient = model.value_and_gradient(X)
        return costs["loss"], np.concatenate([gradient[name].ravel() for name in shapes])

    theta = np.concatenate([start._engine.get(name).ravel() for name in shapes])
    found = minimize(cost, theta, jac=True, method="L-BFGS-B", options={"maxiter": 400, "maxcor": 20})
    assert sae.history_["loss"][-1] == pytest.approx(found.fun, rel=1e-5)


def test_lbfgs_stops_when_it_has_converged_and_restores_the_best() -> None:
    X = data(dtype=np.float64)
    options = {"weight_decay": 1.0, "penalty": "none", "max_epochs": 2000, "validation_fraction": 0.3}
    sae = lbfgs(**options).fit(X)
    assert sae.n_iter_ < 2000
    assert sae.history_["gradient_norm"][-1] < 1e-6
    patient = lbfgs(**options, early_stopping=True, n_iter_no_change=2000, tol=0.0).fit(X)
    held_out = patient.history_["validation_loss"]
    best = int(np.argmin(held_out))
    until_best = lbfgs(**{**options, "max_epochs": best + 1}).fit(X)
    np.testing.assert_array_equal(patient.components_, until_best.components_)


def test_an_interrupted_lbfgs_is_at_an_accepted_point() -> None:
    X = data(dtype=np.float64)
    points = []
    start = lbfgs(max_epochs=0).fit(X).set_params(max_epochs=4)
    points.append(start.components_.tobytes())
    whole = copy.deepcopy(start)
    whole.set_params(callback=lambda entry: points.append(whole.components_.tobytes())).resume(X)
    assert len(set(points)) == 5
    line, finished = 0, False
    while not finished:
        line += 1
        sae = copy.deepcopy(start)
        interrupt = Interrupt(line)
        try:
            with interrupt:
                sae.resume(X)
        except KeyboardInterrupt:
            pass
        finished = interrupt.lines_left > 0
        assert points.index(sae.components_.tobytes()) - sae.n_iter_ in (0, 1), line
        assert all(len(entries) == sae.n_iter_ for entries in sae.history_.values()), line
        if line % 10 == 0:
            assert sae.set_params(max_epochs=8).resume(X).n_iter_ == 8
    assert line > 100


def test_lbfgs_resumes_where_it_was() -> None:
    X = data(dtype=np.float64)
    sae = lbfgs(max_epochs=5).fit(X)
    at = sae.history_["loss"][-1]
    sae.set_params(max_epochs=10).resume(X)
    assert sae.n_iter_ == 10
    assert sae.history_["loss"][5] < at


def test_lbfgs_does_not_train_on_held_out_rows() -> None:
    X = data(dtype=np.float64)
    options = {"validation_fraction": 0.3, "max_epochs": 3}
    sae = lbfgs(**options).fit(X, sample_weight=weights())
    _, held_out = trainer.Trainer(sae._engine, trainer.TrainingConfig(validation_fraction=0.3), sae._state)._split(N)
    assert held_out is not None
    assert len(held_out) == 15
    X[held_out] = 0.5
    np.testing.assert_array_equal(lbfgs(**options).fit(X, sample_weight=weights()).components_, sae.components_)
    expected = sae._engine.evaluate(X[held_out], weights()[held_out])["loss"]
    again = lbfgs(**options).fit(X, sample_weight=weights())
    assert again.history_["validation_loss"][-1] == expected


# Other processes and threads


def test_fit_in_a_thread_is_fit() -> None:
    X = data()
    sae = make()
    thread = threading.Thread(target=sae.fit, args=(X,))
    thread.start()
    thread.join()
    assert_same_bits(sae, make().fit(X))


def test_fit_in_a_forked_child_is_fit(tmp_path: Path) -> None:
    script = f"""
        import os, sys, warnings
        warnings.simplefilter("ignore")  # Python 3.12 warns of forking with threads, which is the point here
        sys.path.insert(0, {os.path.dirname(__file__)!r})
        from test_trainer import data, make, assert_same_bits
        whole = make().fit(data())
        child = os.fork()
        if child == 0:
            assert_same_bits(make().fit(data()), whole)
            os._exit(7)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(script)], check=True, timeout=30)


def test_joblib_workers_give_the_same_bits() -> None:
    from joblib import Parallel, delayed

    X = data()
    models = Parallel(n_jobs=2)(delayed(_fitted)(X, seed) for seed in range(3))
    for seed, sae in enumerate(models):
        assert_same_bits(sae, _fitted(X, seed))


def _fitted(X: np.ndarray, seed: int) -> SparseAutoencoder:
    return make(random_state=seed).fit(X)
