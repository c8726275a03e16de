"""Anomaly detection on public sets: an autoencoder's errors beside PCA's and beside an isolation forest's scores.

Of each set one class in turn is the normal one (of the breast cancers the benign ones). Detectors are trained on one
half of the normal rows, without labels, and rank the other half against the rows of the other classes. A set's ROC-AUC
is the mean over its classes and the seeds, which draw the halves and the first weights.

No label of these sets chose an option. AnomalyDetector has its defaults, which were chosen on other sets: iris, and
synthetic rows near a curved surface and of correlated normals. PCA keeps 90 % of the variance of the training rows,
standardised as the detector does it or as they are, and the forest is scikit-learn's default. The digits of MNIST's
test file are skipped where it is absent.

    python examples/anomaly.py --mnist FOLDER --seeds 3
"""

from __future__ import annotations

import argparse
import functools
import time
from collections.abc import Iterator
from pathlib import Path

import mnist
import numpy as np
from sklearn import datasets
from sklearn.decomposition import PCA
from sklearn.ensemble import IsolationForest
from sklearn.metrics import roc_auc_score
from sklearn.preprocessing import StandardScaler

from fastsae import AnomalyDetector

MOST_ROWS = 2000  # of MNIST's other classes together

Set = tuple[np.ndarray, np.ndarray]


def autoencoder(rows: np.ndarray, seed: int) -> AnomalyDetector:
    return AnomalyDetector(random_state=seed).fit(rows)


def forest(rows: np.ndarray, seed: int) -> IsolationForest:
    return IsolationForest(random_state=seed).fit(rows)


class PrincipalComponents:
    """Minus the mean squared error that the components of 90 % of the variance leave."""

    def __init__(self, rows: np.ndarray, seed: int, scale: bool = True) -> None:
        self.scaler = StandardScaler(with_std=scale).fit(rows)
        self.pca = PCA(0.9, svd_solver="full").fit(self.scaler.transform(rows))

    def score_samples(self, rows: np.ndarray) -> np.ndarray:
        rows = self.scaler.transform(rows)
        return -((rows - self.pca.inverse_transform(self.pca.transform(rows))) ** 2).mean(axis=1)


DETECTORS = {
    "AnomalyDetector": autoencoder,
    "PCA": PrincipalComponents,
    "PCA, unscaled": functools.partial(PrincipalComponents, scale=False),
    "IsolationForest": forest,
}


def sets(folder: Path) -> Iterator[tuple[str, list[Set]]]:
    """Names, and for each normal class its rows and those of the others."""
    X, y = datasets.load_breast_cancer(return_X_y=True)
    yield "breast cancer", [(X[y == 1], X[y == 0])]
    for name, load in (("wine", datasets.load_wine), ("digits", datasets.load_digits)):
        X, y = load(return_X_y=True)
        yield name, [(X[y == label], X[y != label]) for label in np.unique(y)]
    try:
        X, y = mnist.read("test_images", folder), mnist.read("test_labels", folder)
    except SystemExit as absent:
        print(f"MNIST skipped: {absent}")
        return
    yield "MNIST", [(X[y == label], X[y != label][:MOST_ROWS]) for label in range(10)]


def auc(detector: str, normal: np.ndarray, others: np.ndarray, seed: int) -> float:
    order = np.random.default_rng(seed).permutation(len(normal))
    half = len(normal) // 2
    fitted = DETECTORS[detector](normal[order[:half]], seed)
    seen = np.concatenate([normal[order[half:]], others])
    return float(roc_auc_score(np.arange(len(seen)) >= len(normal) - half, -fitted.score_samples(seen)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mnist", type=Path, default=mnist.DEFAULT_FOLDER, help="folder with the idx .gz files")
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()

    print(f"{'ROC-AUC':15s}" + "".join(f"{name:>18s}" for name in DETECTORS) + "   seconds")
    rows = []
    for name, classes in sets(options.mnist):
        start = time.perf_counter()
        found = [
            [[auc(detector, *pair, seed) for pair in classes] for seed in range(options.seeds)]
            for detector in DETECTORS
        ]
        by_seed = np.mean(found, axis=2)
        rows.append(by_seed.mean(axis=1))
        text = "".join(f"{m:11.3f} +- {s:.3f}" for m, s in zip(by_seed.mean(axis=1), by_seed.std(axis=1), strict=True))
        print(f"{name:15s}{text}   {time.perf_counter() - start:7.1f}")
    print(f"{'mean':15s}" + "".join(f"{value:18.3f}" for value in np.mean(rows, axis=0)))


if __name__ == "__main__":
    main()
