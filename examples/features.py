"""What learned features are worth to a classifier that sees few labelled rows: MNIST, pixels against a sparse code.

A sparse autoencoder (784-400-784, rho 0.05) learns from unlabelled training images. Softmax regression then learns from
10 to 300 labelled images of each digit, of their pixels or of their code, and is tested on the 10,000 test images. Its
regularisation is chosen by cross-validation among the labelled rows, for both alike. Means over several draws of them.

    python examples/features.py --mnist FOLDER --draws 5
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
from sklearn.model_selection import GridSearchCV

from fastsae import SparseAutoencoder

LABELLED = (10, 30, 100, 300)  # of each digit
STRENGTHS = {"C": [0.01, 0.1, 1.0, 10.0]}


def draw(labels: np.ndarray, each: int, seed: int) -> np.ndarray:
    """Numbers of `each` rows of every digit."""
    order = np.random.default_rng(seed).permutation(len(labels))
    return np.concatenate([order[labels[order] == digit][:each] for digit in range(10)])


def accuracy(train: np.ndarray, train_labels: np.ndarray, test: np.ndarray, test_labels: np.ndarray) -> float:
    """Test accuracy of softmax regression, in percent."""
    search = GridSearchCV(LogisticRegression(max_iter=200), STRENGTHS, cv=5)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # a weak regularisation that loses may stop early
        search.fit(train, train_labels)
    return 100 * float(search.score(test, test_labels))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mnist", type=Path, default=mnist.DEFAULT_FOLDER, help="folder with the idx .gz files")
    parser.add_argument("--draws", type=int, default=5)
    parser.add_argument("--unlabelled", type=int, default=60000)
    parser.add_argument("--epochs", type=int, default=30)
    options = parser.parse_args()

    images, labels = mnist.read("train_images", options.mnist), mnist.read("train_labels", options.mnist)
    test, test_labels = mnist.read("test_images", options.mnist), mnist.read("test_labels", options.mnist)
    start = time.perf_counter()
    sae = SparseAutoencoder(400, rho=0.05, beta=3.0, max_epochs=options.epochs, random_state=0)
    sae.fit(images[: options.unlabelled])
    print(f"features learned from {options.unlabelled} unlabelled images in {time.perf_counter() - start:.0f} s")

    test_code = sae.transform(test)
    print("labelled rows      pixels     features")
    for each in LABELLED:
        found = []
        for seed in range(options.draws):
            rows = draw(labels, each, seed)
            pixels = accuracy(images[rows], labels[rows], test, test_labels)
            found.append((pixels, accuracy(sae.transform(images[rows]), labels[rows], test_code, test_labels)))
        mean, spread = np.mean(found, axis=0), np.std(found, axis=0)
        texts = [f"{m:5.1f} +- {s:.1f}" for m, s in zip(mean, spread, strict=True)]
        print(f"{10 * each:13d} {texts[0]:>11s}  {texts[1]:>11s}")


if __name__ == "__main__":
    main()
