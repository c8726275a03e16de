"""Checkpoint files: what they keep, that they are never half written, and that no file can do harm."""

from __future__ import annotations

import errno
import json
import os
import pickle
import random
import resource
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

import fastsae
from fastsae import SparseAutoencoder, checkpoint

N, D, H = 30, 5, 3


def data() -> np.ndarray:
    return np.random.default_rng(0).uniform(0.05, 0.95, (N, D)).astype(np.float32)


def make(**options: Any) -> SparseAutoencoder:
    small = {"n_hidden": H, "max_epochs": 2, "batch_size": 8, "random_state": 0, "verbose": False}
    return SparseAutoencoder(**{**small, **options})


def saved(path: Path, **options: Any) -> Path:
    make(**options).fit(data()).save(path)
    return path


def assert_same(a: SparseAutoencoder, b: SparseAutoencoder) -> None:
    assert type(a) is type(b)
    assert a._engine.config == b._engine.config
    assert a._engine.state_names() == b._engine.state_names()
    for name in a._engine.state_names():
        np.testing.assert_array_equal(a._engine.get(name), b._engine.get(name), err_msg=name, strict=True)
    assert a._engine.steps == b._engine.steps
    assert a._state.to_dict() == b._state.to_dict()
    assert a._state.best_parameters.keys() == b._state.best_parameters.keys()
    for name, value in a._state.best_parameters.items():
        np.testing.assert_array_equal(value, b._state.best_parameters[name], strict=True)
    np.testing.assert_array_equal(a.transform(data()), b.transform(data()))
    np.testing.assert_array_equal(a.reconstruct(data()), b.reconstruct(data()))


def assert_works(sae: SparseAutoencoder) -> None:
    """Every public method does its work."""
    X = np.full((3, sae.n_features_in_), 0.5, np.float32)
    H = sae.transform(X)
    assert H.shape == (3, len(sae.intercept_))
    assert sae.inverse_transform(H).shape == sae.reconstruct(X).shape == X.shape
    assert sae.score_samples(X).shape == (3,)
    assert sae.decoder_.shape == sae.components_.T.shape
    repr(sae)


# Round trips


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(
    "options",
    [
        *({"solver": solver} for solver in ("sgd", "momentum", "nesterov", "adam", "adamw", "lbfgs")),
        {"tied": True},
        {"rho_hat": "ema"},
        {"rho_hat": "full", "batch_size": None},
        {"early_stopping": True, "validation_fraction": 0.3},
        {"penalty": "log", "activation": "relu", "output_activation": "identity", "loss_reduction": "mean"},
        {"loss": "cross_entropy"},
        {"max_epochs": 0},
    ],
    ids=lambda options: "-".join(map(str, options.values())),
)
def test_round_trip(options: dict[str, Any], dtype: str, tmp_path: Path) -> None:
    sae = make(**options, dtype=dtype).fit(data())
    sae.save(tmp_path / "model")
    loaded = fastsae.load(tmp_path / "model")
    assert_same(loaded, sae)
    assert loaded.get_params() == sae.get_params()
    assert_works(loaded)
    again = loaded.set_params(max_epochs=4).resume(data())
    np.testing.assert_array_equal(again.components_, sae.set_params(max_epochs=4).resume(data()).components_)


def test_numbers_of_numpy_are_kept(tmp_path: Path) -> None:
    options = {
        "n_hidden": np.int32(4),
        "rho": np.float32(0.25),
        "beta": np.float64(2.0),
        "tied": np.True_,
        "batch_size": np.int64(8),
        "random_state": np.int64(7),
    }
    sae = make(**options).fit(data())
    sae.save(tmp_path / "model")
    loaded = fastsae.load(tmp_path / "model")
    assert {name: loaded.get_params()[name] for name in options} == options
    np.testing.assert_array_equal(loaded.transform(data()), sae.transform(data()))
    loaded.set_params(max_epochs=3).resume(data())


