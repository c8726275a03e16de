"""Digits in the plane: the two-unit code of a deep autoencoder beside the first two principal components.

The autoencoder (784-256-64-2 and back, relu layers, an identity code, a sigmoid output) learns from the training images
without labels, after Hinton and Salakhutdinov (2006). Figures are those of test images: how many of them have a nearest
neighbour in the plane of their own digit, and the trustworthiness (Venna and Kaski 2001): whether neighbours in the
plane are neighbours in the space of pixels. The picture colours the points by digit.

    python examples/embed_2d.py --mnist FOLDER --output embed_2d.png
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import mnist
import numpy as np
from sklearn.decomposition import PCA
from sklearn.manifold import trustworthiness
from sklearn.model_selection import cross_val_score
from sklearn.neighbors import KNeighborsClassifier

from fastsae import Config, Engine, LayerConfig, TrainingConfig
from fastsae.initializers import initialize
from fastsae.stores import ArrayStore
from fastsae.trainer import Trainer, TrainerState

WIDTHS = (256, 64)
TRUSTED = 2000  # test images of which the trustworthiness is taken


def deep_autoencoder(images: np.ndarray, epochs: int, seed: int) -> Engine:
    relu = [LayerConfig(units, "relu") for units in WIDTHS]
    code, output = LayerConfig(2, "identity"), LayerConfig(images.shape[1], "sigmoid")
    config = Config(images.shape[1], (*relu, code, *relu[::-1], output), loss="cross_entropy", weight_decay=1e-5)
    engine = Engine(config)
    training = TrainingConfig(max_epochs=epochs, batch_size=128, init="he")
    engine.set_parameters(initialize(config, training.init, np.random.default_rng(seed)))
    trainer = Trainer(engine, training, TrainerState(seed, n_rows=len(images)), verbose=True)
    trainer.run(ArrayStore(images, engine), None, epochs)
    return engine


def measure(name: str, plane: np.ndarray, images: np.ndarray, labels: np.ndarray) -> None:
    # The neighbour is looked for among the other nine tenths of the images.
    same = 100 * cross_val_score(KNeighborsClassifier(1), plane, labels, cv=10).mean()
    trust = trustworthiness(images[:TRUSTED], plane[:TRUSTED], n_neighbors=12)
    print(f"{name:18s} {same:5.1f} % have a nearest neighbour of their digit, trustworthiness {trust:.3f}")


def picture(planes: dict[str, np.ndarray], labels: np.ndarray, path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, len(planes), figsize=(6 * len(planes), 5.5), constrained_layout=True)
    for axis, (name, plane) in zip(axes, planes.items(), strict=True):
        points = axis.scatter(*plane.T, c=labels, s=2, cmap="tab10", vmin=-0.5, vmax=9.5)
        axis.set(title=name, xticks=[], yticks=[])
    figure.colorbar(points, ticks=range(10), label="digit")
    figure.savefig(path, dpi=120)
    plt.close(figure)
    print(f"picture: {path}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mnist", type=Path, default=mnist.DEFAULT_FOLDER, help="folder with the idx .gz files")
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path("embed_2d.png"), help="where the picture goes")
    options = parser.parse_args()

    images = mnist.read("train_images", options.mnist)
    test, labels = mnist.read("test_images", options.mnist), mnist.read("test_labels", options.mnist)
    start = time.perf_counter()
    engine = deep_autoencoder(images, options.epochs, options.seed)
    print(f"{options.epochs} epochs of {len(images)} images in {time.perf_counter() - start:.0f} s")
    planes = {
        "deep autoencoder": engine.encode(test),
        "PCA": PCA(2, random_state=options.seed).fit(images).transform(test),
    }
    for name, plane in planes.items():
        measure(name, plane, test, labels)
    picture(planes, labels, options.output)


if __name__ == "__main__":
    main()
