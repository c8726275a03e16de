"""What cannot be used is refused with the documented exception, by name, and the model works on afterwards."""

from __future__ import annotations

import copy
import dataclasses
import math
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import scipy.sparse

import fastsae
from fastsae import Config, Engine, LayerConfig, SparseAutoencoder
from fastsae import config as options_of

N, D, H = 40, 6, 4
SHARED = "the model is shared by the tests, none of which may change it"


def data(n: int = N, d: int = D) -> np.ndarray:
    return np.random.default_rng(0).uniform(0.05, 0.95, (n, d)).astype(np.float32)


def make(**options: Any) -> SparseAutoencoder:
    small = {"n_hidden": H, "max_epochs": 2, "batch_size": 8, "random_state": 0, "verbose": False}
    return SparseAutoencoder(**{**small, **options})


def everything(sae: SparseAutoencoder) -> list[Any]:
    """All that an estimator is and does, as bytes."""
    X = data()
    tensors = [sae._engine.get(name).tobytes() for name in sae._engine.state_names()]
    outputs = [f(X).tobytes() for f in (sae.transform, sae.reconstruct, sae.score_samples)]
    names = list(getattr(sae, "feature_names_in_", []))
    return [
        tensors,
        outputs,
        names,
        sae.n_features_in_,
        sae.n_iter_,
        sae._engine.steps,
        copy.deepcopy(sae.history_),
    ]


@pytest.fixture(scope="module")
def fitted() -> SparseAutoencoder:
    return make().fit(data()).set_params(max_epochs=9)


def with_value(value: Any, dtype: Any = np.float32) -> np.ndarray:
    X = data().astype(dtype)
    X[7, 2] = value
    return X


class Broken:
    """A DLPack tensor whose memory is elsewhere, or that is something else altogether."""

    def __init__(self, error: Exception | None = None) -> None:
        self._error = error

    def __dlpack__(self, **options: Any) -> Any:
        if self._error is None:
            return "no capsule"
        raise self._error

    def __dlpack_device__(self) -> tuple[int, int]:
        return (1, 0)


# Rows that no method can use, and the exception.
BAD_ROWS: dict[str, tuple[Any, type[Exception]]] = {
    "one row too few dimensions": (data()[0], ValueError),
    "three dimensions": (data().reshape(N, 2, 3), ValueError),
    "a number": (3.0, ValueError),
    "None": (None, ValueError),
    "no rows": (data()[:0], ValueError),
    "no columns": (data()[:, :0], ValueError),
    "an empty list": ([], ValueError),
    "a ragged list": ([[1.0, 2.0], [3.0]], ValueError),
    "a string": ("abc", ValueError),
    "strings": (np.full((N, D), "x"), ValueError),
    "numbers as strings": (np.full((N, D), "1.5"), ValueError),
    "bytes": (np.full((N, D), b"1"), ValueError),
    "strings as objects": (with_value("x", object), ValueError),
    "objects": (with_value({}, object), TypeError),
    "None as an object": (with_value(None, object), ValueError),
    "complex": (data() * 1j, ValueError),
    "complex objects": (with_value(1j, object), (TypeError, ValueError)),
    "NaN": (with_value(math.nan), ValueError),
    "NaN in float64": (with_value(math.nan, np.float64), ValueError),
    "infinity": (with_value(math.inf), ValueError),
    "minus infinity": (with_value(-math.inf, np.float64), ValueError),
    "NaN in the last element": (np.where(np.arange(N * D).reshape(N, D) == N * D - 1, np.nan, 0), ValueError),
    "dates": (np.zeros((N, D), "M8[s]"), ValueError),
    "time spans": (np.zeros((N, D), "m8[s]"), ValueError),
    "records": (np.zeros((N, D), [("a", "f4"), ("b", "f4")]), ValueError),
    "raw memory": (np.zeros((N, D), "V4"), ValueError),
    "a frame of strings": (pd.DataFrame(np.full((N, D), "x")), ValueError),
    "a frame with a hole": (pd.DataFrame(with_value(math.nan)), ValueError),
    "a frame of dates": (pd.DataFrame(np.zeros((N, D), "M8[s]")), (TypeError, ValueError)),
    "a series": (pd.Series(data()[0]), ValueError),
    "sparse": (scipy.sparse.csr_matrix(data()), TypeError),
    "sparse array": (scipy.sparse.coo_array(data()), TypeError),
    "matrix": (np.asmatrix(data()), TypeError),
    "a tensor elsewhere": (Broken(BufferError("on a GPU")), ValueError),
    "a tensor of another type": (Broken(RuntimeError("bfloat16")), ValueError),
    "a broken tensor": (Broken(AttributeError("gone")), ValueError),
    "no tensor": (Broken(), ValueError),
}
METHODS = ["fit", "partial_fit", "resume", "transform", "reconstruct", "score_samples", "score"]


