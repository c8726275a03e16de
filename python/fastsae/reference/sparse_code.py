"""The sparse code: cost, hand-written gradient and training step of overcomplete dictionaries.

:mod:`fastsae.sparse_code` says what every option means. B rows of a batch, d inputs, o outputs, n latents.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import ArrayLike

from fastsae.reference.activations import Array
from fastsae.reference.moments import MATRICES, chances, kept
from fastsae.reference.optimizers import Moments, StepScalars, clip_factor
from fastsae.reference.parameters import Parameters
from fastsae.reference.sparse_activations import directions, k_at, largest_of_batch, largest_of_rows, row_norms, window
from fastsae.reference.sparse_losses import (
    Batch,
    Slopes,
    gate,
    mean_square,
    pre_act,
    prefixes,
    reconstruction,
    revival,
    sparsity,
    variance_of,
)
from fastsae.sparse_code import SparseCodeConfig


class SparseCode(Parameters):
    """A wide dictionary of which few latents are active, and one step of its training.

    Parameters
    ----------
    config : SparseCodeConfig
        The model and its optimiser; ``config.dtype`` is not read.
    dtype : {"float64", "float32"}
        Type of every array, states excepted.

    Attributes
    ----------
    parameters : dict of str to array
        ``W_enc [n, d]``, ``b_enc [n]``, ``W_dec [n, o]``, ``b_dec [o]``, and of some models ``threshold``, ``b_gate``,
        ``b_mag``, ``r_mag [n]``, ``W_skip [o, d]``; all zero at first.
    first_moment, second_moment : dict of str to array
        State of the optimiser by parameter; empty where it keeps none. Of W_enc and W_dec what
        ``config.state_precision`` leaves of it.
    rows_since_fired : array [n]
        Rows of the steps since each latent was last active.
    fired_rows : array [n]
        Rows of all steps in which each latent was active.
    batch_threshold : float
        What inference of ``batch_topk`` takes instead of the batch; -1 before the first.
    data_variance : float
        What ``loss_reduction="fvu_data"`` divides by; 1 until it is set.
    monitor : array [6]
        Sums over the steps: rows, active elements of their codes, ``w_b |y^_b - y_b|^2``, ``w_b |y_b - ybar|^2`` with
        the mean of each batch, and of each batch ``sum w`` times its auxiliary loss and its weighted Omega.
    noise_seed : int
        Of the chances by which moments in few bits are rounded.
    steps : int
        Number of optimiser steps taken.
    total_steps : int or None
        Where a cosine schedule ends, unless the config says it.
    """

    config: SparseCodeConfig

    def __init__(self, config: SparseCodeConfig, dtype: str = "float64") -> None:
        config.validate()
        self.noise_seed = self.steps = 0
        super().__init__(config, config.parameter_shapes, dtype)
        self.rows_since_fired = np.zeros(config.n_latents)
        self.fired_rows = np.zeros(config.n_latents)
        self.batch_threshold = -1.0 if config.threshold_start is None else float(config.threshold_start)
        self.data_variance = 1.0
        self.monitor = np.zeros(6)
        self.total_steps: int | None = None

    # Inference

    def encode(self, X: ArrayLike) -> Array:
        """The code [N, n] of `X` [N, d], each row by itself: ``a s``."""
        _, a, _ = self._activate(self._project(np.asarray(X, self.dtype)), self.config.k)
        return a * self._scale()

    def decode(self, C: ArrayLike) -> Array:
        """The output [N, o] from a code `C` [N, n]: ``b_dec + (c / s) W_dec``, without what a skip adds."""
        s = self._scale()
        a = np.asarray(C, self.dtype) / np.where(s > 0, s, 1.0).astype(self.dtype)
        outputs: Array = a @ self.parameters["W_dec"] + self.parameters["b_dec"]
        return outputs

    def reconstruct(self, X: ArrayLike) -> Array:
        """The output [N, o] of `X` [N, d]."""
        X = np.asarray(X, self.dtype)
        return self.decode(self.encode(X)) + self._skipped(X)

    def row_losses(self, X: ArrayLike, targets: ArrayLike | None = None) -> Array:
        """``|y^ - y|^2 / D`` of each row: [N]. ``fvu``, whose divisor is that of a batch, takes D = 1 here."""
        y = np.asarray(X if targets is None else targets, self.dtype)
        divisor = {"mean": float(self.config.output_width), "ufldl": 2.0}.get(self.config.loss_reduction, 1.0)
        losses: Array = ((self.reconstruct(X) - y) ** 2).sum(axis=1) / divisor
        return losses

    # Training

    def evaluate(
        self, X: ArrayLike, sample_weight: ArrayLike | None = None, *, targets: ArrayLike | None = None
    ) -> dict[str, float]:
        """The parts of J on `X` [B, d] as the next step would see it.

        Parameters
        ----------
        X : array [B, d]
        sample_weight : array [B], optional
            Weights w; only the shares ``u = w / sum w`` matter.
        targets : array [B, o], optional
            What the output should be; None means X.

        Returns
        -------
        dict
            ``reconstruction``, ``sparsity``, ``auxiliary``, and their sum ``loss``.
        """
        return self.value_and_gradient(X, sample_weight, targets=targets)[0]

    def value_and_gradient(
        self, X: ArrayLike, sample_weight: ArrayLike | None = None, *, targets: ArrayLike | None = None
    ) -> tuple[dict[str, float], dict[str, Array]]:
        """The parts of J as the next step sees it, and the gradient of J by parameter name. Nothing is changed.

        Parameters
        ----------
        X, sample_weight, targets
            As for `evaluate`.

        Returns
        -------
        parts : dict
            As from `evaluate`.
        gradients : dict of str to array
            Shaped as `parameters`.
        """
        return self._backward(self._batch(X, sample_weight, targets))

    def step(
        self, X: ArrayLike, sample_weight: ArrayLike | None = None, *, targets: ArrayLike | None = None
    ) -> dict[str, float]:
        """Update the parameters and the states once from the batch `X` [B, d]; the parts of J before the update."""
        batch = self._batch(X, sample_weight, targets)
        parts, gradients = self._backward(batch)
        self._track(batch, parts, len(batch.x) if sample_weight is None else float(np.sum(sample_weight)))
        self.steps += 1
        unit = self.config.decoder_norm == "unit"
        if unit and self.config.project_gradient:
            along = directions(self.parameters["W_dec"])
            gradient = gradients["W_dec"]
            gradients["W_dec"] = gradient - (gradient * along).sum(axis=1, keepdims=True) * along
        scalars = StepScalars.at(self.config, self.steps, 0.0, self.total_steps)
        clip = clip_factor(self.config, gradients)
        for name, gradient in gradients.items():
            self._update(name, clip * gradient, scalars)
        if unit:
            self.parameters["W_dec"] = directions(self.parameters["W_dec"])
        if "threshold" in self.parameters:
            self.parameters["threshold"] = np.maximum(self.parameters["threshold"], 0.0)
        return parts

    def _keep_moments(self, name: str, moments: Moments) -> None:
        how = self.config.state_precision
        if how != "full" and name in MATRICES:
            n, columns = self.parameters[name].shape
            drawn = chances(name, (n, columns), self.noise_seed, self.steps)
            moments = tuple(
                kept(moment, which, how, chance)
                for moment, which, chance in zip(moments, ("first", "second"), drawn, strict=False)
            )
        super()._keep_moments(name, moments)

    def _track(self, batch: Batch, parts: Mapping[str, float], weight: float) -> None:
        """Who fired, what the monitor adds up, and the smallest code that was kept."""
        fired = batch.a > 0
        self.fired_rows += fired.sum(axis=0)
        self.rows_since_fired = np.where(fired.any(axis=0), 0.0, self.rows_since_fired + len(batch.a))
        losses = mean_square(batch.u, batch.residual), variance_of(batch.u, batch.y)
        weighted = [weight * value for value in (*losses, parts["auxiliary"], parts["sparsity"])]
        self.monitor += [len(fired), fired.sum(), *weighted]
        if self.config.activation == "batch_topk" and fired.any():
            smallest = float((batch.a * self._scale())[fired].min())
            d = float(self.config.threshold_decay) if self.batch_threshold >= 0 else 0.0
            self.batch_threshold = d * self.batch_threshold + (1.0 - d) * smallest

    # Forward

    def _batch(self, X: ArrayLike, sample_weight: ArrayLike | None, targets: ArrayLike | None) -> Batch:
        x = np.asarray(X, self.dtype)
        y = x if targets is None else np.asarray(targets, self.dtype)
        w = np.ones(len(x)) if sample_weight is None else np.asarray(sample_weight, np.float64)
        u = (w / w.sum()).astype(self.dtype)
        projected, t = self._project(x), self.steps + 1
        z, a, on = self._activate(projected, k_at(self.config, t), in_batch=True)
        W, skipped = self.parameters["W_dec"], self._skipped(x)
        outputs = [a[:, :m] @ W[:m] + self.parameters["b_dec"] + skipped for m, _ in prefixes(self.config)]
        after = self.config.dead_after
        dead = self.rows_since_fired > (np.inf if after is None else after)
        scores, residual = z * self._scale(), y - outputs[-1]
        return Batch(t, x, y, u, projected, z, a, on, scores, outputs, dead, residual, self.data_variance)

    def _project(self, x: Array) -> Array:
        """``x~ W_enc'``: [B, n]."""
        projected: Array = self._centred(x) @ self.parameters["W_enc"].T
        return projected

    def _activate(self, projected: Array, k: float, in_batch: bool = False) -> tuple[Array, Array, Array]:
        """Pre-activations, coefficients, and 1 where a latent is active: three arrays [B, n]."""
        activation, p = self.config.activation, self.parameters
        z: Array = projected + p["b_gate" if activation == "gated" else "b_enc"]
        scores = z * self._scale()
        if activation == "topk":
            active = largest_of_rows(scores, int(k)) & (scores > 0)
        elif activation == "batch_topk" and in_batch:
            active = largest_of_batch(scores, k)
        elif activation == "batch_topk":
            active = scores > max(self.batch_threshold, 0.0)
        else:
            active = z > p.get("threshold", 0.0)
        on: Array = active.astype(self.dtype)
        if activation == "gated":
            return z, on * np.maximum(np.exp(p["r_mag"]) * projected + p["b_mag"], 0.0), on
        return z, on * z, on

    def _centred(self, x: Array) -> Array:
        return x - self.parameters["b_dec"] if self.config.pre_bias else x

    def _skipped(self, x: Array) -> Array:
        if "W_skip" not in self.parameters:
            return np.zeros((), self.dtype)
        skipped: Array = x @ self.parameters["W_skip"].T
        return skipped

    def _scale(self) -> Array:
        """By how much scores and codes are larger than coefficients: s [n]."""
        rescale = self.config.decoder_norm == "rescale"
        return row_norms(self.parameters["W_dec"]) if rescale else np.ones(self.config.n_latents, self.dtype)

    # Backward

    def _backward(self, batch: Batch) -> tuple[dict[str, float], dict[str, Array]]:
        a, on, z = (np.zeros_like(batch.z) for _ in range(3))
        slopes = Slopes(a, on, z, {name: np.zeros_like(value) for name, value in self.parameters.items()})
        of = (self.config, self.parameters, batch, slopes)
        parts = {
            "reconstruction": reconstruction(*of),
            "sparsity": sparsity(*of),
            "auxiliary": gate(*of) + revival(*of) + pre_act(*of),
        }
        self._through_activation(batch, slopes)
        return {**parts, "loss": sum(parts.values())}, slopes.parameters

    def _through_activation(self, batch: Batch, slopes: Slopes) -> None:
        """From slopes by a, on and z to those by the parameters of the encoder."""
        p, g = self.parameters, slopes.parameters
        if self.config.activation == "gated":
            through = slopes.a * (batch.a > 0)
            g["b_gate"] += slopes.z.sum(axis=0)
            g["b_mag"] += through.sum(axis=0)
            g["r_mag"] += (through * np.exp(p["r_mag"]) * batch.projected).sum(axis=0)
            by_z = slopes.z + through * np.exp(p["r_mag"])  # by x~ W_enc'
        else:
            by_z = slopes.z + slopes.a * batch.on
            g["b_enc"] += by_z.sum(axis=0)
        if self.config.activation == "jump_relu":
            near = window(batch.z, p["threshold"], float(self.config.bandwidth))
            g["threshold"] -= (near * (p["threshold"] * slopes.a + slopes.on)).sum(axis=0)
        g["W_enc"] += by_z.T @ self._centred(batch.x)
        if self.config.pre_bias:
            g["b_dec"] -= by_z.sum(axis=0) @ p["W_enc"]
