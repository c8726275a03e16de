"""Devices that the tests run on. Tolerances are in tolerances.py."""

from __future__ import annotations

import os

# The reference multiplies small matrices, which NumPy does fastest alone. Read when NumPy is imported.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import signal
from collections.abc import Iterator

import pytest

import fastsae

# A shell starts what runs in its background with Ctrl-C ignored, and tests of interrupts would wait for ever.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def has_cuda() -> bool:
    """Whether the CUDA backend works; with FASTSAE_REQUIRE_CUDA=1 its absence is an error."""
    from fastsae import Config, Engine, LayerConfig

    try:
        Engine(Config(1, (LayerConfig(1),)), "cuda")
    except fastsae.DeviceError:
        if os.environ.get("FASTSAE_REQUIRE_CUDA") == "1":
            raise
        return False
    return True


DEVICES = ["cpu"]
if has_cuda():
    DEVICES.append("cuda")


@pytest.fixture(params=DEVICES, scope="session")
def device(request: pytest.FixtureRequest) -> str:
    """Each device that exists here."""
    return request.param


@pytest.fixture(params=["cuda"], scope="session")
def cuda(request: pytest.FixtureRequest) -> str:
    """The GPU, for what the CPU does not offer; a parameter, so that ``-k cuda`` finds its tests."""
    if "cuda" not in DEVICES:
        pytest.skip(f"needs a GPU: {fastsae.cuda_unavailable_reason()}")
    return request.param


@pytest.fixture
def threads() -> Iterator[None]:
    """Puts the number of threads back."""
    before = fastsae.get_num_threads()
    yield
    fastsae.set_num_threads(before)
