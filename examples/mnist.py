"""The four gzipped idx files of MNIST, for the examples."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np

FILES = {
    "train_images": "train-images-idx3-ubyte.gz",
    "train_labels": "train-labels-idx1-ubyte.gz",
    "test_images": "t10k-images-idx3-ubyte.gz",
    "test_labels": "t10k-labels-idx1-ubyte.gz",
}
DEFAULT_FOLDER = Path(__file__).resolve().parents[2] / "shared" / "data" / "mnist"


def read(name: str, folder: Path = DEFAULT_FOLDER) -> np.ndarray:
    """Images as float32 rows of 784 pixels in [0, 1], or labels as uint8."""
    path = Path(folder) / FILES[name]
    if not path.exists():
        raise SystemExit(f"{path} is absent: give the folder with MNIST's four idx .gz files as --mnist")
    with gzip.open(path) as file:
        content = file.read()
    if name.endswith("labels"):
        return np.frombuffer(content, np.uint8, offset=8)
    return np.frombuffer(content, np.uint8, offset=16).reshape(-1, 784).astype(np.float32) / 255
