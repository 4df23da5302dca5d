"""One HTML file that shows runs down to the single input, readable without a network.

The page is a template, a style sheet and a few scripts beside this file. Everything that a run holds is put into it as
JSON, and its scripts write it as text alone, so nothing that a model or a file said becomes markup. A content security
policy says the same to the browser: no network, and no script but this one.
"""

import hashlib
import json
from base64 import b64encode
from collections.abc import Mapping
from html import escape
from importlib.resources import files
from string import Template
from typing import Any

import numpy as np

from ttsi_jax.runs.compare import Compared, Comparison, compare, plain
from ttsi_jax.runs.comparison_tables import comparison_tables
from ttsi_jax.runs.gate_quality import Curve
from ttsi_jax.runs.groups import Run
from ttsi_jax.runs.record import Record, strict_json
from ttsi_jax.runs.summary import base_and_final, outcome, summarise
from ttsi_jax.runs.table import Rows, accuracies, adaptations, inputs, passes, stages, teacher

SCRIPTS = ("dom.js", "charts.js", "input.js", "browser.js", "app.js")
CORNERS = 300  # of a curve in a plot: more cannot be seen


def render_report(runs: Mapping[str, Run]) -> str:
    """The report as one self-contained HTML page: the runs side by side, then all their inputs.

    Args:
        runs: Name to run, as `load_runs` returns them; later ones are compared with the first of their task.
    """
    style, script = _read("style.css"), "".join(map(_read, SCRIPTS))
    page = Template(_read("template.html")).substitute(
        title=escape("Test-time self-improvement: " + ", ".join(runs)),
        policy=f"default-src 'none'; style-src '{_digest(style)}'; script-src '{_digest(script)}'",
        style=style,
        data=_embedded(report_data(runs)),
        script=script,
    )
    return page.encode(errors="replace").decode()  # a lone surrogate cannot be written to a file


def report_data(runs: Mapping[str, Run]) -> dict[str, Any]:
    """What the page shows, as JSON values."""
    comparison = compare(runs)
    functions = {json.dumps(one["functions"]): one["functions"] for run in runs.values() for one in run.functions}
    places = {text: place for place, text in enumerate(functions)}
    return {
        "notes": comparison.notes,
        "tables": [rows._asdict() for rows in comparison_tables(comparison)],
        "differences": _differences(comparison),
        "gates": [gate for group in comparison.groups if (gate := _gate(group)) is not None],
        "functions": list(functions.values()),
        "runs": [_run(name, run, places) for name, run in runs.items()],
    }


def tags(record: Record) -> list[str]:
    """The words that the page filters by and shows beside an input."""
    if record.error is not None:
        return ["error"]
    change = outcome(*base_and_final(record, "call"))
    flags = {
        "fixed": change == "fixed",
        "broken": change == "broke",
        "reverted": record.reverted,
        "adapted": record.adapted,
        "uncertain": record.uncertain,
    }
    return [tag for tag, flag in flags.items() if flag]


def _run(name: str, run: Run, places: Mapping[str, int]) -> dict[str, Any]:
    summary = summarise(run.records)
    reasons = [(reason, str(count)) for reason, count in summary["reasons"].items()]
    tables = (
        accuracies(summary),
        passes(summary),
        teacher(summary),
        inputs(summary),
        adaptations(summary),
        stages(summary),
        Rows(("reason", "count"), reasons),
    )
    places_of = {id: places[json.dumps(one["functions"])] for one in run.functions for id in one["inputs"]}
    gate = run.config.get("gate")
    tau = (run.summary or {}).get("tau", gate.get("tau") if isinstance(gate, dict) else None)  # chosen, or given
    return {
        "name": name,
        "finished": run.summary is not None,
        "tau": tau if isinstance(tau, int | float) else None,
        "config": run.config,
        "tables": [rows._asdict() for rows in tables if rows.rows],
        "records": [_record(record, places_of.get(record.id)) for record in run.records],
    }


def _record(record: Record, functions: int | None) -> dict[str, Any]:
    """A record's fields that say something, its tags, and which of the page's lists of functions it has."""
    known = vars(record) | {"functions": functions}
    return {name: value for name, value in known.items() if value is not None} | {"tags": tags(record)}


def _differences(comparison: Comparison) -> list[dict[str, Any]]:
    return [
        {"name": f"{contrast.before} → {contrast.after}, {metric}", **interval._asdict()}
        for contrast in comparison.contrasts
        for metric, interval in contrast.difference.items()
    ]


def _gate(group: Compared) -> dict[str, Any] | None:
    if group.gate is None:
        return None
    errors = {metric: _points(found.risk) for metric, found in group.gate.errors.items()}
    calibration, gain = group.gate.calibration, group.gate.gain
    return {
        "name": f"{group.group.number}: {group.group.name}",
        "risk": errors,
        "bins": plain(calibration.bins) if calibration else None,
        "gain": {
            "gate": _points(gain.gate),
            "oracle": _points(gain.oracle),
            "random": _points(gain.random),
            "uncertain": gain.uncertain,
        }
        if gain
        else None,
    }


def _points(curve: Curve) -> list[list[float]]:
    """The corners of a curve as [x, y], some of them where there are more than a plot can show."""
    chosen = np.unique(np.linspace(0, len(curve.x) - 1, CORNERS).round().astype(int))
    return np.stack(curve, axis=1)[chosen].round(5).tolist() if len(curve.x) else []


def _embedded(data: Any) -> str:
    """JSON that no HTML parser takes for the end of a script or a comment in it."""
    return strict_json(data).replace("<", "\\u003c")  # in JSON it can only be part of a text


def _read(name: str) -> str:
    return files(__name__).joinpath(name).read_text(encoding="utf-8")


def _digest(text: str) -> str:
    return "sha256-" + b64encode(hashlib.sha256(text.encode()).digest()).decode()
