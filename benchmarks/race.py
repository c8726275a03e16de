"""Contenders in processes of their own that take turns, and what is made of their times.

A contender is a script's worker (worker.py): it prepares a row, and runs a slice of it whenever its turn comes.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import queue
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

Row = dict[str, Any]

#: Seconds before a turn: threads of the one before may spin a while where they expect more work.
PAUSE = 0.03
#: Relative difference of the loss after 20 steps that rounding explains. For fp32 the sums round too, at every step;
#: otherwise the factors, whose errors mostly average out: a few times one of them.
TOLERANCE = {"fp32": 20 * 16 * 2.0**-24, "tf32": 4 * 2.0**-11, "bf16": 4 * 2.0**-8}
#: A user's choices, of which the faster one counts.
GROUPS = {
    "eager": ("torch default", "torch fused"),
    "compiled": ("torch compiled", "torch captured", "torch autotuned"),
    "jax": ("jax jit", "jax scan"),
    **{way: (f"sparse {way}",) for way in ("sparsify", "openai", "saelens")},
    "torch.topk": ("select torch default", "select torch compiled"),
}
#: What libraries take their number of threads from.
THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "FASTSAE_NUM_THREADS")
#: Where PyTorch and JAX come from.
ENVIRONMENT = """python -m venv peers
peers/bin/pip install torch jax --extra-index-url https://download.pytorch.org/whl/cpu
then --peers peers/bin/python"""


class Contender:
    """A worker process."""

    def __init__(self, command: list[str], device: str, threads: int, log: Path) -> None:
        environment = {**os.environ, "XLA_PYTHON_CLIENT_PREALLOCATE": "false", "PYTHONUNBUFFERED": "1"}
        if device == "cpu":
            environment |= {"JAX_PLATFORMS": "cpu", **dict.fromkeys(THREADS, str(threads))}
        with log.open("a") as errors:
            self.process = subprocess.Popen(
                [*command, "--device", device],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                env=environment,
            )
        self.lines: queue.Queue[str] = queue.Queue()
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.put(line)
        self.lines.put("")

    def ask(self, request: dict[str, Any]) -> None:
        assert self.process.stdin is not None
        with contextlib.suppress(OSError):  # a process that has ended answers with an empty line
            self.process.stdin.write(json.dumps(request) + "\n")
            self.process.stdin.flush()

    def answer(self, seconds: float) -> dict[str, Any]:
        try:
            line = self.lines.get(timeout=max(0.1, seconds))
        except queue.Empty:
            self.process.kill()
            return {"error": f"no answer within {seconds:.0f} s"}
        return json.loads(line) if line else {"error": f"ended with code {self.process.wait()}; see the log"}

    @property
    def ended(self) -> bool:
        return self.process.poll() is not None

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()


class Bench:
    """The contenders of a script of workers, and the clock.

    `pythons` are interpreters of contenders by the first word of their names; others take this one. `patience` is how
    many seconds they may take together to get ready for a row.
    """

    def __init__(
        self,
        options: argparse.Namespace,
        log: Path,
        script: Path,
        threads: int = 1,
        pythons: Mapping[str, str] = MappingProxyType({}),
        patience: float = 180,
    ) -> None:
        self.device, self.rounds, self.seconds = options.device, options.rounds, options.slice
        self.script, self.threads, self.pythons, self.patience = script, threads, pythons, patience
        self.end = time.monotonic() + options.limit
        self.log = log
        self.contenders: dict[str, Contender] = {}

    def left(self) -> float:
        return self.end - time.monotonic()

    def contender(self, name: str) -> Contender:
        if name not in self.contenders or self.contenders[name].ended:
            python = self.pythons.get(name.split()[0], sys.executable)
            self.contenders[name] = Contender([python, str(self.script), name], self.device, self.threads, self.log)
        return self.contenders[name]

    def race(self, row: Row, names: list[str]) -> dict[str, dict[str, Any]]:
        """What each contender answered, with the seconds per step of each round under ``rounds``.

        What else a contender says of its turns is under ``turns``.
        """
        started = time.monotonic()
        running = {name: self.contender(name) for name in names}
        for contender in running.values():
            contender.ask({"do": "prepare", "row": row})
        patience = time.monotonic() + min(self.patience, self.left())
        results = {name: contender.answer(patience - time.monotonic()) for name, contender in running.items()}
        ready = [name for name in names if "error" not in results[name]]
        for name in ready:
            results[name] |= {"rounds": [], "turns": []}
        for number in range(self.rounds + 1):
            for name in ready:
                if "error" in results[name]:
                    continue
                time.sleep(PAUSE)
                running[name].ask({"do": "slice", "seconds": self.seconds})
                answer = running[name].answer(min(60, self.left()))
                if "error" in answer:
                    results[name]["error"] = answer["error"]
                elif number > 0:  # the first round warms up, and says how long a step is without the others
                    results[name]["rounds"].append(answer.pop("seconds_per_step"))
                    results[name]["turns"].append(answer)
        for name in ready:
            running[name].ask({"do": "release"})
            running[name].answer(30)
        print(f"  {row}: {time.monotonic() - started:.0f} s, {self.left():.0f} s left", flush=True)
        return results

    def stop(self) -> None:
        for contender in self.contenders.values():
            contender.stop()


def race_parser(description: str | None, rounds: int, seconds: float, limit: float) -> argparse.ArgumentParser:
    """The options that races on the host have in common."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", default=sys.executable, help="interpreter with PyTorch and JAX")
    parser.add_argument("--rounds", type=int, default=rounds)
    parser.add_argument("--slice", type=float, default=seconds, help="seconds of one turn")
    parser.add_argument("--limit", type=float, default=limit, help="seconds after which no contender is waited for")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to try the script itself")
    parser.add_argument("--log", type=Path, help="where to write what contenders print")
    parser.add_argument("--output", type=Path)
    return parser


