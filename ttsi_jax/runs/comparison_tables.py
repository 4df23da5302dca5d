"""A comparison as tables of text, for the terminal and the report alike."""

import math

from ttsi_jax.runs.compare import CAUSES, Compared, Comparison, Cost
from ttsi_jax.runs.paper import SFT_SAMPLES, TT_SI_SAMPLES, Published, is_upper_bound
from ttsi_jax.runs.statistics import Interval
from ttsi_jax.runs.summary import METRICS
from ttsi_jax.runs.table import Rows

_INTERVAL = (
    "In brackets: 95 % bootstrap intervals over inputs, and over seeds where a run has several; under some 30 inputs "
    "they are too narrow."
)


def comparison_tables(comparison: Comparison) -> list[Rows]:
    """The tables of a comparison that have a row, the most important first; they call groups by their numbers."""
    tables = (
        legend,
        accuracies,
        passes,
        overall,
        changes,
        causes,
        costs,
        teachers,
        error_detection,
        gate,
        paper,
        paper_differences,
    )
    return [rows for table in tables if (rows := table(comparison)).rows]


def legend(comparison: Comparison) -> Rows:
    rows = []
    for group in comparison.groups:
        settings = "\n".join(f"{name} {value}" for name, (_, value) in group.settings.items())
        rows.append((str(group.group.number), group.group.name, group.group.task, settings))
    return Rows(("run", "name", "task", "differs from the task's first in"), rows, "Runs", justify="left")


def accuracies(comparison: Comparison) -> Rows:
    rows = []
    for group in comparison.groups:
        pairs = (_change(*group.accuracy[metric]) for metric in METRICS)
        rows.append((str(group.group.number), str(group.inputs), *pairs))
    headings = ("run", "inputs", *(f"{metric}, %" for metric in METRICS))
    pick = "pick: the function with the highest score; tool: the functions that are called; call: their arguments too."
    return Rows(headings, rows, "Accuracy, base → final", f"{_INTERVAL} {pick}")


def passes(comparison: Comparison) -> Rows:
    rows = []
    for group in comparison.groups:
        for k, found in group.passes.items():
            points = _interval(found.difference, 100, signed=True)
            rows.append((str(group.group.number), k, _change(found.base, found.final), points))
    note = "pass@k: the chance that one of k sampled answers makes the right calls (unbiased, by all samples)."
    return Rows(("run", "k", "pass@k, %", "points"), rows, "Sampled answers, base → final", note)


def overall(comparison: Comparison) -> Rows:
    rows = []
    for means in comparison.overall:
        runs = ", ".join(map(str, means.groups))
        theirs = "–" if means.paper is None else _theirs(means.paper.published)
        for metric, (base, final) in means.accuracy.items():
            points = _interval(means.difference[metric], 100, signed=True)
            rows.append((runs, metric, f"{_number(100 * base, 1)} → {_number(100 * final, 1)}", points, theirs))
    headings = ("runs", "metric", "base → final, %", "points", "the paper's (gain)")
    note = (
        "Runs of several tasks with the same settings; each task counts alike. The paper's mean is over Seal-Tools, "
        "API-Bank, ToolAlpaca and NexusRaven, and stands beside runs of these four."
    )
    return Rows(headings, rows, "Means over tasks", note)


def changes(comparison: Comparison) -> Rows:
    rows = []
    for contrast in comparison.contrasts:
        for metric, found in contrast.changes.items():
            broke = f"{found.broke} ({_number(100 * found.broke_rate, 1)})"
            difference = _interval(contrast.difference[metric], 100, signed=True)
            counts = (broke, str(found.fixed), str(found.unchanged))
            rows.append((_between(contrast.before, contrast.after), metric, *counts, difference, _p(found.p)))
    headings = ("answers", "metric", "broke (% of right)", "fixed", "same", "points", "p")
    note = (
        "base → 1: run 1 against its own base. On the inputs that both sides have; points: the difference in accuracy. "
        "p: McNemar's exact test; with several seeds an input is fixed where it is right more often than before, and "
        "the test is the sign test over inputs."
    )
    return Rows(headings, rows, "What changed", note)


