"""The stacked autoencoder of UFLDL on MNIST: 784-200-200-softmax, before and after fine-tuning.

Two sparse layers (rho 0.1, beta 3) are trained one after the other on images alone, then a softmax layer on their
code, then all together, with labels. Published, with 400 iterations of L-BFGS each and weight decay 3e-3: 87.7 % of the
10,000 test images before fine-tuning and 97.6 % after. Here it is Adam on mini-batches, with less decay.

    python examples/stacked.py --mnist FOLDER --seeds 3
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import mnist

from fastsae import DeepAutoencoder, StackedClassifier


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mnist", type=Path, default=mnist.DEFAULT_FOLDER, help="folder with the idx .gz files")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--pretrain-epochs", type=int, default=8)
    parser.add_argument("--weight-decay", type=float, default=1e-4)
    options = parser.parse_args()
    images, labels = mnist.read("train_images", options.mnist), mnist.read("train_labels", options.mnist)
    test, test_labels = mnist.read("test_images", options.mnist), mnist.read("test_labels", options.mnist)

    for seed in range(options.seeds):
        autoencoder = DeepAutoencoder(
            hidden=(200, 200),
            mirror=True,
            code_activation="sigmoid",
            penalty="kl",
            rho=0.1,
            beta=3.0,
            weight_decay=options.weight_decay,
            learning_rate=5e-3,
            pretrain_epochs=options.pretrain_epochs,
            max_epochs=0,
        )
        classifier = StackedClassifier(
            autoencoder, head_weight_decay=1e-4, head_epochs=10, learning_rate=1e-2, max_epochs=0, random_state=seed
        )
        start = time.perf_counter()
        classifier.fit(images, labels)
        before, middle = 100 * classifier.score(test, test_labels), time.perf_counter()
        classifier.set_params(max_epochs=8, learning_rate=1e-3).resume(images, labels)
        seconds = time.perf_counter() - middle
        print(
            f"seed {seed}: {before:.2f} % before fine-tuning ({middle - start:.0f} s), "
            f"{100 * classifier.score(test, test_labels):.2f} % after ({seconds:.0f} s)",
            flush=True,
        )


if __name__ == "__main__":
    main()
