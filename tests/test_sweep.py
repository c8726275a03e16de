"""`fastsae.sweep`: the same bits as one fit after the other, and an orderly end whatever happens."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.model_selection import ParameterGrid

import fastsae
from fastsae import SparseAutoencoder, sweep

RANDOM = np.random.default_rng(5)
X = RANDOM.random((230, 12), dtype=np.float32)
COMMON: dict[str, Any] = {"n_hidden": 7, "batch_size": 50, "max_epochs": 4, "verbose": False}
FOREVER: dict[str, Any] = {**COMMON, "max_epochs": 10**7}


def assert_same(one: SparseAutoencoder, other: SparseAutoencoder) -> None:
    assert one.get_params() == other.get_params()
    assert one.history_ == other.history_
    assert one._engine.steps == other._engine.steps
    for name in one._engine.names():
        np.testing.assert_array_equal(one._engine.get(name), other._engine.get(name), err_msg=name)


def workers() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("fastsae-sweep")]


@pytest.mark.parametrize("n_jobs", [None, 1, 2, 16])
def test_every_model_is_that_of_fit_alone(device: str, n_jobs: int | None) -> None:
    configs = [
        {"rho": 0.1},
        {"solver": "lbfgs", "max_epochs": 6},
        {"activation": "tanh", "rho_hat": "ema", "dtype": "float64"},
        {"penalty": "l1", "beta": 1e-3, "solver": "momentum", "n_hidden": 3},
        {"tied": True, "loss": "cross_entropy", "n_iter_no_change": 1, "tol": 0.5, "early_stopping": True},
        {"validation_fraction": 0.2, "batch_size": None},
        {"random_state": 4, "shuffle": False},
    ]
    weights = RANDOM.random(len(X))
    common = {**COMMON, "random_state": 0, "device": device}
    models = sweep(configs, X, weights, n_jobs=n_jobs, **common)
    assert len(models) == len(configs)
    for model, options in zip(models, configs, strict=True):
        assert_same(model, SparseAutoencoder(**{**common, **options}).fit(X, sample_weight=weights))
    assert workers() == []


def test_grids_and_plain_iterables_serve() -> None:
    grid = ParameterGrid({"rho": [0.05, 0.1], "beta": [1.0, 3.0]})
    models = sweep(grid, X, random_state=0, **COMMON)
    assert [(m.rho, m.beta) for m in models] == [(g["rho"], g["beta"]) for g in grid]
    assert_same(models[3], sweep(iter([list(grid)[3]]), X, random_state=0, **COMMON)[0])
    assert not np.array_equal(models[0].components_, models[1].components_)


def test_common_options_give_way_and_are_kept() -> None:
    models = sweep([{}, {"n_hidden": 2}], X.tolist(), random_state=1, **COMMON)
    assert [model.components_.shape for model in models] == [(7, 12), (2, 12)]
    assert not models[0].verbose


@pytest.mark.parametrize(
    ("configs", "common", "text"),
    [
        ([], {}, "configs: expected at least one"),
        ({"rho": 0.1}, {}, "configs: expected a list of dicts, got dict"),
        ("rho", {}, "configs: expected a list of dicts, got str"),
        (3, {}, "configs: expected a list of dicts, got int"),
        ([{}, ["rho"]], {}, r"configs\[1\]: expected a dict of options, got list"),
        ([{}, {}, {"roh": 0.1}], {}, r"configs\[2\]: unknown option 'roh'"),
        ([{}, {1: 0.1}], {}, r"configs\[1\]: unknown option 1"),
        ([{}], {"roh": 0.1}, "unknown option 'roh'"),
        ([{}, {"rho": 2.0}], {}, r"configs\[1\]: .*rho"),
        ([{"n_hidden": 0}], {}, r"configs\[0\]: n_hidden"),
        ([{}, {"solver": "newton"}], {}, r"configs\[1\]: "),
        ([{}, {"device": "gpu"}], {}, r"configs\[1\]: device"),
        ([{}, {"random_state": np.random.RandomState(0)}], {}, r"configs\[1\]: random_state"),
        ([{}], {"random_state": np.random.RandomState(0)}, r"configs\[0\]: random_state"),
        ([{}], {"n_jobs": 0}, "n_jobs"),
        ([{}], {"n_jobs": 1.5}, "n_jobs"),
    ],
)
def test_bad_options_are_refused_before_any_training(configs: Any, common: dict[str, Any], text: str) -> None:
    def callback(entry: dict[str, float]) -> None:
        raise AssertionError("it trained")

    with pytest.raises(ValueError, match=text):
        sweep(configs, X, **{**COMMON, "callback": callback, **common})


def test_verbose_must_be_a_truth_value() -> None:
    with pytest.raises(ValueError, match="verbose: expected True or False"):
        sweep([{}], X, verbose="yes")


def test_one_checkpoint_for_two_models_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    configs = [{"checkpoint": "a.safetensors"}, {}, {"checkpoint": tmp_path / "a.safetensors"}]
    with pytest.raises(ValueError, match=r"configs\[2\]: checkpoint: .*a\.safetensors is that of configs\[0\] too"):
        sweep(configs, X, **COMMON)
    with pytest.raises(ValueError, match=r"configs\[1\]: checkpoint"):
        sweep([{}, {}], X, checkpoint="b.safetensors", **COMMON)
    assert list(tmp_path.iterdir()) == []


def test_checkpoints_are_those_of_each_model(tmp_path: Path) -> None:
    configs = [{"rho": rho, "checkpoint": tmp_path / f"{rho}.safetensors"} for rho in (0.05, 0.1)]
    for model in sweep(configs, X, random_state=0, **COMMON):
        loaded = fastsae.load(model.checkpoint)
        np.testing.assert_array_equal(loaded.components_, model.components_)
        assert loaded.rho == model.rho


def test_bad_rows_and_weights_name_a_config(device: str) -> None:
    bad = X.copy()
    bad[3, 4] = np.nan
    with pytest.raises(ValueError, match=r"^configs\[\d\]: .*NaN"):
        sweep([{}, {}], bad, device=device, **COMMON)
    with pytest.raises(ValueError, match=r"^configs\[\d\]: .*sample_weight"):
        sweep([{}, {}], X, [1.0], device=device, **COMMON)


@pytest.mark.parametrize("error", [ValueError("so it is"), FloatingPointError("so it is"), OSError(28, "so it is")])
def test_an_error_names_its_config_and_stops_the_rest(error: Exception) -> None:
    def callback(entry: dict[str, float]) -> None:
        raise error

    configs = [FOREVER, FOREVER, FOREVER, {"callback": callback}, FOREVER]
    begun = time.monotonic()
    with pytest.raises(type(error), match="so it is") as caught:
        sweep(configs, X, n_jobs=4, **COMMON)
    assert time.monotonic() - begun < 5
    assert str(caught.value).startswith("configs[3]: ") or isinstance(error, OSError)
    assert workers() == []


def test_an_overflow_names_its_config() -> None:
    with pytest.raises(FloatingPointError, match=r"^configs\[1\]: .*learning_rate"):
        sweep([{}, {"learning_rate": 1e30, "solver": "sgd", "output_activation": "identity"}], X, **COMMON)


def test_an_interrupt_stops_all_within_a_second(device: str, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    begun = threading.Event()
    at = 0.0

    def interrupt() -> None:
        nonlocal at
        begun.wait(30)
        at = time.monotonic()
        os.kill(os.getpid(), signal.SIGINT)

    configs = [
        {"callback": lambda entry: begun.set()},
        {"checkpoint": path, "checkpoint_every": 10**6},
        {"solver": "lbfgs"},
        {"batch_size": None},
        {"n_hidden": 70},
    ]
    sender = threading.Thread(target=interrupt)
    sender.start()
    with pytest.raises(KeyboardInterrupt):
        sweep(configs, X, n_jobs=4, device=device, **FOREVER)
    assert time.monotonic() - at < 2  # a second, and another for a busy machine
    sender.join()
    assert workers() == []
    model = fastsae.load(path)
    assert model.n_iter_ >= 0
    model.set_params(max_epochs=model.n_iter_ + 1, checkpoint=None).resume(X)


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs Linux")
def test_each_model_computes_with_its_share_of_the_threads(threads: None) -> None:
    rows = np.random.default_rng(0).random((2000, 100), dtype=np.float32)
    seen: list[int] = []

    def count(entry: dict[str, float]) -> None:
        seen.append(len(os.listdir("/proc/self/task")))

    options = {"n_hidden": 100, "max_epochs": 3, "batch_size": 1000, "callback": count, "verbose": False}
    fastsae.set_num_threads(4)
    before = len(os.listdir("/proc/self/task"))
    sweep([{}] * 4, rows, n_jobs=4, **options)
    assert max(seen) <= before + 4  # the workers alone
    seen.clear()
    sweep([{}] * 2, rows, n_jobs=2, **options)
    assert max(seen) > before + 2  # two threads for each
    assert max(seen) <= before + 4


def test_the_bar_counts_models(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[float] = []

    class Bar:
        def __init__(self, total: int, **options: Any) -> None:
            self.n, self.total = 0.0, total

        def update(self, count: float) -> None:
            self.n += count
            shown.append(self.n)

        def __enter__(self) -> Bar:
            return self

        def __exit__(self, *error: object) -> None:
            assert self.n == pytest.approx(self.total)

    monkeypatch.setattr("fastsae.sweeps.tqdm", Bar)
    monkeypatch.setattr("fastsae.sweeps._LOOK_SECONDS", 1e-3)
    sweep([{"max_epochs": 300}, {}, {"n_iter_no_change": 1, "tol": 0.5, "early_stopping": True}], X, n_jobs=1, **COMMON)
    assert shown == sorted(shown)
    assert 0 <= shown[0] < shown[-1]
