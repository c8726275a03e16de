"""Contractive features on MNIST (Rifai et al., "Contractive auto-encoders", ICML 2011).

Autoencoders with one hidden layer (784-400-784, sigmoid, tied, cross-entropy) are trained with and without the penalty
on the Jacobian of their code, else alike: same rows, epochs, optimiser and first weights. The weight of the penalty is
chosen on training rows alone, by the error of a logistic regression on the codes of rows held out of its training.
Reported on the 10,000 test images: the mean Jacobian norm and the error of that classifier.

    python examples/contractive.py --mnist FOLDER --epochs 10
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

from fastsae import ContractiveAutoencoder

WEIGHTS = (0.1, 0.3, 1.0, 3.0)


def error(train: np.ndarray, train_labels: np.ndarray, test: np.ndarray, test_labels: np.ndarray) -> float:
    """Test error of a logistic regression, in percent."""
    scale = train.std()
    classifier = LogisticRegression(C=1.0, max_iter=100)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # the same 100 iterations for all
        classifier.fit(train / scale, train_labels)
    return 100 * (1 - classifier.score(test / scale, test_labels))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mnist", type=Path, default=mnist.DEFAULT_FOLDER, help="folder with the idx .gz files")
    parser.add_argument("--hidden", type=int, default=400)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--labelled", type=int, default=10000, help="rows that the classifier learns from")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()

    X, y = mnist.read("train_images", options.mnist), mnist.read("train_labels", options.mnist)
    test, test_labels = mnist.read("test_images", options.mnist), mnist.read("test_labels", options.mnist)
    known, held_out = slice(0, options.labelled), slice(50000, 60000)

    fitted: dict[float, ContractiveAutoencoder] = {}
    validation: dict[float, float] = {}
    for weight in (0.0, *WEIGHTS):
        start = time.perf_counter()
        fitted[weight] = ContractiveAutoencoder(
            n_hidden=options.hidden,
            contraction=weight,
            loss="cross_entropy",
            batch_size=128,
            max_epochs=options.epochs,
            random_state=options.seed,
        ).fit(X[:50000])
        seconds = time.perf_counter() - start
        code = fitted[weight].transform(X)
        validation[weight] = error(code[known], y[known], code[held_out], y[held_out])
        print(
            f"contraction {weight:<5g} held-out error {validation[weight]:.2f} %   "
            f"reconstruction {fitted[weight].history_['reconstruction'][-1]:.1f}   {seconds:.0f} s",
            flush=True,
        )

    chosen = min(WEIGHTS, key=lambda weight: validation[weight])
    print(f"chosen on training rows: contraction {chosen:g}\n")
    print(f"{'on the test images':22} {'mean |J|':>10} {'error':>8}")
    for name, weight in (("plain autoencoder", 0.0), ("contractive", chosen)):
        model = fitted[weight]
        code, test_code = model.transform(X[known]), model.transform(test)
        norm = np.mean(model.jacobian_norm(test))
        print(f"{name:22} {norm:10.3f} {error(code, y[known], test_code, test_labels):6.2f} %")


if __name__ == "__main__":
    main()
