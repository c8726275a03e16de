"""A code as its elements: bit for bit what the dense code holds, whichever way it was made."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pytest
from test_engine import python
from test_sparse_code_parity import MODELS, make_engine, sized, start

from fastsae import Config, Engine, LayerConfig
from fastsae.codes import csr_of, pairs_of
from fastsae.sparse_code import SparseCodeConfig


def check(engine: Engine, X: np.ndarray) -> int:
    code, (starts, latents, values) = engine.encode(X), engine.encode_sparse(X)
    np.testing.assert_array_equal(starts, np.r_[0, np.count_nonzero(code, axis=1).cumsum()])
    np.testing.assert_array_equal(latents, np.nonzero(code)[1])
    np.testing.assert_array_equal(values, code[code != 0])
    assert values.dtype == code.dtype
    return len(values)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("share", [0.5, 0.01, 0.0], ids=["many", "few", "none"])
@pytest.mark.parametrize("model", MODELS)
def test_elements_are_those_of_the_dense_code(model: str, share: float, dtype: str, device: str) -> None:
    """Tiles with many elements and lists of few; two blocks of rows, the second of one row."""
    rows, n = 1025, 300
    config = sized(model, (17, n, 17, 4, rows), dtype=dtype)
    values, X = start(config), np.random.default_rng(2).normal(size=(rows, 17)).astype(dtype)
    bias = "b_gate" if "b_gate" in values else "b_enc"
    engine = make_engine(config, values, device, 0)
    z = (X - values["b_dec"]) @ values["W_enc"].T
    bar = float(np.quantile(z, 1 - share)) if share else 1e3
    engine.set(bias, np.full(n, -bar))
    if "threshold" in values:
        engine.set(bias, np.zeros(n))
        engine.set("threshold", np.full(n, max(bar, 0.0)))
    if config.activation == "batch_topk":
        engine.set("batch_threshold", [0.01])
    count = check(engine, X)
    per_row = count / rows / n
    if config.activation == "topk":
        assert count == rows * 4 or share < 0.5
    else:
        assert per_row > 1 / 64 if share == 0.5 else per_row < 1 / 64
    assert (count == 0) == (share == 0)


def test_a_threshold_below_zero_keeps_negative_codes(device: str) -> None:
    engine = Engine(SparseCodeConfig(3, 200, activation="jump_relu", decoder_norm="free"), device)
    engine.set("W_enc", np.random.default_rng(0).normal(size=(200, 3)))
    thresholds = np.full(200, 50.0)
    thresholds[7] = -2.0
    engine.set("threshold", thresholds)
    X = np.random.default_rng(1).normal(size=(60, 3))
    assert check(engine, X) > 30
    assert (engine.encode_sparse(X)[2] < 0).any()


def test_other_models_give_their_elements_too(device: str) -> None:
    engine = Engine(Config(4, (LayerConfig(9, activation="relu"), LayerConfig(4))), device)
    engine.set("W1", np.random.default_rng(0).normal(size=(9, 4)))
    assert 0 < check(engine, np.random.default_rng(1).normal(size=(40, 4))) < 360


@pytest.mark.parametrize("rows", [0, 1])
def test_few_rows(rows: int, device: str) -> None:
    engine = Engine(SparseCodeConfig(4, 70, activation="relu"), device)
    engine.set("W_enc", np.ones((70, 4)))
    assert check(engine, np.ones((rows, 4))) == 70 * rows


GROWTH = """
import resource
import numpy as np
from fastsae import TopKSAE
X = np.random.default_rng(0).normal(size=(1024, 4)).astype(np.float32)
sae = TopKSAE(100_000, k=4, max_steps=1, batch_size=8, verbose=False, device="cpu").fit(X[:8])
for output in ("csr", "pairs"):
    sae.transform(X[:8], output=output)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for output in ("csr", "pairs"):
    sae.transform(X, output=output)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="ru_maxrss is in KiB on Linux")
def test_rows_x_latents_are_not_held() -> None:
    """A call on a wide TopK code takes the memory of its elements: rows x latents would be 400 MB."""
    done = python(GROWTH)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 32 << 10


def pairs_by_sorting(codes: Any, width: int) -> tuple[np.ndarray, np.ndarray]:
    values, indices = np.zeros((codes.shape[0], width), codes.dtype), np.zeros((codes.shape[0], width), np.int32)
    for i, row in enumerate(codes.toarray()):
        best = sorted(np.flatnonzero(row), key=lambda j: (-row[j], j))
        values[i, : len(best)], indices[i, : len(best)] = row[best], best
    return values, indices


def test_pairs_fall_and_the_lower_of_equals_comes_first() -> None:
    random = np.random.default_rng(0)
    rows = (random.integers(0, 4, (50, 30)) * (random.random((50, 30)) < 0.2)).astype(np.float32)
    starts = np.r_[0, np.count_nonzero(rows, axis=1).cumsum()]
    codes = csr_of([(starts, np.nonzero(rows)[1].astype(np.int32), rows[rows != 0])], 30)
    for width in (None, 20):
        got = pairs_of(codes, width)
        for array, wanted in zip(got, pairs_by_sorting(codes, got[0].shape[1]), strict=True):
            np.testing.assert_array_equal(array, wanted)
            assert array.dtype == wanted.dtype
