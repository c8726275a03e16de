"""Which matrix product is faster where: our own kernels or the BLAS? Makes the table by which the CPU chooses.

    python benchmarks/bench_products.py [--output benchmarks/results/products-cpu.json]     how good the choice is
    python benchmarks/bench_products.py --tune                      measures the grid, writes cpp/cpu/provider_table.h

The first measures random shapes by both and says how much slower the one that is chosen is than the faster one (its
regret). Each provider is a process of its own; a time is the least of many. The table is by instruction set, type, how
the factors lie and the shape, never by the number of threads, on which no bit may depend: --tune weighs one thread and
two alike. It measures both instruction sets, so it needs AVX-512.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from report import report

from fastsae import _core

TABLE = Path(__file__).parents[1] / "cpp" / "cpu" / "provider_table.h"
#: Sizes of the grid; between them the next larger one counts. Columns are fine where vectors are filled badly.
M = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
N = (1, 2, 3, 4, 6, 8, 12, 16, 18, 24, 32, 36, 48, 64, 100, 200, 800)
K = (1, 4, 16, 64, 256, 1024)
#: Whether the first and the second factor are transposed.
KINDS = {"plain": (False, False), "second": (False, True), "first": (True, False)}
#: The OpenBLAS kernels that need no more than the level.
CORES = {"avx2": "Haswell", "avx512": "SkylakeX"}
DTYPES = ("float32", "float64")
PROVIDERS = ("blas", "panels")
Shape = tuple[str, int, int, int]


def least_seconds(dtype: str, shapes: Iterable[Shape], seconds: float) -> list[float]:
    """Of a product of each shape, in this process."""
    found = []
    for kind, m, n, k in shapes:
        transpose_a, transpose_b = KINDS[kind]
        a = np.ones((k, m) if transpose_a else (m, k), dtype)
        b = np.ones((n, k) if transpose_b else (k, n), dtype)
        out = np.empty((m, n), dtype)
        repeats = max(1, round(5e-5 / (m * n * k / 3e10 + 2e-7)))
        end, least = time.perf_counter() + seconds, float("inf")
        while time.perf_counter() < end or least == float("inf"):
            least = min(least, _core.product(a, b, out, transpose_a, transpose_b, False, repeats))
        found.append(least)
    return found


def measured(
    dtype: str, shapes: list[Shape], seconds: float, level: str, threads: int, rounds: int = 3
) -> dict[str, np.ndarray]:
    """The least times of each provider, whose processes take turns."""
    times: dict[str, list[list[float]]] = {name: [] for name in PROVIDERS}
    for _, name in itertools.product(range(rounds), PROVIDERS):
        environment = {
            **os.environ,
            "FASTSAE_PRODUCTS": name,
            "FASTSAE_NUM_THREADS": str(threads),
            "FASTSAE_ISA": level,
            "OPENBLAS_CORETYPE": CORES[level],
        }
        request = json.dumps([dtype, shapes, seconds / rounds])
        command = [sys.executable, __file__, "--worker"]
        done = subprocess.run(command, input=request, capture_output=True, text=True, check=True, env=environment)
        times[name].append(json.loads(done.stdout))
    return {name: np.min(found, axis=0) for name, found in times.items()}


# --- the table ---


def first_rows(blas: np.ndarray, panels: np.ndarray) -> str:
    """From which place of M on our kernels are taken, as a letter; by the sums of the logarithms of the times."""
    costs = [blas[:cut].sum() + panels[cut:].sum() for cut in range(len(M) + 1)]
    return chr(ord("a") + int(np.argmin(costs)))


def tune(seconds: float) -> str:
    """The table's header."""
    blocks = []
    for level, dtype in itertools.product(CORES, DTYPES):
        rows = []
        for kind in KINDS:
            shapes: list[Shape] = [(kind, m, n, k) for n in N for k in K for m in M]
            by_threads = [measured(dtype, shapes, seconds, level, threads) for threads in (1, 2)]
            blas, panels = (
                sum(np.log(times[name]) for times in by_threads).reshape(len(N), len(K), len(M)) for name in PROVIDERS
            )
            cuts = ["".join(map(first_rows, blas[n], panels[n])) for n in range(len(N))]
            rows.append("{" + ", ".join(f'"{cut}"' for cut in cuts) + "}")
        blocks.append(f"// {level}, {dtype}: neither factor transposed, the second, the first\n{{{', '.join(rows)}}}")

    def sizes(name: str, values: tuple[int, ...]) -> str:
        return f"inline constexpr std::int64_t {name}[] = {{{', '.join(map(str, values))}}};"

    return f"""// Made by benchmarks/bench_products.py --tune: from how many rows on our own product kernels are faster.
#pragma once

#include <cstdint>

namespace fastsae::cpu {{

{sizes("kTableRows", M)}
{sizes("kTableCols", N)}
{sizes("kTableInner", K)}

// By instruction set and type, how the factors lie, columns, and (a letter each) inner dimension: a place of
// kTableRows.
inline constexpr const char* kFirstRows[][{len(KINDS)}][{len(N)}] = {{
{", ".join(blocks)}
}};

}}  // namespace fastsae::cpu
"""


