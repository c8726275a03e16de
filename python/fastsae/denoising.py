"""The denoising autoencoder with one hidden layer."""

from __future__ import annotations

import os
from typing import Any

from fastsae.config import Config, LayerConfig, TrainingConfig
from fastsae.estimators import SparseAutoencoder
from fastsae.trainer import Callback


class DenoisingAutoencoder(SparseAutoencoder):
    """The denoising autoencoder (Vincent et al., "Stacked denoising autoencoders", JMLR 11, 2010).

    With new noise in each epoch, the rows x are corrupted to x', and ``y = g(W2 f(W1 x' + b1) + b2)`` is trained to be
    the clean x. Over N rows it minimises

    ``J = 1/(2N) sum_i sum_k e_ik (y_ik - x_ik)^2 + weight_decay/2 (|W1|^2 + |W2|^2)``

    where ``e_ik`` is `emphasis` for corrupted elements and `emphasis_rest` for the others. It is the
    :class:`fastsae.SparseAutoencoder` with other defaults: a sparsity penalty may be added, and whatever is not said
    here is said there. The noise of a row depends on `random_state`, the epoch, and the row's number in X alone.

    `history_` holds J as training sees it: of corrupted rows, also of those held out. `transform`, `reconstruct` and
    `score_samples` read rows as they are, so that ``reconstruct(X_noisy)`` removes noise.

    Parameters
    ----------
    n_hidden : int, default 100
        Number of hidden units.
    corruption : {"masking", "gaussian", "salt_and_pepper", "none"}
        ``masking`` sets elements to 0, and the others are not scaled up for it; ``gaussian`` adds normal numbers;
        ``salt_and_pepper`` sets elements to `corruption_low` or `corruption_high`, each with probability 1/2.
    corruption_level : float
        Share of the elements that are corrupted, in [0, 1], each on its own; the standard deviation of ``gaussian``.
    corruption_low, corruption_high : float
        The two values of ``salt_and_pepper``. With `scale` all noise is that of scaled rows.
    emphasis, emphasis_rest : float
        Weights of the loss on corrupted elements and on the others, >= 0; not with ``gaussian``, which has no others.
    loss : {"squared_error", "cross_entropy"}
        ``cross_entropy``, the usual loss for X in [0, 1], needs the sigmoid output.
    tied : bool
        W2 is the transpose of W1.
    solver : {"adam", "adamw", "sgd", "momentum", "nesterov", "sign_sgd"}
        Not ``lbfgs``, which needs a cost that stays the same.
    penalty, rho, beta, rho_hat, rho_hat_decay
        Sparsity of the hidden layer; none by default.
    contraction, contraction_hessian, contraction_noise
        Penalties on the Jacobian of the code; none by default.
    activation, output_activation, weight_decay, weight_l1, loss_reduction, learning_rate, momentum, beta1, beta2, \
epsilon, lr_schedule, lr_warm_up, lr_start, lr_total_steps, lr_decay_steps, lr_final, lr_step_size, lr_gamma, \
max_grad_norm, batch_size, max_epochs, shuffle, validation_fraction, early_stopping, n_iter_no_change, tol, init, \
scale, dtype, precision, device, random_state, checkpoint, checkpoint_every, callback, verbose
        As for :class:`fastsae.SparseAutoencoder`.

    Attributes
    ----------
    components_, intercept_, decoder_, decoder_intercept_, history_, n_iter_, n_features_in_
        As of :class:`fastsae.SparseAutoencoder`.

    Examples
    --------
    >>> import numpy as np
    >>> from fastsae import DenoisingAutoencoder
    >>> X = np.random.default_rng(0).random((500, 20), dtype=np.float32)
    >>> dae = DenoisingAutoencoder(n_hidden=8, corruption_level=0.2, max_epochs=5, random_state=0).fit(X)
    >>> dae.reconstruct(X).shape
    (500, 20)
    """

    def __init__(
        self,
        n_hidden: int = 100,
        *,
        corruption: str = "masking",
        corruption_level: float = Config.corruption_level,
        corruption_low: float = Config.corruption_low,
        corruption_high: float = Config.corruption_high,
        emphasis: float = Config.emphasis,
        emphasis_rest: float = Config.emphasis_rest,
        contraction: float = Config.contraction,
        contraction_hessian: float = Config.contraction_hessian,
        contraction_noise: float = Config.contraction_noise,
        activation: str = LayerConfig.activation,
        output_activation: str = LayerConfig.activation,
        penalty: str = LayerConfig.penalty,
        rho: float = LayerConfig.rho,
        beta: float = LayerConfig.beta,
        weight_decay: float = Config.weight_decay,
        weight_l1: float = Config.weight_l1,
        rho_hat: str = Config.rho_hat,
        rho_hat_decay: float = Config.rho_hat_decay,
        loss: str = Config.loss,
        loss_reduction: str = Config.loss_reduction,
        tied: bool = Config.tied,
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