def test_what_is_no_number_is_left_out(tmp_path: Path) -> None:
    sae = make(callback=print, random_state=np.random.RandomState(0), max_epochs=0).fit(data())
    sae.save(tmp_path / "model")
    loaded = fastsae.load(tmp_path / "model")
    assert loaded.callback is None
    assert loaded.random_state is None
    # The seed of the row orders is kept all the same.
    a = sae.set_params(max_epochs=2, callback=None).resume(data())
    assert_same(loaded.set_params(max_epochs=2).resume(data()), a)


def test_feature_names(tmp_path: Path) -> None:
    import pandas as pd

    frame = pd.DataFrame(data(), columns=["größe", "b", "c", "d", 'e"'])
    make().fit(frame).save(tmp_path / "model")
    loaded = fastsae.load(tmp_path / "model")
    assert list(loaded.feature_names_in_) == list(frame.columns)
    loaded.transform(frame)
    with pytest.raises(ValueError, match="feature names"):
        loaded.transform(frame[["b", "größe", "c", "d", 'e"']])
    saved(tmp_path / "model")
    assert not hasattr(fastsae.load(tmp_path / "model"), "feature_names_in_")


def test_any_safetensors_reader_reads_it(tmp_path: Path) -> None:
    sae = make().fit(data())
    sae.save(tmp_path / "model")
    tensors = load_file(tmp_path / "model")
    np.testing.assert_array_equal(tensors["W1"], sae.components_)
    np.testing.assert_array_equal(tensors["b2"], sae.decoder_intercept_)


