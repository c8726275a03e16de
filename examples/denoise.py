"""Denoising MNIST (Vincent et al., JMLR 2010): an autoencoder that is trained with noise removes it.

For masking, Gaussian and salt-and-pepper noise a DenoisingAutoencoder (784-256-784, cross-entropy) is trained on the
60,000 training images. It then sees the 10,000 test images with noise it has not met, and so do the same model trained
without noise and a median filter of 3 x 3 pixels. The table holds the squared error per pixel against the clean
images, times 1000; the figure, some images of each.

    python examples/denoise.py --mnist FOLDER --figure denoise.png
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import mnist
import numpy as np
from scipy.ndimage import median_filter

from fastsae import DenoisingAutoencoder

LEVELS = {"masking": 0.3, "gaussian": 0.3, "salt_and_pepper": 0.2}
SHOWN = 8


def add_noise(images: np.ndarray, kind: str, random: np.random.Generator) -> np.ndarray:
    """The images with noise of that kind."""
    level = LEVELS[kind]
    if kind == "gaussian":
        return images + level * random.standard_normal(images.shape, dtype=np.float32)
    values = 0 if kind == "masking" else random.integers(0, 2, images.shape)
    return np.where(random.random(images.shape) < level, values, images).astype(np.float32)


def train(images: np.ndarray, kind: str, epochs: int) -> DenoisingAutoencoder:
    """A model of these images; kind "none" trains it clean."""
    model = DenoisingAutoencoder(
        n_hidden=256,
        corruption=kind,
        corruption_level=LEVELS.get(kind, 0.0),
        loss="cross_entropy",
        weight_decay=0.0,
        learning_rate=3e-3,
        batch_size=128,
        max_epochs=epochs,
        random_state=0,
    )
    start = time.perf_counter()
    model.fit(images)
    print(f"trained with {kind.replace('_', ' ')} noise in {time.perf_counter() - start:.0f} s")
    return model


def filter_median(images: np.ndarray) -> np.ndarray:
    """Each pixel becomes the median of the 3 x 3 around it."""
    return median_filter(images.reshape(-1, 28, 28), size=(1, 3, 3)).reshape(images.shape)


def draw(results: dict[str, dict[str, np.ndarray]], path: Path) -> None:
    """One block for each kind of noise, one row in it for each way of removing it."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, len(results), figsize=(13, 2.8))
    for ax, (kind, rows) in zip(axes, results.items(), strict=True):
        tiles = [np.hstack(list(images[:SHOWN].reshape(-1, 28, 28))) for images in rows.values()]
        ax.imshow(np.vstack(tiles), cmap="gray", vmin=0, vmax=1)
        ax.set_title(f"{kind.replace('_', ' ')}, {LEVELS[kind]}")
        ax.set_xticks([])
        ax.set_yticks(14 + 28 * np.arange(len(rows)), list(rows) if ax is axes[0] else [""] * len(rows))
        ax.tick_params(length=0)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    print(f"wrote {path}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mnist", type=Path, default=mnist.DEFAULT_FOLDER, help="folder with the idx .gz files")
    parser.add_argument("--rows", type=int, default=60_000, help="training images")
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--figure", type=Path, default=Path("denoise.png"))
    options = parser.parse_args()

    images = mnist.read("train_images", options.mnist)[: options.rows]
    clean = mnist.read("test_images", options.mnist)
    plain = train(images, "none", options.epochs)
    results: dict[str, dict[str, np.ndarray]] = {}
    for seed, kind in enumerate(LEVELS):
        noisy = add_noise(clean, kind, np.random.default_rng(seed))
        results[kind] = {
            "clean": clean,
            "with noise": noisy,
            "median filter": filter_median(noisy),
            "trained clean": plain.reconstruct(noisy),
            "trained with noise": train(images, kind, options.epochs).reconstruct(noisy),
        }

    ways = list(next(iter(results.values())))[1:]
    print(f"{'1000 x error per pixel':24}" + "".join(f"{way:>20}" for way in ways))
    for kind, rows in results.items():
        errors = [1000 * float(((rows[way] - clean) ** 2).mean()) for way in ways]
        print(f"{kind.replace('_', ' ') + f', {LEVELS[kind]}':24}" + "".join(f"{error:20.2f}" for error in errors))
    draw(results, options.figure)


if __name__ == "__main__":
    main()
