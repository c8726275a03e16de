"""Comparing a model's gradient with finite differences of its cost."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from fastsae.arrays import as_rows
from fastsae.checks import check_integer
from fastsae.engine import Engine, ModelConfig

_STEP = 1e-3


def check_gradient(
    model: Any,
    X: ArrayLike,
    *,
    sample_weight: ArrayLike | None = None,
    targets: ArrayLike | None = None,
    n_coordinates: int = 200,
    random_state: int = 0,
) -> float:
    """Relative error of the gradient that training uses.

    The cost of a float64 copy of the model is differentiated with the 4-point stencil
    ``(f(-2e) - 8 f(-e) + 8 f(e) - f(2e)) / 12e``, e = 1e-3, at coordinates drawn from every parameter.

    Parameters
    ----------
    model : fitted estimator or Engine
    X : array, shape (n_rows, n_features)
        Rows to compute the cost of; ten are enough.
    sample_weight : array, shape (n_rows,), optional
    targets : array, shape (n_rows, n_outputs), optional
        What the output of each row should be; None means X.
    n_coordinates : int
        At most so many coordinates of each parameter.
    random_state : int
        Seed of their choice.

    Returns
    -------
    float
        ``norm(numeric - analytic) / norm(numeric + analytic)``: below 1e-9 for a right gradient, except near
        the kinks of relu and l1.

    Raises
    ------
    ValueError
        If X does not fit the model, or the model keeps a moving average (``rho_hat='ema'``), whose update is
        not the gradient of any cost.
    """
    engine = model if isinstance(model, Engine) else getattr(model, "_engine", None)
    if engine is None:
        raise ValueError(f"model: expected a fitted estimator or an Engine, got {type(model).__name__}")
    if engine.config.rho_hat == "ema":
        raise ValueError("model: rho_hat='ema' follows no cost, so there is nothing to compare its gradient with")
    check_integer("n_coordinates", n_coordinates, 1)
    rows = as_rows("X", X, engine.config.n_features, "float64")
    if getattr(model, "_scaler", None) is not None:
        rows = model._scaler.transform(rows, "float64")
    twin = Engine(dataclasses.replace(engine.config, dtype="float64"))
    twin.set_parameters(engine.get_parameters())
    twin.noise_seed, twin.epoch = engine.noise_seed, engine.epoch
    random = np.random.default_rng(random_state)

    def cost() -> float:
        return twin.evaluate(rows, sample_weight, targets=targets)["loss"]

    twin.gradient(rows, sample_weight, targets=targets)
    numeric: list[float] = []
    analytic: list[float] = []
    for name, value in twin.get_parameters().items():
        gradient = twin.get("gradient." + name).ravel()
        chosen = random.permutation(value.size)[:n_coordinates]
        analytic += gradient[chosen].tolist()
        numeric += [_slope(twin, name, value, int(i), cost) for i in chosen]
    a, b = np.array(numeric), np.array(analytic)
    scale = float(np.linalg.norm(a + b))
    return float(np.linalg.norm(a - b)) / scale if scale > 0 else 0.0


def _slope(engine: Engine[ModelConfig], name: str, value: Any, index: int, cost: Callable[[], float]) -> float:
    costs: dict[int, float] = {}
    for steps in (-2, -1, 1, 2):
        moved = value.copy()
        moved.flat[index] += steps * _STEP
        engine.set(name, moved)
        costs[steps] = cost()
    engine.set(name, value)
    return (costs[-2] - 8 * costs[-1] + 8 * costs[1] - costs[2]) / (12 * _STEP)
