"""What does a training step of a TopK sparse autoencoder take on a CPU, here and by other libraries?

Whole steps (768 inputs, 16384 latents, k = 32) on batches that lie in memory: fastsae's, beside the training steps of
SAELens, sparsify and dictionary_learning, as they come and at their best settings, and beside plain PyTorch (dense,
with embedding_bag, compiled). fastsae also trains as each library does, which is what that library is compared with.
The floor is the encoder's product alone, by fastsae, NumPy or PyTorch, in the precision of the result; fastsae may
find what it selects from a cheaper one (docs/meanings.md), and take less. Each contender is a process of its own
(sae_workers.py) with as many processors as threads; those of a group take turns of a step or more. Figures are medians
over the rounds, ratios the medians of each round's ratio. Those that train alike must have the same loss after 3 steps.
The peak is the most memory that a process held, and it is given beside what it held with its libraries alone.

The other models are compared with SAELens's on the first batch size; of those that keep what is above a threshold about
one latent in 500 is. Last, fastsae trains a model of --latents and must stay below --most bytes.

    python benchmarks/bench_sae.py --saelens PYTHON --sparsify PYTHON --dictionary-learning PYTHON --torch PYTHON
        [--output benchmarks/results/sae-cpu.json]

Each PYTHON is the interpreter of an environment with sae-lens, eai-sparsify, dictionary-learning or torch; groups
without one are left out. bf16 is fastsae with precision="bf16", SAELens with its autocast, and PyTorch under autocast;
the others have none on a CPU.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

from race import TOLERANCE, Bench, Row, chosen, compare, loads, median_of, outcome, race_parser, racing, take_versions
from report import report
from tables import sae_table

import fastsae
from fastsae import Engine
from fastsae.sparse_code import SparseCodeConfig

HERE = Path(__file__).parent
#: For each library: ours that trains as it does, its contenders, and those of them with the same mathematics as ours.
GROUPS: dict[str, tuple[str, tuple[str, ...], tuple[str, ...]]] = {
    "torch": ("ours", ("torch dense", "torch bag", "torch compiled"), ("torch dense", "torch bag", "torch compiled")),
    "saelens": (
        "ours as saelens", ("saelens", "saelens sparse", "saelens compiled"), ("saelens", "saelens compiled"),
    ),
    "sparsify": ("ours as sparsify", ("sparsify", "sparsify adam"), ("sparsify adam",)),
    "dictionary_learning": ("ours as dictionary_learning", ("dictionary_learning",), ("dictionary_learning",)),
}  # fmt: skip
#: The other models, beside SAELens's as they come.
MODELS = ("batch_topk", "matryoshka", "jump_relu", "gated", "relu")
BF16 = ("torch", "saelens")
PRODUCTS = ("fastsae product", "numpy product", "torch product")
BATCHES, TINY_BATCHES = (1024, 4096), (16, 48)
SIZES, TINY = {"features": 768, "latents": 16384, "k": 32}, {"features": 12, "latents": 64, "k": 4}
#: How far losses may be apart after 3 steps: where two scores are nearly equal, rounding selects the other one.
APART = {"fp32": 10 * TOLERANCE["fp32"], "bf16": 4 * TOLERANCE["bf16"]}


def refusal(precision: str) -> str:
    """Why the engine does not compute in a precision here; empty where it does."""
    try:
        Engine(SparseCodeConfig(4, 8, k=2, precision={"fp32": "full"}.get(precision, precision)), "cpu")
    except (ValueError, fastsae.DeviceError) as error:
        return str(error)
    return ""


def measure(bench: Bench, row: Row, group: str) -> tuple[dict[str, Any], dict[str, str]]:
    """A row of the result, and the versions of all who ran."""
    ours, theirs, alike = GROUPS[group]
    if "model" in row:
        theirs = alike = ("saelens",)
    if row["precision"] == "bf16":
        theirs = tuple(name for name in theirs if name != "saelens sparse")  # its products are float32 in any case
    load = os.getloadavg()[0]
    results = bench.race(row, [ours, *theirs, *PRODUCTS])
    for name in (ours, *theirs):
        bench.contenders[name].stop()  # its memory is the next one's
    versions = take_versions(results)
    found = {"group": group, "ours": ours, **row, "threads": bench.threads}
    found |= compare(results, ours, {group: theirs, **{name: (name,) for name in theirs}})
    times = {name: seconds for name in PRODUCTS if (seconds := median_of(results[name]))}
    floor = min(times, key=lambda name: times[name], default=None)
    measured = found["measured_seconds"]
    found |= {"floor_by": floor, "floor_seconds": times.get(floor or "")}
    found["measured_over_floor"] = round(measured / times[floor], 3) if floor and measured else None
    found["memory"] = {
        name: {
            "bytes_before": result["bytes_before"],
            "peak_bytes": max(turn["peak_bytes"] for turn in result["turns"]),
        }
        for name, result in results.items()
        if result.get("turns") and "bytes_before" in result
    }
    values = {name: results[name]["loss"] for name in (ours, *alike) if "loss" in results[name]}
    apart = max((abs(value / values[ours] - 1) for value in values.values()), default=0.0) if ours in values else None
    found |= {"loss_after_3_steps": values, "losses_apart": apart, "tolerance": APART[row["precision"]]}
    found["same_losses"] = apart is not None and len(values) > 1 and apart <= APART[row["precision"]]
    return {**found, **loads(load)}, versions


def wide(bench: Bench, row: Row, most: int) -> dict[str, Any]:
    """What a model of many latents takes, and whether its memory is below the limit."""
    (result,) = bench.race(row, ["ours"]).values()
    peak = max((turn["peak_bytes"] for turn in result.get("turns", [])), default=None)
    found = {**row, "threads": bench.threads, "measured_seconds": median_of(result), "peak_bytes": peak}
    return {**found, "most_bytes": most, "fits": peak is not None and peak < most, "error": result.get("error")}


def main() -> None:
    processors = len(os.sched_getaffinity(0))
    parser = race_parser(__doc__, rounds=3, seconds=0.4, limit=3600)
    parser.set_defaults(device="cpu")
    for group in GROUPS:
        parser.add_argument(f"--{group.replace('_', '-')}", metavar="PYTHON", help="interpreter that has it")
    parser.add_argument("--batches", help="some of the batch sizes")
    parser.add_argument("--precision", default="fp32,bf16", help="some of fp32,bf16")
    parser.add_argument("--models", default=",".join(MODELS), help="some of the other models; empty leaves them out")
    parser.add_argument("--threads", type=int, default=processors)
    parser.add_argument("--latents", type=int, default=131072, help="of the model that must fit; 0 leaves it out")
    parser.add_argument("--most", type=int, default=6 * 10**9, help="bytes that it may take")
    options = parser.parse_args()
    known = [str(batch) for batch in (TINY_BATCHES if options.quick else BATCHES)]
    batches = chosen(parser, "--batches", options.batches, known) if options.batches else known
    models = chosen(parser, "--models", options.models, list(MODELS)) if options.models else []
    precisions = chosen(parser, "--precision", options.precision, ["fp32", "bf16"])
    if not 1 <= options.threads <= processors:
        parser.error(f"--threads: expected 1 to {processors}, got {options.threads}")
    pythons = {group: given for group in GROUPS if (given := getattr(options, group))}
    left_out = {group: "no interpreter was given" for group in GROUPS if group not in pythons}
    left_out |= {precision: reason for precision in precisions if (reason := refusal(precision))}
    sizes = TINY if options.quick else SIZES

    rows: list[dict[str, Any]] = []
    versions: dict[str, str] = {}
    with racing(options, HERE / "sae_workers.py", options.threads, pythons, patience=900) as bench:
        for precision in precisions:
            for batch in map(int, batches):
                row = {**sizes, "batch": batch, "batches": 4, "precision": precision}
                for group in pythons:
                    if precision not in left_out and (precision == "fp32" or group in BF16):
                        measured, found = measure(bench, row, group)
                        rows.append(measured)
                        versions |= found
        more: dict[str, Any] = {}
        if models and "saelens" in pythons and "fp32" in precisions:
            more["models"] = []
            for model in models:
                row = {**sizes, "batch": int(batches[0]), "batches": 4, "precision": "fp32", "model": model}
                more["models"].append(measure(bench, row, "saelens")[0])
        if options.latents:
            latents = 4 * sizes["latents"] if options.quick else options.latents
            row = {**sizes, "latents": latents, "batch": int(batches[0]), "batches": 1, "precision": "fp32"}
            more["wide"] = wide(bench, row, options.most)
    result = outcome(options, rows, versions, threads=options.threads, left_out=left_out, **more)
    report(result, options.output)
    print(sae_table(result))
    if not all(row["same_losses"] for row in [*rows, *more.get("models", [])]):
        sys.exit("the losses differ, or there was nobody to compare with")
    if options.latents and not more["wide"]["fits"]:
        sys.exit("the wide model did not train, or takes too much memory")


if __name__ == "__main__":
    main()
