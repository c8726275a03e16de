"""How well the features of a synthetic world were found, by the definitions of SynthSAEBench (arXiv 2602.14687)."""

from __future__ import annotations

import numpy as np
from scipy import sparse
from scipy.optimize import linear_sum_assignment


def cosines(decoder: np.ndarray, vectors: np.ndarray) -> np.ndarray:
    """[n_latents x n_features], absolute; a zero row has the cosine 0 with all."""

    def unit(rows: np.ndarray) -> np.ndarray:
        return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)

    return np.abs(unit(decoder) @ unit(vectors).T)


class Scores:
    """Sums over batches of held-out rows.

    `mcc` is the mean cosine of the best one-to-one matching of latents with features, `uniqueness` the share of
    different features among the closest of each latent. A latent counts as a detector of its closest feature:
    `precision`, `recall` and `f1` are means over the latents, 0 where undefined. `explained_variance` is over all rows
    and columns together; `shrinkage` the mean of |reconstruction| / |row|.
    """

    def __init__(self, decoder: np.ndarray, vectors: np.ndarray) -> None:
        self.cosines = cosines(decoder, vectors)
        self.closest = self.cosines.argmax(axis=1)
        self.hits, self.fired, self.true = np.zeros((3, len(decoder)))
        self.rows, self.active, self.true_active, self.error, self.squares, self.ratio = np.zeros(6)
        self.sum = np.zeros(vectors.shape[1])

    def add(self, code: np.ndarray, rebuilt: np.ndarray, X: np.ndarray, truth: sparse.csr_array) -> None:
        """`code` [rows x n_latents], `rebuilt` and `X` [rows x d], `truth` the coefficients of the true features."""
        fires, true = code != 0, (truth.toarray() > 0)[:, self.closest]
        self.hits += (fires & true).sum(axis=0)
        self.fired += fires.sum(axis=0)
        self.true += true.sum(axis=0)
        self.rows += len(X)
        self.active += fires.sum()
        self.true_active += truth.nnz
        X, rebuilt = X.astype(np.float64), rebuilt.astype(np.float64)
        self.error += ((X - rebuilt) ** 2).sum()
        self.squares += (X**2).sum()
        self.sum += X.sum(axis=0)
        self.ratio += (np.linalg.norm(rebuilt, axis=1) / np.linalg.norm(X, axis=1)).sum()

    def result(self) -> dict[str, float]:
        matched = linear_sum_assignment(self.cosines, maximize=True)
        precision, recall = (self.hits / np.maximum(count, 1) for count in (self.fired, self.true))
        variance = self.squares - (self.sum**2).sum() / self.rows
        scores = {
            "mcc": self.cosines[matched].mean(),
            "uniqueness": len(np.unique(self.closest)) / len(self.closest),
            "precision": precision.mean(),
            "recall": recall.mean(),
            "f1": (2 * precision * recall / np.maximum(precision + recall, 1e-300)).mean(),
            "explained_variance": 1 - self.error / variance,
            "l0": self.active / self.rows,
            "true_l0": self.true_active / self.rows,
            "dead": int((self.fired == 0).sum()),
            "shrinkage": self.ratio / self.rows,
        }
        return {name: float(value) for name, value in scores.items()}
