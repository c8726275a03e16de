"""The benchmarks: the contenders' mathematics, the checks, and what is made of results; of a GPU's, what goes here."""

from __future__ import annotations

import importlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastsae import Config, LayerConfig, _core
from fastsae.reference import Layered

FOLDER = Path(__file__).parents[1] / "benchmarks"
STAGES = ("correctness", "ceilings", "layered", "selection", "sparse")


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(FOLDER))
    return importlib.import_module("gpu")


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
@pytest.mark.parametrize("script", [FOLDER / "gpu.sh", FOLDER.parent / ".ci" / "run"], ids=lambda path: path.name)
def test_shell_scripts_parse(script: Path) -> None:
    subprocess.run(["bash", "-n", script], check=True)


def test_help_lists_the_stages() -> None:
    text = subprocess.run(
        [sys.executable, FOLDER / "gpu.py", "--help"], capture_output=True, text=True, check=True
    ).stdout
    for stage in STAGES:
        assert stage in text
        assert stage in (FOLDER / "gpu.sh").read_text()
        assert f"gpu.sh {stage}" in (FOLDER / "README.md").read_text()


def ask(name: str, *requests: dict[str, Any], script: str = "step_workers.py") -> list[dict[str, Any]]:
    """What a worker answers."""
    done = subprocess.run(
        [sys.executable, FOLDER / script, name, "--device", "cpu"],
        input="".join(json.dumps(request) + "\n" for request in requests),
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
        env={**os.environ, "OMP_NUM_THREADS": "1", "JAX_PLATFORMS": "cpu"},
    )
    return [json.loads(line) for line in done.stdout.splitlines()]


ROW = {"features": 8, "hidden": 5, "batch": 10, "batches": 6, "precision": "fp32"}


@pytest.mark.parametrize(
    ("name", "module"),
    [
        ("ours", "fastsae"),
        ("torch default", "torch"),
        ("torch fused", "torch"),
        ("jax jit", "jax"),
        ("jax scan", "jax"),
    ],
)
def test_contenders_train_the_same_model(name: str, module: str, gpu: Any) -> None:
    """Each has the loss of the reference after 20 steps, and says how long a step takes."""
    pytest.importorskip(module)
    workers = importlib.import_module("step_workers")
    X, parameters = workers.problem(ROW)
    layers = (LayerConfig(5, "sigmoid", "kl", beta=3.0, rho=0.05), LayerConfig(8, "sigmoid"))
    reference = Layered(Config(8, layers, weight_decay=1e-4, learning_rate=1e-3))
    reference.set(parameters)
    for i in range(workers.CHECKED_STEPS):
        begin = i % ROW["batches"] * ROW["batch"]
        reference.step(X[begin : begin + ROW["batch"]])
    expected = reference.evaluate(X[: ROW["batch"]])
    ready, turn, released = ask(
        name, {"do": "prepare", "row": ROW}, {"do": "slice", "seconds": 0.01}, {"do": "release"}
    )
    assert "error" not in ready, ready
    assert ready["loss"] == pytest.approx(expected["loss"], rel=importlib.import_module("race").TOLERANCE["fp32"])
    assert ready["reconstruction"] == pytest.approx(
        expected["reconstruction"], rel=importlib.import_module("race").TOLERANCE["fp32"]
    )
    assert turn["seconds_per_step"] > 0
    assert turn["steps"] >= 1
    assert released == {}


def test_a_worker_says_what_went_wrong_and_goes_on() -> None:
    bad = {**ROW, "features": -1}
    failed, turn, ready = ask(
        "ours", {"do": "prepare", "row": bad}, {"do": "slice", "seconds": 1}, {"do": "prepare", "row": ROW}
    )
    assert "ValueError" in failed["error"]
    assert "error" in turn
    assert "loss" in ready


