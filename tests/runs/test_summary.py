import json

import pytest

from ttsi_jax.runs.record import Record
from ttsi_jax.runs.summary import outcome, summarise


def correct(pick, tool, call):
    """Labels from (before, after) pairs."""
    return {
        "pick_correct_base": pick[0],
        "pick_correct": pick[1],
        "tool_correct_base": tool[0],
        "tool_correct": tool[1],
        "call_correct_base": call[0],
        "call_correct": call[1],
    }


YES, NO, FIXED, BROKE = (True, True), (False, False), (False, True), (True, False)
ACCEPTED, REJECTED = (
    {"accepted": True, "reason": None},
    {"accepted": False, "reason": "unknown function", "check": "schema"},
)
RECORDS = [
    Record(
        *("a", "t", "q"),
        candidates=["f", "g"],
        fingerprint="1",
        unmatchable="no such function",
        uncertain=False,
        seconds={"score": 1.0},
        **correct(YES, YES, NO),
    ),
    Record(
        *("b", "t", "q"),
        candidates=["f", "g"],
        fingerprint="1",
        uncertain=True,
        adapted=True,
        synthetic=[REJECTED, ACCEPTED],
        seconds={"score": 2.0, "adapt": 4.0},
        **correct(FIXED, FIXED, FIXED),
    ),
    Record(
        *("c", "t", "q"),
        candidates=["g", "f"],
        fingerprint="2",
        unmatchable="a hidden key",
        uncertain=True,
        adapted=True,
        reverted=True,
        reason="loss rose",
        synthetic=[ACCEPTED],
        seconds={"score": 0.5, "adapt": 1.0},
        **correct(NO, BROKE, YES),
    ),
    Record(
        *("d", "t", "other"),
        candidates=["f"],
        uncertain=True,
        reason="no usable pair",
        synthetic=[REJECTED, REJECTED],
        seconds={"score": 0.5, "adapt": 0.0},
        **correct(YES, NO, BROKE),
    ),
    Record("unlabelled", "t", "third", candidates=["f", "g"], uncertain=False),
    Record("failed", "t", "q", fingerprint="1", seconds={"score": 8.0}, error="bad", **correct(FIXED, FIXED, FIXED)),
]


def test_a_small_run_by_hand():
    assert summarise(RECORDS) == {
        "n": 6,
        "failed": 1,
        "uncertain": 3,
        "one_candidate": 1,
        "duplicates": 1,
        "unmatchable": 2,
        "adapted": 2,
        "reverted": 1,
        "fixed": 1,
        "broke": 1,
        "fixed_tool": 1,
        "broke_tool": 1,
        "fixed_pick": 1,
        "broke_pick": 0,
        "pick_accuracy_base": 0.5,
        "pick_accuracy": 0.75,
        "tool_accuracy_base": 0.5,
        "tool_accuracy": 0.5,
        "call_accuracy_base": 0.5,
        "call_accuracy": 0.5,
        "correct": {
            "pick_accuracy_base": 2,
            "pick_accuracy": 3,
            "tool_accuracy_base": 2,
            "tool_accuracy": 2,
            "call_accuracy_base": 2,
            "call_accuracy": 2,
        },
        "labelled": {f"{metric}_accuracy{side}": 4 for metric in ("pick", "tool", "call") for side in ("_base", "")},
        "synthetic_written": 5,
        "synthetic_accepted": 2,
        "usable_share": pytest.approx(2 / 3),
        "rejections": {"schema": 3},
        "reasons": {"unknown function": 3, "loss rose": 1, "no usable pair": 1},
        "seconds": {"score": 12.0, "adapt": 5.0},
        "timed": {"score": 5, "adapt": 2},
        "pass_at_base": {},
        "pass_at": {},
        "teacher": {},
        "seen": 0,
    }


def test_without_labels_there_is_no_accuracy():
    summary = summarise([Record("a", "t", "q")])
    assert summary["pick_accuracy"] is summary["call_accuracy_base"] is summary["usable_share"] is None
    assert summary["fixed"] == summary["broke"] == 0
    assert summarise([])["n"] == 0


def test_a_summary_is_strict_json():
    json.dumps(summarise(RECORDS), allow_nan=False)


@pytest.mark.parametrize(
    "before, after, expected",
    [(True, True, "same"), (False, False, "same"), (False, True, "fixed"), (True, False, "broke"), (None, True, None)],
)
def test_outcome(before, after, expected):
    assert outcome(before, after) == expected


def test_pass_at_k_is_by_each_inputs_own_samples():
    """Samples are pooled over the orders of the functions, so inputs with more functions have more."""
    few, many = [None] * 5, [None] * 15
    records = [
        Record("a", "t", "q", samples_base=few, samples_right_base=1, samples_right=1),
        Record("b", "t", "q", samples_base=many, samples_right_base=12, samples_right=12),
        Record(
            *("c", "t", "q"),
            adapted=True,
            samples_base=many,
            samples_adapted=few,
            samples_right_base=0,
            samples_right=5,
        ),
    ]
    found = summarise(records)
    assert found["pass_at_base"] == pytest.approx({"1": 1 / 3, "2": (0.4 + 1 - 3 / 105) / 3, "5": 2 / 3})
    assert found["pass_at"] == pytest.approx({"1": 2 / 3, "2": (0.4 + 1 - 3 / 105 + 1) / 3, "5": 1})


def test_pass_at_k_and_what_a_teacher_counted():
    usage = {"requests": 2, "prompt_tokens": 100, "completion_tokens": 10, "cost": 0.5}
    pairs = [ACCEPTED | {"usage": usage}, REJECTED | {"usage": usage}]
    texts = [None] * 4
    records = [
        Record("a", "t", "q", samples_base=texts, samples_right_base=1, samples_right=2, synthetic=pairs, seen=True),
        Record("b", "t", "q", samples_base=texts, samples_right_base=0, samples_right=4),
        Record("unlabelled", "t", "q", samples_base=texts),
    ]
    found = summarise(records)
    assert found["pass_at_base"] == {"1": 0.125, "2": 0.25, "4": 0.5}
    assert found["pass_at"] == {"1": 0.75, "2": pytest.approx((5 / 6 + 1) / 2), "4": 1.0}
    assert found["teacher"] == {"requests": 4, "prompt_tokens": 200, "completion_tokens": 20, "cost": 1.0}
    assert found["seen"] == 1
    records.append(Record("c", "t", "q", synthetic=[ACCEPTED | {"usage": usage | {"cost": None}}]))
    assert summarise(records)["teacher"] == {"requests": 6, "prompt_tokens": 300, "completion_tokens": 30, "cost": None}
