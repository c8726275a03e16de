"""What holds for the whole process: threads, and which devices there are."""

from __future__ import annotations

import re

from fastsae import _core
from fastsae.checks import check_integer


def get_num_threads() -> int:
    """Number of threads that CPU work uses.

    What :func:`set_num_threads` said, else the environment variables FASTSAE_NUM_THREADS or OMP_NUM_THREADS, else
    the processors this process may use.
    """
    return _core.num_threads()


def set_num_threads(count: int) -> None:
    """Set the number of threads of CPU work, for the whole process. Results do not depend on it.

    Raises
    ------
    ValueError
        If `count` is not an integer in [1, 1024].
    """
    check_integer("count", count, 1, 1024)
    _core.set_num_threads(int(count))


def devices() -> list[str]:
    """What `device` can be here: ``"cpu"``, and ``"cuda:0"``, ... for each usable GPU."""
    return _core.devices()


def cuda_unavailable_reason() -> str | None:
    """Why there is no CUDA device: no backend in this build, no driver, no GPU; None where there is one."""
    return _core.cuda_unavailable_reason() or None


def check_device(device: object) -> None:
    """Raise ValueError unless `device` can be the name of a device, here or elsewhere."""
    if not isinstance(device, str) or not re.fullmatch(r"auto|cpu|cuda(:\d{1,4})?", device):
        raise ValueError(f"device: expected 'auto', 'cpu', 'cuda' or 'cuda:N', got {device!r}")
