"""What every model has: named parameters, and what the optimiser keeps of each."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import ArrayLike

from fastsae.optimizer import OptimizerConfig
from fastsae.reference.activations import Array
from fastsae.reference.optimizers import OPTIMIZERS, Moments, StepScalars


class Parameters:
    """Arrays by name, all zero at first, and their moments.

    Parameters
    ----------
    config : OptimizerConfig
    shapes : dict of str to tuple of int
    dtype : {"float64", "float32"}

    Attributes
    ----------
    parameters : dict of str to array
    first_moment, second_moment : dict of str to array
        State of the optimiser by parameter; empty where it keeps none.
    """

    def __init__(self, config: OptimizerConfig, shapes: Mapping[str, tuple[int, ...]], dtype: str) -> None:
        self.config = config
        self.dtype = np.dtype(dtype)
        self.parameters: dict[str, Array] = {name: np.zeros(shape, self.dtype) for name, shape in shapes.items()}
        self.first_moment: dict[str, Array] = {}
        self.second_moment: dict[str, Array] = {}
        for name, value in self.parameters.items():
            self._keep_moments(name, OPTIMIZERS[config.optimizer].first_moments(value))

    def set(self, parameters: Mapping[str, ArrayLike]) -> None:
        """Copy the named arrays into `parameters`; an unknown name or a wrong shape raises ValueError.

        Where parameters are averaged, one that is set starts its average anew.
        """
        optimizer = OPTIMIZERS[self.config.optimizer]
        for name, value in parameters.items():
            if name not in self.parameters:
                raise ValueError(f"parameters: expected one of {', '.join(self.parameters)}, got {name!r}")
            array = np.array(value, self.dtype)
            if array.shape != self.parameters[name].shape:
                raise ValueError(f"{name}: expected shape {self.parameters[name].shape}, got {array.shape}")
            self.parameters[name] = array
            if optimizer.averages:
                self._keep_moments(name, optimizer.first_moments(array))

    def averages(self) -> dict[str, Array]:
        """What has been learned, by parameter: the parameters themselves unless the optimiser averages them."""
        optimizer, momentum = OPTIMIZERS[self.config.optimizer], float(self.config.momentum)
        return {name: optimizer.average(p, self._moments(name), momentum) for name, p in self.parameters.items()}

    def _update(self, name: str, gradient: Array, scalars: StepScalars) -> None:
        optimizer = OPTIMIZERS[self.config.optimizer]
        p, moments = optimizer.update(self.parameters[name], gradient, self._moments(name), scalars)
        self.parameters[name] = p
        self._keep_moments(name, moments)

    def _moments(self, name: str) -> Moments:
        return tuple(state[name] for state in (self.first_moment, self.second_moment) if name in state)

    def _keep_moments(self, name: str, moments: Moments) -> None:
        for state, moment in zip((self.first_moment, self.second_moment), moments, strict=False):
            state[name] = moment
