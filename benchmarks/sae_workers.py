"""Those that bench_sae.py compares, each in a process of its own: a training step of a TopK autoencoder by fastsae, by
other libraries' own trainers (sae_peers.py), by plain PyTorch, and the encoder's product alone.

    python benchmarks/sae_workers.py NAME --device cpu
"""

from __future__ import annotations

import ctypes
import functools
import os
from pathlib import Path
from typing import Any

import numpy as np
from product_workers import PROVIDERS, Multiplying
from worker import Row, Worker, serve

#: Steps after which the losses of those that train alike must be the same.
CHECKED = 3
#: What a library is told beside the sizes; with nothing it is as it comes. Learning rates and their warm-ups, which
#: take no time, are those of ours, so that losses can be compared.
LIBRARIES: dict[str, tuple[str, dict[str, Any]]] = {
    "saelens": ("saelens", {}),
    "saelens sparse": ("saelens", {"use_sparse_activations": True, "rescale_acts_by_decoder_norm": False}),
    "saelens compiled": ("saelens", {"compile": True}),
    "sparsify": ("sparsify", {}),
    "sparsify adam": ("sparsify", {"training": {"optimizer": "adam", "lr": 1e-3, "lr_warmup_steps": 0}}),
    "dictionary_learning": ("dictionary_learning", {"warmup_steps": 0, "lr": 1e-3}),
    "torch dense": ("torch", {}),
    "torch bag": ("torch", {"bag": True}),
    "torch compiled": ("torch", {"compile": True}),
}
#: How a library computes in bf16, of those that can on a CPU.
LOW: dict[str, dict[str, Any]] = {"saelens": {"training": {"autocast": True}}, "torch": {"autocast": True}}
#: Ours as it comes but for the learning rate, and as each library trains.
OURS: dict[str, dict[str, Any]] = {
    "ours": {"learning_rate": 1e-3},
    "ours as saelens": {
        "learning_rate": 3e-4, "max_grad_norm": 1.0, "decoder_norm": "rescale", "aux_weight": 1.0, "aux_relu": False,
        "aux_reduction": "sum",
    },
    "ours as sparsify": {"learning_rate": 1e-3, "loss_reduction": "fvu", "aux_weight": 0.0},
    "ours as dictionary_learning": {"learning_rate": 1e-3, "max_grad_norm": 1.0, "aux_share": False},
}  # fmt: skip


#: Of other models than TopK: SAELens's class as it comes, and ours that trains as it does. `shift` is the first bias of
#: those that keep what is above 0: of normal rows about `k` of 16384 latents are.
MODELS: dict[str, dict[str, Any]] = {
    "topk": {},
    "batch_topk": {"activation": "batch_topk", "threshold_decay": 0.99, "threshold_start": 0.0},
    "matryoshka": {"activation": "batch_topk", "threshold_decay": 0.99, "threshold_start": 0.0},
    "jump_relu": {"activation": "jump_relu", "sparsity": "step", "bandwidth": 0.05},
    "gated": {"activation": "gated", "sparsity": "l1", "gate_detached": False},
    "relu": {"activation": "relu", "sparsity": "l1"},
}
SELECTING, SHIFT = ("topk", "batch_topk", "matryoshka"), -2.9


def model_of(row: Row) -> str:
    return str(row.get("model", "topk"))


