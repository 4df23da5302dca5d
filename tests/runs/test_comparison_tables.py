import re
from dataclasses import replace

import pytest
from rich.console import Console

from runs.synthetic import base_run, run
from ttsi_jax.runs.compare import compare
from ttsi_jax.runs.comparison_tables import comparison_tables
from ttsi_jax.runs.groups import Run
from ttsi_jax.runs.table import rendered

SEALTOOLS = {"task": "sealtools", "gate": {"select": "uncertain", "tau": 0.95}}


def tables(runs):
    return {rows.title: rows for rows in comparison_tables(compare(runs))}


def test_every_table_has_its_rows_and_as_many_cells_as_headings():
    runs = {"base": base_run(60, **SEALTOOLS), "tt-0": run(60, **SEALTOOLS), "tt-1": run(60, seed=1, **SEALTOOLS)}
    found = tables(runs)
    assert list(found) == [
        "Runs",
        "Accuracy, base → final",
        "What changed",
        "Where the gain comes from",
        "What it cost",
        "Gate: errors",
        "Gate: calibration and gain",
        "Beside the paper",
        "Not as in the paper",
    ]
    for rows in found.values():
        assert {len(row) for row in rows.rows} == {len(rows.headings)}
    assert found["What changed"].headings[:4] == ("answers", "metric", "broke (% of right)", "fixed")
    assert [row[:2] for row in found["What changed"].rows] == [
        ("base → 2", "tool"),
        ("base → 2", "call"),
        ("1 → 2", "tool"),
        ("1 → 2", "call"),
    ]
    cost = found["What it cost"].rows[1]
    assert cost[-1].endswith("× (the paper's)") and "– (–)" in cost
    beside = found["Beside the paper"].rows[1]
    assert beside[:3] == ("2", "TT-SI", "72.43 (+5.76)") and beside[-1] == "2"
    assert [row[1:] for row in found["Not as in the paper"].rows[2:]] == [
        ("model", "tiny", "Qwen2.5-1.5B-Instruct"),
        ("inputs", "60", "294"),
    ]


def test_a_run_without_labels_or_records_has_no_figures():
    found = tables({"empty": Run({}, [], None)})
    assert found["Accuracy, base → final"].rows == [("1", "0", *["– → –"] * 3)]
    assert "Gate: errors" not in found and "Beside the paper" not in found


def test_sampled_answers_have_a_table_where_there_are_some():
    def sampled(seed):
        own = run(40, seed)
        records = [
            replace(
                record,
                adapted=False,
                samples_base=[None] * 5,
                samples_right_base=record.call_correct_base,
                samples_right=2 * (record.call_correct or 0),
            )
            if record.error is None
            else record
            for record in own.records
        ]
        return own._replace(records=records)

    first, second = sampled(0), sampled(1)
    found = compare({"a": run(40), "b": first, "c": second})
    assert found.groups[0].passes == {} and [*found.groups[1].passes] == ["1", "2", "5"]
    five, two = found.groups[1].passes["5"], found.groups[1].passes["2"]
    right = found.groups[1].accuracy["call"]
    assert (five.base.value, five.final.value) == pytest.approx((right[0].value, right[1].value))
    assert two.final.value == pytest.approx(0.7 * right[1].value)
    assert five.base.low < five.base.value < five.base.high
    assert five.difference.value == pytest.approx(five.final.value - five.base.value)
    shown = tables({"a": run(40), "b": first, "c": second})["Sampled answers, base → final"]
    assert [row[:2] for row in shown.rows] == [("2", "1"), ("2", "2"), ("2", "5")]
    assert re.fullmatch(r"[\d.]+ → [\d.]+ \[[\d.]+, [\d.]+\]", shown.rows[0][2])


