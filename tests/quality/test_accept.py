"""Accept or revert: every condition, that confidence alone is never enough, and rules evaluated afterwards."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tiny_runs import TASK
from ttsi_jax.errors import InputError
from ttsi_jax.quality.accept import (
    CONDITIONS,
    SUPPORT,
    UNSUPPORTED,
    VETOES,
    Case,
    Effect,
    Evidence,
    Limits,
    cases,
    effect,
    effects,
    named,
    prompt_kl,
    revert_reason,
)
from ttsi_jax.runs.record import Record, from_json, to_json

GOOD = Evidence(2.0, 1.0, True, 0.01, 0.5, 0.9, True)
EVERY = tuple(CONDITIONS)
floats = st.none() | st.floats()
evidence = st.builds(
    Evidence, floats, floats, st.none() | st.booleans(), floats, floats, floats, st.none() | st.booleans()
)


@pytest.mark.parametrize("name", CONDITIONS)
def test_good_evidence_holds_and_none_at_all_does_not(name):
    assert CONDITIONS[name](GOOD, Limits()) is None
    assert CONDITIONS[name](Evidence(), Limits())


@pytest.mark.parametrize(
    ("name", "changes", "why"),
    [
        ("sibling", {"sibling_loss": 2.0}, "from 2 to 2"),
        ("sibling", {"sibling_loss": float("nan")}, "not measured"),
        ("valid", {"valid": False}, "not a valid call"),
        ("kl", {"kl": 0.2}, "0.2 nats"),
        ("margin", {"margin": 0.2}, "fell from 0.5 to 0.2"),
        ("seeds", {"seeds_agree": False}, "do not agree"),
    ],
)
def test_one_condition_that_fails_reverts_and_is_named(name, changes, why):
    reason = revert_reason(GOOD._replace(**changes), EVERY)
    assert reason.startswith(f"{name}: ") and why in reason


def test_limits():
    assert revert_reason(GOOD, EVERY) is None
    assert "sibling" in revert_reason(GOOD, EVERY, Limits(gain=0.6))
    assert "kl" in revert_reason(GOOD, EVERY, Limits(kl=0.001))
    assert revert_reason(GOOD._replace(margin=0.4), EVERY) is None
    assert "margin" in revert_reason(GOOD._replace(margin=0.4), EVERY, Limits(collapse=0.9))


@given(evidence, st.sets(st.sampled_from(list(VETOES))), st.floats(0, 1))
def test_rising_confidence_alone_is_never_enough(found, rule, before):
    """Whatever the confidence does, a rule that has only vetoes accepts nothing, and one that has support needs it."""
    surer = found._replace(margin_base=before, margin=1.0)
    assert revert_reason(surer, sorted(rule)) is not None
    assert revert_reason(GOOD._replace(margin_base=before, margin=1.0), sorted(rule)) == UNSUPPORTED
    unsupported = GOOD._replace(margin_base=before, margin=1.0, sibling_loss=3.0, seeds_agree=False)
    for support in SUPPORT:
        assert revert_reason(unsupported, [support, *sorted(rule)]).startswith(f"{support}: ")


@given(evidence, st.sets(st.sampled_from(EVERY)), st.sampled_from(EVERY))
def test_a_further_condition_never_accepts_more(found, rule, more):
    if revert_reason(found, sorted(rule)) and SUPPORT.keys() & rule:
        assert revert_reason(found, sorted(rule | {more}))


def test_names_of_a_rule():
    assert named("valid, sibling") == ("sibling", "valid")
    with pytest.raises(InputError, match="unknown condition 'luck'. Known: sibling, seeds"):
        named("sibling,luck")
    with pytest.raises(InputError, match="would accept nothing: it needs one of sibling, seeds"):
        named("margin,valid")


def test_the_distance_to_the_base():
    rng = np.random.default_rng(0)
    base, adapted = jnp.asarray(rng.normal(size=(2, 4, 7)), jnp.float32)
    mask = jnp.asarray([True, True, False, True])
    p, q = (np.asarray(jax.nn.softmax(x), np.float64) for x in (adapted, base))
    expected = (p * np.log(p / q)).sum(-1)[[0, 1, 3]].mean()
    assert float(prompt_kl(base, adapted, mask)) == pytest.approx(expected, rel=1e-4)
    assert float(prompt_kl(base, base + 3.0, mask)) == pytest.approx(0.0, abs=1e-6)
    assert float(prompt_kl(base, adapted, mask & False)) == 0.0


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
    assert effect(CASES, ("sibling",)) == Effect(3, 1, 1, 1, 1, 0.5, 0.5)
    assert effect(CASES, ("seeds",)) == Effect(6, 2, 2, 0, 0, 0.5, 0.5)
    assert effect(CASES, ("margin",)) == Effect(0, 0, 0, 2, 2, 0.5, 0.5)
    assert effect([], ("seeds",)) == Effect(0, 0, 0, 0, 0, 0.0, 0.0)


def test_the_cases_of_a_run():
    right, wrong = {"name": "add", "arguments": {"a": 1, "b": "2"}}, {"name": "add", "arguments": {"a": 1, "b": 3}}
    own = Record("one", "tiny", "?", base_calls=[wrong], adapted_calls=[right], adapted=True, evidence=GOOD._asdict())
    records = [
        own,
        replace(own, reverted=True, base_calls=[right], adapted_calls=None, evidence={"kl": 0.5}),
        replace(own, adapted=False),
        replace(own, id="four"),  # has no label
    ]
    assert cases(map(from_json, map(to_json, records)), TASK) == [
        Case(GOOD, False, True),
        Case(Evidence(kl=0.5), True, False),
    ]


def test_every_rule_that_can_accept_is_evaluated():
    found = effects(CASES)
    assert len(found) == 2**5 - 2**3  # all sets but those of vetoes
    assert found["sibling"] == effect(CASES, ("sibling",))
    assert "margin" not in found and "sibling,seeds,valid,kl,margin" in found
