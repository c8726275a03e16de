"""Noise on the input: the random words behind it, what it does, and the models that are trained with it."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import math
from typing import Any

import numpy as np
import pytest
from scipy import stats
from test_parity import (
    PAIRS,
    D,
    N,
    assert_near,
    check_gradient,
    check_outputs,
    check_training,
    data,
    deep,
    label,
    make_engine,
    make_reference,
    parameters_for,
    two_layers,
    weights_for,
)
from tolerances import EPS, FLOAT64

import fastsae
from fastsae import Config, Engine, LayerConfig
from fastsae import config as options
from fastsae.reference.corruption import corrupt
from fastsae.reference.random import draw, philox, two_normals, uniform

KINDS = options.CORRUPTIONS[1:]

# --- the generator ---

# kat_vectors of Random123 (Salmon et al. 2011), philox4x32-10: counter, key, words.
KNOWN = [
    ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
]


def hexadecimal(text: str) -> list[int]:
    return [int(word, 16) for word in text.split()]


@pytest.mark.parametrize(("counter", "key", "words"), KNOWN)
def test_known_words(counter: str, key: str, words: str) -> None:
    a, b, c, d = (np.array([word], np.uint64) for word in hexadecimal(counter))
    k0, k1 = hexadecimal(key)
    assert [int(word[0]) for word in philox((a, b, c, d), (k0, k1))] == hexadecimal(words)


def test_draws_have_their_place_in_the_counter() -> None:
    """Row in the first two words, then column and epoch; the key is seed and stream."""
    row = 2**40 + 5
    words = draw("corruption", 7, 3, [row], [11])
    counter = tuple(np.array([word], np.uint64) for word in (row & 0xFFFFFFFF, row >> 32, 11, 3))
    assert [int(w[0, 0]) for w in words] == [int(w[0]) for w in philox(counter, (7, 1))]  # type: ignore[arg-type]


def test_normals_of_known_words() -> None:
    """u = v = 1/2: radius sqrt(2 log 2) at half a turn; and what Box and Muller's formula gives for others."""
    half = np.array([0x80000000], np.uint64)
    np.testing.assert_allclose(uniform(half), 0.5, rtol=1e-9)
    first, second = two_normals(half, half)
    np.testing.assert_allclose(first, -math.sqrt(2 * math.log(2)), rtol=1e-9)
    np.testing.assert_allclose(second, 0.0, atol=1e-8)


# --- noise made visible ---


def noisy(config: Config, X: np.ndarray, device: str, seed: int = 0, epoch: int = 0, **rest: Any) -> np.ndarray:
    """What a step of `config` reads instead of `X` [N, d], N a power of 2, exactly.

    One linear layer of N units without weights has the output 0, and the targets -N/2 I the deltas I: the gradient
    of the weights is I' times the input.
    """
    n, d = X.shape
    assert n & (n - 1) == 0
    config = dataclasses.replace(
        config, n_features=d, layers=(LayerConfig(n, "identity"),), n_outputs=n, loss_reduction="sum", weight_decay=0.0
    )
    engine = Engine(config, device, rest.pop("full_batch_rows", 0))
    engine.noise_seed, engine.epoch = seed, epoch
    engine.gradient(X, targets=-n / 2 * np.eye(n), **rest)
    return engine.get("gradient.W1")


def config_of(kind: str, level: float = 0.4, **rest: Any) -> Config:
    return Config(1, (LayerConfig(1),), corruption=kind, corruption_level=level, **{"dtype": "float64", **rest})


def rows(n: int, d: int, dtype: str = "float64") -> np.ndarray:
    return np.random.default_rng(1).uniform(2, 3, (n, d)).astype(np.float32).astype(dtype)


def test_without_corruption_rows_are_seen_as_they_are(device: str) -> None:
    X = rows(8, 5)
    np.testing.assert_array_equal(noisy(config_of("none"), X, device), X)


