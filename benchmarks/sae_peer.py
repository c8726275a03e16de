"""What the sparse autoencoders of other libraries have in common here: weights with our names, rows, one case."""

from __future__ import annotations

import importlib
import importlib.metadata
from abc import ABC, abstractmethod
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

Arrays = dict[str, np.ndarray]
Case = dict[str, Any]
#: Where a parameter lies, and whether it is the transpose of ours.
Places = dict[str, tuple[nn.Parameter, bool]]


class Peer(ABC):
    """A library's model with its trainer."""

    package = ""
    #: What the package is imported as.
    module = ""

    @classmethod
    def load(cls) -> None:
        """Import the library."""
        if cls.module:
            importlib.import_module(cls.module)

    def __init__(self, case: Case) -> None:
        self.case, self.options = case, case.get("options", {})
        self.d, self.n, self.k = case["n_features"], case["n_latents"], case.get("k", 32)
        self.batch = case["batch"]
        self.dtype = getattr(torch, case.get("dtype", "float32"))
        torch.manual_seed(0)
        torch.set_default_dtype(self.dtype)
        self.build()

    @abstractmethod
    def build(self) -> None: ...

    @abstractmethod
    def places(self) -> Places: ...

    @abstractmethod
    def cost(self, x: Tensor, y: Tensor) -> Tensor:
        """The loss that the library differentiates."""

    @abstractmethod
    def code(self, x: Tensor) -> Tensor:
        """The code of training, dense."""

    @abstractmethod
    def fit(self, X: Tensor, Y: Tensor) -> list[float]:
        """The library's training steps on the batches of the rows, and the loss of each before its update."""

    @abstractmethod
    def set_rows_since_fired(self, rows: Tensor) -> None: ...

    @staticmethod
    def read(folder: str, x: Tensor) -> tuple[Tensor, Tensor]:
        """Code and output of rows by the model in the library's own folder."""
        raise NotImplementedError

    def write(self, folder: str) -> None:
        raise NotImplementedError

    def set(self, values: Arrays) -> None:
        with torch.no_grad():
            for name, (parameter, transposed) in self.places().items():
                value = torch.from_numpy(values[name])
                parameter.copy_(value.T if transposed else value)
        if "rows_since_fired" in values:
            self.set_rows_since_fired(torch.from_numpy(values["rows_since_fired"]))

    def settle(self) -> None:  # noqa: B027
        """What the library does before the next step sees the weights."""

    def threshold(self) -> Tensor | None:
        """What inference of BatchTopK takes, where the library has learned it."""
        return None

    def left(self) -> Arrays:
        """The weights, and that threshold."""
        self.settle()
        found = {name: as_array(p.detach(), transposed) for name, (p, transposed) in self.places().items()}
        if (threshold := self.threshold()) is not None:
            found["batch_threshold"] = threshold.numpy().reshape(1)
        return found

    def gradients(self) -> Arrays:
        return {
            name: as_array(torch.zeros_like(p) if p.grad is None else p.grad, transposed)
            for name, (p, transposed) in self.places().items()
        }

    def versions(self) -> dict[str, str]:
        found = {"torch": torch.__version__}
        if self.package:
            found[self.package] = importlib.metadata.version(self.package)
        return found


def as_array(value: Tensor, transposed: bool) -> np.ndarray:
    return np.ascontiguousarray((value.T if transposed else value).numpy())
