"""Moments in few bits: what is kept, parity with the reference, threads, resume, memory, and what is learned."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from test_parity import assert_near, single
from test_sparse_code_parity import draw, make_engine, make_reference, start
from test_sparse_code_reference import make
from tolerances import bound, kept_spacing

import fastsae
from fastsae import BatchTopKSAE, Engine, JumpReLUSAE, TopKSAE, Transcoder
from fastsae import config as options
from fastsae.reference import moments
from fastsae.reference.sparse_code import SparseCode
from fastsae.sparse_code import SparseCodeConfig

BRIEF = ("bf16", "8bit")
MATRICES = ("W_enc", "W_dec")
CASES: dict[str, dict[str, Any]] = {
    "adam": {},
    "clipped adam": {"activation": "batch_topk", "beta1": 0.8, "max_grad_norm": 0.1},
    "momentum": {"optimizer": "momentum", "momentum": 0.8},
    "nesterov": {"optimizer": "nesterov", "activation": "relu", "sparsity": "l1", "sparsity_weight": 0.01},
    "gated": {"activation": "gated", "sparsity": "l1"},
    "jump_relu": {"activation": "jump_relu", "bandwidth": 0.8, "initial_threshold": 0.3, "sparsity": "step"},
}
brief = pytest.mark.parametrize("precision", BRIEF)


# --- what is kept ---


def shares(which: str, dtype: str = "float64") -> np.ndarray:
    """Rows of two blocks with numbers of all sizes."""
    rng = np.random.default_rng(3)
    values = 10.0 ** rng.uniform(-12, 3, (4, 300)) * rng.choice([-1, 1] if which == "first" else [1], (4, 300))
    values[0, :7] = [0.0, 1.0, -1.0 if which == "first" else 1.0, 1e-30, 1e-7, 1e-8, 0.1]
    return values.astype(dtype)


def test_levels_are_a_dynamic_tree() -> None:
    for which, decades in (("first", 7), ("second", 8)):
        levels = moments.levels(which)
        assert len(levels) == 2**decades
        assert levels[-1] == 1.0
        assert levels[0] == (0.0 if which == "first" else 1e-8)
        for i in range(1, decades):
            low, high = 10.0 ** (i - decades), 10.0 ** (i + 1 - decades)
            inside = levels[(levels > low * 1.000001) & (levels < high * 1.000001)]
            np.testing.assert_allclose(inside, low + (high - low) * np.arange(1, 2**i + 1) / 2**i)


@brief
@pytest.mark.parametrize("which", ["first", "second"])
def test_the_mean_is_right(which: str, precision: str) -> None:
    """Over all chances: to the grain of the chances, a 2^-16 of the distance of neighbours."""
    values = np.append(shares(which)[:1, :40], [[2.0]], axis=1).clip(-2.0, 2.0)
    lowest = 2e-8 if which == "second" and precision == "8bit" else 0.0
    values = np.where(np.abs(values) < lowest, lowest, values)
    every = np.repeat(np.arange(2**16, dtype=np.uint64)[:, None], values.shape[1], axis=1)
    kept = moments.kept(np.repeat(values, 2**16, axis=0), which, precision, every)
    assert all(len(np.unique(column)) <= 2 for column in kept.T)
    # The largest number is 2, and the lowest level above 0 its 1e-6th part: less than a 2^-16 of that is no chance.
    grain = 2.0**-15 * np.maximum(np.ptp(kept, axis=0), 0 if precision == "bf16" else 2e-6)
    assert (np.abs(kept.mean(axis=0) - values[0]) <= grain + 1e-7 * np.abs(values[0])).all()


@brief
@pytest.mark.parametrize("dtype", options.DTYPES)
def test_what_divides_does_not_vanish(precision: str, dtype: str) -> None:
    """A second moment stays above 0, whatever the chance and however large its neighbours are."""
    values = shares("second", dtype)
    values[1, 5] = np.finfo(dtype).max
    for chance in (0, 2**16 - 1):
        kept = moments.kept(values, "second", precision, np.full(values.shape, chance, np.uint64))
        assert np.isfinite(kept).all()
        assert (kept[values > 0] > 0).all()
        usual = np.delete(values > 0, 1, axis=0)
        assert (np.delete(kept, 1, axis=0)[usual] >= (0.1 - 1e-6) * np.delete(values, 1, axis=0)[usual]).all()
    nothing = np.zeros((3, 700), dtype)
    assert not moments.kept(nothing, "second", precision, np.full(nothing.shape, 2**16 - 1, np.uint64)).any()


def test_tiny_second_moments_stay_above_zero_in_bf16() -> None:
    """Float64 has numbers that bfloat16 has not."""
    kept = moments.kept(np.array([[1e-60, 0.0, 1e300]]), "second", "bf16", np.zeros((1, 3), np.uint64))[0]
    assert kept[0] > 0
    assert kept[1] == 0
    assert 3e38 < kept[2] < np.inf


@brief
def test_small_changes_add_up(precision: str) -> None:
    """Second moments whose steps are far below the distance of neighbours reach what exact ones reach."""
    rng, squares = np.random.default_rng(0), np.repeat(10.0 ** np.linspace(-4, 0, 8)[:, None], 256, axis=1)
    kept = exact = 0.5 * squares
    for _ in range(700):
        kept = moments.kept(0.999 * kept + 0.001 * squares, "second", precision, rng.integers(0, 2**16, squares.shape))
        exact = 0.999 * exact + 0.001 * squares
    means = kept.mean(axis=1) / exact.mean(axis=1)
    # Independent columns, each spread by about the root of what 700 roundings add.
    np.testing.assert_allclose(means, 1.0, atol=0.02)


# --- parity ---


def held(engine: Engine, name: str) -> np.ndarray:
    """The numbers of a tensor."""
    value, which = engine.get(name), name.partition("_")[0]
    if value.dtype == np.uint16:
        return moments.bf16_values(value)
    if value.dtype == np.uint8:
        return moments.byte_values(value, engine.get(name.replace("moment", "scale")), which)
    return value


def states_of(model: SparseCode) -> dict[str, np.ndarray]:
    pairs = {"first_moment": model.first_moment, "second_moment": model.second_moment}
    return {f"{group}.{name}": value for group, of in pairs.items() for name, value in of.items()}


def trained(config: SparseCodeConfig, device: str, steps: int, rows: int = 7) -> tuple[Engine, SparseCode, SparseCode]:
    values, rng = start(config), np.random.default_rng(9)
    engine = make_engine(config, values, device, 0)
    exact, plain = (make_reference(config, values, dtype, 0) for dtype in ("float64", config.dtype))
    engine.noise_seed = exact.noise_seed = plain.noise_seed = 2**32 - 5
    for _ in range(steps):
        X, w, y = draw(config, rng, rows)
        engine.step(X, w, targets=y)
        exact.step(X, w, targets=y)
        plain.step(X, w, targets=y)
    assert engine.steps == steps
    return engine, exact, plain


def check_exact(config: SparseCodeConfig, device: str, steps: int, rows: int = 7) -> None:
    engine, exact, _ = trained(config, device, steps, rows)
    for name, value in {**exact.parameters, **states_of(exact)}.items():
        assert_near(name, held(engine, name), value, None, "float64", trained=True)
    for name in MATRICES:
        assert engine.get("first_moment." + name).dtype == {"bf16": np.uint16, "8bit": np.uint8}[config.state_precision]


@pytest.mark.isa
@brief
@pytest.mark.parametrize("norm", ["unit", "rescale", "free"])
@pytest.mark.parametrize("case", CASES)
def test_training(case: str, norm: str, precision: str, device: str) -> None:
    """After 50 steps in float64: the same chances, so the same moments."""
    config = make(**CASES[case], decoder_norm=norm, learning_rate=0.003, dtype="float64", state_precision=precision)
    check_exact(config, device, 50)


# features, outputs: several blocks; more columns than one draw is for; whole blocks and one more
WIDTHS = [(257, 40), (1400, 256), (2049, 513), (1, 1)]


@pytest.mark.isa
@pytest.mark.sanitize
@brief
@pytest.mark.parametrize("width", WIDTHS, ids=str)
def test_training_of_wide_rows(width: tuple[int, int], precision: str, device: str) -> None:
    d, o = width
    config = SparseCodeConfig(
        d, 19, o, k=3, transcoder=True, pre_bias=False, decoder_norm="free", dtype="float64", learning_rate=0.003,
        state_precision=precision,
    )  # fmt: skip
    check_exact(config, device, 5, rows=11)


@pytest.mark.isa
@brief
@pytest.mark.parametrize("case", ["adam", "nesterov"])
@pytest.mark.parametrize("width", [(5, 5), (300, 300)], ids=str)
def test_training_in_float32(width: tuple[int, int], case: str, precision: str, device: str) -> None:
    """A number next to a limit may be rounded to its other neighbour; few are, and by no more than that."""
    config = SparseCodeConfig(
        width[0],
        40,
        **{"learning_rate": 0.003, "state_precision": precision, **CASES[case]},
        **({"k": 5} if case == "adam" else {}),
    )
    engine, exact, plain = trained(config, device, 1, rows=30)
    for name, value in states_of(exact).items():
        difference, close = np.abs(held(engine, name) - value), bound(value, states_of(plain)[name], "float32")
        far = difference > close
        if name.partition(".")[2] not in MATRICES:
            assert not far.any()
            continue
        assert far.mean() < 0.01
        assert (difference <= close + kept_spacing(value, name.partition("_")[0], precision)).all()
    for name, value in exact.parameters.items():  # a step takes them before they are rounded
        assert_near(name, engine.get(name), value, plain.parameters[name], "float32", trained=True)


@brief
def test_a_step_after_zeros_has_bounds(precision: str, device: str) -> None:
    """Features of very different sizes: Adam's steps stay at most sqrt(10) times as long as with whole moments."""
    rng = np.random.default_rng(1)
    X = rng.normal(size=(64, 40)) * 10.0 ** rng.uniform(-6, 0, 40)
    configs = [
        SparseCodeConfig(40, 12, activation="relu", decoder_norm="free", epsilon=1e-30, learning_rate=1e-7,
                         dtype="float64", beta2=0.99, state_precision=how)
        for how in ("full", precision)
    ]  # fmt: skip
    moved = []
    for config in configs:
        engine = make_engine(config, start(config), device, 0)
        longest = 0.0
        for first in range(0, 60, 4):
            before = engine.get("W_enc")
            engine.step(X[first : first + 4])
            longest = max(longest, float(np.abs(engine.get("W_enc") - before).max()))
        moved.append(longest)
    assert 0 < moved[1] <= 10**0.5 * moved[0]