def test_words_of_the_engine(device: str) -> None:
    """An element is masked from the level on that its word says, to the last of 31 bits; the last bit is the pepper."""
    X, seed, epoch, row = rows(1, 5), 2**32 - 1, 2**31 + 9, 2**52 - 7
    words = np.hstack(draw("corruption", seed, epoch, [row], range(2)))[0]
    for col, word in enumerate(map(int, words[:5])):
        for share, is_masked in ((word >> 1, False), ((word >> 1) + 1, True)):
            seen = noisy(config_of("masking", share / 2**31), X, device, seed, epoch, numbers=[row])
            assert (seen[0, col] == 0) == is_masked
    config = config_of("salt_and_pepper", 1.0, corruption_low=-3.0, corruption_high=5.0)
    expected = np.where(words[:5] & np.uint64(1), 5.0, -3.0)
    np.testing.assert_array_equal(noisy(config, X, device, seed, epoch, numbers=[row])[0], expected)


@pytest.mark.isa
@pytest.mark.parametrize("dtype", options.DTYPES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(1, 1), (1, 2), (2, 3), (4, 4), (8, 5), (2, 9), (1, 784), (16, 131), (256, 70)])
def test_noise_of_the_reference(kind: str, shape: tuple[int, int], dtype: str, device: str) -> None:
    """Decisions are equal to the bit on all devices, and replaced elements with them."""
    X, numbers = rows(*shape, dtype), np.random.default_rng(2).integers(0, 2**45, shape[0])
    config = config_of(kind, dtype=dtype, corruption_low=-1.0, corruption_high=0.7)
    actual = noisy(config, X, device, 12345, 6, numbers=numbers)
    expected = corrupt(config, X.astype(dtype), numbers, 12345, 6).x
    if kind == "gaussian":
        # |normal| < 7; its radius and angle are each a few roundings in float32, where the angle ends in a product.
        np.testing.assert_allclose(actual, expected, rtol=0, atol=FLOAT64 if dtype == "float64" else 32 * EPS[dtype])
    else:
        np.testing.assert_array_equal(actual, expected)


@pytest.mark.parametrize("kind", KINDS)
def test_level_zero_is_no_noise(kind: str, device: str) -> None:
    X = rows(16, 37)
    np.testing.assert_array_equal(noisy(config_of(kind, 0.0), X, device), X)


def test_level_one_leaves_nothing(device: str) -> None:
    X = rows(16, 37)
    assert not noisy(config_of("masking", 1.0), X, device).any()
    assert set(np.unique(noisy(config_of("salt_and_pepper", 1.0), X, device))) == {0.0, 1.0}


def test_kept_elements_are_not_scaled(device: str) -> None:
    X = rows(16, 37)
    seen = noisy(config_of("masking"), X, device)
    np.testing.assert_array_equal(seen[seen != 0], X[seen != 0])


# --- what noise depends on: seed, epoch, row and column alone ---


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", options.DTYPES)
def test_noise_of_a_row_is_its_own(kind: str, dtype: str, device: str) -> None:
    """Whatever rows are beside it, in whatever order, in chunks of any size, from any memory."""
    X, config = rows(64, 23, dtype), config_of(kind, dtype=dtype)
    whole = noisy(config, X, device)
    order = np.random.default_rng(3).permutation(64)
    np.testing.assert_array_equal(noisy(config, X[order], device, numbers=order), whole[order])
    for count in (1, 2, 16):
        part = order[:count]
        np.testing.assert_array_equal(noisy(config, X[part], device, numbers=part), whole[part])
    for chunk in (1, 7, 63):
        np.testing.assert_array_equal(noisy(config, X, device, full_batch_rows=chunk), whole)
    wide = np.zeros((64, 50), dtype)
    wide[:, 3:26] = X
    np.testing.assert_array_equal(noisy(config, wide[:, 3:26], device), whole)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.usefixtures("threads")
