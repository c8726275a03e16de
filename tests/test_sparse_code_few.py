"""ReLU, JumpReLU and Gated codes whose rows have few elements, which go on as lists, beside tiles that have many."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from test_device_training import sanitized
from test_parity import assert_near
from test_sparse_code_parity import margins

from fastsae._core import num_threads, set_num_threads
from fastsae.engine import Engine
from fastsae.reference.sparse_code import SparseCode
from fastsae.sparse_code import SparseCodeConfig

D, N, TILE = 13, 1100, 1024  # of a tile: so many rows
ALL, NONE = slice(None), slice(0)

MODELS: dict[str, dict[str, Any]] = {
    "relu": {"activation": "relu"},
    "l1": {"activation": "relu", "sparsity": "l1", "sparsity_weight": 0.3},
    "tanh": {"activation": "relu", "sparsity": "tanh", "decoder_norm": "free", "sparsity_by_norm": False},
    "steps": {"activation": "jump_relu", "sparsity": "step", "bandwidth": 0.3},
    "quadratic": {"activation": "jump_relu", "sparsity": "quadratic", "target_l0": 3.0, "bandwidth": 0.3},
    "jumps and tanh": {"activation": "jump_relu", "sparsity": "tanh", "bandwidth": 0.3},
    "transcoder": {"activation": "relu", "transcoder": True, "skip": True, "pre_bias": False, "sparsity": "l1"},
    "gated": {"activation": "gated", "gate_weight": 0.6},
    "gated l1": {"activation": "gated", "sparsity": "l1", "decoder_norm": "free", "loss_reduction": "fvu"},
    "gated attached": {"activation": "gated", "sparsity": "l1", "gate_detached": False, "sparsity_warm_up": 4},
    "gated rescaled": {"activation": "gated", "sparsity": "l1", "decoder_norm": "rescale", "gate_detached": False},
    "gated plain l1": {"activation": "gated", "sparsity": "l1", "sparsity_by_norm": False, "max_grad_norm": 0.2},
    "gated transcoder": {"activation": "gated", "transcoder": True, "skip": True, "pre_bias": False},
    "gated attached transcoder": {"activation": "gated", "transcoder": True, "skip": True, "gate_detached": False},
}


def start(config: SparseCodeConfig) -> dict[str, np.ndarray]:
    """Weights with which about one latent of a thousand is above 0 in a row of :func:`rows`."""
    rng = np.random.default_rng(3)
    values = {name: rng.standard_normal(shape) for name, shape in config.parameter_shapes.items()}
    values["W_enc"] *= 0.4
    values["b_dec"] *= 0.1
    bias = "b_gate" if "b_gate" in values else "b_enc"
    values[bias] = 0.1 * values[bias] - 4.0
    values["W_dec"] /= np.linalg.norm(values["W_dec"], axis=1, keepdims=True)
    if "threshold" in values:
        values["threshold"] = 0.2 * np.abs(values["threshold"])
    if "b_mag" in values:  # a third of the open gates let nothing pass
        values["r_mag"] *= 0.3
        values["b_mag"] = values["b_mag"] - 4.0
    return {name: value.astype(config.dtype) for name, value in values.items()}


def rows(count: int, loud: slice, dtype: str, silent: slice = NONE) -> np.ndarray:
    """Of them the loud make many latents active, the silent none."""
    x = np.random.default_rng(4).standard_normal((count, D))
    x[loud] *= 8.0
    x[silent] = 0.0
    return x.astype(dtype)


def pair(model: str, dtype: str, device: str) -> tuple[Engine, SparseCode, SparseCode]:
    config = SparseCodeConfig(D, N, dtype=dtype, learning_rate=1e-3, **MODELS[model])
    engine, exact, plain = Engine(config, device), SparseCode(config), SparseCode(config, dtype)
    for name, value in start(config).items():
        engine.set(name, value)
        exact.set({name: value})
        plain.set({name: value})
    return engine, exact, plain


def cleared(x: np.ndarray, groups: tuple[slice, ...], exact: SparseCode, plain: SparseCode) -> np.ndarray:
    """Rows on which another order of sums could decide otherwise become copies of others of their group."""
    seen, rounded = exact._batch(x, None, None), plain._batch(x, None, None)
    clear = margins(exact, seen) > 8 * np.abs(seen.z - rounded.z).max()
    rest = np.ones(len(x), bool)
    for group in groups:
        rest[group] = False
    for part in (rest, ~rest):
        good, bad = np.flatnonzero(clear & part), np.flatnonzero(~clear & part)
        assert len(bad) <= len(good)
        x[bad] = x[good[: len(bad)]]
    return x


# Rows, and which of them are loud and which silent: lists alone, tiles alone, several tiles of lists, one of each kind,
# a tile between lists, a list without elements before a tile, and nothing at all.
BATCHES: dict[str, tuple[int, slice, slice]] = {
    "list": (50, NONE, NONE),
    "tile": (50, ALL, NONE),
    "lists": (TILE + 40, NONE, NONE),
    "tile, list": (TILE + 40, slice(TILE), NONE),
    "list, tile, list": (2 * TILE + 3, slice(TILE, 2 * TILE), NONE),
    "empty, tile": (TILE + 1, slice(TILE, None), slice(TILE)),
    "empty": (33, NONE, ALL),
}


@pytest.mark.isa
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("model", MODELS)
def test_gradient(model: str, batch: str, dtype: str, device: str) -> None:
    engine, exact, plain = pair(model, dtype, device)
    count, loud, silent = BATCHES[batch]
    x, w = rows(count, loud, dtype, silent), np.random.default_rng(5).random(count)
    if engine.config.activation == "jump_relu" and silent == NONE:
        x = cleared(x, (loud,), exact, plain)
    given = {"targets": (2 * x + 1).astype(dtype)} if engine.config.transcoder else {}
    share = (exact.encode(x) > 0).mean(axis=1)
    assert not share[silent].any()
    assert share[loud].size == 0 or share[loud].mean() > 1 / 20
    share[loud] = share[silent] = np.nan
    assert np.isnan(share).all() or 0 < np.nanmean(share) < 1 / 100
    cost = engine.gradient(x, w, **given)
    (parts, gradients), (_, rounded) = (m.value_and_gradient(x, w, **given) for m in (exact, plain))
    assert cost["loss"] == pytest.approx(parts["loss"], rel=1e-12 if dtype == "float64" else 1e-5)
    for name, gradient in gradients.items():
        assert_near(name, engine.get("gradient." + name), gradient, rounded[name], dtype)


@pytest.mark.sanitize
@pytest.mark.parametrize("model", sanitized(MODELS, "steps"))
def test_training(model: str, device: str) -> None:
    """Steps that change from one kind to the other; float64, where both decide alike which elements are there."""
    engine, exact, plain = pair(model, "float64", device)
    for step in range(20):
        x = rows(40, ALL if step % 3 == 2 else NONE, "float64")
        given = {"targets": 2 * x} if engine.config.transcoder else {}
        for one in (engine, exact, plain):
            one.step(x, **given)
    for name, value in exact.parameters.items():
        assert_near(name, engine.get(name), value, plain.parameters[name], "float64", trained=True)
    np.testing.assert_array_equal(engine.get("fired_rows"), exact.fired_rows)


@pytest.mark.parametrize("latents", [1, 2], ids=["as many as a list may have", "more"])
@pytest.mark.parametrize("model", ["l1", "gated l1", "gated attached"])
def test_limit_of_a_list(model: str, latents: int, device: str) -> None:
    """Of 64 latents one or two are active in every row."""
    config = SparseCodeConfig(D, 64, dtype="float64", **MODELS[model])
    engine, exact = Engine(config, device), SparseCode(config)
    for name, value in start(config).items():
        value = 0.01 * value if name == "W_enc" else value
        if name in ("b_enc", "b_gate", "b_mag"):
            value[5 : 5 + latents] = 1.0
        engine.set(name, value)
        exact.set({name: value})
    x = rows(21, NONE, "float64")
    np.testing.assert_array_equal(np.count_nonzero(exact.encode(x), axis=1), latents)
    engine.gradient(x)
    for name, gradient in exact.value_and_gradient(x)[1].items():
        assert_near(name, engine.get("gradient." + name), gradient, gradient, "float64")


@pytest.mark.parametrize("model", ["jumps and tanh", "gated l1", "gated attached transcoder"])
def test_bits_do_not_depend_on_threads(model: str) -> None:
    before, made = num_threads(), []
    try:
        for threads in (1, 2, 3, 8):
            set_num_threads(threads)
            engine, _, _ = pair(model, "float32", "cpu")
            for _ in range(3):
                x = rows(TILE + 40, slice(TILE), "float32")
                engine.step(x, **({"targets": 2 * x} if engine.config.transcoder else {}))
            made.append({name: engine.get(name) for name in engine.state_names()})
    finally:
        set_num_threads(before)
    for other in made[1:]:
        for name, value in made[0].items():
            np.testing.assert_array_equal(other[name], value, err_msg=name)


@pytest.mark.parametrize("model", ["steps", "gated l1"])
@pytest.mark.parametrize("model", ["l1", "jumps and tanh", "gated attached"])
def test_runs_are_repeatable(model: str, device: str) -> None:
    """Lists and tiles come in any order, in steps that a device records once: nothing is left behind."""
    loud = (0, 40, TILE + 40, TILE, 0, 40)  # rows
    made = []
    for before in ((), (TILE + 40, 0, 40), (0, 0, 0)):
        engine, _, _ = pair(model, "float32", device)
        state = {name: engine.get(name) for name in engine.state_names()}
        for count in before:
            engine.step(rows(TILE + 40, slice(count), "float32"))
        for name, value in state.items():
            engine.set(name, value)
        engine.steps = 0
        for count in loud:
            engine.step(rows(TILE + 40, slice(count), "float32"))
        made.append({name: engine.get(name) for name in engine.state_names()})
    for other in made[1:]:
        for name, value in made[0].items():
            np.testing.assert_array_equal(other[name], value, err_msg=name)


def test_rows_with_nan_are_named(model: str, device: str) -> None:
    engine, _, _ = pair(model, "float32", device)
    x = rows(50, NONE, "float32")
    before = {name: engine.get(name) for name in engine.state_names()}
    x[17, 3] = np.nan
    with pytest.raises(ValueError, match=r"^X: row 17 contains NaN"):
        engine.step(x)
    for name, value in before.items():
        np.testing.assert_array_equal(engine.get(name), value, err_msg=name)
