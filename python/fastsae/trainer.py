"""The one loop behind fit, partial_fit and resume."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from tqdm.auto import tqdm

from fastsae._core import DeviceArray
from fastsae.arrays import Rows
from fastsae.checks import check_integer
from fastsae.config import Config, TrainingConfig
from fastsae.engine import Engine
from fastsae.optimizer import AVERAGING
from fastsae.scaling import Scaler, check_output
from fastsae.schedules import check_solver, steps_of
from fastsae.stores import ArrayStore

Weights = NDArray[np.float64] | None
#: Called after each epoch with that epoch's history; True stops the training.
Callback = Callable[[dict[str, float]], bool | None]
#: Makes a progress bar from its total and its unit.
Progress = Callable[[int, str], Any]

_COST_PARTS = ("loss", "reconstruction", "penalty", "decay")
_SUMS = ("reconstruction", "penalty", "decay", "gradient_norm", "weight")
_PIECE_FLOPS = 5e9  # of work between two updates of the progress bar: about 0.1 s of one processor
_MOST_BATCHES_PER_PIECE = 1024
_LBFGS_MEMORY = 20


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
    """

    seed: int
    epoch: int = 0
    n_rows: int = 0
    rows_done: int = 0
    sums: dict[str, float] = dataclasses.field(default_factory=lambda: dict.fromkeys(_SUMS, 0.0))
    piece_sums: dict[str, float] = dataclasses.field(default_factory=lambda: dict.fromkeys(_SUMS, 0.0))
    history: dict[str, list[float]] = dataclasses.field(default_factory=dict)
    best_loss: float = math.inf
    epochs_since_best: int = 0
    finished: bool = False
    best_parameters: dict[str, NDArray[Any]] = dataclasses.field(default_factory=dict)

    def start_pass(self, n_rows: int) -> None:
        """Begin one pass over other rows: an unfinished epoch and early stopping are forgotten."""
        fresh = TrainerState(self.seed, self.epoch, n_rows, history=self.history)
        for field in dataclasses.fields(self):
            setattr(self, field.name, getattr(fresh, field.name))

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
        for name in ("seed", "epoch", "n_rows", "rows_done", "epochs_since_best"):
            check_integer(f"trainer state: {name}", getattr(state, name), 0)
        for name in ("sums", "piece_sums"):
            sums = getattr(state, name)
            if not isinstance(sums, dict) or set(sums) != set(_SUMS) or not all(map(_is_number, sums.values())):
                raise ValueError(f"trainer state: {name}: expected the numbers {', '.join(_SUMS)}")
        if state.rows_done > state.n_rows:
            raise ValueError("trainer state: rows_done: expected at most n_rows")
        if not _is_number(state.best_loss) or not isinstance(state.finished, bool):
            raise ValueError("trainer state: best_loss or finished is damaged")
        if state.best_parameters != {}:
            raise ValueError("trainer state: best_parameters are tensors of their own")
        lists = state.history.values() if isinstance(state.history, dict) else [None]
        if not all(isinstance(entry, list) and all(map(_is_number, entry)) for entry in lists):
            raise ValueError("trainer state: history: expected lists of numbers")
        if any(len(entry) > state.epoch for entry in state.history.values()):
            raise ValueError("trainer state: history: expected at most one entry for each epoch")
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
    progress : callable, optional
        Takes the place of that bar; see :data:`Progress`.
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
        progress: Progress | None = None,
    ) -> None:
        self.engine = engine
        self.training = training
        self.state = state
        self._callback = callback
        self._save = save
        self._save_every = save_every
        self._verbose = verbose
        self._bar = progress
        self._targets: NDArray[Any] | None = None
        # Rows and sums when the piece in work began; None between pieces.
        self._began: tuple[int, dict[str, float]] | None = None

    def run(self, store: ArrayStore, weights: Weights, until_epoch: int, targets: NDArray[Any] | None = None) -> None:
        """Train until `until_epoch` epochs are finished, or early stopping or the callback ends it.

        `targets` [n_rows x n_outputs] is what the output should be, if not the row itself.
        """
        self.engine.noise_seed = self.state.seed
        self._targets = targets
        train, held_out = self._split(len(store))
        if until_epoch - self.state.epoch > 1:
            store.hold()
        validation = None if held_out is None else _Examples(store.rows(held_out), *self._of(weights, held_out))
        run = self._run_lbfgs if self.training.solver == "lbfgs" else self._run_epochs
        try:
            run(store, weights, train, validation, until_epoch)
            self._average(True)
            self.engine.set_parameters(self.state.best_parameters)  # none without early stopping
        finally:
            self._settle()
            self._average(True)
            if self._save is not None:
                self._save()

    # Mini-batches

    def _run_epochs(
        self,
        store: ArrayStore,
        weights: Weights,
        train: NDArray[np.int64],
        validation: _Examples | None,
        until_epoch: int,
    ) -> None:
        state = self.state
        batch_size = min(self.training.batch_size or len(train), len(train))
        n_batches = steps_of(len(train), batch_size, 1)
        if self.engine.config.lr_total_steps is None:
            self.engine.total_steps = max(1, n_batches * until_epoch)
        per_piece = _batches_per_piece(self.engine.config, batch_size)
        if state.rows_done % batch_size and state.rows_done != len(train):
            raise ValueError(f"batch_size: {batch_size} does not divide the {state.rows_done} rows done before")
        with self._progress(n_batches * until_epoch, "step") as bar:
            bar.update(n_batches * state.epoch + state.rows_done // batch_size)
            while state.epoch < until_epoch and not state.finished:
                order = self._order(train)
                for piece in _pieces(len(order), batch_size, state.rows_done, per_piece):
                    if piece.start % (per_piece * batch_size) == 0:
                        state.sums, state.piece_sums = self._sums(), dict.fromkeys(_SUMS, 0.0)
                    self._train_piece(store, order[piece], batch_size, weights)
                    bar.update(math.ceil((piece.stop - piece.start) / batch_size))
                self._end_epoch(self._mean_costs(), validation, bar)

    def _train_piece(self, store: ArrayStore, order: NDArray[np.int64], batch_size: int, weights: Weights) -> None:
        chunk, chunk_order = store.piece(order)
        in_place = chunk_order is not None
        chunk_weights, targets, numbers = (weights, self._targets, None) if in_place else self._of(weights, order)
        self.engine.epoch = self.state.epoch
        self.engine.reset_metrics()
        self._average(False)
        self._began = self.state.rows_done, self.state.piece_sums
        self.engine.run_epoch(chunk, chunk_order, batch_size, chunk_weights, targets=targets, numbers=numbers)
        self._settle()

    def _settle(self) -> None:
        """Count the steps of the piece in work: an interrupt, wherever it came, loses nothing of what was done."""
        state = self.state
        if self._began is not None:
            rows, sums = self._began
            counted = self.engine.metric_sums()
            rows += int(counted["rows"])
            sums = {name: sums[name] + counted[name] for name in _SUMS}
            self._began, state.rows_done, state.piece_sums = None, rows, sums
        for entries in state.history.values():
            del entries[state.epoch :]

    def _average(self, wanted: bool) -> None:
        """What an averaging optimiser has learned is what is looked at and kept; its steps need what it was."""
        if self.engine.config.optimizer in AVERAGING:
            self.engine.averaged = wanted

    def _sums(self) -> dict[str, float]:
        return {name: self.state.sums[name] + self.state.piece_sums[name] for name in _SUMS}

    def _order(self, train: NDArray[np.int64]) -> NDArray[np.int64]:
        if not self.training.shuffle:
            return train
        return np.random.default_rng([self.state.seed, 1, self.state.epoch]).permutation(train)

    def _mean_costs(self) -> dict[str, float]:
        sums = self._sums()
        weight = sums["weight"] or math.nan
        means = {name: sums[name] / weight for name in _SUMS if name != "weight"}
        return {"loss": means["reconstruction"] + means["penalty"] + means["decay"], **means}

    # Full batch

    def _run_lbfgs(
        self,
        store: ArrayStore,
        weights: Weights,
        train: NDArray[np.int64],
        validation: _Examples | None,
        until_epoch: int,
    ) -> None:
        from scipy.optimize import minimize

        engine, state = self.engine, self.state
        engine.epoch = 0  # one cost from the first iteration to the last: its noise is always the same
        whole = len(train) == len(store)
        rows = store.rows(None if whole else train)
        row_weights, targets, _ = (weights, self._targets, None) if whole else self._of(weights, train)
        pack = _Packing(engine)
        accepted = pack.parameters()
        costs: dict[int, dict[str, float]] = {}  # of the points tried since the last accepted one

        def value_and_gradient(theta: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
            pack.set(theta)
            cost = engine.gradient(rows, row_weights, targets=targets)
            costs[hash(theta.tobytes())] = cost
            return cost["loss"], pack.gradients()

        with self._progress(until_epoch, "iteration") as bar:
            bar.update(state.epoch)

            def accept(theta: NDArray[np.float64]) -> None:
                nonlocal accepted
                accepted = theta.copy()
                cost = costs[hash(theta.tobytes())]
                costs.clear()
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

    def _end_epoch(self, costs: Mapping[str, float], validation: _Examples | None, bar: Any) -> None:
        state = self.state
        self._average(True)
        entry = {"epoch": float(state.epoch + 1), **{name: costs[name] for name in _COST_PARTS}}
        entry["gradient_norm"] = costs["gradient_norm"]
        if validation is not None:
            rows, weights, targets, numbers = validation
            held_out = self.engine.evaluate(rows, weights, targets=targets, numbers=numbers)
            entry["validation_loss"] = held_out["loss"]
            entry["validation_reconstruction"] = held_out["reconstruction"]
        watched = entry.get("validation_loss", entry["loss"])
        bar.set_postfix(loss=f"{watched:.5g}", refresh=False)
        after = dataclasses.replace(state, epoch=state.epoch + 1, rows_done=0)
        after.sums, after.piece_sums = dict.fromkeys(_SUMS, 0.0), dict.fromkeys(_SUMS, 0.0)
        if self.training.early_stopping:
            self._watch(watched, after)
        for name, value in entry.items():
            state.history.setdefault(name, []).append(value)
        # All at once, so that an interrupt finds this epoch finished or not, and nothing in between.
        state.__dict__.update(after.__dict__)
        if self._callback is not None and self._callback(entry):
            state.finished = True
        if self._save is not None and state.epoch % self._save_every == 0:
            self._save()

    def _watch(self, loss: float, state: TrainerState) -> None:
        if loss < state.best_loss - self.training.tol * abs(state.best_loss) or state.best_loss == math.inf:
            state.best_loss, state.epochs_since_best = loss, 0
            state.best_parameters = self.engine.get_parameters()
        else:
            state.epochs_since_best += 1
            state.finished = state.epochs_since_best >= self.training.n_iter_no_change

    def _split(self, n_rows: int) -> tuple[NDArray[np.int64], NDArray[np.int64] | None]:
        if self.training.validation_fraction == 0:
            return np.arange(n_rows), None
        n_held_out = _held_out_rows(n_rows, self.training.validation_fraction)
        shuffled = np.random.default_rng([self.state.seed, 0]).permutation(n_rows)
        return np.sort(shuffled[n_held_out:]), np.sort(shuffled[:n_held_out])

    def _of(self, weights: Weights, order: NDArray[np.int64]) -> tuple[Weights, NDArray[Any] | None, NDArray[np.int64]]:
        """Weights, targets and numbers of those rows."""
        return _take(weights, order), _take(self._targets, order), order

    def _progress(self, total: int, unit: str) -> Any:
        if self._bar is not None:
            return self._bar(total, unit)
        return tqdm(total=total, unit=unit, delay=1, disable=None if self._verbose else True, desc="fastsae")


class _Examples(NamedTuple):
    rows: Rows
    weights: Weights
    targets: NDArray[Any] | None
    numbers: NDArray[np.int64]


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


def _take(values: NDArray[Any] | None, order: NDArray[np.int64]) -> Any:
    return None if values is None else values[order]


def _held_out_rows(n_rows: int, fraction: float) -> int:
    count = max(1, round(n_rows * fraction)) if fraction > 0 else 0
    if count >= n_rows:
        raise ValueError(f"validation_fraction={fraction} leaves no rows of {n_rows} to train on")
    return count


def _batches_per_piece(config: Config, batch_size: int) -> int:
    return max(1, min(_MOST_BATCHES_PER_PIECE, int(_PIECE_FLOPS / (6 * batch_size * config.multiplications))))


def _pieces(n_rows: int, batch_size: int, first: int, per_piece: int) -> Iterator[slice]:
    """Slices of `per_piece` batches; one that was interrupted is finished batch by batch, see `TrainerState`."""
    while first < n_rows:
        count = 1 if first % (per_piece * batch_size) else per_piece
        last = min(n_rows, first + count * batch_size)
        yield slice(first, last)
        first = last


def check_combination(
    config: Config,
    training: TrainingConfig,
    X: Any,
    targets: NDArray[Any] | None = None,
    *,
    scaler: Scaler | None = None,
    one_pass: bool = False,
) -> None:
    """Raise ValueError for options that are meaningful alone and not together, or not with these rows.

    What a tensor on a device holds is left to :func:`check_values`.
    """
    _held_out_rows(X.shape[0], training.validation_fraction)
    name, goal = ("X", X) if targets is None else ("targets", targets)
    if targets is None:
        check_output(config, scaler)
        if scaler is not None and config.loss == "cross_entropy":
            goal = scaler.transform(np.stack([X.min(axis=0), X.max(axis=0)]), "float64")
    if isinstance(goal, np.ndarray) and config.loss == "cross_entropy" and (goal.min() < 0 or goal.max() > 1):
        low, high = goal.min(), goal.max()
        raise ValueError(f"{name}: loss='cross_entropy' needs numbers in [0, 1], got them from {low:g} to {high:g}")
    check_solver(config, training, one_pass=one_pass)
    lbfgs = training.solver == "lbfgs"
    if one_pass and lbfgs:
        raise ValueError("solver='lbfgs' needs all rows at once; partial_fit takes a mini-batch solver")
    if config.rho_hat == "full" and (one_pass or not (lbfgs or training.batch_size is None)):
        raise ValueError(
            "rho_hat='full' needs full-batch optimisation: solver='lbfgs' or batch_size=None, "
            "and no partial_fit; use rho_hat='batch' or 'ema'"
        )
    if lbfgs and any(getattr(layer, "warm_up", 0) > 0 for layer in config.layers):
        raise ValueError("warm_up: solver='lbfgs' minimises one cost from beginning to end; take 0 or another solver")
    if config.rho_hat == "ema" and lbfgs:
        raise ValueError("rho_hat='ema' moves between evaluations, which solver='lbfgs' cannot use; use 'full'")
    if config.corruption != "none" and lbfgs:
        raise ValueError(
            f"corruption={config.corruption!r} draws fresh noise in each epoch, and solver='lbfgs' needs a cost that "
            "stays the same; use a mini-batch solver"
        )
    if config.contraction_draws and lbfgs:
        name = "contraction_hessian" if config.contraction_hessian else "contraction"
        raise ValueError(
            f"{name}={getattr(config, name)} is estimated with fresh noise in each epoch, and solver='lbfgs' needs a "
            "cost that stays the same; use a mini-batch solver"
        )


def check_values(name: str, engine: Engine, rows: DeviceArray, *, as_target: bool = False) -> None:
    """Raise ValueError for rows on the device that hold NaN or infinity, or that the loss cannot take as a target."""
    row = engine.first_row_outside(rows)
    if row is not None:
        raise ValueError(f"{name}: row {row} contains NaN, infinity or a number too large for {engine.config.dtype}")
    if as_target and engine.config.loss == "cross_entropy":
        row = engine.first_row_outside(rows, 0.0, 1.0)
        if row is not None:
            raise ValueError(f"{name}: loss='cross_entropy' needs numbers in [0, 1], and row {row} has others")
