"""The learning rate of a step, in double precision."""

from __future__ import annotations

import math

from fastsae.optimizer import OptimizerConfig


def share(config: OptimizerConfig, t: int, total: int | None = None) -> float:
    """By what ``config.learning_rate`` is multiplied in step `t`, counted from 1; see :mod:`fastsae.schedules`.

    `total` is where the cosine ends if ``config.lr_total_steps`` is None.
    """
    if t <= config.lr_warm_up:
        return t / config.lr_warm_up
    done = t - 1 - config.lr_warm_up
    if config.lr_schedule == "cosine":
        end = total if config.lr_total_steps is None else config.lr_total_steps
        if end is None:
            raise ValueError("total: the cosine needs the number of all steps, got None")
        angle = math.pi * min(1.0, done / max(1, end - config.lr_warm_up))
        return config.lr_final + (1.0 - config.lr_final) * (1.0 + math.cos(angle)) / 2.0
    if config.lr_schedule == "step":
        return float(config.lr_gamma) ** (done // config.lr_step_size)
    return 1.0
