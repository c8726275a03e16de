"""What does a training step of a deep, convolutional, variational or contractive autoencoder take, here and elsewhere?

Whole steps (a batch drawn at random, forward, backward, Adam) in float32 on rows in memory, against PyTorch eager (its
default and its fused Adam; for images also channels last), torch.compile and JAX, and against the step's matrix
products alone, the floor. Each is a process of its own (variants_workers.py); they take turns of --slice seconds with
equal threads; figures are medians over the rounds, ratios the medians of each round's ratio. All start from the same
parameters and noise, and must have the same loss after 20 steps.

    python benchmarks/bench_variants.py [--peers PYTHON] [--output benchmarks/results/variants-cpu.json]

--peers is an interpreter with PyTorch, JAX or both where this one lacks them. `python benchmarks/report.py FILE` prints
the table of a result.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
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
    outcome,
    race_parser,
    racing,
    take_versions,
)
from report import report
from tables import variants_table
from variants_workers import problem

HERE = Path(__file__).parent
CONTENDERS = ("ours", "products", "torch default", "torch fused", "torch compiled", "jax jit", "jax scan")
IMAGES = "torch channels last"
#: How many times the tolerance of one hidden layer the deep row has: there rounding is carried through six layers, and
#: PyTorch's compiled step is 5e-5 from the others, which agree to 1e-5.
DEEPER = 10
#: features are those of square images.
ROWS: list[Row] = [
    {"model": "deep", "features": 784, "widths": [784, 500, 250, 30, 250, 500, 784], "batch": 256, "batches": 40},
    {"model": "conv", "features": 784, "channels": [16, 32], "batch": 128, "batches": 40},
    {"model": "variational", "features": 784, "widths": [784, 400, 20, 400, 784], "batch": 128, "batches": 80},
    {"model": "contractive", "features": 784, "widths": [784, 400, 784], "batch": 128, "batches": 80},
]
TINY_ROWS: list[Row] = [
    {"model": "deep", "features": 16, "widths": [16, 9, 5, 3, 5, 9, 16], "batch": 6, "batches": 20},
    {"model": "conv", "features": 64, "channels": [3, 5], "batch": 4, "batches": 20},
    {"model": "variational", "features": 16, "widths": [16, 9, 3, 9, 16], "batch": 6, "batches": 20},
    {"model": "contractive", "features": 16, "widths": [16, 7, 16], "batch": 6, "batches": 20},
]


def measure(bench: Bench, row: Row, folder: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """A row of the result, and the versions of all who ran."""
    path = folder / f"{row['model']}.npz"
    np.savez(path, **problem(row))
    names = [*CONTENDERS, IMAGES] if row["model"] == "conv" else list(CONTENDERS)
    results = bench.race({**row, "problem": str(path)}, names)
    versions = take_versions(results)
    compared = compare(results, "ours", {**GROUPS, "eager": (*GROUPS["eager"], IMAGES)})
    found = floors(row, compared, median_of(results["products"]))
    found |= {"multiply_adds": results["products"].get("multiply_adds"), "data": results["ours"].get("data")}
    return {**found, **losses(results, "fp32", DEEPER if row["model"] == "deep" else 1)}, versions


def main() -> None:
    known = [row["model"] for row in ROWS]
    parser = race_parser(__doc__, rounds=9, seconds=0.25, limit=1800)
    parser.add_argument("--models", default=",".join(known), help="some of the rows")
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    options = parser.parse_args()
    models = chosen(parser, "--models", options.models, known)
    if options.threads < 1:
        parser.error(f"--threads: expected at least 1, got {options.threads}")

    pythons = {"torch": options.peers, "jax": options.peers}
    rows: list[dict[str, Any]] = []
    versions: dict[str, str] = {}
    script = HERE / "variants_workers.py"
    with tempfile.TemporaryDirectory() as folder, racing(options, script, options.threads, pythons) as bench:
        for row in TINY_ROWS if options.quick else ROWS:
            if row["model"] in models:
                load = os.getloadavg()[0]
                measured, found = measure(bench, row, Path(folder))
                rows.append({**measured, **loads(load)})
                versions |= found
    result = outcome(options, rows, versions, device=options.device, dtype="float32", threads=bench.threads)
    report(result, options.output)
    print(variants_table(result))
    if not all(row["same_losses"] for row in rows):
        sys.exit("the losses differ")


if __name__ == "__main__":
    main()
