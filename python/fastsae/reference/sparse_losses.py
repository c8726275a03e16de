"""The parts of a sparse code's cost J. Each adds its derivatives to the slopes and returns its value.

:mod:`fastsae.sparse_code` has the formulas. B rows of a batch, d inputs, o outputs, n latents.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from fastsae.reference.activations import Array
from fastsae.reference.sparse_activations import Mask, directions, largest_of_rows, row_norms
from fastsae.sparse_code import TARGETING, SparseCodeConfig


class Batch(NamedTuple):
    """What a step knows of its rows."""

    t: int  # number of the step, from 1
    x: Array  # [B, d]
    y: Array  # [B, o], what the output should be
    u: Array  # [B], shares of the rows
    projected: Array  # [B, n], x~ W_enc'
    z: Array  # [B, n], pre-activations; of gated those of the gate, pi
    a: Array  # [B, n], coefficients of the rows of W_dec
    on: Array  # [B, n], 1 where a latent is active; a jump counts these
    scores: Array  # [B, n], by which the largest are found
    outputs: Sequence[Array]  # [B, o] of each prefix
    dead: Mask  # [n]
    residual: Array  # [B, o], y - y^; a constant of the auxiliary loss
    data_variance: float  # of ``fvu_data``


#: Kinds of sparsity that count active latents.
COUNTING = ("step", *TARGETING)


@dataclasses.dataclass
class Slopes:
    """Derivatives of J that have been added up so far."""

    a: Array  # [B, n], by the coefficients
    on: Array  # [B, n], by the number that says whether a latent is active
    z: Array  # [B, n], by the pre-activations, past the activation
    parameters: dict[str, Array]


Parameters = Mapping[str, Array]


def reconstruction(config: SparseCodeConfig, p: Parameters, batch: Batch, slopes: Slopes) -> float:
    """R: the errors of all prefixes."""
    W, value, share = p["W_dec"], 0.0, share_of(config, config.loss_reduction, batch)
    for (m, omega), output in zip(prefixes(config), batch.outputs, strict=True):
        error = output - batch.y
        value += omega * share * mean_square(batch.u, error)
        delta = 2.0 * omega * share * batch.u[:, None] * error  # dJ/dy^
        slopes.a[:, :m] += delta @ W[:m].T
        slopes.parameters["W_dec"][:m] += batch.a[:, :m].T @ delta
        slopes.parameters["b_dec"] += delta.sum(axis=0)
        if config.skip:
            slopes.parameters["W_skip"] += delta.T @ batch.x
    return value


def sparsity(config: SparseCodeConfig, p: Parameters, batch: Batch, slopes: Slopes) -> float:
    """Omega times its weight in this step."""
    if config.sparsity == "none":
        return 0.0
    weight, kind = float(config.sparsity_weight), config.sparsity
    if config.sparsity_warm_up:
        weight *= min(1.0, (batch.t - 1) / config.sparsity_warm_up)
    return weight * (_of_count if kind in COUNTING else _of_size)(config, p, batch, slopes, weight)


def _of_count(config: SparseCodeConfig, p: Parameters, batch: Batch, slopes: Slopes, weight: float) -> float:
    """Of how many latents are active."""
    counts = batch.on.sum(axis=1, keepdims=True)
    l0: Array = counts if config.sparsity == "quadratic_rows" else batch.u[None] @ counts  # of each row, or the mean
    value, slope = l0, np.ones_like(l0)
    if config.target_l0 is not None:
        off = l0 / float(config.target_l0) - 1.0
        value, slope = off**2, 2.0 * off / float(config.target_l0)
    slopes.on += weight * slope * batch.u[:, None]
    return float((batch.u[:, None] * value).sum())


def _of_size(config: SparseCodeConfig, p: Parameters, batch: Batch, slopes: Slopes, weight: float) -> float:
    """Of how large coefficients are, or what opens a gate, times the norms of their rows of W_dec."""
    W, u, gated = p["W_dec"], batch.u[:, None], config.activation == "gated"
    f = np.maximum(batch.z, 0.0) if gated else batch.a
    q = row_norms(W) if config.sparsity_by_norm else np.ones_like(row_norms(W))
    if config.sparsity == "l1":
        values, by_f, by_q = f * q, np.broadcast_to(q, f.shape), f
    else:
        c = float(config.tanh_scale)
        values = np.tanh(c * f * q)
        by_f, by_q = c * q * (1.0 - values**2), c * f * (1.0 - values**2)
    if gated:
        slopes.z += weight * u * by_f * (batch.z > 0)
    else:
        slopes.a += weight * u * by_f
    if config.sparsity_by_norm:
        slopes.parameters["W_dec"] += weight * (u * by_q).sum(axis=0)[:, None] * directions(W)
    return float((u * values).sum())


def pre_act(config: SparseCodeConfig, p: Parameters, batch: Batch, slopes: Slopes) -> float:
    """Pulls dead latents of a jump up to their thresholds."""
    weight = float(config.pre_act_weight)
    if weight == 0.0:
        return 0.0
    W, u = p["W_dec"], batch.u[:, None]
    below = np.maximum(p["threshold"] - batch.z, 0.0) * batch.dead
    pull = weight * u * row_norms(W) * (below > 0)
    slopes.z -= pull
    slopes.parameters["threshold"] += pull.sum(axis=0)
    slopes.parameters["W_dec"] += weight * (u * below).sum(axis=0)[:, None] * directions(W)
    return weight * float((u * below * row_norms(W)).sum())


def gate(config: SparseCodeConfig, p: Parameters, batch: Batch, slopes: Slopes) -> float:
    """The gate's own reconstruction, from which it learns: no slope goes through a step."""
    if config.activation != "gated":
        return 0.0
    W, scale = p["W_dec"], float(config.gate_weight) * share_of(config, config.loss_reduction, batch)
    opened = np.maximum(batch.z, 0.0)
    error = opened @ W + p["b_dec"] - batch.y
    delta = 2.0 * scale * batch.u[:, None] * error
    slopes.z += (delta @ W.T) * (batch.z > 0)
    if not config.gate_detached:
        slopes.parameters["W_dec"] += opened.T @ delta
        slopes.parameters["b_dec"] += delta.sum(axis=0)
    return scale * mean_square(batch.u, error)


