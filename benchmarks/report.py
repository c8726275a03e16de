"""What every result says beside its figures: the machine, the versions, the commit and the command; and its table.

python benchmarks/report.py benchmarks/results/variants-cpu.json
python benchmarks/report.py --write benchmarks/results/step-cpu.json     into the READMEs, with its picture
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
from tables import PLACES, variants_table, write

import fastsae
from fastsae import _core

_LOAD = os.getloadavg()[0]  # what others run on the machine makes the ratios rougher


def processor() -> str:
    """Its name."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.split(":")[1].strip() for line in lines if "model name" in line), platform.processor())


def _without_folder(argument: str) -> str:
    """An interpreter of peers is named, but not where it lies."""
    return Path(argument).name if argument.startswith("/") else argument


def report(result: dict[str, Any], output: Path | None) -> None:
    """Print `result` with all that as JSON, and write it to `output` if there is one."""
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    result |= {
        "isa": _core.isa(),
        "blas": _core.blas(),
        "processor": processor(),
        "processors": os.cpu_count(),
        "load_before": round(_LOAD, 1),
        "versions": {"fastsae": fastsae.__version__, "numpy": np.__version__, "python": platform.python_version()},
        "commit": commit.stdout.strip(),
        "command": " ".join(["python", *map(_without_folder, sys.argv)]),
    }
    text = json.dumps(result, indent=2)
    print(text)
    if output:
        output.write_text(text + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", nargs="+", type=Path)
    parser.add_argument("--write", action="store_true", help="put the tables into the READMEs and draw the pictures")
    options = parser.parse_args()
    for path in options.results:
        result = json.loads(path.read_text())
        if not options.write:
            whole = PLACES[path.stem][1] if path.stem in PLACES else variants_table
            print(whole(result))
        elif path.stem in PLACES:
            print(*write(path.stem, result), sep="\n")
        else:
            parser.error(f"--write: expected results named {' or '.join(PLACES)}, got {path.stem}")


if __name__ == "__main__":
    main()