def test_noise_does_not_depend_on_threads(kind: str) -> None:
    X, seen = rows(512, 301, "float32"), []
    for count in (1, 2, 5):
        fastsae.set_num_threads(count)
        seen.append(noisy(config_of(kind, dtype="float32"), X, "cpu"))
    np.testing.assert_array_equal(seen[0], seen[1])
    np.testing.assert_array_equal(seen[0], seen[2])


@pytest.mark.parametrize("kind", KINDS)
def test_noise_is_fresh(kind: str, device: str) -> None:
    """Other seeds, epochs, rows and columns have other noise, unrelated to the first."""
    X = np.ones((128, 128))
    config = config_of(kind, 0.5)
    first = noisy(config, X, device)
    others = [
        noisy(config, X, device, seed=1),
        noisy(config, X, device, epoch=1),
        noisy(config, X, device, numbers=np.arange(128) + 128),
        noisy(config, X, device, numbers=np.arange(128) + 2**32),
    ]
    for a, b in itertools.combinations([first, *others], 2):
        assert abs(np.corrcoef(a.ravel(), b.ravel())[0, 1]) < 5 / 128  # five standard deviations
    for lag in (1, 32, 64, 96):  # columns whose words come from one draw are 32 apart
        assert abs(np.corrcoef(first[:, lag:].ravel(), first[:, :-lag].ravel())[0, 1]) < 5 / math.sqrt(128 * 32)
        assert abs(np.corrcoef(first[lag:].ravel(), first[:-lag].ravel())[0, 1]) < 5 / math.sqrt(128 * 32)


@pytest.mark.parametrize("level", [0.01, 0.3, 0.95])
def test_share_of_corrupted_elements(level: float, device: str) -> None:
    X = np.full((512, 512), 2.0)
    masked = noisy(config_of("masking", level), X, device) == 0
    deviation = math.sqrt(level * (1 - level) / X.size)
    assert abs(masked.mean() - level) < 5 * deviation
    assert np.abs(masked.mean(axis=0) - level).max() < 6 * deviation * math.sqrt(512)
    peppered = noisy(config_of("salt_and_pepper", level), X, device)
    np.testing.assert_array_equal(peppered != 2, masked)  # the same elements
    assert abs(peppered[masked].mean() - 0.5) < 5 * 0.5 / math.sqrt(masked.sum())


@pytest.mark.parametrize("dtype", options.DTYPES)
def test_normal_noise_is_normal(dtype: str, device: str) -> None:
    X = np.zeros((512, 256), dtype)
    normals = noisy(config_of("gaussian", 1.0, dtype=dtype), X, device).astype(np.float64)
    for run in np.hsplit(normals, 4):  # first and second of each pair of words
        assert stats.kstest(run.ravel(), "norm").pvalue > 1e-4
    assert abs(normals.std() - 1) < 5 / math.sqrt(2 * normals.size)
    assert 3.9 < np.abs(normals).max() < 7
    half = noisy(config_of("gaussian", 0.5, dtype=dtype), X, device)
    np.testing.assert_array_equal(half, normals / 2)


# --- parity ---

EMPHASES: list[dict[str, float]] = [
    {},
    {"emphasis": 1.0, "emphasis_rest": 0.0},
    {"emphasis": 0.6, "emphasis_rest": 2.0},
]
CASES = [
    {"corruption": kind, "loss": loss, "output": output, **emphasis}
    for kind in KINDS
    for loss, output in PAIRS
    for emphasis in EMPHASES
    if not (emphasis and kind == "gaussian")
]


@pytest.mark.isa
@pytest.mark.parametrize("dtype", options.DTYPES)
@pytest.mark.parametrize("case", CASES, ids=label)
def test_gradient(case: dict[str, Any], dtype: str, device: str) -> None:
    config = two_layers("tanh", "kl", corruption_level=0.4, dtype=dtype, **case)
    check_gradient(config, device)
    check_gradient(config, device, weighted=True, full_batch_rows=3)
    check_gradient(config, device, n=1)


