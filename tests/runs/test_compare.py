import json
from dataclasses import replace

import pytest

from runs.synthetic import base_run, run
from ttsi_jax.runs.compare import Cause, Cost, cause_of, compare, to_json
from ttsi_jax.runs.groups import Run
from ttsi_jax.runs.record import Record
from ttsi_jax.runs.statistics import Changes
from ttsi_jax.runs.summary import summarise

UNREADABLE, OTHER_FUNCTION, OTHER_ARGUMENTS, RIGHT = (
    (None, False, False),
    ([], False, False),
    ([], True, False),
    ([], True, True),
)


def answered(id, base, final, **values):
    (base_calls, tool_base, call_base), (calls, tool, call) = base, final
    return Record(
        id, "t", "q", base_calls=base_calls, calls=calls, tool_correct_base=tool_base, call_correct_base=call_base,
        tool_correct=tool, call_correct=call, **values,
    )  # fmt: skip


def as_run(*records, **config):
    return Run({"method": "tt-si", "seed": 0} | config, list(records), summarise(records))


PAIR = {"query": "q", "calls": [], "accepted": True, "reason": None}
RECORDS = (
    answered("parses", UNREADABLE, RIGHT, adapted=True, synthetic=[PAIR, {**PAIR, "accepted": False}]),
    answered("function", OTHER_FUNCTION, RIGHT, adapted=True, synthetic=[PAIR], seconds={"adapt": 3.0}),
    answered("arguments", OTHER_ARGUMENTS, RIGHT, adapted=True, synthetic=[PAIR], tokens={"adapt": 90}),
    answered("broken", RIGHT, UNREADABLE, seconds={"base_answer": 50.0, "answer": 1.0}),
    answered("worse, but wrong before", OTHER_ARGUMENTS, OTHER_FUNCTION),
    answered("right", RIGHT, RIGHT),
    answered("failed", RIGHT, RIGHT, error="out of memory", seconds={"score": 2.0}),
    Record("unlabelled", "t", "q"),
)


def test_a_run_against_its_own_base_by_hand():
    compared, (contrast,) = compare({"a": as_run(*RECORDS)})[:2]
    assert (contrast.before, contrast.after, contrast.inputs) == ("base", "1", 6)
    assert contrast.changes["call"] == Changes(broke=1, fixed=3, unchanged=2, broke_rate=1 / 2, p=0.625)
    assert contrast.changes["tool"] == Changes(broke=2, fixed=2, unchanged=2, broke_rate=1 / 2, p=1.0)
    assert contrast.difference["call"].value == pytest.approx(2 / 6)
    assert contrast.causes == {"parses": Cause(1, 1), "function": Cause(1, 0), "arguments": Cause(1, 0)}
    assert compared[0].cost == Cost(seconds=6.0, tokens=90, examples=3, teacher={}, corrected=3)
    base, final = compared[0].accuracy["call"]
    assert (base.value, final.value) == (pytest.approx(2 / 6), pytest.approx(4 / 6))


def test_later_runs_are_held_against_the_first_where_both_have_the_input():
    second = as_run(
        answered("right", RIGHT, OTHER_ARGUMENTS), answered("new", RIGHT, RIGHT), answered("failed", RIGHT, RIGHT),
        method="base", gate={"select": "all"},
    )  # fmt: skip
    found = compare({"first": as_run(*RECORDS), "second": second})
    assert [(contrast.before, contrast.after) for contrast in found.contrasts] == [
        ("base", "1"),
        ("1", "2"),
    ]
    contrast = found.contrasts[1]
    assert contrast.inputs == 1 and contrast.changes["call"].broke == 1
    assert contrast.causes["arguments"] == Cause(0, 1)
    assert found.groups[1].settings == {"gate.select": ("(absent)", '"all"'), "method": ('"tt-si"', '"base"')}


def test_runs_of_several_tasks_are_held_against_the_first_of_their_own():
    runs = {"x": as_run(*RECORDS, task="a"), "y": base_run(60, task="b"), "z": run(60, task="b", wave=2)}
    runs |= {"w": as_run(*RECORDS, task="a", wave=2), "v": as_run(*RECORDS, task=["odd"])}
    found = compare(runs)
    assert [(one.before, one.after, one.inputs) for one in found.contrasts if one.before != "base"] == [
        ("2", "3", 60),
        ("1", "4", 6),
    ]
    assert [group.settings for group in found.groups if group.group.name in ("x", "y", "v")] == [{}, {}, {}]
    assert found.groups[2].settings == {"wave": ("(absent)", "2"), "method": ('"base"', '"tt-si"')}


def test_means_are_over_tasks_and_each_counts_alike():
    settings = {"gate": {"tau": 0.95}, "synthesis": {"k": 1, "file": None}}
    small, large = [answered("x", OTHER_FUNCTION, RIGHT)], [answered(str(n), RIGHT, RIGHT) for n in range(9)]
    runs = {"a0": as_run(*small, task="a", **settings), "b": as_run(*large, task="b", wave=4, **settings)}
    runs |= {"a1": as_run(*small, task="a", seed=1, **settings), "c": as_run(*large, task="c", unmatchable="drop")}
    taught = settings | {"synthesis": {"k": 1, "file": "pairs-of-a"}}
    runs["again"] = as_run(*large, task="a", **taught)  # a second group of a task is not taken
    (found,) = compare(runs).overall
    assert found.groups == [1, 2] and found.paper is None
    assert found.accuracy["call"] == (0.5, 1.0) and found.difference["call"].value == 0.5


