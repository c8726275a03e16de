"""``precision="bf16"`` of sparse codes on the CPU: which factors are rounded, and how far codes and training move."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import test_sparse_code_few as few
import test_sparse_code_parity as parity
from test_determinism import bits
from test_parity import assert_near
from test_precision import needs_bf16, rounded, with_rounded_factors
from test_sparse_code_determinism import problem
from test_sparse_code_parity import MODELS, Values, assert_parts, make_engine, margins, parts_of, sized, start
from test_sparse_code_reference import CASES, SELECTED, make
from tolerances import rounded_bound

import fastsae
from fastsae.reference import SparseCode
from fastsae.sparse_code import SparseCodeConfig

pytestmark = needs_bf16
PRECISION = {"precision": "bf16", "dtype": "float32"}
THREADS = (1, 2, 3, 8)


class RoundedEncoder(SparseCode):
    """What the engine rounds of a code that is a list: the factors of the products with W_enc."""

    def _project(self, x: Any) -> Any:
        return self._rounded(self._centred(x)) @ self._rounded(self.parameters["W_enc"]).T

    def _through_activation(self, batch: Any, slopes: Any) -> None:
        super()._through_activation(batch, slopes)
        if self.config.pre_bias:
            p, g, weight = self.parameters, slopes.parameters, self.parameters["W_enc"]
            gated = self.config.activation == "gated"
            delta = g["b_gate"] + np.exp(p["r_mag"]) * g["b_mag"] if gated else g["b_enc"]
            g["b_dec"] += delta @ weight - self._rounded(delta) @ self._rounded(weight)

    def _rounded(self, values: Any) -> Any:
        return rounded(values, "bf16").astype(self.dtype)


class RoundedProducts(SparseCode):
    """All matrix products round their factors."""

    def set(self, values: Any) -> None:
        super().set(values)
        self.parameters = {name: with_rounded_factors(p, "bf16") for name, p in self.parameters.items()}


def model_of(config: SparseCodeConfig, values: Values, kind: type[SparseCode], dtype: str, steps: int) -> SparseCode:
    config = dataclasses.replace(config, precision="full", dtype=dtype)
    return parity.make_reference(config, values, dtype, steps, kind)


Batch = tuple[np.ndarray, np.ndarray, "np.ndarray | None"]


def clear_batch(config: SparseCodeConfig, values: Values, kind: type[SparseCode], rows: int, t: int) -> Batch:
    """A batch on which `kind` in float32 and the exact model decide alike, with twice their distance to spare."""
    rng = np.random.default_rng([t, 7])
    first = RoundedEncoder if kind is RoundedEncoder else SparseCode
    exact, low = model_of(config, values, first, "float64", t), model_of(config, values, kind, "float32", t)

    def clear(X: np.ndarray, w: np.ndarray, y: np.ndarray | None) -> np.ndarray:
        seen, other = exact._batch(X, w, y), low._batch(X, w, y)
        noise = max(np.abs(seen.z - other.z).max(), np.abs(seen.scores - other.scores).max())
        return margins(exact, seen) > 2 * noise

    for _ in range(2000):
        many = parity.draw(config, rng, rows if config.activation == "batch_topk" else 12 * rows)
        kept = np.flatnonzero(clear(*many))[:rows]
        X, w, y = (None if part is None else part[kept] for part in many)
        if len(kept) == rows and clear(X, w, y).all():
            return X, w, y
    raise AssertionError("no batch is clear")


# --- one step ---

# W_skip's product and its gradient's are plain products, whose factors are all rounded.
LISTS = {name: case for name, case in SELECTED.items() if not case.get("skip")}


@pytest.mark.parametrize("case", LISTS)
def test_lists_round_the_encoder_alone(case: str) -> None:
    """To float32's tolerance: the decoding and all gradients of TopK and BatchTopK are in full precision."""
    config = make(**LISTS[case], **PRECISION)
    values = start(config)
    X, w, y = clear_batch(config, values, RoundedEncoder, 7, 3)
    engine = make_engine(config, values, "cpu", 3)
    exact, plain = (model_of(config, values, RoundedEncoder, dtype, 3) for dtype in ("float64", "float32"))
    parts, (exact_parts, exact_gradients) = engine.gradient(X, w, targets=y), exact.value_and_gradient(X, w, targets=y)
    plain_parts, plain_gradients = plain.value_and_gradient(X, w, targets=y)
    assert_parts(parts, exact_parts, plain_parts, "float32")
    for name, gradient in exact_gradients.items():
        assert_near(name, engine.get("gradient." + name), gradient, plain_gradients[name], "float32")
    assert_parts(engine.evaluate(X, w, targets=y), exact_parts, plain_parts, "float32")