@pytest.mark.parametrize("kind", BAD_ROWS)
def test_bad_rows(kind: str, fitted: SparseAutoencoder) -> None:
    X, error = BAD_ROWS[kind]
    before = everything(fitted)
    for method in METHODS:
        with pytest.raises(error):
            getattr(fitted, method)(X)
        new = make()
        if method in ("fit", "partial_fit"):
            with pytest.raises(error):
                getattr(new, method)(X)
            assert vars(new) == vars(make())
    with pytest.raises(error):
        fitted.fit_transform(X)
    assert everything(fitted) == before, SHARED


@pytest.mark.parametrize("kind", sorted(BAD_ROWS.keys() - {"no rows"}))
def test_bad_codes(kind: str, fitted: SparseAutoencoder) -> None:
    H_bad, error = BAD_ROWS[kind]
    before = everything(fitted)
    with pytest.raises(error):
        fitted.inverse_transform(H_bad)
    assert everything(fitted) == before, SHARED


def test_no_code_is_no_reconstruction(fitted: SparseAutoencoder) -> None:
    assert fitted.inverse_transform(np.zeros((0, H))).shape == (0, D)


@pytest.mark.parametrize("width", [1, D - 1, D + 1, 10 * D])
def test_wrong_number_of_features(width: int, fitted: SparseAutoencoder) -> None:
    before = everything(fitted)
    for method in METHODS[1:]:
        with pytest.raises(ValueError, match=f"X has {width} features.*expecting {D} features"):
            getattr(fitted, method)(data(N, width))
    with pytest.raises(ValueError, match=f"^H: expected a 2-D array with {H} columns, got shape \\({N}, 3\\)"):
        fitted.inverse_transform(data(N, 3))
    assert everything(fitted) == before, SHARED


def test_values_too_large_for_float32(fitted: SparseAutoencoder) -> None:
    X = with_value(1e300, np.float64)
    sae = copy.deepcopy(fitted).set_params(shuffle=False)  # the row is in the first batch
    before = everything(sae)
    for rows in (X, np.asfortranarray(X)):
        with pytest.raises(ValueError, match=r"^X: row 7 contains .* too large for float32"):
            sae.partial_fit(rows)
        assert everything(sae) == before
    sae.partial_fit(data())
    make(dtype="float64").fit(X / 1e300)


WEIGHTS = {
    "too few": np.ones(N - 1),
    "two columns": np.ones((N, 2)),
    "negative": np.r_[np.ones(N - 1), -1e-9],
    "NaN": np.r_[np.ones(N - 1), math.nan],
    "infinite": np.r_[np.ones(N - 1), math.inf],
    "all zero": np.zeros(N),
    "strings": ["x"] * N,
    "complex": np.ones(N) * 1j,
    "ragged": [[1.0], [1.0, 2.0]],
    "a tensor elsewhere": Broken(BufferError("on a GPU")),
}


@pytest.mark.parametrize("kind", WEIGHTS)
def test_bad_sample_weights(kind: str, fitted: SparseAutoencoder) -> None:
    before = everything(fitted)
    for method in ("fit", "partial_fit", "resume"):
        with pytest.raises(ValueError):
            getattr(fitted, method)(data(), sample_weight=WEIGHTS[kind])
    assert everything(fitted) == before, SHARED


# Options

