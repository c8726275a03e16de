"""What does fastsae do on a GPU: is it right, what could the GPU do, and how do a step and a selection compare?

Six stages, each under ten minutes, each with one JSON file in the output folder:

    correctness   pytest of everything that runs on a device, then compute-sanitizer over a short subset
    ceilings      bandwidths, launches and product rates of this GPU
    layered       a training step against PyTorch (eager, compiled, captured), JAX, and its five products alone
    selection     the encoder's top-k against PyTorch's product and torch.topk
    sparse        a training step of a TopK dictionary against PyTorch in the manner of three libraries, and its product
    variants      pytest of layers other than dense ones, noise and penalties; then bench_variants.py on the device

    python benchmarks/gpu.py --stage layered [--out benchmarks/results]

Contenders run in processes of their own (gpu_workers.py) and take turns; figures are medians over the rounds, ratios
the medians of each round's ratio. On a machine without a GPU, `--device cpu --quick` runs the same code on tiny sizes.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from gpu_workers import selection_problem
from race import Bench, Row, compare, floors, losses, median_of, take_versions

HERE = Path(__file__).parent
ROOT = HERE.parent

#: Tests of what is not a sparse autoencoder with dense layers, by parts of their files' names.
VARIANTS = ("contraction", "corruption", "images", "softmax", "variational", "winners")

#: features, hidden, batch, batches; those of the issue's finish lines first.
MODELS = [(64, 25, 100, 100), (784, 196, 256, 64), (4096, 16384, 4096, 4), (1024, 4096, 4096, 8), (64, 25, 10000, 10)]
TINY_MODELS = [(8, 5, 10, 6), (20, 12, 16, 4)]
#: features, latents, active, batch
SELECTIONS = [(768, 24576, 32, 4096), (4096, 131072, 64, 4096)]
TINY_SELECTIONS = [(16, 256, 4, 32)]
#: features, latents, active, batch of dictionaries; bf16 is autocast, and otherwise TF32 is on.
DICTIONARIES = [
    (d, n, k, b) for d, n, k in ((768, 24576, 32), (2304, 65536, 64), (4096, 131072, 64)) for b in (4096, 32768)
]
TINY_DICTIONARIES = [(16, 64, 4, 32)]
#: rows, columns, inner dimension of products: of the models' forward and weight gradient, and of both encoders.
PRODUCTS = [
    (256, 196, 784), (4096, 4096, 1024), (4096, 1024, 4096), (4096, 16384, 4096), (16384, 4096, 4096),
    (4096, 24576, 768), (4096, 131072, 4096), (8192, 8192, 8192),
]  # fmt: skip
TINY_PRODUCTS = [(64, 64, 64)]
PRECISIONS = ("fp32", "tf32", "bf16")

#: Relative difference of FVU after three steps that the precision of products explains.
SAME_FVU = 0.02

PEERS = ("torch default", "torch fused", "torch compiled", "torch captured", "jax jit", "jax scan")
#: max-autotune, on two rows.
AUTOTUNED = {(784, 196, 256, "fp32"), (4096, 16384, 4096, "bf16")}


# --- the stages ---


def layered(bench: Bench, options: argparse.Namespace) -> dict[str, Any]:
    rows: list[dict[str, Any]] = []
    left_out, versions = [], {}
    for precision, model in cases(options, TINY_MODELS if options.quick else MODELS):
        d, h, batch, batches = model
        row = {"features": d, "hidden": h, "batch": batch, "batches": batches, "precision": precision}
        if bench.left() < options.limit * 0.15:
            left_out.append(row)
            continue
        names = ["ours", "torch products", *PEERS]
        if (d, h, batch, precision) in AUTOTUNED:
            names.append("torch autotuned")
        results = bench.race(row, names)
        versions |= take_versions(results)
        compared = compare(results, "ours")
        products, floor = median_of(results["torch products"]), None
        if products is not None:
            by_bytes = results["torch products"]["bytes"] / results["torch products"]["copy_bytes_per_second"]
            # Where all data of a step fit in a few megabytes, the products are launches and not arithmetic.
            tiny = results["torch products"]["bytes"] < 2**20
            floor = by_bytes if tiny else products
            compared |= {
                "five_products_seconds": products,
                "bytes_seconds": by_bytes,
                "floor": "bytes" if tiny else "products",
            }
        rows.append({**floors(row, compared, floor), "data": results["ours"].get("data"), **losses(results, precision)})
    return {"rows": rows, "left_out": left_out, "versions": versions}


def selection(bench: Bench, options: argparse.Namespace) -> dict[str, Any]:
    rows: list[dict[str, Any]] = []
    left_out, versions = [], {}
    for precision, (d, n, k, batch) in cases(options, TINY_SELECTIONS if options.quick else SELECTIONS):
        row = {"features": d, "latents": n, "active": k, "batch": batch, "precision": precision}
        if bench.left() < options.limit * 0.15:
            left_out.append(row)
            continue
        names = ["select ours", "select torch default", "select torch compiled", "select torch product"]
        with tempfile.TemporaryDirectory() as folder:
            results = bench.race({**row, "answers": folder}, names)
            agreement = agree(row, Path(folder))
        versions |= take_versions(results)
        product = median_of(results["select torch product"])
        rows.append({**floors(row, compare(results, "select ours"), product), "floor": "product", **agreement})
    return {"rows": rows, "left_out": left_out, "versions": versions}


def sparse(bench: Bench, options: argparse.Namespace) -> dict[str, Any]:
    rows: list[dict[str, Any]] = []
    left_out, versions = [], {}
    for precision, (d, n, k, batch) in cases(options, TINY_DICTIONARIES if options.quick else DICTIONARIES):
        row = {"features": d, "latents": n, "active": k, "batch": batch, "precision": precision}
        if precision == "fp32" and options.device != "cpu":
            continue  # nobody trains these without TF32
        if bench.left() < options.limit * 0.15:
            left_out.append(row)
            continue
        results = bench.race(
            row, ["sparse ours", "sparse sparsify", "sparse openai", "sparse saelens", "sparse product"]
        )
        versions |= take_versions(results)
        explained = {name: result.get("fvu") for name, result in results.items() if name != "sparse product"}
        compared = floors(row, compare(results, "sparse ours"), median_of(results["sparse product"]))
        rows.append({**compared, "floor": "encoder product", "fvu": explained, "same_losses": alike(explained)})
    return {"rows": rows, "left_out": left_out, "versions": versions}


def alike(explained: dict[str, float | None]) -> bool:
    """Whether ours leaves as much unexplained as the two that take the same steps."""
    ours = explained.get("sparse ours")
    theirs = [explained.get(f"sparse {way}") for way in ("sparsify", "openai")]
    return ours is not None and all(fvu is None or abs(ours - fvu) <= SAME_FVU * fvu for fvu in theirs)


def agree(row: Row, folder: Path) -> dict[str, Any]:
    """Whether our selection is that of float64 arithmetic on 64 rows, and on how many rows PyTorch selects the same."""
    if not (folder / "ours.npz").exists():
        return {"selection_is_right": False}
    ours = np.load(folder / "ours.npz")
    X, weight, bias = selection_problem(row)
    if row["precision"] == "bf16":
        X, weight = to_bf16(X), to_bf16(weight)
    checked = np.linspace(0, len(X) - 1, min(64, len(X))).astype(int)
    scores = X[checked].astype(np.float64) @ weight.T.astype(np.float64) + bias
    reach = np.linalg.norm(X[checked], axis=1).max() * np.linalg.norm(weight, axis=1).max()
    # Sums of float32; TF32 also rounds, or cuts off, each factor, and those errors average out over the sum.
    slack = 16 * 2.0**-24 * reach
    if row["precision"] == "tf32":
        slack += 16 * 2.0**-10 * reach / row["features"] ** 0.5
    values, indices = ours["values"][checked].astype(np.float64), ours["indices"][checked]
    kth = np.partition(scores, -row["active"], axis=1)[:, -row["active"]]
    chosen = np.take_along_axis(scores, indices.astype(np.int64), axis=1)
    right = (
        bool((np.abs(values - chosen) <= slack).all())
        and bool((chosen.min(axis=1) >= kth - 2 * slack).all())
        and bool((np.diff(values, axis=1) <= 0).all())
        and all(len(set(line)) == row["active"] for line in indices.tolist())
    )
    agreement: dict[str, Any] = {"selection_is_right": right, "largest_error": float(np.abs(values - chosen).max())}
    if (folder / "torch.npz").exists():
        theirs = np.sort(np.load(folder / "torch.npz")["indices"], axis=1)
        same = (np.sort(ours["indices"], axis=1) == theirs).all(axis=1)
        agreement["rows_that_pytorch_selects_alike"] = float(same.mean())
    return agreement


def to_bf16(a: np.ndarray) -> np.ndarray:
    """Rounded to nearest, ties to even, as float32."""
    bits = a.view(np.uint32)
    return ((bits + np.uint32(0x7FFF) + (bits >> 16 & 1)) & np.uint32(0xFFFF0000)).view(np.float32)


def ceilings(bench: Bench, options: argparse.Namespace) -> dict[str, Any]:
    rows, versions = [], {}
    for precision, shape in cases(options, TINY_PRODUCTS if options.quick else PRODUCTS):
        row = {"shape": shape, "precision": precision}
        rates = bench.race(row, ["torch rate"])["torch rate"]
        versions.update(rates.pop("versions", {}))
        seconds = median_of(rates)
        flops = None if seconds is None else rates["flops"] / seconds
        rows.append({**row, "seconds": seconds, "flops_per_second": flops, "error": rates.get("error")})
    return {"ceilings": native_ceilings(options), "products": rows, "versions": versions}


def native_ceilings(options: argparse.Namespace) -> dict[str, Any]:
    """What ceilings.cu prints."""
    if shutil.which("nvcc") is None:
        return {"error": "there is no nvcc"}
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder) / "ceilings"
        target = "sm_90" if options.device == "cpu" else "native"
        command = ["nvcc", "-O3", "-std=c++20", f"-arch={target}", "-o", str(program), str(HERE / "ceilings.cu")]
        built = subprocess.run(command, capture_output=True, text=True, check=False)
        if built.returncode:
            return {"error": built.stderr[-1000:]}
        done = subprocess.run([program], capture_output=True, text=True, check=False, timeout=120)
        return json.loads(done.stdout) if done.returncode == 0 else {"error": done.stderr.strip()[-1000:]}


def correctness(bench: Bench, options: argparse.Namespace) -> dict[str, Any]:
    """pytest on the device, then two tools of compute-sanitizer; each part with a share of the time."""
    device = "cpu" if options.device == "cpu" else "cuda"
    environment = {**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    if device == "cuda":
        environment["FASTSAE_REQUIRE_CUDA"] = "1"
    pytest = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", device]
    files = ["tests/test_device_training.py", "tests/test_precision.py"] if options.quick else ["tests"]
    several = ["-p", "xdist", "-n", str(min(8, os.cpu_count() or 1))] if importable("xdist") else []
    parts = {"pytest": run_part([*pytest, *several, *files], 0.6 * options.limit, environment, bench.log)}
    sanitizer = shutil.which("compute-sanitizer") or "/usr/local/cuda/bin/compute-sanitizer"
    for tool in ("memcheck", "racecheck") if device == "cuda" else ():
        command = [sanitizer, "--tool", tool, "--error-exitcode", "86", "--target-processes", "all"]
        marked = [*pytest, "-m", "gpu_sanitize", *files]
        parts[tool] = run_part([*command, *marked], min(0.2 * options.limit, bench.left()), environment, bench.log)
    return {"parts": parts, "passed": all(part["code"] == 0 for part in parts.values())}


def importable(module: str) -> bool:
    return subprocess.run([sys.executable, "-c", f"import {module}"], capture_output=True, check=False).returncode == 0


def run_part(command: list[str], limit: float, environment: dict[str, str], log: Path) -> dict[str, Any]:
    """A command whose output goes to the log; its code (124: it ran out of time), its seconds and its last lines."""
    started = time.monotonic()
    with log.open("a") as output:
        output.write(f"\n$ {' '.join(command)}\n")
        output.flush()
        start = output.tell()
        with subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, env=environment, cwd=ROOT, start_new_session=True
        ) as process:
            try:
                code = process.wait(limit)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, 9)  # its own session: the workers of pytest too
                code = 124
    with log.open("rb") as written:
        written.seek(start)
        tail = written.read().decode(errors="replace").strip().splitlines()[-12:]
    print("\n".join(tail), flush=True)
    return {"command": command[1:], "code": code, "seconds": round(time.monotonic() - started, 1), "tail": tail}


def variants(bench: Bench, options: argparse.Namespace) -> dict[str, Any]:
    """The tests of the variants on the device, then their steps against others."""
    device = "cpu" if options.device == "cpu" else "cuda"
    environment = {**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    if device == "cuda":
        environment["FASTSAE_REQUIRE_CUDA"] = "1"
    chosen = f"{device} and ({' or '.join(VARIANTS)})"
    pytest = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", chosen]
    several = ["-p", "xdist", "-n", str(min(8, os.cpu_count() or 1))] if importable("xdist") else []
    parts = {"pytest": run_part([*pytest, *several, "tests"], 0.4 * options.limit, environment, bench.log)}
    measured = (options.out / f"variants-{device}.json").resolve()
    command = [sys.executable, "benchmarks/bench_variants.py", "--device", options.device, "--output", str(measured)]
    seconds = bench.left()
    command += ["--limit", str(max(1, seconds - 20)), *(["--quick"] if options.quick else [])]
    parts["bench_variants"] = run_part(command, seconds, dict(os.environ), bench.log)
    return {"parts": parts, "passed": all(part["code"] == 0 for part in parts.values())}


STAGES = {
    "correctness": correctness,
    "ceilings": ceilings,
    "layered": layered,
    "selection": selection,
    "sparse": sparse,
    "variants": variants,
}

# --- around them ---


def cases(options: argparse.Namespace, shapes: list[tuple[int, ...]]) -> list[tuple[str, tuple[int, ...]]]:
    return [(precision, shape) for shape in shapes for precision in options.precision.split(",")]


def says(*command: str) -> str:
    """What a command prints, or nothing where there is none."""
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT, timeout=60).stdout.strip()
    except (OSError, subprocess.TimeoutExpired):
        return ""


def machine() -> dict[str, Any]:
    asked = says("nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader")
    name, driver, memory = (asked.split(", ") + 3 * [""])[:3]
    release = re.search(r"release (\S+?),", says("nvcc", "--version"))
    return {
        "gpu": name or None,
        "memory": memory or None,
        "driver": driver or None,
        "cuda": release[1] if release else None,
        "processors": os.cpu_count(),
        "system": platform.platform(),
    }


def versions_here() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in ("fastsae", "numpy", "torch", "jax"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def summary(result: dict[str, Any]) -> list[str]:
    """A line for each row of the result."""
    lines = [f"{result['gpu'] or 'no GPU'}: {result['stage']} in {result['seconds']} s"]
    for row in result.get("rows", ()):
        shape = " ".join(str(row[key]) for key in ("features", "hidden", "latents", "active", "batch") if key in row)
        measured = row["measured_seconds"]
        time_text = (
            "not measured" if measured is None else f"{1e6 * measured:.1f} us, {row['measured_over_floor']} floors"
        )
        ratios = ", ".join(f"{ratio} x {group}" for group, ratio in row["times_faster_than"].items())
        right = measured is None or row.get("same_losses", row.get("selection_is_right"))
        lines.append(f"{shape} {row['precision']}: {time_text}; {ratios}{'' if right else '; THE RESULTS DIFFER'}")
    for row in result.get("products", ()):
        rate = row["flops_per_second"]
        lines.append(f"{row['shape']} {row['precision']}: {f'{rate / 1e12:.4g} TFLOP/s' if rate else row['error']}")
    if "ceilings" in result:
        lines.append(json.dumps(result["ceilings"]))
    for name, part in result.get("parts", {}).items():
        lines.append(f"{name}: code {part['code']} after {part['seconds']} s")
    lines += [f"left out, for lack of time: {row}" for row in result.get("left_out", ())]
    return lines


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stage", choices=STAGES, required=True)
    parser.add_argument("--out", type=Path, default=HERE / "results")
    parser.add_argument("--device", default="cuda", help="cuda, cuda:N, or cpu to try the script itself")
    parser.add_argument("--precision", default=",".join(PRECISIONS), help="some of fp32,tf32,bf16")
    parser.add_argument("--quick", action="store_true", help="tiny sizes and few rounds")
    parser.add_argument("--limit", type=float, default=540, help="seconds after which no other row is begun")
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--slice", type=float, help="seconds of one turn")
    options = parser.parse_args()
    if unknown := set(options.precision.split(",")) - set(PRECISIONS):
        parser.error(f"--precision: expected some of {', '.join(PRECISIONS)}, got {', '.join(sorted(unknown))}")
    options.rounds = options.rounds or (2 if options.quick else 7)
    options.slice = options.slice or (0.02 if options.quick else 0.2)
    return options


def main() -> None:
    options = parse()
    options.out.mkdir(parents=True, exist_ok=True)
    some = "" if options.precision == ",".join(PRECISIONS) else "-" + options.precision.replace(",", "-")
    name = f"gpu-{options.stage}{some}"
    log = options.out / f"{name}.log"
    log.write_text("")
    workers = HERE / ("sparse_workers.py" if options.stage == "sparse" else "gpu_workers.py")
    bench, started = Bench(options, log, workers), time.monotonic()
    try:
        outcome = STAGES[options.stage](bench, options)
    finally:
        bench.stop()
    result = {
        "stage": options.stage,
        **machine(),
        **outcome,
        "versions": {**versions_here(), **outcome.get("versions", {})},
        "rounds": options.rounds,
        "seconds_of_a_turn": options.slice,
        "seconds": round(time.monotonic() - started, 1),
        "commit": says("git", "rev-parse", "--short", "HEAD") or os.environ.get("FASTSAE_COMMIT"),
        "command": " ".join(["python", *sys.argv]),
    }
    (options.out / f"{name}.json").write_text(json.dumps(result, indent=2) + "\n")
    print("\n".join(summary(result)))
    if not result.get("passed", True):
        sys.exit(1)


if __name__ == "__main__":
    main()