# --- its regret ---


def random_shapes(count: int, smallest: int) -> list[Shape]:
    """Sizes of up to 2000, small ones as often as large ones, of up to 5e7 multiply-adds."""
    rng = np.random.default_rng(0)
    shapes: list[Shape] = []
    while len(shapes) < count:
        m, n, k = (int(size) for size in np.exp(rng.uniform(np.log(smallest), np.log(2000), 3)))
        if m * n * k <= 5e7:
            shapes.append((str(rng.choice(list(KINDS))), m, n, k))
    return shapes


def regret(count: int, seconds: float, dtype: str, threads: int, smallest: int) -> dict[str, Any]:
    shapes, level = random_shapes(count, smallest), _core.isa()
    times = measured(dtype, shapes, seconds, level, threads)
    best = np.minimum(*times.values())
    chosen = [_core.product_provider(*KINDS[kind], m, n, k, dtype) for kind, m, n, k in shapes]
    lost = np.array([times[name][i] / best[i] - 1 for i, name in enumerate(chosen)])
    worst = np.argsort(lost)[::-1][:10]
    return {
        "dtype": dtype,
        "threads": threads,
        "smallest_size": smallest,
        "shapes": count,
        "ours_chosen": chosen.count("panels"),
        "mean_regret": round(float(lost.mean()), 4),
        "regret_of_all_time": round(float((lost * best).sum() / best.sum()), 4),
        "percentiles_of_regret": {p: round(float(np.percentile(lost, p)), 4) for p in (90, 95, 99, 100)},
        "worst": [
            {"shape": shapes[i], "chosen": chosen[i]}
            | {f"{name}_microseconds": round(1e6 * float(found[i]), 3) for name, found in times.items()}
            for i in worst
        ],
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tune", action="store_true", help="make the table")
    parser.add_argument("--shapes", type=int, default=400)
    parser.add_argument("--seconds", type=float, default=0.006, help="for each shape and provider")
    parser.add_argument("--output", type=Path)
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        print(json.dumps(least_seconds(*json.load(sys.stdin))))
    elif options.tune:
        TABLE.write_text(tune(options.seconds))
        print(f"wrote {TABLE}: build again")
    elif _core.isa() not in CORES:
        print("this processor has no product kernels of ours: there is nothing to choose")
    else:
        rows = [
            regret(options.shapes, options.seconds, dtype, threads, smallest)
            for smallest, dtype, threads in itertools.product((16, 1), DTYPES, (1, 2))
        ]
        report({"seconds_of_a_shape": options.seconds, "rows": rows}, options.output)


if __name__ == "__main__":
    main()
