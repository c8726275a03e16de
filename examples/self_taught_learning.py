"""Self-taught learning on MNIST (UFLDL exercise): features learned from the digits 5-9 classify the digits 0-4.

A sparse autoencoder (784-200-784, rho 0.1, beta 3, weight decay 3e-3) sees the 29404 unlabelled digits 5-9 for 400
iterations of L-BFGS. A softmax classifier (weight decay 1e-4) on its hidden activations is trained on one half of the
digits 0-4 and tested on the other. Published: about 98.3 % (raw pixels: about 96 %).

    python examples/self_taught_learning.py --mnist FOLDER --seeds 3
"""

from __future__ import annotations

import argparse
import time
import warnings
from pathlib import Path

import mnist
import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression

from fastsae import SparseAutoencoder

SOFTMAX_DECAY = 1e-4
SOFTMAX_ITERATIONS = 100


def accuracy(train: np.ndarray, train_labels: np.ndarray, test: np.ndarray, test_labels: np.ndarray) -> float:
    """Test accuracy of softmax regression with weight decay, in percent."""
    # scikit-learn's cost is C times the summed loss, UFLDL's the mean loss plus decay/2 |W|^2.
    softmax = LogisticRegression(C=1 / (SOFTMAX_DECAY * len(train)), max_iter=SOFTMAX_ITERATIONS)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # 100 iterations are the published set-up
        softmax.fit(train, train_labels)
    return 100 * softmax.score(test, test_labels)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mnist", type=Path, default=mnist.DEFAULT_FOLDER, help="folder with the idx .gz files")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--iterations", type=int, default=400)
    parser.add_argument("--dtype", default="float32")
    options = parser.parse_args()

    images, labels = mnist.read("train_images", options.mnist), mnist.read("train_labels", options.mnist)
    unlabelled = np.ascontiguousarray(images[labels >= 5])
    known, known_labels = images[labels < 5], labels[labels < 5]
    half = len(known) // 2
    train, test = known[:half], known[half:]
    raw = accuracy(train, known_labels[:half], test, known_labels[half:])
    print(f"raw pixels: {raw:.2f} %   ({len(unlabelled)} unlabelled, {half} labelled, {len(test)} test)")

    accuracies, costs = [], []
    for seed in range(options.seeds):
        sae = SparseAutoencoder(
            n_hidden=200,
            rho=0.1,
            beta=3.0,
            weight_decay=3e-3,
            solver="lbfgs",
            max_epochs=options.iterations,
            dtype=options.dtype,
            random_state=seed,
        )
        start = time.perf_counter()
        sae.fit(unlabelled)
        seconds = time.perf_counter() - start
        costs.append(sae.history_["loss"][-1])
        accuracies.append(accuracy(sae.transform(train), known_labels[:half], sae.transform(test), known_labels[half:]))
        rho_hat = sae.transform(unlabelled).mean(axis=0)
        print(
            f"seed {seed}: {accuracies[-1]:.2f} %   J({sae.n_iter_}) = {costs[-1]:.3f}   "
            f"rho_hat {rho_hat.min():.3f} to {rho_hat.max():.3f}   {seconds:.0f} s"
        )
    print(f"mean of {options.seeds} seeds: {np.mean(accuracies):.2f} %, largest J {max(costs):.3f}")


if __name__ == "__main__":
    main()
