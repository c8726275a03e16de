"""Many models on the same rows, several at once."""

from __future__ import annotations

import concurrent.futures
import os
import threading
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from sklearn import config_context, get_config
from tqdm.auto import tqdm

from fastsae import _core
from fastsae.checks import check_bool, check_integer
from fastsae.estimators import SparseAutoencoder
from fastsae.process import check_device, get_num_threads

_MOST_ON_A_GPU = 64  # each keeps a thread and some megabytes of the host
_LOOK_SECONDS = 0.1  # between two looks at the progress

# Errors that are raised again with the config's name before their text.
_NAMED_ERRORS = (ValueError, TypeError, FloatingPointError, MemoryError, _core.DeviceError)


def sweep(
    configs: Iterable[Mapping[str, Any]],
    X: Any,
    sample_weight: ArrayLike | None = None,
    *,
    n_jobs: int | None = None,
    verbose: bool = True,
    **common: Any,
) -> list[SparseAutoencoder]:
    """Fit one :class:`fastsae.SparseAutoencoder` for each entry of `configs` on the same rows, several at once.

    A small model cannot fill a processor: on the CPU each is trained by one thread, on a GPU each by one
    multiprocessor, side by side. Every result is bit for bit that of ``SparseAutoencoder(**options).fit(X)``.

    Parameters
    ----------
    configs : iterable of dict
        Options of each model, for example ``sklearn.model_selection.ParameterGrid``.
    X : array-like, shape (n_rows, n_features)
        Rows, as for :meth:`fastsae.SparseAutoencoder.fit`.
    sample_weight : array-like, shape (n_rows,), optional
        Weights >= 0 of the rows, the same for every model.
    n_jobs : int or None
        Models that are trained at once. None takes :func:`fastsae.get_num_threads`, or up to 64 where all are on a
        GPU. On the CPU they share the threads.
    verbose : bool
        Show one progress bar for all on a terminal, if it takes more than a second. Also the models' own option.
    **common
        Options of all models; an entry of `configs` goes before them.

    Returns
    -------
    list of SparseAutoencoder
        Fitted, in the order of `configs`.

    Raises
    ------
    ValueError
        If `configs` is empty or an option is not usable: the text begins with ``configs[i]: ``, and nothing was
        trained. If `fit` refuses X: likewise, and the models still in work are given up.
    TypeError, FloatingPointError, MemoryError, DeviceError, OSError
        As `fit`; the first four begin with ``configs[i]: `` too.
    KeyboardInterrupt
        Within a second of Ctrl-C, when all models have stopped; their checkpoints are those of an interrupted `fit`.

    Notes
    -----
    A `callback` is called from the thread that trains its model.

    Examples
    --------
    >>> import numpy as np
    >>> from fastsae import sweep
    >>> X = np.random.default_rng(0).random((500, 20), dtype=np.float32)
    >>> models = sweep([{"rho": 0.05}, {"rho": 0.1}], X, n_hidden=8, max_epochs=5, random_state=0)
    >>> [model.rho for model in models]
    [0.05, 0.1]
    """
    check_bool("verbose", verbose)
    estimators = _estimators(configs, {**common, "verbose": verbose})
    if n_jobs is None:
        n_jobs = _MOST_ON_A_GPU if all(e.device.startswith("cuda") for e in estimators) else get_num_threads()
    check_integer("n_jobs", n_jobs, 1)
    n_jobs = min(int(n_jobs), len(estimators))
    bars = [_Share() for _ in estimators]
    stop = _core.Stop()
    settings = get_config()  # of this thread; scikit-learn's threads each have their own

    started = False  # when all are submitted: an interrupt before that finds none in work
    gate = threading.Event()

    def fit(i: int) -> None:
        gate.wait()
        if not started:
            return
        with config_context(**settings):
            estimators[i]._fit(X, sample_weight, bars[i].begin)
        bars[i].done = 1.0

    pool = concurrent.futures.ThreadPoolExecutor(
        n_jobs, "fastsae-sweep", _core.become_worker, (stop, max(1, get_num_threads() // n_jobs))
    )
    shown = "{l_bar}{bar}| {n:.1f}/{total} models [{elapsed}<{remaining}]"
    hidden = None if verbose else True
    with pool, tqdm(total=len(bars), delay=1, disable=hidden, desc="fastsae", bar_format=shown) as bar:
        try:
            futures = [pool.submit(fit, i) for i in range(len(estimators))]
            started = True
            gate.set()
            _wait(futures, bars, bar)
        finally:
            stop.set()
            gate.set()
            pool.shutdown(cancel_futures=True)
    return estimators


class _Share:
    """One model's share of the progress bar: how much of its work is done, from 0 to 1."""

    def __init__(self) -> None:
        self.done = 0.0
        self._count, self._total = 0, 1

    def begin(self, total: int, unit: str) -> _Share:
        self._total = max(1, total)
        return self

    def update(self, count: int) -> None:
        self._count += count
        self.done = min(1.0, self._count / self._total)

    def set_postfix(self, **values: Any) -> None:
        """Costs of single models are not shown."""

    def __enter__(self) -> _Share:
        return self

    def __exit__(self, *error: object) -> None:
        """Nothing to close."""


def _wait(futures: list[concurrent.futures.Future[None]], bars: list[_Share], bar: Any) -> None:
    """Until all are done; raises the error of the first config that has one."""
    waiting = set(futures)
    while waiting:
        done, waiting = concurrent.futures.wait(waiting, _LOOK_SECONDS, return_when=concurrent.futures.FIRST_EXCEPTION)
        bar.update(sum(share.done for share in bars) - bar.n)
        for future in sorted(done, key=futures.index):
            if error := future.exception():
                if type(error) in _NAMED_ERRORS:
                    raise type(error)(f"configs[{futures.index(future)}]: {error}") from error
                raise error


def _estimators(configs: Iterable[Mapping[str, Any]], common: Mapping[str, Any]) -> list[SparseAutoencoder]:
    """One for each entry, with all options checked that can be without rows."""
    if isinstance(configs, (str, bytes, Mapping)) or not isinstance(configs, Iterable):
        raise ValueError(f"configs: expected a list of dicts, got {type(configs).__name__}")
    known = SparseAutoencoder().get_params()
    if unknown := sorted(set(common) - set(known)):
        raise ValueError(f"unknown option {unknown[0]!r}")
    estimators: list[SparseAutoencoder] = []
    checkpoints: dict[str, int] = {}
    for i, options in enumerate(configs):
        if not isinstance(options, Mapping):
            raise ValueError(f"configs[{i}]: expected a dict of options, got {type(options).__name__}")
        if unknown := sorted(set(options) - set(known), key=str):
            raise ValueError(f"configs[{i}]: unknown option {unknown[0]!r}")
        estimator = SparseAutoencoder(**{**common, **options})
        try:
            _check(estimator)
            if estimator.checkpoint is not None:
                path = os.path.realpath(os.fsdecode(estimator.checkpoint))
                if path in checkpoints:
                    raise ValueError(f"checkpoint: {path} is that of configs[{checkpoints[path]}] too")
                checkpoints[path] = i
        except ValueError as error:
            raise ValueError(f"configs[{i}]: {error}") from None
        estimators.append(estimator)
    if not estimators:
        raise ValueError("configs: expected at least one dict of options, got none")
    return estimators


def _check(estimator: SparseAutoencoder) -> None:
    estimator._training_config()
    estimator._config(n_features=1)  # no option depends on the width
    check_device(estimator.device)
    if isinstance(estimator.random_state, (np.random.RandomState, np.random.Generator)):
        raise ValueError("random_state: expected an integer or None, got a generator, whose draws depend on the order")