def causes(comparison: Comparison) -> Rows:
    rows = []
    for contrast in comparison.contrasts:
        found = [contrast.causes[name] for name in CAUSES]
        total = sum(cause.fixed - cause.broke for cause in found)
        points = _number(100 * total / contrast.inputs, 1, signed=True) if contrast.inputs else "–"
        cells = (f"+{_short(cause.fixed)} −{_short(cause.broke)}" for cause in found)
        rows.append((_between(contrast.before, contrast.after), *cells, points))
    headings = ("answers", "answer parses", "function right", "arguments right", "call accuracy, points")
    note = (
        "Inputs whose call was fixed (+), by what was wrong before, and broken (−), by what is wrong after; "
        "means over seeds. The columns add up to the difference in call accuracy."
    )
    return Rows(headings, rows, "Where the gain comes from", note)


def costs(comparison: Comparison) -> Rows:
    rows = []
    for group in comparison.groups:
        cost = group.cost
        cells = (_with_each(value, cost) for value in (cost.seconds, cost.tokens, cost.examples))
        rows.append((str(group.group.number), _short(cost.corrected), *cells, _fewer_than_sft(group, comparison)))
    headings = ("run", "corrected", "seconds (each)", "tokens (each)", "examples (each)", "fewer than SFT")
    note = (
        "corrected: inputs whose call the base had wrong and that is right now; each: per such input. Compiling, base "
        "answers that only measure and fine-tuning before the run are left out. examples: pairs that adapters were "
        "trained on, and what the run's start was. fewer than SFT: than the SFT run of the same task that is named; "
        f"on Seal-Tools without one, than the paper's {SFT_SAMPLES:,}, where its TT-SI took {TT_SI_SAMPLES}: "
        f"{SFT_SAMPLES / TT_SI_SAMPLES:.0f}× fewer."
    )
    return Rows(headings, rows, "What it cost", note)


def teachers(comparison: Comparison) -> Rows:
    rows = []
    for group in comparison.groups:
        if cost := group.cost.teacher:
            names = ("requests", "prompt_tokens", "completion_tokens", "cost")
            cells = (_with_each(cost.get(name), group.cost) for name in names)
            rows.append((str(group.group.number), *cells))
    headings = ("run", "requests (each)", "prompt tokens (each)", "answer tokens (each)", "price (each)")
    note = "each: per corrected input. The price is by --teacher.price-in and --teacher.price-out: 0 without them."
    return Rows(headings, rows, "What the teacher cost", note)


def error_detection(comparison: Comparison) -> Rows:
    rows = []
    for group in comparison.groups:
        for metric, found in (group.gate.errors if group.gate else {}).items():
            auroc = _interval(found.auroc, decimals=2)
            rates = (_number(100 * found.error_rate, 1), auroc, _number(found.auprc, 2), _number(found.augrc, 3))
            rows.append((str(group.group.number), metric, str(found.inputs), *rates))
    headings = ("run", "errors in", "inputs", "error rate, %", "AUROC", "AUPRC", "AUGRC")
    note = (
        "Does uncertainty point at the base's errors? A useless gate has AUROC 0.5, AUPRC the error rate, AUGRC half "
        "the error rate."
    )
    return Rows(headings, rows, "Gate: errors", note)


def gate(comparison: Comparison) -> Rows:
    rows = []
    for group in comparison.groups:
        calibration, gain = (group.gate.calibration, group.gate.gain) if group.gate else (None, None)
        if calibration or gain:
            calibrated = (_number(calibration.error, 3), _number(calibration.brier, 3)) if calibration else ("–", "–")
            gained = (_interval(gain.auroc, decimals=2), f"{gain.adapted} of {gain.records}") if gain else ("–", "–")
            rows.append((str(group.group.number), *calibrated, *gained))
    headings = ("run", "calibration error", "Brier", "gain-AUROC", "records adapted")
    note = (
        "Calibration of the highest probability, in 10 bins of equal mass. gain-AUROC: are the inputs that adapting "
        "helps the uncertain ones? 0.5 is chance; only inputs that adapted can tell. "
        "records: an input has one for each seed."
    )
    return Rows(headings, rows, "Gate: calibration and gain", note)


