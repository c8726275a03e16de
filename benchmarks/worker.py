"""What contenders have in common: a worker reads one JSON request a line and answers one JSON line.

Requests are ``prepare`` a row, run a ``slice`` of it, ``release``.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import sys
import time
import traceback
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

Row = dict[str, Any]
Arrays = dict[str, np.ndarray]
CHECKED_STEPS = 20  # after which all contenders must have the same loss


class Worker(ABC):
    """One contender on one device; `steps` of a row between two looks at the clock."""

    def __init__(self, device: str) -> None:
        self.device = device
        self.seconds_per_step = 0.0
        self.lasting: frozenset[str] = frozenset()

    @abstractmethod
    def versions(self) -> dict[str, str]: ...

    @abstractmethod
    def setup(self, row: Row) -> dict[str, Any]:
        """Make everything ready and warm; what is to be checked."""

    @abstractmethod
    def run(self, steps: int) -> int:
        """At least so many steps, finished when this returns; how many they were."""

    def release(self) -> None:
        """Forget the row."""
        self.__dict__ = {name: value for name, value in vars(self).items() if name in self.lasting}
        gc.collect()

    def prepare(self, row: Row) -> dict[str, Any]:
        self.lasting = self.lasting or frozenset(vars(self))
        checked = self.setup(row)
        self.run(1)
        steps, seconds = 1, 0.0
        while seconds < 0.02 and steps < 10**6:  # enough to say how long a step is
            steps *= 2
            seconds, done = self.timed(steps)
        self.seconds_per_step = seconds / done
        return {**checked, "versions": self.versions()}

    def timed(self, steps: int) -> tuple[float, int]:
        start = time.perf_counter()
        done = self.run(steps)
        return time.perf_counter() - start, done

    def slice(self, seconds: float) -> dict[str, float]:
        took, steps = self.timed(max(1, round(seconds / self.seconds_per_step)))
        self.seconds_per_step = took / steps
        return {"seconds_per_step": took / steps, "steps": steps}


class Repeated(Worker):
    """One that calls `work`, which makes `each` steps."""

    work: Callable[[], object]
    each = 1

    def run(self, steps: int) -> int:
        calls = -(-steps // self.each)
        for _ in range(calls):
            self.work()
        synchronize(self.device)
        return calls * self.each


def on_device(array: np.ndarray, device: str) -> tuple[Any, str]:
    """The array where the device reads it, and where that is."""
    if device == "cpu":
        return array, "host memory"
    import torch

    return torch.from_numpy(array).to(device), "device memory"


def as_numpy(array: Any) -> np.ndarray:
    if isinstance(array, np.ndarray):
        return array
    import torch

    return torch.from_dlpack(array).cpu().numpy()


def synchronize(device: str) -> None:
    if device != "cpu":
        import torch

        torch.cuda.synchronize()


def serve(workers: Mapping[str, Callable[[str], Worker]], description: str | None) -> None:
    """Answer requests until the input ends."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=workers)
    parser.add_argument("--device", default="cuda")
    options = parser.parse_args()
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what libraries print goes with the errors
    worker = workers[options.name](options.device)
    for line in sys.stdin:
        request = json.loads(line)
        try:
            if request["do"] == "prepare":
                answer = worker.prepare(request["row"])
            elif request["do"] == "slice":
                answer = worker.slice(request["seconds"])
            else:
                worker.release()
                answer = {}
        except Exception as error:
            traceback.print_exc()
            answer = {"error": f"{type(error).__name__}: {error}".splitlines()[0][:300]}
        print(json.dumps(answer), file=answers)