def test_a_worker_forgets_a_row_and_takes_another() -> None:
    other = {**ROW, "features": 6, "batches": 3}
    first, released, turn, second, again = ask(
        "ours",
        {"do": "prepare", "row": ROW},
        {"do": "release"},
        {"do": "slice", "seconds": 0.01},
        {"do": "prepare", "row": other},
        {"do": "slice", "seconds": 0.01},
    )
    assert released == {}
    assert "AttributeError" in turn["error"]
    assert second["loss"] != first["loss"]
    assert again["steps"] % other["batches"] == 0


@pytest.mark.skipif("MKL" in _core.blas(), reason="built with MKL")
def test_mkl_is_a_build_with_mkl() -> None:
    (refused,) = ask("mkl", {"do": "prepare", "row": ROW})
    assert f"built with MKL, got {_core.blas()}" in refused["error"]


VARIANTS = ("deep", "conv", "variational", "contractive")


@pytest.mark.parametrize("model", VARIANTS)
@pytest.mark.parametrize("name", ["ours", "torch fused", "jax jit", "products"])
def test_contenders_train_the_same_variant(model: str, name: str, gpu: Any, tmp_path: Path) -> None:
    """Each has the loss of the reference after 20 steps, and goes on with random batches."""
    module = name.split()[0]
    if module in ("torch", "jax"):
        pytest.importorskip(module)
    workers, bench = importlib.import_module("variants_workers"), importlib.import_module("bench_variants")
    row = {**next(row for row in bench.TINY_ROWS if row["model"] == model), "problem": str(tmp_path / "problem.npz")}
    made = workers.problem(row)
    np.savez(row["problem"], **made)
    ready, turn, released = ask(
        name,
        {"do": "prepare", "row": row},
        {"do": "slice", "seconds": 0.01},
        {"do": "release"},
        script="variants_workers.py",
    )
    assert "error" not in ready, ready
    assert turn["steps"] >= 1
    assert released == {}
    if name == "products":
        assert ready["multiply_adds"] == sum(m * k * n for m, k, n in workers.products(row))
        return
    reference = Layered(workers.configuration(row))
    reference.set({name: value for name, value in made.items() if name[0] in "Wb"})
    n = row["batch"]
    for i in range(workers.CHECKED_STEPS):
        reference.step(made["X"][i * n : (i + 1) * n], numbers=np.arange(i * n, (i + 1) * n))
    expected, _ = reference.value_and_gradient(made["X"][:n], numbers=np.arange(n))
    tolerance = bench.DEEPER * importlib.import_module("race").TOLERANCE["fp32"]
    assert ready["loss"] == pytest.approx(expected["loss"], rel=tolerance)
    assert ready["reconstruction"] == pytest.approx(expected["reconstruction"], rel=tolerance)


def test_products_of_a_step_are_counted(gpu: Any) -> None:
    """Forward and the weights' gradient for each layer, the delta for each but the first."""
    workers = importlib.import_module("variants_workers")
    assert workers.products({"model": "contractive", "widths": [7, 3, 7], "batch": 5}) == [
        (5, 7, 3), (3, 5, 7), (5, 3, 7), (7, 5, 3), (5, 7, 3),
    ]  # fmt: skip
    deep = {"model": "variational", "widths": [9, 4, 2, 4, 9], "batch": 5}
    assert (5, 4, 4) in workers.products(deep)  # two heads of two latents
    images = workers.products({"model": "conv", "features": 64, "channels": (3, 5), "batch": 2})
    assert images[:2] == [(2 * 16, 9, 3), (3, 2 * 16, 9)]