def revival(config: SparseCodeConfig, p: Parameters, batch: Batch, slopes: Slopes) -> float:
    """AuxK: dead latents reconstruct what the others leave (Gao et al. 2024, appendix A.2)."""
    n_dead, k0 = int(batch.dead.sum()), int(config.core()["aux_k"])
    if not config.selects or n_dead == 0:
        return 0.0
    scale = float(config.aux_weight) * share_of(config, config.aux_reduction, batch)
    if config.aux_share:
        scale *= min(n_dead / k0, 1.0)
    kept = largest_of_rows(np.where(batch.dead, batch.scores, -np.inf), min(k0, n_dead))
    if config.aux_relu:
        kept &= batch.scores > 0
    # What ranks at 0 counts for nothing: a norm of 0 has no direction.
    coefficients, W = np.where(batch.scores == 0, 0.0, batch.z) * kept, p["W_dec"]
    error = coefficients @ W - batch.residual
    delta = 2.0 * scale * batch.u[:, None] * error
    slopes.z += (delta @ W.T) * kept
    slopes.parameters["W_dec"] += coefficients.T @ delta
    return scale * mean_square(batch.u, error)


def prefixes(config: SparseCodeConfig) -> list[tuple[int, float]]:
    """Width and weight of each."""
    core = config.core()
    return list(zip(core["prefixes"], core["prefix_weights"], strict=True))


def share_of(config: SparseCodeConfig, reduction: str, batch: Batch) -> float:
    """1 over what a sum of squares is divided by; 0 where that is a variance of 0."""
    if reduction == "fvu_data":
        return 1.0 / batch.data_variance if batch.data_variance > 0 else 0.0
    if reduction in ("fvu", "residual"):
        variance = variance_of(batch.u, batch.y if reduction == "fvu" else batch.residual)
        return 1.0 / variance if variance > 0 else 0.0
    return {"sum": 1.0, "mean": 1.0 / config.output_width, "ufldl": 0.5}[reduction]


def variance_of(u: Array, values: Array) -> float:
    """``sum_b u_b |values_b - mean|^2``; 0 where it is no more than what rounding leaves of equal rows."""
    variance, rounding = mean_square(u, values - u @ values), (16.0 * float(np.finfo(values.dtype).eps)) ** 2
    return variance if variance > rounding * mean_square(u, values) else 0.0


def mean_square(u: Array, values: Array) -> float:
    """``sum_b u_b |values_b|^2``."""
    return float(u @ (values**2).sum(axis=1))
