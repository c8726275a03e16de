"""Results as Markdown tables and as a picture, in the places of the READMEs that are kept for them.

A place is what stands between ``<!-- NAME -->`` and ``<!-- /NAME -->``; NAME is that of the result's file.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
READMES = ("README.md", "benchmarks/README.md")
#: What stands in a place while there is no such result.
NOT_MEASURED = "Not measured yet."
PEERS = {"eager": "PyTorch eager", "compiled": "torch.compile", "jax": "JAX"}

Cell = Callable[[dict[str, Any]], str]


def number(key: str, form: str = "{:.2f}", factor: float = 1.0) -> Cell:
    """A cell with a number of the row, which may be missing."""
    return lambda row: "-" if row.get(key) is None else form.format(factor * row[key])


def ratio(group: str) -> Cell:
    return lambda row: f"{row['times_faster_than'][group]:.2f} x" if group in row["times_faster_than"] else "-"


STEP: dict[str, Cell] = {
    "model": lambda row: f"{row['model']}-{row['features']}",
    "batch": lambda row: str(row["batch"]),
    "precision": lambda row: str(row["precision"]),
    "threads": lambda row: str(row["threads"]),
    "us": number("measured_seconds", "{:.0f}", 1e6),
    **{f"{title}": ratio(group) for group, title in PEERS.items()},
    "over products": number("measured_over_floor"),
}
#: The rest of a step's row.
MORE: dict[str, Cell] = {
    "products, us": number("floor_seconds", "{:.0f}", 1e6),
    "GF/s": number("flops_per_second", "{:.0f}", 1e-9),
    "of the peak": number("share_of_peak", "{:.0%}"),
    "same loss": lambda row: "yes" if row["same_losses"] else "NO",
}
VARIANTS: dict[str, Cell] = {
    "model": lambda row: str(row["model"]),
    "batch": lambda row: str(row["batch"]),
    "us": number("measured_seconds", "{:.0f}", 1e6),
    "floor": number("floor_seconds", "{:.0f}", 1e6),
    "over it": number("measured_over_floor"),
    **{group: ratio(group) for group in PEERS},
    "same loss": MORE["same loss"],
}
ENCODE: dict[str, Cell] = {
    "rows": lambda row: str(row["rows"]),
    "callers": lambda row: str(row["callers"]),
    "of": lambda row: str(row["contender"]),
    **{f"{name}, us": number(name, "{:.1f}", 1e6) for name in ("p50", "p90", "p99", "p99.9")},
    "calls/s": number("calls_per_second", "{:.0f}"),
}


def table(rows: Sequence[dict[str, Any]], columns: dict[str, Cell]) -> str:
    """Markdown."""
    lines = [f"| {' | '.join(columns)} |", len(columns) * "|---" + "|"]
    return "\n".join(lines + [f"| {' | '.join(cell(row) for cell in columns.values())} |" for row in rows])


def variants_table(result: dict[str, Any]) -> str:
    return table(result["rows"], VARIANTS)


def step_table(result: dict[str, Any]) -> str:
    """All rows, the peaks and what was left out."""
    mkl = {"MKL": ratio("mkl")} if any("mkl" in row["times_faster_than"] for row in result["rows"]) else {}
    parts = [table(result["rows"], {**STEP, **mkl, **MORE})]
    for peak in result["peaks"]:
        if rate := peak["flops_per_second"]:
            size, each = " x ".join(map(str, peak["shape"])), peak["flops_per_second_and_thread"]
            parts.append(
                f"Peak of {peak['precision']} products on {threads_of(peak)}: {rate / 1e9:.0f} GF/s "
                f"({each / 1e9:.0f} a thread), the rate of {size} by {peak['by'].split()[0]}."
            )
    parts += [f"No rows of {precision}: {reason}." for precision, reason in result["left_out"].items()]
    return "\n\n".join([*parts, measured_on(result)])


def step_summary(result: dict[str, Any]) -> str:
    """The rows with the most threads."""
    most = max(row["threads"] for row in result["rows"])
    return "\n\n".join([table([row for row in result["rows"] if row["threads"] == most], STEP), measured_on(result)])


def encode_table(result: dict[str, Any]) -> str:
    call = result["step_call"]
    overhead = (
        f"A call of `Engine.step` costs {1e6 * call['overhead_seconds']:.1f} us more than a step of `run_epoch` "
        f"({call['model']}, batch {call['batch']})."
    )
    return "\n\n".join([table(result["rows"], ENCODE), overhead, measured_on(result)])


def synth_table(result: dict[str, Any]) -> str:
    """Means over the seeds, then what was published of the large world."""
    names = {"saelens": "SAELens", "ours": "fastsae", "ours_preset": 'fastsae, `preset="saelens"`'}
    scores = {name: number(name, "{:.4f}") for name in ("f1", "mcc", "uniqueness", "explained_variance")}
    more = {"L0": number("l0", "{:.2f}"), "dead": number("dead", "{:.1f}")}
    title: dict[str, Cell] = {"model": lambda row: row["model"], "by": lambda row: row["by"]}
    rows = [{**row, "by": names[row["library"]]} for row in result["summary"]]
    told = [
        {"model": model, "by": setting, **figures}
        for setting, models in result["published"].items()
        for model, figures in models.items()
    ]
    held = f"{result['rows']:,} rows of the world {result['size']}, means over {rows[0]['seeds']} seeds:"
    published = "Published (Chanin and Garriga-Alonso, arXiv 2602.14687, in SAELens's documentation):"
    parts = [held, table(rows, {**title, **scores, **more}), published, table(told, {**title, **scores})]
    return "\n\n".join([*parts, measured_on(result)])


#: Parts of an agreement, and what they are called.
AGREEMENT = {
    "loss": "loss",
    "code": "code",
    "gradients": "gradients",
    "losses_of_steps": "losses of 100 steps",
    "after_steps": "weights after them",
}
FILES = {
    name: name.replace("_", " ") for name in ("they_read_code", "they_read_output", "we_read_code", "we_read_output")
}


def agreement_table(result: dict[str, Any]) -> str:
    """Each case and what it is apart, each difference, and each file."""

    def apart(row: dict[str, Any], name: str) -> str:
        return f"{row['apart'][name]:.0e}" if name in row["apart"] else "-"

    def of(first: str, parts: dict[str, str]) -> str:
        columns: dict[str, Cell] = {first: lambda row: str(row[first])}
        columns |= {title: lambda row, name=name: apart(row, name) for name, title in parts.items()}  # type: ignore[misc]
        columns["agree"] = lambda row: "yes" if row["agree"] else "NO"
        return table(result[f"{first}s"], columns)

    differences = [
        f"- {row['name']}: {row['why']}. {'Measured to be so.' if row['as_said'] else 'NOT SO.'}"
        for row in result["differences"]
    ]
    versions = {name: version for found in result["peers"].values() for name, version in found.items()}
    told = "Largest differences, relative to the largest of theirs; with " + ", ".join(
        f"{name} {version}" for name, version in sorted(versions.items())
    )
    return "\n\n".join([of("case", AGREEMENT), "\n".join(differences), of("file", FILES), f"{told}; {result['date']}."])


def sae_rows(measured: list[dict[str, Any]], named: tuple[str, ...]) -> str:
    rows = []
    for row in measured:
        for name, seconds in row["seconds"].items():
            if name.endswith("product") and name != row["floor_by"]:
                continue
            ratio = row["measured_over_floor"] if name == row["ours"] else row["times_faster_than"].get(name)
            takes = f"{ratio:.2f} x {'the product' if name == row['ours'] else 'ours'}" if ratio else ""
            peak = row["memory"].get(name, {}).get("peak_bytes")
            rows.append({**row, "of": name, "ms": seconds, "peak": peak, "takes": takes})
    columns: dict[str, Cell] = {
        **{name: lambda row, name=name: str(row[name]) for name in (*named, "of")},  # type: ignore[misc]
        "ms": number("ms", "{:.0f}", 1e3),
        "takes": lambda row: str(row["takes"]),
        "peak, GB": number("peak", "{:.2f}", 1e-9),
        "same loss": lambda row: "yes" if row["same_losses"] else "NO",
    }
    return table(rows, columns)


def sae_table(result: dict[str, Any]) -> str:
    """A row for each contender, the other models, and the memory of the wide one."""
    parts = [sae_rows(result["rows"], ("batch", "precision"))]
    if models := result.get("models"):
        parts.append("The other models, batch {}, {}:".format(*(models[0][name] for name in ("batch", "precision"))))
        parts.append(sae_rows(models, ("model",)))
    if (wide := result.get("wide")) and wide["measured_seconds"]:
        parts.append(
            f"{wide['latents']} latents, batch {wide['batch']}: {wide['measured_seconds']:.2f} s a step, "
            f"{wide['peak_bytes'] / 1e9:.2f} GB at most."
        )
    return "\n\n".join([*parts, measured_on(result)])


def threads_of(row: dict[str, Any]) -> str:
    return f"{row['threads']} thread" + ("s" if row["threads"] > 1 else "")


def measured_on(result: dict[str, Any]) -> str:
    versions = {**result["contenders"], **result["versions"]}
    names = (("torch", "PyTorch"), ("jax", "JAX"), ("saelens", "SAELens"))
    peers = ", ".join(f"{name} {versions[key]}" for key, name in names if key in versions)
    return f"Measured on {result['processor']} ({result['isa']}), {result['date']}" + (f"; {peers}." if peers else ".")


#: For a result by the name of its file: what stands in the README, and in that of the benchmarks.
PLACES: dict[str, tuple[Callable[[dict[str, Any]], str], Callable[[dict[str, Any]], str]]] = {
    "step-cpu": (step_summary, step_table),
    "encode-cpu": (encode_table, encode_table),
    "agreement-sae": (agreement_table, agreement_table),
    "sae-cpu": (sae_table, sae_table),
    "sae-cpu-4096": (sae_table, sae_table),
    "synth": (synth_table, synth_table),
}
#: Results with a picture, and where it is seen from each README.
PICTURES = {"step-cpu": ("docs/step-cpu.svg", "How many times faster than PyTorch and JAX a step is, by size")}


def between(text: str, name: str) -> str | None:
    """What stands in a place, or None if there is no such place."""
    begin, end = f"<!-- {name} -->\n", f"\n<!-- /{name} -->"
    if begin not in text or end not in text:
        return None
    return text.split(begin, 1)[1].split(end, 1)[0]


def expected(name: str, result: dict[str, Any] | None, readme: str) -> str:
    """What should stand in the place of a README."""
    if result is None:
        return NOT_MEASURED
    text = PLACES[name][READMES.index(readme)](result)
    if name in PICTURES:
        path, words = PICTURES[name]
        text += f"\n\n![{words}]({'../' * readme.count('/')}{path})"
    return text


def write(name: str, result: dict[str, Any], root: Path = ROOT) -> list[Path]:
    """Fill the result's places and draw its picture; the files that were written."""
    written = []
    for readme in READMES:
        path = root / readme
        text = path.read_text()
        found = between(text, name)
        if found is not None:
            path.write_text(
                text.replace(
                    f"<!-- {name} -->\n{found}\n<!--", f"<!-- {name} -->\n{expected(name, result, readme)}\n<!--"
                )
            )
            written.append(path)
    if name in PICTURES:
        path = root / PICTURES[name][0]
        draw(result, path)
        written.append(path)
    return written


