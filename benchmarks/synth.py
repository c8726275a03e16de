"""How well are features found whose truth is known: ours and SAELens on the same synthetic rows.

    python benchmarks/synth.py --peers PYTHON --output benchmarks/results/synth.json

PYTHON is the interpreter of an environment with SAELens: `python -m venv peers && peers/bin/pip install sae-lens`. The
world is that of SynthSAEBench-16k, whose published figures stand beside, or a smaller one of the same shape (`--size`);
`synth_world.py` says what it is and `synth_metrics.py` what is measured. Rows are drawn once per seed into `--folder`,
and a training that has ended is not made again, so an interrupted command goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from race import THREADS, take_versions
from report import report
from synth_workers import BATCH, LEARNERS, MODELS
from synth_world import SIZES, Stream, World

#: Of the 16k world with 4096 latents, 200 million rows and five seeds (SAELens's documentation of SynthSAEBench).
PUBLISHED = {
    25: {
        "batch_topk": {"f1": 0.7316, "mcc": 0.7574, "uniqueness": 0.9837, "explained_variance": 0.7923},
        "matryoshka": {"f1": 0.8793, "mcc": 0.7927, "uniqueness": 0.9987, "explained_variance": 0.7792},
    },
    20: {
        "batch_topk": {"f1": 0.8183, "mcc": 0.7526, "uniqueness": 0.9760, "explained_variance": 0.7889},
        "matryoshka": {"f1": 0.8601, "mcc": 0.7455, "uniqueness": 0.9874, "explained_variance": 0.7699},
    },
}
#: How far below SAELens's mean ours may lie.
ALLOWED = {"explained_variance": 0.005, "mcc": 0.03}
HELD_OUT_SEED = 10**6


def prepare(folder: Path, options: argparse.Namespace) -> None:
    """The world and its rows, unless they are there."""
    settings = {"size": options.size, "rows": options.rows, "held_out": options.held_out}
    mark = folder / "settings.json"
    if mark.exists() and json.loads(mark.read_text()) != settings:
        raise SystemExit(f"--folder: expected an empty one or rows of {settings}, got {mark.read_text()}")
    folder.mkdir(parents=True, exist_ok=True)
    mark.write_text(json.dumps(settings))
    if not (folder / "world.npz").exists():
        World.make(SIZES[options.size]).save(folder / "world.npz")
    world = World.load(folder / "world.npz")
    for name, rows, seed in [("held-out", options.held_out, HELD_OUT_SEED)] + [
        (f"rows-{seed}", options.rows, seed) for seed in range(options.seeds)
    ]:
        if not (folder / name / "complete").exists():
            start = time.perf_counter()
            Stream.write(world, folder / name, rows, seed, options.threads)
            (folder / name / "complete").touch()
            print(f"{name}: {rows} rows drawn in {time.perf_counter() - start:.0f} s", flush=True)


def trained(folder: Path, library: str, model: str, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """The result of one training, made unless it is there."""
    output = folder / f"{library}-{model}-{seed}.json"
    if not output.exists():
        python = options.peers if library == "saelens" else sys.executable
        script = Path(__file__).with_name("synth_workers.py")
        command = [python, script, library, model, "--folder", folder, "--seed", seed, "--output", output]
        environment = {**os.environ, **dict.fromkeys(THREADS, str(options.threads))}
        subprocess.run(list(map(str, command)), check=True, env=environment)
    return {"library": library, "model": model, "seed": seed, **json.loads(output.read_text())}


def summary(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Means over the seeds, and for ours what is above SAELens."""
    rows = []
    for model in dict.fromkeys(run["model"] for run in runs):
        means: dict[str, dict[str, float]] = {}
        for library in sorted({run["library"] for run in runs}, key=tuple(LEARNERS).index):
            of = [run for run in runs if (run["model"], run["library"]) == (model, library)]
            numbers = [name for name, value in of[0].items() if isinstance(value, int | float) and name != "seed"]
            means[library] = {name: statistics.fmean(run[name] for run in of) for name in numbers}
            spread = {name: max(run[name] for run in of) - min(run[name] for run in of) for name in (*ALLOWED, "f1")}
            rows.append({"model": model, "library": library, "seeds": len(of), **means[library], "spread": spread})
            if library != "saelens" and "saelens" in means:
                above = {name: means[library][name] - means["saelens"][name] for name in (*ALLOWED, "f1")}
                reached = all(above[name] >= -allowed for name, allowed in ALLOWED.items())
                rows[-1] |= {"above_saelens": above, "reached": reached}
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="2k")
    parser.add_argument("--rows", type=int, default=6_000_000, help="that each training sees")
    parser.add_argument("--held-out", type=int, default=102_400, help="rows that scores are measured on")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=MODELS)
    parser.add_argument("--libraries", nargs="+", choices=LEARNERS, default=("saelens", "ours"))
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--peers", default=sys.executable, help="the interpreter that has SAELens")
    parser.add_argument("--folder", type=Path, help="where rows and finished trainings are kept")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    for name, least in (("rows", BATCH), ("held_out", BATCH), ("seeds", 1), ("threads", 1)):
        if getattr(options, name) < least:
            parser.error(f"--{name.replace('_', '-')}: expected at least {least}, got {getattr(options, name)}")

    folder = options.folder or Path(tempfile.gettempdir()) / f"fastsae-synth-{options.size}-{options.rows}"
    prepare(folder, options)
    runs = [
        trained(folder, library, model, seed, options)
        for seed in range(options.seeds)
        for library in options.libraries
        for model in options.models
    ]
    result = {"date": time.strftime("%Y-%m-%d"), "contenders": take_versions({str(run): run for run in runs}),
              "size": options.size, "rows": options.rows, "held_out": options.held_out, "threads": options.threads,
              "summary": summary(runs), "runs": runs,
              "published": {f"16k, 200 million rows, L0 {l0}": rows for l0, rows in PUBLISHED.items()}}  # fmt: skip
    report(result, options.output)


if __name__ == "__main__":
    main()
