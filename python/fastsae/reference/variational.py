"""The Gaussian code: reparameterised noise, and its divergence from N(0, 1) (Kingma and Welling 2013)."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from fastsae.layers import GaussianConfig
from fastsae.reference.activations import Array
from fastsae.reference.random import draw, two_normals

#: Where the log-variance is clamped. Outside, slopes are those at the bound, so that it comes back.
LOG_VARIANCE = (-30.0, 20.0)


class GaussianCode:
    """What lies between the moments ``[mu, v]`` [N, 2 units] of a code and its draws z [N, units].

    Parameters
    ----------
    layer : GaussianConfig
    """

    def __init__(self, layer: GaussianConfig) -> None:
        self.layer = layer

    def mean(self, moments: Array) -> Array:
        """mu, [N, units]."""
        return moments[:, : self.layer.units]

    def log_variance(self, moments: Array) -> Array:
        """v, [N, units]."""
        return np.clip(moments[:, self.layer.units :], *LOG_VARIANCE)

    def sample(self, moments: Array, seed: int, epoch: int, rows: ArrayLike) -> Array:
        """``z = mu + exp(v/2) eps``; `rows` [N] are numbers in the data set."""
        words = draw("code", seed, epoch, rows, np.arange(self.layer.units))
        noise = two_normals(words[0], words[1])[0].astype(moments.dtype)
        z: Array = self.mean(moments) + np.exp(self.log_variance(moments) / 2) * noise
        return z

    def divergence(self, moments: Array) -> Array:
        """``KL(N(mu, exp(v)) || N(0, 1))`` of each latent, [N, units]."""
        mu, v = self.mean(moments), self.log_variance(moments)
        kl: Array = (mu**2 + (np.exp(v) - 1) - v) / 2
        return kl

    def cost(self, moments: Array, share: Array, epoch: int) -> tuple[float, Array]:
        """``beta warm sum_j max(free_bits, mean KL_j)``, and its slope by the mean KL of each latent [units]."""
        beta, free, warm_up = (float(getattr(self.layer, name)) for name in ("beta", "free_bits", "warm_up"))
        weight = beta * (epoch / warm_up if epoch < warm_up else 1.0)
        mean = share @ self.divergence(moments)
        counts = (mean >= free) | (free == 0)
        return weight * float(np.where(counts, mean, free).sum()), np.where(counts, weight, 0).astype(moments.dtype)

    def backward(self, error: Array, moments: Array, z: Array, pull: Array) -> Array:
        """The derivative of J by the moments, [N, 2 units].

        Parameters
        ----------
        error : array [N, units]
            Its derivative by z without the divergence.
        pull : array [N, units]
            Its derivative by the KL of each row and latent.
        """
        mu, v = self.mean(moments), self.log_variance(moments)
        by_mean = error + pull * mu
        by_log_variance = error * (z - mu) / 2 + pull * (np.exp(v) - 1) / 2
        return np.concatenate([by_mean, by_log_variance], axis=1)
