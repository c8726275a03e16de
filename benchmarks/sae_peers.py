"""Sparse autoencoders by other libraries: their own models, losses and training steps, on given weights and rows.

    python benchmarks/sae_peers.py JOB.json

answers the cases of a job and exchanges its files, with the interpreter of the library's own environment. A case names
the library, the model, the library's options (others keep their defaults), and two NumPy files: of weights and rows,
and for what came out.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sae_peer import Case, Peer, Places
from sae_torch import OpenAI, Plain
from torch import Tensor, nn

os.environ.setdefault("WANDB_MODE", "disabled")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

#: Our name of a model, and theirs.
SAELENS = {
    "topk": "TopK",
    "batch_topk": "BatchTopK",
    "matryoshka": "MatryoshkaBatchTopK",
    "jump_relu": "JumpReLU",
    "gated": "Gated",
    "relu": "Standard",
}
#: Module and class of dictionary_learning.
TRAINERS = {
    "topk": ("top_k", "TopKTrainer"),
    "batch_topk": ("batch_top_k", "BatchTopKTrainer"),
    "matryoshka": ("matryoshka_batch_top_k", "MatryoshkaBatchTopKTrainer"),
    "jump_relu": ("jumprelu", "JumpReluTrainer"),
    "gated": ("gdm", "GatedSAETrainer"),
    "relu": ("standard", "StandardTrainer"),
    "relu_by_norm": ("standard", "StandardTrainerAprilUpdate"),
}
#: Its parameters: our name, and whether it is the transpose of ours.
NAMES = {
    "encoder.weight": ("W_enc", False),
    "encoder.bias": ("b_enc", False),
    "decoder.weight": ("W_dec", True),
    "bias": ("b_dec", False),
    "b_dec": ("b_dec", False),
    "decoder_bias": ("b_dec", False),
    "gate_bias": ("b_gate", False),
    "mag_bias": ("b_mag", False),
    "r_mag": ("r_mag", False),
    "W_enc": ("W_enc", True),
    "b_enc": ("b_enc", False),
    "W_dec": ("W_dec", False),
    "threshold": ("threshold", False),
}


class SAELens(Peer):
    """SAETrainer.step, the seam that its own loop and others use."""

    package, module = "sae-lens", "sae_lens"

    def build(self) -> None:
        import sae_lens
        from sae_lens.config import SAETrainerConfig
        from sae_lens.training.sae_trainer import SAETrainer

        name = SAELENS[self.case["model"]] + "TrainingSAE"
        options = dict(self.options)
        training, compiled = options.pop("training", {}), options.pop("compile", False)
        if "TopK" in name:
            options["k"] = self.k
        config = getattr(sae_lens, name + "Config")
        given = {"d_in": self.d, "d_sae": self.n, "dtype": self.case.get("dtype", "float32"), **options}
        self.sae = getattr(sae_lens, name)(config(**given))
        if compiled:
            self.sae.training_forward_pass = torch.compile(self.sae.training_forward_pass)
        many = 10**6 * self.batch
        training = {"lr_end": 3e-5, **training}  # of a constant rate it is not used, but asked for
        settings = SAETrainerConfig(total_training_samples=many, train_batch_size_samples=self.batch, **training)
        self.trainer = SAETrainer(settings, self.sae, iter(()))

    def places(self) -> Places:
        return {name: (p, name == "W_enc") for name, p in self.sae.named_parameters()}

    def cost(self, x: Tensor, y: Tensor) -> Tensor:
        from sae_lens.saes.sae import TrainStepInput

        given = TrainStepInput(
            sae_in=x,
            coefficients=self.trainer.get_coefficients(),
            dead_neuron_mask=self.trainer.dead_neurons,
            n_training_steps=0,
            is_logging_step=False,
        )
        with self.trainer.autocast_if_enabled:
            return self.sae.training_forward_pass(given).loss

    def code(self, x: Tensor) -> Tensor:
        return self.sae.encode(x)

    def fit(self, X: Tensor, Y: Tensor) -> list[float]:
        losses = []
        for x in X.split(self.batch):
            losses.append(float(self.trainer.step(x).loss.detach()))
            self.trainer.n_training_steps += 1
        return losses

    def threshold(self) -> Tensor | None:
        return getattr(self.sae, "topk_threshold", None)

    @staticmethod
    def read(folder: str, x: Tensor) -> tuple[Tensor, Tensor]:
        from sae_lens import SAE

        sae = SAE.load_from_disk(folder)
        return sae.encode(x), sae(x)

    def write(self, folder: str) -> None:
        self.sae.save_inference_model(folder)

    def set_rows_since_fired(self, rows: Tensor) -> None:
        self.trainer.n_forward_passes_since_fired = rows / self.batch


class Given(nn.Module):
    """The part of a model whose inputs and outputs are the rows that were asked for."""

    def forward(self, x: Tensor) -> Tensor:
        return self.outputs

    outputs: Tensor


class Rows(nn.Module):
    """What sparsify takes for a language model: token i of a text is row i."""

    device = torch.device("cpu")

    def __init__(self, X: Tensor, Y: Tensor) -> None:
        super().__init__()
        self.X, self.Y, self.rows = X, Y, Given()
        self.dummy_inputs = {"input_ids": torch.zeros(1, 1, dtype=torch.long)}

    @property
    def base_model(self) -> Rows:
        return self

    def forward(self, input_ids: Tensor) -> Tensor:
        self.rows.outputs = self.Y[input_ids]
        return self.rows(self.X[input_ids])


class Texts(torch.utils.data.Dataset):
    """So many texts of one token; a trainer that goes on selects the rest of a longer set."""

    def __init__(self, count: int, before: int = 0) -> None:
        self.count, self.before = count, before

    def __len__(self) -> int:
        return self.before + self.count

    def __getitem__(self, i: int) -> dict[str, Tensor]:
        return {"input_ids": torch.tensor([i])}

    def select(self, _: range) -> Texts:
        return Texts(self.count)


class Sparsify(Peer):
    """Trainer.fit with a model that hands out the rows."""

    package, module = "eai-sparsify", "sparsify"

    def build(self) -> None:
        from sparsify import SparseCoderConfig, TrainConfig
        from sparsify.trainer import Trainer

        options = dict(self.options)
        training, self.scheduled = options.pop("training", {}), options.pop("scheduled", True)
        coder = SparseCoderConfig(num_latents=self.n, k=self.k, **options)
        # With `finetune` the trainer leaves the weights that it has.
        settings = TrainConfig(
            coder, batch_size=self.batch, hookpoints=["rows"], log_to_wandb=False, finetune="given", **training
        )
        empty = torch.zeros(1, self.d)
        with contextlib.redirect_stdout(sys.stderr):
            self.trainer = Trainer(settings, Texts(10**9), Rows(empty, empty))  # type: ignore[arg-type]
        self.trainer.save = lambda: None
        if not self.scheduled:
            self.trainer.lr_schedulers = []
        self.coder = self.trainer.saes["rows"].to(self.dtype)

    def places(self) -> Places:
        names = {"W_enc": "encoder.weight", "b_enc": "encoder.bias", "W_dec": "W_dec", "b_dec": "b_dec"}
        if self.coder.W_skip is not None:
            names["W_skip"] = "W_skip"
        found = dict(self.coder.named_parameters())
        return {name: (found[theirs], False) for name, theirs in names.items()}

    def _dead(self) -> Tensor | None:
        settings = self.trainer.cfg
        rows = self.trainer.num_tokens_since_fired["rows"]
        return rows > settings.dead_feature_threshold if settings.auxk_alpha > 0 else None

    def _total(self, out: Any) -> Tensor:
        return out.fvu + self.trainer.cfg.auxk_alpha * out.auxk_loss + out.multi_topk_fvu / 8

    def cost(self, x: Tensor, y: Tensor) -> Tensor:
        return self._total(self.coder(x, y, dead_mask=self._dead()))

    def code(self, x: Tensor) -> Tensor:
        acts, indices, _ = self.coder.encode(x)
        return torch.zeros(len(x), self.n).scatter_(1, indices, acts)

    def fit(self, X: Tensor, Y: Tensor) -> list[float]:
        losses: list[float] = []
        watch = self.coder.register_forward_hook(lambda *given: losses.append(float(self._total(given[2]).detach())))
        self.trainer.model = Rows(X, Y)
        self.trainer.dataset = Texts(len(X), self.trainer.global_step * self.batch)
        try:
            self.trainer.fit()
        finally:
            watch.remove()
        return losses

    @staticmethod
    def read(folder: str, x: Tensor) -> tuple[Tensor, Tensor]:
        from sparsify import SparseCoder

        coder = SparseCoder.load_from_disk(folder)
        acts, indices, _ = coder.encode(x)
        return torch.zeros(len(x), coder.num_latents).scatter_(1, indices, acts), coder(x).sae_out

    def write(self, folder: str) -> None:
        self.coder.save_to_disk(folder)

    def settle(self) -> None:
        # Its trainer does this at the start of the next step.
        if self.coder.cfg.normalize_decoder and not self.coder.cfg.transcode:
            self.coder.set_decoder_norm_to_unit_norm()

    def set_rows_since_fired(self, rows: Tensor) -> None:
        self.trainer.num_tokens_since_fired["rows"] = rows.long()


class DictionaryLearning(Peer):
    """The trainers' `update`. The geometric median is left out: it is taken in step 0 of those that select."""

    package, module = "dictionary-learning", "dictionary_learning"

    def build(self) -> None:
        module, name = TRAINERS[self.case["model"]]
        trainer = getattr(importlib.import_module(f"dictionary_learning.trainers.{module}"), name)
        options = {"steps": 10**6, "device": "cpu", "layer": 0, "lm_name": "", **self.options}
        self.selects = self.case["model"] in ("topk", "batch_topk", "matryoshka")
        if self.selects:
            options["k"] = self.k
        self.dead_after = options.pop("dead_after", None)
        self.trainer = trainer(activation_dim=self.d, dict_size=self.n, **options)
        self.trainer.ae.to(self.dtype)
        self.first = self.done = 1 if self.selects else 0

    def places(self) -> Places:
        found = {}
        for theirs, parameter in self.trainer.ae.named_parameters():
            name, transposed = NAMES[theirs]
            found[name] = (parameter, transposed)
        return found

    def cost(self, x: Tensor, y: Tensor) -> Tensor:
        return self.trainer.loss(x, step=self.first)

    def code(self, x: Tensor) -> Tensor:
        choice = {"use_threshold": False} if self.selects else {}
        return self.trainer.ae.encode(x, **choice)

    def fit(self, X: Tensor, Y: Tensor) -> list[float]:
        losses: list[float] = []
        loss = self.trainer.loss

        def recorded(*given: Any, **more: Any) -> Tensor:
            losses.append(loss(*given, **more))
            return losses[-1]

        self.trainer.loss = recorded
        for x in X.split(self.batch):
            self.trainer.update(self.done, x)
            losses[-1] = float(losses[-1].detach())
            self.done += 1
        self.trainer.loss = loss
        return losses

    def threshold(self) -> Tensor | None:
        return self.trainer.ae.threshold if self.case["model"] in ("batch_topk", "matryoshka") else None

    def set_rows_since_fired(self, rows: Tensor) -> None:
        self.trainer.num_tokens_since_fired = rows.long()