CHOICES = ["activation", "output_activation", "penalty", "rho_hat", "loss", "loss_reduction", "solver"]
CHOICES += ["corruption", "init", "dtype", "device", "precision", "lr_schedule"]
NO_CHOICE = ["unknown", "", "SIGMOID", 5, None, True, b"adam", ["adam"], np.float32, ("kl",)]
NO_INTEGER = ["3", None, 2.0, 2.5, math.nan, True, np.True_, [3], np.array([3, 4]), 10**30, 1j, {}]
NO_NUMBER = ["0.1", b"1", None, math.nan, math.inf, -math.inf, True, np.False_, [0.1], 1j, 10**400, {}]
NO_BOOL = ["yes", 0, 1, None, 1.0, [], np.int64(1)]

BAD_OPTIONS: dict[str, list[Any]] = {
    **dict.fromkeys(CHOICES, NO_CHOICE),
    "n_hidden": [*NO_INTEGER, 0, -1, 0.5],
    "batch_size": [value for value in NO_INTEGER if value is not None] + [0, -8],
    "max_epochs": [*NO_INTEGER, -1],
    "n_iter_no_change": [*NO_INTEGER, 0],
    "checkpoint_every": [*NO_INTEGER, 0],
    "rho": [*NO_NUMBER, 0, 1, -0.1, 1.1, 0.0, 1.0, np.float32(1)],
    "beta": [*NO_NUMBER, -1e-9],
    "weight_decay": [*NO_NUMBER, -1],
    "weight_l1": [*NO_NUMBER, -1e-9],
    "contraction": [*NO_NUMBER, -1e-9],
    "contraction_hessian": [*NO_NUMBER, -1],
    "contraction_noise": [*NO_NUMBER, 0, -0.1],
    "learning_rate": [*NO_NUMBER, -1e-3],
    "momentum": [*NO_NUMBER, -0.1, 1, 1.5],
    "beta1": [*NO_NUMBER, -0.1, 1.0],
    "beta2": [*NO_NUMBER, -0.1, 1.0],
    "epsilon": [*NO_NUMBER, 0, -1e-8],
    "lr_warm_up": [*NO_INTEGER, -1],
    "lr_start": [value for value in NO_NUMBER if value is not None] + [-0.1, 1.1, 0.5],  # no warm-up begins with it
    "lr_total_steps": [value for value in NO_INTEGER if value is not None] + [0],
    "lr_decay_steps": [value for value in NO_INTEGER if value is not None] + [0, 5],  # a constant rate has none
    "lr_final": [*NO_NUMBER, -0.1, 1.1],
    "lr_step_size": [*NO_INTEGER, 0],
    "lr_gamma": [*NO_NUMBER, 0, -0.5, 1.1],
    "max_grad_norm": [value for value in NO_NUMBER if value is not None] + [0, -1],
    "scale": [value for value in NO_CHOICE if value is not None] + ["zscore"],  # which a sigmoid does not reach
    "rho_hat_decay": [*NO_NUMBER, -0.1, 1.0],
    "validation_fraction": [*NO_NUMBER, -0.1, 1, 1.0],
    "tol": [*NO_NUMBER, -1e-9],
    "corruption_level": [*NO_NUMBER, -0.1],
    "corruption_low": NO_NUMBER,
    "corruption_high": NO_NUMBER,
    "emphasis": [*NO_NUMBER, -0.1, 2.0],
    "emphasis_rest": [*NO_NUMBER, -0.1, 0],
    "tied": NO_BOOL,
    "shuffle": NO_BOOL,
    "early_stopping": NO_BOOL,
    "callback": ["print", 5, [print]],
    "checkpoint": [5, ["a"], {}, 1.5, True],
    "random_state": ["x", 1.5, -1, 2**32, np.random.default_rng(0), [None]],
}


