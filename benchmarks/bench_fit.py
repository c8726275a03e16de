"""What does `fit` cost beyond its steps, and a step beyond its five matrix products?

Alternates, in one process: (a) `SparseAutoencoder.fit`, (b) the same number of `Engine.step` calls on batches that lie
ready, (c) the five products of a step by NumPy's BLAS. Prints medians and ratios; --output writes them as JSON.

    python benchmarks/bench_fit.py [--rows 60000] [--output benchmarks/results/fit-cpu.json]
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from report import report
from threadpoolctl import threadpool_limits

import fastsae
from fastsae import Config, Engine, LayerConfig, SparseAutoencoder
from fastsae.initializers import initialize

WIDTH, HIDDEN, BATCH = 784, 196, 256


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def five_products(batch: np.ndarray) -> Callable[[], None]:
    """H = X W1', Y = H W2', dH = D W2, dW2 = D' H, dW1 = dH' X, into memory that lies ready."""
    random = np.random.default_rng(1)
    w1 = random.random((HIDDEN, WIDTH), dtype=np.float32)
    w2 = random.random((WIDTH, HIDDEN), dtype=np.float32)
    h, dh = np.empty((2, BATCH, HIDDEN), np.float32)
    y = np.empty((BATCH, WIDTH), np.float32)
    dw1, dw2 = np.empty_like(w1), np.empty_like(w2)

    def run() -> None:
        np.matmul(batch, w1.T, out=h)
        np.matmul(h, w2.T, out=y)
        np.matmul(y, w2, out=dh)
        np.matmul(y.T, h, out=dw2)
        np.matmul(dh.T, batch, out=dw1)

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=60000)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()

    X = np.random.default_rng(0).random((options.rows, WIDTH), dtype=np.float32)
    steps = options.epochs * -(-options.rows // BATCH)
    estimator = SparseAutoencoder(HIDDEN, batch_size=BATCH, max_epochs=options.epochs, random_state=0, verbose=False)
    config = Config(n_features=WIDTH, layers=(LayerConfig(HIDDEN, penalty="kl"), LayerConfig(WIDTH)))
    engine = Engine(config)
    engine.set_parameters(initialize(config, "cs294a", np.random.default_rng(0)))
    ready = [X[i * BATCH : (i + 1) * BATCH] for i in range(min(64, options.rows // BATCH))]
    products = five_products(ready[0])

    def all_steps() -> None:
        for i in range(steps):
            engine.step(ready[i % len(ready)])

    fits, step_times, product_times = [], [], []
    threads = fastsae.get_num_threads()
    with threadpool_limits(threads):
        for repeat in range(options.repeats + 1):
            times = (
                seconds(lambda: estimator.fit(X)),
                seconds(all_steps),
                seconds(lambda: [products() for _ in range(steps)]),
            )
            if repeat > 0:  # the first round warms up
                for values, value in zip((fits, step_times, product_times), times, strict=True):
                    values.append(value)
    median = statistics.median
    result = {
        "rows": options.rows,
        "shape": [WIDTH, HIDDEN, WIDTH],
        "batch": BATCH,
        "dtype": "float32",
        "steps": steps,
        "threads": threads,
        "fit_seconds": median(fits),
        "step_milliseconds": 1e3 * median(step_times) / steps,
        "five_products_milliseconds": 1e3 * median(product_times) / steps,
        "fit_over_steps": median(f / s for f, s in zip(fits, step_times, strict=True)),
        "step_over_products": median(s / p for s, p in zip(step_times, product_times, strict=True)),
    }
    report(result, options.output)


if __name__ == "__main__":
    main()
