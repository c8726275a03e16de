"""The optimiser's options: what every kind of model is configured with beside its own."""

from __future__ import annotations

import dataclasses
import math
import operator
from collections.abc import Mapping
from typing import Any

from fastsae.checks import check_choice, check_real, is_bool
from fastsae.schedules import check_schedule

OPTIMIZERS = ("sgd", "momentum", "nesterov", "adam", "adamw", "sign_sgd")
#: Those whose parameters are averaged: what is learned is the average.
AVERAGING = ("sign_sgd",)
DTYPES = ("float32", "float64")
PRECISIONS = ("full", "tf32", "bf16")
STATE_PRECISIONS = ("full", "bf16", "8bit")
#: The optimisers whose states are moments, which may be rounded.
ROUNDED = ("momentum", "nesterov", "adam")


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """How parameters are updated, and in what arithmetic; configurations of models inherit it.

    Attributes
    ----------
    optimizer : {"sgd", "momentum", "nesterov", "adam", "adamw", "sign_sgd"}
        The first five in PyTorch's form. ``sign_sgd`` steps along the signs of the gradient g (Bernstein et al.,
        "signSGD", 2018) and averages without a schedule (Defazio et al., "The Road Less Scheduled", 2024), as
        sparsify's "signum" does: ``z <- z - lr sign(g)``, ``x <- (1 - c) x + c z``, and the next gradient is that at
        ``y = momentum x + (1 - momentum) z``. Step t has the share ``c = s_t^2 / (s_1^2 + ... + s_t^2)`` with
        ``s_t = min(1, t / lr_warm_up)``. A trained estimator is x, and its training goes on from y and z; of an
        :class:`fastsae.Engine` `averaged` says which of the two its parameters are.
    learning_rate, momentum, beta1, beta2, epsilon : float
        Constants of the optimisers. `momentum` serves momentum, nesterov and sign_sgd, where it is in [0.5, 1), because
        x is found from y and z by a division by it; the last three serve Adam and AdamW.
    lr_schedule : {"constant", "cosine", "linear", "step"}
        How the learning rate changes from step to step; see :mod:`fastsae.schedules` for the formulas.
    lr_warm_up : int
        Steps in which the rate first rises linearly to `learning_rate`, >= 0; for every schedule.
    lr_start : float or None
        Share of `learning_rate` that a warm-up begins with, in [0, 1]; with 0 the first step moves nothing but the
        moments. None: step t of a warm-up takes ``t / lr_warm_up``. Not for ``sign_sgd``, whose average counts from its
        first step.
    lr_total_steps : int or None
        Steps, warm-up included, after which ``cosine`` and ``linear`` are at their end. None takes those of
        `max_epochs`; with `partial_fit` it must be a number, and for an :class:`fastsae.Engine` it may be set later
        (`total_steps`).
    lr_decay_steps : int or None
        The last steps of ``linear``, in which the rate falls, >= 1; None means all after the warm-up.
    lr_final : float
        Share of `learning_rate` that ``cosine`` and ``linear`` end with, in [0, 1].
    lr_step_size, lr_gamma : int, float
        ``step`` multiplies the rate by `lr_gamma`, in (0, 1], every `lr_step_size` steps.
    max_grad_norm : float or None
        Longest gradient that the optimiser takes, > 0: with the norm ``n = |dJ/dtheta|`` of the gradient of J by all
        parameters, decay included, the gradient is multiplied by ``min(1, max_grad_norm / n)`` (Pascanu et al., 2013;
        PyTorch's ``clip_grad_norm_``, which adds 1e-6 to n). None takes every gradient as it is. Not for ``sign_sgd``,
        to which the length of a gradient means nothing.
    dtype : {"float32", "float64"}
        Type of the parameters and of all arithmetic.
    precision : {"full", "tf32", "bf16"}
        What the factors of matrix products are rounded to, with ``dtype="float32"``: not at all; to 10 bits of
        mantissa, on a GPU; or to 7 bits, on a GPU or a CPU with AVX512_BF16 or AMX. Sums, parameters and everything
        else stay float32.
    """

    optimizer: str = "adam"
    learning_rate: float = 1e-3
    momentum: float = 0.9
    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8
    lr_schedule: str = "constant"
    lr_warm_up: int = 0
    lr_start: float | None = None
    lr_total_steps: int | None = None
    lr_decay_steps: int | None = None
    lr_final: float = 0.0
    lr_step_size: int = 1000
    lr_gamma: float = 0.1
    max_grad_norm: float | None = None
    dtype: str = "float32"
    precision: str = "full"

    def _validate_optimizer(self) -> None:
        check_choice("optimizer", self.optimizer, OPTIMIZERS)
        check_real("learning_rate", self.learning_rate, 0.0)
        check_real("momentum", self.momentum, 0.5 if self.optimizer == "sign_sgd" else 0.0, 1.0, "[)")
        check_real("beta1", self.beta1, 0.0, 1.0, "[)")
        check_real("beta2", self.beta2, 0.0, 1.0, "[)")
        check_real("epsilon", self.epsilon, 0.0, math.inf, "()")
        check_schedule(self)
        if self.max_grad_norm is not None:
            check_real("max_grad_norm", self.max_grad_norm, 0.0, math.inf, "()")
            if self.optimizer == "sign_sgd":
                raise ValueError(
                    f"max_grad_norm: 'sign_sgd' takes only the signs of a gradient; expected None, "
                    f"got {self.max_grad_norm!r}"
                )
        check_choice("dtype", self.dtype, DTYPES)
        check_precision(self.precision, self.dtype)

    def _values(self) -> dict[str, Any]:
        """Every option by name."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}

    @classmethod
    def _known(cls, values: Mapping[str, Any]) -> dict[str, Any]:
        """`values` with tuples for lists; ValueError if they are no options of this configuration."""
        if not isinstance(values, Mapping):
            raise ValueError(f"config: expected an object, got {type(values).__name__}")
        known = {field.name for field in dataclasses.fields(cls)}
        if unknown := sorted(set(values) - known):
            raise ValueError(f"config: unknown option {unknown[0]!r}")
        return {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}


def check_precision(precision: object, dtype: str) -> None:
    """Raise ValueError unless `precision` is one that `dtype` can have."""
    check_choice("precision", precision, PRECISIONS)
    if precision != "full" and dtype != "float32":
        raise ValueError(f"precision={precision!r} needs dtype='float32', got {dtype!r}")


def check_state_precision(state_precision: object, optimizer: str) -> None:
    """Raise ValueError unless moments can be kept so, and `optimizer` has some."""
    check_choice("state_precision", state_precision, STATE_PRECISIONS)
    if state_precision != "full" and optimizer not in ROUNDED:
        why = "keeps a parameter, no moment" if optimizer == "sign_sgd" else "keeps nothing"
        raise ValueError(
            f"state_precision={state_precision!r} needs optimizer={', '.join(map(repr, ROUNDED))}; {optimizer!r} {why}"
        )


def plain(value: Any) -> Any:
    """`value` with NumPy's scalars, fractions and the like as Python's int, float and bool."""
    if isinstance(value, dict):
        return {key: plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(map(plain, value))
    if value is None or isinstance(value, str):
        return value
    if is_bool(value):
        return bool(value)
    return operator.index(value) if hasattr(value, "__index__") else float(value)
