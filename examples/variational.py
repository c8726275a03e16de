"""A variational autoencoder of MNIST's digits: 784-400-20, Bernoulli likelihood, Adam 1e-3, batch 128, 10 epochs.

Grey values are taken as probabilities, not binarised. PyTorch's example of this set-up, which gave the numbers below,
begins with other weights.

    -ELBO of the 10,000 test images after each epoch, in nats:
    126.9  115.3  111.4  109.7  108.1  107.2  106.5  105.9  105.6  105.3

The figures are digits that the model makes up, test images with their reconstructions, and the plane of a second model
with two latents: its decoder's means on a grid of the prior's quantiles (Kingma and Welling 2013, figure 4).

    python examples/variational.py --mnist FOLDER --figures FOLDER
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from statistics import NormalDist
from typing import Any

import mnist
import numpy as np

from fastsae import VariationalAutoencoder, plots


def fit(name: str, n_latents: int, train: np.ndarray, test: np.ndarray, **options: Any) -> VariationalAutoencoder:
    """Train and print the bound of both sets after each epoch."""
    start = time.perf_counter()

    def report(entry: dict[str, float]) -> None:
        seconds = time.perf_counter() - start
        print(
            f"{name}, epoch {entry['epoch']:2.0f}: -ELBO {entry['loss']:.2f} in training, "
            f"{-vae.score(test):.2f} of the test images   {seconds:.0f} s",
            flush=True,
        )

    vae = VariationalAutoencoder(
        n_latents, hidden=(400,), init="glorot", batch_size=128, callback=report, verbose=False, **options
    )
    return vae.fit(train)


def mosaic(images: np.ndarray, n_columns: int) -> np.ndarray:
    """Rows of 784 pixels as one image."""
    tiles = images.reshape(-1, n_columns, 28, 28).swapaxes(1, 2)
    return tiles.reshape(len(tiles) * 28, n_columns * 28)


def write(path: Path, draw: Any, height: float = 8) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, height), layout="constrained")
    draw(figure.subplots())
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)
    print(f"wrote {path}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mnist", type=Path, default=mnist.DEFAULT_FOLDER, help="folder with the idx .gz files")
    parser.add_argument("--figures", type=Path, default=Path("variational-figures"), help="folder of the figures")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--importance", type=int, default=100, help="draws for log p(x) of 1000 test images")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()

    train, test = mnist.read("train_images", options.mnist), mnist.read("test_images", options.mnist)
    shared = {"max_epochs": options.epochs, "random_state": options.seed}
    vae = fit("20 latents", 20, train, test, **shared)
    some = test[:1000]
    print(
        f"1000 test images: -ELBO {-vae.score(some):.2f}, "
        f"-log p(x) {-vae.log_likelihood(some, options.importance).mean():.2f} with {options.importance} draws"
    )
    used = vae.transform(test).var(axis=0) > 0.01
    print(f"{used.sum()} of {len(used)} latents are used: their means vary over the test images")
    plane = fit("2 latents", 2, train, test, **shared)
    quantiles = np.array([NormalDist().inv_cdf((i + 0.5) / 20) for i in range(20)])
    grid = np.stack(np.meshgrid(quantiles, -quantiles), axis=-1).reshape(-1, 2)

    samples, manifold = vae.sample(100, random_state=options.seed), plane.inverse_transform(grid)
    for name, images, columns in (("samples", samples, 10), ("plane", manifold, 20)):
        image = mosaic(images, columns)
        write(options.figures / f"{name}.png", lambda ax, image=image: ax.imshow(image, cmap="gray") and ax.axis("off"))
    write(options.figures / "reconstructions.png", lambda ax: plots.reconstructions(vae, test, (28, 28), ax=ax), 1.6)


if __name__ == "__main__":
    main()
