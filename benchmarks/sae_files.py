"""Dictionaries that agree_sae.py writes for SAELens and sparsify, and reads from them."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
from sae_cases import WIDTHS, D, K, N, far

import fastsae
from fastsae import formats

ROWS, STEPS = 640, 10
#: In float32: how far codes and outputs may be apart, relative to the largest of them.
TOLERANCE = 1e-5


@dataclasses.dataclass(frozen=True)
class Exchange:
    """Our `estimator` with `params`, the library's `model` with `options`; no model where the library trains none."""

    library: str
    estimator: str
    model: str | None
    params: dict[str, Any] = dataclasses.field(default_factory=dict)
    options: dict[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def name(self) -> str:
        params = ", ".join(f"{name}={value!r}" for name, value in self.params.items())
        return f"{self.library}, {self.estimator}({params})"

    def fitted(self, X: np.ndarray, Y: np.ndarray) -> Any:
        given = {"batch_size": ROWS // STEPS, "max_steps": STEPS, "random_state": 0, "device": "cpu", **self.params}
        if "TopK" in self.estimator or self.estimator == "MatryoshkaSAE" or given.get("architecture") == "topk":
            given["k"] = K
        made = getattr(fastsae, self.estimator)(N, verbose=False, learning_rate=1e-3, **given)
        return made.fit(X, Y) if self.estimator == "Transcoder" else made.fit(X)


EXCHANGES = [
    Exchange("saelens", "TopKSAE", "topk"),
    Exchange("saelens", "TopKSAE", "topk", {"preset": "saelens"}),
    Exchange("saelens", "TopKSAE", "topk", {"scale": "zscore"}),
    Exchange("saelens", "TopKSAE", None, {"scale": "layer_norm"}),
    Exchange("saelens", "BatchTopKSAE", "batch_topk", {"preset": "saelens"}),
    Exchange("saelens", "MatryoshkaSAE", "matryoshka", {"prefixes": WIDTHS}, {"matryoshka_widths": list(WIDTHS)}),
    Exchange("saelens", "JumpReLUSAE", "jump_relu"),
    Exchange("saelens", "GatedSAE", "gated"),
    Exchange("saelens", "L1SAE", "relu"),
    Exchange("saelens", "Transcoder", None, {"architecture": "jump_relu"}),
    Exchange("saelens", "Transcoder", None, {"architecture": "relu", "skip": True}),
    Exchange("sparsify", "TopKSAE", "topk"),
    Exchange("sparsify", "TopKSAE", "topk", {"preset": "saelens"}),
    Exchange("sparsify", "Transcoder", "topk", {"architecture": "topk"}, {"transcode": True}),
    Exchange(
        "sparsify", "Transcoder", "topk", {"architecture": "topk", "skip": True},
        {"transcode": True, "skip_connection": True},
    ),
]  # fmt: skip


def write(exchange: Exchange, folder: Path) -> dict[str, Any]:
    """Train ours and save it in the library's layout; what sae_peers.py is to do with it."""
    folder.mkdir()
    rng = np.random.default_rng(2)
    X = rng.standard_normal((ROWS, D)).astype(np.float32) + 0.5
    Y = np.tanh(X @ rng.standard_normal((D, D))).astype(np.float32)
    fitted = exchange.fitted(X, Y)
    getattr(formats, f"save_{exchange.library}")(fitted, folder / "ours")
    np.savez(folder / "rows.npz", X=X, Y=Y)
    np.savez(folder / "ours.npz", code=fitted.transform(X), output=outputs_of(fitted, X))
    paths = {"ours": "ours", "theirs": "theirs", "rows": "rows.npz", "answer": "answer.npz"}
    told = {name: getattr(exchange, name) for name in ("library", "model", "options")}
    sizes = {"n_features": D, "n_latents": N, "k": K, "steps": STEPS}
    return told | sizes | {name: str(folder / path) for name, path in paths.items()}


def outputs_of(fitted: Any, X: np.ndarray) -> np.ndarray:
    """What the rows are, or become."""
    return np.asarray(fitted.predict(X) if isinstance(fitted, fastsae.Transcoder) else fitted.reconstruct(X))


def compared(exchange: Exchange, folder: Path) -> dict[str, Any]:
    """How far apart both are on what each of them wrote."""
    ours, theirs = dict(np.load(folder / "ours.npz")), dict(np.load(folder / "answer.npz"))
    apart = {
        "they_read_code": far(ours["code"], theirs["code"]),
        "they_read_output": far(ours["output"], theirs["output"]),
    }
    if exchange.model is not None:
        loaded = getattr(formats, f"load_{exchange.library}")(folder / "theirs", device="cpu")
        X = np.load(folder / "rows.npz")["X"]
        apart["we_read_code"] = far(loaded.transform(X), theirs["their code"])
        apart["we_read_output"] = far(outputs_of(loaded, X), theirs["their output"])
    return {"file": exchange.name, "apart": apart, "tolerance": TOLERANCE, "agree": max(apart.values()) <= TOLERANCE}
