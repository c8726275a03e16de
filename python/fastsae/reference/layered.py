"""The layered autoencoder: cost, hand-written gradient and training step.

Layers are numbered 1 ... L. Layer l computes ``z_l = a_{l-1} W_l' + b_l`` and ``a_l = f_l(z_l)`` where
``a_0`` is the input X and ``a_L`` the reconstruction. Rows of X are samples and rows of ``W_l`` are units.
:mod:`fastsae.config` says what every option means.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from fastsae.config import Config, GaussianConfig, LayerConfig
from fastsae.reference.activations import OUTPUT_ACTIVATIONS, Activation, Array
from fastsae.reference.contraction import Contraction, contract
from fastsae.reference.corruption import corrupt
from fastsae.reference.layers import LAYERS
from fastsae.reference.losses import Loss, factor, loss_of
from fastsae.reference.optimizers import OPTIMIZERS, StepScalars, clip_factor
from fastsae.reference.parameters import Parameters
from fastsae.reference.penalties import PENALTIES, KlPenalty
from fastsae.reference.random import Noise
from fastsae.reference.variational import GaussianCode
from fastsae.reference.winners import keep_winners


class _Batch(NamedTuple):
    """What a step knows of its rows."""

    x: Array  # [N, d] as the first layer reads it
    target: Array  # [N, outputs]
    weight: Array  # [N, outputs] of the elements of the loss
    share: Array  # [N]
    noise: Noise
    layers: list[tuple[Array, Array]]  # (z, a) of every layer


class Layered(Parameters):
    """Backpropagation through fully connected layers (CS294A notes, sections 2 and 3).

    Parameters
    ----------
    config : Config
        The model and its optimiser; ``config.dtype`` is not read.
    dtype : {"float64", "float32"}
        Type of every array.

    Attributes
    ----------
    parameters : dict of str to array
        ``W1 [units_1, inputs_1]``, ``b1 [units_1]``, ``W2``, ...; all zero at first. With tied weights the
        second half of the layers has no W: layer l uses ``W_{L+1-l}`` transposed.
    first_moment, second_moment : dict of str to array
        State of the optimiser by parameter; empty where it keeps none.
    rho_hat : dict of int to array
        Moving average of the activations, before the map to (0, 1), of each layer with a KL penalty under
        ``rho_hat="ema"``: layer number -> [units]. Empty before the first step.
    steps : int
        Number of optimiser steps taken.
    total_steps : int or None
        Where a cosine schedule ends, unless the config says it.
    noise_seed, epoch : int
        Of the noise that a step draws.
    """

    config: Config

    def __init__(self, config: Config, dtype: str = "float64") -> None:
        config.validate()
        super().__init__(config, config.parameter_shapes, dtype)
        self.depth = len(config.layers)
        shapes = config.shapes
        self.ops = [
            LAYERS[layer.kind](layer, *shapes[i : i + 2])  # the input's shape and the output's
            for i, layer in enumerate(config.layers)
        ]
        for number, pool in config.places_of.items():
            self.ops[number - 1].pool = self.ops[pool - 1]  # type: ignore[attr-defined]
        self.rho_hat: dict[int, Array] = {}
        self.steps = 0
        self.total_steps: int | None = None
        self.noise_seed = self.epoch = 0

    def forward(self, X: ArrayLike) -> list[tuple[Array, Array]]:
        """``(z_l, a_l)`` of every layer, each [N, units_l]; `X` is [N, d]."""
        return self._run(X, range(1, self.depth + 1))

    def encode(self, X: ArrayLike) -> Array:
        """The code [N, units] of `X` [N, d]: ``a_l`` of layer l = ``config.code_layer``."""
        layers = self._run(X, range(1, self.config.code_layer + 1))
        return layers[-1][1] if layers else np.asarray(X, self.dtype)

    def decode(self, H: ArrayLike) -> Array:
        """The reconstruction [N, d] from a code `H` [N, units]."""
        layers = self._run(H, range(self.config.code_layer + 1, self.depth + 1))
        return layers[-1][1] if layers else np.asarray(H, self.dtype)

    def reconstruct(self, X: ArrayLike) -> Array:
        """The reconstruction [N, d] of `X` [N, d]."""
        return self.forward(X)[-1][1]

    def row_losses(self, X: ArrayLike, targets: ArrayLike | None = None) -> Array:
        """Loss of each row of `X` [N, d] against `targets` [N, outputs] or X, reduced over features: [N]."""
        target = np.asarray(X if targets is None else targets, self.dtype)
        return self._row_losses(target, self.forward(X)[-1], np.ones_like(target))

    def evaluate(
        self,
        X: ArrayLike,
        sample_weight: ArrayLike | None = None,
        *,
        targets: ArrayLike | None = None,
        numbers: ArrayLike | None = None,
    ) -> dict[str, float]:
        """The parts of J on `X` [N, d]; KL takes the mean over the given rows, also under ``rho_hat="ema"``.

        Parameters
        ----------
        X : array [N, d]
        sample_weight : array [N], optional
            Weights w; only the shares ``w / W`` matter.
        targets : array [N, outputs], optional
            What the output should be; None means X.
        numbers : array of int [N], optional
            Which row of the data set each one is: its noise. None means 0, 1, ...

        Returns
        -------
        dict
            ``reconstruction``, ``penalty``, ``decay`` and their sum ``loss``.
        """
        batch = self._batch(X, sample_weight, targets, numbers)
        penalty = self._contraction(batch).value
        for number, (z, a) in enumerate(batch.layers[:-1], start=1):
            penalty += self._penalty(number, a, batch.share)[0] + self._code_cost(number, z, batch.share)[0]
        return self._parts(batch, penalty)

    def value_and_gradient(
        self,
        X: ArrayLike,
        sample_weight: ArrayLike | None = None,
        *,
        targets: ArrayLike | None = None,
        numbers: ArrayLike | None = None,
    ) -> tuple[dict[str, float], dict[str, Array]]:
        """The parts of J as a training step sees it, and the gradient of J by parameter name.

        Under ``rho_hat="ema"`` the penalty is taken at the moving average that includes this batch, and its
        gradient leaves out the factor ``1 - d``. No state is changed.

        Parameters
        ----------
        X : array [N, d]
        sample_weight, targets, numbers : optional
            As for `evaluate`.

        Returns
        -------
        parts : dict
            As from `evaluate`.
        gradients : dict of str to array
            Shaped as `parameters`.
        """
        return self._backward(self._batch(X, sample_weight, targets, numbers))

    def step(
        self,
        X: ArrayLike,
        sample_weight: ArrayLike | None = None,
        *,
        targets: ArrayLike | None = None,
        numbers: ArrayLike | None = None,
    ) -> dict[str, float]:
        """Update the parameters once from the batch `X` [N, d]; the parts of J before the update."""
        batch = self._batch(X, sample_weight, targets, numbers)
        share, layers = batch.share, batch.layers
        parts, gradients = self._backward(batch)
        for number in range(1, self.depth):
            if self.config.rho_hat == "ema" and self._has_kl(number):
                self.rho_hat[number] = self._moving_mean(number, layers[number - 1][1], share)
        self.steps += 1
        clip = clip_factor(self.config, gradients)
        for name, gradient in gradients.items():
            decay = self._decay(name) if name.startswith("W") else 0.0
            scalars = StepScalars.at(self.config, self.steps, decay, self.total_steps)
            self._update(name, clip * gradient, scalars)
        return parts

    def _batch(
        self, X: ArrayLike, sample_weight: ArrayLike | None, targets: ArrayLike | None, numbers: ArrayLike | None
    ) -> _Batch:
        X = np.asarray(X, self.dtype)
        target = X if targets is None else np.asarray(targets, self.dtype)
        noise = Noise(self.noise_seed, self.epoch, np.arange(len(X)) if numbers is None else numbers)
        x, weight = corrupt(self.config, X, target, noise)
        share = self._share(len(X), sample_weight)
        layers = self._train(x, noise, share)
        return _Batch(x, target, weight, share, noise, layers)

    def _backward(self, batch: _Batch) -> tuple[dict[str, float], dict[str, Array]]:
        config, share, layers = self.config, batch.share, batch.layers
        gradients = {name: np.zeros_like(value) for name, value in self.parameters.items()}
        contraction = self._contraction(batch)
        penalty = contraction.value
        # delta [N, units] is dJ/dz of one layer: of the output first, then layer by layer down to the input.
        z, y = layers[-1]
        scale = factor(config.loss, config.loss_reduction, config.output_width)
        slope = self._loss().delta(batch.target, z, y, self._activation(self.depth).slope(y))
        delta: Array = share[:, None] * scale * batch.weight * slope
        for number in range(self.depth, 0, -1):
            below = layers[number - 2][1] if number > 1 else batch.x
            if self._has_weights(number):
                gradient = self.ops[number - 1].weight_gradient(below, delta)
                turned = self._is_tied(number) and self.ops[number - 1].transposes_tied
                gradient = gradient.T if turned else gradient
                gradients[self._weight_name(number)][: len(gradient)] += gradient
                gradients[f"b{number}"] = self._by_position(number, delta).sum(axis=(0, 2))
            if number > 1:
                through = self.ops[number - 1].backward(delta, self._weight(number))
                code = self._code(number - 1)
                if code is not None:
                    moments = layers[number - 2][0]
                    value, pull = self._code_cost(number - 1, moments, share)
                    delta = code.backward(through, moments, below, share[:, None] * pull)
                else:
                    value, pull = self._penalty(number - 1, below, share, moving=config.rho_hat == "ema")
                    through = through + share[:, None] * pull
                    delta = through * self._activation(number - 1).slope(below)
                penalty += value
                delta = delta + contraction.deltas.get(number - 1, 0.0)
        for name, gradient in contraction.gradients.items():
            gradients[name] += gradient
        for name in self._weight_names():
            if not OPTIMIZERS[config.optimizer].decoupled_decay:
                gradients[name] += self._decay(name) * self.parameters[name]
            gradients[name] += self._l1(name) * np.sign(self.parameters[name])
        return self._parts(batch, penalty), gradients

    def _contraction(self, batch: _Batch) -> Contraction:
        return contract(self.config, self.parameters, batch.x, batch.layers, batch.share, batch.noise)

    def _penalty(self, number: int, a: Array, share: Array, moving: bool = False) -> tuple[float, Array]:
        """Penalty of layer `number` times beta; its derivative by ``share_i a_ij``, broadcast to [N, size].

        A map counts as one unit, whose activation is the mean over its positions, or each position as one.
        """
        layer = self._layer(number)
        if self._code(number) or not self._has_weights(number) or layer.penalty == "none" or layer.beta == 0:
            return 0.0, np.zeros_like(a)
        beta, penalty = float(layer.beta), PENALTIES[layer.penalty]
        channels, height, width = self.ops[number - 1].out_shape
        positions = 1 if self._per_position(number) else height * width  # of a unit
        if not isinstance(penalty, KlPenalty):
            value = beta / positions * float(share @ penalty.value(a).sum(axis=1))
            return value, beta / positions * penalty.slope(a)
        mean = self._moving_mean(number, a, share) if moving else self._mean(number, a, share)
        # From (low, high) to (0, 1): the chain rule gives 1 / (high - low), which is 1/2 for tanh.
        activation, rho = self._activation(number), float(layer.rho)
        width_of = activation.high - activation.low
        q = (mean - activation.low) / width_of
        pull = beta / width_of / positions * penalty.slope(q, rho)  # [units]
        # From position by position to map by map, where each is a unit.
        pull = pull.reshape(-1, channels).T.ravel() if positions == 1 else np.repeat(pull, positions)
        return beta * float(penalty.value(q, rho).sum()), pull

    def _code_cost(self, number: int, moments: Array, share: Array) -> tuple[float, Array]:
        """The cost of layer `number` if it is a Gaussian code, and its slope by each latent's mean divergence."""
        code = self._code(number)
        return (0.0, np.zeros(0)) if code is None else code.cost(moments, share, self.epoch)

    def _code(self, number: int) -> GaussianCode | None:
        layer = self.config.layers[number - 1]
        return GaussianCode(layer) if isinstance(layer, GaussianConfig) else None

    def _mean(self, number: int, a: Array, share: Array) -> Array:
        """Mean activation of each unit over the rows and its positions, [units].

        Where each position is a unit, those of the first position come first.
        """
        maps = self._by_position(number, a)
        units = np.swapaxes(maps, 1, 2).reshape(len(a), -1) if self._per_position(number) else maps.mean(axis=2)
        means: Array = np.tensordot(share, units, axes=1)
        return means

    def _moving_mean(self, number: int, a: Array, share: Array) -> Array:
        """The moving average [units] of the activations after this batch; the first batch mean starts it."""
        if number not in self.rho_hat:
            return self._mean(number, a, share)
        d = float(self.config.rho_hat_decay)
        return d * self.rho_hat[number] + (1.0 - d) * self._mean(number, a, share)

    def _by_position(self, number: int, values: Array) -> Array:
        """Values of the output of layer `number`, which has weights, as [N, channels, positions]."""
        return values.reshape(len(values), len(self.parameters[f"b{number}"]), -1)

    def _parts(self, batch: _Batch, penalty: float) -> dict[str, float]:
        decay = 0.0
        for name in self._weight_names():
            if not OPTIMIZERS[self.config.optimizer].decoupled_decay:
                decay += self._decay(name) / 2.0 * float((self.parameters[name] ** 2).sum())
            decay += self._l1(name) * float(np.abs(self.parameters[name]).sum())
        losses = self._row_losses(batch.target, batch.layers[-1], batch.weight)
        reconstruction = float(batch.share @ losses)
        return {
            "reconstruction": reconstruction,
            "penalty": penalty,
            "decay": decay,
            "loss": reconstruction + penalty + decay,
        }

    def _row_losses(self, target: Array, output: tuple[Array, Array], weight: Array) -> Array:
        scale = factor(self.config.loss, self.config.loss_reduction, self.config.output_width)
        losses: Array = scale * (weight * self._loss().value(target, *output)).sum(axis=1)
        return losses

    def _loss(self) -> Loss:
        return loss_of(self.config.loss, self._layer(self.depth).activation)

    def _train(self, x: Array, noise: Noise, share: Array) -> list[tuple[Array, Array]]:
        """`forward` as the cost sees it: codes are drawn, and rows of these shares compete where winners take all."""
        return self._run(x, range(1, self.depth + 1), noise, share)

    def _run(
        self, X: ArrayLike, numbers: range, noise: Noise | None = None, share: Array | None = None
    ) -> list[tuple[Array, Array]]:
        a: Array = np.asarray(X, self.dtype)
        layers: list[tuple[Array, Array]] = []
        for number in numbers:
            z = self.ops[number - 1].forward(a, self._weight(number))
            if self._has_weights(number):
                positions = z.shape[1] // len(self.parameters[f"b{number}"])
                z = z + np.repeat(self.parameters[f"b{number}"], positions)
            code = self._code(number)
            if code is None:
                a = self._activation(number).value(z)
            else:
                a = code.mean(z) if noise is None else code.sample(z, noise)
            layer = self._layer(number)
            if share is not None and self._has_weights(number) and not code and layer.winners:
                maps = self._by_position(number, a)
                a = keep_winners(maps, share, layer.winners, float(layer.lifetime)).reshape(a.shape)
            layers.append((z, a))
        return layers

    def _share(self, n_rows: int, sample_weight: ArrayLike | None) -> Array:
        """Share ``w_i / W`` of each row in every mean, [N]."""
        w = np.ones(n_rows, self.dtype) if sample_weight is None else np.asarray(sample_weight, self.dtype)
        if w.shape != (n_rows,):
            raise ValueError(f"sample_weight: expected shape {(n_rows,)}, got {w.shape}")
        return w / float(w.sum())

    def _layer(self, number: int) -> LayerConfig:
        """The options of a layer with weights; other kinds have the same names for what they share with a dense one."""
        return self.config.layers[number - 1]  # type: ignore[return-value]

    def _activation(self, number: int) -> Activation:
        return OUTPUT_ACTIVATIONS[getattr(self._layer(number), "activation", "identity")]

    def _has_weights(self, number: int) -> bool:
        return f"b{number}" in self.parameters

    def _is_tied(self, number: int) -> bool:
        return self.config.tied and 2 * number > self.depth

    def _weight(self, number: int) -> Array | None:
        """W of layer `number`, [units, inputs] of a dense one; None without weights."""
        if not self._has_weights(number):
            return None
        weight = self.parameters[self._weight_name(number)]
        if self._is_tied(number) and self.ops[number - 1].transposes_tied:
            # Of a Gaussian code only the weights of the means, which come first.
            weight = weight[: self.config.widths[number - 1]].T
        return weight

    def _weight_name(self, number: int) -> str:
        return f"W{self.depth + 1 - number if self._is_tied(number) else number}"

    def _weight_names(self) -> list[str]:
        return [name for name in self.parameters if name.startswith("W")]

    def _decay(self, name: str) -> float:
        """The decay of the weights of that name."""
        own = self._layer(int(name[1:])).weight_decay
        return float(self.config.weight_decay if own is None else own)

    def _l1(self, name: str) -> float:
        """The L1 penalty of the weights of that name."""
        own = self._layer(int(name[1:])).weight_l1
        return float(self.config.weight_l1 if own is None else own)

    def _per_position(self, number: int) -> bool:
        return bool(getattr(self._layer(number), "per_position", False))

    def _has_kl(self, number: int) -> bool:
        layer = self._layer(number)
        return self._has_weights(number) and getattr(layer, "penalty", "none") == "kl" and layer.beta > 0
