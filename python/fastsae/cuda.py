"""The optional library of CUDA devices."""

from __future__ import annotations

import contextlib
import functools
import importlib
import logging

from fastsae import _core

_log = logging.getLogger("fastsae")


@functools.cache
def cuda_blas() -> str | None:
    """The library that large matrix products on CUDA devices use.

    It is taken from the process if PyTorch, say, has loaded it, else from the package nvidia-cublas (which
    cuda-pathfinder finds), else from the system. Without it fastsae's own kernels compute everything.

    Returns
    -------
    str or None
        Such as ``"cuBLASLt 13.1.1"``; None where there is no such library or no CUDA device.
    """
    if _core.cuda_unavailable_reason():
        return None
    with contextlib.suppress(Exception):  # an optional package, and whatever it raises where it finds nothing
        importlib.import_module("cuda.pathfinder").load_nvidia_dynamic_lib("cublasLt")
    name = _core.cuda_blas() or None
    if name is None:
        _log.warning(
            "cuBLASLt was not found, so large matrix products are slower than they could be; "
            "pip install nvidia-cublas cuda-pathfinder"
        )
    return name
