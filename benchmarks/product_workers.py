"""Products of matrices and nothing else, by each library that has them: the floor of a step, and a machine's peak."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from frameworks import torch_versions, use_precision
from worker import Repeated, Row, synchronize


class Provider(NamedTuple):
    """What multiplies matrices of a row's precision."""

    random: Callable[[int, int], Any]  # a matrix of random numbers: a product of zeros runs faster than one of data
    multiply: Callable[..., Any]  # (a, b, out=...), where factors may be transposed views
    versions: dict[str, str]


def by_torch(row: Row, device: str) -> Provider:
    import torch

    use_precision(row)
    kind = torch.bfloat16 if row["precision"] == "bf16" else torch.float32
    return Provider(functools.partial(torch.randn, dtype=kind, device=device), torch.mm, torch_versions())


def by_numpy(row: Row, device: str) -> Provider:
    if device != "cpu" or row["precision"] != "fp32":
        raise ValueError(f"NumPy has no {row['precision']} products on {device}")
    rng, blas = np.random.default_rng(0), np.show_config(mode="dicts")["Build Dependencies"]["blas"]
    return Provider(
        lambda rows, cols: rng.standard_normal((rows, cols), dtype=np.float32),
        np.matmul,
        {"numpy": np.__version__, "numpy_blas": f"{blas['name']} {blas['version']}"},
    )


def by_fastsae(row: Row, device: str) -> Provider:
    if device != "cpu" or row["precision"] != "fp32":
        raise ValueError(f"fastsae's products alone are fp32 on the CPU, not {row['precision']} on {device}")
    import fastsae
    from fastsae import _core

    def multiply(a: np.ndarray, b: np.ndarray, out: np.ndarray) -> None:
        across, down = not a.flags.c_contiguous, not b.flags.c_contiguous
        _core.product(a.T if across else a, b.T if down else b, out, across, down)

    return Provider(by_numpy(row, device).random, multiply, {"fastsae": fastsae.__version__})


#: By the first words of their workers' names.
PROVIDERS: dict[str, Callable[[Row, str], Provider]] = {"torch": by_torch, "numpy": by_numpy, "fastsae": by_fastsae}


class Multiplying(Repeated):
    """One that has a provider."""

    def __init__(self, device: str, provider: str) -> None:
        super().__init__(device)
        self.name = provider

    def versions(self) -> dict[str, str]:
        return self.provider.versions

    def take(self, row: Row) -> Provider:
        self.provider = PROVIDERS[self.name](row, self.device)
        return self.provider

    def bandwidth(self) -> dict[str, Any]:
        return {"copy_bytes_per_second": copy_bandwidth(self.device)} if self.name == "torch" else {}


class Products(Multiplying):
    """The five products of a step; on a GPU as a graph, so that no launch is waited for."""

    def setup(self, row: Row) -> dict[str, Any]:
        n, d, h = row["batch"], row["features"], row["hidden"]
        random, multiply, _ = self.take(row)
        x, hidden, y, delta = random(n, d), random(n, h), random(n, d), random(n, h)
        w1, w2, dw1, dw2 = random(h, d), random(d, h), random(h, d), random(d, h)

        def five() -> None:
            multiply(x, w1.T, out=hidden)
            multiply(hidden, w2.T, out=y)
            multiply(y, w2, out=delta)
            multiply(y.T, hidden, out=dw2)
            multiply(delta.T, x, out=dw1)

        self.each, self.work = 1, five
        if self.device != "cpu":
            self.each, self.work = 10, graph_of(five, 10)
        parameters = 2 * d * h + d + h
        # A batch is read once; parameters and both moments are read and written.
        return {"bytes": 4 * n * d + 24 * parameters, **self.bandwidth()}


class Rate(Multiplying):
    """One product."""

    def setup(self, row: Row) -> dict[str, Any]:
        m, n, k = row["shape"]
        random, multiply, _ = self.take(row)
        a, b, out = random(m, k), random(n, k), random(m, n)
        self.work = lambda: multiply(a, b.T, out=out)
        return {"flops": 2.0 * m * n * k, **self.bandwidth()}


def graph_of(work: Callable[[], None], times: int) -> Callable[[], None]:
    """Several calls as one CUDA graph."""
    import torch

    for _ in range(3):
        work()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(times):
            work()
    return graph.replay  # type: ignore[no-any-return]


@functools.cache
def copy_bandwidth(device: str) -> float:
    """Bytes read and written per second by a copy of 1 GB (on a CPU 64 MB)."""
    import torch

    source = torch.ones((2**28 if device != "cpu" else 2**24,), device=device)
    target = torch.empty_like(source)
    seconds = []
    for _ in range(5):
        synchronize(device)
        start = time.perf_counter()
        for _ in range(10):
            target.copy_(source)
        synchronize(device)
        seconds.append((time.perf_counter() - start) / 10)
    return 2 * source.numel() * 4 / sorted(seconds)[2]


WORKERS: dict[str, Callable[[str], Repeated]] = {
    f"{provider} {name}": functools.partial(kind, provider=provider)
    for provider in PROVIDERS
    for name, kind in (("products", Products), ("rate", Rate))
}
