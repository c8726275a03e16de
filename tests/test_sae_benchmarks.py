"""The benchmarks of sparse codes: the contenders' mathematics, and the record of agreement with other libraries."""

from __future__ import annotations

import importlib

import pytest
from test_benchmarks import FOLDER, ask

from fastsae.reference import SparseCode
from fastsae.sparse_code import SparseCodeConfig


@pytest.fixture
def scripts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes them modules."""
    monkeypatch.syspath_prepend(str(FOLDER))


ROW = {"features": 12, "latents": 64, "k": 4, "batch": 16, "batches": 4, "precision": "fp32"}


@pytest.mark.parametrize(
    ("name", "model"),
    [(name, "topk") for name in ("ours", "ours as saelens", "torch dense", "torch bag")]
    + [("ours as saelens", model) for model in ("batch_topk", "matryoshka", "jump_relu", "gated", "relu")],
)
def test_contenders_train_the_same_sparse_code(name: str, model: str, scripts: None) -> None:
    """Each has the loss of the reference after 3 steps, and says what memory it took."""
    if name.startswith("torch"):
        pytest.importorskip("torch")
    row = {**ROW, "model": model}
    workers = importlib.import_module("sae_workers")
    ready, turn, released = ask(
        name, {"do": "prepare", "row": row}, {"do": "slice", "seconds": 0.01}, {"do": "release"},
        script="sae_workers.py",
    )  # fmt: skip
    assert "error" not in ready, ready
    X, weights = workers.problem(row)
    options = workers.options_of(name if name.startswith("ours") else "ours", row)
    reference = SparseCode(SparseCodeConfig(12, 64, **options))
    reference.set({name: weights[name] for name in reference.parameters})
    for i in range(workers.CHECKED):
        reference.step(X[16 * i : 16 * (i + 1)])
    assert ready["loss"] == pytest.approx(reference.evaluate(X[:16])["loss"], rel=1e-4)
    assert turn["seconds_per_step"] > 0
    assert turn["peak_bytes"] >= ready["bytes_before"]
    assert released == {}


def test_the_record_of_agreement_has_every_case(scripts: None) -> None:
    """All cases, differences and files of today, each as it must be."""
    tables = importlib.import_module("tables")
    cases, files, others = map(importlib.import_module, ("sae_cases", "sae_files", "sae_differences"))
    record = tables.committed("agreement-sae")
    assert [row["case"] for row in record["cases"]] == [case.name for case in cases.CASES]
    assert [row["name"] for row in record["differences"]] == [difference.name for difference in others.DIFFERENCES]
    assert [row["file"] for row in record["files"]] == [exchange.name for exchange in files.EXCHANGES]
    assert all(row["agree"] for row in record["cases"] + record["files"])
    assert all(row["as_said"] for row in record["differences"])


def test_what_does_not_agree_is_seen(scripts: None) -> None:
    cases, agree = importlib.import_module("sae_cases"), importlib.import_module("agree_sae")
    case = next(case for case in cases.CASES if case.name == "sparsify TopK")
    given = cases.problem(case)
    given["X"] = given["X"][: 2 * cases.BATCH]
    ours = agree.of_ours(agree.Reference, case, given, given["X"])
    assert agree.compared(case, ours, ours)["agree"]
    for name, value in ours.items():
        assert not agree.compared(case, ours, {**ours, name: value * (1 + 1e-6)})["agree"], name