# --- the same bits ---


@brief
@pytest.mark.parametrize("dtype", options.DTYPES)
def test_training_does_not_depend_on_threads(dtype: str, precision: str, device: str, threads: None) -> None:
    config = SparseCodeConfig(300, 203, k=7, dtype=dtype, dead_after=100, state_precision=precision)
    X, results = np.random.default_rng(0).normal(size=(300, 300)), []
    for count in (1, 2, 3, 8):
        fastsae.set_num_threads(count)
        engine = make_engine(config, start(config), device, 0)
        engine.run_epoch(X, None, 60)
        results.append({name: engine.get(name).tobytes() for name in engine.state_names()})
    assert all(result == results[0] for result in results[1:])


def test_chances_depend_on_seed_and_step(device: str) -> None:
    config = make(learning_rate=0.01, state_precision="bf16")
    X, codes = np.random.default_rng(0).normal(size=(30, 5)), []
    for seed, steps in ((0, 0), (0, 0), (1, 0), (0, 1)):
        engine = make_engine(config, start(config), device, steps)
        engine.noise_seed = seed
        engine.step(X)
        codes.append(engine.get("first_moment.W_enc").tobytes())
    assert codes[0] == codes[1]
    assert len(set(codes)) == 3


@brief
@pytest.mark.parametrize("dtype", options.DTYPES)
def test_resume(dtype: str, precision: str, device: str, tmp_path: Path) -> None:
    """From a pickle and from a file: bit for bit."""
    X = np.random.default_rng(0).normal(size=(200, 270)).astype(dtype)
    given = {"k": 4, "batch_size": 20, "random_state": 3, "dtype": dtype, "device": device, "verbose": False}
    whole = TopKSAE(30, max_epochs=2, state_precision=precision, **given).fit(X)
    part = TopKSAE(30, max_epochs=2, max_steps=7, state_precision=precision, **given).fit(X)
    part.save(tmp_path / "model")
    for model in (pickle.loads(pickle.dumps(part)), fastsae.load(tmp_path / "model")):
        assert model.state_precision == precision
        model.set_params(max_steps=None).resume(X)
        names = whole._engine.state_names()
        assert [model._engine.get(name).tobytes() for name in names] == [
            whole._engine.get(name).tobytes() for name in names
        ]


