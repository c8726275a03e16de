"""Those that bench_encode.py compares, each in a process of its own: one call after another, each with its latency.

A row says how many rows a call encodes and how many Python threads call at once; each of them has its own rows and
memory for the code. What a call takes is a distribution, so a turn answers with percentiles.

    python benchmarks/encode_workers.py NAME --device cpu
"""

from __future__ import annotations

import statistics
import sys
import threading
import time
from abc import abstractmethod
from collections.abc import Callable
from typing import Any

import numpy as np
from frameworks import torch_versions
from worker import Arrays, Repeated, Row, Worker, serve

PERCENTILES = {"p50": 50.0, "p90": 90.0, "p99": 99.0, "p99.9": 99.9}
Call = Callable[[], object]


def problem(row: Row) -> tuple[np.ndarray, Arrays]:
    """Rows and the encoder's weights, the same in every process."""
    d, h = row["features"], row["hidden"]
    rng = np.random.default_rng(0)
    X = rng.random((row["rows"], d), dtype=np.float32)
    return X, {"W1": rng.standard_normal((h, d), dtype=np.float32) / np.float32(d**0.5), "b1": X[0, :h].copy()}


def latencies(call: Call, end: float) -> list[float]:
    """Seconds of calls until a time is over."""
    clock, taken = time.perf_counter, []
    before = clock()
    while before < end:
        call()
        now = clock()
        taken.append(now - before)
        before = now
    return taken


class Encoding(Repeated):
    """One that encodes rows again and again."""

    def setup(self, row: Row) -> dict[str, Any]:
        X, weights = problem(row)
        self.calls = [self.caller(X.copy(), weights, row) for _ in range(row["callers"])]
        self.work = self.calls[0]
        return {"code": np.asarray(self.work(), np.float64).sum()}

    @abstractmethod
    def caller(self, X: np.ndarray, weights: Arrays, row: Row) -> Call:
        """What encodes X into memory that is there already, for one thread."""

    def slice(self, seconds: float) -> dict[str, float]:
        each: list[list[float]] = [[] for _ in self.calls]
        end = time.perf_counter() + seconds

        def run(i: int) -> None:
            each[i] = latencies(self.calls[i], end)

        others = [threading.Thread(target=run, args=(i,)) for i in range(1, len(self.calls))]
        for thread in others:
            thread.start()
        run(0)
        for thread in others:
            thread.join()
        took = np.concatenate(each)
        tail = {name: float(np.percentile(took, at)) for name, at in PERCENTILES.items()}
        return {"seconds_per_step": float(np.median(took)), "calls_per_second": len(took) / seconds, **tail}


class Ours(Encoding):
    """Engine.encode with out=."""

    def versions(self) -> dict[str, str]:
        import fastsae

        return {"fastsae": fastsae.__version__}

    def setup(self, row: Row) -> dict[str, Any]:
        self.engine = engine_of(row)
        return super().setup(row)

    def caller(self, X: np.ndarray, weights: Arrays, row: Row) -> Call:
        self.engine.set_parameters(weights)
        encode, out = self.engine.encode, np.empty((len(X), row["hidden"]), np.float32)
        return lambda: encode(X, out=out)


class OurTransform(Ours):
    """SparseAutoencoder.transform, with scikit-learn's checks of its input."""

    def setup(self, row: Row) -> dict[str, Any]:
        from fastsae import SparseAutoencoder

        X, _ = problem(row)
        self.model = SparseAutoencoder(row["hidden"], max_epochs=1, random_state=0, verbose=False).fit(X)
        self.engine = self.model._engine
        return Encoding.setup(self, row)

    def caller(self, X: np.ndarray, weights: Arrays, row: Row) -> Call:
        self.engine.set_parameters(weights)
        transform, out = self.model.transform, np.empty((len(X), row["hidden"]), np.float32)
        return lambda: transform(X, out=out)


class Torch(Encoding):
    """linear and sigmoid without gradients, into memory that is there."""

    def versions(self) -> dict[str, str]:
        return torch_versions()

    def caller(self, X: np.ndarray, weights: Arrays, row: Row) -> Call:
        import torch

        x, w, b = (torch.from_numpy(part) for part in (X, weights["W1"], weights["b1"]))
        out, across = torch.empty(len(x), len(w)), w.T

        def call() -> Any:
            with torch.inference_mode():
                return torch.sigmoid_(torch.addmm(b, x, across, out=out))

        return call


class Numpy(Encoding):
    """A product and 1 / (1 + exp(-z)), each step into memory that is there."""

    def versions(self) -> dict[str, str]:
        return {"numpy": np.__version__}

    def caller(self, X: np.ndarray, weights: Arrays, row: Row) -> Call:
        w, b, out = weights["W1"].T, weights["b1"], np.empty((len(X), row["hidden"]), np.float32)

        def call() -> Any:
            np.matmul(X, w, out=out)
            np.add(out, b, out=out)
            np.negative(out, out=out)
            np.exp(out, out=out)
            np.add(out, np.float32(1), out=out)
            return np.reciprocal(out, out=out)

        return call


class StepCalls(Worker):
    """What a call of Engine.step costs beyond its share of a run_epoch over the same batches."""

    def versions(self) -> dict[str, str]:
        import fastsae

        return {"fastsae": fastsae.__version__, "python": sys.version.split()[0]}

    def setup(self, row: Row) -> dict[str, Any]:
        n = row["batch"]
        self.engine, self.batch = engine_of(row), n
        self.X = np.random.default_rng(0).random((row["batches"] * n, row["features"]), dtype=np.float32)
        self.parts = [self.X[i : i + n] for i in range(0, len(self.X), n)]
        return {}

    def run(self, steps: int) -> int:
        for part in self.parts:
            self.engine.step(part)
        return len(self.parts)

    def slice(self, seconds: float) -> dict[str, float]:
        loops, epochs, end = [], [], time.perf_counter() + seconds
        while (start := time.perf_counter()) < end:
            self.engine.run_epoch(self.X, None, self.batch)
            middle = time.perf_counter()
            self.run(len(self.parts))
            loops.append(time.perf_counter() - middle)
            epochs.append(middle - start)
        over = statistics.median(loop - epoch for loop, epoch in zip(loops, epochs, strict=True))
        steps = len(self.parts)
        return {"seconds_per_step": statistics.median(epochs) / steps, "overhead_seconds": over / steps}


def engine_of(row: Row) -> Any:
    from fastsae import Config, Engine, LayerConfig

    layers = (LayerConfig(row["hidden"], "sigmoid", "kl", beta=3.0, rho=0.05), LayerConfig(row["features"], "sigmoid"))
    return Engine(Config(row["features"], layers, weight_decay=1e-4), "cpu")


WORKERS: dict[str, Callable[[str], Worker]] = {
    "ours": Ours,
    "ours transform": OurTransform,
    "torch": Torch,
    "numpy": Numpy,
    "step calls": StepCalls,
}


if __name__ == "__main__":
    serve(WORKERS, __doc__)
