"""First parameters, drawn by NumPy so that every device starts the same."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from fastsae.checks import check_choice
from fastsae.config import INITIALIZERS, Config


def initialize(config: Config, init: str, random: np.random.Generator) -> dict[str, NDArray[np.float64]]:
    """Weights and biases by name, in float64.

    Parameters
    ----------
    config : Config
        The model.
    init : {"cs294a", "glorot", "he"}
        Weights of a layer with n inputs and m units. ``cs294a``: uniform in +-sqrt(6 / (n + m + 1)) (Ng, CS294A
        lecture notes); ``glorot``: uniform in +-sqrt(6 / (n + m)) (Glorot and Bengio 2010); ``he``: normal with
        variance 2 / n (He et al. 2015). Biases are 0.
    random : numpy.random.Generator
        Source of the weights, layer after layer.
    """
    check_choice("init", init, INITIALIZERS)
    parameters: dict[str, NDArray[np.float64]] = {}
    for name, shape in config.parameter_shapes.items():
        if name.startswith("b"):
            parameters[name] = np.zeros(shape)
        elif init == "he":
            parameters[name] = random.standard_normal(shape) * math.sqrt(2 / shape[1])
        else:
            limit = math.sqrt(6 / (sum(shape) + (init == "cs294a")))
            parameters[name] = random.uniform(-limit, limit, shape)
    return parameters