@brief
def test_a_bad_step_changes_nothing(precision: str, device: str) -> None:
    config = make(learning_rate=0.01, state_precision=precision)
    engine = make_engine(config, start(config), device, 0)
    X = np.random.default_rng(0).normal(size=(30, 5))
    engine.step(X)
    before = {name: engine.get(name).tobytes() for name in engine.state_names()}
    X[4, 2] = np.nan
    with pytest.raises(ValueError, match="row 4"):
        engine.step(X)
    assert before == {name: engine.get(name).tobytes() for name in engine.state_names()}


def test_memory_falls(device: str) -> None:
    """Bytes of the moments of W_enc and W_dec, for each weight."""
    n, d, taken = 64, 512, {}
    for precision in ("full", *BRIEF):
        engine = Engine(SparseCodeConfig(d, n, k=4, state_precision=precision), device)
        names = [name for name in engine.state_names() if name.startswith(("first_", "second_"))]
        taken[precision] = sum(engine.get(name).nbytes for name in names if name.endswith(MATRICES)) / (2 * n * d)
    assert taken == {"full": 8.0, "bf16": 4.0, "8bit": 2.0 + 2 * 4 / 256}


# --- bad input ---


def test_bad_options() -> None:
    for optimizer, reason in (("sgd", "keeps nothing"), ("sign_sgd", "keeps a parameter, no moment")):
        with pytest.raises(ValueError, match=f"state_precision='8bit' needs optimizer=.*'{optimizer}' {reason}"):
            make(optimizer=optimizer, state_precision="8bit")
    for wrong in ("fp8", None, 8):
        with pytest.raises(ValueError, match="state_precision: expected"):
            make(state_precision=wrong)
    with pytest.raises(ValueError, match="state_precision"):
        TopKSAE(8, k=2, solver="sign_sgd", state_precision="bf16").fit(np.ones((9, 3)))


