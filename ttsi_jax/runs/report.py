"""One HTML file that shows runs down to the single input, readable without a network."""

import json
from collections.abc import Iterable, Mapping
from html import escape
from importlib.resources import files
from string import Template
from typing import Any

from ttsi_jax.runs.compare import Comparison, Run, compare
from ttsi_jax.runs.record import Record
from ttsi_jax.runs.summary import base_and_final, outcome
from ttsi_jax.runs.table import Rows, accuracies, counts, side_by_side, stages


def render_report(runs: Mapping[str, Run]) -> str:
    """The report as one self-contained HTML page: the runs side by side, then each run with all its inputs.

    Args:
        runs: Name to run, as `load_runs` returns them; later ones are compared with the first.
    """
    comparisons = compare(runs)
    page = Template(files("ttsi_jax.runs").joinpath("report.html").read_text(encoding="utf-8")).substitute(
        title=escape("Test-time self-improvement: " + ", ".join(runs)),
        overview=_plain_table(side_by_side(comparisons)),
        runs="\n".join(_run(comparison, runs[comparison.name]) for comparison in comparisons),
    )
    return page.encode(errors="replace").decode()  # a lone surrogate cannot be written to a file


def _run(comparison: Comparison, run: Run) -> str:
    summary = comparison.summary
    reasons = [(reason, str(count)) for reason, count in summary["reasons"].items()]
    tables = (accuracies(summary), counts(summary), stages(summary), Rows(("reason", "count"), reasons))
    gate = run.config.get("gate")
    tau = gate.get("tau") if isinstance(gate, dict) else None
    return "\n".join(
        [
            f"<section><h2>{escape(comparison.name)}</h2>",
            *map(_plain_table, tables),
            f"<details><summary>Settings</summary>{_text(run.config)}</details>",
            *(_input(record, tau) for record in run.records),
            "</section>",
        ]
    )


def _input(record: Record, tau: object) -> str:
    tags = _tags(record)
    badges = "".join(f'<span class="badge {tag}">{tag}</span>' for tag in tags)
    query = record.query if isinstance(record.query, str) else json.dumps(record.query, ensure_ascii=False)
    return "\n".join(
        [
            f'<details class="input" data-tags="{" ".join(tags)}">',
            f"<summary><code>{escape(record.id)}</code> {escape(_shortened(query))}{badges}</summary>",
            _part("Request", _text(record.query)),
            _part("Error", _text(record.error)),
            _part("Candidates", _candidates(record)),
            _part("Margin", _margin(record, tau)),
            _part("Synthetic pairs", _pairs(record)),
            _part("Training loss", escape(" → ".join(_number(loss) for loss in record.losses))),
            _part("Answers", _answers(record)),
            _part("Why it ended so", _text(record.reason)),
            _part("Seconds", escape(", ".join(f"{stage} {_number(s)}" for stage, s in record.seconds.items()))),
            "</details>",
        ]
    )


def _tags(record: Record) -> list[str]:
    """The words that the page filters by, and more to be shown beside an input."""
    if record.error is not None:
        return ["failed"]
    change = outcome(*base_and_final(record, "call"))
    flags = {"uncertain": record.uncertain, "adapted": record.adapted, "reverted": record.reverted}
    return [tag for tag, flag in flags.items() if flag] + ([change] if change in ("fixed", "broke") else [])


def _candidates(record: Record) -> str:
    rows = []
    for i, name in enumerate(record.candidates):
        probability = record.probabilities[i] if i < len(record.probabilities) else None
        bar = f'<span class="bar"><i style="width:{100 * (probability or 0):.1f}%"></i></span>'
        picked = [side for side, pick in (("before", record.pick_base), ("after", record.pick)) if pick == name]
        rows.append(_row(name, _number(probability)) + f"<td>{bar}</td>" + _row(", ".join(picked)))
    return _table(("candidate", "probability", "", "picked"), rows)


def _margin(record: Record, tau: object) -> str:
    if record.uncertainty is None:
        return ""
    verdict = "" if record.uncertain is None else ": uncertain" if record.uncertain else ": certain"
    threshold = "" if tau is None else f", threshold τ {tau}"
    return escape(f"{_number(record.uncertainty)}{threshold}{verdict}")


def _pairs(record: Record) -> str:
    rows = []
    for pair in record.synthetic:
        verdict = "accepted" if pair.get("accepted") else "rejected"
        reason = f": {pair['reason']}" if pair.get("reason") else ""
        cells = f"<td>{_text(pair.get('query'))}</td><td>{_text(pair.get('calls'))}</td>"
        rows.append(f'{cells}<td class="{verdict}">{escape(verdict + reason)}</td>')
    return _table(("request", "calls", ""), rows)


def _answers(record: Record) -> str:
    before = (record.text_base, record.base_calls, record.tool_correct_base, record.call_correct_base)
    after = (record.text_adapted, record.adapted_calls, None, None)
    final = (None, record.calls, record.tool_correct, record.call_correct)
    rows = [_answer(name, *answer) for name, answer in (("before", before), ("adapted", after), ("final", final))]
    gold = [_answer("gold", None, record.gold, None, None)]
    return _table(("", "text", "calls", "tool", "call"), [row for row in rows + gold if row])


def _answer(name: str, text: str | None, calls: list[Any] | None, tool: bool | None, call: bool | None) -> str:
    if text is None and calls is None:
        return ""
    marks = "".join(
        "<td></td>" if value is None else f'<td class="{"yes" if value else "no"}">{"right" if value else "wrong"}</td>'
        for value in (tool, call)
    )
    return f"{_row(name)}<td>{_text(text)}</td><td>{_text(calls)}</td>{marks}"


def _part(heading: str, content: str) -> str:
    return f"<h3>{heading}</h3>{content}" if content else ""


def _table(headings: Iterable[str], rows: list[str]) -> str:
    """A table of rows whose cells are ready markup; nothing where there are no rows."""
    if not rows:
        return ""
    head = "".join(f"<th>{escape(heading)}</th>" for heading in headings)
    body = "".join(f"<tr>{row}</tr>" for row in rows)
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _plain_table(rows: Rows) -> str:
    return _table(rows.headings, [_row(*row) for row in rows.rows])


def _row(*cells: object) -> str:
    return "".join(f"<td>{escape(str(cell))}</td>" for cell in cells)


def _text(value: Any) -> str:
    """Text as it is, anything else as JSON; nothing for None."""
    if value is None:
        return ""
    return f"<pre>{escape(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, indent=1))}</pre>"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.4g}"


def _shortened(text: str, length: int = 100) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"
