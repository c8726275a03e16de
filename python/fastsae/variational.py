"""The variational autoencoder."""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted

from fastsae._core import DeviceArray
from fastsae.arrays import Rows
from fastsae.base import Array
from fastsae.checks import check_choice, check_integer, check_real
from fastsae.config import ACTIVATIONS, Config, GaussianConfig, Layer, LayerConfig, TrainingConfig
from fastsae.layered import LayeredAutoencoder
from fastsae.reference.random import draw, two_normals
from fastsae.trainer import Callback

LIKELIHOODS = ("bernoulli", "gaussian")
_ROWS = 4096  # scored at once
_FIRST_DRAW = 2**31  # where training's noise has its epoch, scoring counts from here


class VariationalAutoencoder(LayeredAutoencoder):
    """The variational autoencoder (Kingma and Welling, Auto-encoding variational Bayes, 2013).

    A generative model ``p(x | z) p(z)``, where ``p(z) = N(0, 1)`` and a decoder network gives the mean ``y(z)`` of the
    likelihood, and an encoder network for ``q(z | x) = N(mu(x), exp(v(x)))``. Training maximises, with one draw of z
    for each row and epoch, the evidence lower bound

    ``ELBO = E_q log p(x | z) - beta warm(epoch) sum_j max(free_bits, KL(q(z_j | x) || p(z_j)))``

    averaged over the rows, where the KL under the maximum is the batch mean. `history_` and the cost hold
    ``J = -ELBO + weight_decay/2 |W|^2`` for ``bernoulli``. For ``gaussian`` they hold
    ``J = 1/2 |x - y|^2 + noise_std^2 beta warm(epoch) sum_j max(...) + weight_decay/2 |W|^2``: noise_std^2 times the
    minus ELBO without its constant ``d/2 log(2 pi noise_std^2)``, which `score_samples` and `log_likelihood` contain.

    Parameters
    ----------
    n_latents : int
        Numbers in z.
    hidden : tuple of int
        Widths of the encoder's hidden layers; the decoder mirrors them. With ``()`` both are linear maps.
    activation : {"sigmoid", "tanh", "relu", "softplus", "identity"}
        Of the hidden layers.
    likelihood : {"bernoulli", "gaussian"}
        ``bernoulli``: ``sum_k x_k log y_k + (1 - x_k) log(1 - y_k)`` with a sigmoid output, for X in [0, 1].
        ``gaussian``: ``-|x - y|^2 / (2 noise_std^2) - d/2 log(2 pi noise_std^2)`` with a linear output.
    noise_std : float
        Standard deviation of the Gaussian likelihood, > 0. Not used by ``bernoulli``.
    beta : float
        Weight of the divergence in training, >= 0 (Higgins et al., beta-VAE, 2017). Scores are those of beta = 1.
    free_bits : float
        Nats that each latent's divergence costs at least, >= 0, so that it may as well use them (Kingma et al.,
        Improved variational inference with inverse autoregressive flow, 2016).
    warm_up : float
        Epochs over which the divergence's weight rises linearly from 0; 0 has it whole from the start.
    weight_decay : float
        lambda, >= 0. Biases are not decayed. With ``solver="adamw"`` the decay is decoupled.
    weight_l1 : float
        mu, >= 0, of the penalty ``mu sum |W|``; biases take none.
    solver : {"adam", "adamw", "sgd", "momentum", "nesterov", "sign_sgd", "lbfgs"}
        ``lbfgs`` keeps one draw for each row, as its cost must not change.
    learning_rate, momentum, beta1, beta2, epsilon : float
        Of the mini-batch solvers, in PyTorch's form.
    lr_schedule, lr_warm_up, lr_start, lr_total_steps, lr_decay_steps, lr_final, lr_step_size, lr_gamma, max_grad_norm
        See :class:`fastsae.SparseAutoencoder`. `lr_warm_up`, in steps, is that of the learning rate.
    batch_size : int or None
        Rows per step; None means all.
    max_epochs, shuffle, validation_fraction, early_stopping, n_iter_no_change, tol, init
        See :class:`fastsae.TrainingConfig`.
    scale : {"zscore", "minmax", "mean_norm", "mean_square_norm"} or None
        Scaling of X, as of :class:`fastsae.SparseAutoencoder`. Likelihood, `noise_std` and KL are those of scaled rows;
        the scores of a Gaussian likelihood are the densities of X itself, in X's own units.
    dtype, precision
        See :class:`fastsae.Config`.
    device, random_state, checkpoint, checkpoint_every, callback, verbose
        See :class:`fastsae.SparseAutoencoder`. `random_state` also seeds the draws of z.

    Attributes
    ----------
    components_ : ndarray, shape (n_units, n_features_in_)
        Weights of the first layer: one filter for each of its units.
    history_ : dict of list
        Per epoch: epoch, loss, reconstruction (the first term of J), penalty (the second), decay, gradient_norm and,
        with held-out rows, validation_loss and validation_reconstruction.
    n_iter_ : int
        Epochs, or iterations, done.
    n_features_in_ : int
        Width of X.

    Notes
    -----
    `transform` gives the means ``mu(x)``, without noise, and `inverse_transform` the mean ``y(z)`` of the likelihood.

    Scores need draws of z. They come from a counter-based generator, keyed by the model's seed and by the numbers of
    the row itself: a row has the same score in every order and company, and equal rows have equal draws.

    Examples
    --------
    >>> import numpy as np
    >>> from fastsae import VariationalAutoencoder
    >>> X = np.random.default_rng(0).random((500, 20), dtype=np.float32)
    >>> vae = VariationalAutoencoder(n_latents=2, hidden=(16,), max_epochs=5, random_state=0).fit(X)
    >>> vae.transform(X).shape, vae.sample(3, random_state=0).shape
    ((500, 2), (3, 20))
    """

    def __init__(
        self,
        n_latents: int = 20,
        *,
        hidden: tuple[int, ...] = (400,),
        activation: str = "relu",
        likelihood: str = "bernoulli",
        noise_std: float = 1.0,
        beta: float = GaussianConfig.beta,
        free_bits: float = GaussianConfig.free_bits,
        warm_up: float = GaussianConfig.warm_up,
        weight_decay: float = 0.0,
        weight_l1: float = Config.weight_l1,
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

    # The generative model

    def sample(self, n_samples: int = 1, random_state: Any = None) -> Array:
        """Means of the likelihood for z drawn from N(0, 1).

        Parameters
        ----------
        n_samples : int
            Number of rows.
        random_state : int, RandomState or None
            Source of z.

        Returns
        -------
        ndarray, shape (n_samples, n_features)
        """
        check_is_fitted(self)
        check_integer("n_samples", n_samples, 1)
        try:
            random = check_random_state(random_state)
        except ValueError as error:
            raise ValueError(f"random_state: {error}") from None
        code = random.standard_normal((int(n_samples), self._engine.code_width))
        reconstruction: Array = self.inverse_transform(code)
        return reconstruction

    def score_samples(self, X: Any) -> NDArray[np.float64]:
        """The evidence lower bound of each row, in nats, with the KL in closed form and one draw of z.

        Parameters
        ----------
        X : array-like, shape (n_rows, n_features)
            As for `fit`.

        Returns
        -------
        ndarray, shape (n_rows,)
            Low for rows unlike the training data.

        Raises
        ------
        ValueError
            If X is not usable; also if the likelihood is ``bernoulli`` and X has numbers outside [0, 1].
        """
        check_is_fitted(self)
        rows = self._check(X)
        scores = np.empty(len(rows))
        for part, block in self._blocks(rows):
            mean, log_variance = self._moments(block)
            z = mean + np.exp(log_variance / 2) * next(self._noise(block))
            divergence = (mean**2 + (np.exp(log_variance) - 1) - log_variance).sum(axis=1) / 2
            scores[part] = self._log_likelihood_of(z, block) - divergence
        return scores

    def log_likelihood(self, X: Any, n_importance: int = 100) -> NDArray[np.float64]:
        """An estimate of ``log p(x)`` of each row, in nats, by importance sampling.

        ``log 1/K sum_k p(x | z_k) p(z_k) / q(z_k | x)`` with K draws from q: in the mean a lower bound that rises
        with K to log p(x) (Burda, Grosse and Salakhutdinov, Importance weighted autoencoders, 2015).

        Parameters
        ----------
        X : array-like, shape (n_rows, n_features)
            As for `fit`.
        n_importance : int
            K, at least 1. The time is that of decoding X so many times.

        Returns
        -------
        ndarray, shape (n_rows,)

        Raises
        ------
        ValueError
            As `score_samples`.
        KeyboardInterrupt
            On Ctrl-C.
        """
        check_is_fitted(self)
        check_integer("n_importance", n_importance, 1)
        rows = self._check(X)
        result = np.empty(len(rows))
        for part, block in self._blocks(rows):
            mean, log_variance = self._moments(block)
            held = self._engine.hold(block)
            targets = block if held is None else held
            total = np.full(len(block), -np.inf)
            for noise in itertools.islice(self._noise(block), int(n_importance)):
                z = mean + np.exp(log_variance / 2) * noise
                # log p(z) - log q(z | x), whose constants cancel.
                prior = ((noise**2 - z**2) + log_variance).sum(axis=1) / 2
                total = np.logaddexp(total, self._log_likelihood_of(z, targets) + prior)
            result[part] = total - math.log(n_importance)
        return result

    # Details

    def _blocks(self, rows: Rows) -> Iterator[tuple[slice, Array]]:
        """Where they are and, in the model's dtype, the rows."""
        for first in range(0, len(rows), _ROWS):
            part = slice(first, min(first + _ROWS, len(rows)))
            if isinstance(rows, DeviceArray):
                block = self._engine.take(rows, np.arange(part.start, part.stop)).numpy()
            elif self._scaler is not None:
                block = self._scaler.transform_finite(rows[part], self.dtype, part.start)
            else:
                block = np.ascontiguousarray(rows[part], self.dtype)
            if self.likelihood == "bernoulli" and (block.min() < 0 or block.max() > 1):
                raise ValueError("X: likelihood='bernoulli' needs numbers in [0, 1], after scaling")
            yield part, block

    def _moments(self, block: Array) -> tuple[Array, Array]:
        """Mean and log-variance of z for each row, in float64."""
        moments = self._engine.encode_distribution(block).astype(np.float64)
        mean, log_variance = np.split(moments, 2, axis=1)
        return mean, log_variance

    def _log_likelihood_of(self, z: Array, targets: Rows) -> NDArray[np.float64]:
        """``log p(x | z)`` of each row."""
        losses: NDArray[np.float64] = self._engine.score_code(z, targets)
        if self.likelihood == "bernoulli":
            return -losses
        variance = float(self.noise_std) ** 2
        constant = targets.shape[1] / 2 * math.log(2 * math.pi * variance)
        if self._scaler is not None:  # the density of x from that of (x - center) / scale
            constant += float(np.log(self._scaler.scale).sum())
        scores: NDArray[np.float64] = -losses / variance - constant
        return scores

    def _noise(self, block: Array) -> Iterator[Array]:
        """Standard normal numbers [rows, n_latents], again and again new ones."""
        words = np.ascontiguousarray(block + 0).view(np.uint32)  # -0 becomes 0
        first, second, _, _ = draw("code", self._state.seed, 0, [0], np.arange(words.shape[1]))
        # A multilinear hash, in integers of 64 bits that wrap around.
        rows = (words * (first << np.uint64(32) | second)).sum(axis=1)
        for epoch in itertools.count(_FIRST_DRAW):
            a, b, c, d = draw("code", self._state.seed, epoch, rows, np.arange(self._engine.code_width))
            yield from two_normals(a, b)
            yield from two_normals(c, d)

    def _layers(self, n_features: int) -> tuple[Layer, ...]:
        check_integer("n_latents", self.n_latents, 1)
        if not isinstance(self.hidden, (tuple, list)):
            raise ValueError(f"hidden: expected a tuple of integers, got {self.hidden!r}")
        for units in self.hidden:
            check_integer("hidden", units, 1)
        check_choice("likelihood", self.likelihood, LIKELIHOODS)
        check_real("noise_std", self.noise_std, 0.0, ends="()")
        check_choice("activation", self.activation, ACTIVATIONS)
        for name in ("beta", "free_bits", "warm_up"):
            check_real(name, getattr(self, name), 0.0)
        encoder = tuple(LayerConfig(int(units), self.activation) for units in self.hidden)
        bernoulli = self.likelihood == "bernoulli"
        beta = float(self.beta) * (1.0 if bernoulli else float(self.noise_std) ** 2)
        code = GaussianConfig(int(self.n_latents), beta, self.free_bits, self.warm_up)
        return *encoder, code, *encoder[::-1], LayerConfig(n_features, "sigmoid" if bernoulli else "identity")

    def _model_options(self, n_features: int) -> dict[str, Any]:
        loss = "cross_entropy" if self.likelihood == "bernoulli" else "squared_error"
        return {"loss": loss, "n_encoder_layers": len(self.hidden) + 1}

    @classmethod
    def _has_model(cls, config: Config) -> bool:
        n = config.code_layer
        kinds = ["dense"] * (n - 1) + ["gaussian"] + ["dense"] * n
        return [layer.kind for layer in config.layers] == kinds

    @classmethod
    def _names_of_options(cls, config: Config) -> dict[str, Any]:
        options = {n: v for n, v in super()._names_of_options(config).items() if not n.startswith("layers[")}
        code = config.layers[config.code_layer - 1]
        assert isinstance(code, GaussianConfig)
        hidden = config.layers[: config.code_layer - 1]
        del options["n_encoder_layers"]
        options |= {"n_latents": code.units, "hidden": tuple(config.widths[1 : config.code_layer])}
        options |= {"activation": [getattr(layer, "activation", None) for layer in hidden]}
        options |= {"likelihood": "bernoulli" if options.pop("loss") == "cross_entropy" else "gaussian"}
        name = "beta" if options["likelihood"] == "bernoulli" else "beta * noise_std**2"
        return {**options, name: code.beta, "free_bits": code.free_bits, "warm_up": code.warm_up}
