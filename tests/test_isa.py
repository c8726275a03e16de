"""Every instruction set that the processor has: the same answers, and no instruction where it does not belong."""

from __future__ import annotations

import bisect
import collections
import platform
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from test_determinism import report
from test_engine import python

from fastsae import _core

LEVELS = ["baseline", "avx2", "avx512"]
# The OpenBLAS kernels that need no more than the level.
CORES = {"baseline": "Nehalem", "avx2": "Haswell", "avx512": "SkylakeX"}

pytestmark = pytest.mark.skipif(
    platform.machine() not in ("x86_64", "AMD64"), reason="other processors have one instruction set"
)


def levels() -> list[str]:
    """What this processor has."""
    best = python("from fastsae import _core; print(_core.isa())", FASTSAE_ISA="").stdout.strip()
    return LEVELS[: LEVELS.index(best) + 1]


@pytest.mark.parametrize("level", LEVELS)
def test_parity_under(level: str) -> None:
    """The tests of test_parity.py that are marked `isa`, in a process of the level."""
    if level not in levels():
        pytest.skip(f"this processor has no {level}")
    if level == _core.isa():
        pytest.skip(f"{level} is what test_parity.py itself runs under here")
    script = (
        "import sys, pytest; "
        f"sys.exit(pytest.main([{str(Path(__file__).with_name('test_parity.py'))!r}, '-m', 'isa', '-q', "
        "'-p', 'no:cacheprovider']))"
    )
    done = python(script, timeout=300, FASTSAE_ISA=level, OPENBLAS_CORETYPE=CORES[level])
    assert done.returncode == 0, done.stdout[-5000:]
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed is not None
    assert int(passed[1]) > 1000


DIGESTS = """
digests = {}
for dtype in ("float32", "float64"):
    tiny = np.finfo(dtype).tiny
    special = [0, -0.0, tiny, -tiny, tiny / 2, np.finfo(dtype).max, -np.finfo(dtype).max, np.inf, -np.inf, np.nan]
    grid = np.concatenate([np.linspace(-110, 110, 60_000), np.geomspace(1e-30, 1e30, 20_000), special])
    grid = grid.astype(dtype)[:, None]
    for activation in ("sigmoid", "tanh", "relu", "softplus", "identity"):
        # One weight of 1: whatever the BLAS, the pre-activation is the input.
        one = Engine(Config(1, (LayerConfig(1, activation), LayerConfig(1)), dtype=dtype))
        one.set("W1", [[1.0]])
        code = one.encode(grid)
        code[np.isnan(code)] = 7  # the sign of NaN is nobody's
        digests[f"{activation} {dtype}"] = hashlib.sha256(code.tobytes()).hexdigest()
        for penalty in ("none", "kl", "l1", "log"):
            if penalty == "kl" and activation not in ("sigmoid", "tanh"):
                continue
            for optimizer in ("adam", "nesterov"):
                layers = (LayerConfig(37, activation, penalty, beta=0.1), LayerConfig(40))
                config = Config(40, layers, dtype=dtype, optimizer=optimizer, loss="cross_entropy")
                engine = Engine(config)
                engine.set_parameters(initialize(config, "glorot", np.random.default_rng(0)))
                for _ in range(3):
                    engine.run_epoch(X, None, 300)
                key = f"{activation} {penalty} {optimizer} {dtype}"
                scores = hashlib.sha256(engine.score(X).tobytes()).hexdigest()
                digests[key] = [digest(engine), scores, engine.metrics()["loss"]]
print(json.dumps(digests))
"""


def test_our_loops_give_the_same_bits_on_every_level() -> None:
    """With the same BLAS kernels everything has the same bits: our own loops use no fma and a fixed order."""
    found = levels()
    if len(found) == 1:
        pytest.skip("this processor has one level")
    results = [report(DIGESTS, FASTSAE_ISA=level, OPENBLAS_CORETYPE="Nehalem") for level in found]
    assert len(results[0]) == 10 + 2 * 2 * 17
    for result in results[1:]:
        different = [key for key in result if result[key] != results[0][key]]
        assert not different
    if _core.blas() == "OpenBLAS":
        # Other kernels have other bits, or the variable that fixes them was not read.
        other = report(DIGESTS, FASTSAE_ISA="baseline", OPENBLAS_CORETYPE="Haswell")
        assert all(other[key] == results[0][key] for key in other if key.count(" ") == 1)
        assert any(other[key] != results[0][key] for key in other)