def test_bad_states(device: str, tmp_path: Path) -> None:
    engine = Engine(make(state_precision="bf16"), device)
    state = engine.get("first_moment.W_enc")
    with pytest.raises(ValueError, match=r"first_moment.W_enc: expected an array of uint16, which are bits"):
        engine.set("first_moment.W_enc", state.astype(np.float32))
    with pytest.raises(ValueError, match=r"first_moment.W_enc: expected finite numbers"):
        engine.set("first_moment.W_enc", np.full_like(state, 0x7F80))
    engine = Engine(make(state_precision="8bit"), device)
    with pytest.raises(ValueError, match=r"second_moment.W_dec: expected an array of uint8"):
        engine.set("second_moment.W_dec", engine.get("second_moment.W_dec").astype(np.int16))
    assert not engine.get("second_moment.W_dec").any()


DAMAGE = {"second_scale.W_enc": "8bit", "second_moment.W_dec": "bf16"}


@pytest.mark.parametrize("name", DAMAGE)
def test_damaged_files(name: str, tmp_path: Path) -> None:
    X, path = np.random.default_rng(0).normal(size=(50, 6)), tmp_path / "model"
    TopKSAE(9, k=2, max_steps=3, state_precision=DAMAGE[name], verbose=False).fit(X).save(path)
    with fastsae.checkpoint.safe_open(path, framework="numpy") as file:
        header = file.metadata()
    tensors = load_file(path)
    tensors[name] = tensors[name] | np.uint16(0x8000) if name.endswith("W_dec") else -1 - tensors[name]
    save_file(tensors, path, metadata=header)
    with pytest.raises(ValueError, match=f"tensor '{name}': a second moment or a scale cannot be negative"):
        fastsae.load(path)


# --- what is learned ---


def directions(n_rows: int = 6000, d: int = 32, n: int = 64, active: int = 3) -> np.ndarray:
    """Rows that are sums of a few directions."""
    rng = np.random.default_rng(5)
    W = rng.normal(size=(n, d))
    W /= np.linalg.norm(W, axis=1, keepdims=True)
    chosen = np.argsort(rng.random((n_rows, n)), axis=1)[:, :active]
    weights = rng.uniform(0.5, 2.0, (n_rows, active, 1))
    return (W[chosen] * weights).sum(axis=1).astype(np.float32)


@pytest.mark.parametrize("kind", [TopKSAE, BatchTopKSAE, JumpReLUSAE, Transcoder])
def test_learns_as_well(kind: type, device: str) -> None:
    """The share of the variance that is left, within 0.01 of that with whole moments."""
    X, left = directions(), {}
    given = {} if kind is JumpReLUSAE else {"k": 3}
    targets = (X[:, ::-1].copy(),) if kind is Transcoder else ()
    for precision in ("full", *BRIEF):
        model = kind(
            96, batch_size=256, max_steps=600, log_every=100, learning_rate=3e-3, state_precision=precision,
            random_state=0, device=device, verbose=False, **given,
        ).fit(X, *targets)  # fmt: skip
        left[precision] = model.step_history_["fvu"][-1]
        assert left[precision] < 0.5
    assert all(abs(left[precision] - left["full"]) < 0.01 for precision in BRIEF), left


def test_resampled_latents_are_forgotten(device: str) -> None:
    """Codes and scales of a latent that gets another start are 0."""
    from fastsae.resampling import resample

    config = SparseCodeConfig(300, 12, activation="relu", dead_after=10, state_precision="8bit")
    engine = make_engine(config, {**start(config), "rows_since_fired": single(np.zeros(12))}, device, 0)
    X = np.random.default_rng(0).normal(size=(40, 300))
    engine.step(X)
    engine.set("rows_since_fired", np.where(np.arange(12) < 3, 1000.0, 0.0))
    for name, value in resample(engine, X, np.random.default_rng(0)).items():
        engine.set(name, value)
    for name in ("first_moment.W_enc", "second_moment.W_enc", "first_moment.W_dec"):
        assert not held(engine, name)[:3].any()
        assert held(engine, name)[3:].any()
