"""Every instruction set that the processor has: the same answers, and no instruction where it does not belong."""

from __future__ import annotations

import platform
import re
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
    """The tests that are marked `isa`, in a process of the level."""
    if level not in levels():
        pytest.skip(f"this processor has no {level}")
    if level == _core.isa():
        pytest.skip(f"{level} is what the tests themselves run under here")
    here = Path(__file__)
    marked = [str(path) for path in sorted(here.parent.glob("test_*.py")) if "@pytest.mark.isa" in path.read_text()]
    assert str(here.with_name("test_parity.py")) in marked
    options = [*marked, "-m", "isa", "-q", "-p", "no:cacheprovider"]
    script = f"import sys, pytest; sys.exit(pytest.main({options!r}))"
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
    blas = {"FASTSAE_PRODUCTS": "blas", "OPENBLAS_CORETYPE": "Nehalem"}
    results = [report(DIGESTS, FASTSAE_ISA=level, **blas) for level in found]
    assert len(results[0]) == 10 + 2 * 2 * 17
    for result in results[1:]:
        different = [key for key in result if result[key] != results[0][key]]
        assert not different
    if _core.blas() == "OpenBLAS":
        # Other kernels have other bits, or the variable that fixes them was not read.
        other = report(DIGESTS, FASTSAE_ISA="baseline", **{**blas, "OPENBLAS_CORETYPE": "Haswell"})
        assert all(other[key] == results[0][key] for key in other if key.count(" ") == 1)
        assert any(other[key] != results[0][key] for key in other)


def test_our_products_give_the_same_bits_on_every_level() -> None:
    """Each output is a chain of fma in the order of the inner dimension, however many are computed at once."""
    found = [level for level in levels() if level != "baseline"]
    if len(found) < 2:
        pytest.skip("this processor has one level with products of ours")
    first, second = (report(DIGESTS, FASTSAE_ISA=level, FASTSAE_PRODUCTS="panels") for level in found)
    assert first == second
    assert first != report(DIGESTS, FASTSAE_ISA=found[0], FASTSAE_PRODUCTS="blas")


SELECTION = """
rng = np.random.default_rng(1)
rows, latents = rng.standard_normal((300, 200), dtype=np.float32), rng.standard_normal((2600, 200), dtype=np.float32)
rows[7] += 50  # so that hardly anything is out by its bound
digests = {}
for k in (1, 5, 7):
    values, indices = TopKEncoder(latents, rng.standard_normal(2600, dtype=np.float32), k).encode(rows)
    digests[k] = [hashlib.sha256(array.tobytes()).hexdigest() for array in (values, indices)]
print(json.dumps(digests))
"""


def test_rounded_scores_change_no_bit_of_a_selection() -> None:
    """Where there are instructions for bfloat16, what may be selected is found by them; else all is computed."""
    found = [level for level in levels() if level != "baseline"]
    if len(found) < 2 or _core.bf16_unit() is None:
        pytest.skip("this processor has no instructions for bfloat16")
    script = "from fastsae import TopKEncoder\n" + SELECTION
    first, second = (report(script, FASTSAE_ISA=level, FASTSAE_PRODUCTS="panels") for level in found)
    assert first == second