# --- what is compiled where ---


def tables(module: str) -> list[list[int]]:
    """The loops of every level: runs of as many addresses of functions, found by their relocations.

    The installed module has no symbols. cpu/loops.cpp has one table of functions for each level, and the addresses
    in them are filled in when the module is loaded.
    """
    listing = subprocess.run(["readelf", "-SrW", module], capture_output=True, text=True, check=True).stdout
    text = re.search(r"\] \.text\s+PROGBITS\s+([0-9a-f]+) [0-9a-f]+ ([0-9a-f]+)", listing)
    assert text is not None
    begin = int(text[1], 16)
    end = begin + int(text[2], 16)
    pointers = {
        int(place, 16): int(address, 16)
        for place, address in re.findall(r"^([0-9a-f]+)\s+[0-9a-f]+ R_X86_64_RELATIVE\s+([0-9a-f]+)$", listing, re.M)
    }
    runs: list[list[int]] = []
    last = 0
    for place in sorted(place for place, address in pointers.items() if begin <= address < end):
        if place != last + 8:
            runs.append([])
        runs[-1].append(pointers[place])
        last = place
    longest = max(len(run) for run in runs)
    return [run for run in runs if len(run) == longest]


def functions(module: str) -> list[tuple[int, int]]:
    """Begin and end of every function, from the unwind tables, in order."""
    listing = subprocess.run(["objdump", "--dwarf=frames", module], capture_output=True, text=True, check=True).stdout
    return sorted(
        (int(begin, 16), int(end, 16))
        for begin, end in re.findall(r" FDE .* pc=([0-9a-f]+)\.\.([0-9a-f]+)$", listing, re.M)
    )


def instructions(module: str) -> list[tuple[int, str]]:
    command = ["objdump", "-d", "--no-show-raw-insn", module]
    listing = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return [(int(address, 16), text) for address, text in re.findall(r"^\s+([0-9a-f]+):\t(.+?)\s*$", listing, re.M)]


@pytest.mark.skipif(
    shutil.which("objdump") is None or shutil.which("readelf") is None, reason="needs objdump and readelf"
)
def test_wide_instructions_are_in_their_loops_alone() -> None:
    """AVX anywhere else would end the process with SIGILL on an old processor, before FASTSAE_ISA is read."""
    module = _core.__file__
    assert module is not None
    ranges, begins = functions(module), []
    begins = [begin for begin, _ in ranges]
    uses: dict[int, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    for address, text in instructions(module):
        i = bisect.bisect_right(begins, address) - 1
        function = ranges[i][0] if i >= 0 and address < ranges[i][1] else -1
        if re.search(r"%zmm|%k[0-7]|%[xy]mm(1[6-9]|2\d|3[01])", text):
            uses[function]["avx512"] += 1
        elif "%ymm" in text:
            uses[function]["avx2"] += 1
        elif re.match(r"v(?!err|erw|mcall|mlaunch)", text):
            uses[function]["avx"] += 1  # 128 bits, but encoded as AVX

    found = tables(module)
    assert len(found) == len(LEVELS)
    assert len(set(map(len, found))) == 1
    kinds = [{kind for function in table for kind in uses[function]} for table in found]
    # Which table is which follows from what is in it; each level uses what it may and the tables are not empty.
    by_level = {max(kind, key=["avx", "avx2", "avx512"].index, default="none"): i for i, kind in enumerate(kinds)}
    assert set(by_level) == {"none", "avx2", "avx512"}
    assert not kinds[by_level["none"]]
    assert "avx512" not in kinds[by_level["avx2"]]
    assert not set(found[by_level["none"]]) & {*found[by_level["avx2"]], *found[by_level["avx512"]]}
    # Nearly all loops vectorise; if not, there is no reason to have them.
    for level in ("avx2", "avx512"):
        wide = sum(uses[function][level] > 0 for function in found[by_level[level]])
        assert wide > 0.8 * len(found[by_level[level]])

    allowed = {*found[by_level["avx2"]], *found[by_level["avx512"]]}
    outside = {hex(function): dict(kinds) for function, kinds in uses.items() if kinds and function not in allowed}
    assert not outside