PEERS: dict[str, type[Peer]] = {
    "saelens": SAELens,
    "sparsify": Sparsify,
    "dictionary_learning": DictionaryLearning,
    "openai": OpenAI,
    "torch": Plain,
}


def answer(case: Case) -> dict[str, str]:
    """Code, loss and gradients on the first batch; then the loss of each step from the same start, and what is left."""
    given = dict(np.load(case["weights"]))
    kind = PEERS[case["library"]]
    X = torch.from_numpy(given["X"])
    Y = torch.from_numpy(given["Y"]) if "Y" in given else X
    peer = kind(case)
    peer.set(given)
    x, y = X[: peer.batch], Y[: peer.batch]
    with torch.no_grad():
        found = {"code": peer.code(x).numpy()}
    loss = peer.cost(x, y)
    loss.backward()
    found |= {"loss": np.array(float(loss.detach()))}
    found |= {f"gradient {name}": value for name, value in peer.gradients().items()}
    if case.get("steps"):
        peer = kind(case)
        peer.set(given)
        found["losses"] = np.array(peer.fit(X, Y))
        found |= {f"after {name}": value for name, value in peer.left().items()}
    np.savez(case["answer"], **found)
    return peer.versions()


def exchange(entry: dict[str, Any]) -> None:
    """Read a folder of ours, and write one after a few steps: code and output of the rows, as the library has them."""
    kind, given = PEERS[entry["library"]], dict(np.load(entry["rows"]))
    torch.set_default_dtype(torch.float32)
    X = torch.from_numpy(given["X"])
    found = {}
    with torch.no_grad():
        found["code"], found["output"] = kind.read(entry["ours"], X)
    if entry["model"] is not None:
        found |= written(kind, entry, X, torch.from_numpy(given["Y"]))
    np.savez(entry["answer"], **{name: value.numpy() for name, value in found.items()})


def written(kind: type[Peer], entry: dict[str, Any], X: Tensor, Y: Tensor) -> dict[str, Tensor]:
    """What the library reads of its own file."""
    peer = kind({**entry, "batch": len(X) // entry["steps"]})
    peer.fit(X, Y)
    peer.settle()
    peer.write(entry["theirs"])
    with torch.no_grad():
        return dict(zip(("their code", "their output"), kind.read(entry["theirs"], X), strict=True))


def main() -> None:
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    job = json.loads(Path(sys.argv[1]).read_text())
    versions: dict[str, str] = {}
    for case in job["cases"]:
        versions |= answer(case)
    for entry in job["files"]:
        exchange(entry)
    Path(job["versions"]).write_text(json.dumps(versions))


if __name__ == "__main__":
    main()
