"""Learning rates that change from step to step.

Step t = 1, 2, ... of the optimiser takes the rate ``learning_rate * share(t)``. With w = `lr_warm_up` steps,

- ``share(t) = t / w`` while ``t <= w``: the gradual warm-up of Goyal et al., "Accurate, large minibatch SGD" (2017);
  or ``a + (1 - a) (t - 1) / w`` with a = `lr_start`, as PyTorch's ``LinearLR`` (with a = 0 dictionary_learning's and
  that of sparsify's Adam).

After it, with ``s = t - 1 - w`` steps done,

- ``constant``: ``share = 1``.
- ``cosine``: ``share = f + (1 - f) (1 + cos(pi min(1, s / (T - w)))) / 2``, f = `lr_final` and T = `lr_total_steps`:
  one arc of Loshchilov and Hutter, "SGDR" (2017), equation 5. From step T + 1 on it is f.
- ``linear``: ``share = f + (1 - f) min(1, (T - t + 1) / D)``, D = `lr_decay_steps` or ``T - w``: constant, then a line
  over the last D steps, of which the first still has the whole rate (SAELens's ``lr_decay_steps``; dictionary_learning
  has ``decay_start = T - D``; sparsify's Adam has ``D = T - w``). From step T + 1 on it is f.
- ``step``: ``share = lr_gamma ** floor(s / lr_step_size)``, as PyTorch's ``StepLR``.

Steps are counted from the first one of a model, on through `resume` and `partial_fit`. Where `lr_total_steps` is None,
T is the number of steps that `fit` and `resume` take in `max_epochs` epochs; `partial_fit` knows no end and needs a
number. A training of no more than w steps ends in its warm-up, and one of fewer than ``w + D`` steps is on its line as
soon as that is over. The formula is in ``cpp/engine/optimizer.cpp`` and in :mod:`fastsae.reference.schedules`, in
double.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from fastsae.checks import check_choice, check_integer, check_real

if TYPE_CHECKING:
    from fastsae.config import TrainingConfig
    from fastsae.optimizer import OptimizerConfig

SCHEDULES = ("constant", "cosine", "linear", "step")
#: Those that must know the number of all steps.
ENDING = ("cosine", "linear")


def check_schedule(config: OptimizerConfig) -> None:
    """Raise ValueError, naming the option, if one of the schedule has no meaning."""
    check_choice("lr_schedule", config.lr_schedule, SCHEDULES)
    check_integer("lr_warm_up", config.lr_warm_up, 0)
    if config.lr_start is not None:
        check_real("lr_start", config.lr_start, 0.0, 1.0, "[]")
        if config.optimizer == "sign_sgd":
            raise ValueError(
                f"lr_start: 'sign_sgd' averages from its first step on; expected None, got {config.lr_start!r}"
            )
        if config.lr_warm_up == 0:
            raise ValueError(
                f"lr_start: a number needs lr_warm_up >= 1, got lr_start={config.lr_start!r} and lr_warm_up=0"
            )
    if config.lr_total_steps is not None:
        check_integer("lr_total_steps", config.lr_total_steps, 1)
        if config.lr_schedule in ENDING and config.lr_total_steps <= config.lr_warm_up:
            raise ValueError(
                f"lr_total_steps: expected more than lr_warm_up={config.lr_warm_up}, got {config.lr_total_steps}"
            )
    if config.lr_decay_steps is not None:
        check_integer("lr_decay_steps", config.lr_decay_steps, 1)
        if config.lr_schedule != "linear":
            raise ValueError(f"lr_decay_steps: a number needs lr_schedule='linear', got {config.lr_schedule!r}")
        total = config.lr_total_steps
        if total is not None and config.lr_decay_steps > (most := total - config.lr_warm_up):
            raise ValueError(
                f"lr_decay_steps: expected at most lr_total_steps - lr_warm_up = {most}, got {config.lr_decay_steps}"
            )
    check_real("lr_final", config.lr_final, 0.0, 1.0, "[]")
    check_integer("lr_step_size", config.lr_step_size, 1)
    check_real("lr_gamma", config.lr_gamma, 0.0, 1.0, "(]")


def check_solver(config: OptimizerConfig, training: TrainingConfig, *, one_pass: bool) -> None:
    """Raise ValueError for a schedule or a limit of the gradient that this training cannot have.

    `one_pass`: of `partial_fit`, whose end is unknown.
    """
    if training.solver == "lbfgs":
        changed = {"lr_schedule": "constant", "lr_warm_up": 0, "lr_start": None, "max_grad_norm": None}
        for name, plain in changed.items():
            value = getattr(config, name)
            if value != plain:
                raise ValueError(
                    f"{name}: solver='lbfgs' finds the length of its steps itself; expected {plain!r}, got {value!r}"
                )
    if one_pass and config.lr_schedule in ENDING and config.lr_total_steps is None:
        raise ValueError(
            f"lr_total_steps: expected an integer: partial_fit does not know when lr_schedule={config.lr_schedule!r} "
            "ends"
        )


def steps_of(n_rows: int, batch_size: int | None, epochs: int) -> int:
    """Steps of so many epochs of batches, whose last one may be shorter."""
    return epochs * math.ceil(n_rows / min(batch_size or n_rows, n_rows))
