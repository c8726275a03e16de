"""What a language model's activations are made of: a small transformer, trained here, and a TopK dictionary of it.

A transformer learns to continue text that comes with Python: the topics of `help()` and the docstrings of the standard
library, by words. A hook collects what its residual stream holds behind a block at every word, and TopKSAE learns a
dictionary of those rows: 16 of 2048 latents for each word. Then, for some latents: the words where each is most active,
in their context, and the words that it makes more likely. How much the model suffers where the dictionary's
reconstruction takes the place of its activations says how much of them it holds.

Needs PyTorch. Tensors go in as they are: fastsae reads their memory.

    python examples/language_model.py
"""

from __future__ import annotations

import argparse
import ast
import collections
import re
import sysconfig
import time
from pathlib import Path
from pydoc_data.topics import topics

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from fastsae import TopKSAE

DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
RARE = "\N{REPLACEMENT CHARACTER}"


def documentation(most_files: int) -> str:
    """Python's help topics and the docstrings of its modules."""
    found = list(topics.values())
    folder = Path(sysconfig.get_paths()["stdlib"])
    paths = [path for path in (*folder.glob("*.py"), *folder.glob("*/*.py")) if "site-packages" not in path.parts]
    for path in sorted(paths)[:most_files]:
        nodes = ast.walk(ast.parse(path.read_bytes()))
        found += [ast.get_docstring(node) or "" for node in nodes if isinstance(node, DOCUMENTED)]
    return "\n\n".join(found)


def words_of(text: str) -> list[str]:
    """Words and signs, each with the space before it, and ends of lines."""
    return re.findall(r" ?\w+| ?[^\w\s]|\n+", re.sub(r"[ \t]+", " ", text))


class Block(nn.Module):
    """Attention to earlier words, then a layer of its own for each word; both add to the residual stream."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.before_attention, self.before_layers = nn.LayerNorm(width), nn.LayerNorm(width)
        self.to_heads, self.from_heads = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.layers = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows, length, width = x.shape
        parts = self.to_heads(self.before_attention(x)).view(rows, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(*parts, is_causal=True)
        x = x + self.from_heads(mixed.transpose(1, 2).reshape(rows, length, width))
        return x + self.layers(self.before_layers(x))


class Transformer(nn.Module):
    def __init__(self, n_words: int, length: int, width: int = 128, heads: int = 4, blocks: int = 3) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(n_words, width), nn.Embedding(length, width)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(blocks))
        self.norm = nn.LayerNorm(width)
        for embedding in (self.words, self.places):
            nn.init.normal_(embedding.weight, std=0.05)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """[rows x length] to the logits of what follows, [rows x length x n_words]."""
        x = self.words(tokens) + self.places.weight[: tokens.shape[1]]
        for block in self.blocks:
            x = block(x)
        return self.norm(x) @ self.words.weight.T

    def loss(self, tokens: torch.Tensor) -> torch.Tensor:
        return functional.cross_entropy(self(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())


def train(model: Transformer, tokens: torch.Tensor, length: int, steps: int, batch: int = 32) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps)
    windows = tokens.unfold(0, length + 1, 1)
    for step in range(steps):
        optimizer.zero_grad()
        loss = model.loss(windows[torch.randint(len(windows), (batch,))])
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 100 == 0 or step == steps - 1:
            print(f"  step {step:4d}: {loss.item():.2f} nats a word", flush=True)


@torch.no_grad()
def residuals(model: Transformer, block: int, rows: torch.Tensor) -> torch.Tensor:
    """What the residual stream holds behind a block at each word, [words x width]."""
    kept: list[torch.Tensor] = []
    hook = model.blocks[block].register_forward_hook(lambda module, inputs, output: kept.append(output.flatten(0, 1)))
    for part in rows.split(64):
        model(part)
    hook.remove()
    return torch.cat(kept)


@torch.no_grad()
def loss_with(model: Transformer, block: int, rows: torch.Tensor, sae: TopKSAE | None, nothing: bool = False) -> float:
    """The model's loss where reconstructions or zeros take the place of its activations behind a block."""

    def replace(module: nn.Module, inputs: object, output: torch.Tensor) -> torch.Tensor | None:
        if nothing:
            return torch.zeros_like(output)
        if sae is None:
            return None
        return torch.from_numpy(sae.reconstruct(output.flatten(0, 1))).view_as(output)

    hook = model.blocks[block].register_forward_hook(replace)
    losses = [model.loss(part).item() for part in rows.split(64)]
    hook.remove()
    return float(np.mean(losses))