def test_inputs_of_one_id_are_paired_where_they_are_one_input():
    prints = {"right": "1", "parses": "2", "function": "3"}
    first = as_run(*(replace(record, fingerprint=prints.get(record.id)) for record in RECORDS))
    prints = {"right": "1", "parses": "another", "arguments": "3"}
    second = as_run(*(replace(record, fingerprint=prints.get(record.id)) for record in RECORDS), wave=2)
    contrast = compare({"a": first, "b": second}).contrasts[-1]
    assert (contrast.before, contrast.after) == ("1", "2")
    assert contrast.inputs == 5 and contrast.changes["call"].unchanged == 5  # all six but "parses"


@pytest.mark.parametrize("seeds", [(0,), (0, 1), (5, 6, 7)])
def test_causes_add_up_to_the_difference(seeds):
    runs = {"a0": run(150), "a1": run(150, seed=1)} | {f"b{seed}": run(150, seed=seed, wave=2) for seed in seeds}
    for contrast in compare(runs).contrasts:
        total = sum(cause.fixed - cause.broke for cause in contrast.causes.values())
        assert total / contrast.inputs == pytest.approx(contrast.difference["call"].value)


def test_seeds_are_grouped_and_pooled():
    found = compare({"base": base_run(120), "tt-0": run(120), "tt-1": run(120, seed=1)})
    assert [group.group.name for group in found.groups] == ["base", "tt (2 seeds)"]
    assert [(one.before, one.after) for one in found.contrasts] == [("base", "2"), ("1", "2")]
    assert found.contrasts[0].inputs == 119  # one failed
    gain = found.groups[1].gate.gain
    assert gain.records == found.groups[1].gate.calibration.records == 238 and found.groups[0].gate.gain is None
    assert found.groups[1].gate.errors["call"].inputs == 119


def test_the_gate_of_made_up_runs_is_good_and_calibrated_as_made():
    gate = compare({"a": run(400)}).groups[0].gate
    assert gate.errors["call"].auroc.low > 0.55
    assert gate.errors["call"].augrc < gate.errors["call"].error_rate / 2
    assert gate.calibration.bins.size.sum() == gate.calibration.records
    assert gate.gain.gate.y[-1] == pytest.approx(gate.gain.oracle.y[-1])
    assert gate.gain.oracle.y.max() >= gate.gain.gate.y.max()


def test_the_papers_figure_knows_which_labels_were_seen():
    config = {"task": "sealtools", "method": "base", "adapt": {"start": "sft"}, "trained_on": 13_000}
    for count, method in ((1, "SFT on 13k"), (6, "trained on the test set")):
        records = [replace(record, seen=number < count) for number, record in enumerate(RECORDS)]
        found = compare({"a": as_run(*records, **config)}).groups[0].paper
        assert found.published.method == method and found.differs["labels seen"][0] == str(count)


@pytest.mark.parametrize(
    "config, examples",
    [
        ({}, 6),
        ({"synthesis": {"k": 2, "held_out": True}}, 5),  # the third of one input is held out
        ({"method": "tt-icl"}, 0),
        ({"method": "icl", "synthesis": {"k": 2}}, 0),
        ({"method": "base", "adapt": {"start": "sft"}, "trained_on": 500}, 500),
        ({"adapt": {"start": "sft"}, "trained_on": 500}, 506),
        ({"adapt": {"start": "sft"}}, None),
        ({"adapt": {"start": "sft"}, "trained_on": "many"}, None),
        ({"adapt": {"start": None}}, 6),
    ],
)
def test_examples_are_those_that_adapters_were_trained_on(config, examples):
    pairs = {"parses": 3, "function": 2, "arguments": 1, "right": 4}
    adapted = config.get("method") != "base"
    records = [
        replace(record, adapted=adapted and record.id != "right", synthetic=[PAIR] * pairs.get(record.id, 0))
        for record in RECORDS
    ]
    assert compare({"a": as_run(*records, **config)}).groups[0].cost.examples == examples


def test_what_a_teacher_took_is_counted_over_all_its_pairs_as_a_mean_over_seeds():
    usage = {"requests": 2, "prompt_tokens": 100, "completion_tokens": 10, "cost": 0.5}
    pairs = [PAIR | {"usage": usage}, PAIR | {"usage": usage, "accepted": False}]
    taught = as_run(*(replace(record, synthetic=pairs) for record in RECORDS))
    found = compare({"a": taught, "b": taught._replace(config=taught.config | {"seed": 1})}).groups[0].cost.teacher
    assert found == {"requests": 32, "prompt_tokens": 1600, "completion_tokens": 160, "cost": 8.0}
    usage["cost"] = None
    assert compare({"a": taught}).groups[0].cost.teacher == found | {"cost": None}


def test_records_of_older_runs_without_newer_fields_are_compared():
    old = [replace(record, tokens={}, seconds={}, pick_correct=None, pick_correct_base=None) for record in RECORDS]
    found = compare({"old": Run({}, old, None)})
    assert found.groups[0].cost.tokens is None and found.groups[0].gate is None
    assert any("unfinished" in note for note in found.notes)


def test_everything_is_strict_json():
    for runs in ({"a": run(60), "b": run(60, seed=1)}, {"none": Run({}, [], None)}, {"a": as_run(*RECORDS)}):
        found = json.loads(to_json(compare(runs)))
        assert found.keys() == {"groups", "contrasts", "overall", "notes"}
    assert found["contrasts"][0]["changes"]["call"]["fixed"] == 3
    assert found["groups"][0]["group"]["runs"]["a"]["inputs"] == 8 and found["groups"][0]["group"]["number"] == 1


@pytest.mark.parametrize(
    "answer, cause",
    [(UNREADABLE, "parses"), (OTHER_FUNCTION, "function"), (OTHER_ARGUMENTS, "arguments"), (RIGHT, None)],
)
def test_what_stands_between_an_answer_and_being_right(answer, cause):
    assert cause_of(*answer) == cause
