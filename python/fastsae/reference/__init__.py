"""The model in plain NumPy: the mathematics to read, and the oracle that the C++ is tested against."""

from __future__ import annotations

from fastsae.reference.activations import ACTIVATIONS, Activation
from fastsae.reference.layered import Layered
from fastsae.reference.losses import LOSSES, Loss, factor
from fastsae.reference.optimizers import OPTIMIZERS, Optimizer, StepScalars
from fastsae.reference.penalties import CLAMP, PENALTIES, ElementPenalty, KlPenalty, clamp
from fastsae.reference.selection import encode_topk, select
from fastsae.reference.sparse_code import SparseCode

__all__ = [
    "ACTIVATIONS",
    "CLAMP",
    "LOSSES",
    "OPTIMIZERS",
    "PENALTIES",
    "Activation",
    "ElementPenalty",
    "KlPenalty",
    "Layered",
    "Loss",
    "Optimizer",
    "SparseCode",
    "StepScalars",
    "clamp",
    "encode_topk",
    "factor",
    "select",
]
