"""What does selecting the k largest pre-activations cost beyond the product, and what do others take?

Alternates (a) `TopKEncoder.encode`, (b) the product alone, which stores all pre-activations, by NumPy's BLAS and (c) by
our own kernels: the faster one is the floor, (d) product and `numpy.argpartition`, (e) `torch.topk` of
`torch.nn.functional.linear` in a process of its own. All have the same number of threads, float32 and the same rows.
Prints medians and ratios; --output writes them as JSON.

    python benchmarks/bench_select.py [--output benchmarks/results/select-cpu.json]

PyTorch may be installed elsewhere: FASTSAE_TORCH_PYTHON names the interpreter that has it.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

# features, latents, k, rows
SHAPES = [
    *((768, 16384, k, rows) for k in (32, 64) for rows in (1024, 4096)),
    (768, 24576, 32, 1024),
    (768, 16384, 512, 1024),
    (768, 16384, 32, 1),
]


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def problem(features: int, latents: int, rows: int) -> tuple[Any, Any, Any]:
    random = np.random.default_rng(0)
    shapes = ((rows, features), (latents, features), (latents,))
    return tuple(random.standard_normal(shape, dtype=np.float32) for shape in shapes)  # type: ignore[return-value]


def serve_torch() -> None:
    """The other process: a line with a shape sets up, an empty line is answered with the seconds of one run."""
    import torch

    print(torch.__version__, flush=True)
    for line in sys.stdin:
        if line.strip():
            threads, features, latents, k, rows = map(int, line.split())
            torch.set_num_threads(threads)
            X, weight, bias = map(torch.from_numpy, problem(features, latents, rows))
            continue
        with torch.inference_mode():
            took = seconds(lambda: torch.topk(torch.nn.functional.linear(X, weight, bias), k))  # noqa: B023
        print(took, flush=True)


class Torch:
    """PyTorch in a process of its own, so that its threads and ours do not meet."""

    def __init__(self) -> None:
        python = os.environ.get("FASTSAE_TORCH_PYTHON", sys.executable)
        self.process = subprocess.Popen(
            [python, __file__, "--serve-torch"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
        )
        self.version = self._answer()

    def set_up(self, *numbers: int) -> None:
        self._say(" ".join(map(str, numbers)))

    def run(self) -> float:
        self._say("")
        return float(self._answer())

    def _say(self, line: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(line + "\n")

    def _answer(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()


def measure(shape: tuple[int, int, int, int], threads: int, repeats: int, torch: Torch | None) -> dict[str, Any]:
    from fastsae import TopKEncoder, _core

    features, latents, k, rows = shape
    X, weight, bias = problem(features, latents, rows)
    encoder = TopKEncoder(weight, bias, k, device="cpu")
    out = encoder.encode(X)
    z = np.empty((rows, latents), np.float32)

    def product() -> None:
        np.matmul(X, weight.T, out=z)

    def own_product() -> None:
        _core.product(X, weight, z, transpose_b=True)

    def argpartition() -> None:
        np.matmul(X, weight.T, out=z)
        np.add(z, bias, out=z)
        chosen = np.argpartition(z, latents - k, axis=1)[:, latents - k :]
        values = np.take_along_axis(z, chosen, 1)
        order = np.argsort(-values, axis=1)
        np.take_along_axis(values, order, 1), np.take_along_axis(chosen, order, 1)

    runs: dict[str, Callable[[], float]] = {
        "encode": lambda: seconds(lambda: encoder.encode(X, out)),
        "product": lambda: seconds(product),
        "own_product": lambda: seconds(own_product),
        "argpartition": lambda: seconds(argpartition),
    }
    if torch is not None:
        torch.set_up(threads, features, latents, k, rows)
        runs["torch"] = torch.run
    times: dict[str, list[float]] = {name: [] for name in runs}
    for repeat in range(repeats + 1):
        for name, run in runs.items():
            took = run()
            if repeat > 0:  # the first round warms up
                times[name].append(took)
    median = {name: statistics.median(values) for name, values in times.items()}
    result = {"features": features, "latents": latents, "k": k, "rows": rows}
    for name, value in median.items():
        result[f"{name}_milliseconds"] = round(1e3 * value, 3)
    for name in median:
        if name != "encode":
            ratios = [ours / other for ours, other in zip(times["encode"], times[name], strict=True)]
            result[f"encode_over_{name}"] = round(statistics.median(ratios), 3)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--serve-torch", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve_torch:
        return serve_torch()

    from report import report
    from threadpoolctl import threadpool_info, threadpool_limits

    import fastsae

    fastsae.set_num_threads(options.threads)
    peer = Torch()
    torch = peer if peer.version else None
    with threadpool_limits(options.threads):
        shapes = [measure(shape, options.threads, options.repeats, torch) for shape in SHAPES]
    peer.process.kill()
    result = {
        "dtype": "float32",
        "threads": options.threads,
        "repeats": options.repeats,
        "shapes": shapes,
        "torch": torch.version if torch else "not measured: the interpreter has no PyTorch",
        "numpy_blas": [f"{i['internal_api']} {i['version']}" for i in threadpool_info() if i["user_api"] == "blas"][:1],
    }
    report(result, options.output)
    return None


if __name__ == "__main__":
    main()