def test_variants_race_and_tell(tmp_path: Path) -> None:
    """The whole script on a tiny row, its result, and the table that is made of the result alone."""
    output = tmp_path / "variants.json"
    options = ["--quick", "--models", "deep", "--rounds", "2", "--slice", "0.01", "--threads", "1"]
    done = subprocess.run(
        [sys.executable, FOLDER / "bench_variants.py", *options, "--output", output],
        capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    result = json.loads(output.read_text())
    (row,) = result["rows"]
    assert row["measured_seconds"] > 0
    assert row["measured_over_floor"] > 0
    assert (done.returncode == 0) == row["same_losses"]
    # Without a peer there is nothing to be the same as, and the script says so.
    assert row["same_losses"] == (len(row["loss_after_20_steps"]) > 1)
    table = subprocess.run(
        [sys.executable, FOLDER / "report.py", output], capture_output=True, text=True, check=True
    ).stdout
    assert "| deep | 6 |" in table
    assert table.strip() in done.stdout


def test_each_provider_multiplies(gpu: Any) -> None:
    """The products of a step are those of its shapes, and the rate counts two operations a multiply-add."""
    workers = importlib.import_module("product_workers")
    made = workers.by_numpy(ROW, "cpu")
    a, b, out = made.random(3, 4), made.random(5, 4), made.random(3, 5)
    made.multiply(a, b.T, out=out)
    np.testing.assert_allclose(out, a @ b.T, rtol=1e-6)
    ready, turn, released = ask(
        "numpy products", {"do": "prepare", "row": ROW}, {"do": "slice", "seconds": 0.01}, {"do": "release"}
    )
    assert ready["bytes"] == 4 * 80 + 24 * (2 * 40 + 13)
    assert turn["seconds_per_step"] > 0
    assert released == {}
    (rate,) = ask("numpy rate", {"do": "prepare", "row": {"precision": "fp32", "shape": [3, 4, 5]}})
    assert rate["flops"] == 120
    (refused,) = ask("numpy products", {"do": "prepare", "row": {**ROW, "precision": "bf16"}})
    assert "bf16" in refused["error"]


def run_script(name: str, output: Path, *options: str) -> tuple[dict[str, Any], subprocess.CompletedProcess[str]]:
    """The result that a script of races writes."""
    done = subprocess.run(
        [sys.executable, FOLDER / name, "--quick", "--rounds", "2", "--slice", "0.01", "--output", output, *options],
        capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert output.exists(), done.stderr
    return json.loads(output.read_text()), done


@pytest.fixture
def tables(gpu: Any) -> Any:
    return importlib.import_module("tables")


@pytest.fixture
def readmes(tables: Any, tmp_path: Path) -> Path:
    """A folder with copies of those that have places for results, empty."""
    for readme in tables.READMES:
        (tmp_path / readme).parent.mkdir(exist_ok=True)
        text = (FOLDER.parent / readme).read_text()
        for name in tables.PLACES:
            if (found := tables.between(text, name)) is not None:
                text = text.replace(found, tables.NOT_MEASURED)
        (tmp_path / readme).write_text(text)
    return tmp_path


def test_steps_race_and_tell(tables: Any, readmes: Path) -> None:
    """The whole script on a tiny row with each number of threads; the READMEs' tables and the picture of its result."""
    pytest.importorskip("matplotlib")
    output = readmes / "step-cpu.json"
    result, done = run_script("bench_step.py", output, "--rows", "8-5:10", "--threads", "1", "--precision", "fp32,bf16")
    row = result["rows"][0]
    assert row["measured_seconds"] > 0
    assert row["measured_over_floor"] > 0
    assert row["floor_by"] in row["seconds"]
    assert row["flops_per_second"] == pytest.approx(10 * 10 * 8 * 5 / row["measured_seconds"])
    assert result["peaks"][0]["flops_per_second"] > 0
    assert {row["precision"] for row in result["rows"]} | set(result["left_out"]) == {"fp32", "bf16"}
    assert (done.returncode == 0) == all(row["same_losses"] for row in result["rows"])
    for row in result["rows"]:  # without a peer there is nothing to be the same as
        assert row["same_losses"] == (len(row["loss_after_20_steps"]) > 1)
        if len(row["loss_after_20_steps"]) == 1:
            assert "--peers" in done.stderr

    assert [path.name for path in tables.write("step-cpu", result, readmes)] == [
        "README.md",
        "README.md",
        "step-cpu.svg",
    ]
    texts = [(readmes / readme).read_text() for readme in tables.READMES]
    for readme, text in zip(tables.READMES, texts, strict=True):
        assert tables.between(text, "step-cpu") == tables.expected("step-cpu", result, readme)
        assert "| 8-5-8 | 10 | fp32 | 1 |" in text
    assert (
        texts[0].split("<!-- step-cpu -->")[0]
        == (FOLDER.parent / "README.md").read_text().split("<!-- step-cpu -->")[0]
    )
    tables.write("step-cpu", result, readmes)
    assert texts == [(readmes / readme).read_text() for readme in tables.READMES]
    assert "<svg" in (readmes / "docs" / "step-cpu.svg").read_text()


def test_bad_options_of_the_races_are_refused() -> None:
    for script, options, wanted in (
        ("bench_step.py", ["--rows", "9-9:9"], "--rows: expected some of 64-25:100"),
        ("bench_step.py", ["--threads", "0"], "--threads: expected some of 1"),
        ("bench_step.py", ["--precision", "fp8"], "--precision: expected some of fp32, bf16, got fp8"),
        ("bench_encode.py", ["--threads", "0"], "--threads: expected at least 1, got 0"),
        ("report.py", ["--write", str(FOLDER / "results" / "fit-cpu.json")], "expected results named step-cpu"),
    ):
        done = subprocess.run([sys.executable, FOLDER / script, *options], capture_output=True, text=True, check=False)
        assert done.returncode == 2
        assert wanted in done.stderr


def test_encoding_races_and_tells(tables: Any, readmes: Path) -> None:
    output = readmes / "encode-cpu.json"
    result, done = run_script("bench_encode.py", output, "--threads", "1")
    assert done.returncode == 0, done.stderr
    assert {(row["rows"], row["callers"]) for row in result["rows"]} == {(n, c) for n in (1, 8, 64) for c in (1, 16)}
    for row in result["rows"]:
        assert row["same_code"]
        assert 0 < row["p50"] <= row["p90"] <= row["p99"] <= row["p99.9"]
        assert row["calls_per_second"] > 0
    assert {"ours", "ours transform", "numpy"} <= {row["contender"] for row in result["rows"]}
    assert result["step_call"]["step_seconds"] > 0
    assert [path.name for path in tables.write("encode-cpu", result, readmes)] == ["README.md"]
    text = (readmes / "benchmarks" / "README.md").read_text()
    assert tables.between(text, "encode-cpu") == tables.expected("encode-cpu", result, "benchmarks/README.md")


@pytest.mark.parametrize("name", ["step-cpu", "encode-cpu", "agreement-sae", "sae-cpu", "sae-cpu-4096"])
def test_the_readmes_say_what_the_results_say(name: str, tables: Any) -> None:
    result, places = tables.committed(name), 0
    for readme in tables.READMES:
        found = tables.between((FOLDER.parent / readme).read_text(), name)
        if found is not None:
            assert found == tables.expected(name, result, readme)
            places += 1
    assert places == (2 if name == "step-cpu" else 1)
    if result is not None and name in tables.PICTURES:
        assert (FOLDER.parent / tables.PICTURES[name][0]).exists()


def test_a_table_shows_what_is_missing(tables: Any) -> None:
    row = {
        "model": "8-5", "features": 8, "batch": 10, "precision": "fp32", "threads": 2, "measured_seconds": None,
        "times_faster_than": {"jax": 2.0}, "measured_over_floor": None,
    }  # fmt: skip
    assert tables.table([row], tables.STEP).splitlines()[-1] == "| 8-5-8 | 10 | fp32 | 2 | - | - | - | 2.00 x | - |"


def test_ratios_are_medians_over_the_rounds(gpu: Any) -> None:
    results = {
        "ours": {"rounds": [1.0, 2.0, 1.0]},
        "torch default": {"rounds": [9.0, 9.0, 9.0]},
        "torch fused": {"rounds": [4.0, 4.0, 4.0]},
        "jax jit": {"error": "no such thing"},
    }
    compared = gpu.compare(results, "ours")
    assert compared["measured_seconds"] == 1.0
    assert compared["times_faster_than"] == {"eager": 4.0}
    assert compared["missing"] == {"jax jit": "no such thing"}
    assert gpu.floors({}, compared, 0.5)["measured_over_floor"] == 2.0
    assert gpu.floors({}, compared, None)["measured_over_floor"] is None


def test_the_summary_shows_what_is_wrong(gpu: Any) -> None:
    compared = gpu.compare({"ours": {"rounds": [2e-6]}, "jax jit": {"rounds": [8e-6]}}, "ours")
    row = {"features": 8, "hidden": 5, "batch": 10, "precision": "fp32", **gpu.floors({}, compared, 1e-6)}
    result = {"gpu": None, "stage": "layered", "seconds": 1.0, "rows": [{**row, "same_losses": True}]}
    assert gpu.summary(result)[1] == "8 5 10 fp32: 2.0 us, 2.0 floors; 4.0 x jax"
    result["rows"] = [{**row, "same_losses": False}]
    assert gpu.summary(result)[1].endswith("THE RESULTS DIFFER")
    missing = gpu.floors(row, gpu.compare({"ours": {"error": "no"}}, "ours"), None)
    assert "not measured" in gpu.summary({**result, "rows": [missing], "left_out": [ROW]})[1]


def test_losses_that_differ_are_seen(gpu: Any) -> None:
    def same(theirs: float, part: float = 1.0) -> bool:
        results = {"ours": {"loss": 2.0, "reconstruction": 1.0}, "jax jit": {"loss": theirs, "reconstruction": part}}
        return bool(gpu.losses(results, "fp32")["same_losses"])

    assert same(2.0)
    assert same(2.00001)
    assert not same(2.001)
    assert not same(2.0, 1.001)
    assert not gpu.losses({"jax jit": {"loss": 1.0, "reconstruction": 1.0}}, "fp32")["same_losses"]


def test_a_wrong_selection_is_seen(gpu: Any, tmp_path: Path) -> None:
    row = {"features": 16, "latents": 200, "active": 4, "batch": 30, "precision": "fp32"}
    X, weight, bias = gpu.selection_problem(row)
    scores = X @ weight.T + bias
    indices = np.argsort(-scores, axis=1)[:, :4]
    values = np.take_along_axis(scores, indices, axis=1)

    def right(values: np.ndarray, indices: np.ndarray) -> bool:
        np.savez(tmp_path / "ours.npz", values=values, indices=indices.astype(np.int32))
        return bool(gpu.agree(row, tmp_path)["selection_is_right"])

    assert not gpu.agree(row, tmp_path)["selection_is_right"]
    assert right(values, indices)
    assert not right(values + 1e-3, indices)
    assert not right(values[:, ::-1], indices[:, ::-1])
    assert not right(values[:, [0, 1, 2, 2]], indices[:, [0, 1, 2, 2]])
    fifth = np.argsort(-scores, axis=1)[:, [0, 1, 2, 4]]
    assert not right(np.take_along_axis(scores, fifth, axis=1), fifth)
    np.savez(tmp_path / "torch.npz", values=values, indices=np.flip(indices, axis=1))
    assert right(values, indices)
    assert gpu.agree(row, tmp_path)["rows_that_pytorch_selects_alike"] == 1.0


def test_bf16_is_rounded_to_nearest_even(gpu: Any) -> None:
    values = np.array([1 + 2**-8, 1 + 3 * 2**-8, -1 - 2**-9, 0.0, 3.0], np.float32)
    np.testing.assert_array_equal(gpu.to_bf16(values), [1, 1 + 2**-6, -1, 0, 3])
