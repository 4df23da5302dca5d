from dataclasses import replace

from rich.console import Console

from ttsi_jax.runs.compare import compare
from ttsi_jax.runs.comparison_tables import comparison_tables
from ttsi_jax.runs.groups import Run
from ttsi_jax.runs.record import Record
from ttsi_jax.runs.summary import summarise
from ttsi_jax.runs.table import examples_table, rendered, summary_table

BASE = {"tool_correct_base": True, "call_correct_base": False}
RECORDS = [
    Record("a", "t", "q", uncertain=True, tool_correct=True, call_correct=True, seconds={"score": 0.5}, **BASE),
    Record("b", "t", "q", uncertain=True, tool_correct=False, call_correct=False, seconds={"score": 1.0}, **BASE),
    Record("c", "t", "q", tool_correct=True, call_correct=False, seconds={"[red]score": 1.0}, **BASE),
]


def cells(table):
    """The table as printed, a list of cells per line."""
    return [[cell.strip() for cell in line.split("│")[1:-1]] for line in printed(table).splitlines()]


def printed(table):
    console = Console(width=250)
    with console.capture() as capture:
        console.print(table)
    return capture.get()


def test_a_summary_shows_before_and_after_with_counts():
    rows = cells(summary_table(summarise(RECORDS), "run [bold]x[/bold]", RECORDS))
    assert ["pick", "–", "–", "0", "0", "1"] in rows
    assert ["tool", "100.0 % (3/3)", "66.7 % (2/3)", "0", "1", "1"] in rows
    assert ["call", "0.0 % (0/3)", "33.3 % (1/3)", "1", "0", "1"] in rows
    assert ["3", "0", "0", "0", "0"] in rows and ["2", "0", "0", "0", "0"] in rows
    assert ["score", "2", "1.5", "0.750"] in rows


def test_names_are_never_markup():
    text = printed(summary_table(summarise(RECORDS), "run [bold]x[/bold] [/]", RECORDS))
    for rows in comparison_tables(compare({"runs/[red]x[/]": Run({}, RECORDS, None)})):
        text += printed(rendered(rows))
    for name in ("run [bold]x[/bold] [/]", "[red]score", "runs/[red]x[/]"):
        assert name in text


def test_sampled_answers_and_teachers_are_shown_where_there_are_any():
    plain = printed(summary_table(summarise(RECORDS), "run", RECORDS))
    assert "pass@" not in plain and "teacher" not in plain
    usage = {"requests": 3, "prompt_tokens": 70, "completion_tokens": 5, "cost": 0.25}
    pair = {"query": "q", "calls": [], "accepted": True, "reason": None, "usage": usage}
    samples = {"samples_base": [None, None], "samples_right_base": 1, "samples_right": 2}
    records = [Record("a", "t", "q", synthetic=[pair], **samples)]
    rows = cells(summary_table(summarise(records), "run", records))
    assert ["pass@1", "50.0 %", "100.0 %"] in rows and ["3", "70", "5", "0.25"] in rows
    usage["cost"] = None  # as a price that is no number was recorded
    assert ["3", "70", "5", "–"] in cells(summary_table(summarise(records), "run", records))


def test_of_a_dialogue_the_examples_show_the_request():
    turns = [{"role": "user", "content": "Go."}, {"role": "assistant", "content": "Where to?"}]
    text = printed(examples_table([Record("a", "t", turns, adapted=True, uncertainty=0.5)]))
    assert "Go." in text and "role" not in text


def test_of_an_example_whose_certainty_is_not_known_there_is_a_dash():
    assert "–" in printed(examples_table([Record("a", "t", "Go.", adapted=True)]))


def test_why_inputs_kept_their_base_answer_is_shown_the_commonest_first():
    assert "kept" not in printed(summary_table(summarise(RECORDS), "run", RECORDS))
    reasons = ["no usable pair in 3 tries", *["the teacher failed: HTTP 401"] * 2, "a", "b"]
    records = [replace(RECORDS[0], id=str(place), reason=reason) for place, reason in enumerate(reasons)]
    rows = cells(summary_table(summarise(records), "run", records))
    shown = [row for row in rows if row and row[0] in reasons]
    assert shown == [["the teacher failed: HTTP 401", "2"], ["no usable pair in 3 tries", "1"], ["a", "1"]]
