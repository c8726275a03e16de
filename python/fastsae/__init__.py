"""Sparse autoencoders, trained and run fast, without a deep-learning framework.

>>> from fastsae import SparseAutoencoder
>>> sae = SparseAutoencoder(n_hidden=64, rho=0.05, beta=3.0, random_state=0).fit(X)
>>> H = sae.transform(X)
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from fastsae._core import DeviceArray, DeviceError

if TYPE_CHECKING:
    from fastsae import formats, metrics, plots, reference
    from fastsae.anomaly import AnomalyDetector
    from fastsae.checkpoint import load
    from fastsae.config import Config, GaussianConfig, LayerConfig, TrainingConfig
    from fastsae.contractive import ContractiveAutoencoder
    from fastsae.conv import ConvAutoencoder
    from fastsae.cuda import cuda_blas
    from fastsae.deep import DeepAutoencoder
    from fastsae.denoising import DenoisingAutoencoder
    from fastsae.engine import Engine
    from fastsae.estimators import SparseAutoencoder
    from fastsae.gradient_check import check_gradient
    from fastsae.image_layers import (
        ConvConfig,
        ConvTransposeConfig,
        PoolConfig,
        ReshapeConfig,
        UnpoolConfig,
        UpsampleConfig,
    )
    from fastsae.process import cuda_unavailable_reason, devices, get_num_threads, set_num_threads
    from fastsae.saes import L1SAE, BatchTopKSAE, GatedSAE, JumpReLUSAE, MatryoshkaSAE, TopKSAE
    from fastsae.sparse_code import SparseCodeConfig
    from fastsae.stacked import StackedClassifier
    from fastsae.sweeps import sweep
    from fastsae.topk import TopKEncoder
    from fastsae.transcoder import Transcoder
    from fastsae.variational import VariationalAutoencoder

__version__ = "0.1.0"

# Where each public name lives: a module is imported when its name is first used, so that scikit-learn loads only
# with an estimator.
_HOMES = {
    "AnomalyDetector": "anomaly",
    "BatchTopKSAE": "saes",
    "Config": "config",
    "ConvAutoencoder": "conv",
    "ConvConfig": "image_layers",
    "ConvTransposeConfig": "image_layers",
    "DenoisingAutoencoder": "denoising",
    "ContractiveAutoencoder": "contractive",
    "DeepAutoencoder": "deep",
    "Engine": "engine",
    "GatedSAE": "saes",
    "GaussianConfig": "config",
    "JumpReLUSAE": "saes",
    "L1SAE": "saes",
    "LayerConfig": "config",
    "MatryoshkaSAE": "saes",
    "PoolConfig": "image_layers",
    "ReshapeConfig": "image_layers",
    "SparseAutoencoder": "estimators",
    "SparseCodeConfig": "sparse_code",
    "StackedClassifier": "stacked",
    "TopKEncoder": "topk",
    "TopKSAE": "saes",
    "TrainingConfig": "config",
    "Transcoder": "transcoder",
    "UnpoolConfig": "image_layers",
    "UpsampleConfig": "image_layers",
    "VariationalAutoencoder": "variational",
    "check_gradient": "gradient_check",
    "cuda_blas": "cuda",
    "cuda_unavailable_reason": "process",
    "devices": "process",
    "get_num_threads": "process",
    "load": "checkpoint",
    "set_num_threads": "process",
    "sweep": "sweeps",
}
_MODULES = ("formats", "metrics", "plots", "reference")

__all__ = [
    "L1SAE",
    "AnomalyDetector",
    "BatchTopKSAE",
    "Config",
    "ContractiveAutoencoder",
    "ConvAutoencoder",
    "ConvConfig",
    "ConvTransposeConfig",
    "DeepAutoencoder",
    "DenoisingAutoencoder",
    "DeviceArray",
    "DeviceError",
    "Engine",
    "GatedSAE",
    "GaussianConfig",
    "JumpReLUSAE",
    "LayerConfig",
    "MatryoshkaSAE",
    "PoolConfig",
    "ReshapeConfig",
    "SparseAutoencoder",
    "SparseCodeConfig",
    "StackedClassifier",
    "TopKEncoder",
    "TopKSAE",
    "TrainingConfig",
    "Transcoder",
    "UnpoolConfig",
    "UpsampleConfig",
    "VariationalAutoencoder",
    "check_gradient",
    "cuda_blas",
    "cuda_unavailable_reason",
    "devices",
    "formats",
    "get_num_threads",
    "load",
    "metrics",
    "plots",
    "reference",
    "set_num_threads",
    "sweep",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        value = getattr(importlib.import_module(f"fastsae.{_HOMES[name]}"), name)
    elif name in _MODULES:
        value = importlib.import_module(f"fastsae.{name}")
    else:
        raise AttributeError(f"module 'fastsae' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
