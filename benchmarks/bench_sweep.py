"""What does `sweep` gain over fitting small models one after the other?

Alternates, in one process: 16 models 64-25-64 by `fastsae.sweep`, and the same models by `SparseAutoencoder.fit` one
after the other with all threads. Prints medians and their ratio, and checks that both give the same bits.

    python benchmarks/bench_sweep.py [--device cpu] [--output benchmarks/results/sweep-cpu.json]
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from report import report

import fastsae
from fastsae import SparseAutoencoder, sweep

WIDTH, HIDDEN, BATCH, MODELS = 64, 25, 100, 16


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=10000)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()

    X = np.random.default_rng(0).random((options.rows, WIDTH), dtype=np.float32)
    configs = [{"rho": rho, "beta": beta} for rho in (0.02, 0.05, 0.1, 0.2) for beta in (0.3, 1.0, 3.0, 10.0)]
    assert len(configs) == MODELS
    common = {
        "n_hidden": HIDDEN,
        "batch_size": BATCH,
        "max_epochs": options.epochs,
        "random_state": 0,
        "device": options.device,
        "verbose": False,
    }
    together: list[SparseAutoencoder] = []
    alone: list[SparseAutoencoder] = []

    def all_at_once() -> None:
        together[:] = sweep(configs, X, **common)

    def one_by_one() -> None:
        alone[:] = [SparseAutoencoder(**common, **config).fit(X) for config in configs]

    sweeps, fits = [], []
    for repeat in range(options.repeats + 1):
        times = seconds(all_at_once), seconds(one_by_one)
        if repeat > 0:  # the first round warms up
            sweeps.append(times[0])
            fits.append(times[1])
    assert all(np.array_equal(a.components_, b.components_) for a, b in zip(together, alone, strict=True))
    median = statistics.median
    steps = MODELS * options.epochs * -(-options.rows // BATCH)
    result = {
        "rows": options.rows,
        "shape": [WIDTH, HIDDEN, WIDTH],
        "batch": BATCH,
        "models": MODELS,
        "epochs": options.epochs,
        "dtype": "float32",
        "device": options.device,
        "threads": fastsae.get_num_threads(),
        "sweep_seconds": median(sweeps),
        "one_by_one_seconds": median(fits),
        "one_by_one_over_sweep": median(f / s for f, s in zip(fits, sweeps, strict=True)),
        "sweep_microseconds_per_step": 1e6 * median(sweeps) / steps,
    }
    report(result, options.output)


if __name__ == "__main__":
    main()
