"""Do other libraries' sparse autoencoders and ours compute the same from the same weights and rows?

Each library runs in an interpreter of its own (sae_peers.py), with NumPy files between: code, loss and gradient of one
batch, then its own training steps, with its own optimiser, clipping and normalisation, whose losses and last weights
are compared with those of ours. All of it in float64, but for what a library keeps in float32. Where a library is known
to do something else (DIFFERENCES), that difference must be there, and be what is said of it. Last, SAELens and sparsify
read what we save in their layouts, and we read what they save (sae_files.py).

    python benchmarks/agree_sae.py --saelens PYTHON --sparsify PYTHON --dictionary-learning PYTHON
        [--output benchmarks/results/agreement-sae.json]

The packages are sae-lens, eai-sparsify and dictionary-learning, each in an environment of its own. What is not given is
left out. OpenAI's step runs in the first of them.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from report import report
from sae_cases import BATCH, CASES, STEPS, Case, D, Found, N, far, problem
from sae_differences import DIFFERENCES
from sae_files import EXCHANGES, write
from sae_files import compared as files_compared
from tables import agreement_table

from fastsae import Engine
from fastsae.reference import SparseCode
from fastsae.sparse_code import SparseCodeConfig

HERE = Path(__file__).parent
LIBRARIES = ("saelens", "sparsify", "dictionary_learning", "openai")


class Measured(Engine):
    """The engine, whose steps say what they cost."""

    def __init__(self, config: SparseCodeConfig) -> None:
        super().__init__(config, "cpu")

    def step(self, X: np.ndarray, *, targets: np.ndarray | None = None) -> dict[str, float]:
        self.reset_metrics()
        super().step(X, targets=targets)
        return self.metrics()


class Reference:
    """The NumPy reference, spoken to as the engine is."""

    def __init__(self, config: SparseCodeConfig) -> None:
        self.model = SparseCode(config)

    def set(self, name: str, value: Any) -> None:
        if name in self.model.parameters:
            self.model.set({name: value})
        else:
            setattr(self.model, name, value if np.ndim(value) and len(value) > 1 else float(np.ravel(value)[0]))

    def get(self, name: str) -> np.ndarray:
        first, _, rest = name.partition(".")
        if first == "gradient":
            return self.gradients[rest]
        return self.model.parameters[name] if name in self.model.parameters else np.array([getattr(self.model, name)])

    def gradient(self, X: np.ndarray, *, targets: np.ndarray | None = None) -> dict[str, float]:
        parts, self.gradients = self.model.value_and_gradient(X, targets=targets)
        return parts

    def step(self, X: np.ndarray, *, targets: np.ndarray | None = None) -> dict[str, float]:
        return self.model.step(X, targets=targets)

    def encode(self, X: np.ndarray) -> np.ndarray:
        return self.model.encode(X)


#: Whom the libraries are compared with.
OURS: dict[str, Callable[[SparseCodeConfig], Any]] = {
    "engine": Measured,
    "reference": Reference,
}


def of_ours(make: Callable[[SparseCodeConfig], Any], case: Case, given: Found, code: np.ndarray) -> Found:
    """What `sae_peers.answer` finds of a library; `code` is theirs.

    Inference of BatchTopK takes a threshold, for which we give one just below the least code that they kept.
    """
    config = case.config
    X, Y = given["X"], given.get("Y")

    def made() -> Any:
        ours = make(config)
        states = ["rows_since_fired", *["data_variance"] * (config.loss_reduction == "fvu_data")]
        for name in (*config.parameter_shapes, *states):
            ours.set(name, given[name])
        return ours

    ours, first = made(), slice(0, BATCH)
    cost = ours.gradient(X[first], targets=None if Y is None else Y[first])
    found = {"loss": np.array(cost["loss"])}
    found |= {f"gradient {name}": ours.get(f"gradient.{name}") for name in config.parameter_shapes}
    if config.activation == "batch_topk":
        ours.set("batch_threshold", [code[code > 0].min() * (1 - 1e-9)])
    found["code"] = ours.encode(X[first])
    if case.curve is not None:
        ours, losses = made(), []
        for i in range(0, len(X), BATCH):
            rows = slice(i, i + BATCH)
            losses.append(ours.step(X[rows], targets=None if Y is None else Y[rows])["loss"])
        found["losses"] = np.array(losses)
        states = ["batch_threshold"] if config.activation == "batch_topk" else []
        found |= {f"after {name}": ours.get(name) for name in [*config.parameter_shapes, *states]}
    return found


def of_theirs(cases: list[Case], python: str, folder: Path) -> dict[str, str]:
    """Let a library answer its cases; its versions."""
    job: dict[str, Any] = {"versions": str(folder / "versions.json"), "cases": []}
    for case in cases:
        weights, answer = (str(folder / f"{case.name} {kind}.npz") for kind in ("weights", "answer"))
        np.savez(weights, **problem(case))
        told = {name: getattr(case, name) for name in ("library", "model", "options")}
        sizes = {"n_features": D, "n_latents": N, "k": case.config.k, "batch": BATCH, "dtype": "float64"}
        steps = 0 if case.curve is None else STEPS
        job["cases"].append({**told, **sizes, "steps": steps, "weights": weights, "answer": answer})
    exchanges = [exchange for exchange in EXCHANGES if exchange.library == cases[0].library]
    job["files"] = [write(exchange, folder / exchange.name) for exchange in exchanges]
    path = folder / "job.json"
    path.write_text(json.dumps(job))
    command = [python, str(HERE / "sae_peers.py"), str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder)
    if done.returncode:
        sys.exit(f"{cases[0].library} failed:\n{done.stderr}")
    found: dict[str, str] = json.loads(Path(job["versions"]).read_text())
    return found


def compared(case: Case, ours: Found, theirs: Found) -> dict[str, Any]:
    """How far they are apart, and whether that is within what the case allows."""
    both = [name for name in theirs if name in ours]
    groups = {
        "loss": ["loss"],
        "code": ["code"],
        "gradients": [name for name in both if name.startswith("gradient")],
        "losses_of_steps": ["losses"] * ("losses" in both),
        "after_steps": [name for name in both if name.startswith("after")],
    }
    assert set(ours) == set(theirs), f"{case.name}: only one of us has {set(ours) ^ set(theirs)}"
    measured = {group: max(far(ours[name], theirs[name]) for name in names) for group, names in groups.items() if names}
    limits = {group: case.curve if "steps" in group else case.exact for group in measured}
    agree = all(limits[group] is None or value <= limits[group] for group, value in measured.items())
    return {
        "case": case.name,
        "apart": measured,
        "exact": case.exact,
        "curve": case.curve,
        "agree": agree,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for library in LIBRARIES[:-1]:
        parser.add_argument(f"--{library.replace('_', '-')}", metavar="PYTHON", help="interpreter that has it")
    parser.add_argument("--ours", choices=OURS, default="engine")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    pythons = {library: given for library in LIBRARIES[:-1] if (given := getattr(options, library))}
    if not pythons:
        parser.error("expected the interpreter of at least one library")
    pythons["openai"] = next(iter(pythons.values()))

    result: dict[str, Any] = {"date": time.strftime("%Y-%m-%d"), "ours": options.ours, "left_out": [], "peers": {}}
    result |= {
        "steps": STEPS,
        "batch": BATCH,
        "n_features": D,
        "n_latents": N,
        "cases": [],
        "differences": [],
        "files": [],
    }
    answers: dict[str, tuple[Found, Found, Found]] = {}
    with tempfile.TemporaryDirectory() as name:
        for library in LIBRARIES:
            cases = [case for case in (*CASES, *(c for d in DIFFERENCES for c in d.cases)) if case.library == library]
            if library not in pythons:
                result["left_out"].append(library)
                continue
            folder = Path(name) / library
            folder.mkdir()
            result["peers"][library] = of_theirs(cases, pythons[library], folder)
            for case in cases:
                given, theirs = problem(case), dict(np.load(folder / f"{case.name} answer.npz"))
                answers[case.name] = given, of_ours(OURS[options.ours], case, given, theirs["code"]), theirs
            for exchange in EXCHANGES:
                if exchange.library == library:
                    result["files"].append(files_compared(exchange, folder / exchange.name))
    for case in CASES:
        if case.name in answers:
            result["cases"].append(compared(case, *answers[case.name][1:]))
    for difference in DIFFERENCES:
        if all(case.name in answers for case in difference.cases):
            measured = difference.measure([answers[case.name] for case in difference.cases])
            as_said = all(value for value in measured.values() if isinstance(value, bool))
            result["differences"].append(
                {"name": difference.name, "why": difference.why, "measured": measured, "as_said": as_said}
            )
    report(result, options.output)
    print(agreement_table(result))
    wrong = [row["case"] for row in result["cases"] if not row["agree"]]
    wrong += [row["file"] for row in result["files"] if not row["agree"]]
    wrong += [row["name"] for row in result["differences"] if not row["as_said"]]
    if wrong:
        sys.exit("not as expected: " + "; ".join(wrong))


if __name__ == "__main__":
    main()
