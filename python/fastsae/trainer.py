"""The one loop behind fit, partial_fit and resume."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm.auto import tqdm

from fastsae.config import Config, TrainingConfig, check_integer
from fastsae.engine import Engine
from fastsae.stores import ArrayStore

Weights = NDArray[np.float64] | None
#: Called after each epoch with that epoch's history; True stops the training.
Callback = Callable[[dict[str, float]], bool | None]

_COST_PARTS = ("loss", "reconstruction", "penalty", "decay")
_SUMS = ("reconstruction", "penalty", "decay", "gradient_norm", "weight")
_SECONDS_PER_PIECE = 0.2  # of uninterrupted work between two updates of the progress bar
_LBFGS_MEMORY = 20


@dataclasses.dataclass
class TrainerState:
    """All that training continues from, beside what the engine holds.

    Attributes
    ----------
    seed : int
        Source of every epoch's row order and of the validation split.
    epoch : int
        Epochs finished.
    rows_done : int
        Rows used of the epoch that has begun.
    sums : dict
        Cost sums over those rows.
    history : dict of list
        One entry per finished epoch.
    best_loss, epochs_since_best, best_parameters
        Of early stopping.
    finished : bool
        Early stopping or a callback ended the training.
    """

    seed: int
    epoch: int = 0
    rows_done: int = 0
    sums: dict[str, float] = dataclasses.field(default_factory=lambda: dict.fromkeys(_SUMS, 0.0))
    history: dict[str, list[float]] = dataclasses.field(default_factory=dict)
    best_loss: float = math.inf
    epochs_since_best: int = 0
    finished: bool = False
    best_parameters: dict[str, NDArray[Any]] = dataclasses.field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """As JSON values, without `best_parameters`."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        del values["best_parameters"]
        return values

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> TrainerState:
        """The inverse of `to_dict`; ValueError on anything that cannot be a state."""
        try:
            state = cls(**values)
        except TypeError as error:
            raise ValueError(f"trainer state: {error}") from None
        for name in ("seed", "epoch", "rows_done", "epochs_since_best"):
            check_integer(f"trainer state: {name}", getattr(state, name), 0)
        if set(state.sums) != set(_SUMS) or not all(_is_number(v) for v in state.sums.values()):
            raise ValueError(f"trainer state: sums: expected the numbers {', '.join(_SUMS)}")
        if not _is_number(state.best_loss) or not isinstance(state.finished, bool):
            raise ValueError("trainer state: best_loss or finished is damaged")
        lists = state.history.values() if isinstance(state.history, dict) else [None]
        if not all(isinstance(entry, list) and all(_is_number(v) for v in entry) for entry in lists):
            raise ValueError("trainer state: history: expected lists of numbers")
        return state


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


