"""Accept or revert: every condition, rules evaluated afterwards, and runs that decide by them."""

from dataclasses import replace
from itertools import count

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tiny_runs import ADD, EXAMPLES, GREET, TASK, settings, task_of, timeless, tiny_model
from ttsi_jax.config import RunConfig, check
from ttsi_jax.errors import InputError
from ttsi_jax.loop import run
from ttsi_jax.quality.accept import (
    CONDITIONS,
    DIVERGED,
    Case,
    Effect,
    Evidence,
    cases,
    effect,
    gather,
    revert_reason,
    rules,
)
from ttsi_jax.rules import adamw
from ttsi_jax.runs.record import Record, from_json, to_json
from ttsi_jax.synthesis import Synthetic
from ttsi_jax.tasks import Call

GOOD = Evidence(2.0, 1.0, True, 0.5, 0.9, 0.01, True, sound_base=False, sound=True)
EVERY = tuple(CONDITIONS)
INF, NAN = float("inf"), float("nan")


@pytest.mark.parametrize("name", CONDITIONS)
def test_good_evidence_holds_and_none_at_all_does_not(name):
    assert CONDITIONS[name](GOOD) is None
    assert CONDITIONS[name](Evidence())


@pytest.mark.parametrize(
    ("name", "changes", "why"),
    [
        ("sibling", {"sibling_loss": 2.0}, "from 2 to 2"),
        ("sibling", {"sibling_loss": None}, "not measured"),
        ("valid", {"valid": False}, "not a valid call"),
        ("margin", {"margin": 0.2}, "fell from 0.5 to 0.2"),
        ("kl", {"kl": 0.3}, "0.3 nats per token away"),
        ("repairs", {"sound_base": True}, "needs no repair"),
        ("repairs", {"sound_base": None}, "was not judged"),
        ("seeds", {"seeds_agree": False}, "answers otherwise"),
        ("seeds", {"seeds_agree": None}, "no adapter of another seed"),
    ],
)
def test_one_condition_that_fails_reverts_and_is_named(name, changes, why):
    reason = revert_reason(GOOD._replace(**changes), EVERY)
    assert reason.startswith(f"{name}: ") and why in reason
    others = [other for other in EVERY if other != name]
    assert revert_reason(GOOD._replace(**changes), others) is None


def test_evidence_is_gathered():
    call, wrong, made_up = Call("add", {"a": 1, "b": 2}), Call("add", {"a": 1}), Call("add", {"a": 1, "b": 77})
    one = EXAMPLES[0]  # What is 1 and 2?
    assert gather((2.0, 1.0), (0.5, 0.9), ([made_up], [call]), one, 0.01, True) == GOOD
    unsound = {"sound_base": False, "sound": False}
    assert gather(None, (NAN, INF), (None, [call, wrong]), one) == Evidence(valid=False, **unsound)
    assert gather((NAN, 1.0), (None, 0.5), (None, None), one) == Evidence(None, 1.0, False, None, 0.5, **unsound)
    assert gather(None, (0.1, 0.2), ([call], []), one) == Evidence(
        None, None, False, 0.1, 0.2, sound_base=True, sound=False
    )


@given(st.builds(Evidence, *[st.none() | st.floats(0, 9)] * 2, st.none() | st.booleans()), st.floats(0, 1))
def test_rising_confidence_alone_is_never_enough(found, before):
    """Every rule needs more than the margin, whatever the margin does."""
    surer = found._replace(margin_base=before, margin=1.0)
    fell = None not in found[:2] and found.sibling_loss < found.sibling_loss_base
    repairs = found.sound_base is False and found.sound
    for rule in rules():
        assert fell or repairs or revert_reason(surer, rule)
        assert "repairs" not in rule or revert_reason(surer._replace(sound_base=True), rule)


@given(st.sets(st.sampled_from(EVERY)), st.sampled_from(EVERY), st.booleans(), st.floats(0, 9), st.floats(0, 1))
def test_a_further_condition_never_accepts_more(rule, more, valid, loss, margin):
    found = Evidence(1.0, loss, valid, 0.5, margin, margin / 5, valid, not valid, valid)
    if revert_reason(found, sorted(rule)):
        assert revert_reason(found, sorted(rule | {more}))


@pytest.mark.parametrize("accept", [("sibling",), ("valid",), ("luck", "sibling")])
def test_rules_that_cannot_be(accept):
    config = RunConfig(adapt=replace(RunConfig().adapt, accept=accept))
    refused = "--adapt.accept (sibling needs --synthesis.held-out|needs sibling or repairs|is 'luck')"
    with pytest.raises(InputError, match=refused):
        check(config)


