"""What every result says beside its figures: the machine, the versions, the commit and the command; and its table.

python benchmarks/report.py benchmarks/results/variants-cpu.json
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

import fastsae
from fastsae import _core

_PEERS = ("eager", "compiled", "jax")
_LOAD = os.getloadavg()[0]  # what others run on the machine makes the ratios rougher


def processor() -> str:
    """Its name."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.split(":")[1].strip() for line in lines if "model name" in line), platform.processor())


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
        "command": " ".join(["python", *sys.argv]),
    }
    text = json.dumps(result, indent=2)
    print(text)
    if output:
        output.write_text(text + "\n")


def table(result: dict[str, Any]) -> str:
    """The rows of a race as Markdown: times in microseconds, and how many times faster we are than the others."""
    lines = ["| model | batch | us | floor | over it | eager | compiled | jax | same loss |", 9 * "|---" + "|"]
    for row in result["rows"]:
        ratios = [f"{ratio:.2f} x" if (ratio := row["times_faster_than"].get(peer)) else "-" for peer in _PEERS]
        times = [f"{1e6 * row[key]:.0f}" if row[key] else "-" for key in ("measured_seconds", "floor_seconds")]
        over = f"{row['measured_over_floor']:.2f}" if row["measured_over_floor"] else "-"
        same = "yes" if row["same_losses"] else "NO"
        lines.append(f"| {' | '.join([row['model'], str(row['batch']), *times, over, *ratios, same])} |")
    return "\n".join(lines)


if __name__ == "__main__":
    for name in sys.argv[1:]:
        print(table(json.loads(Path(name).read_text())))
