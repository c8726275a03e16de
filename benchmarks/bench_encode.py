"""How long does a service wait for the code of a few rows, and what does a call of `step` cost from Python?

`Engine.encode(X, out=)` and `SparseAutoencoder.transform(X, out=)` at 784-196, one caller and 16 Python threads that
call at once, beside PyTorch (no_grad, linear and sigmoid) and NumPy. Each is a process of its own (encode_workers.py);
they take turns of --slice seconds, in which every call is timed; figures are medians over the rounds of the
percentiles of a turn. With 16 callers a latency holds the wait for Python's lock and for a processor. The overhead of
`Engine.step` is that of a loop over batches minus `run_epoch` over them, by the step.

    python benchmarks/bench_encode.py [--peers PYTHON] [--output benchmarks/results/encode-cpu.json]
    python benchmarks/report.py --write benchmarks/results/encode-cpu.json

--peers is an interpreter with PyTorch where this one lacks it.
"""

from __future__ import annotations

import os
import statistics
import sys
from pathlib import Path
from typing import Any

from race import TOLERANCE, Bench, Row, loads, missing_peers, outcome, race_parser, racing, take_versions
from report import report
from tables import encode_table

HERE = Path(__file__).parent
CONTENDERS = ("ours", "ours transform", "torch", "numpy")
MODEL = {"features": 784, "hidden": 196}
TINY_MODEL = {"features": 20, "hidden": 5}
ROWS, CALLERS = (1, 8, 64), (1, 16)
STEPS = {"model": "64-25-64", "features": 64, "hidden": 25, "batch": 100, "batches": 100}


def medians(turns: list[dict[str, float]]) -> dict[str, float]:
    return {name: statistics.median(turn[name] for turn in turns) for name in turns[0]}


def measure(bench: Bench, row: Row) -> tuple[list[dict[str, Any]], dict[str, str], dict[str, str]]:
    """A row of the result for each contender, the versions of all, and why some are missing."""
    results = bench.race(row, list(CONTENDERS))
    versions = take_versions(results)
    missing = {name: result["error"] for name, result in results.items() if "error" in result}
    if "ours" in missing:
        sys.exit(f"ours: {missing['ours']}")
    there = {name: result for name, result in results.items() if name not in missing}
    rows = []
    for name, result in there.items():
        apart = abs(result["code"] - there["ours"]["code"]) / abs(there["ours"]["code"])
        rows.append({**row, "contender": name, "same_code": apart <= TOLERANCE["fp32"], **medians(result["turns"])})
    return rows, versions, missing


def main() -> None:
    parser = race_parser(__doc__, rounds=9, seconds=0.5, limit=1800)
    parser.set_defaults(device="cpu")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="processors of a contender")
    options = parser.parse_args()
    if options.threads < 1:
        parser.error(f"--threads: expected at least 1, got {options.threads}")
    if missing_peers(options.peers, "torch"):
        print(missing_peers(options.peers, "torch"), file=sys.stderr)
    rows: list[dict[str, Any]] = []
    missing: dict[str, str] = {}
    versions: dict[str, str] = {}
    with racing(options, HERE / "encode_workers.py", options.threads, {"torch": options.peers}) as bench:
        for callers in CALLERS:
            for count in ROWS:
                load = os.getloadavg()[0]
                row = {**(TINY_MODEL if options.quick else MODEL), "rows": count, "callers": callers}
                measured, found, errors = measure(bench, row)
                rows += [{**part, **loads(load)} for part in measured]
                versions |= found
                missing |= errors
        calls = bench.race(STEPS, ["step calls"])["step calls"]
    step_call = {**STEPS, "step_seconds": statistics.median(calls["rounds"]), **medians(calls["turns"])}
    more = {"dtype": "float32", "threads": bench.threads, "missing": missing, "step_call": step_call}
    result = outcome(options, rows, versions, **more)
    report(result, options.output)
    print(encode_table(result))
    if not all(row["same_code"] for row in rows):
        sys.exit("the codes differ")


if __name__ == "__main__":
    main()
