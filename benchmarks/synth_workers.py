"""One training of `synth.py`, in a process of its own: SAELens or ours, on the rows that were drawn before.

All make the same number of steps of the same size on the same rows in the same order: SAELens with the settings of the
published runs, `ours_preset` with these too, as `preset="saelens"` names them, and `ours` with our defaults. What a
library needs is imported where it is used, as each has its own environment.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from synth_metrics import Scores
from synth_world import Stream, World

BATCH, RATE = 1024, 3e-4
#: Batches that are made from their code at once.
TOGETHER = 16
MODELS = ("topk", "batch_topk", "matryoshka")


class Learner(Protocol):
    def steps(self, X: np.ndarray) -> None:
        """One for each `BATCH` rows of X, in their order."""

    def code(self, X: np.ndarray) -> np.ndarray:
        """[rows x n_latents], as it is reported after training."""

    def rebuild(self, code: np.ndarray) -> np.ndarray: ...

    def decoder(self) -> np.ndarray:
        """[n_latents x d]."""

    def versions(self) -> dict[str, str]: ...


class SAELens:
    """Its trainer and models by the settings of the published runs, in float32."""

    def __init__(self, world: World, model: str, seed: int, n_rows: int) -> None:
        os.environ |= {"TQDM_DISABLE": "1", "WANDB_MODE": "disabled"}
        import sae_lens
        import torch
        from sae_lens.config import LoggingConfig, SAETrainerConfig
        from sae_lens.training.sae_trainer import SAETrainer

        torch.manual_seed(seed)
        torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
        self.torch, self.sae_lens, size = torch, sae_lens, world.size
        options: dict[str, Any] = {"d_in": size.width, "d_sae": size.n_latents, "k": size.k}
        if model == "topk":
            self.sae = sae_lens.TopKTrainingSAE(sae_lens.TopKTrainingSAEConfig(**options))
        elif model == "batch_topk":
            self.sae = sae_lens.BatchTopKTrainingSAE(sae_lens.BatchTopKTrainingSAEConfig(**options))
        else:
            options |= {"matryoshka_widths": list(size.prefixes), "use_matryoshka_aux_loss": True}
            self.sae = sae_lens.MatryoshkaBatchTopKTrainingSAE(sae_lens.MatryoshkaBatchTopKTrainingSAEConfig(**options))
        self.trainer = SAETrainer(
            SAETrainerConfig(
                n_checkpoints=0, checkpoint_path=None, save_final_checkpoint=False, total_training_samples=n_rows,
                device="cpu", autocast=False, lr=RATE, lr_end=RATE, lr_scheduler_name="constant", lr_warm_up_steps=0,
                adam_beta1=0.9, adam_beta2=0.999, lr_decay_steps=0, n_restart_cycles=1, train_batch_size_samples=BATCH,
                dead_feature_window=1000, feature_sampling_window=2000, n_batches_for_norm_estimate=1000,
                logger=LoggingConfig(log_to_wandb=False),
            ),
            self.sae,
            iter(()),
        )  # fmt: skip

    def steps(self, X: np.ndarray) -> None:
        for batch in self.torch.from_numpy(X).split(BATCH):
            self.trainer.maybe_reset_sparsity()
            self.trainer.step(batch)
            self.trainer.n_training_steps += 1

    def code(self, X: np.ndarray) -> np.ndarray:
        """As its own evaluation does it: BatchTopK keeps the largest of the batch."""
        with self.torch.no_grad():
            return np.asarray(self.sae.encode(self.torch.from_numpy(X)))

    def rebuild(self, code: np.ndarray) -> np.ndarray:
        with self.torch.no_grad():
            return np.asarray(self.sae.decode(self.torch.from_numpy(code)))

    def decoder(self) -> np.ndarray:
        return self.sae.W_dec.detach().numpy()

    def versions(self) -> dict[str, str]:
        return {"saelens": self.sae_lens.__version__, "torch": self.torch.__version__}


class Ours:
    """Our estimators."""

    def __init__(self, world: World, model: str, seed: int, n_rows: int, **options: Any) -> None:
        import fastsae

        size, self.fastsae = world.size, fastsae
        options |= {
            "n_latents": size.n_latents,
            "k": size.k,
            "batch_size": BATCH,
            "shuffle": False,
            "random_state": seed,
        }
        if model == "matryoshka":
            self.sae = fastsae.MatryoshkaSAE(prefixes=size.prefixes, **options)
        else:
            self.sae = (fastsae.TopKSAE if model == "topk" else fastsae.BatchTopKSAE)(**options)

    def steps(self, X: np.ndarray) -> None:
        self.sae.partial_fit(X)

    def code(self, X: np.ndarray) -> np.ndarray:
        """As after training: those of BatchTopK are above its threshold."""
        return np.asarray(self.sae.transform(X))

    def rebuild(self, code: np.ndarray) -> np.ndarray:
        return np.asarray(self.sae.inverse_transform(code))

    def decoder(self) -> np.ndarray:
        return np.asarray(self.sae.decoder_)

    def versions(self) -> dict[str, str]:
        return {"fastsae": self.fastsae.__version__}


LEARNERS: dict[str, Callable[[World, str, int, int], Learner]] = {
    "saelens": SAELens,
    "ours": Ours,
    "ours_preset": functools.partial(Ours, preset="saelens", learning_rate=RATE),
}


def scores(learner: Learner, held_out: Stream) -> dict[str, float]:
    sums = Scores(learner.decoder(), held_out.world.vectors)
    for start in range(0, held_out.n_rows - BATCH + 1, BATCH):
        truth = held_out.code(start, start + BATCH)
        X = held_out.world.rows(truth)
        code = learner.code(X)
        sums.add(code, learner.rebuild(code), X, truth)
    return sums.result()


def train(learner: Learner, stream: Stream, held_out: Stream) -> dict[str, Any]:
    """Take a step for each batch of the stream; scores and the seconds in steps."""
    n_rows, seconds = stream.n_rows // BATCH * BATCH, 0.0
    for first in range(0, n_rows, TOGETHER * BATCH):
        X = stream.rows(first, min(first + TOGETHER * BATCH, n_rows))
        start = time.perf_counter()
        learner.steps(X)
        seconds += time.perf_counter() - start
    told = {"versions": learner.versions(), "load": os.getloadavg()[0], "rows": n_rows, "seconds": round(seconds, 2)}
    return {**told, **scores(learner, held_out)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("library", choices=LEARNERS)
    parser.add_argument("model", choices=MODELS)
    parser.add_argument("--folder", type=Path, required=True, help="with world.npz, rows of the seed and held-out rows")
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    world = World.load(options.folder / "world.npz")
    stream, held_out = (Stream(world, options.folder / name) for name in (f"rows-{options.seed}", "held-out"))
    learner = LEARNERS[options.library](world, options.model, options.seed, stream.n_rows)
    result = train(learner, stream, held_out)
    options.output.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