class Trainer:
    """Trains an engine on a store.

    Parameters
    ----------
    engine : Engine
    training : TrainingConfig
    state : TrainerState
        Changed in place.
    callback : callable, optional
        See :data:`Callback`.
    save : callable, optional
        Writes a checkpoint; called every `save_every` epochs and when training ends, however it ends.
    verbose : bool
        Show a progress bar if training takes more than a second and stderr is a terminal.
    """

    def __init__(
        self,
        engine: Engine,
        training: TrainingConfig,
        state: TrainerState,
        *,
        callback: Callback | None = None,
        save: Callable[[], None] | None = None,
        save_every: int = 1,
        verbose: bool = True,
    ) -> None:
        self.engine = engine
        self.training = training
        self.state = state
        self._callback = callback
        self._save = save
        self._save_every = save_every
        self._verbose = verbose

    def run(self, store: ArrayStore, weights: Weights, until_epoch: int) -> None:
        """Train until `until_epoch` epochs are finished, or early stopping or the callback ends it."""
        train, held_out = self._split(len(store))
        validation = None if held_out is None else (store.rows(held_out), _take(weights, held_out))
        run = self._run_lbfgs if self.training.solver == "lbfgs" else self._run_epochs
        try:
            run(store, weights, train, validation, until_epoch)
            if self.state.finished or self.state.epoch >= until_epoch:
                self.engine.set_parameters(self.state.best_parameters)  # none without early stopping
        finally:
            if self._save is not None:
                self._save()

    # Mini-batches

    def _run_epochs(
        self,
        store: ArrayStore,
        weights: Weights,
        train: NDArray[np.int64],
        validation: tuple[NDArray[Any], Weights] | None,
        until_epoch: int,
    ) -> None:
        state = self.state
        batch_size = min(self.training.batch_size or len(train), len(train))
        n_batches = math.ceil(len(train) / batch_size)
        with self._progress(n_batches * until_epoch, "step") as bar:
            bar.update(n_batches * state.epoch + state.rows_done // batch_size)
            while state.epoch < until_epoch and not state.finished:
                order = self._order(train)
                for piece in _pieces(len(order), batch_size, state.rows_done):
                    self._train_piece(store, order[piece], batch_size, weights)
                    bar.update(math.ceil((piece.stop - piece.start) / batch_size))
                self._end_epoch(self._mean_costs(), validation, bar)

    def _train_piece(
        self, store: ArrayStore, order: NDArray[np.int64], batch_size: int, weights: Weights
    ) -> None:
        chunk, chunk_order = store.piece(order)
        chunk_weights = weights if chunk_order is not None else _take(weights, order)
        self.engine.reset_metrics()
        try:
            self.engine.run_epoch(chunk, chunk_order, batch_size, chunk_weights)
        finally:  # an interrupt between two steps loses nothing of what was done
            sums = self.engine.metric_sums()
            self.state.rows_done += int(sums["rows"])
            for name in _SUMS:
                self.state.sums[name] += sums[name]

    def _order(self, train: NDArray[np.int64]) -> NDArray[np.int64]:
        if not self.training.shuffle:
            return train
        return np.random.default_rng([self.state.seed, 1, self.state.epoch]).permutation(train)

    def _mean_costs(self) -> dict[str, float]:
        sums = self.state.sums
        weight = sums["weight"] or math.nan
        means = {name: sums[name] / weight for name in _SUMS if name != "weight"}
        return {"loss": means["reconstruction"] + means["penalty"] + means["decay"], **means}

    # Full batch

    def _run_lbfgs(
        self,
        store: ArrayStore,
        weights: Weights,
        train: NDArray[np.int64],
        validation: tuple[NDArray[Any], Weights] | None,
        until_epoch: int,
    ) -> None:
        from scipy.optimize import minimize

        engine, state = self.engine, self.state
        whole = len(train) == len(store)
        rows = store.rows(None if whole else train)
        row_weights = weights if whole else _take(weights, train)
        pack = _Packing(engine)
        accepted = pack.parameters()
        costs: dict[int, dict[str, float]] = {}  # of the points tried since the last accepted one

        def value_and_gradient(theta: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
            pack.set(theta)
            cost = engine.gradient(rows, row_weights)
            costs[hash(theta.tobytes())] = cost
            return cost["loss"], pack.gradients()

        with self._progress(until_epoch, "iteration") as bar:
            bar.update(state.epoch)

            def accept(theta: NDArray[np.float64]) -> None:
                nonlocal accepted
                accepted = theta.copy()
                cost = costs[hash(theta.tobytes())]
                costs.clear()
                if validation is not None:
                    pack.set(accepted)
                bar.update(1)
                self._end_epoch(cost, validation, bar)
                if state.finished:
                    raise _Finished

            options = {
                "maxiter": until_epoch - state.epoch,
                "maxfun": 20 * max(1, until_epoch),
                "maxcor": _LBFGS_MEMORY,
                "ftol": 0.0,
                "gtol": 1e-8,
            }
            try:
                if until_epoch > state.epoch and not state.finished:
                    minimize(
                        value_and_gradient,
                        accepted,
                        jac=True,
                        method="L-BFGS-B",
                        callback=accept,
                        options=options,
                    )
            except _Finished:
                pass
            finally:  # also after Ctrl-C: the last accepted point, not the one being tried
                pack.set(accepted)

    # Shared

    def _end_epoch(
        self, costs: Mapping[str, float], validation: tuple[NDArray[Any], Weights] | None, bar: Any
    ) -> None:
        state = self.state
        entry = {"epoch": float(state.epoch + 1), **{name: costs[name] for name in _COST_PARTS}}
        entry["gradient_norm"] = costs["gradient_norm"]
        if validation is not None:
            held_out = self.engine.evaluate(*validation)
            entry["validation_loss"] = held_out["loss"]
            entry["validation_reconstruction"] = held_out["reconstruction"]
        for name, value in entry.items():
            state.history.setdefault(name, []).append(value)
        state.epoch += 1
        state.rows_done = 0
        state.sums = dict.fromkeys(_SUMS, 0.0)
        bar.set_postfix(loss=f"{entry.get('validation_loss', entry['loss']):.5g}", refresh=False)
        if self.training.early_stopping:
            self._watch(entry.get("validation_loss", entry["loss"]))
        if self._callback is not None and self._callback(dict(entry)):
            state.finished = True
        if self._save is not None and state.epoch % self._save_every == 0:
            self._save()

    def _watch(self, loss: float) -> None:
        state = self.state
        if loss < state.best_loss - self.training.tol * abs(state.best_loss) or state.best_loss == math.inf:
            state.best_loss, state.epochs_since_best = loss, 0
            state.best_parameters = self.engine.get_parameters()
        else:
            state.epochs_since_best += 1
            state.finished = state.epochs_since_best >= self.training.n_iter_no_change

    def _split(self, n_rows: int) -> tuple[NDArray[np.int64], NDArray[np.int64] | None]:
        if self.training.validation_fraction == 0:
            return np.arange(n_rows), None
        n_held_out = max(1, round(n_rows * self.training.validation_fraction))
        if n_held_out >= n_rows:
            raise ValueError(
                f"validation_fraction={self.training.validation_fraction} leaves no rows of {n_rows} to train on"
            )
        shuffled = np.random.default_rng([self.state.seed, 0]).permutation(n_rows)
        return np.sort(shuffled[n_held_out:]), np.sort(shuffled[:n_held_out])

    def _progress(self, total: int, unit: str) -> Any:
        return tqdm(total=total, unit=unit, delay=1, disable=None if self._verbose else True, desc="fastsae")


class _Finished(Exception):
    """Ends the minimiser from its callback."""


class _Packing:
    """All parameters as one vector, for the minimiser."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._shapes = engine.config.parameter_shapes

    def parameters(self) -> NDArray[np.float64]:
        return self._join("")

    def gradients(self) -> NDArray[np.float64]:
        return self._join("gradient.")

    def _join(self, prefix: str) -> NDArray[np.float64]:
        parts = [self._engine.get(prefix + name).ravel() for name in self._shapes]
        return np.concatenate(parts).astype(np.float64, copy=False)

    def set(self, theta: NDArray[np.float64]) -> None:
        first = 0
        for name, shape in self._shapes.items():
            size = math.prod(shape)
            self._engine.set(name, theta[first : first + size].reshape(shape))
            first += size


def _take(weights: Weights, order: NDArray[np.int64]) -> Weights:
    return None if weights is None else weights[order]


def _pieces(n_rows: int, batch_size: int, first: int) -> Iterator[slice]:
    """Slices of whole batches that take about `_SECONDS_PER_PIECE` each. The cuts change no result."""
    n_batches = 1
    while first < n_rows:
        last = min(n_rows, first + n_batches * batch_size)
        began = time.perf_counter()
        yield slice(first, last)
        per_batch = max(time.perf_counter() - began, 1e-6) / n_batches
        n_batches = max(1, min(2 * n_batches, int(_SECONDS_PER_PIECE / per_batch)))
        first = last


def check_combination(config: Config, training: TrainingConfig, *, one_pass: bool = False) -> None:
    """Raise ValueError for options that are meaningful alone and not together."""
    lbfgs = training.solver == "lbfgs"
    if one_pass and lbfgs:
        raise ValueError("solver='lbfgs' needs all rows at once; partial_fit takes a mini-batch solver")
    if config.rho_hat == "full" and (one_pass or not (lbfgs or training.batch_size is None)):
        raise ValueError(
            "rho_hat='full' needs full-batch optimisation: solver='lbfgs' or batch_size=None, "
            "and no partial_fit; use rho_hat='batch' or 'ema'"
        )
    if config.rho_hat == "ema" and lbfgs:
        raise ValueError(
            "rho_hat='ema' moves between evaluations, which solver='lbfgs' cannot use; use 'full'"
        )
