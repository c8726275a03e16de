"""Dead latents: which they are, and giving them another start."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fastsae._core import DeviceArray
from fastsae.arrays import Rows
from fastsae.sparse_code import SparseCodeConfig

if TYPE_CHECKING:
    from fastsae.engine import Engine, ModelConfig

_SHARE = 0.2  # of the living latents' norm, that a resampled latent reads with


def dead_latents(engine: Engine[ModelConfig]) -> NDArray[np.bool_]:
    """Which latents of a sparse code have not fired in more than ``dead_after`` rows, shape (n_latents,)."""
    since = engine.get("rows_since_fired")
    after = _config_of(engine).dead_after
    dead: NDArray[np.bool_] = np.zeros(len(since), bool) if after is None else since > after
    return dead


def resample(engine: Engine[ModelConfig], rows: Rows, random: np.random.Generator) -> dict[str, NDArray[Any]]:
    """Tensors that give dead latents another start, by name, for :meth:`fastsae.Engine.set`.

    As Bricken et al., "Towards monosemanticity" (2023), and dictionary_learning's StandardTrainer: rows are drawn
    without replacement with probabilities proportional to ``|x - y^|``, one for each dead latent. With
    ``v = x~ / |x~|`` that latent reads ``0.2 m v`` with bias 0 and writes v, where m is the mean norm of what living
    latents read; the optimiser forgets it, and it counts as alive. Under a decoder of free norm it writes v times the
    living latents' mean norm.

    Parameters
    ----------
    engine : Engine
        Of an autoencoder that subtracts ``b_dec`` or not: ``x~`` is what it encodes.
    rows : array, shape (n_rows, n_features)
        The rows to draw from. Of more dead latents than rows the first are resampled.
    random : numpy.random.Generator

    Returns
    -------
    dict of array
        Empty if no latent is dead or no row has an error; without living latents m is 1.
    """
    dead = np.flatnonzero(dead_latents(engine))
    if not len(dead):
        return {}
    x = np.asarray(rows.numpy() if isinstance(rows, DeviceArray) else rows, np.float64)
    output = engine.reconstruct(rows)
    error = np.linalg.norm(x - (output.numpy() if isinstance(output, DeviceArray) else output), axis=1)
    if _config_of(engine).pre_bias:
        x = x - engine.get("b_dec")
    length = np.linalg.norm(x, axis=1)
    error[length == 0] = 0.0
    count = min(len(dead), int((error > 0).sum()))
    if not count:
        return {}
    drawn = random.choice(len(x), count, replace=False, p=error / error.sum())
    chosen, directions = dead[:count], x[drawn] / length[drawn, None]
    reads, writes = engine.get("W_enc"), engine.get("W_dec")
    alive = np.setdiff1d(np.arange(len(reads)), dead)
    unit = _config_of(engine).decoder_norm == "unit"
    reads[chosen] = _SHARE * _mean_norm(reads[alive]) * directions
    writes[chosen] = (1.0 if unit else _mean_norm(writes[alive])) * directions
    changed = {"W_enc": reads, "W_dec": writes, "b_enc": engine.get("b_enc")}
    moments = [name for name in engine.state_names() if name.endswith((".W_enc", ".W_dec", ".b_enc"))]
    changed |= {name: engine.get(name) for name in moments}
    changed["rows_since_fired"] = engine.get("rows_since_fired")
    for name, values in changed.items():
        if name not in ("W_enc", "W_dec"):
            values[chosen] = 0
    return changed


def _config_of(engine: Engine[ModelConfig]) -> SparseCodeConfig:
    assert isinstance(engine.config, SparseCodeConfig)
    return engine.config


def _mean_norm(rows: NDArray[Any]) -> float:
    return float(np.linalg.norm(rows, axis=1).mean()) if len(rows) else 1.0