@pytest.mark.parametrize("case", [name for name, case in few.MODELS.items() if not case.get("skip")])
def test_few_elements_round_the_encoder_alone(case: str) -> None:
    """Tiles that go on as lists."""
    config = SparseCodeConfig(few.D, few.N, **few.MODELS[case], **PRECISION)
    values = {**few.start(config), "rows_since_fired": np.zeros(few.N)}
    engine = make_engine(config, values, "cpu", 0)
    exact, plain = (model_of(config, values, RoundedEncoder, dtype, 0) for dtype in ("float64", "float32"))
    X = few.rows(90, few.NONE, "float32")
    seen = exact._batch(X, None, None)
    X = X[margins(exact, seen) > 4 * np.abs(seen.z - plain._batch(X, None, None).z).max()]
    assert len(X) > 50
    engine.gradient(X)
    (_, exact_gradients), (_, plain_gradients) = (model.value_and_gradient(X) for model in (exact, plain))
    for name, gradient in exact_gradients.items():
        assert_near(name, engine.get("gradient." + name), gradient, plain_gradients[name], "float32")


def check_near(name: str, actual: Any, exact: Any, low: Any) -> None:
    difference = np.abs(np.asarray(actual, np.float64) - exact).max(initial=0.0)
    allowed = rounded_bound(exact, low, "bf16")
    assert difference <= allowed, f"{name}: off by {difference:.3g}, allowed {allowed:.3g}"


def check_step(config: SparseCodeConfig, rows: int = 7) -> None:
    """Parts of J and gradients near the exact ones; the same latents fire."""
    values = start(config)
    X, w, y = clear_batch(config, values, RoundedProducts, rows, 3)
    engine = make_engine(config, values, "cpu", 3)
    exact = model_of(config, values, SparseCode, "float64", 3)
    low = model_of(config, values, RoundedProducts, "float32", 3)
    parts = engine.gradient(X, w, targets=y)
    exact_parts, exact_gradients = exact.value_and_gradient(X, w, targets=y)
    low_parts, low_gradients = low.value_and_gradient(X, w, targets=y)
    for part in parity.PARTS:
        check_near(part, parts[part], parts_of(exact_parts)[part], parts_of(low_parts)[part])
    for name, gradient in exact_gradients.items():
        check_near(name, engine.get("gradient." + name), gradient, low_gradients[name])
    engine.step(X, w, targets=y)
    exact.step(X, w, targets=y)
    np.testing.assert_array_equal(engine.get("fired_rows"), exact.fired_rows)
    np.testing.assert_array_equal(engine.get("rows_since_fired"), exact.rows_since_fired)


@pytest.mark.parametrize("case", CASES)
def test_a_step_is_near(case: str) -> None:
    check_step(make(**CASES[case], **PRECISION))


# features, latents, outputs, k, rows
@pytest.mark.parametrize("size", [(1, 1, 1, 1, 1), (33, 17, 33, 5, 3), (257, 8, 31, 3, 40)], ids=str)
@pytest.mark.parametrize("model", MODELS)
def test_sizes(model: str, size: tuple[int, ...]) -> None:
    check_step(sized(model, size, **PRECISION), size[-1])


# --- inference ---


@pytest.mark.parametrize("case", CASES)
def test_codes(case: str) -> None:
    """The code to float32's tolerance, and zero where the model with the same rounding is; outputs near it."""
    config = make(**CASES[case], **PRECISION)
    values = start(config)
    engine = make_engine(config, values, "cpu", 0)
    exact, plain = (model_of(config, values, RoundedEncoder, dtype, 0) for dtype in ("float64", "float32"))
    low = model_of(config, values, RoundedProducts, "float32", 0)
    if config.activation == "batch_topk":
        engine.set("batch_threshold", [0.4])
        exact.batch_threshold = plain.batch_threshold = low.batch_threshold = 0.4
    X = clear_batch(dataclasses.replace(config, k_start=None, k_warm_up=0), values, RoundedEncoder, 7, 0)[0]
    code = engine.encode(X)
    assert_near("encode", code, exact.encode(X), plain.encode(X), "float32")
    np.testing.assert_array_equal(code > 0, exact.encode(X) > 0)
    assert np.abs(code - model_of(config, values, SparseCode, "float64", 0).encode(X)).max() > 1e-4
    check_near("decode", engine.decode(code), exact.decode(code), low.decode(code))
    check_near("reconstruct", engine.reconstruct(X), exact.reconstruct(X), low.reconstruct(X))


