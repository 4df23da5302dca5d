"""A number that is not finite, or explodes, in one input of a wave: at every stage its neighbours stay bit for bit what
they are, and the input keeps its base answer with the reason."""

from __future__ import annotations

import sys
from dataclasses import replace

import numpy as np
import pytest

from reliability import faults
from tiny_runs import ADD, EXAMPLES, MARKED, TASK, settings, task_of, tiny_model, untimed
from ttsi_jax.algorithm import Algorithm
from ttsi_jax.batching.lanes import Prompt
from ttsi_jax.loop import run
from ttsi_jax.runs.record import Record
from ttsi_jax.steps import gating

MODEL = tiny_model()
TARGET = EXAMPLES[3]
FAULTS = (float("nan"), float("inf"), float("-inf"))
DIVERGED = "training diverged: a loss or a score is not finite"
FORMS = {"keys": "request", "free": "pair"}


def records(task=TASK, form: str = "keys", **changes) -> dict[str, Record]:
    config = settings(form, **changes)
    return untimed(run(MODEL, task, replace(config, synthesis=replace(config.synthesis, form=FORMS[form]))).records)


@pytest.fixture(scope="module")
def usual() -> dict[str, dict[str, Record]]:
    return {form: records(form=form) for form in FORMS}


def inject(monkeypatch, stage: str, part: str, into: str, fault: float) -> list[str]:
    """Puts the fault into the scores or logits that a part of `Algorithm` reads in a stage, for the target alone."""
    read, hits = getattr(Algorithm, part), []

    def faulty(self, draft, *rest):
        found = list((yield from read(self, draft, *rest)))
        if part == "read_all":
            [found] = map(list, found)
        if draft.example == TARGET and sys._getframe(1).f_code.co_name == stage:
            hits.append(stage)
            prompt = next(place for place, own in enumerate(found) if isinstance(own, Prompt))
            if into == "scores":
                found[prompt - 1] = found[prompt - 1] + fault
            else:
                found[prompt] = with_logits(found[prompt], fault)
        return [found] if part == "read_all" else found

    monkeypatch.setattr(Algorithm, part, faulty)
    return hits


def with_logits(prompt: Prompt, fault: float) -> Prompt:
    rows = prompt.read.rows
    prompts = rows.prompts._replace(logits=rows.prompts.logits.at[prompt.row].set(fault))
    return prompt._replace(read=prompt.read._replace(rows=rows._replace(prompts=prompts)))


def neighbours_are_untouched(found: dict[str, Record], expected: dict[str, Record]) -> None:
    assert {id: record for id, record in found.items() if id != TARGET.id} == {
        id: record for id, record in expected.items() if id != TARGET.id
    }


def keeps_the_base(record: Record, expected: Record) -> None:
    assert record.error is None
    assert (
        (record.calls, record.pick)
        == (expected.base_calls, expected.pick_base)
        == (record.base_calls, record.pick_base)
    )


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("into", ["scores", "logits"])
@pytest.mark.parametrize("form", FORMS)
def test_the_bases_own_numbers(monkeypatch, usual, form, into, fault):
    """There is no base answer to keep: the input fails by name."""
    hits = inject(monkeypatch, "answer_with_base", "read_all", into, fault)
    found = records(form=form)
    assert (
        hits
        and found[TARGET.id].error == "the model gives a score that is not finite"
        and found[TARGET.id].calls is None
    )
    neighbours_are_untouched(found, usual[form])


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize(
    ("form", "stage", "into"),
    [("keys", "write", "logits"), ("keys", "reply", "scores"), ("keys", "reply", "logits"),
     ("free", "write", "logits")],
)  # fmt: skip
def test_what_it_writes_for_itself(monkeypatch, usual, form, stage, into, fault):
    hits = inject(monkeypatch, stage, "read", into, fault)
    found = records(form=form)
    record = found[TARGET.id]
    tries = {pair["reason"] for pair in record.synthetic}
    assert hits and len(record.synthetic) == 3 and "a score is not finite" in tries and None not in tries
    assert (record.adapted, record.reason) == (False, "no usable pair in 3 tries")
    keeps_the_base(record, usual[form][TARGET.id])
    neighbours_are_untouched(found, usual[form])


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("into", ["scores", "logits"])
@pytest.mark.parametrize("form", FORMS)
def test_the_adapted_answer(monkeypatch, usual, form, into, fault):
    answer_after = Algorithm.answer_after

    def faulty(self, draft, learned):
        [(scores, prompt)] = learned.reads
        if draft.example == TARGET and into == "scores":
            learned = learned._replace(reads=[(scores + fault, prompt)])
        elif draft.example == TARGET:
            learned = learned._replace(reads=[(scores, with_logits(prompt, fault))])
        return (yield from answer_after(self, draft, learned))

    monkeypatch.setattr(Algorithm, "answer_after", faulty)
    found = records(form=form)
    record = found[TARGET.id]
    assert (record.adapted, record.reverted, record.reason) == (True, True, DIVERGED)
    keeps_the_base(record, usual[form][TARGET.id])
    neighbours_are_untouched(found, usual[form])


def test_a_certainty_that_is_no_number(monkeypatch, usual):
    """The input counts as certain, and the reason is told."""
    expected, gate_wave = usual["keys"][TARGET.id], gating.gate_wave

    def faulty(estimator, log_likelihoods, mask):
        probabilities, certainty = gate_wave(estimator, log_likelihoods, mask)
        hit = np.isclose(log_likelihoods[:, :2], expected.log_likelihoods).all(axis=1)
        assert hit.sum() <= 1
        return probabilities, np.where(hit, np.nan, certainty)

    monkeypatch.setattr(gating, "gate_wave", faulty)
    found = records()
    record = found[TARGET.id]
    assert (record.adapted, record.uncertain, record.reason) == (False, False, "the certainty is not a number")
    keeps_the_base(record, expected)
    neighbours_are_untouched(found, usual["keys"])


@pytest.mark.parametrize("fault", [*faults.LOSSES, *faults.RULES, "growing_loss"])
def test_training(fault):
    """The whole prompts are trained on, so that the mark is seen; a caret in its place is harmless."""
    kind = "rule" if fault in faults.RULES else "loss"
    adapt = replace(settings(scope="all").adapt, **{kind: f"reliability.faults:{fault}"})
    adapt = replace(adapt, lr=None) if kind == "rule" else adapt  # these rules have their rate
    sound = replace(MARKED, description=MARKED.description.replace("~", "^"))

    def with_tool(tool):
        target = replace(EXAMPLES[1], tools=(ADD, tool))
        return target.id, records(task_of(EXAMPLES[0], target, *EXAMPLES[2:4]), scope="all", adapt=adapt)

    id, found = with_tool(MARKED)
    _, expected = with_tool(sound)
    assert expected[id].adapted and not expected[id].reverted and sum(r.adapted for r in expected.values()) > 2
    record = found.pop(id)
    del expected[id]
    assert found == expected
    assert record.adapted and record.reverted and record.reason.startswith("training diverged: ")
    assert (fault == "growing_loss") == ("the loss grew to" in record.reason)
    keeps_the_base(record, record)