def paper(comparison: Comparison) -> Rows:
    rows = []
    for group in comparison.groups:
        if group.paper is None:
            continue
        published, differs = group.paper
        ours = (_gained(*group.accuracy[metric]) for metric in ("tool", "call"))
        rows.append((str(group.group.number), published.method, _theirs(published), *ours, str(len(differs))))
    headings = ("run", "the paper's", "its accuracy (gain)", "tool (gain)", "call (gain)", "differences")
    note = (
        "arXiv 2510.07841, in percent and points. The paper does not say whether its accuracy is of tools or of calls. "
        "Differences are in model, inputs and settings, as far as they are known; what it does not say of its settings "
        "is taken to be as in --preset paper."
    )
    return Rows(headings, rows, "Beside the paper", note)


def paper_differences(comparison: Comparison) -> Rows:
    rows = []
    known = [(str(group.group.number), group.paper) for group in comparison.groups]
    known += [(", ".join(map(str, means.groups)), means.paper) for means in comparison.overall]
    for runs, found in known:
        for name, (ours, theirs) in (found.differs if found else {}).items():
            rows.append((runs, name, ours, theirs))
    return Rows(("run", "differs in", "here", "the paper"), rows, "Not as in the paper", justify="left")


def _theirs(published: Published) -> str:
    return f"{published.accuracy} ({_number(published.gain, 2, signed=True)})"


def _with_each(value: float | None, cost: Cost) -> str:
    """Such as `2,242 (280)`: in all, and per corrected input."""
    each = None if value is None or not cost.corrected else value / cost.corrected
    return f"{_figure(value)} ({_figure(each)})"


def _fewer_than_sft(group: Compared, comparison: Comparison) -> str:
    """How many times more examples SFT took, and which SFT."""
    if not group.cost.examples or group.group.config.get("method") == "base":
        return "–"
    tuned = [other for other in comparison.groups if other.group.task == group.group.task and _is_sft(other)]
    known = [(other.cost.examples, f"run {other.group.number}") for other in tuned]
    if group.group.task == "sealtools":
        known.append((SFT_SAMPLES, "the paper's"))
    return next((f"{_figure(n / group.cost.examples)}× ({whose})" for n, whose in known if n), "–")


def _is_sft(group: Compared) -> bool:
    """Whether it answers with one adapter for all inputs, and not with what was trained on their labels."""
    base = group.group.config.get("method") == "base"
    return base and bool(group.cost.examples) and not is_upper_bound(group.inputs, group.seen)


def _between(before: str, after: str) -> str:
    return f"{before} → {after}"


def _change(before: Interval, after: Interval) -> str:
    return f"{_number(100 * before.value, 1)} → {_interval(after, 100)}"


def _gained(base: Interval, final: Interval) -> str:
    return f"{_number(100 * final.value, 1)} ({_number(100 * (final.value - base.value), 1, signed=True)})"


def _interval(interval: Interval, scale: float = 1, decimals: int = 1, signed: bool = False) -> str:
    """Such as `72.4 [67.0, 77.6]`."""
    value, low, high = (_number(scale * number, decimals, signed) for number in interval)
    return value if math.isnan(interval.low) else f"{value} [{low}, {high}]"


def _number(value: float | None, decimals: int, signed: bool = False) -> str:
    if value is None or math.isnan(value):
        return "–"
    return f"{value:{'+' if signed else ''}.{decimals}f}".replace("-", "−")


def _figure(value: float | None) -> str:
    return "–" if value is None else f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _short(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")


def _p(value: float) -> str:
    return f"{value:.2g}"