def prefixes_of(row: Row) -> tuple[int, ...]:
    """Of a Matryoshka code: an eighth of the latents, a quarter, half, all."""
    return tuple(row["latents"] // part for part in (8, 4, 2, 1)) if model_of(row) == "matryoshka" else ()


def options_of(name: str, row: Row) -> dict[str, Any]:
    """Ours of a row's model."""
    options, model = OURS[name], model_of(row)
    if model in SELECTING:
        return {**options, **MODELS[model], "k": row["k"], "prefixes": prefixes_of(row)}
    kept = {name: options[name] for name in ("learning_rate", "max_grad_norm") if name in options}
    return {**kept, **MODELS[model], "decoder_norm": "free"}


def problem(row: Row) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """The rows of all batches and the first weights, the same in every process."""
    d, n = row["features"], row["latents"]
    rng = np.random.default_rng(0)
    X = rng.standard_normal((row["batches"] * row["batch"], d), dtype=np.float32)
    W = rng.standard_normal((n, d), dtype=np.float32)
    W /= np.linalg.norm(W, axis=1, keepdims=True)
    first = np.full(n, 0.0 if model_of(row) in SELECTING else SHIFT, np.float32)
    weights = {"W_enc": W, "W_dec": W, "b_dec": np.zeros(d, np.float32), "threshold": np.full(n, 0.01, np.float32)}
    weights |= {"b_enc": first, "b_gate": first, "b_mag": 0 * first, "r_mag": 0 * first}
    return X, weights


def memory(name: str) -> int:
    """Bytes of this process: VmRSS now, VmHWM at most since `forget_peak`; 0 where the system does not say."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return 0
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith(name)), 0)


def forget_peak() -> None:
    """Give back what is free and measure the peak anew."""
    try:
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
    except (AttributeError, OSError):
        return


class Stepping(Worker):
    """One that takes whole steps, which are long: one of them says how long."""

    def prepare(self, row: Row) -> dict[str, Any]:
        self.lasting = self.lasting or frozenset(vars(self))
        self.load()
        forget_peak()
        before = memory("VmRSS")
        checked = self.setup(row)
        self.seconds_per_step, _ = self.timed(1)
        return {**checked, "versions": self.versions(), "bytes_before": before}

    def slice(self, seconds: float) -> dict[str, float]:
        return {**super().slice(seconds), "peak_bytes": memory("VmHWM")}

    def load(self) -> None:
        """What it needs of libraries."""

    def batches_of(self, steps: int) -> list[int]:
        """Where the rows of the next steps begin."""
        begins = [(self.done + i) % self.batches * self.batch for i in range(steps)]
        self.done += steps
        return begins


class Ours(Stepping):
    """Engine.step on batches that lie in memory."""

    def __init__(self, device: str, name: str) -> None:
        super().__init__(device)
        self.name = name

    def versions(self) -> dict[str, str]:
        import fastsae

        return {"fastsae": fastsae.__version__, "numpy": np.__version__}

    def load(self) -> None:
        import fastsae  # noqa: F401

    def setup(self, row: Row) -> dict[str, Any]:
        from fastsae import Engine
        from fastsae.sparse_code import SparseCodeConfig

        self.X, weights = problem(row)
        self.batch, self.batches, self.done = row["batch"], row["batches"], 0
        precision = {"fp32": "full", "bf16": "bf16"}[row["precision"]]
        options = options_of(self.name, row)
        config = SparseCodeConfig(row["features"], row["latents"], precision=precision, **options)
        self.engine = Engine(config, self.device)
        for name in config.parameter_shapes:
            self.engine.set(name, weights[name])
        del weights
        self.run(CHECKED)
        return {"loss": self.engine.evaluate(self.X[: self.batch])["loss"]}

    def run(self, steps: int) -> int:
        for begin in self.batches_of(steps):
            self.engine.step(self.X[begin : begin + self.batch])
        return steps


class Theirs(Stepping):
    """A library's trainer."""

    def __init__(self, device: str, name: str) -> None:
        super().__init__(device)
        self.library, self.options = LIBRARIES[name]

    def versions(self) -> dict[str, str]:
        return self.found

    def load(self) -> None:
        from sae_peers import PEERS

        PEERS[self.library].load()

    def setup(self, row: Row) -> dict[str, Any]:
        import torch
        from sae_peers import PEERS

        torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
        options = dict(self.options)
        if row["precision"] == "bf16":
            options |= LOW[self.library]
        X, weights = problem(row)
        self.X, self.join = torch.from_numpy(X), torch.cat
        self.batch, self.batches, self.done = row["batch"], row["batches"], 0
        if widths := prefixes_of(row):
            options["matryoshka_widths"] = list(widths)
        case = {"library": self.library, "model": model_of(row), "options": options, "k": row["k"], "batch": self.batch}
        self.peer = PEERS[self.library]({**case, "n_features": row["features"], "n_latents": row["latents"]})
        self.found = self.peer.versions()
        self.peer.set(weights)
        del weights
        self.run(CHECKED)
        self.peer.settle()
        with torch.no_grad():
            return {"loss": float(self.peer.cost(self.X[: self.batch], self.X[: self.batch]))}

    def run(self, steps: int) -> int:
        # Their loops take the rows of all steps at once.
        batches = [self.X[begin : begin + self.batch] for begin in self.batches_of(steps)]
        X = self.join(batches) if steps > 1 else batches[0]
        self.peer.fit(X, X)
        return steps


class Product(Multiplying):
    """The encoder's product: rows by latents."""

    def setup(self, row: Row) -> dict[str, Any]:
        random, multiply, _ = self.take(row)
        x, w = random(row["batch"], row["features"]), random(row["latents"], row["features"])
        z = random(row["batch"], row["latents"])
        self.work = lambda: multiply(x, w.T, out=z)
        return {}


WORKERS = {
    **{name: functools.partial(Ours, name=name) for name in OURS},
    **{name: functools.partial(Theirs, name=name) for name in LIBRARIES},
    **{f"{provider} product": functools.partial(Product, provider=provider) for provider in PROVIDERS},
}


if __name__ == "__main__":
    serve(WORKERS, __doc__)