@pytest.mark.parametrize("name", BAD_OPTIONS)
def test_bad_options(name: str) -> None:
    sae = make().fit(data())
    before = everything(sae)
    for value in BAD_OPTIONS[name]:
        sae.set_params(**{name: value})
        with pytest.raises(ValueError) as caught:
            sae.fit(data(N, D + 1))  # other rows, so that a trace would be seen
        assert name.removeprefix("output_") in str(caught.value), (value, caught.value)
        new = make(**{name: value})
        with pytest.raises(ValueError):
            new.partial_fit(data())
        assert not hasattr(new, "components_")
        assert not hasattr(new, "n_features_in_")
        assert everything(sae) == before, value
    sae.set_params(**make().get_params()).fit(data())
    assert everything(sae) == before


def test_every_option_was_tried() -> None:
    assert set(BAD_OPTIONS) == set(make().get_params()) - {"verbose"}


def test_feature_names_survive_a_failing_fit() -> None:
    frame = pd.DataFrame(data(), columns=list("abcdef"))
    sae = make().fit(frame)
    before = sae.transform(frame)
    for bad in ({"rho": 2}, {"n_hidden": 10**12}, {"loss": "cross_entropy", "output_activation": "tanh"}):
        sae.set_params(**bad)
        with pytest.raises((ValueError, MemoryError)):
            sae.fit(data(N, 3))
        sae.set_params(**make().get_params())
        np.testing.assert_array_equal(sae.transform(frame), before)
    assert list(sae.feature_names_in_) == list("abcdef")
    assert sae.n_features_in_ == D


OUTPUTS: dict[str, Callable[[], Any]] = {
    "another shape": lambda: np.empty((N, H + 1), np.float32),
    "too few rows": lambda: np.empty((N - 1, H), np.float32),
    "another dtype": lambda: np.empty((N, H), np.float64),
    "Fortran order": lambda: np.empty((N, H), np.float32, order="F"),
    "every second row": lambda: np.empty((2 * N, H), np.float32)[::2],
    "read-only": lambda: np.broadcast_to(np.float32(0), (N, H)),
    "other byte order": lambda: np.empty((N, H), np.dtype(np.float32).newbyteorder()),
    "a list": lambda: [[0.0] * H] * N,
    "1-D": lambda: np.empty(N * H, np.float32),
}


@pytest.mark.parametrize("kind", OUTPUTS)
def test_bad_outputs(kind: str, fitted: SparseAutoencoder) -> None:
    with pytest.raises(ValueError, match=r"^out: expected"):
        fitted.transform(data(), out=OUTPUTS[kind]())


def test_an_output_over_the_input_is_refused() -> None:
    sae = make(n_hidden=D).fit(data())
    X = data()
    code = sae.transform(X)
    for method in (sae.transform, sae.reconstruct, sae.inverse_transform):
        with pytest.raises(ValueError, match=r"^out:"):
            method(X, out=X)
        memory = np.empty((N + 1, D), np.float32)
        memory[1:] = X
        with pytest.raises(ValueError, match=r"^out:"):
            method(memory[1:], out=memory[:-1])
        np.testing.assert_array_equal(memory[1:], X)
    np.testing.assert_array_equal(sae.transform(X), code)


# The low level

CONFIG = Config(D, (LayerConfig(H), LayerConfig(D)))


@pytest.fixture
def engine() -> Engine:
    engine = Engine(CONFIG, "cpu")
    engine.set("W1", data(H, D))
    return engine


def state_of(engine: Engine) -> list[bytes]:
    return [engine.get(name).tobytes() for name in engine.state_names()] + [str(engine.steps).encode()]


ENGINE_ROWS = {
    "1-D": data()[0],
    "3-D": data().reshape(N, 2, 3),
    "wrong width": data(N, D + 1),
    "strings": np.full((N, D), "x"),
    "objects": data().astype(object),
    "complex": data() * 1j,
    "dates": np.zeros((N, D), "M8[s]"),
    "None": None,
    "ragged": [[1.0], [1.0, 2.0]],
    "a tensor elsewhere": Broken(BufferError("on a GPU")),
}


@pytest.mark.parametrize("kind", ENGINE_ROWS)
def test_bad_rows_of_an_engine(kind: str, engine: Engine) -> None:
    before = state_of(engine)
    calls = (engine.step, engine.run_epoch, engine.gradient, engine.evaluate, engine.encode)
    for call in (*calls, engine.reconstruct, engine.score):
        with pytest.raises(ValueError, match=r"^X: expected"):
            call(ENGINE_ROWS[kind])
    with pytest.raises(ValueError, match=r"^H: expected"):
        engine.decode(ENGINE_ROWS[kind])
    assert state_of(engine) == before


