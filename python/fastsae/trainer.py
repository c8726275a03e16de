"""The one loop behind fit, partial_fit and resume."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from tqdm.auto import tqdm

from fastsae._core import DeviceArray
from fastsae.arrays import Rows
from fastsae.config import Config, TrainingConfig
from fastsae.engine import Engine, ModelConfig
from fastsae.optimizer import AVERAGING
from fastsae.resampling import dead_latents, resample
from fastsae.scaling import Scaler, check_output
from fastsae.schedules import check_solver, steps_of
from fastsae.sparse_code import SparseCodeConfig
from fastsae.stores import ArrayStore
from fastsae.trainer_state import COSTS, MONITOR, TrainerState, add

Weights = NDArray[np.float64] | None
#: Called after each epoch with that epoch's history, and with each entry of the step history; True stops the training.
Callback = Callable[[dict[str, float]], bool | None]
#: Makes a progress bar from its total and its unit.
Progress = Callable[[int, str], Any]

_COST_PARTS = ("loss", "reconstruction", "penalty", "decay", "gradient_norm")
_SPARSE_PARTS = (
    *("loss", "reconstruction", "sparsity", "auxiliary", "gradient_norm"),
    *("l0", "fvu", "explained_variance", "dead_share"),
)
_PIECE_FLOPS = 5e9  # of work between two updates of the progress bar: about 0.1 s of one processor
_MOST_BATCHES_PER_PIECE = 1024
_LBFGS_MEMORY = 20


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
        Writes a checkpoint; called every `save_every` epochs, every `save_steps` steps, and when training ends, however
        it ends.
    verbose : bool
        Show a progress bar if training takes more than a second and stderr is a terminal.
    progress : callable, optional
        Takes the place of that bar; see :data:`Progress`.
    """

    def __init__(
        self,
        engine: Engine[ModelConfig],
        training: TrainingConfig,
        state: TrainerState,
        *,
        callback: Callback | None = None,
        save: Callable[[], None] | None = None,
        save_every: int = 1,
        save_steps: int | None = None,
        verbose: bool = True,
        progress: Progress | None = None,
    ) -> None:
        self.engine = engine
        self.training = training
        self.state = state
        self._callback = callback
        self._save = save
        self._save_every = save_every
        self._save_steps = save_steps
        self._verbose = verbose
        self._bar = progress
        self._targets: NDArray[Any] | None = None
        self._is_sparse = isinstance(engine.config, SparseCodeConfig)
        self._parts = _SPARSE_PARTS if self._is_sparse else _COST_PARTS
        # Rows, sums and fired rows when the piece in work began; None between pieces.
        self._began: tuple[int, dict[str, float], NDArray[np.float64] | None] | None = None
        self._resampled: dict[str, NDArray[Any]] = {}  # tensors that resampling is about to set
        self._saved = 0  # steps
        self._clock = time.perf_counter()  # of the last entry of the step history
        self._rows_since = 0

    def run(self, store: ArrayStore, weights: Weights, until_epoch: int, targets: NDArray[Any] | None = None) -> None:
        """Train until `until_epoch` epochs are finished, or early stopping or the callback ends it.

        ``TrainingConfig.max_steps`` takes the place of `until_epoch`.
        `targets` [n_rows x n_outputs] is what the output should be, if not the row itself.
        """
        self.engine.noise_seed = self.state.seed
        self._targets = targets
        train, held_out = self._split(len(store))
        if self.training.max_steps is not None:
            until_epoch = math.ceil(self.training.max_steps / steps_of(len(train), self.training.batch_size, 1))
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
        n_steps = n_batches * until_epoch if self.training.max_steps is None else self.training.max_steps
        if self.engine.config.lr_total_steps is None:
            self.engine.total_steps = max(1, n_steps)
        if state.rows_done % batch_size and state.rows_done != len(train):
            raise ValueError(f"batch_size: {batch_size} does not divide the {state.rows_done} rows done before")
        with self._progress(n_steps, "step") as bar:
            bar.update(n_batches * state.epoch + state.rows_done // batch_size)
            while state.epoch < until_epoch and not state.finished:
                order = self._order(train)
                self._after_steps(store, weights, order, batch_size, bar)  # what an interrupt left undone
                while state.rows_done < len(order) and not state.finished:
                    first = state.rows_done
                    last = min(len(order), self._begin_piece(first // batch_size, batch_size) * batch_size)
                    if last <= first:
                        return  # max_steps
                    self._train_piece(store, order[first:last], batch_size, weights)
                    bar.update(math.ceil((last - first) / batch_size))
                    self._after_steps(store, weights, order, batch_size, bar)
                if state.rows_done == len(order):
                    self._end_epoch(self._mean_costs(state.sums), validation, bar)

    def _begin_piece(self, batch: int, batch_size: int) -> int:
        """Number of the batch of this epoch before which the piece from `batch` on ends; see `TrainerState.sums`.

        A piece ends where something is to be done after its steps. One that was interrupted is finished batch by batch.
        """
        per_piece = _batches_per_piece(self.engine.config, batch_size)
        before = self.engine.steps - batch  # of the epoch
        cuts = [(batch, per_piece), *((self.engine.steps, every) for every in self._intervals())]
        end = batch + 1
        if any(done % every == 0 for done, every in cuts):
            self.state.fold()
            end = min(batch + every - done % every for done, every in cuts)
        return end if self.training.max_steps is None else min(end, self.training.max_steps - before)

    def _intervals(self) -> list[int]:
        """Numbers of steps after which something is done."""
        every = (self.training.log_every, self.training.resample_every, self._save_steps if self._save else None)
        return [steps for steps in every if steps is not None]

    def _train_piece(self, store: ArrayStore, order: NDArray[np.int64], batch_size: int, weights: Weights) -> None:
        chunk, chunk_order = store.piece(order)
        in_place = chunk_order is not None
        chunk_weights, targets, numbers = (weights, self._targets, None) if in_place else self._of(weights, order)
        self.engine.epoch = self.state.epoch
        self.engine.reset_metrics()
        self._average(False)
        self._began = self.state.rows_done, self.state.piece_sums, self.state.fired
        self.engine.run_epoch(chunk, chunk_order, batch_size, chunk_weights, targets=targets, numbers=numbers)
        self._settle()

    def _settle(self) -> None:
        """Count the steps of the piece in work: an interrupt, wherever it came, loses nothing of what was done."""
        state = self.state
        if self._began is not None:
            rows, sums, fired = self._began
            metrics = self.engine.metric_sums()
            rows += int(metrics["rows"])
            counted = {name: metrics[name] for name in COSTS}
            if self._is_sparse:
                counted |= zip(MONITOR, map(float, self.engine.get("monitor")), strict=True)
                fired = np.append(self.engine.get("fired_rows"), metrics["rows"]) + (0.0 if fired is None else fired)
            self._rows_since += rows - self._began[0]
            self._began, state.rows_done, state.piece_sums, state.fired = None, rows, add(counted, sums), fired
        for entries in state.history.values():
            del entries[state.epoch :]
        if self._resampled:
            for name, value in self._resampled.items():
                self.engine.set(name, value)
            self._resampled, state.resampled = {}, self.engine.steps

    def _average(self, wanted: bool) -> None:
        """What an averaging optimiser has learned is what is looked at and kept; its steps need what it was."""
        if self.engine.config.optimizer in AVERAGING:
            self.engine.averaged = wanted

    def _order(self, train: NDArray[np.int64]) -> NDArray[np.int64]:
        if not self.training.shuffle:
            return train
        return np.random.default_rng([self.state.seed, 1, self.state.epoch]).permutation(train)

    def _mean_costs(self, before: Mapping[str, float]) -> dict[str, float]:
        """The means that these sums and those of the last piece make."""
        sums = add(before, self.state.piece_sums)
        weight = sums.get("weight") or math.nan
        means = {name: sums.get(name, math.nan) / weight for name in COSTS if name != "weight"}
        costs = {"loss": means["reconstruction"] + means["penalty"] + means["decay"], **means}
        return costs | (self._measures(sums) if self._is_sparse else {})

    def _measures(self, sums: Mapping[str, float]) -> dict[str, float]:
        """What is said of a sparse code: see :class:`fastsae.dictionaries.Dictionary`."""
        rows, weight = (sums.get(name) or math.nan for name in ("rows", "weight"))
        variance = sums.get("variance") or math.nan
        fvu = sums.get("squared_error", math.nan) / variance
        return {
            "sparsity": sums.get("sparsity", math.nan) / weight,
            "auxiliary": sums.get("auxiliary", math.nan) / weight,
            "l0": sums.get("active", math.nan) / rows,
            "fvu": fvu,
            "explained_variance": 1 - fvu,
            "dead_share": float(dead_latents(self.engine).mean()),
        }

    # Between steps

    def _after_steps(
        self, store: ArrayStore, weights: Weights, order: NDArray[np.int64], batch_size: int, bar: Any
    ) -> None:
        """What is due now: an entry of the step history, resampling, a checkpoint."""
        state, training, steps = self.state, self.training, self.engine.steps
        if _is_due(training.log_every, steps, state.logged):
            self._log(bar)
        if _is_due(training.resample_every, steps, state.resampled):
            batch = order[(state.rows_done - 1) // batch_size * batch_size : state.rows_done]
            if len(batch):
                random = np.random.default_rng([state.seed, 5, steps])
                self._resampled = resample(self.engine, store.rows(batch), random)
            self._settle()  # an interrupt finds all of it done or nothing
            state.resampled = steps
        if self._save is not None and _is_due(self._save_steps, steps, self._saved):
            self._average(True)
            self._save()
            self._saved = steps

    def _log(self, bar: Any) -> None:
        state = self.state
        costs = self._mean_costs(state.window)
        entry = {"step": float(self.engine.steps), **{name: costs[name] for name in self._parts}}
        entry["rows_per_second"] = self._rows_since / max(time.perf_counter() - self._clock, 1e-9)
        history = {name: [*state.step_history.get(name, ()), value] for name, value in entry.items()}
        sums = add(state.sums, state.piece_sums)
        after = {"step_history": history, "logged": self.engine.steps, "window": {}, "sums": sums, "piece_sums": {}}
        state.__dict__.update(**after, **self._frequency())
        self._clock, self._rows_since = time.perf_counter(), 0
        bar.set_postfix({name: f"{entry[name]:.4g}" for name in ("loss", "l0", "fvu") if name in entry}, refresh=False)
        if self._callback is not None and self._callback(entry):
            state.finished = True

    def _frequency(self) -> dict[str, NDArray[np.float64] | None]:
        """How often latents fired since this was asked last; from now on it is counted anew."""
        fired = self.state.fired
        return {} if fired is None else {"frequency": fired[:-1] / fired[-1], "fired": None}

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
        saves = self._save is not None and (state.epoch + 1) % self._save_every == 0
        if validation is not None or self.training.early_stopping or self._callback is not None or saves:
            self._average(True)  # somebody looks
        entry = {"epoch": float(state.epoch + 1), **{name: costs[name] for name in self._parts}}
        if validation is not None:
            held_out = self._evaluate(validation)
            entry["validation_loss"] = held_out["loss"]
            entry["validation_reconstruction"] = held_out["reconstruction"]
        watched = entry.get("validation_loss", entry["loss"])
        bar.set_postfix(loss=f"{watched:.5g}", refresh=False)
        after = dataclasses.replace(state, epoch=state.epoch + 1, rows_done=0)
        after.sums, after.piece_sums, after.window = {}, {}, add(state.window, state.piece_sums)
        if self._is_sparse and self.training.log_every is None:
            after.__dict__.update(**self._frequency())
        if self.training.early_stopping:
            self._watch(watched, after)
        for name, value in entry.items():
            state.history.setdefault(name, []).append(value)
        # All at once, so that an interrupt finds this epoch finished or not, and nothing in between.
        state.__dict__.update(after.__dict__)
        if self._callback is not None and self._callback(entry):
            state.finished = True
        if self._save is not None and saves:
            self._save()

    def _evaluate(self, examples: _Examples) -> dict[str, float]:
        """The cost of held-out rows: of a sparse code the mean over batches, of which it is defined."""
        rows, weights, targets, numbers = examples
        if not self._is_sparse:
            return self.engine.evaluate(rows, weights, targets=targets, numbers=numbers)
        size = self.training.batch_size or len(rows)
        total, sums = 0.0, dict.fromkeys(("loss", "reconstruction"), 0.0)
        for first in range(0, len(rows), size):
            batch = np.arange(first, min(first + size, len(rows)))
            part = rows[batch] if isinstance(rows, np.ndarray) else self.engine.take(rows, batch)
            weight = float(len(batch) if weights is None else weights[batch].sum())
            if weight > 0:
                costs = self.engine.evaluate(part, _take(weights, batch), targets=_take(targets, batch))
                sums = {name: sums[name] + weight * costs[name] for name in sums}
                total += weight
        return {name: value / total if total else math.nan for name, value in sums.items()}

    def _watch(self, loss: float, state: TrainerState) -> None:
        if loss < state.best_loss - self.training.tol * abs(state.best_loss) or state.best_loss == math.inf:
            state.best_loss, state.epochs_since_best = loss, 0
            state.best_parameters = self.engine.get_learned()
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

    def __init__(self, engine: Engine[ModelConfig]) -> None:
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


def _is_due(every: int | None, steps: int, last: int) -> bool:
    """Whether what is done every so many steps is to be done now, and was not at `last` steps."""
    return every is not None and steps > last and steps % every == 0


def _batches_per_piece(config: ModelConfig, batch_size: int) -> int:
    return max(1, min(_MOST_BATCHES_PER_PIECE, int(_PIECE_FLOPS / (6 * batch_size * config.multiplications))))


def check_combination(
    config: ModelConfig,
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
    check_solver(config, training, one_pass=one_pass)
    if isinstance(config, Config):
        _check_layered(config, training, X, targets, scaler, one_pass)
    if training.resample_every is not None:
        relu = isinstance(config, SparseCodeConfig) and config.activation == "relu" and not config.transcoder
        if not relu or config.optimizer in AVERAGING:
            raise ValueError(
                "resample_every: resampling is that of an autoencoder with activation='relu' and an optimiser that "
                f"does not average, got {training.resample_every}"
            )


def _check_layered(
    config: Config,
    training: TrainingConfig,
    X: Any,
    targets: NDArray[Any] | None,
    scaler: Scaler | None,
    one_pass: bool,
) -> None:
    name, goal = ("X", X) if targets is None else ("targets", targets)
    if targets is None:
        check_output(config, scaler)
        if scaler is not None and config.loss == "cross_entropy":
            goal = scaler.transform(np.stack([X.min(axis=0), X.max(axis=0)]), "float64")
    if isinstance(goal, np.ndarray) and config.loss == "cross_entropy" and (goal.min() < 0 or goal.max() > 1):
        low, high = goal.min(), goal.max()
        raise ValueError(f"{name}: loss='cross_entropy' needs numbers in [0, 1], got them from {low:g} to {high:g}")
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


def check_values(name: str, engine: Engine[ModelConfig], rows: DeviceArray, *, as_target: bool = False) -> None:
    """Raise ValueError for rows on the device that hold NaN or infinity, or that the loss cannot take as a target."""
    row = engine.first_row_outside(rows)
    if row is not None:
        raise ValueError(f"{name}: row {row} contains NaN, infinity or a number too large for {engine.config.dtype}")
    if as_target and getattr(engine.config, "loss", None) == "cross_entropy":
        row = engine.first_row_outside(rows, 0.0, 1.0)
        if row is not None:
            raise ValueError(f"{name}: loss='cross_entropy' needs numbers in [0, 1], and row {row} has others")
