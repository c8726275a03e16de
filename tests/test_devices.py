"""Which devices there are, and what is said where one is missing."""

from __future__ import annotations

import functools
import logging
import sys
import types

import numpy as np
import pytest

import fastsae
from fastsae import SparseAutoencoder, _core, engine


def test_devices_and_the_reason_agree() -> None:
    names = fastsae.devices()
    assert names[0] == "cpu"
    assert all(name == f"cuda:{i}" for i, name in enumerate(names[1:]))
    reason = fastsae.cuda_unavailable_reason()
    assert (reason is None) == (len(names) > 1)


@pytest.mark.skipif(len(fastsae.devices()) > 1, reason="there is a GPU")
@pytest.mark.parametrize("name", ["cuda", "cuda:0", "cuda:3"])
def test_a_missing_device_says_why(name: str) -> None:
    reason = fastsae.cuda_unavailable_reason()
    with pytest.raises(fastsae.DeviceError) as caught:
        SparseAutoencoder(n_hidden=2, device=name, max_epochs=1).fit(np.eye(4, dtype=np.float32))
    assert reason
    assert reason in str(caught.value)
    assert name in str(caught.value)


@pytest.mark.parametrize("name", ["gpu", "cuda:", "cuda:x", "CUDA", "cpu:0", None, 0])
def test_an_unknown_device_is_refused(name: object) -> None:
    with pytest.raises(ValueError, match="device"):
        SparseAutoencoder(n_hidden=2, device=name, max_epochs=1).fit(np.eye(4, dtype=np.float32))


def test_a_model_of_a_missing_gpu_loads_on_another_device(tmp_path: object) -> None:
    model = SparseAutoencoder(n_hidden=2, max_epochs=1, random_state=0).fit(np.eye(4, dtype=np.float32))
    model.device = "cuda:999"
    path = f"{tmp_path}/model.safetensors"
    model.save(path)
    loaded = fastsae.load(path)
    assert loaded.device == "auto"
    np.testing.assert_array_equal(loaded.components_, model.components_)


def test_the_core_names_a_bad_device() -> None:
    with pytest.raises(ValueError, match="device: expected"):
        _core.Engine(fastsae.Config(1, (fastsae.LayerConfig(1),)).core(), "tpu")


@pytest.fixture
def a_gpu(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """As if there were one, with cuda-pathfinder installed; gives what that is asked to load."""
    asked: list[str] = []
    pathfinder = types.ModuleType("cuda.pathfinder")
    pathfinder.load_nvidia_dynamic_lib = asked.append  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "cuda", types.ModuleType("cuda"))
    monkeypatch.setitem(sys.modules, "cuda.pathfinder", pathfinder)
    monkeypatch.setattr(_core, "cuda_unavailable_reason", lambda: "")
    monkeypatch.setattr(_core, "cuda_blas", lambda: "cuBLASLt 13.1.1" if asked else "")
    monkeypatch.setattr(engine, "cuda_blas", functools.cache(engine.cuda_blas.__wrapped__))
    return asked


def test_cublaslt_is_sought_once_before_the_first_engine(
    a_gpu: list[str], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    sought_before = []
    monkeypatch.setattr(_core, "Engine", lambda *_: sought_before.append(list(a_gpu)))
    config = fastsae.Config(1, (fastsae.LayerConfig(1),))
    for device in ("cpu", "cuda", "cuda:0"):
        fastsae.Engine(config, device)
    assert sought_before == [[], ["cublasLt"], ["cublasLt"]]
    assert engine.cuda_blas() == "cuBLASLt 13.1.1"
    assert not caplog.records


def test_a_missing_cublaslt_is_said_once(
    a_gpu: list[str], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(name: str) -> None:
        raise RuntimeError(name)

    monkeypatch.setattr(sys.modules["cuda.pathfinder"], "load_nvidia_dynamic_lib", fail)
    assert engine.cuda_blas() is None
    assert engine.cuda_blas() is None
    assert [(record.name, record.levelno) for record in caplog.records] == [("fastsae", logging.WARNING)]
    assert "nvidia-cublas" in caplog.text
    assert "cuda-pathfinder" in caplog.text


@pytest.mark.skipif(len(fastsae.devices()) > 1, reason="there is a GPU")
def test_without_a_gpu_no_library_is_missed(caplog: pytest.LogCaptureFixture) -> None:
    assert fastsae.cuda_blas() is None
    assert not caplog.records
