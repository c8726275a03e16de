"""Sparse autoencoders in plain PyTorch: OpenAI's step after the formulas of its repository, and ours."""

from __future__ import annotations

import torch
from sae_peer import Peer, Places
from torch import Tensor, nn


class OpenAI(Peer):
    """Its autoencoder and loop: decoder to unit norm and projection between the gradient and Adam."""

    def build(self) -> None:
        options = {"lr": 1e-4, "eps": 6.25e-10, "auxk": 256, "auxk_coef": 1 / 32, "mse_scale": 1.0, "dead_steps": 10**9}
        self.settings = options | self.options
        shapes = {"W_enc": (self.n, self.d), "W_dec": (self.n, self.d), "b_enc": (self.n,), "b_dec": (self.d,)}
        self.p = {name: nn.Parameter(torch.zeros(shape)) for name, shape in shapes.items()}
        self.idle = torch.zeros(self.n, dtype=torch.long)
        adam = {"lr": self.settings["lr"], "eps": self.settings["eps"]}
        self.adam = torch.optim.Adam(self.p.values(), fused=True, **adam)

    def places(self) -> Places:
        return {name: (p, False) for name, p in self.p.items()}

    def decode(self, values: Tensor, indices: Tensor) -> Tensor:
        summed = nn.functional.embedding_bag(indices, self.p["W_dec"], per_sample_weights=values, mode="sum")
        return summed + self.p["b_dec"]

    def cost(self, x: Tensor, y: Tensor) -> Tensor:
        if self.settings["mse_scale"] is None:  # of a sample of rows: the first batch
            self.settings["mse_scale"] = 1 / (x - x.mean(0)).pow(2).mean()
        centred = x - self.p["b_dec"]
        z = nn.functional.linear(centred, self.p["W_enc"], self.p["b_enc"])
        values, indices = z.topk(self.k, dim=1)
        fired = torch.zeros(self.n, dtype=torch.bool)
        fired[indices[values > 1e-3]] = True
        self.idle = torch.where(fired, 0, self.idle) + 1
        recons = self.decode(values.relu(), indices)
        loss = self.settings["mse_scale"] * (recons - x).pow(2).mean()
        if self.settings["auxk_coef"]:
            dead = self.idle > self.settings["dead_steps"]
            values, indices = (z * dead).topk(min(self.settings["auxk"], self.n), dim=1)
            target = (x - recons + self.p["b_dec"]).detach()
            auxiliary = (self.decode(values.relu(), indices) - target).pow(2).mean()
            auxiliary = auxiliary / (target - target.mean(0)).pow(2).mean()
            loss = loss + self.settings["auxk_coef"] * auxiliary.nan_to_num(0)
        return loss

    def code(self, x: Tensor) -> Tensor:
        z = nn.functional.linear(x - self.p["b_dec"], self.p["W_enc"], self.p["b_enc"])
        values, indices = z.topk(self.k, dim=1)
        return torch.zeros_like(z).scatter_(1, indices, values.relu())

    def fit(self, X: Tensor, Y: Tensor) -> list[float]:
        losses = []
        for x in X.split(self.batch):
            loss = self.cost(x, x)
            loss.backward()
            with torch.no_grad():
                W, G = self.p["W_dec"], self.p["W_dec"].grad
                W /= W.norm(dim=1, keepdim=True)
                G -= (W * G).sum(1, keepdim=True) * W
            self.adam.step()
            self.adam.zero_grad()
            losses.append(float(loss.detach()))
        return losses

    def set_rows_since_fired(self, rows: Tensor) -> None:
        self.idle = (rows / self.batch).long()


class Plain(Peer):
    """TopK as one would write it, in one of several ways: the code dense or by embedding_bag, compiled or not."""

    def build(self) -> None:
        self.bag = self.options.get("bag", False)
        self.low = self.options.get("autocast", False)
        shapes = {"W_enc": (self.n, self.d), "W_dec": (self.n, self.d), "b_enc": (self.n,), "b_dec": (self.d,)}
        self.p = {name: nn.Parameter(torch.zeros(shape)) for name, shape in shapes.items()}
        self.rows_since_fired = torch.zeros(self.n, dtype=torch.long)
        self.adam = torch.optim.Adam(self.p.values(), lr=self.options.get("lr", 1e-3), fused=True)
        self.forward, self.project, self.normalise = self._forward, self._project, self._normalise
        if self.options.get("compile"):
            self.forward = torch.compile(self._forward, dynamic=False, fullgraph=True)
            self.project, self.normalise = torch.compile(self._project), torch.compile(self._normalise)

    def places(self) -> Places:
        return {name: (p, False) for name, p in self.p.items()}

    def _forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        p = self.p
        z = nn.functional.linear(x - p["b_dec"], p["W_enc"], p["b_enc"])
        values, indices = z.topk(self.k, dim=1, sorted=False)
        values = values.relu()
        if self.bag:
            weights = values.to(p["W_dec"].dtype)
            y = nn.functional.embedding_bag(indices, p["W_dec"], per_sample_weights=weights, mode="sum")
        else:
            y = torch.zeros_like(z).scatter(1, indices, values.to(z.dtype)) @ p["W_dec"]
        return (y + p["b_dec"] - x).float().pow(2).sum() / len(x), values, indices

    def _project(self) -> None:
        W, G = self.p["W_dec"], self.p["W_dec"].grad
        G -= (W * G).sum(1, keepdim=True) * W

    def _normalise(self) -> None:
        W = self.p["W_dec"]
        W /= W.norm(dim=1, keepdim=True)

    def _run(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        with torch.autocast("cpu", torch.bfloat16, enabled=self.low):
            return self.forward(x)

    def cost(self, x: Tensor, y: Tensor) -> Tensor:
        return self._run(x)[0]

    def code(self, x: Tensor) -> Tensor:
        _, values, indices = self._run(x)
        return torch.zeros(len(x), self.n).scatter_(1, indices, values.float())

    def fit(self, X: Tensor, Y: Tensor) -> list[float]:
        losses = []
        for x in X.split(self.batch):
            loss, values, indices = self._run(x)
            loss.backward()
            with torch.no_grad():
                self.rows_since_fired += len(x)
                self.rows_since_fired[indices[values > 0]] = 0
                self.project()
                self.adam.step()
                self.normalise()
            self.adam.zero_grad()
            losses.append(float(loss.detach()))
        return losses

    def set_rows_since_fired(self, rows: Tensor) -> None:
        self.rows_since_fired = rows.long()
