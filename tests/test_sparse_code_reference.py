"""The reference of the sparse code against finite differences, values by hand and what follows from the formulas."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
from tolerances import FINITE_DIFFERENCES, FLOAT64

from fastsae import sparse_code as options
from fastsae.reference.sparse_activations import k_at, largest_of_batch, largest_of_rows, window
from fastsae.reference.sparse_code import SparseCode
from fastsae.reference.sparse_losses import Slopes, gate, pre_act, reconstruction, revival, sparsity
from fastsae.sparse_code import SparseCodeConfig

D, LATENTS, OUTPUTS, N = 5, 11, 3, 7

# Every model and option whose cost has a gradient; test_cases_touch_every_option.
SELECTED: dict[str, dict[str, Any]] = {
    "topk": {},
    "topk of sums": {"loss_reduction": "ufldl", "aux_reduction": "sum", "pre_bias": False},
    "topk of means": {"loss_reduction": "mean", "aux_reduction": "mean", "decoder_norm": "free"},
    "topk of variances": {"loss_reduction": "fvu", "aux_reduction": "fvu", "decoder_norm": "rescale"},
    "topk of the data's variance": {"loss_reduction": "fvu_data", "prefixes": (3, LATENTS)},
    "topk of all": {"k": LATENTS, "aux_weight": 0.7},
    "few dead": {"aux_k": 6, "aux_weight": 2.0, "decoder_norm": "rescale"},
    "full share": {"aux_k": 6, "aux_weight": 2.0, "aux_share": False},
    "negative dead": {"aux_k": 5, "aux_relu": False, "aux_weight": 0.5},
    "no dead": {"dead_after": None, "k_start": 5, "k_warm_up": 9},
    "batch_topk": {"activation": "batch_topk"},
    "batch_topk of a fraction": {"activation": "batch_topk", "k": 2.4, "decoder_norm": "rescale"},
    "matryoshka": {"activation": "batch_topk", "prefixes": (2, 5, LATENTS)},
    "weighted matryoshka": {"prefixes": (1, 4, LATENTS), "prefix_weights": (0.5, 0.0, 2.0), "loss_reduction": "fvu"},
    "transcoder": {"transcoder": True, "n_outputs": OUTPUTS, "pre_bias": False},
    "skip transcoder": {"transcoder": True, "skip": True, "loss_reduction": "mean", "prefixes": (3, LATENTS)},
    "wide transcoder": {"transcoder": True, "skip": True, "n_outputs": 8, "pre_bias": False, "loss_reduction": "mean"},
}
DENSE: dict[str, dict[str, Any]] = {
    "relu": {"activation": "relu"},
    "relu l1": {"activation": "relu", "sparsity": "l1", "sparsity_weight": 0.7},
    "relu plain l1": {"activation": "relu", "sparsity": "l1", "sparsity_by_norm": False, "loss_reduction": "fvu"},
    "relu tanh": {"activation": "relu", "sparsity": "tanh", "tanh_scale": 0.6, "decoder_norm": "rescale"},
    "relu plain tanh": {"activation": "relu", "sparsity": "tanh", "tanh_scale": 0.6, "sparsity_by_norm": False},
    "relu warm-up": {"activation": "relu", "sparsity": "l1", "sparsity_warm_up": 8},
    "gated": {"activation": "gated", "gate_weight": 0.6},
    "gated l1": {"activation": "gated", "sparsity": "l1", "decoder_norm": "free"},
    "gated attached": {"activation": "gated", "sparsity": "l1", "gate_detached": False, "loss_reduction": "fvu"},
    "gated of the data's variance": {"activation": "gated", "loss_reduction": "fvu_data"},
    "gated plain l1": {"activation": "gated", "sparsity": "l1", "sparsity_by_norm": False, "pre_bias": False},
    "gated transcoder": {"activation": "gated", "transcoder": True, "skip": True, "gate_detached": False},
}
WIDE = {"activation": "jump_relu", "bandwidth": 0.8, "initial_threshold": 0.3}
JUMPS: dict[str, dict[str, Any]] = {
    "jump_relu": WIDE,
    "jump_relu l1": {**WIDE, "sparsity": "l1", "decoder_norm": "free"},
    "jump_relu tanh": {**WIDE, "sparsity": "tanh", "tanh_scale": 0.5},
    "jump_relu plain l1": {**WIDE, "sparsity": "l1", "sparsity_by_norm": False, "pre_bias": False},
    "jump_relu plain tanh": {**WIDE, "sparsity": "tanh", "sparsity_by_norm": False},
    "jump_relu step": {**WIDE, "sparsity": "step", "sparsity_weight": 0.3, "sparsity_warm_up": 9},
    "jump_relu quadratic": {**WIDE, "sparsity": "quadratic", "target_l0": 2.5, "decoder_norm": "free"},
    "jump_relu quadratic rows": {**WIDE, "sparsity": "quadratic_rows", "target_l0": 2.5, "sparsity_warm_up": 5},
    "jump_relu transcoder": {**WIDE, "sparsity": "step", "transcoder": True, "skip": True},
    # Rows that only this pulls at keep their direction: its projection would be rounding alone.
    "jump_relu pre-activations": {**WIDE, "pre_act_weight": 0.4, "project_gradient": False},
    "jump_relu plain pre-activations": {
        **{**WIDE, "sparsity": "tanh", "sparsity_by_norm": False, "decoder_norm": "free"},
        "pre_act_weight": 0.4,
    },
    "jump_relu rescaled pre-activations": {**WIDE, "pre_act_weight": 0.4, "decoder_norm": "rescale"},
}
CASES = {**SELECTED, **DENSE, **JUMPS}


def make(**given: Any) -> SparseCodeConfig:
    selects = given.get("activation", "topk") in options.SELECTIONS
    config = SparseCodeConfig(D, LATENTS, **{**({"k": 3} if selects else {}), "dead_after": 20, **given})
    config.validate()
    return config


def data(config: SparseCodeConfig, seed: int = 0, n: int = N) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    rng = np.random.default_rng([seed, 1])
    X, weights = rng.normal(size=(n, config.n_features)), rng.uniform(0.2, 3.0, n)
    return X, weights, rng.normal(size=(n, config.output_width)) if config.transcoder else None


def randomised(config: SparseCodeConfig, seed: int = 0, dtype: str = "float64", kind: type = SparseCode) -> Any:
    """A model in the middle of its training, with some dead latents."""
    model = kind(config, dtype)
    rng = np.random.default_rng([seed, 2])
    drawn = {name: rng.uniform(-0.8, 0.8, p.shape) for name, p in model.parameters.items()}
    if "threshold" in drawn:
        drawn["threshold"] = config.initial_threshold * rng.uniform(0.2, 2.0, LATENTS)
    model.set(drawn)
    model.rows_since_fired = rng.choice([0.0, 20.0, 21.0, 300.0], LATENTS)
    model.data_variance = 1.7
    model.steps = 3
    return model


class Linearised(SparseCode):
    """JumpReLU whose jump is a linear function of the thresholds, with the slopes that training takes.

    Its finite differences are what the straight-through gradient must be, whatever comes behind the activation.
    """

    def _activate(self, projected: Any, k: float, in_batch: bool = False) -> Any:
        z = projected + self.parameters["b_enc"]
        if not hasattr(self, "start"):
            self.start, self.z = self.parameters["threshold"].copy(), z
        near = np.abs(self.z - self.start) < self.config.bandwidth / 2
        moved = near * (self.parameters["threshold"] - self.start) / self.config.bandwidth
        return z, z * (z > self.start) - self.start * moved, (z > self.start) - moved


def pattern(model: SparseCode, batch: Any) -> list[bytes]:
    """All that a small change of the parameters can flip."""
    k = min(model.config.core()["aux_k"], int(batch.dead.sum()))
    masks = [batch.z > 0, largest_of_rows(np.where(batch.dead, batch.scores, -np.inf), k)]
    if isinstance(model, Linearised):
        masks += [batch.z > model.start, batch.z < model.parameters["threshold"]]
    else:
        masks += [batch.on > 0, batch.a > 0]
    return [mask.tobytes() for mask in masks]


def cost(model: SparseCode, batch: Any, at: dict[str, np.ndarray]) -> float:
    """J, where what its gradient takes for constants stays as it was with the parameters `at`."""
    slopes = Slopes(*(np.zeros_like(batch.z) for _ in range(3)), {n: np.zeros_like(p) for n, p in at.items()})
    of = (batch, slopes)
    value = sum(part(model.config, model.parameters, *of) for part in (reconstruction, sparsity, pre_act, revival))
    decoder = {"W_dec": at["W_dec"], "b_dec": at["b_dec"]} if model.config.gate_detached else {}
    return value + gate(model.config, {**model.parameters, **decoder}, *of)


def numeric_gradient(model: SparseCode, args: tuple[Any, ...], eps: float = 1e-3) -> dict[str, np.ndarray] | None:
    """4-point stencil; None where a kink is near."""
    at = {name: p.copy() for name, p in model.parameters.items()}
    centre = model._batch(*args)
    before, gradients = pattern(model, centre), {name: np.zeros_like(p) for name, p in at.items()}
    for name, p in model.parameters.items():
        for index in np.ndindex(p.shape):
            v = []
            for k in (-2, -1, 1, 2):
                p[index] = at[name][index] + k * eps
                batch = model._batch(*args)._replace(residual=centre.residual)
                if pattern(model, batch) != before:
                    return None
                v.append(cost(model, batch, at))
            p[index] = at[name][index]
            gradients[name][index] = (8 * (v[2] - v[1]) - (v[3] - v[0])) / (12 * eps)
    return gradients


def assert_close(actual: Any, expected: Any, tolerance: float = FLOAT64) -> None:
    np.testing.assert_allclose(actual, expected, rtol=tolerance, atol=tolerance)


# --- gradients ---


@pytest.mark.parametrize("case", CASES)
def test_gradient(case: str) -> None:
    config = make(**CASES[case])
    kind = Linearised if config.activation == "jump_relu" else SparseCode
    for seed in range(200):
        args = data(config, seed)
        numeric = numeric_gradient(randomised(config, seed, kind=kind), args)
        if numeric is not None:
            break
    else:
        raise AssertionError("no seed is away from the kinks")
    model = randomised(config, seed)
    X, weights, targets = args
    parts, gradients = model.value_and_gradient(X, weights, targets=targets)
    assert parts == model.evaluate(X, weights, targets=targets)
    assert parts["loss"] == pytest.approx(cost(model, model._batch(*args), model.parameters), rel=FLOAT64)
    assert gradients.keys() == model.parameters.keys()
    for name, gradient in gradients.items():
        assert np.linalg.norm(gradient) > 1e-3, name
        off = np.linalg.norm(numeric[name] - gradient) / np.linalg.norm(gradient)
        assert off < FINITE_DIFFERENCES, f"{name}: off by {off:.3g}"


def test_cases_touch_every_option() -> None:
    """All but those of the optimiser and of states, which no gradient sees."""
    elsewhere = {"state_precision", "threshold_decay", "threshold_start", "project_gradient"}
    elsewhere |= {field.name for field in dataclasses.fields(options.OptimizerConfig)}
    default = SparseCodeConfig(D, LATENTS)
    touched = {
        field.name
        for case in CASES.values()
        for field in dataclasses.fields(SparseCodeConfig)
        if getattr(make(**case), field.name) != getattr(default, field.name)
    }
    assert {field.name for field in dataclasses.fields(SparseCodeConfig)} - touched - elsewhere == {
        "n_features",
        "n_latents",
    }
    for name, choices in options._CHOICES.items():
        assert {getattr(make(**case), name) for case in CASES.values()} == set(choices), name


@pytest.mark.parametrize("case", CASES)
def test_float32_stays_float32(case: str) -> None:
    config = make(**CASES[case])
    model, exact = randomised(config, dtype="float32"), randomised(config)
    X, weights, targets = data(config)
    parts, gradients = model.value_and_gradient(X, weights, targets=targets)
    assert parts["loss"] == pytest.approx(exact.evaluate(X, weights, targets=targets)["loss"], rel=1e-4)
    model.step(X, weights, targets=targets)
    arrays = [*gradients.values(), *model.parameters.values(), *model.first_moment.values(), model.reconstruct(X)]
    assert {array.dtype for array in arrays} == {np.dtype("float32")}


# --- straight-through slopes ---


def test_window() -> None:
    """1 / eps strictly within eps / 2 of the threshold; elsewhere 0."""
    z = np.array([[0.0, 0.374, 0.3751, 0.5, 0.6249, 0.626, 9.0]])
    assert window(z, np.full(7, 0.5), 0.25).tolist() == [[0.0, 0.0, 4.0, 4.0, 4.0, 0.0, 0.0]]
    assert window(np.array([[0.375, 0.625]]), np.full(2, 0.5), 0.25).tolist() == [[0.0, 0.0]]


def test_window_is_the_slope_of_a_smooth_step() -> None:
    """Of ``clip((z - threshold) / eps + 1/2, 0, 1)``, which is linear where it is not constant."""
    z, eps, h = np.linspace(-1, 1, 40)[None], 0.3, 1e-4

    def step(threshold: float) -> np.ndarray:
        return np.clip((z - threshold) / eps + 0.5, 0.0, 1.0)

    slope = (step(0.1 + h) - step(0.1 - h)) / (2 * h)
    assert_close(-window(z, np.full(40, 0.1), eps), slope, FINITE_DIFFERENCES)


def test_jump_by_hand() -> None:
    """d = n = 1: x = (0.5, 0.3, 0.8), z = x, threshold 0.4, eps 0.25, decoder 2, so y^ = (1, 0, 1.6)."""
    given = {"sparsity": "step", "sparsity_weight": 0.5, "decoder_norm": "free"}
    config = SparseCodeConfig(1, 1, activation="jump_relu", bandwidth=0.25, **given)
    model = SparseCode(config)
    model.set({"W_enc": [[1.0]], "W_dec": [[2.0]], "threshold": [0.4]})
    parts, gradients = model.value_and_gradient([[0.5], [0.3], [0.8]])
    assert parts["reconstruction"] == pytest.approx((0.25 + 0.09 + 0.64) / 3)
    assert parts["sparsity"] == pytest.approx(0.5 * 2 / 3)
    # dJ/da = 2/3 (y^ - x) 2 = (2/3, -0.4, 3.2/3); rect is 1 for the first two, (z - 0.4) / 0.25 = 0.4, -0.4, 1.6.
    by_jump = -0.4 / 0.25 * (2 / 3 - 0.4)
    by_count = -0.5 / 3 / 0.25 * 2
    assert_close(gradients["threshold"], [by_jump + by_count])
    # Only active latents have a slope by z; b_dec has its own and minus that of z.
    assert_close(gradients["b_enc"], [2 / 3 + 3.2 / 3])
    assert_close(gradients["W_enc"], [[0.5 * 2 / 3 + 0.8 * 3.2 / 3]])
    assert_close(gradients["b_dec"], [2 / 3 * (0.5 - 0.3 + 0.8) - (2 / 3 + 3.2 / 3)])


def test_thresholds_stay_above_zero() -> None:
    config = make(**WIDE, sparsity="l1", learning_rate=50.0, optimizer="sgd")
    model = randomised(config)
    model.parameters["threshold"][:] = 0.1
    X, *_ = data(config)
    gradient = model.value_and_gradient(X)[1]["threshold"]
    model.step(X)
    assert_close(model.parameters["threshold"], np.maximum(0.1 - 50 * gradient, 0.0))
    assert (model.parameters["threshold"] == 0.0).any()


def test_gate_by_hand() -> None:
    """d = n = 1, two rows: one gate open, one closed; no slope goes through the gate."""
    config = SparseCodeConfig(
        1, 1, activation="gated", pre_bias=False, decoder_norm="free", sparsity="l1", sparsity_weight=0.3
    )
    model = SparseCode(config)
    given = {"W_enc": [[2.0]], "W_dec": [[-3.0]], "b_dec": [0.1], "b_gate": [-1.0], "b_mag": [0.5]}
    model.set({**given, "r_mag": [math.log(0.5)]})
    x = np.array([[1.0], [0.25]])  # x W = 2, 0.5; pi = 1, -0.5; magnitudes 1.5, 0.75
    parts, gradients = model.value_and_gradient(x)
    assert model.encode(x).tolist() == [[1.5], [0.0]]
    assert_close(model.reconstruct(x), [[-4.4], [0.1]])
    errors, opened = np.array([-5.4, -0.15]), np.array([-3.9, -0.15])  # y^ - x; -3 max(pi, 0) + 0.1 - x
    assert parts["reconstruction"] == pytest.approx((errors**2).mean())
    assert parts["auxiliary"] == pytest.approx((opened**2).mean())
    assert parts["sparsity"] == pytest.approx(0.3 * 3 / 2)
    by_a, by_pi = errors[0] * -3, opened[0] * -3 + 0.3 / 2 * 3
    assert_close(gradients["b_gate"], [by_pi])
    assert_close(gradients["b_mag"], [by_a])
    assert_close(gradients["r_mag"], [by_a * 0.5 * 2])
    assert_close(gradients["W_enc"], [[by_pi + by_a * 0.5]])
    assert_close(gradients["W_dec"], [[1.5 * errors[0] - 0.3 / 2]])  # of |W_dec| the slope is -1
    assert_close(gradients["b_dec"], [errors.sum()])


# --- selection ---


def test_ties_go_to_the_lower_latent_and_row() -> None:
    scores = np.array([[1.0, 2.0, 2.0, 2.0], [0.0, -0.0, 0.0, -1.0]])
    assert largest_of_rows(scores, 2).tolist() == [[False, True, True, False], [True, True, False, False]]
    same = np.array([[1.0, 2.0], [2.0, 2.0], [2.0, -3.0]])
    assert largest_of_batch(same, 1.0).tolist() == [[False, True], [True, True], [False, False]]
    assert largest_of_batch(same, 1.7).tolist() == [[True, True], [True, True], [True, False]]
    assert not largest_of_batch(same, 0.3).any()  # floor(0.9) = 0
    assert largest_of_batch(same, 2.0).sum() == 5  # never one that is not above 0


def test_k_of_all_is_relu() -> None:
    full, relu = randomised(make(k=LATENTS)), randomised(make(activation="relu"))
    X, weights, _ = data(full.config)
    full.rows_since_fired[:] = 0.0
    assert full.value_and_gradient(X, weights)[0] == relu.value_and_gradient(X, weights)[0]
    for name, gradient in relu.value_and_gradient(X, weights)[1].items():
        np.testing.assert_array_equal(full.value_and_gradient(X, weights)[1][name], gradient)


def test_one_active_latent() -> None:
    model = randomised(make(k=1))
    X, *_ = data(model.config)
    code = model.encode(X)
    z = (X - model.parameters["b_dec"]) @ model.parameters["W_enc"].T + model.parameters["b_enc"]
    assert (np.count_nonzero(code, axis=1) == 1).all()
    np.testing.assert_array_equal(code.argmax(axis=1), z.argmax(axis=1))
    assert_close(code.max(axis=1), z.max(axis=1))


def test_selected_but_not_positive() -> None:
    """Selected numbers that are not above 0 are neither active nor do they learn."""
    model = randomised(make(dead_after=None))
    model.parameters["b_enc"][:] = -50.0
    X, *_ = data(model.config)
    assert not model.encode(X).any()
    _, gradients = model.value_and_gradient(X)
    assert not any(gradients[name].any() for name in ("W_enc", "b_enc", "W_dec"))
    assert gradients["b_dec"].any()


def test_rescaling_does_not_matter_under_rescale() -> None:
    """Longer rows of W_dec and shorter ones of W_enc: the same scores, codes and outputs."""
    for activation in options.SELECTIONS:
        model = randomised(make(activation=activation, decoder_norm="rescale"))
        X, *_ = data(model.config)
        before = model.encode(X), model.reconstruct(X)
        factors = np.linspace(0.3, 4.0, LATENTS)
        model.parameters["W_dec"] *= factors[:, None]
        model.parameters["W_enc"] /= factors[:, None]
        model.parameters["b_enc"] /= factors
        assert_close(model.encode(X), before[0])
        assert_close(model.reconstruct(X), before[1])


def test_code_times_its_norm() -> None:
    for case in ("relu", "gated", "jump_relu"):
        free = randomised(make(**{**CASES[case], "decoder_norm": "free"}))
        scaled = randomised(make(**{**CASES[case], "decoder_norm": "rescale"}))
        X, *_ = data(free.config)
        norms = np.linalg.norm(free.parameters["W_dec"], axis=1)
        assert_close(scaled.encode(X), free.encode(X) * norms)
        assert_close(scaled.reconstruct(X), free.reconstruct(X))


def test_k_warm_up() -> None:
    config = make(k=3, k_start=8, k_warm_up=4)
    assert [k_at(config, t) for t in range(1, 7)] == [8, 7, 6, 4, 3, 3]  # 8, 6.75, 5.5, 4.25, 3
    assert [k_at(make(k=3, k_start=1, k_warm_up=4), t) for t in (1, 2, 3, 5)] == [1, 2, 2, 3]  # 1, 1.5, 2
    real = make(activation="batch_topk", k=2.5, k_start=0.5, k_warm_up=4)
    assert [k_at(real, t) for t in (1, 2, 5)] == [0.5, 1.0, 2.5]
    model = randomised(config)
    model.steps = 0
    X, *_ = data(config)
    assert (np.count_nonzero(model._batch(X, None, None).on, axis=1) <= 8).all()
    assert np.count_nonzero(model._batch(X, None, None).on, axis=1).max() > 3
    assert np.count_nonzero(model.encode(X), axis=1).max() == 3  # inference takes k


# --- parts of the cost ---


def test_prefixes_are_models_of_their_own() -> None:
    given = {"prefixes": (2, 6, LATENTS), "prefix_weights": (0.5, 1.0, 3.0), "k": LATENTS}
    nested = randomised(make(**given, dead_after=None))
    X, weights, _ = data(nested.config)
    value, slope = 0.0, np.zeros_like(nested.parameters["b_dec"])
    for m, omega in zip(given["prefixes"], given["prefix_weights"], strict=True):
        alone = SparseCode(SparseCodeConfig(D, m, k=m))
        alone.set({name: p[:m] if name != "b_dec" else p for name, p in nested.parameters.items()})
        parts, gradients = alone.value_and_gradient(X, weights)
        value, slope = value + omega * parts["loss"], slope + omega * gradients["b_dec"]
    parts, gradients = nested.value_and_gradient(X, weights)
    assert parts["loss"] == pytest.approx(value, rel=FLOAT64)
    assert_close(gradients["b_dec"], slope)


def test_weights_are_repeats() -> None:
    """A row of weight 3 counts as three rows, where rows do not compete; fvu and its mean included."""
    for given in (
        {"loss_reduction": "fvu", "aux_reduction": "residual"},
        DENSE["gated attached"],
        JUMPS["jump_relu quadratic"],
        JUMPS["jump_relu quadratic rows"],
    ):
        model = randomised(make(**given))
        X, *_ = data(model.config)
        counts = np.array([1, 3, 1, 2, 1, 1, 2])
        for one, many in zip(
            model.value_and_gradient(X, counts), model.value_and_gradient(np.repeat(X, counts, axis=0)), strict=True
        ):
            for name, value in one.items():
                assert_close(value, many[name])


@pytest.mark.parametrize("kind", ["l1", "plain l1", "tanh", "plain tanh", "step", "quadratic", "quadratic rows"])
def test_sparsity_one_by_one(kind: str) -> None:
    """Element by element, in plain Python."""
    model = randomised(make(**{**CASES[f"jump_relu {kind}"], "pre_act_weight": 0.4, "sparsity_warm_up": 0}))
    config, (X, weights, _) = model.config, data(model.config)
    p, target = model.parameters, config.target_l0 or 1.0
    terms = counts = pulls = squares = 0.0
    for x, w in zip(X, weights, strict=True):
        active, share = 0, w / weights.sum()
        for j in range(LATENTS):
            z = float((x - config.pre_bias * p["b_dec"]) @ p["W_enc"][j] + p["b_enc"][j])
            norm = math.sqrt(sum(v * v for v in p["W_dec"][j]))
            q = norm if config.sparsity_by_norm else 1.0
            if z > p["threshold"][j]:
                active += 1
                terms += share * (math.tanh(config.tanh_scale * z * q) if "tanh" in kind else z * q)
            elif model.rows_since_fired[j] > 20:
                pulls += share * (p["threshold"][j] - z) * norm
        counts += share * active
        squares += share * (active / target - 1) ** 2
    by_count = {"step": counts, "quadratic": (counts / target - 1) ** 2, "quadratic rows": squares}
    omega = by_count.get(kind, terms)
    parts = model.evaluate(X, weights)
    assert parts["sparsity"] == pytest.approx(config.sparsity_weight * omega, rel=FLOAT64)
    assert parts["auxiliary"] == pytest.approx(0.4 * pulls, rel=FLOAT64)


def test_sparsity_warm_up() -> None:
    model = randomised(make(activation="relu", sparsity="l1", sparsity_weight=2.0, sparsity_warm_up=4))
    X, *_ = data(model.config)
    full = randomised(make(activation="relu", sparsity="l1", sparsity_weight=2.0)).evaluate(X)["sparsity"]
    shares = []
    for model.steps in range(6):
        shares.append(model.evaluate(X)["sparsity"] / full)
    assert_close(shares, [0.0, 0.25, 0.5, 0.75, 1.0, 1.0])


def test_auxiliary_by_hand() -> None:
    """o = 2, latents 1 and 2 dead, K0 = 1: the larger is taken, its coefficient 3 against the residual."""
    config = SparseCodeConfig(2, 3, k=1, pre_bias=False, aux_k=1, aux_weight=0.5, aux_reduction="sum", dead_after=0)
    model = SparseCode(config)
    model.set({"b_enc": [5.0, 2.0, 3.0], "W_dec": [[1.0, 0.0], [0.0, 1.0], [0.6, 0.8]]})
    model.rows_since_fired = np.array([0.0, 1.0, 1.0])
    X = np.array([[4.0, 1.0]])  # y^ = (5, 0), r = (-1, 1); 3 (0.6, 0.8) - r = (2.8, 1.4)
    parts, gradients = model.value_and_gradient(X)
    assert parts["auxiliary"] == pytest.approx(0.5 * (2.8**2 + 1.4**2))
    assert_close(gradients["W_dec"][1:], [[0.0, 0.0], [3 * 2.8, 3 * 1.4]])
    assert_close(gradients["b_enc"][1:], [0.0, 2.8 * 0.6 + 1.4 * 0.8])
    assert_close(gradients["b_dec"], [2.0, -2.0])  # of the reconstruction alone
    share = SparseCode(dataclasses.replace(config, aux_k=8))  # 2 dead of 8: a quarter of the weight, both are taken
    share.set(model.parameters)
    share.rows_since_fired = model.rows_since_fired
    assert share.evaluate(X)["auxiliary"] == pytest.approx(0.5 / 4 * (2.8**2 + 3.4**2))


def test_divisors_of_the_auxiliary_loss() -> None:
    values = {name: randomised(make(aux_reduction=name)) for name in options.AUX_REDUCTIONS}
    X, weights, _ = data(make())
    share = weights / weights.sum()
    residual = values["sum"]._batch(X, weights, None).residual
    losses = {name: model.evaluate(X, weights)["auxiliary"] for name, model in values.items()}
    for name, rows in (("fvu", X), ("residual", residual)):
        variance = share @ ((rows - np.average(rows, axis=0, weights=weights)) ** 2).sum(axis=1)
        assert losses["sum"] / losses[name] == pytest.approx(variance, rel=FLOAT64)
    assert losses["sum"] / losses["mean"] == pytest.approx(D, rel=FLOAT64)


def test_how_many_are_dead() -> None:
    X, *_ = data(make())
    for dead_after, rows, expected in ((20, 20.0, False), (20, 21.0, True), (None, 1e12, False), (0, 1.0, True)):
        model = randomised(make(dead_after=dead_after))
        model.rows_since_fired[:] = rows
        assert (model.evaluate(X)["auxiliary"] > 0) == expected


def test_rows_since_fired() -> None:
    model = randomised(make(k=2, learning_rate=0.0, decoder_norm="free"))
    model.rows_since_fired[:] = 4.0
    X, *_ = data(model.config)
    fires = model.encode(X) > 0
    model.step(X)
    np.testing.assert_array_equal(model.rows_since_fired, np.where(fires.any(axis=0), 0.0, 4.0 + N))
    np.testing.assert_array_equal(model.fired_rows, fires.sum(axis=0))
    model.step(X[:2])
    np.testing.assert_array_equal(model.fired_rows, fires.sum(axis=0) + fires[:2].sum(axis=0))
    assert fires.any(axis=0).any()
    assert not fires.any(axis=0).all()


def test_monitor() -> None:
    """Sums over the steps, from which L0 and FVU are made."""
    model = randomised(make(**CASES["relu l1"], learning_rate=0.0, decoder_norm="free"))
    X, weights, _ = data(model.config)
    expected = np.zeros(6)
    for rows, w in ((X, weights), (X[:3], np.ones(3))):
        error = ((model.reconstruct(rows) - rows) ** 2).sum(axis=1)
        spread = ((rows - np.average(rows, axis=0, weights=w)) ** 2).sum(axis=1)
        omega = w.sum() * model.evaluate(rows, w)["sparsity"]
        expected += [len(rows), np.count_nonzero(model.encode(rows)), w @ error, w @ spread, 0.0, omega]
        model.step(rows, None if rows is not X else w)
    assert_close(model.monitor, expected)
    revived = randomised(make(learning_rate=0.0))
    loss = revived.evaluate(X)["auxiliary"]
    revived.step(X)
    assert revived.monitor[4] == pytest.approx(N * loss, rel=FLOAT64)


def test_one_row() -> None:
    """It has no variance, and what has none teaches nothing."""
    model = randomised(make())
    X, *_ = data(model.config, n=1)
    assert model.evaluate(X)["auxiliary"] == 0.0
    assert math.isfinite(model.step(X)["loss"])
    for case in ({"loss_reduction": "fvu"}, {"loss_reduction": "fvu", "activation": "gated"}):
        parts, gradients = randomised(make(**case)).value_and_gradient(X)
        assert parts["loss"] == 0.0
        assert not any(gradient.any() for gradient in gradients.values())


# --- steps ---


@pytest.mark.parametrize("project", [True, False])
def test_step_on_unit_rows(project: bool) -> None:
    """Projection, then the limit of the gradient, then the optimiser, then norms of 1."""
    config = make(project_gradient=project, optimizer="sgd", learning_rate=0.1, max_grad_norm=0.5)
    model = randomised(config)
    X, *_ = data(config)
    W, gradients = model.parameters["W_dec"], model.value_and_gradient(X)[1]
    G = gradients["W_dec"]
    if project:
        G = np.stack([g - (g @ w) / (w @ w) * w for g, w in zip(G, W, strict=True)])
        assert np.abs((G * W).sum(axis=1)).max() < 1e-12
    norm = math.sqrt(sum((g**2).sum() for g in ({**gradients, "W_dec": G}).values()))
    assert norm > 0.5
    expected = {name: p - 0.1 * 0.5 / norm * gradients[name] for name, p in model.parameters.items()}
    moved = W - 0.1 * 0.5 / norm * G
    expected["W_dec"] = moved / np.linalg.norm(moved, axis=1, keepdims=True)
    model.step(X)
    for name, p in model.parameters.items():
        assert_close(p, expected[name])


def test_free_rows_keep_no_norm() -> None:
    for norm in ("free", "rescale"):
        model = randomised(make(decoder_norm=norm, optimizer="sgd", learning_rate=0.1))
        X, *_ = data(model.config)
        expected = model.parameters["W_dec"] - 0.1 * model.value_and_gradient(X)[1]["W_dec"]
        model.step(X)
        assert_close(model.parameters["W_dec"], expected)


@pytest.mark.parametrize("norm", options.DECODER_NORMS)
def test_zero_rows_of_the_decoder(norm: str) -> None:
    """One that does not learn stays 0; its norm has no slope; rescaled, it is not selected before what counts."""
    for given in ({"k": 2}, {"activation": "batch_topk", "k": 2}, {"activation": "relu", "sparsity": "l1"}):
        model = randomised(make(**given, decoder_norm=norm, dead_after=None))
        model.parameters["W_dec"][4:6] = 0.0
        model.parameters["b_enc"][4], model.parameters["b_enc"][5] = 50.0, -50.0
        X, *_ = data(model.config)
        for array in [model.encode(X), model.reconstruct(X), *model.value_and_gradient(X)[1].values()]:
            assert np.isfinite(array).all()
        assert model.encode(X)[:, 4].any() == (norm != "rescale")
        model.step(X)
        assert not model.parameters["W_dec"][5].any()
        if norm == "unit":
            assert_close(np.linalg.norm(model.parameters["W_dec"], axis=1), np.where(np.arange(LATENTS) == 5, 0.0, 1.0))


def test_adam_and_its_schedule() -> None:
    """First step of Adam: the sign of the gradient times the rate of the schedule."""
    config = make(learning_rate=0.01, lr_warm_up=4, epsilon=1e-12, activation="relu", decoder_norm="free")
    model = randomised(config)
    model.steps = 0
    X, *_ = data(config)
    before = {name: p.copy() for name, p in model.parameters.items()}
    gradients = model.value_and_gradient(X)[1]
    model.step(X)
    for name, p in model.parameters.items():
        np.testing.assert_allclose(p - before[name], -0.01 / 4 * np.sign(gradients[name]), atol=1e-9)
        assert_close(model.first_moment[name], 0.1 * gradients[name])
        assert_close(model.second_moment[name], 0.001 * gradients[name] ** 2)
    assert model.steps == 1


# --- inference ---


def test_batch_threshold() -> None:
    """The first smallest code that was kept, then its moving average; a step that keeps none leaves it."""
    config = make(activation="batch_topk", threshold_decay=0.75, learning_rate=0.0, decoder_norm="rescale")
    model = randomised(config)
    X, *_ = data(config)
    assert model.batch_threshold == -1.0
    assert ((model.encode(X) > 0).sum(axis=1) > 3).any()  # all that are above 0
    kept = []
    for rows in (X, X[:3]):
        batch = model._batch(rows, None, None)
        kept.append((batch.scores * batch.on)[batch.on > 0].min())
        assert batch.on.sum() == 3 * len(rows)
    model.step(X)
    assert model.batch_threshold == kept[0]
    model.step(X[:3])
    assert_close(model.batch_threshold, 0.75 * kept[0] + 0.25 * kept[1])
    code, threshold = model.encode(X), model.batch_threshold
    scores = model._batch(X, None, None).scores
    np.testing.assert_array_equal(code, np.where(scores > threshold, scores, 0.0))
    np.testing.assert_array_equal(model.encode(X[2:3]), code[2:3])  # a row by itself
    model.parameters["b_enc"][:] = -50.0
    model.step(X)
    assert model.batch_threshold == threshold
    started = randomised(dataclasses.replace(config, threshold_start=0.5))
    assert started.batch_threshold == 0.5
    started.step(X)
    assert_close(started.batch_threshold, 0.75 * 0.5 + 0.25 * kept[0])


def test_targets_and_skip() -> None:
    config = make(**CASES["wide transcoder"])
    model = randomised(config)
    X, weights, targets = data(config)
    bare = SparseCode(dataclasses.replace(config, skip=False))
    bare.set({name: p for name, p in model.parameters.items() if name != "W_skip"})
    bare.rows_since_fired, bare.steps = model.rows_since_fired, model.steps
    skipped = X @ model.parameters["W_skip"].T
    assert_close(model.reconstruct(X), bare.reconstruct(X) + skipped)
    # A skip's output is a part of the target that need not be reconstructed.
    whole, rest = (m.evaluate(X, weights, targets=y) for m, y in ((model, targets), (bare, targets - skipped)))
    assert_close(whole["loss"], rest["loss"])
    assert_close(model.row_losses(X, targets), bare.row_losses(X, targets - skipped))
    assert_close(model.decode(model.encode(X)), bare.reconstruct(X))


@pytest.mark.parametrize("reduction", options.LOSS_REDUCTIONS)
def test_losses_of_rows(reduction: str) -> None:
    """Their mean is R, whose divisor under fvu belongs to the batch."""
    model = randomised(make(loss_reduction=reduction))
    X, weights, _ = data(model.config)
    share = weights / weights.sum()
    variance = {"fvu": share @ ((X - share @ X) ** 2).sum(axis=1), "fvu_data": 1.7}.get(reduction, 1.0)
    expected = model.evaluate(X, weights)["reconstruction"]
    assert share @ model.row_losses(X) / variance == pytest.approx(expected, rel=FLOAT64)


def test_shapes() -> None:
    shared = {"W_enc": (LATENTS, D), "b_enc": (LATENTS,), "W_dec": (LATENTS, D), "b_dec": (D,)}
    for activation in ("topk", "batch_topk", "relu"):
        assert make(activation=activation).parameter_shapes == shared
    assert make(activation="jump_relu").parameter_shapes == {**shared, "threshold": (LATENTS,)}
    gated = {name: shape for name, shape in shared.items() if name != "b_enc"}
    gated |= {"b_gate": (LATENTS,), "b_mag": (LATENTS,), "r_mag": (LATENTS,)}
    assert make(activation="gated").parameter_shapes == gated
    wide = {"W_dec": (LATENTS, 8), "b_dec": (8,), "W_skip": (8, D)}
    assert make(**CASES["wide transcoder"]).parameter_shapes == shared | wide
    with pytest.raises(ValueError, match="parameters: expected one of W_enc, b_enc, W_dec, b_dec, got 'W1'"):
        SparseCode(make()).set({"W1": np.zeros(3)})
    with pytest.raises(ValueError, match=r"b_enc: expected shape \(11,\), got \(5,\)"):
        SparseCode(make()).set({"b_enc": np.zeros(5)})