@pytest.mark.parametrize("model", MODELS)
def test_training_and_inference_see_the_same_code(model: str) -> None:
    """Rows alone and together, dense and sparse, have the same bits; a step counts the latents that `encode` shows."""
    config, values, X, y = problem(model, (33, 1031, 33, 9, 150), precision="bf16")
    engine = make_engine(config, values, "cpu", 0)
    if config.activation == "batch_topk":
        engine.set("batch_threshold", [0.1])
    code = engine.encode(X)
    starts, latents, elements = engine.encode_sparse(X)
    np.testing.assert_array_equal(starts, np.r_[0, np.count_nonzero(code, axis=1).cumsum()])
    np.testing.assert_array_equal(latents, np.nonzero(code)[1])
    np.testing.assert_array_equal(elements, code[code != 0])
    for row in (0, 7, len(X) - 1):
        np.testing.assert_array_equal(engine.encode(X[row : row + 1])[0], code[row])
    if config.activation != "batch_topk":
        engine.step(X, targets=y)
        np.testing.assert_array_equal(engine.get("fired_rows"), (code > 0).sum(axis=0))


# --- training ---


@pytest.mark.parametrize("case", CASES)
def test_training_follows_the_cost(case: str) -> None:
    """50 steps, decisions included: each batch's cost as near the exact one as the twin's, in the worst batch."""
    config = make(**CASES[case], learning_rate=0.003, **PRECISION)
    values, rng = start(config), np.random.default_rng(3)
    engine = make_engine(config, values, "cpu", 0)
    exact = model_of(config, values, SparseCode, "float64", 0)
    low = model_of(config, values, RoundedProducts, "float32", 0)
    batches, curves, before = [parity.draw(config, rng, 40) for _ in range(3)], [[], [], []], 0.0
    for step in range(50):
        X, w, y = batches[step % 3]
        engine.step(X, w, targets=y)
        sums = engine.metric_sums()["loss"]
        losses = (sums - before) / w.sum(), *(model.step(X, w, targets=y)["loss"] for model in (exact, low))
        before = sums
        for curve, loss in zip(curves, losses, strict=True):
            curve.append(loss)
    check_near("losses", *curves)


def test_steps_below_the_spacing_add_up() -> None:
    """Parameters stay in float32: a rate that bfloat16 could not see still learns."""
    config = make(optimizer="sgd", learning_rate=1e-5, decoder_norm="free", **PRECISION)
    engine = make_engine(config, start(config), "cpu", 0)
    X = parity.draw(config, np.random.default_rng(0), 30)[0]
    before = engine.get("W_enc")
    engine.gradient(X)
    wanted = before - np.float32(1e-5) * engine.get("gradient.W_enc")
    engine.step(X)
    np.testing.assert_allclose(engine.get("W_enc"), wanted, rtol=2e-7)
    assert (engine.get("W_enc") != before).mean() > 0.5
    np.testing.assert_array_equal(rounded(engine.get("W_enc"), "bf16"), rounded(before, "bf16"))


# --- threads ---


@pytest.mark.parametrize("size", [(5, 11, 5, 3, 7), (33, 1031, 33, 17, 300)], ids=str)
@pytest.mark.parametrize("model", MODELS)
def test_bits_do_not_depend_on_threads(model: str, size: tuple[int, ...], threads: None) -> None:
    config, values, X, y = problem(model, size, precision="bf16")
    results = []
    for count in THREADS:
        fastsae.set_num_threads(count)
        engine = make_engine(config, values, "cpu", 0)
        for _ in range(3):
            engine.run_epoch(X, None, size[-1], targets=y)
        outputs = [engine.encode(X), engine.reconstruct(X), engine.score(X, y), *engine.encode_sparse(X)]
        state = {name: engine.get(name).tobytes() for name in engine.state_names()}
        results.append((state, engine.gradient(X, targets=y), bits(engine), [each.tobytes() for each in outputs]))
    assert all(result == results[0] for result in results[1:])
