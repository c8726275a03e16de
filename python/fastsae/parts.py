"""Training of an estimator inside of another, and the encoder of a model's first layers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from numpy.typing import NDArray
from tqdm.auto import tqdm

from fastsae.base import Network
from fastsae.config import Config, LayerConfig
from fastsae.engine import Engine
from fastsae.trainer import Callback, Progress


def train_part(
    whole: Network[Any],
    part: Network[Any],
    name: str,
    place: Callable[[], None],
    X: Any,
    weights: Any,
    targets: NDArray[Any] | None = None,
    *,
    callback: Callback | None = None,
    note: Mapping[str, float] | None = None,
    progress: Progress | None = None,
) -> None:
    """Train `part`, from the start or on from where an interrupt left it.

    Parameters
    ----------
    whole : Network
        Whose checkpoint is written: every `checkpoint_every` epochs of the part, and when this ends, however it ends.
    name : str
        Of the progress bar.
    place : callable
        Takes what the part has learned over into the whole.
    callback, note
        Called after each epoch with its history and the entries of `note`; True ends the training of the part.
    """

    def after_epoch(entry: dict[str, float]) -> bool:
        ended = callback is not None and bool(callback({**entry, **(note or {})}))
        if part._state.epoch % whole.checkpoint_every == 0:
            save()
        return ended

    def save() -> None:
        if whole.checkpoint is not None:
            place()
            whole.save(whole.checkpoint)

    def bar(total: int, unit: str) -> Any:
        return tqdm(total=total, unit=unit, delay=1, disable=None if whole.verbose else True, desc=f"fastsae {name}")

    own, part.callback = part.callback, after_epoch
    train = part._resume if part.__sklearn_is_fitted__() else part._fit
    try:
        train(X, weights, progress or bar, targets)
    finally:
        part.callback = own
        if part.__sklearn_is_fitted__():
            place()
            save()


def first_layers(engine: Engine[Config], count: int) -> Engine[Config]:
    """The encoder of a model's first `count` layers, which are dense, with copies of their parameters."""
    config = engine.config
    layers = [
        LayerConfig(layer.units, layer.activation) for layer in config.layers[:count] if isinstance(layer, LayerConfig)
    ]
    encoder = Config(
        config.n_features,
        tuple(layers),
        n_outputs=layers[-1].units,
        n_encoder_layers=count,
        dtype=config.dtype,
        precision=config.precision,
    )
    twin = Engine(encoder, engine.device)
    twin.set_parameters({name: engine.get(name) for name in encoder.parameter_shapes})
    return twin
