"""What does a training step of the classic sparse autoencoder take on a CPU, here and elsewhere?

Whole steps (forward, KL sparsity, weight decay, backward, Adam) on batches that lie in memory, by fastsae as it comes
and with its BLAS alone, by PyTorch eager (its default and its fused Adam) and compiled, and by JAX (a jitted step, and
an epoch of them by scan), beside the step's five products alone by each library that has them: the fastest is the
floor. Each is a process of its own (step_workers.py) that has as many processors as threads; they take turns of
--slice seconds. Figures are medians over the rounds, ratios the medians of each round's ratio. All start from the same
weights and must have the same loss after 20 steps. The peak is the best rate of a single large product by any of these
libraries.

bf16 is PyTorch under autocast, JAX with bf16 factors, and fastsae with precision="bf16" where this processor has it.

    python benchmarks/bench_step.py [--peers PYTHON] [--output benchmarks/results/step-cpu.json]
    python benchmarks/report.py --write benchmarks/results/step-cpu.json        the READMEs' tables and the picture

--peers is an interpreter with PyTorch and JAX where this one lacks them, --mkl one whose fastsae was built with MKL.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Any

from product_workers import PROVIDERS
from race import (
    GROUPS,
    Bench,
    Row,
    chosen,
    compare,
    floors,
    loads,
    losses,
    median_of,
    missing_peers,
    outcome,
    race_parser,
    racing,
    take_versions,
)
from report import report
from tables import step_table

import fastsae
from fastsae import Config, Engine, LayerConfig

HERE = Path(__file__).parent
PEERS = ("torch default", "torch fused", "torch compiled", "jax jit", "jax scan")
PRECISIONS = {"fp32": "full", "bf16": "bf16"}  # and fastsae's names of them
#: features, hidden, batch, batches in memory
SIZES = [
    (64, 25, 100, 100), (64, 25, 1000, 20), (64, 25, 10000, 4), (784, 196, 256, 64), (1024, 4096, 1024, 2),
    (200, 77, 333, 40), (1000, 300, 500, 10),
]  # fmt: skip
TINY_SIZES = [(8, 5, 10, 6), (20, 12, 16, 4)]
PEAK, TINY_PEAK = [2048, 2048, 2048], [64, 64, 64]


def rows_of(sizes: list[tuple[int, int, int, int]]) -> dict[str, Row]:
    """By the names that --rows takes."""
    return {
        f"{d}-{h}:{n}": {"model": f"{d}-{h}", "features": d, "hidden": h, "batch": n, "batches": batches}
        for d, h, n, batches in sizes
    }


def refusal(precision: str) -> str:
    """Why the engine does not compute in a precision here; empty where it does."""
    try:
        Engine(Config(4, (LayerConfig(2), LayerConfig(4)), precision=PRECISIONS[precision]), "cpu")
    except (ValueError, fastsae.DeviceError) as error:
        return str(error)
    return ""


def measure_peak(bench: Bench, precision: str, shape: list[int]) -> tuple[dict[str, Any], dict[str, str]]:
    """The best rate of one product, and the versions of those that were tried."""
    names = [f"{provider} rate" for provider in PROVIDERS]
    results = bench.race({"shape": shape, "precision": precision}, names)
    versions = take_versions(results)
    rates = {name: results[name]["flops"] / seconds for name in names if (seconds := median_of(results[name]))}
    peak: dict[str, Any] = {"precision": precision, "threads": bench.threads, "shape": shape, "flops_per_second": None}
    if rates:
        best = max(rates, key=lambda name: rates[name])
        peak |= {
            "flops_per_second": rates[best],
            "flops_per_second_and_thread": rates[best] / bench.threads,
            "by": best,
        }
    return {**peak, "rates": rates}, versions


def measure(bench: Bench, row: Row, ours: list[str], peak: float | None) -> tuple[dict[str, Any], dict[str, str]]:
    """A row of the result, and the versions of all who ran."""
    products = [f"{provider} products" for provider in PROVIDERS]
    results = bench.race(row, [*ours, *products, *PEERS])
    versions = take_versions(results)
    compared = compare(results, "ours", {**GROUPS, "blas": ("blas",), "mkl": ("mkl",)})
    times = {name: seconds for name in products if (seconds := median_of(results[name]))}
    floor = min(times, key=lambda name: times[name], default=None)
    found = floors({**row, "threads": bench.threads}, compared, times[floor] if floor else None)
    flops = 10.0 * row["batch"] * row["features"] * row["hidden"]
    seconds = found["measured_seconds"]
    rate = flops / seconds if seconds else None
    found |= {"floor_by": floor, "flops": flops, "flops_per_second": rate}
    found["share_of_peak"] = round(rate / peak, 3) if rate and peak else None
    return {**found, **losses(results, row["precision"])}, versions


def parse() -> tuple[argparse.Namespace, list[str]]:
    """The options, and the names of the rows."""
    processors = len(os.sched_getaffinity(0))
    parser = race_parser(__doc__, rounds=9, seconds=0.2, limit=7200)
    parser.set_defaults(device="cpu")
    parser.add_argument("--mkl", help="interpreter whose fastsae was built with FASTSAE_BLAS=MKL")
    parser.add_argument("--rows", help="some of the rows, such as 64-25:100,784-196:256")
    parser.add_argument("--threads", help="numbers of threads; 1 and 2 unless given")
    parser.add_argument("--precision", default="fp32,bf16", help="some of fp32,bf16")
    options = parser.parse_args()
    known = list(rows_of(TINY_SIZES if options.quick else SIZES))
    names = chosen(parser, "--rows", options.rows, known) if options.rows else known
    options.precision = chosen(parser, "--precision", options.precision, list(PRECISIONS))
    if options.threads is None:
        options.threads = "1,2" if processors > 1 else "1"
    counts = [str(count) for count in range(1, processors + 1)]
    options.threads = [int(count) for count in chosen(parser, "--threads", options.threads, counts)]
    return options, names


def main() -> None:
    options, names = parse()
    pythons = {"torch": options.peers, "jax": options.peers, "mkl": options.mkl or sys.executable}
    if missing := missing_peers(options.peers, "torch", "jax"):
        print(missing, file=sys.stderr)
    known = rows_of(TINY_SIZES if options.quick else SIZES)
    left_out = {precision: reason for precision in options.precision if (reason := refusal(precision))}
    rows: list[dict[str, Any]] = []
    peaks: list[dict[str, Any]] = []
    versions: dict[str, str] = {}
    for threads in options.threads:
        with racing(options, HERE / "step_workers.py", threads, pythons, patience=600) as bench:
            for precision in [name for name in options.precision if name not in left_out]:
                peak, found = measure_peak(bench, precision, TINY_PEAK if options.quick else PEAK)
                peaks.append(peak)
                versions |= found
                for name in names:
                    load = os.getloadavg()[0]
                    row = {**known[name], "precision": precision}
                    ours = ["ours", *(["blas"] if precision == "fp32" else []), *(["mkl"] if options.mkl else [])]
                    measured, found = measure(bench, row, ours, peak["flops_per_second"])
                    rows.append({**measured, **loads(load)})
                    versions |= found
    result = outcome(options, rows, versions, left_out=left_out, peaks=peaks)
    report(result, options.output)
    print(step_table(result))
    if not all(row["same_losses"] for row in rows):
        sys.exit("the losses differ, or there was nobody to compare with")


if __name__ == "__main__":
    main()