@pytest.mark.parametrize("kind", [str, Path, lambda p: os.fsencode(p)])
def test_kinds_of_paths(kind: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sae = make().fit(data())
    sae.save(kind(tmp_path / "größe.safetensors"))
    assert_same(fastsae.load(kind(tmp_path / "größe.safetensors")), sae)
    monkeypatch.chdir(tmp_path)
    sae.save(kind(Path("here")))
    assert_same(fastsae.load(kind(Path("here"))), sae)
    sae.set_params(checkpoint=kind(tmp_path / "own"), max_epochs=3).resume(data())
    assert fastsae.load(tmp_path / "own").n_iter_ == 3


def test_training_goes_on_only_in_its_own_file(tmp_path: Path) -> None:
    own, copied, elsewhere = tmp_path / "own", tmp_path / "snapshot", tmp_path / "moved"
    sae = make(checkpoint=own).fit(data())
    sae.save(copied)
    elsewhere.mkdir()
    own.rename(elsewhere / "own")
    moved = fastsae.load(elsewhere / "own")
    assert moved.checkpoint == str(elsewhere / "own")
    assert fastsae.load(copied).checkpoint is None
    moved.set_params(max_epochs=3).resume(data())
    assert fastsae.load(elsewhere / "own").n_iter_ == 3
    assert not own.exists()


# Atomic


def only(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.iterdir())


@pytest.mark.parametrize("call", ["fsync", "replace", "chmod"])
def test_a_full_disk_leaves_the_old_file(call: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = saved(tmp_path / "model")
    before = path.read_bytes()
    sae = make(random_state=1).fit(data())

    def full(*arguments: Any, **options: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, call, full)
        with pytest.raises(OSError, match="No space left"):
            sae.save(path)
    assert path.read_bytes() == before
    assert only(tmp_path) == ["model"]
    assert_works(sae)
    sae.save(path)
    assert_same(fastsae.load(path), sae)


def test_ctrl_c_while_writing_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = saved(tmp_path / "model")
    before = path.read_bytes()

    def interrupted(descriptor: int) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", interrupted)
        with pytest.raises(KeyboardInterrupt):
            make(random_state=1).fit(data()).save(path)
    assert path.read_bytes() == before
    assert only(tmp_path) == ["model"]


def test_the_content_is_on_disk_before_the_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    fsync, replace = os.fsync, os.replace

    def spy_fsync(descriptor: int) -> None:
        calls.append(("fsync", os.fstat(descriptor).st_size))
        fsync(descriptor)

    def spy_replace(source: str, target: str) -> None:
        calls.append(("replace", os.stat(source).st_size))
        assert os.path.dirname(source) == os.path.dirname(target)  # a rename within one file system
        replace(source, target)

    monkeypatch.setattr(os, "fsync", spy_fsync)
    monkeypatch.setattr(os, "replace", spy_replace)
    path = saved(tmp_path / "model")
    size = path.stat().st_size
    assert calls[:2] == [("fsync", size), ("replace", size)]
    assert len(calls) == 3  # and the folder


def test_a_limit_on_file_size_leaves_the_old_file(tmp_path: Path) -> None:
    path = saved(tmp_path / "model")
    before = path.read_bytes()
    script = f"""
        import resource, sys
        sys.path.insert(0, {os.path.dirname(__file__)!r})
        from test_checkpoint import assert_works, data, make
        sae = make(n_hidden=40).fit(data())
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))
        try:
            sae.save({str(path)!r})
        except OSError as error:
            assert "too large" in str(error), error
        else:
            sys.exit("written")
        assert_works(sae)
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
        sae.save({str(path) + "2"!r})
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(script)], check=True, timeout=60)
    assert path.read_bytes() == before
    assert only(tmp_path) == ["model", "model2"]


def unwritable(tmp_path: Path) -> dict[str, Any]:
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    return {
        "no such folder": tmp_path / "absent" / "model",
        "under a file": tmp_path / "file" / "model",
        "a folder": tmp_path / "folder",
        "a pipe": tmp_path / "pipe",
        "a device": "/dev/null",
        "a system folder": "/proc/model",
        "empty": "",
        "a name too long": tmp_path / ("x" * 300),
    }


def test_unwritable_targets(tmp_path: Path) -> None:
    X = data()
    sae = make().fit(X)
    before = sae.transform(X)
    for kind, target in unwritable(tmp_path).items():
        with pytest.raises(OSError):
            sae.save(target)
        np.testing.assert_array_equal(sae.transform(X), before, err_msg=kind)
        # fit says so before it trains where that can be known.
        with pytest.raises(OSError):
            sae.set_params(checkpoint=target).fit(X)
        if kind not in ("a system folder", "a name too long"):
            np.testing.assert_array_equal(sae.transform(X), before, err_msg=kind)
        sae.set_params(checkpoint=None).fit(X)
    assert os.path.exists("/dev/null")
    assert not os.path.isfile("/dev/null")
    assert only(tmp_path) == ["file", "folder", "pipe"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    sae = make()
    with pytest.raises(PermissionError):
        sae.set_params(checkpoint=tmp_path / "model").fit(data())
    tmp_path.chmod(0o700)


def test_a_null_byte_in_a_path(tmp_path: Path) -> None:
    sae = make().fit(data())
    for call in (sae.save, fastsae.load):
        with pytest.raises(ValueError, match="null byte"):
            call(str(tmp_path / "a\0b"))


# Damaged files


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A file with every kind of content: moments, best parameters, a moving average, half an epoch."""
    options = {"rho_hat": "ema", "early_stopping": True}
    return saved(tmp_path_factory.mktemp("whole") / "model", **options).read_bytes()


def refused(path: Path, text: str | None = None) -> None:
    before = time.perf_counter()
    with pytest.raises(ValueError, match=text) as caught:
        fastsae.load(path)
    assert type(caught.value) is ValueError
    assert str(path) in str(caught.value)
    assert time.perf_counter() - before < 2


def test_every_truncation_is_refused(whole: bytes, tmp_path: Path) -> None:
    path = tmp_path / "model"
    path.write_bytes(whole)
    fastsae.load(path)
    with open(path, "r+b") as file:
        for length in reversed(range(len(whole))):
            file.truncate(length)
            refused(path)


def test_every_appended_byte_is_refused(whole: bytes, tmp_path: Path) -> None:
    for extra in (b"\0", b"x" * 1000):
        (tmp_path / "model").write_bytes(whole + extra)
        refused(tmp_path / "model")


def loads_or_is_refused(path: Path) -> bool:
    """Whether it loads; then the model works. The only other outcome is ValueError."""
    try:
        sae = fastsae.load(path)
    except ValueError:
        return False
    assert_works(sae)
    try:
        sae.set_params(max_epochs=sae.n_iter_ + 1, verbose=False, checkpoint=None).resume(data())
    except (ValueError, FloatingPointError):
        assert_works(sae)
    return True


def test_flipped_bits(whole: bytes, tmp_path: Path) -> None:
    path = tmp_path / "model"
    header = int.from_bytes(whole[:8], "little")
    chance = random.Random(0)
    outcomes = []
    for trial in range(1500):
        content = bytearray(whole)
        # Half of the trials in the header, where it matters most.
        last = 8 + header if trial % 2 else len(whole)
        for _ in range(chance.choice((1, 1, 1, 2, 8))):
            content[chance.randrange(last)] ^= 1 << chance.randrange(8)
        path.write_bytes(content)
        outcomes.append(loads_or_is_refused(path))
    assert 50 < sum(outcomes) < 1450


def test_replaced_digits_and_words_of_the_header(whole: bytes, tmp_path: Path) -> None:
    """The syntax stays right, so that the values themselves are met."""
    path = tmp_path / "model"
    size = int.from_bytes(whole[:8], "little")
    header, rest = whole[8 : 8 + size].decode(), whole[8 + size :]
    chance = random.Random(0)
    values = ["0", "-1", "7", "1e999", "-1e999", "NaN", "null", "true", "{}", "[]", "9" * 30, "0.5", '\\"x\\"']
    outcomes = []
    for _ in range(600):
        places = [i for i, letter in enumerate(header) if letter in ":," and header[i + 1] == " "]
        first = chance.choice(places) + 2
        last = min(i for i in (header.find(end, first) for end in (",", "}", "]")) if i > 0)
        content = (header[:first] + chance.choice(values) + header[last:]).encode()
        path.write_bytes(len(content).to_bytes(8, "little") + content + rest)
        outcomes.append(loads_or_is_refused(path))
    assert 20 < sum(outcomes) < 580


# Hostile files


Edit = Callable[[dict[str, np.ndarray], dict[str, str]], None]


def rewritten(path: Path, edit: Edit, **options: Any) -> Path:
    """A sound file, changed by `edit(tensors, header)`."""
    saved(path, **{"rho_hat": "ema", "early_stopping": True, **options})
    tensors = load_file(path)
    with safe_open(path, "numpy") as file:
        header = file.metadata()
    edit(tensors, header)
    save_file(tensors, path, header)
    return path


def entry(key: str, **values: Any) -> Edit:
    """Changes values in one JSON entry of the header."""

    def edit(tensors: dict[str, np.ndarray], header: dict[str, str]) -> None:
        header[key] = json.dumps({**json.loads(header[key]), **values})

    return edit


def text(key: str, value: str | None) -> Edit:
    """Changes, or removes, a whole entry of the header."""

    def edit(tensors: dict[str, np.ndarray], header: dict[str, str]) -> None:
        header.pop(key)
        if value is not None:
            header[key] = value

    return edit


def tensor(name: str, change: Callable[[np.ndarray], np.ndarray | None]) -> Edit:
    def edit(tensors: dict[str, np.ndarray], header: dict[str, str]) -> None:
        value = change(tensors.pop(name).copy())
        if value is not None:
            tensors[name] = value

    return edit


def put(value: float) -> Callable[[np.ndarray], np.ndarray]:
    def change(array: np.ndarray) -> np.ndarray:
        array.flat[-1] = value
        return array

    return change


def extra(tensors: dict[str, np.ndarray], header: dict[str, str]) -> None:
    tensors["W3"] = np.zeros((2, 2), np.float32)


LAYER = {"units": D, "activation": "sigmoid", "penalty": "none", "beta": 3.0, "rho": 0.05}
DEEP = "[" * 100_000 + "]" * 100_000

# What is wrong, and what the text of the error must say.
HOSTILE: dict[str, tuple[Edit, str]] = {
    "unknown class": (text("class", "os.system"), "unknown estimator"),
    "newer version": (text("version", "2"), "version 2"),
    "version 0": (text("version", "0"), "version 0"),
    "version is no number": (text("version", "one"), "not JSON"),
    "other format": (text("format", "gguf"), "no fastsae header"),
    "nested": (text("trainer", DEEP), "trainer"),
    "nested config": (text("config", DEEP), "config"),
    "number of 5000 digits": (text("steps", "9" * 5000), "digits"),
    "number of 4000 digits": (text("steps", "9" * 4000), "steps"),
    "2**70 steps": (text("steps", str(2**70)), "steps"),
    "negative steps": (text("steps", "-1"), "steps"),
    "steps is true": (text("steps", "true"), "steps"),
    "steps is a fraction": (text("steps", "1.5"), "steps"),
    "config is a list": (text("config", "[]"), "config"),
    "parameters is null": (text("parameters", "null"), "parameters"),
    "unknown option": (entry("parameters", colour=1), "colour"),
    "unknown model option": (entry("config", colour=1), "colour"),
    "huge n_features": (entry("config", n_features=10**12, layers=[LAYER, {**LAYER, "units": 10**12}]), "shape"),
    "n_features beyond 64 bits": (entry("config", n_features=10**30), "n_features"),
    "n_features is a string": (entry("config", n_features="5"), "n_features"),
    "n_features is NaN": (entry("config", n_features=float("nan")), "n_features"),
    "huge layer": (entry("config", layers=[{**LAYER, "units": 10**12}, LAYER]), "shape"),
    "no layers": (entry("config", layers=[]), "layers"),
    "layers is a number": (entry("config", layers=3), "config"),
    "layers are strings": (entry("config", layers=["a", "b"]), "config"),
    "one layer": (entry("config", layers=[LAYER]), "its model is not that of a SparseAutoencoder"),
    "four layers": (entry("config", layers=[LAYER] * 4), "its model is not that of a SparseAutoencoder"),
    "no encoder": (entry("config", n_encoder_layers=0), "its model is not that of a SparseAutoencoder"),
    "another width": (entry("config", layers=[{**LAYER, "units": H + 1}, LAYER]), "shape"),
    "relu and kl": (
        entry("config", layers=[{**LAYER, "units": H, "activation": "relu", "penalty": "kl"}, LAYER]),
        "bounded",
    ),
    "learning rate beyond floats": (entry("config", learning_rate=10**400), "learning_rate"),
    "learning rate NaN": (entry("config", learning_rate=float("nan")), "learning_rate"),
    "learning rate infinite": (entry("config", learning_rate=float("inf")), "learning_rate"),
    "beta1 is a list": (entry("config", beta1=[0.9]), "beta1"),
    "another dtype": (entry("config", dtype="float64"), "dtype|float64"),
    "unknown dtype": (entry("config", dtype="float16"), "dtype"),
    "another optimizer": (entry("config", optimizer="sgd"), "unknown"),
    "another rho_hat": (entry("config", rho_hat="batch"), "unknown"),
    "tied": (entry("config", tied=True), "unknown"),
    "state lacks a seed": (text("trainer", "{}"), "trainer"),
    "state with more": (entry("trainer", more=1), "trainer"),
    "state with best parameters": (entry("trainer", best_parameters={"W1": [1]}), "trainer"),
    "negative epoch": (entry("trainer", epoch=-1), "epoch"),
    "epoch is a float": (entry("trainer", epoch=1.0), "epoch"),
    "negative seed": (entry("trainer", seed=-1), "seed"),
    "more rows done than there are": (entry("trainer", rows_done=10**9), "rows_done"),
    "sums of other names": (entry("trainer", sums={"a": 1.0}), "sums"),
    "sums are a list": (entry("trainer", sums=["weight"]), "sums"),
    "sums are strings": (entry("trainer", piece_sums=dict.fromkeys(["weight"], "x")), "sums"),
    "history is a list": (entry("trainer", history=[1]), "history"),
    "history of strings": (entry("trainer", history={"loss": ["a", "b"]}), "history"),
    "history too long": (entry("trainer", history={"loss": [1.0] * 3}), "history"),
    "finished is a number": (entry("trainer", finished=1), "finished"),
    "best loss is null": (entry("trainer", best_loss=None), "best_loss"),
    "patience is negative": (entry("trainer", epochs_since_best=-3), "epochs_since_best"),
    "too few feature names": (text("feature_names", '["a"]'), "feature names"),
    "feature names are numbers": (text("feature_names", json.dumps([1] * D)), "feature names"),
    "feature names are an object": (text("feature_names", "{}"), "feature_names"),
    "extra tensor": (extra, "W3"),
    **{
        f"{name} is missing": (tensor(name, lambda array: None), f"{name}.* missing")
        for name in ("W1", "b2", "first_moment.W1", "second_moment.b1", "rho_hat1", "best.W2")
    },
    **{
        f"{name} has another shape": (tensor(name, lambda array: np.ravel(array)[:-1].copy()), name)
        for name in ("W1", "b1", "first_moment.W1", "rho_hat1", "best.W1")
    },
    **{
        f"{name} is transposed": (tensor(name, lambda array: array.T.copy()), name)
        for name in ("W1", "second_moment.W2", "best.W2")
    },
    **{
        f"{name} has another dtype": (tensor(name, lambda array: array.astype(np.float16)), name)
        for name in ("W1", "first_moment.b1", "rho_hat1", "best.b1")
    },
    **{
        f"{name} holds {value}": (tensor(name, put(value)), name)
        for name in ("W1", "b2", "first_moment.W1", "second_moment.W1", "rho_hat1", "best.W1")
        for value in (float("nan"), float("inf"))
    },
    "negative second moment": (tensor("second_moment.W1", put(-1.0)), "second moment"),
    "integers": (tensor("W1", lambda array: array.astype(np.int64)), "W1"),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_files_are_refused(kind: str, tmp_path: Path) -> None:
    edit, message = HOSTILE[kind]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    refused(rewritten(tmp_path / "model", edit), message)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # kilobytes


@pytest.mark.parametrize(
    "values",
    [
        {"n_hidden": "x"},
        {"n_hidden": 10**12},
        {"device": ["cpu"]},
        {"device": "cuda:99"},
        {"callback": "os.system"},
        {"checkpoint": 5},
        {"verbose": {"a": 1}},
        {"random_state": "x"},
        {"dtype": "float16"},
        {"batch_size": -1},
    ],
    ids=str,
)
def test_bad_options_are_met_when_they_are_used(values: dict[str, Any], tmp_path: Path) -> None:
    sae = fastsae.load(rewritten(tmp_path / "model", entry("parameters", **values)))
    assert_works(sae)
    if "verbose" not in values and "device" not in values and "checkpoint" not in values:
        with pytest.raises((ValueError, MemoryError)):
            sae.fit(data())
    assert_works(sae)


def test_a_file_cannot_say_where_to_write(tmp_path: Path) -> None:
    target = tmp_path / "victim"
    target.write_text("precious")
    for hostile in (str(target), str(tmp_path / "new"), "../victim"):
        path = rewritten(tmp_path / "model", entry("parameters", checkpoint=hostile, max_epochs=4))
        sae = fastsae.load(path)
        assert sae.checkpoint is None
        sae.resume(data())
    assert target.read_text() == "precious"
    assert only(tmp_path) == ["model", "victim"]


def test_not_checkpoints_at_all(whole: bytes, tmp_path: Path) -> None:
    path = tmp_path / "model"
    size = int.from_bytes(whole[:8], "little")
    contents = {
        "empty": b"",
        "text": b"hello",
        "zeros": bytes(10_000),
        "pickle": pickle.dumps({"a": np.zeros(9)}),
        "huge header": (2**63 - 1).to_bytes(8, "little") + whole[8:],
        "largest header": b"\xff" * 8 + whole[8:],
        "header of 90 MB": (90_000_000).to_bytes(8, "little") + whole[8:],
        "no header": (0).to_bytes(8, "little"),
        "not JSON": whole[:8] + b"x" * size,
        "not UTF-8": whole[:8] + b"\xff" * size,
        "nested": (200_000).to_bytes(8, "little") + DEEP.encode(),
    }
    for content in contents.values():
        path.write_bytes(content)
        refused(path)
    save_file({"W1": np.zeros((2, 2))}, path)
    refused(path, "no fastsae header")


def raw(tensors: dict[str, Any], size: int) -> bytes:
    header = json.dumps(tensors).encode()
    return len(header).to_bytes(8, "little") + header + bytes(size)


@pytest.mark.parametrize(
    "tensors",
    [
        {"W1": {"dtype": "F32", "shape": [10**12, 10**12], "data_offsets": [0, 16]}},
        {"W1": {"dtype": "F32", "shape": [2**62, 4], "data_offsets": [0, 16]}},
        {"W1": {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 10**15]}},
        {"W1": {"dtype": "F32", "shape": [2, 2], "data_offsets": [16, 0]}},
        {"W1": {"dtype": "F32", "shape": [-2, -2], "data_offsets": [0, 16]}},
        {"W1": {"dtype": "F7", "shape": [2, 2], "data_offsets": [0, 16]}},
        {
            "W1": {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]},
            "W2": {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]},
        },
        {"__metadata__": {"format": 7}},
        {"__metadata__": []},
    ],
    ids=lambda tensors: str(tensors)[:60],
)
def test_hostile_safetensors_headers(tensors: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "model"
    path.write_bytes(raw(tensors, 16))
    refused(path)


@pytest.mark.parametrize("name", ["BF16", "F16", "I64", "BOOL", "F8_E4M3", "U8", "C64"])
def test_tensors_of_other_dtypes(name: str, tmp_path: Path, whole: bytes) -> None:
    size = int.from_bytes(whole[:8], "little")
    header = json.loads(whole[8 : 8 + size])
    width = {"BF16": 2, "F16": 2, "I64": 8, "BOOL": 1, "F8_E4M3": 1, "U8": 1, "C64": 8}[name]
    # Every tensor anew, W1 with the other dtype.
    offset = 0
    for key, about in header.items():
        if key == "__metadata__":
            continue
        about["dtype"] = name if key == "W1" else about["dtype"]
        each = width if key == "W1" else {"F32": 4, "F64": 8}[about["dtype"]]
        length = each * int(np.prod(about["shape"]))
        about["data_offsets"] = [offset, offset + length]
        offset += length
    (tmp_path / "model").write_bytes(raw(header, offset))
    refused(tmp_path / "model")


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        fastsae.load(tmp_path / "absent")
    with pytest.raises(IsADirectoryError):
        fastsae.load(tmp_path)
    with pytest.raises(NotADirectoryError):
        fastsae.load(saved(tmp_path / "model") / "model")
    with pytest.raises(OSError):
        fastsae.load(tmp_path / ("x" * 300))
    for value in (None, 3, 1.5):
        with pytest.raises(TypeError):
            fastsae.load(value)


def test_loading_leaves_the_file_alone(tmp_path: Path) -> None:
    path = saved(tmp_path / "model")
    before = path.read_bytes()
    sae = fastsae.load(path)
    path.unlink()
    path.write_bytes(b"\xff" * len(before))  # the model holds no memory of the file
    expected = make().fit(data())
    np.testing.assert_array_equal(sae.transform(data()), expected.transform(data()))


def test_the_file_is_readable_as_the_umask_says(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        path = saved(tmp_path / "model")
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o777 == 0o640
    assert checkpoint.VERSION == 1
