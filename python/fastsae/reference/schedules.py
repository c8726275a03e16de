"""The learning rate of a step, in double precision."""

from __future__ import annotations

import math

from fastsae.optimizer import OptimizerConfig


def share(config: OptimizerConfig, t: int, total: int | None = None) -> float:
    """By what ``config.learning_rate`` is multiplied in step `t`, counted from 1; see :mod:`fastsae.schedules`.

    `total` is where a cosine or a line ends if ``config.lr_total_steps`` is None.
    """
    if t <= config.lr_warm_up:
        if config.lr_start is None:
            return t / config.lr_warm_up
        return config.lr_start + (1.0 - config.lr_start) * (t - 1) / config.lr_warm_up
    done = t - 1 - config.lr_warm_up
    if config.lr_schedule in ("cosine", "linear"):
        end = total if config.lr_total_steps is None else config.lr_total_steps
        if end is None:
            raise ValueError(f"total: lr_schedule={config.lr_schedule!r} needs the number of all steps, got None")
        after_warm_up = max(1, end - config.lr_warm_up)
        if config.lr_schedule == "cosine":
            angle = math.pi * min(1.0, done / after_warm_up)
            part = (1.0 + math.cos(angle)) / 2.0
        else:
            left = (end - (t - 1)) / (config.lr_decay_steps or after_warm_up)
            part = min(1.0, max(0.0, left))
        return config.lr_final + (1.0 - config.lr_final) * part
    if config.lr_schedule == "step":
        return float(config.lr_gamma) ** (done // config.lr_step_size)
    return 1.0


def average_share(config: OptimizerConfig, t: int) -> float:
    """Share of step `t` in an average of the steps so far, each weighted by the square of its share of the rate.

    A step's weight is that of the largest rate until then, so it stays 1 after the warm-up, whatever the schedule.
    """
    weights = [min(1.0, i / config.lr_warm_up) ** 2 if config.lr_warm_up else 1.0 for i in range(1, t + 1)]
    return weights[-1] / math.fsum(weights)
