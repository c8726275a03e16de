"""Do the parity checks see a fault? Each fault here is seeded into the reference and must turn its check red."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from test_parity import (
    D,
    check_epoch,
    check_gradient,
    check_outputs,
    check_training,
    deep,
    parameters_for,
    two_layers,
)

from fastsae import config as options
from fastsae.reference import activations, layered, losses, optimizers, penalties
from fastsae.reference.layered import Layered

Patch = pytest.MonkeyPatch
Check = Callable[[str, str], None]  # of a dtype and a device


@dataclasses.dataclass(frozen=True)
class Fault:
    name: str
    seed: Callable[[Patch], None]
    check: Check


FAULTS: list[Fault] = []


def fault(check: Check) -> Callable[[Callable[[Patch], None]], Callable[[Patch], None]]:
    """Lists the decorated function, which seeds a fault that `check` must see."""

    def listed(seed: Callable[[Patch], None]) -> Callable[[Patch], None]:
        FAULTS.append(Fault(seed.__name__, seed, check))
        return seed

    return listed


# --- checks: small, one for each kind of fault ---


def gradient_of(make: Callable[..., Any] = two_layers, *, weighted: bool = False, **rest: Any) -> Check:
    return lambda dtype, device: check_gradient(make(**rest, dtype=dtype), device, weighted=weighted)


def training_of(make: Callable[..., Any] = two_layers, *, weighted: bool = False, **rest: Any) -> Check:
    return lambda dtype, device: check_training(make(**rest, dtype=dtype), device, steps=20, weighted=weighted)


def outputs_of(make: Callable[..., Any] = two_layers, **rest: Any) -> Check:
    return lambda dtype, device: check_outputs(make(**rest, dtype=dtype), device)


def gradient_with_a_unit(bias: dict[str, float], **rest: Any) -> Check:
    """The first unit of the hidden layer has no weights, so that its pre-activation is exactly the bias."""

    def check(dtype: str, device: str) -> None:
        config = two_layers(**rest, dtype=dtype)
        parameters = parameters_for(config)
        parameters["W1"][0], parameters["b1"][0] = 0.0, bias[dtype]
        check_gradient(config, device, parameters=parameters)

    return check


AT_ZERO = {"float32": 0.0, "float64": 0.0}
# Mean activations of 1.5e-8 and 2.5e-13, where the gradient at the clamp is still about 0.1.
BEYOND_THE_CLAMP = {"float32": -18.0, "float64": -29.0}


def replace(patch: Patch, owner: Any, name: str, wrap: Callable[..., Any]) -> None:
    """The attribute becomes `wrap(original, *args)`."""
    original = getattr(owner, name)
    patch.setattr(owner, name, lambda *args, **rest: wrap(original, *args, **rest))


def scaled(patch: Patch, owner: Any, name: str, by: float) -> None:
    replace(patch, owner, name, lambda original, *args: by * original(*args))


def change_scalars(patch: Patch, change: Callable[[optimizers.StepScalars], dict[str, Any]]) -> None:
    original = optimizers.StepScalars.at
    patch.setattr(
        layered.StepScalars,
        "at",
        staticmethod(lambda *args, **rest: dataclasses.replace(s := original(*args, **rest), **change(s))),
    )


# --- activations ---


@fault(gradient_of(activation="softplus"))
def slope_of_softplus_at_a_instead_of_z(patch: Patch) -> None:
    patch.setattr(activations.Softplus, "slope", lambda self, a: 1 / (1 + np.exp(-a)))


@fault(gradient_of(activation="sigmoid"))
def slope_of_sigmoid_takes_z_for_a(patch: Patch) -> None:
    replace(patch, activations.Sigmoid, "slope", lambda original, self, a: original(self, self.value(a)))


@fault(gradient_of(activation="tanh"))
def slope_of_tanh_without_the_square(patch: Patch) -> None:
    patch.setattr(activations.Tanh, "slope", lambda self, a: 1 - a)


@fault(gradient_with_a_unit(AT_ZERO, activation="relu"))
def slope_of_relu_at_zero(patch: Patch) -> None:
    patch.setattr(activations.Relu, "slope", lambda self, a: (a >= 0).astype(a.dtype))


@fault(outputs_of(activation="sigmoid"))
def sigmoid_of_twice_z(patch: Patch) -> None:
    replace(patch, activations.Sigmoid, "value", lambda original, self, z: original(self, 2 * z))


# --- losses ---


@fault(gradient_of())
def squared_error_without_the_half(patch: Patch) -> None:
    patch.setattr(layered, "factor", lambda *_: 1.0)


@fault(gradient_of(loss_reduction="mean"))
def mean_over_units_instead_of_features(patch: Patch) -> None:
    patch.setattr(layered, "factor", lambda loss, reduction, n: losses.factor(loss, reduction, n - 2))


@fault(gradient_of(loss="cross_entropy"))
def cross_entropy_delta_times_the_slope(patch: Patch) -> None:
    patch.setattr(losses.CrossEntropy, "delta", lambda self, x, z, y, slope: (y - x) * slope)


@fault(gradient_of(output="tanh"))
def output_delta_without_the_slope(patch: Patch) -> None:
    patch.setattr(losses.SquaredError, "delta", lambda self, x, z, y, slope: 2 * (y - x))


@fault(gradient_of())
def sum_over_rows_instead_of_mean(patch: Patch) -> None:
    patch.setattr(Layered, "_share", lambda self, n, w: np.ones(n, self.dtype))


@fault(gradient_of(weighted=True))
def weights_divided_by_rows_instead_of_their_sum(patch: Patch) -> None:
    patch.setattr(Layered, "_share", lambda self, n, w: np.asarray(w, self.dtype) / n)


@fault(gradient_of(weighted=True))
def weights_ignored(patch: Patch) -> None:
    replace(patch, Layered, "_share", lambda original, self, n, w: original(self, n, None))


# --- penalties ---


@fault(gradient_of(activation="tanh", penalty="kl"))
def lost_half_of_tanh_kl(patch: Patch) -> None:
    scaled(patch, penalties.KlPenalty, "slope", 2.0)


@fault(gradient_of(activation="tanh", penalty="kl"))
def kl_of_tanh_without_the_map(patch: Patch) -> None:
    patch.setattr(activations.Tanh, "low", 0.0)


@fault(gradient_of(activation="sigmoid", penalty="kl", rho=0.2))
def kl_with_rho_and_its_complement_swapped(patch: Patch) -> None:
    for name in ("value", "slope"):
        replace(patch, penalties.KlPenalty, name, lambda original, self, q, rho: original(self, q, 1 - rho))


@fault(gradient_with_a_unit(BEYOND_THE_CLAMP, activation="sigmoid", penalty="kl"))
def gradient_of_clamped_kl_is_zero(patch: Patch) -> None:
    replace(
        patch,
        penalties.KlPenalty,
        "slope",
        lambda original, self, q, rho: np.where(penalties.clamp(q) == q, original(self, q, rho), 0),
    )


@fault(gradient_of(activation="sigmoid", penalty="kl", weighted=True))
def weight_missing_in_rho_hat(patch: Patch) -> None:
    replace(
        patch,
        Layered,
        "_penalty",
        lambda original, self, number, a, share, **rest: original(
            self, number, a, np.full_like(share, 1 / len(share)), **rest
        ),
    )


@fault(gradient_of(activation="sigmoid", penalty="kl"))
def kl_per_row_instead_of_mean_activation(patch: Patch) -> None:
    kl = penalties.PENALTIES["kl"]

    def per_row(original: Any, self: Layered, number: int, a: Any, share: Any, moving: bool = False) -> Any:
        layer = self.config.layers[number - 1]
        rho, beta = layer.rho, layer.beta
        return beta * float(share @ kl.value(a, rho).sum(axis=1)), beta * kl.slope(a, rho)

    replace(patch, Layered, "_penalty", per_row)


@fault(gradient_with_a_unit(AT_ZERO, activation="identity", penalty="l1"))
def slope_of_l1_at_zero(patch: Patch) -> None:
    patch.setattr(penalties.L1Penalty, "slope", lambda self, a: np.where(a >= 0, 1, -1).astype(a.dtype))


@fault(gradient_of(activation="tanh", penalty="log"))
def slope_of_log_without_its_factor(patch: Patch) -> None:
    scaled(patch, penalties.LogPenalty, "slope", 0.5)


@fault(gradient_of(activation="tanh", penalty="l1"))
def beta_missing_in_the_gradient(patch: Patch) -> None:
    scaled(patch, penalties.L1Penalty, "slope", 2.0)  # beta is 0.5


@fault(gradient_of(deep))
def penalty_of_an_inner_layer_forgotten(patch: Patch) -> None:
    replace(
        patch,
        Layered,
        "_penalty",
        lambda original, self, number, a, share, **rest: (
            (0.0, np.zeros_like(a)) if number == 3 else original(self, number, a, share, **rest)
        ),
    )


# --- moving average ---


@fault(training_of(activation="tanh", penalty="kl", rho_hat="ema"))
def moving_average_starts_at_zero(patch: Patch) -> None:
    def from_zero(original: Any, self: Layered, number: int, a: Any, share: Any) -> Any:
        self.rho_hat.setdefault(number, np.zeros_like(a[0]))
        return original(self, number, a, share)

    replace(patch, Layered, "_moving_mean", from_zero)


@fault(gradient_of(activation="sigmoid", penalty="kl", rho_hat="ema", rho_hat_decay=0.9))
def moving_average_gradient_times_its_share(patch: Patch) -> None:
    scaled(patch, penalties.KlPenalty, "slope", 0.1)


@fault(training_of(activation="sigmoid", penalty="kl", rho_hat="ema", rho_hat_decay=0.7))
def moving_average_with_its_decay_reversed(patch: Patch) -> None:
    patch.setattr(
        Layered,
        "_moving_mean",
        lambda self, number, a, share: (
            0.3 * self.rho_hat[number] + 0.7 * (share @ a) if number in self.rho_hat else share @ a
        ),
    )


# --- decay and tied weights ---


@fault(gradient_of(weight_decay=0.1))
def biases_decayed(patch: Patch) -> None:
    patch.setattr(Layered, "_weight_names", lambda self: list(self.parameters))


@fault(gradient_of(weight_decay=0.1))
def cost_of_decay_without_its_half(patch: Patch) -> None:
    def doubled(original: Any, self: Layered, *args: Any) -> dict[str, float]:
        parts = original(self, *args)
        return {**parts, "decay": 2 * parts["decay"], "loss": parts["loss"] + parts["decay"]}

    replace(patch, Layered, "_parts", doubled)


@fault(gradient_of(weight_decay=0.1, tied=True))
def tied_weights_decayed_twice(patch: Patch) -> None:
    replace(patch, Layered, "_weight_names", lambda original, self: 2 * original(self))


@fault(gradient_of(activation="tanh", tied=True))
def tied_gradient_without_the_decoder(patch: Patch) -> None:
    def encoder_alone(original: Any, self: Layered, *batch: Any) -> Any:
        parts, gradients = original(self, *batch)
        twin = Layered(dataclasses.replace(self.config, tied=False), self.dtype.name)
        twin.set({**self.parameters, "W2": self.parameters["W1"].T})
        return parts, {**gradients, "W1": original(twin, *batch)[1]["W1"]}

    replace(patch, Layered, "_backward", encoder_alone)


@fault(training_of(optimizer="adamw", weight_decay=0.1))
def adamw_decays_biases(patch: Patch) -> None:
    rate = 0.01
    change_scalars(patch, lambda s: {"shrink": 1 - rate * 0.1})


@fault(training_of(optimizer="adamw", weight_decay=0.1))
def adamw_decays_within_the_gradient(patch: Patch) -> None:
    patch.setattr(optimizers.AdamW, "decoupled_decay", False)
    change_scalars(patch, lambda s: {"shrink": 1.0})


# --- optimisers ---


@fault(training_of(optimizer="adam"))
def adam_without_bias_correction(patch: Patch) -> None:
    change_scalars(patch, lambda s: {"correction1": 1.0, "correction2": 1.0})


@fault(training_of(optimizer="adam", epsilon=1e-3))
def adam_epsilon_inside_the_root(patch: Patch) -> None:
    def update(self: Any, p: Any, g: Any, moments: Any, s: optimizers.StepScalars) -> Any:
        m = s.beta1 * moments[0] + (1 - s.beta1) * g
        v = s.beta2 * moments[1] + (1 - s.beta2) * (g * g)
        return p - s.learning_rate / s.correction1 * (m / np.sqrt(v / s.correction2**2 + s.epsilon)), (m, v)

    patch.setattr(optimizers.Adam, "update", update)


@fault(training_of(optimizer="adam", epsilon=1e-3))
def adam_epsilon_before_the_correction(patch: Patch) -> None:
    def update(self: Any, p: Any, g: Any, moments: Any, s: optimizers.StepScalars) -> Any:
        m = s.beta1 * moments[0] + (1 - s.beta1) * g
        v = s.beta2 * moments[1] + (1 - s.beta2) * (g * g)
        return p - s.learning_rate * s.correction2 / s.correction1 * (m / (np.sqrt(v) + s.epsilon)), (m, v)

    patch.setattr(optimizers.Adam, "update", update)


@fault(training_of(optimizer="adam"))
def adam_complement_of_beta_in_float32(patch: Patch) -> None:
    def update(self: Any, p: Any, g: Any, moments: Any, s: optimizers.StepScalars) -> Any:
        one_minus = [float(np.float32(1) - np.float32(beta)) for beta in (s.beta1, s.beta2)]
        m = s.beta1 * moments[0] + one_minus[0] * g
        v = s.beta2 * moments[1] + one_minus[1] * (g * g)
        return p - s.learning_rate / s.correction1 * (m / (np.sqrt(v) / s.correction2 + s.epsilon)), (m, v)

    patch.setattr(optimizers.Adam, "update", update)


@fault(training_of(optimizer="adam"))
def adam_counts_steps_from_two(patch: Patch) -> None:
    original = optimizers.StepScalars.at
    patch.setattr(layered.StepScalars, "at", staticmethod(lambda config, t, *rest: original(config, t + 1, *rest)))


@fault(training_of(optimizer="momentum"))
def momentum_dampened(patch: Patch) -> None:
    replace(
        patch,
        optimizers.Momentum,
        "update",
        lambda original, self, p, g, moments, s: original(self, p, (1 - s.momentum) * g, moments, s),
    )


@fault(training_of(optimizer="nesterov"))
def nesterov_takes_the_buffer_alone(patch: Patch) -> None:
    patch.setattr(optimizers.Nesterov, "update", optimizers.Momentum.update)


@fault(training_of(optimizer="sgd"))
def sgd_goes_up(patch: Patch) -> None:
    replace(patch, optimizers.Sgd, "update", lambda original, self, p, g, moments, s: original(self, p, -g, moments, s))


SIGN = {"optimizer": "sign_sgd", "momentum": 0.9, "lr_warm_up": 6}


@fault(training_of(**SIGN))
def average_of_equal_shares_in_the_warm_up(patch: Patch) -> None:
    patch.setattr(optimizers, "average_share", lambda config, t: 1 / t)


@fault(training_of(**SIGN))
def gradient_taken_at_the_average(patch: Patch) -> None:
    replace(
        patch,
        optimizers.SignSgd,
        "update",
        lambda original, self, p, g, moments, s: original(self, p, g, moments, dataclasses.replace(s, momentum=1.0)),
    )


@fault(training_of(**SIGN))
def steps_begin_at_zero_instead_of_the_parameter(patch: Patch) -> None:
    patch.setattr(optimizers.SignSgd, "first_moments", optimizers.Optimizer.first_moments)


# --- schedules, the limit of the gradient, L1 ---

COSINE = {"lr_schedule": "cosine", "lr_total_steps": 20, "lr_warm_up": 4}
LINE = {"lr_schedule": "linear", "lr_total_steps": 20, "lr_decay_steps": 9, "lr_warm_up": 4}
STEP = {"lr_schedule": "step", "lr_step_size": 5, "lr_warm_up": 3}


@fault(training_of(**COSINE))
def cosine_one_step_early(patch: Patch) -> None:
    replace(patch, optimizers, "share", lambda original, config, t, total: original(config, t + (t > 4), total))


@fault(training_of(**COSINE))
def warm_up_from_zero(patch: Patch) -> None:
    replace(patch, optimizers, "share", lambda original, config, t, total: original(config, t, total) - (t <= 4) / 4)


@fault(training_of(**LINE))
def line_one_step_early(patch: Patch) -> None:
    replace(patch, optimizers, "share", lambda original, config, t, total: original(config, t + (t > 4), total))


@fault(training_of(**LINE))
def line_from_the_end_of_the_warm_up(patch: Patch) -> None:
    def share(original: Any, config: Any, t: int, total: Any) -> Any:
        return original(dataclasses.replace(config, lr_decay_steps=None), t, total)

    replace(patch, optimizers, "share", share)


@fault(training_of(**STEP))
def step_decay_counted_from_the_first_step(patch: Patch) -> None:
    replace(patch, optimizers, "share", lambda original, config, t, total: original(config, t + 3 * (t > 3), total))


@fault(training_of(optimizer="adamw", weight_decay=0.5, **COSINE))
def decoupled_decay_by_the_rate_without_schedule(patch: Patch) -> None:
    change_scalars(patch, lambda s: {"shrink": 1 - 0.01 * 0.5 if s.shrink != 1 else 1.0})


@fault(training_of(max_grad_norm=0.05, optimizer="sgd"))
def no_limit_of_the_gradient(patch: Patch) -> None:
    patch.setattr(layered, "clip_factor", lambda *_: 1.0)


@fault(training_of(max_grad_norm=0.05, optimizer="momentum"))
def each_parameter_limited_on_its_own(patch: Patch) -> None:
    replace(
        patch,
        layered,
        "clip_factor",
        lambda original, config, gradients: original(config, {"W1": gradients["W1"]}),
    )


@fault(training_of(max_grad_norm=0.05, weight_decay=0.3, optimizer="sgd"))
def squared_norm_for_the_norm(patch: Patch) -> None:
    replace(patch, layered, "clip_factor", lambda original, *args: original(*args) ** 2)


@fault(gradient_of(weight_l1=0.05))
def l1_is_left_out(patch: Patch) -> None:
    patch.setattr(Layered, "_l1", lambda self, name: 0.0)


# --- outputs ---


@fault(outputs_of(deep))
def code_taken_from_the_next_layer(patch: Patch) -> None:
    def late(original: Any, self: Layered, X: Any) -> Any:
        return self.forward(X)[self.config.code_layer][1]

    replace(patch, Layered, "encode", late)


@fault(outputs_of())
def row_losses_averaged_over_features(patch: Patch) -> None:
    scaled(patch, Layered, "row_losses", 1 / D)


# --- the tests ---


def test_there_are_enough() -> None:
    names = [fault.name for fault in FAULTS]
    assert len(set(names)) == len(names) >= 40


@pytest.mark.parametrize("dtype", options.DTYPES)
@pytest.mark.parametrize("seeded", FAULTS, ids=lambda fault: fault.name)
def test_fault_is_seen(seeded: Fault, dtype: str, device: str, monkeypatch: Patch) -> None:
    seeded.check(dtype, device)
    seeded.seed(monkeypatch)
    with pytest.raises(AssertionError, match=r"off by|shape"):
        seeded.check(dtype, device)


def test_dropped_last_batch_is_seen(device: str) -> None:
    config = two_layers("sigmoid", "kl", dtype="float64")
    check_epoch(config, device, 8)
    with pytest.raises(AssertionError, match="off by"):
        check_epoch(config, device, 8, reference_rows=16)


def test_wrong_row_order_is_seen(device: str) -> None:
    config = two_layers("sigmoid", "kl", dtype="float64")
    order = np.random.default_rng(6).permutation(23)[:21]
    check_epoch(config, device, 4, reference_order=order)
    with pytest.raises(AssertionError, match="off by"):
        check_epoch(config, device, 4, reference_order=order[::-1])
    with pytest.raises(AssertionError, match="off by"):
        check_epoch(config, device, 4, reference_order=np.arange(21))
