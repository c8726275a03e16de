"""Matrix products on the CPU: our kernels and the BLAS against float64, bit by bit where that is promised."""

from __future__ import annotations

import itertools
import platform

import numpy as np
import pytest
from test_determinism import report
from test_engine import python

from fastsae import _core

SHAPES = [
    *itertools.product((1, 3, 8, 9, 25, 64), (1, 8, 15, 16, 17, 49, 100), (1, 2, 7, 16, 25, 100)),
    (33, 98, 784), (130, 1400, 50), (5, 7, 1153), (256, 196, 390), (25, 64, 3000), (70, 40, 9000), (1, 3000, 40),
]  # fmt: skip
own_kernels = pytest.mark.skipif(
    platform.machine() not in ("x86_64", "AMD64") or _core.isa() == "baseline",
    reason="this level has no kernels of ours",
)


def factors(
    m: int, n: int, k: int, dtype: str, transpose_a: bool, transpose_b: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Both factors as they are stored, in the middle of larger matrices, and room for the product in one."""
    rng = np.random.default_rng([m, n, k])

    def inside(rows: int, cols: int) -> np.ndarray:
        return rng.uniform(-1, 1, (rows + 2, cols + 5)).astype(dtype)[1:-1, 2:-3]

    a = inside(k, m) if transpose_a else inside(m, k)
    b = inside(n, k) if transpose_b else inside(k, n)
    return a, b, inside(m, n)


@pytest.mark.isa
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("transposes", list(itertools.product((False, True), repeat=2)), ids=str)
def test_products(dtype: str, transposes: tuple[bool, bool]) -> None:
    """Each sum is within its rounding of the exact one, and nothing beside the output is written."""
    epsilon = np.finfo(dtype).eps
    for (m, n, k), accumulate in itertools.product(SHAPES, (False, True)):
        a, b, out = factors(m, n, k, dtype, *transposes)
        whole = out.base
        assert whole is not None
        before = whole.copy()
        left, right = (a.T if transposes[0] else a).astype(float), (b.T if transposes[1] else b).astype(float)
        wanted, reach = left @ right, np.abs(left) @ np.abs(right)
        if accumulate:
            wanted, reach = wanted + out, reach + np.abs(out)
        _core.product(a, b, out, *transposes, accumulate)
        assert (np.abs(out - wanted) <= (k + 2) * epsilon * reach).all(), (m, n, k, accumulate)
        out[...] = before[1:-1, 2:-3]
        assert np.array_equal(whole, before), "written outside of the output"


PARTS = """
from fastsae import _core
rng = np.random.default_rng(0)
same = []
for dtype in ("float32", "float64"):
    a, b = rng.uniform(-1, 1, (130, 803)).astype(dtype)[:, 2:-1], rng.uniform(-1, 1, (1400, 800)).astype(dtype)
    out = np.empty((130, 1400), dtype)
    _core.product(a, b, out, False, True)
    for count in (1, 2, 3, 8):
        fastsae.set_num_threads(count)
        again = np.empty_like(out)
        _core.product(np.ascontiguousarray(a.T), np.ascontiguousarray(b.T), again, True)
        same.append(np.array_equal(again, out))
        for top, end, left, right in ((3, 20, 0, 1400), (0, 130, 7, 90), (40, 48, 50, 51), (9, 10, 1, 1400)):
            rows, cols = slice(top, end), slice(left, right)
            part = np.empty_like(out[rows, cols], order="C")
            _core.product(a[rows], b[cols], part, False, True)
            same.append(np.array_equal(part, out[rows, cols]))
print(json.dumps(same))
"""


@own_kernels
@pytest.mark.isa
def test_an_output_is_the_same_in_any_part_of_a_product() -> None:
    """Bits depend neither on what else is computed, nor on where a factor lies, nor on threads."""
    same = report(PARTS, FASTSAE_PRODUCTS="panels", FASTSAE_ISA=_core.isa())
    assert len(same) == 2 * 4 * 5
    assert all(same)


@own_kernels
@pytest.mark.isa
def test_a_product_keeps_nan_and_infinity() -> None:
    """In their rows and columns alone."""
    a, b = np.ones((9, 20), np.float32), np.ones((20, 33), np.float32)
    a[4, 19], b[0, 32] = np.nan, np.inf
    out = np.empty((9, 33), np.float32)
    _core.product(a, b, out)
    assert np.isnan(out[4]).all()
    assert np.isinf(np.delete(out, 4, 0)[:, 32]).all()
    assert (np.delete(out, 4, 0)[:, :32] == 20).all()


def test_products_of_wrong_arrays() -> None:
    a, b, out = np.ones((2, 3)), np.ones((3, 4)), np.ones((2, 4))
    for wrong, message in (
        ((a, b, out[:, :3]), "shapes"), ((a, out, out), "shapes"), ((a, b.astype(np.float32), out), "dtypes"),
        ((a.astype(int), b, out), "a: expected float32 or float64"), ((a.T, b, out), "without gaps"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            _core.product(*wrong)
    out.flags.writeable = False
    with pytest.raises(ValueError, match="out"):
        _core.product(a, b, out)


def test_the_provider_can_be_named() -> None:
    script = "import numpy as np; from fastsae import _core; _core.product(*np.ones((3, 9, 9)))"
    assert python(script, FASTSAE_PRODUCTS="blas").returncode == 0
    done = python(script, FASTSAE_PRODUCTS="best")
    assert done.returncode != 0
    assert "FASTSAE_PRODUCTS: expected blas or panels, got 'best'" in done.stderr
    if _core.isa() != "baseline":
        done = python(script, FASTSAE_PRODUCTS="panels", FASTSAE_ISA="baseline")
        assert "neither AVX2 nor AVX-512" in done.stderr


@own_kernels
def test_a_model_can_be_trained_by_either() -> None:
    """Both give the same model but for rounding."""
    script = """
engine = make()
for _ in range(5):
    engine.run_epoch(X, None, 300)
print(json.dumps([engine.metrics()["loss"], digest(engine)]))
"""
    ours, theirs = (report(script, FASTSAE_PRODUCTS=name) for name in ("panels", "blas"))
    assert ours[1] != theirs[1]
    assert ours[0] == pytest.approx(theirs[0], rel=1e-5)
