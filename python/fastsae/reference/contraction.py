"""The contractive penalty of an encoder: its value and what it adds to the gradient.

``lambda/W sum_i w_i |J(x_i)|^2 + gamma/W sum_i w_i |J(x_i) - J(x_i + e_i)|^2`` with the Frobenius norm of J, the
Jacobian of the code by the input (Rifai et al., "Contractive auto-encoders", ICML 2011; "Higher order contractive
auto-encoder", ECML 2011, whose mean over noise e is taken with one draw here).
"""

from __future__ import annotations

import dataclasses

from numpy.typing import ArrayLike

from fastsae.config import Config
from fastsae.reference.activations import ACTIVATIONS, Activation, Array
from fastsae.reference.random import normals


@dataclasses.dataclass(frozen=True)
class Noise:
    """Where a step's random numbers come from.

    Attributes
    ----------
    seed, epoch : int
    numbers : array [N]
        Which row of the data set each one is.
    """

    seed: int
    epoch: int
    numbers: ArrayLike

    def normals(self, stream: str, like: Array) -> Array:
        """Standard normals in the shape and type of `like` [N, columns]."""
        return normals(stream, self.seed, self.epoch, self.numbers, like.shape[1]).astype(like.dtype)


@dataclasses.dataclass
class Contraction:
    """What the penalty adds to a step.

    Attributes
    ----------
    value : float
    deltas : dict of int to array
        By layer number: what is added to the derivative of J by ``z_l``, [N, units], for the penalty's direct
        dependence on it.
    gradients : dict of str to array
        By parameter name: the derivative for the direct dependence on the parameter.
    """

    value: float = 0.0
    deltas: dict[int, Array] = dataclasses.field(default_factory=dict)
    gradients: dict[str, Array] = dataclasses.field(default_factory=dict)


def contract(
    config: Config,
    parameters: dict[str, Array],
    X: Array,
    layers: list[tuple[Array, Array]],
    share: Array,
    noise: Noise,
) -> Contraction:
    """The penalty of a model on `X` [N, d], whose layers gave the ``(z_l, a_l)`` of `layers`; `share` [N] is w / W."""
    if not (config.contraction or config.contraction_hessian):
        return Contraction()
    activations = [ACTIVATIONS[layer.activation] for layer in config.layers[: config.code_layer]]  # type: ignore[attr-defined]
    if config.code_layer > 1:
        return _estimated(config, parameters, activations, X, layers, share, noise)
    return _exact(config, parameters, activations[0], X, layers[0][1], share, noise)


def _exact(
    config: Config, parameters: dict[str, Array], f: Activation, X: Array, a: Array, share: Array, noise: Noise
) -> Contraction:
    """One layer: ``J = diag(p) W`` with ``p = f'(z)``, so that ``|J|^2 = sum_j p_j^2 |W_j|^2``."""
    jacobian, hessian = float(config.contraction), float(config.contraction_hessian)
    W, b = parameters["W1"], parameters["b1"]
    squares = (W * W).sum(axis=1)
    p = f.slope(a)
    near = X + float(config.contraction_noise) * noise.normals("neighbour", X) if hessian else X
    near_a = f.value(near @ W.T + b) if hessian else a
    away = p - f.slope(near_a)
    energy = jacobian * p**2 + hessian * away**2
    pull = 2.0 * share[:, None] * squares
    near_delta = -pull * hessian * away * f.curvature(near_a)
    return Contraction(
        float(share @ (energy @ squares)),
        {1: pull * (jacobian * p + hessian * away) * f.curvature(a)},
        {"W1": 2.0 * (share @ energy)[:, None] * W + near_delta.T @ near, "b1": near_delta.sum(axis=0)},
    )


def _estimated(
    config: Config,
    parameters: dict[str, Array],
    activations: list[Activation],
    X: Array,
    layers: list[tuple[Array, Array]],
    share: Array,
    noise: Noise,
) -> Contraction:
    """Several layers: ``|J u|^2`` with u ~ N(0, I), whose mean is ``|J|^2``.

    The tangents ``t_l = f'(z_l) * v_l``, ``v_l = W_l t_{l-1}``, go through the layers from ``t_0 = u``.
    """
    tangents, moves = [noise.normals("direction", X)], []
    for number, f in enumerate(activations, 1):
        moves.append(tangents[-1] @ parameters[f"W{number}"].T)
        tangents.append(f.slope(layers[number - 1][1]) * moves[-1])
    scale = float(config.contraction) * share
    result = Contraction(float(scale @ (tangents[-1] ** 2).sum(axis=1)))
    error = 2.0 * scale[:, None] * tangents[-1]  # the derivative by t_l, from the code downwards
    for number in range(len(activations), 0, -1):
        f, a = activations[number - 1], layers[number - 1][1]
        result.deltas[number] = f.curvature(a) * moves[number - 1] * error
        back = f.slope(a) * error
        result.gradients[f"W{number}"] = back.T @ tangents[number - 1]
        error = back @ parameters[f"W{number}"]
    return result