def test_means_over_tasks_stand_beside_the_papers():
    names = ("sealtools", "apibank", "toolalpaca", "nexusraven")
    runs = {name: run(30, **SEALTOOLS | {"task": name}) for name in names}
    found = tables(runs)
    assert [row[:2] for row in found["Means over tasks"].rows] == [("1, 2, 3, 4", "tool"), ("1, 2, 3, 4", "call")]
    assert {row[-1] for row in found["Means over tasks"].rows} == {"60.14 (+5.48)"}
    apart = [row[1:] for row in found["Not as in the paper"].rows if row[0] == "1, 2, 3, 4"]
    assert apart[0] == ("model", "tiny", "Qwen2.5-1.5B-Instruct") and len(apart) == 4
    del runs["apibank"]
    assert {row[-1] for row in tables(runs)["Means over tasks"].rows} == {"–"}


def cost_column(runs, heading):
    found = tables(runs)["What it cost"]
    return [row[found.headings.index(heading)] for row in found.rows]


def test_sft_is_the_run_of_the_same_task_or_else_the_papers():
    ours, others, theirs = ({"task": task} for task in ("sealtools", "made-up", "other"))
    learned = int(compare({"a": run(60)}).groups[0].cost.examples)
    sft = {"adapt": {"start": "sft"}, "trained_on": 10 * learned}
    seen = base_run(60, **ours, **sft)
    seen = seen._replace(records=[replace(record, seen=True) for record in seen.records])
    runs = {"paper": run(60, **ours), "a": run(60, **others), "upper bound": seen, "sft": base_run(60, **others, **sft)}
    papers = f"{13_000 / learned:,.0f}× (the paper's)"
    assert cost_column(runs, "fewer than SFT") == [papers, "10× (run 4)", "–", "–"]
    assert cost_column(runs, "examples (each)")[3] == f"{10 * learned:.0f} (–)"
    assert cost_column({"x": run(60, **theirs), "sft": base_run(60, **others, **sft)}, "fewer than SFT") == ["–", "–"]
    runs = {"own": base_run(60, **ours, **sft), "tt-si": run(60, **ours)}
    assert cost_column(runs, "fewer than SFT") == ["–", "10× (run 1)"]


def test_a_teachers_tokens_and_price_are_there_where_there_was_one():
    usage = {"requests": 1, "prompt_tokens": 1000, "completion_tokens": 50, "cost": 0.0025}
    plain, taught = run(20), run(20, method="tt-d")
    first, *rest = taught.records
    pair = {"query": "q", "calls": [], "accepted": False, "reason": "no", "usage": usage}
    runs = {"plain": plain, "taught": taught._replace(records=[replace(first, synthetic=[pair]), *rest])}
    corrected = compare(runs).groups[1].cost.corrected
    assert tables(runs)["What the teacher cost"].rows == [
        ("2", *(f"{n:,} ({n / corrected:.3g})" for n in (1, 1000, 50, 0.0025)))
    ]
    assert "What the teacher cost" not in tables({"plain": plain})


def test_long_names_stand_in_the_legend_alone_and_a_narrow_terminal_breaks_no_word_of_the_others():
    usage = {"requests": 600, "prompt_tokens": 38_456_000, "completion_tokens": 185_000, "cost": 9.24}
    taught = run(60, method="tt-d")
    taught.records[0].synthetic[0]["usage"] = usage
    names = [f"sealtools.smollm2-135m-instruct.tt-si.{'adapt.scope-suffix.' * 5}seed-{n}" for n in range(2)]
    runs = {
        names[0]: run(60, **SEALTOOLS),
        names[1]: run(60, wave=4, **SEALTOOLS),
        "base": base_run(60),
        "taught": taught,
    }
    legend, *others = comparison_tables(compare(runs))
    assert legend.rows == [
        ("1", names[0], "sealtools", ""),
        ("2", names[1], "sealtools", "wave 4"),
        ("3", "base", "made-up", ""),
        ("4", "taught", "made-up", 'method "tt-d"'),
    ]
    text, words = "", set()
    for rows in others:
        console = Console(width=80)
        with console.capture() as capture:
            console.print(rendered(rows))
        text += capture.get()
        words |= {word for heading in rows.headings for word in heading.split()}
    assert "smollm2" not in text and max(map(len, text.splitlines())) <= 80
    assert words <= set(re.sub("[┃│]", " ", text).split())
    assert "│ base → 1 │" in text and "│ 1 → 2    │" in text