def test_rows_that_are_not_finite_name_themselves(engine: Engine) -> None:
    before = state_of(engine)
    for value in (math.nan, math.inf):
        for call in (engine.step, engine.gradient):
            with pytest.raises(ValueError, match=r"^X: row 7 contains"):
                call(with_value(value))
        order = np.arange(N)[::-1].copy()
        with pytest.raises(ValueError, match=r"^X: row 7 contains"):
            engine.run_epoch(with_value(value), order)
    assert state_of(engine) == before
    engine.run_epoch(with_value(math.nan), np.delete(np.arange(N), 7))  # a row that is not taken is not read
    assert engine.steps == 1


def test_other_bad_arguments_of_an_engine(engine: Engine) -> None:
    X = data()
    before = state_of(engine)
    for order in ([0.5], [True], ["a"], [[1]], [N], [-1], [2**63], 3):
        with pytest.raises(ValueError, match=r"^order: expected"):
            engine.run_epoch(X, order)
    for size in (0, -1, 2.0, "8", True, [8]):
        with pytest.raises(ValueError, match=r"^batch_size: expected"):
            engine.run_epoch(X, None, size)
    for weights in (np.ones(N - 1), -np.ones(N), np.full(N, np.nan), ["x"] * N, np.ones((N, 1)), np.ones(N) * 1j):
        for call in (engine.step, engine.gradient, engine.evaluate):
            with pytest.raises(ValueError, match=r"^sample_weight: expected"):
                call(X, sample_weight=weights)
    for call in (engine.step, engine.gradient, engine.evaluate):
        with pytest.raises(ValueError, match=r"^X: expected at least one row"):
            call(X[:0])
    for value in ("x", math.nan, -1, None, True):
        with pytest.raises(ValueError, match=r"^learning_rate: expected"):
            engine.learning_rate = value
    for value in (-1, 1.5, "x", 2**70, None, True):
        with pytest.raises(ValueError, match=r"^steps: expected"):
            engine.steps = value
    bad = [np.zeros((H, D + 1)), np.zeros(H * D), np.full((H, D), np.nan), [[object()] * D] * H, [[1], [1, 2]]]
    for value in (*bad, np.zeros((H, D)) * 1j, "x", None):
        with pytest.raises(ValueError, match=r"^W1"):
            engine.set("W1", value)
    with pytest.raises(ValueError, match="'W9'"):
        engine.get("W9")
    with pytest.raises(ValueError, match="'W9'"):
        engine.set("W9", np.zeros(3))
    for device in ("tpu", "", 5, None):
        with pytest.raises(ValueError, match=r"^device: expected"):
            Engine(CONFIG, device)
    for rows in (-1, 1.5, "x", 2**70):
        with pytest.raises(ValueError, match=r"^full_batch_rows: expected"):
            Engine(CONFIG, "cpu", rows)
    assert state_of(engine) == before


BAD_CONFIGS = [
    ({"n_features": 0}, "n_features"),
    ({"n_features": 5.0}, "n_features"),
    ({"n_features": D + 1}, "last layer"),
    ({"layers": ()}, "layers"),
    ({"layers": None}, "layers"),
    ({"layers": 5}, "layers"),
    ({"layers": "ab"}, "layers"),
    ({"layers": {"units": 5}}, "layers"),
    ({"layers": (LayerConfig(H), "x")}, r"layers\[1\]"),
    ({"layers": (LayerConfig(0), LayerConfig(D))}, r"layers\[0\].units"),
    ({"layers": (LayerConfig(H, penalty="x"), LayerConfig(D))}, r"layers\[0\].penalty"),
    ({"layers": (LayerConfig(H), LayerConfig(D, penalty="l1"))}, r"layers\[1\].penalty"),
    ({"n_encoder_layers": 3}, "n_encoder_layers"),
    ({"n_encoder_layers": -1}, "n_encoder_layers"),
    ({"tied": True, "n_encoder_layers": 2}, "tied"),
    ({"tied": True, "layers": (LayerConfig(H), LayerConfig(H), LayerConfig(D))}, "tied"),
]


