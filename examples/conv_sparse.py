"""A winner-take-all convolutional autoencoder of MNIST: its filters are strokes, and a linear model reads its code.

In training, each map keeps the one largest activation of an image, and that in a few images of each batch (CONV-WTA:
Makhzani and Frey, 2015, "Winner-take-all autoencoders"), so that an image has to be put together from few strokes.
After training, the maps of relu activations are pooled, and a logistic regression is fitted to them.
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

from fastsae import ConvAutoencoder


def pooled(model: ConvAutoencoder, X: np.ndarray, size: int = 2) -> np.ndarray:
    """The largest activation of each window of `size` x `size` positions, as rows; a thousand images at a time."""
    channels, height, width = model.code_shape_
    pieces = []
    for first in range(0, len(X), 1000):
        maps = model.transform(X[first : first + 1000]).reshape(-1, channels, height // size, size, width // size, size)
        pieces.append(maps.max(axis=(3, 5)).reshape(len(maps), -1))
    return np.concatenate(pieces)


def probe(model: ConvAutoencoder, X: np.ndarray, y: np.ndarray, X_test: np.ndarray, y_test: np.ndarray) -> float:
    """Accuracy of a logistic regression on the pooled code."""
    code = pooled(model, X)
    scale = code.std(axis=0) + 1e-3 * code.std()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # 150 iterations are the set-up
        classifier = LogisticRegression(C=0.01, max_iter=150).fit(code / scale, y)
    return float(classifier.score(pooled(model, X_test) / scale, y_test))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mnist", type=Path, default=mnist.DEFAULT_FOLDER, help="folder of MNIST's four .gz files")
    parser.add_argument("--rows", type=int, default=20000, help="images to learn filters from")
    parser.add_argument("--probe-rows", type=int, default=20000, help="labelled images for the linear model")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--channels", type=int, default=48)
    parser.add_argument("--kernel", type=int, default=11)
    parser.add_argument("--lifetime", type=float, default=0.1)
    parser.add_argument("--figure", type=Path, default=None, help="file for a picture of the filters")
    parser.add_argument("--device", default="auto")
    arguments = parser.parse_args()

    X, y = mnist.read("train_images", arguments.mnist), mnist.read("train_labels", arguments.mnist)
    X_test, y_test = mnist.read("test_images", arguments.mnist), mnist.read("test_labels", arguments.mnist)
    model = ConvAutoencoder(
        channels=(arguments.channels,),
        kernel=arguments.kernel,
        stride=2,
        winners="both",
        lifetime=arguments.lifetime,
        output_activation="identity",
        weight_decay=0.0,
        batch_size=100,
        max_epochs=arguments.epochs,
        device=arguments.device,
        random_state=0,
    )
    start = time.perf_counter()
    model.fit(X[: arguments.rows])
    seconds = time.perf_counter() - start
    print(f"{arguments.epochs} epochs of {min(len(X), arguments.rows)} images: {seconds:.1f} s")
    print(f"cost of each epoch: {', '.join(f'{loss:.3f}' for loss in model.history_['loss'])}")
    if arguments.figure is not None:
        from fastsae import plots

        axes = plots.filters(model, title="What one unit of each map adds to an image")
        axes.figure.savefig(arguments.figure, dpi=150)
    rows = slice(arguments.probe_rows)
    accuracy = probe(model, X[rows], y[rows], X_test, y_test)
    print(f"logistic regression on the pooled code of {len(y[rows])} images: {100 * accuracy:.2f} % of the test images")


if __name__ == "__main__":
    main()
