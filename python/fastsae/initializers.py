"""First parameters, drawn by NumPy so that every device starts the same."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from fastsae.config import Config, check_choice, INITIALIZERS


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
    widths = config.widths
    for number, (inputs, units) in enumerate(zip(widths, widths[1:], strict=False), start=1):
        if not (config.tied and number > len(config.layers) // 2):
            if init == "he":
                weights = random.standard_normal((units, inputs)) * math.sqrt(2 / inputs)
            else:
                limit = math.sqrt(6 / (inputs + units + (init == "cs294a")))
                weights = random.uniform(-limit, limit, (units, inputs))
            parameters[f"W{number}"] = weights
        parameters[f"b{number}"] = np.zeros(units)
    return parameters