@pytest.mark.parametrize("dtype", options.DTYPES)
@pytest.mark.parametrize("number", range(len(CASES)), ids=lambda i: label(CASES[i]))
def test_training(number: int, dtype: str, device: str) -> None:
    """50 steps; penalties and optimisers take turns."""
    optimizer = options.OPTIMIZERS[number % len(options.OPTIMIZERS)]
    penalty = options.PENALTIES[number % len(options.PENALTIES)]
    config = two_layers("sigmoid", penalty, optimizer=optimizer, dtype=dtype, **CASES[number])
    check_training(config, device, weighted=bool(number % 2))


@pytest.mark.parametrize("dtype", options.DTYPES)
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_deep_models(kind: str, tied: bool, dtype: str, device: str) -> None:
    rest = {} if kind == "gaussian" else {"emphasis": 1.5, "emphasis_rest": 0.5}
    config = deep(tied, corruption=kind, rho_hat="ema", dtype=dtype, **rest)
    check_gradient(config, device, weighted=True, full_batch_rows=4)
    check_training(config, device, steps=10)


@pytest.mark.parametrize("dtype", options.DTYPES)
@pytest.mark.parametrize("kind", KINDS)
def test_sizes(kind: str, dtype: str, device: str) -> None:
    for n, d, h in ((2, 1, 1), (333, 200, 17), (129, 531, 9)):
        check_gradient(two_layers("sigmoid", "kl", d=d, h=h, corruption=kind, dtype=dtype), device, n=n, weighted=True)


@pytest.mark.parametrize("dtype", options.DTYPES)
@pytest.mark.parametrize("kind", KINDS)
def test_epochs_of_batches(kind: str, dtype: str, device: str) -> None:
    """Noise moves with the epoch and follows the rows, whose order changes."""
    config = two_layers("tanh", "log", corruption=kind, dtype=dtype)
    parameters, X, w = parameters_for(config), data(23, D), weights_for(23)
    engine = make_engine(config, parameters, device)
    twins = [make_reference(config, parameters, name) for name in ("float64", dtype)]
    for epoch in range(3):
        order = np.random.default_rng(epoch).permutation(23)
        engine.noise_seed, engine.epoch = 77, epoch
        engine.run_epoch(X, order, 5, w)
        for twin in twins:
            twin.noise_seed, twin.epoch = 77, epoch
            for first in range(0, 23, 5):
                batch = order[first : first + 5]
                twin.step(X[batch], w[batch], batch)
    for name in parameters:
        assert_near(name, engine.get(name), *(twin.parameters[name] for twin in twins), dtype, trained=True)


@pytest.mark.parametrize("kind", KINDS)
def test_targets_stay_theirs(kind: str, device: str) -> None:
    """With targets of their own the loss is against them, and against nothing noisy."""
    config = dataclasses.replace(two_layers(corruption=kind, dtype="float64"), weight_decay=0.0)
    parameters = {name: np.zeros_like(p) for name, p in parameters_for(config).items()}
    X, targets = data(N, D), data(N, D, 1)
    cost = make_engine(config, parameters, device).evaluate(X, targets=targets)
    assert cost["loss"] == pytest.approx(((0.5 - targets) ** 2).sum() / 2 / N, rel=1e-13)


@pytest.mark.parametrize("case", [case for case in CASES if case["output"] != "relu"], ids=label)
def test_finite_differences(case: dict[str, Any], device: str) -> None:
    config = two_layers("tanh", "kl", dtype="float64", **case)
    engine = make_engine(config, parameters_for(config), device)
    engine.noise_seed, engine.epoch = 5, 2
    assert fastsae.check_gradient(engine, data(N, D), sample_weight=weights_for(N)) < 1e-9


