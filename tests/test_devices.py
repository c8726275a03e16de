"""Which devices there are, and what is said where one is missing."""

from __future__ import annotations

import numpy as np
import pytest

import fastsae
from fastsae import SparseAutoencoder, _core


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
        _core.Engine(fastsae.Config(1, (fastsae.LayerConfig(1),)).to_dict(), 0, "tpu")