def committed(name: str) -> dict[str, Any] | None:
    path = RESULTS / f"{name}.json"
    return json.loads(path.read_text()) if path.exists() else None


def draw(result: dict[str, Any], path: Path) -> None:
    """Ratios by size: precisions down, numbers of threads across; needs matplotlib."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    rows = result["rows"]
    down, across = [list(dict.fromkeys(row[key] for row in rows)) for key in ("precision", "threads")]
    names = list(dict.fromkeys(f"{STEP['model'](row)}, {row['batch']} rows" for row in rows))
    style = {"svg.hashsalt": "fastsae", "svg.fonttype": "none", "font.family": "sans-serif", "font.size": 9}
    with plt.rc_context(style):
        size = (1.6 + 3.2 * len(across), 0.7 + (0.5 + 0.24 * len(names)) * len(down))
        shape = {"nrows": len(down), "ncols": len(across), "sharex": True, "sharey": True, "squeeze": False}
        figure, axes = plt.subplots(**shape, figsize=size, layout="constrained")
        for i, precision in enumerate(down):
            for axis, threads in zip(axes[i], across, strict=True):
                shown = [row for row in rows if (row["precision"], row["threads"]) == (precision, threads)]
                for (group, title), look in zip(PEERS.items(), ("oC0", "sC1", "^C2"), strict=True):
                    there = [row for row in shown if group in row["times_faster_than"]]
                    at = [names.index(f"{STEP['model'](row)}, {row['batch']} rows") for row in there]
                    axis.plot([row["times_faster_than"][group] for row in there], at, look, label=title, ms=5)
                axis.set(xscale="log", title=f"{precision}, {threads_of({'threads': threads})}")
                axis.set_yticks(range(len(names)), names)
                axis.axvline(1, color="0.3", linewidth=1)
                axis.grid(color="0.9")
                axis.xaxis.set_major_locator(matplotlib.ticker.LogLocator(subs=(1, 2, 5)))
                axis.xaxis.set_major_formatter(matplotlib.ticker.FormatStrFormatter("%g"))
                axis.xaxis.set_minor_locator(matplotlib.ticker.NullLocator())
        axes[0][0].set_ylim(len(names) - 0.5, -0.5)
        figure.supxlabel("times faster than these")
        figure.legend(*axes[0][0].get_legend_handles_labels(), loc="outside upper center", ncols=3, frameon=False)
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, facecolor="white", metadata={"Date": None})
        plt.close(figure)
