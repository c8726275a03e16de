"""The sparse autoencoder with one hidden layer."""

from __future__ import annotations

import dataclasses
import os
from typing import Any

from fastsae.base import Array
from fastsae.checks import check_integer
from fastsae.config import Config, Layer, LayerConfig, TrainingConfig
from fastsae.layered import LayeredAutoencoder
from fastsae.trainer import Callback


class SparseAutoencoder(LayeredAutoencoder):
    """The sparse autoencoder with one hidden layer (Ng, CS294A lecture notes, 2011).

    ``x_hat = g(W2 f(W1 x + b1) + b2)`` minimises, over N rows,

    ``J = 1/(2N) sum |x_hat - x|^2 + beta sum_j KL(rho || rho_hat_j) + weight_decay/2 (|W1|^2 + |W2|^2)``

    where ``rho_hat_j`` is the mean activation of hidden unit j. A sigmoid output reaches (0, 1): scale X to it, or
    take ``output_activation="identity"``.

    Parameters
    ----------
    n_hidden : int, default 100
        Number of hidden units.
    activation, output_activation : {"sigmoid", "tanh", "relu", "softplus", "identity"}
        f and g.
    penalty : {"kl", "l1", "log", "none"}
        Sparsity penalty of the hidden layer; see :class:`fastsae.LayerConfig`.
    rho : float
        Target of the mean activation for ``kl``, in (0, 1).
    beta : float
        Weight of the penalty, >= 0.
    weight_decay : float
        lambda, >= 0. Biases are not decayed. With ``solver="adamw"`` the decay is decoupled.
    weight_l1 : float
        mu, >= 0, of the penalty ``mu sum |W|``, which is part of J with every solver; biases take none.
    contraction, contraction_hessian, contraction_noise : float
        Penalties on the Jacobian of the code; see :class:`fastsae.ContractiveAutoencoder`.
    rho_hat : {"batch", "ema", "full"}
        Rows over which the mean activation is taken; ``full`` needs ``solver="lbfgs"`` or ``batch_size=None``.
    rho_hat_decay : float
        Decay of the moving average of ``ema``.
    loss : {"squared_error", "cross_entropy"}
        ``cross_entropy`` needs a sigmoid output and X in [0, 1].
    loss_reduction : {"ufldl", "sum", "mean"}
        See :class:`fastsae.Config`.
    corruption : {"none", "masking", "gaussian", "salt_and_pepper"}
        Noise on what the model reads in training, fresh in each epoch; it learns to give the clean rows back, and
        every other method reads rows as they are. Not with ``solver="lbfgs"``.
    corruption_level : float
        Share of the elements that are corrupted, in [0, 1]; the standard deviation of ``gaussian``.
    corruption_low, corruption_high : float
        The two values of ``salt_and_pepper``.
    emphasis, emphasis_rest : float
        Weights of the loss on corrupted elements and on the others; see :class:`fastsae.Config`.
    tied : bool
        W2 is the transpose of W1.
    solver : {"adam", "adamw", "sgd", "momentum", "nesterov", "sign_sgd", "lbfgs"}
        ``lbfgs`` is SciPy's L-BFGS-B over the cost and gradient of all rows.
    learning_rate, momentum, beta1, beta2, epsilon : float
        Of the mini-batch solvers, in PyTorch's form.
    lr_schedule : {"constant", "cosine", "linear", "step"}
        How the learning rate changes from step to step, after `lr_warm_up` steps in which it rises linearly; see
        :mod:`fastsae.schedules` for the formulas. Not with ``solver="lbfgs"``.
    lr_warm_up, lr_start, lr_total_steps, lr_decay_steps, lr_final, lr_step_size, lr_gamma
        Of the schedule; see :class:`fastsae.Config`. ``cosine`` and ``linear`` end with `max_epochs` unless
        `lr_total_steps` says where, which `partial_fit` needs.
    max_grad_norm : float or None
        Longest gradient of J, decay included, that the optimiser takes; a longer one is scaled down to it. Not with
        ``solver="lbfgs"`` or ``"sign_sgd"``. `gradient_norm` of the history is that before.
    batch_size : int or None
        Rows per step; None means all.
    max_epochs : int
        Passes over X, or iterations of ``lbfgs``.
    shuffle : bool
        New row order each epoch.
    validation_fraction : float
        Share of rows held out, in [0, 1).
    early_stopping : bool
        Stop when the validation loss (training loss if nothing is held out) stalls, and keep the best parameters.
    n_iter_no_change, tol
        Patience in epochs, and the least relative improvement.
    init : {"cs294a", "glorot", "he"}
        First weights.
    scale : {"zscore", "minmax", "mean_norm", "mean_square_norm"} or None
        Standardise each column of X, bring it to [0, 1], or give rows a certain length on average, before the model
        sees them, by `center_` and `scale_` of the rows of `fit` (of the first call of `partial_fit`); see
        :mod:`fastsae.scaling`. All but ``minmax`` need ``output_activation="identity"``. `reconstruct` and
        `inverse_transform` give X's own units; losses, scores and weights are those of scaled rows. X must be in host
        memory.
    dtype : {"float32", "float64"}
        Of parameters, arithmetic and outputs.
    precision : {"full", "tf32", "bf16"}
        What the factors of matrix products are rounded to, with float32: "tf32" on a GPU, "bf16" there and on a
        CPU with AVX512_BF16.
    device : {"auto", "cpu", "cuda", "cuda:N"}
        Where to compute.
    random_state : int, RandomState or None
        Seed of the first weights, the row orders, the noise and the validation split.
    checkpoint : path, optional
        File that `fit` writes every `checkpoint_every` epochs and at its end, also when it is interrupted.
        ``fastsae.load(path).resume(X)`` then goes on as if nothing had happened.
    checkpoint_every : int
        In epochs.
    callback : callable, optional
        Called after each epoch with a dict of that epoch's history; returning True ends the training.
    verbose : bool
        Show a progress bar on a terminal when training takes more than a second.

    Attributes
    ----------
    center_, scale_ : ndarray of float64, shape (n_features_in_,), or None
        The model sees ``(x - center_) / scale_``; None with ``scale=None``.
    components_ : ndarray, shape (n_hidden, n_features_in_)
        W1: one filter per hidden unit.
    intercept_ : ndarray, shape (n_hidden,)
        b1.
    decoder_ : ndarray, shape (n_features_in_, n_hidden)
        W2.
    decoder_intercept_ : ndarray, shape (n_features_in_,)
        b2.
    history_ : dict of list
        Per epoch: epoch, loss, reconstruction, penalty, decay, gradient_norm and, with held-out rows,
        validation_loss and validation_reconstruction. Parts of J are means over the epoch's steps.
    n_iter_ : int
        Epochs, or iterations, done.
    n_features_in_ : int
        Width of X.

    Examples
    --------
    >>> import numpy as np
    >>> from fastsae import SparseAutoencoder
    >>> X = np.random.default_rng(0).random((500, 20), dtype=np.float32)
    >>> sae = SparseAutoencoder(n_hidden=8, max_epochs=5, random_state=0).fit(X)
    >>> sae.transform(X).shape
    (500, 8)
    """

    def __init__(
        self,
        n_hidden: int = 100,
        *,
        activation: str = LayerConfig.activation,
        output_activation: str = LayerConfig.activation,
        penalty: str = "kl",
        rho: float = LayerConfig.rho,
        beta: float = LayerConfig.beta,
        weight_decay: float = Config.weight_decay,
        weight_l1: float = Config.weight_l1,
        contraction: float = Config.contraction,
        contraction_hessian: float = Config.contraction_hessian,
        contraction_noise: float = Config.contraction_noise,
        rho_hat: str = Config.rho_hat,
        rho_hat_decay: float = Config.rho_hat_decay,
        loss: str = Config.loss,
        loss_reduction: str = Config.loss_reduction,
        corruption: str = Config.corruption,
        corruption_level: float = Config.corruption_level,
        corruption_low: float = Config.corruption_low,
        corruption_high: float = Config.corruption_high,
        emphasis: float = Config.emphasis,
        emphasis_rest: float = Config.emphasis_rest,
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

    # Fitted attributes

    @property
    def intercept_(self) -> Array:
        """b1, shape (n_hidden,)."""
        return self._fitted_engine("intercept_").get("b1")

    @property
    def decoder_(self) -> Array:
        """W2, shape (n_features_in_, n_hidden)."""
        engine = self._fitted_engine("decoder_")
        return engine.get("W1").T if engine.config.tied else engine.get("W2")

    @property
    def decoder_intercept_(self) -> Array:
        """b2, shape (n_features_in_,)."""
        return self._fitted_engine("decoder_intercept_").get("b2")

    # Details

    def _layers(self, n_features: int) -> tuple[Layer, ...]:
        check_integer("n_hidden", self.n_hidden, 1)
        hidden = LayerConfig(int(self.n_hidden), self.activation, self.penalty, self.beta, self.rho)
        return hidden, LayerConfig(n_features, self.output_activation)

    @classmethod
    def _has_model(cls, config: Config) -> bool:
        return [layer.kind for layer in config.layers] == ["dense", "dense"] and config.code_layer == 1

    @classmethod
    def _names_of_options(cls, config: Config) -> dict[str, Any]:
        hidden, output = config.layers
        assert isinstance(hidden, LayerConfig)
        assert isinstance(output, LayerConfig)
        options = super()._names_of_options(config)
        renamed = {name: value for name, value in options.items() if not name.startswith("layers[")}
        renamed |= {**dataclasses.asdict(hidden), "output_activation": output.activation}
        renamed["n_hidden"] = renamed.pop("units")
        renamed["weight_decay"] = config.weight_decay
        return renamed
