"""What training continues from, beside what the engine holds."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastsae.checks import check_integer

#: Sums over steps that every engine keeps.
COSTS = ("reconstruction", "penalty", "decay", "gradient_norm", "weight")
#: Those that a sparse code's engine keeps too, in the order of its tensor ``monitor``.
MONITOR = ("rows", "active", "squared_error", "variance", "auxiliary", "sparsity")

_COUNTS = ("seed", "epoch", "n_rows", "rows_done", "epochs_since_best", "logged", "resampled")
_LISTS = ("history", "step_history")
_ARRAYS = ("best_parameters", "fired", "frequency")


@dataclasses.dataclass
class TrainerState:
    """All that training continues from, beside what the engine holds.

    Attributes
    ----------
    seed : int
        Source of every epoch's row order and noise, and of the validation split.
    epoch : int
        Epochs finished.
    n_rows : int
        Rows that the training began with and that `resume` needs; 0 if it needs no certain number.
    rows_done : int
        Rows used of the epoch that has begun.
    sums, piece_sums : dict
        Cost sums over those rows: of the pieces before the last one, and of the last one, which may not be complete.
        A sum of rounded numbers depends on their grouping; this one is the same however training was interrupted.
    history : dict of list
        One entry per finished epoch.
    best_loss, epochs_since_best, best_parameters
        Of early stopping.
    finished : bool
        Early stopping or a callback ended the training.
    window : dict
        As `sums`, of the steps since the last entry of `step_history`.
    step_history : dict of list
        What was measured every `log_every` steps.
    logged, resampled : int
        Steps that had been taken at the last such entry, and when dead latents were last resampled.
    fired : ndarray of float64, shape (n_latents + 1,), or None
        Rows in which each latent of a sparse code fired since `frequency` was made, and all those rows.
    frequency : ndarray of float64, shape (n_latents,), or None
        Share of rows in which each did, over the `log_every` steps or the epoch before that.
    """

    seed: int
    epoch: int = 0
    n_rows: int = 0
    rows_done: int = 0
    sums: dict[str, float] = dataclasses.field(default_factory=dict)
    piece_sums: dict[str, float] = dataclasses.field(default_factory=dict)
    history: dict[str, list[float]] = dataclasses.field(default_factory=dict)
    best_loss: float = math.inf
    epochs_since_best: int = 0
    finished: bool = False
    best_parameters: dict[str, NDArray[Any]] = dataclasses.field(default_factory=dict)
    window: dict[str, float] = dataclasses.field(default_factory=dict)
    step_history: dict[str, list[float]] = dataclasses.field(default_factory=dict)
    logged: int = 0
    resampled: int = 0
    fired: NDArray[np.float64] | None = None
    frequency: NDArray[np.float64] | None = None

    def start_pass(self, n_rows: int) -> None:
        """Begin one pass over other rows: an unfinished epoch and early stopping are forgotten."""
        fresh = TrainerState(self.seed, self.epoch, n_rows, history=self.history)
        fresh.window = add(self.window, self.piece_sums)
        for name in ("step_history", "logged", "resampled", "fired", "frequency"):
            setattr(fresh, name, getattr(self, name))
        self.__dict__.update(fresh.__dict__)

    def fold(self) -> None:
        """Begin another piece."""
        sums, window = add(self.sums, self.piece_sums), add(self.window, self.piece_sums)
        self.__dict__.update(sums=sums, window=window, piece_sums={})

    def arrays(self) -> dict[str, NDArray[np.float64]]:
        """What a file keeps as tensors, but for `best_parameters`."""
        named = {"fired": self.fired, "frequency": self.frequency}
        return {name: value for name, value in named.items() if value is not None}

    def to_dict(self) -> dict[str, Any]:
        """The others as JSON values."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {name: value for name, value in values.items() if name not in _ARRAYS}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> TrainerState:
        """The inverse of `to_dict`; ValueError on anything that cannot be a state."""
        try:
            state = cls(**values)
        except TypeError as error:
            raise ValueError(f"trainer state: {error}") from None
        for name in _COUNTS:
            check_integer(f"trainer state: {name}", getattr(state, name), 0)
        for name in ("sums", "piece_sums", "window"):
            sums = getattr(state, name)
            known = isinstance(sums, dict) and set(sums) in (set(), set(COSTS), {*COSTS, *MONITOR})
            if not known or not all(map(_is_number, sums.values())):
                raise ValueError(f"trainer state: {name}: expected the numbers {', '.join(COSTS)}")
        if state.rows_done > state.n_rows:
            raise ValueError("trainer state: rows_done: expected at most n_rows")
        if not _is_number(state.best_loss) or not isinstance(state.finished, bool):
            raise ValueError("trainer state: best_loss or finished is damaged")
        if state.best_parameters != {} or state.fired is not None or state.frequency is not None:
            raise ValueError("trainer state: best_parameters, fired and frequency are tensors of their own")
        for name in _LISTS:
            entries = getattr(state, name)
            lists = entries.values() if isinstance(entries, dict) else [None]
            if not all(isinstance(entry, list) and all(map(_is_number, entry)) for entry in lists):
                raise ValueError(f"trainer state: {name}: expected lists of numbers")
        if any(len(entry) > state.epoch for entry in state.history.values()):
            raise ValueError("trainer state: history: expected at most one entry for each epoch")
        return state


def add(a: Mapping[str, float], b: Mapping[str, float]) -> dict[str, float]:
    """Sums by name; what one lacks is 0."""
    return {name: a.get(name, 0.0) + b.get(name, 0.0) for name in (a if len(a) >= len(b) else b)}


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