BAD = GOOD._replace(sibling_loss=5.0)
CASES = [
    Case(GOOD, False, True),
    Case(GOOD, True, False),
    Case(BAD, True, False),
    Case(BAD, False, True),
    Case(GOOD, True, True),
    Case(BAD, False, False),
]


def test_a_rule_is_evaluated_afterwards():
    assert effect(CASES, ("sibling",)) == Effect(3, 1, 1, 1, 1)
    assert effect(CASES, ()) == Effect(6, 2, 2, 0, 0)
    assert effect([], ("sibling",)) == Effect(0, 0, 0, 0, 0)
    assert rules(("sibling", "valid", "margin")) == [
        ("sibling",), ("sibling", "valid"), ("sibling", "margin"), ("sibling", "valid", "margin"),
    ]  # fmt: skip
    assert rules(("repairs", "sound")) == [("repairs",), ("repairs", "sound")]
    assert len(rules()) == 3 * 2 ** (len(EVERY) - 2), "one of two speaks for the adapter, or both"


def test_the_cases_of_a_run():
    right, wrong = {"name": "add", "arguments": {"a": 1, "b": "2"}}, {"name": "add", "arguments": {"a": 1, "b": 3}}
    own = Record(
        "one", "tiny", "?", adapted_calls=[right], adapted=True, evidence=GOOD._asdict(), call_correct_base=False
    )
    records = [
        own,
        replace(own, reverted=True, call_correct_base=True, adapted_calls=None, evidence={"margin": 0.5}),
        replace(own, adapted_calls=[wrong]),
        replace(own, adapted=False),
        replace(own, reverted=True, reason=f"{DIVERGED}: a loss is not finite"),  # no rule could keep it
        replace(own, call_correct_base=None),  # was left out of the run's accuracies
        replace(own, id="four"),  # has no label
    ]
    assert cases(map(from_json, map(to_json, records)), TASK) == [
        Case(GOOD, False, True),
        Case(Evidence(margin=0.5), True, False),
        Case(GOOD, False, False),
    ]


def test_where_no_call_is_right_an_answer_in_words_is_right_in_the_cases_too():
    silent = task_of(replace(EXAMPLES[0], gold=()))
    own = Record("one", "tiny", "?", adapted=True, call_correct_base=True, text_adapted="I cannot do that.")
    cut = replace(own, text_adapted="[add(a=1")
    assert cases([own, cut], silent) == [Case(Evidence(), True, True), Case(Evidence(), True, False)]


# Whole runs.

MODEL = tiny_model()
HELD_OUT = settings(synthesis=replace(settings().synthesis, held_out=True, temperature=1.5, tries=1))
SUMS = [Synthetic(f"Add {a} to 5", (Call("add", {"a": a, "b": 5}),)) for a in (4, 7)]


@pytest.fixture(scope="module")
def measured() -> list[Record]:
    return run(MODEL, TASK, HELD_OUT).records


def test_evidence_is_recorded_and_the_held_out_pair_is_not_trained_on(measured):
    siblings = 0
    for record in measured:
        both = sum(pair["accepted"] for pair in record.synthetic) == 2
        assert record.adapted == any(pair["accepted"] for pair in record.synthetic)
        if not record.adapted:
            assert record.evidence == {}
            continue
        assert not {"kl", "seeds_agree"} & record.evidence.keys(), "nobody asked"
        assert {"sound_base", "sound"} <= record.evidence.keys(), "which costs nothing"
        found = Evidence(**record.evidence)
        assert len(record.losses) == 3 and not record.reverted
        assert found.margin_base == record.uncertainty and 0 <= found.margin <= 1
        assert (found.sibling_loss_base is not None) == (found.sibling_loss is not None) == both
        siblings += both
    assert siblings > 0


def test_a_rule_decides_and_changes_nothing_else(measured):
    accepting = replace(HELD_OUT, adapt=replace(HELD_OUT.adapt, accept=("sibling",)))
    found, summary = run(MODEL, TASK, accepting)
    for own, free in zip(found, measured, strict=True):
        why = revert_reason(Evidence(**free.evidence), ("sibling",)) if free.adapted else None
        assert own.reverted == (why is not None)
        if why:
            assert own.reason == f"not accepted: {why}"
            assert (own.calls, own.pick) == (free.base_calls, free.pick_base)
            assert (own.text_adapted, own.evidence) == (free.text_adapted, free.evidence)
        else:
            assert timeless(own) == timeless(free)
    assert 0 < summary["reverted"] < summary["adapted"]