def show(text: list[str]) -> str:
    return "".join(text).replace("\n", "\u2424")


def describe(
    model: Transformer, sae: TopKSAE, X: torch.Tensor, words: list[str], names: list[str], latents: int
) -> None:
    """Print the strongest contexts of some latents that fire neither often nor almost never."""
    code = sae.transform(X, output="csr").tocsc()
    share = np.diff(code.indptr) / len(X)
    strength = np.array([code.data[a:b].max(initial=0) for a, b in zip(code.indptr[:-1], code.indptr[1:], strict=True)])
    chosen = np.flatnonzero((share > 1e-4) & (share < 5e-3))
    chosen = chosen[np.argsort(-strength[chosen])][:latents]
    with torch.no_grad():
        likelier = torch.from_numpy(np.asarray(sae.decoder_[chosen], np.float32)) @ model.words.weight.T
    for latent, logits in zip(chosen, likelier, strict=True):
        rows, values = (part[code.indptr[latent] : code.indptr[latent + 1]] for part in (code.indices, code.data))
        promoted = ", ".join(repr(names[i]) for i in logits.topk(4).indices)
        print(f"\nlatent {latent}, active at {100 * share[latent]:.2f} % of the words; makes likelier: {promoted}")
        for i in np.argsort(-values)[:5]:
            at = rows[i]
            before, after = show(words[max(at - 8, 0) : at]), show(words[at + 1 : at + 4])
            print(f"  {values[i]:6.2f}  {before:>45.45} [{show(words[at : at + 1])}] {after}")


def main(arguments: list[str] | None = None) -> dict[str, float]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=400, help="of the standard library whose docstrings are read")
    parser.add_argument("--vocabulary", type=int, default=4000)
    parser.add_argument("--length", type=int, default=64, help="words that the transformer sees at once")
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--block", type=int, default=1, help="behind which the residual stream is read, from 0")
    parser.add_argument("--latents", type=int, default=2048)
    parser.add_argument("--k", type=int, default=16)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--shown", type=int, default=8)
    options = parser.parse_args(arguments)
    torch.manual_seed(0)
    begin = time.perf_counter()

    words = words_of(documentation(options.files))
    names = [RARE, *(word for word, _ in collections.Counter(words).most_common(options.vocabulary - 1))]
    number = {name: i for i, name in enumerate(names)}
    tokens = torch.tensor([number.get(word, 0) for word in words])
    whole = len(tokens) // options.length * options.length
    rows, words = tokens[:whole].view(-1, options.length), words[:whole]
    held_out = rows[::20]
    print(f"{len(words)} words; a transformer learns to continue them")
    model = Transformer(len(names), options.length)
    train(model, tokens, options.length, options.steps)
    trained = time.perf_counter()

    X = residuals(model, options.block, rows)
    sae = TopKSAE(options.latents, k=options.k, max_epochs=options.epochs, batch_size=1024, random_state=0)
    sae.fit(X)
    print(f"TopKSAE({options.latents}, k={options.k}) learned from {len(X)} rows of {X.shape[1]}")
    error = X - torch.from_numpy(sae.reconstruct(X))
    figures = {
        "explained_variance": float(1 - error.pow(2).sum() / (X - X.mean(0)).pow(2).sum()),
        "loss": loss_with(model, options.block, held_out, None),
        "loss_reconstructed": loss_with(model, options.block, held_out, sae),
        "loss_without": loss_with(model, options.block, held_out, None, nothing=True),
    }
    kept = (figures["loss_without"] - figures["loss_reconstructed"]) / (figures["loss_without"] - figures["loss"])
    print(
        f"explained variance {figures['explained_variance']:.3f}; nats a word: {figures['loss']:.2f}, "
        f"{figures['loss_reconstructed']:.2f} on reconstructions and {figures['loss_without']:.2f} on zeros, "
        f"so {100 * kept:.1f} % are recovered"
    )
    describe(model, sae, X, words, names, options.shown)
    print(f"\n{trained - begin:.0f} s for the transformer, {time.perf_counter() - trained:.0f} s for the rest")
    return figures


if __name__ == "__main__":
    main()