@pytest.mark.parametrize("case", CASES[:: len(CASES) // 12], ids=label)
def test_finite_differences_of_the_reference(case: dict[str, Any]) -> None:
    config = two_layers("tanh", "kl", dtype="float64", **case)
    model, step = make_reference(config, parameters_for(config), "float64"), 1e-4
    X, w, numbers = data(N, D), weights_for(N), np.arange(N)[::-1] * 3
    gradients = model.value_and_gradient(X, w, numbers)[1]
    for name, gradient in gradients.items():
        costs = []
        for sign in (1, -1):
            moved = copy.deepcopy(model)
            moved.parameters[name].flat[1] += sign * step
            costs.append(moved.evaluate(X, w, numbers)["loss"])
        assert (costs[0] - costs[1]) / (2 * step) == pytest.approx(gradient.flat[1], rel=1e-6, abs=1e-8)


@pytest.mark.parametrize("dtype", options.DTYPES)
@pytest.mark.parametrize("kind", KINDS)
def test_inference_reads_clean_rows(kind: str, dtype: str, device: str) -> None:
    config = two_layers(corruption=kind, dtype=dtype)
    check_outputs(config, device)
    X, engines = data(N, D), [make_engine(c, parameters_for(c), device) for c in (config, two_layers(dtype=dtype))]
    for name in ("encode", "reconstruct", "score"):
        np.testing.assert_array_equal(*(getattr(engine, name)(X) for engine in engines))


def test_evaluation_has_the_noise_of_the_epoch(device: str) -> None:
    config = two_layers("tanh", "kl", corruption="gaussian", dtype="float64")
    engine, X = make_engine(config, parameters_for(config), device), data(N, D)
    costs = set()
    for seed, epoch in ((0, 0), (0, 1), (1, 0)):
        engine.noise_seed, engine.epoch = seed, epoch
        gradient = engine.gradient(X)
        assert engine.evaluate(X)["loss"] == gradient["loss"]
        costs.add(gradient["loss"])
    assert len(costs) == 3


# --- options that have no meaning ---


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"corruption": "dropout"}, "corruption: expected one of"),
        ({"corruption": "masking", "corruption_level": 1.01}, "corruption_level: expected a number in"),
        ({"corruption": "salt_and_pepper", "corruption_level": 2}, "corruption_level: expected a number in"),
        ({"corruption": "gaussian", "corruption_level": -1e-9}, "corruption_level: expected a number in"),
        ({"corruption": "salt_and_pepper", "corruption_high": math.inf}, "corruption_high: expected a number"),
        ({"emphasis": 2.0}, "emphasis, emphasis_rest: .* need corruption"),
        ({"corruption": "gaussian", "emphasis_rest": 0.0}, "emphasis, emphasis_rest: .* need corruption"),
        ({"corruption": "masking", "emphasis": 0, "emphasis_rest": 0}, "one of them above 0"),
        ({"corruption": "masking", "emphasis": -1}, "emphasis: expected a number"),
        ({"corruption": "masking", "emphasis": 2, "n_outputs": 3, "layers": (LayerConfig(3),)}, "need n_outputs"),
    ],
)
def test_bad_options(changes: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        dataclasses.replace(two_layers(), **changes).validate()


def test_large_deviations_are_allowed() -> None:
    two_layers(corruption="gaussian", corruption_level=3.0).validate()


@pytest.mark.parametrize(
    "numbers", [[0.5] * N, [-1] + [0] * (N - 1), [2**52] * N, [[0] * N], [0] * (N - 1), ["a"] * N], ids=str
)
def test_bad_numbers(numbers: Any, device: str) -> None:
    config = two_layers(corruption="masking")
    engine = make_engine(config, parameters_for(config), device)
    before = engine.get_parameters()
    for call in (engine.step, engine.gradient, engine.evaluate):
        with pytest.raises(ValueError, match="numbers"):
            call(data(N, D), numbers=numbers)
    for name, value in before.items():
        np.testing.assert_array_equal(engine.get(name), value)