def chosen(parser: argparse.ArgumentParser, option: str, given: str, known: list[str]) -> list[str]:
    """The parts of a list with commas; the parser ends the program where one is not known."""
    parts = given.split(",")
    if unknown := set(parts) - set(known):
        parser.error(f"{option}: expected some of {', '.join(known)}, got {', '.join(sorted(unknown))}")
    return parts


@contextlib.contextmanager
def racing(
    options: argparse.Namespace, script: Path, threads: int, pythons: Mapping[str, str], patience: float = 180
) -> Iterator[Bench]:
    """A bench whose contenders have so many processors and threads; they end with it."""
    # JAX takes as many threads as there are processors for it; contenders inherit these.
    before = os.sched_getaffinity(0)
    processors = sorted(before)[:threads]
    os.sched_setaffinity(0, processors)
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(options, options.log or Path(folder) / "log", script, len(processors), pythons, patience)
        try:
            yield bench
        finally:
            bench.stop()
            os.sched_setaffinity(0, before)


def missing_peers(python: str, *modules: str) -> str:
    """What to do about PyTorch or JAX where an interpreter lacks them; empty where it has them."""
    found = {
        module: subprocess.run([python, "-c", f"import {module}"], capture_output=True, check=False)
        for module in modules
    }
    lacking = [module for module, done in found.items() if done.returncode]
    return f"{python} has no {' and no '.join(lacking)}. To compare with them:\n{ENVIRONMENT}" if lacking else ""


def take_versions(results: dict[str, dict[str, Any]]) -> dict[str, str]:
    """The versions that contenders named, which are those of all rows."""
    versions: dict[str, str] = {}
    for result in results.values():
        versions |= result.pop("versions", {})
    return versions


def outcome(
    options: argparse.Namespace, rows: list[dict[str, Any]], versions: dict[str, str], **more: Any
) -> dict[str, Any]:
    """What results of races begin with."""
    return {
        "date": time.strftime("%Y-%m-%d"),
        **more,
        "rounds": options.rounds,
        "seconds_of_a_turn": options.slice,
        "rows": rows,
        "contenders": versions,
    }


def loads(before: float) -> dict[str, float]:
    """What others run on the machine makes figures rougher."""
    return {"load_before": round(before, 1), "load_after": round(os.getloadavg()[0], 1)}


def median_of(result: dict[str, Any]) -> float | None:
    return statistics.median(result["rounds"]) if result.get("rounds") and "error" not in result else None


def compare(
    results: dict[str, dict[str, Any]], ours: str, groups: Mapping[str, tuple[str, ...]] = MappingProxyType(GROUPS)
) -> dict[str, Any]:
    """Times of all, and how many times faster we are than the fastest of each group, round by round."""
    times = {name: median_of(result) for name, result in results.items()}
    ratios: dict[str, float] = {}
    for group, members in groups.items():
        there = [name for name in members if times.get(name) is not None]
        if there and times.get(ours):
            fastest = min(there, key=lambda name: times[name] or 0.0)
            pairs = zip(results[fastest]["rounds"], results[ours]["rounds"], strict=True)
            ratios[group] = round(statistics.median(peer / own for peer, own in pairs), 3)
    return {
        "measured_seconds": times.get(ours),
        "seconds": {name: seconds for name, seconds in times.items() if seconds is not None},
        "times_faster_than": ratios,
        "missing": {name: result["error"] for name, result in results.items() if "error" in result},
    }


def floors(row: Row, compared: dict[str, Any], floor: float | None) -> dict[str, Any]:
    measured = compared["measured_seconds"]
    over = None if not measured or not floor else round(measured / floor, 3)
    return {**row, **compared, "floor_seconds": floor, "measured_over_floor": over}


def losses(results: dict[str, dict[str, Any]], precision: str, times: float = 1) -> dict[str, Any]:
    """The loss of each contender after 20 steps from the same weights, and whether they are the same.

    The tolerance is that of the precision, `times` over.
    """
    tolerance = times * TOLERANCE[precision]
    found = {name: result["loss"] for name, result in results.items() if "loss" in result}
    parts = {name: result["reconstruction"] for name, result in results.items() if "loss" in result}
    apart = 0.0
    for values in (found, parts):
        if "ours" in values:
            apart = max(apart, *(abs(v - values["ours"]) / abs(values["ours"]) for v in values.values()))
    same = "ours" in found and len(found) > 1 and apart <= tolerance
    return {"loss_after_20_steps": found, "losses_apart": apart, "tolerance": tolerance, "same_losses": same}