@pytest.mark.parametrize(("change", "text"), BAD_CONFIGS, ids=lambda value: str(value)[:40])
def test_bad_configs(change: dict[str, Any], text: str) -> None:
    config = dataclasses.replace(CONFIG, **change)
    with pytest.raises(ValueError, match=text):
        config.validate()
    with pytest.raises(ValueError, match=text):
        Engine(config)


def test_configs_from_other_values() -> None:
    values = CONFIG.to_dict()
    assert Config.from_dict(values) == CONFIG
    for bad in (None, [], "x", {}, {"layers": 3}, {**values, "more": 1}, {**values, "layers": [{"unit": 3}]}):
        with pytest.raises(ValueError, match=r"^config: "):
            Config.from_dict(bad)


def test_bad_thread_counts() -> None:
    before = fastsae.get_num_threads()
    for count in (0, -1, 1025, 1.5, "2", None, True, 2**70):
        with pytest.raises(ValueError, match=r"^count: expected"):
            fastsae.set_num_threads(count)
    assert fastsae.get_num_threads() == before


def test_checks_accept_what_they_should() -> None:
    options_of.check_integer("a", np.int8(3), 1)
    options_of.check_integer("a", np.array(3), 3, 3)
    options_of.check_real("a", np.float16(0.5), 0, 1)
    options_of.check_real("a", 0, 0, 1)
    options_of.check_real("a", 1, 0, 1, "(]")
    options_of.check_bool("a", np.False_)
    options_of.check_choice("a", np.str_("b"), ("b",))


# Memory

# Calls that need more than the 300 MB that are left to them, and what the error says.
TOO_LARGE = {
    # 10**7 x 6 parameters, gradients and moments
    "sae.set_params(n_hidden=10**7).fit(data())": "could not allocate [0-9]+ bytes; [0-9]+ bytes are free",
    "make(n_hidden=10**7).partial_fit(data())": "could not allocate [0-9]+ bytes; [0-9]+ bytes are free",
    # the scratch of a step
    "sae.set_params(batch_size=None).partial_fit(np.broadcast_to(data(1), (2 * 10**7, D)))": "",
    # the result
    "sae.transform(np.broadcast_to(data(1), (5 * 10**7, D)))": "",
    "sae.score_samples(np.broadcast_to(data(1), (10**8, D)))": "",
}
_LIMITED = """
import re, resource, sys
import numpy as np
sys.path.insert(0, {folder!r})
from test_bad_input import TOO_LARGE, D, data, everything, make
import fastsae

fastsae.set_num_threads(1)
sae = make().fit(data())
before = everything(sae)
with open("/proc/self/statm") as file:
    now = int(file.read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (now + 300 * 2**20, resource.RLIM_INFINITY))
for call, text in TOO_LARGE.items():
    try:
        eval(call)
    except MemoryError as error:
        assert re.search(text, str(error)), (call, str(error))
    else:
        sys.exit("no error: " + call)
    sae.set_params(**make().get_params())
    assert everything(sae) == before, call
sae.partial_fit(data())
make().fit(data())
"""


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs Linux")
def test_failed_allocations() -> None:
    script = _LIMITED.format(folder=os.path.dirname(__file__))
    child = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert child.returncode == 0, child.stderr


def test_more_memory_than_there_is() -> None:
    sae = make().fit(data())
    before = everything(sae)
    for n_hidden in (10**11, 10**15):
        with pytest.raises(MemoryError, match=r"could not allocate \d+ bytes; \d+ bytes are free"):
            sae.set_params(n_hidden=n_hidden).fit(data())
    for n_hidden in (2**60, 2**63 - 1):
        with pytest.raises((ValueError, MemoryError)):
            sae.set_params(n_hidden=n_hidden).fit(data())
    sae.set_params(n_hidden=H)
    assert everything(sae) == before
