"""What a run's summary shows as tables, and tables for the terminal."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

from rich.table import Table
from rich.text import Text

from ttsi_jax.runs.record import Record, strict_json
from ttsi_jax.runs.statistics import mcnemar_p
from ttsi_jax.runs.summary import METRICS

# What a terminal would obey instead of showing it (but for line ends and tabs), or could not encode.
_UNSHOWABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def shown(text: str, at_most: int = 4000) -> Text:
    """Any text for the terminal: no markup, control characters written out, the middle of a very long one left out."""
    if len(text) > at_most:
        text = f"{text[: at_most // 2]} [...] {text[-at_most // 2 :]}"
    return Text(_UNSHOWABLE.sub(lambda match: ascii(match[0])[1:-1], text))


class Rows(NamedTuple):
    """A table as plain text; the first column is made of names, and `justify` is for the others. `note` explains."""

    headings: tuple[str, ...]
    rows: list[tuple[str, ...]]
    title: str = ""
    note: str = ""
    justify: Literal["left", "right"] = "right"


def summary_table(summary: Mapping[str, Any], title: str, records: Iterable[Record]) -> Table:
    """Accuracies before and after, what was fixed and broken, counts of inputs, why inputs kept their base answer, and
    seconds per stage of one run."""
    table = Table.grid(padding=(0, 0, 1, 0))
    table.title = shown(title)
    counts = inputs(summary), adaptations(summary), reasons(records), teacher(summary)
    for rows in (accuracies(summary), passes(summary), *counts):
        if rows.rows:
            table.add_row(rendered(rows))
    table.add_row(rendered(stages(summary)))
    return table


def examples_table(records: Sequence[Record], n: int = 3) -> Table:
    """Some adapted inputs: what the model wrote for itself and its calls before and after; changed ones first."""
    adapted = [record for record in records if record.adapted]
    chosen = sorted(adapted, key=lambda record: record.base_calls == record.calls)[:n]
    headings = ("request", "certainty", "what the model wrote for itself", "call before", "call after")
    rows = []
    for record in chosen:
        pairs = [f"{pair['query']}\n→ {_calls(pair['calls'])}" for pair in record.synthetic if pair["accepted"]]
        before, after = _marked(record, "base_calls", "_base"), _marked(record, "calls", "")
        certainty = "–" if record.uncertainty is None else f"{record.uncertainty:.2f}"
        rows.append((record.request, certainty, "\n".join(pairs), before, after))
    return rendered(Rows(headings, rows, justify="left"))


def plain_table(headings: Sequence[str], rows: Iterable[Iterable[object]]) -> Table:
    """Any values as a table, left-justified."""
    words = {None: "–", True: "yes", False: "no"}
    texts = [
        tuple(words[value] if value is None or isinstance(value, bool) else str(value) for value in row) for row in rows
    ]
    return rendered(Rows(tuple(headings), texts, justify="left"))


def accuracies(summary: Mapping[str, Any]) -> Rows:
    rows = []
    for metric in METRICS:
        suffix = "" if metric == "call" else f"_{metric}"
        fixed, broke = summary[f"fixed{suffix}"], summary[f"broke{suffix}"]
        before, after = _accuracy(summary, f"{metric}_accuracy_base"), _accuracy(summary, f"{metric}_accuracy")
        rows.append((metric, before, after, str(fixed), str(broke), f"{mcnemar_p(fixed, broke):.2g}"))
    return Rows(("accuracy", "before", "after", "fixed", "broke", "McNemar p"), rows)


def passes(summary: Mapping[str, Any]) -> Rows:
    before, after = summary["pass_at_base"], summary["pass_at"]
    rows = [(f"pass@{k}", f"{100 * before[k]:.1f} %", f"{100 * after[k]:.1f} %") for k in before]
    return Rows(("sampled answers", "before", "after"), rows)


def teacher(summary: Mapping[str, Any]) -> Rows:
    names = ("requests", "prompt_tokens", "completion_tokens", "cost")
    counted = [summary["teacher"].get(name, 0) for name in names]
    row = tuple("–" if value is None else f"{value:g}" for value in counted)
    return Rows(("teacher's requests", "prompt tokens", "answer tokens", "cost"), [row] if summary["teacher"] else [])


def inputs(summary: Mapping[str, Any]) -> Rows:
    names = ("n", "failed", "duplicates", "one_candidate", "unmatchable")
    return _counts(summary, names, ("inputs", "failed", "duplicates", "one candidate", "unmatchable"))


def adaptations(summary: Mapping[str, Any]) -> Rows:
    names = ("uncertain", "adapted", "reverted", "synthetic_written", "synthetic_accepted")
    return _counts(summary, names, ("uncertain", "adapted", "reverted", "pairs written", "pairs accepted"))


def reasons(records: Iterable[Record], at_most: int = 3) -> Rows:
    """The commonest reasons why inputs that should have adapted kept the base's answer."""
    found = Counter(record.reason for record in records if record.reason and record.error is None)
    rows = [(reason, str(count)) for reason, count in found.most_common(at_most)]
    return Rows(("why the base's answer was kept", "inputs"), rows)


def _counts(summary: Mapping[str, Any], names: Sequence[str], headings: tuple[str, ...]) -> Rows:
    return Rows(headings, [tuple(str(summary[name]) for name in names)])


def stages(summary: Mapping[str, Any]) -> Rows:
    rows = []
    for stage, seconds in summary["seconds"].items():
        inputs = summary["timed"][stage]
        rows.append((stage, str(inputs), f"{seconds:.1f}", f"{seconds / inputs:.3f}"))
    return Rows(("stage", "inputs", "seconds", "per input"), rows)


def _accuracy(summary: Mapping[str, Any], name: str) -> str:
    """Such as `72.4 % (213/294)`; a dash where nothing is labelled."""
    if summary[name] is None:
        return "–"
    return f"{100 * summary[name]:.1f} % ({summary['correct'][name]}/{summary['labelled'][name]})"


def _marked(record: Record, calls: str, suffix: str) -> str:
    """Calls as text, with a mark where they are labelled right or wrong."""
    mark = {True: " ✓", False: " ✗", None: ""}[getattr(record, f"call_correct{suffix}")]
    return _calls(getattr(record, calls)) + mark


def _calls(calls: Sequence[Mapping[str, Any]] | None) -> str:
    """Such as `forecast(city="Oslo")`."""
    if calls is None:
        return "not readable"
    written = (", ".join(f"{key}={strict_json(value)}" for key, value in call["arguments"].items()) for call in calls)
    return "; ".join(f"{call['name']}({arguments})" for call, arguments in zip(calls, written, strict=True))


def rendered(rows: Rows) -> Table:
    """A table for the terminal."""
    table = Table(title=shown(rows.title) if rows.title else None, title_justify="left")
    table.caption, table.caption_justify = (shown(rows.note) if rows.note else None), "left"
    for column, heading in enumerate(rows.headings):
        table.add_column(heading, justify=rows.justify if column else "left", overflow="fold")
    for row in rows.rows:
        table.add_row(*map(shown, row))
    return table