@pytest.mark.parametrize("scope", ["suffix", "all"])
def test_the_held_out_loss_is_that_of_training_on_the_pair(scope):
    """The same pair, once trained on and once held out, has the loss of its last step after one step less."""

    def train(pairs, epochs, **changes):
        numbers = count()
        changed = replace(
            settings(scope=scope),
            synthesis=replace(HELD_OUT.synthesis, checks=("schema",), **changes),
            adapt=replace(settings(scope=scope).adapt, epochs=epochs, rule="sgd", lr=0.1),
        )
        written = lambda example, attempt: pairs[next(numbers)]  # noqa: E731
        [record] = run(MODEL, task_of(replace(EXAMPLES[0], tools=(ADD, GREET))), changed, synthesizer=written).records
        return record

    once, longer = train(SUMS[:1] * 2, 2), train(SUMS[:1], 3, held_out=False)
    assert once.losses == pytest.approx(longer.losses[:2], rel=1e-4)
    assert once.evidence["sibling_loss_base"] == pytest.approx(once.losses[0], rel=1e-4)
    assert once.evidence["sibling_loss"] == pytest.approx(longer.losses[2], rel=1e-4)
    other = train(SUMS, 2)
    assert other.evidence["sibling_loss_base"] == pytest.approx(train(SUMS[1:], 1, held_out=False).losses[0], rel=1e-4)


def test_further_evidence_is_measured_where_it_is_asked_for(measured):
    """And decides where it is accepted by; the adapter that is kept is the same."""
    asked = replace(HELD_OUT, adapt=replace(HELD_OUT.adapt, measure=("kl", "seeds")))
    found = run(MODEL, TASK, asked).records
    agreeing = set()
    for own, free in zip(found, measured, strict=True):
        if own.adapted:
            assert own.evidence["kl"] > 0 and own.evidence["seeds_agree"] in (True, False)
            agreeing.add(own.evidence["seeds_agree"])
            readings, rest = divmod(own.tokens["adapt"] - 2 * free.tokens["adapt"], 4)  # by both, with and without
            assert rest == 0 and own.n_prompt_tokens < readings < own.n_prompt_tokens + 20
        assert (own.losses, own.text_adapted, own.synthetic) == (free.losses, free.text_adapted, free.synthetic)
        assert {**free.evidence, **own.evidence} == own.evidence
    assert agreeing
    vetoed = replace(asked.adapt, measure=(), accept=("sibling", "kl", "seeds"))
    for own, free in zip(run(MODEL, TASK, replace(asked, adapt=vetoed)).records, found, strict=True):
        assert own.evidence == free.evidence
        assert own.reverted == (own.adapted and revert_reason(Evidence(**free.evidence), vetoed.accept) is not None)


@pytest.mark.parametrize("scope", ["suffix", "all"])
def test_the_kl_on_the_prompt_is_zero_where_nothing_was_learned(scope):
    for lr, moved in ((0.0, False), (3e-2, True)):
        rule = adamw(lr)
        config = replace(settings(scope=scope), adapt=replace(settings(scope=scope).adapt, measure=("kl",)))
        [record] = run(MODEL, task_of(EXAMPLES[0]), config, rule=rule, synthesizer=lambda *_: SUMS[0]).records
        assert record.evidence["kl"] == pytest.approx(0, abs=1e-6) if not moved else record.evidence["kl"] > 1e-4


def test_an_input_stops_early_and_its_record_says_where():
    usual = settings()
    [free] = run(MODEL, task_of(EXAMPLES[0]), usual, synthesizer=lambda *_: SUMS[0]).records
    below = replace(usual, adapt=replace(usual.adapt, stop_below=(free.losses[1] + free.losses[2]) / 2))
    [own] = run(MODEL, task_of(EXAMPLES[0]), below, synthesizer=lambda *_: SUMS[0]).records
    assert own.losses == pytest.approx(free.losses, rel=1e-6) and own.adapted and not own.reverted
    at_once = replace(usual, adapt=replace(usual.adapt, stop_below=1e3))
    [own] = run(MODEL, task_of(EXAMPLES[0]), at_once, synthesizer=lambda *_: SUMS[0]).records
    assert own.losses == free.losses[:1] and own.text_adapted == own.text_base


def test_a_rising_held_out_loss_stops_training():
    pairs = [SUMS[0], Synthetic("Greet Cy", (Call("greet", {"name": "Cy"}),))]
    rising = replace(HELD_OUT, adapt=replace(HELD_OUT.adapt, stop_rising=True, lr=0.5, epochs=5))
    [own] = run(MODEL, task_of(EXAMPLES[0]), rising, synthesizer=lambda _, attempt: pairs[attempt]).records
    assert own.evidence["sibling_loss"] <= own.evidence["sibling_loss_base"] * (1 + 1e-5)
    assert 0 < len(own.losses) <= 5
    with pytest.raises(InputError, match="--adapt.stop-rising needs --synthesis.held-out"):
        check(settings(adapt=rising.adapt))
