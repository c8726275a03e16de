"""The contractive autoencoder with one hidden layer."""

from __future__ import annotations

import os
from typing import Any

from fastsae.config import Config, LayerConfig, TrainingConfig
from fastsae.estimators import SparseAutoencoder
from fastsae.trainer import Callback


class ContractiveAutoencoder(SparseAutoencoder):
    """The contractive autoencoder (Rifai et al., "Contractive auto-encoders", ICML 2011), also of second order.

    A code that hardly moves when its input does is learned by a penalty on the Jacobian ``J(x) = dh(x)/dx`` of the code
    ``h(x) = f(W x + b)``. With ``y = g(W' h(x) + c)`` it minimises, over N rows,

    ``1/(2N) sum |y - x|^2 + contraction/N sum |J(x)|^2 + contraction_hessian/N sum |J(x) - J(x + e)|^2``

    where ``|J(x)|^2 = sum_j f'(z_j)^2 |W_j|^2`` is the squared Frobenius norm, and ``e ~ N(0, contraction_noise^2 I)``
    is drawn anew for each row and epoch: the last term is that of the higher order contractive autoencoder, CAE+H
    (Rifai et al., ECML 2011), with one neighbour of a row. It is the :class:`fastsae.SparseAutoencoder` with other
    defaults: a sparsity penalty may be added, and whatever is not said here is said there.

    Parameters
    ----------
    n_hidden : int, default 100
        Number of hidden units.
    contraction : float
        Weight of the penalty on the Jacobian, >= 0.
    contraction_hessian : float
        Weight of the second-order penalty, >= 0; above 0 not with ``solver="lbfgs"``.
    contraction_noise : float
        Standard deviation of the neighbours, > 0.
    loss : {"squared_error", "cross_entropy"}
        ``cross_entropy``, the other loss of the paper, is for X in [0, 1].
    tied : bool
        W2 is the transpose of W1, as in the paper. Without it the code can shrink, which the penalty rewards, while the
        decoder grows.
    weight_decay : float
        lambda, >= 0; none by default.
    corruption, corruption_level, corruption_low, corruption_high, emphasis, emphasis_rest
        Noise on what the model reads in training; none by default. See :class:`fastsae.DenoisingAutoencoder`.
    penalty, rho, beta, rho_hat, rho_hat_decay
        Sparsity of the hidden layer; none by default.
    activation, output_activation, weight_l1, loss_reduction, solver, learning_rate, momentum, beta1, beta2, epsilon, \
lr_schedule, lr_warm_up, lr_start, lr_total_steps, lr_decay_steps, lr_final, lr_step_size, lr_gamma, max_grad_norm, \
batch_size, max_epochs, shuffle, validation_fraction, early_stopping, n_iter_no_change, tol, init, scale, dtype, \
precision, device, random_state, checkpoint, checkpoint_every, callback, verbose
        As for :class:`fastsae.SparseAutoencoder`.

    Attributes
    ----------
    components_, intercept_, decoder_, decoder_intercept_, history_, n_iter_, n_features_in_
        As of :class:`fastsae.SparseAutoencoder`.

    Examples
    --------
    >>> import numpy as np
    >>> from fastsae import ContractiveAutoencoder
    >>> X = np.random.default_rng(0).random((500, 20), dtype=np.float32)
    >>> cae = ContractiveAutoencoder(n_hidden=8, contraction=0.1, max_epochs=5, random_state=0).fit(X)
    >>> cae.jacobian_norm(X).shape
    (500,)
    """

    def __init__(
        self,
        n_hidden: int = 100,
        *,
        contraction: float = 0.1,
        contraction_hessian: float = Config.contraction_hessian,
        contraction_noise: float = Config.contraction_noise,
        corruption: str = Config.corruption,
        corruption_level: float = Config.corruption_level,
        corruption_low: float = Config.corruption_low,
        corruption_high: float = Config.corruption_high,
        emphasis: float = Config.emphasis,
        emphasis_rest: float = Config.emphasis_rest,
        activation: str = LayerConfig.activation,
        output_activation: str = LayerConfig.activation,
        penalty: str = LayerConfig.penalty,
        rho: float = LayerConfig.rho,
        beta: float = LayerConfig.beta,
        weight_decay: float = 0.0,
        weight_l1: float = Config.weight_l1,
        rho_hat: str = Config.rho_hat,
        rho_hat_decay: float = Config.rho_hat_decay,
        loss: str = Config.loss,
        loss_reduction: str = Config.loss_reduction,
        tied: bool = True,
        solver: str = TrainingConfig.solver,
        learning_rate: float = Config.learning_rate,
        momentum: float = Config.momentum,
        beta1: float = Config.beta1,
        beta2: float = Config.beta2,
        epsilon: float = Config.epsilon,
        lr_schedule: str = Config.lr_schedule,
        lr_warm_up: int = Config.lr_warm_up,
        lr_start: float | None = Config.lr_start,
        lr_total_steps: int | None = Config.lr_total_steps,
        lr_decay_steps: int | None = Config.lr_decay_steps,
        lr_final: float = Config.lr_final,
        lr_step_size: int = Config.lr_step_size,
        lr_gamma: float = Config.lr_gamma,
        max_grad_norm: float | None = Config.max_grad_norm,
        batch_size: int | None = TrainingConfig.batch_size,
        max_epochs: int = TrainingConfig.max_epochs,
        shuffle: bool = TrainingConfig.shuffle,
        validation_fraction: float = TrainingConfig.validation_fraction,
        early_stopping: bool = TrainingConfig.early_stopping,
        n_iter_no_change: int = TrainingConfig.n_iter_no_change,
        tol: float = TrainingConfig.tol,
        init: str = TrainingConfig.init,
        scale: str | None = TrainingConfig.scale,
        dtype: str = Config.dtype,
        precision: str = Config.precision,
        device: str = "auto",
        random_state: Any = None,
        checkpoint: str | os.PathLike[str] | None = None,
        checkpoint_every: int = 1,
        callback: Callback | None = None,
        verbose: bool = True,
    ) -> None:
        self._take(locals())
