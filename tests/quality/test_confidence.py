"""Certainties of a greedy call and of sampled ones, by hand."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from guided.tools import byte_level
from tiny_runs import EXAMPLES, TASK, gate, settings, task_of, tiny_model
from ttsi_jax.answering import call_ids
from ttsi_jax.loop import run
from ttsi_jax.quality.confidence import (
    CALL_ESTIMATORS,
    NAME,
    SYNTAX,
    CallEstimator,
    Reply,
    answer_tokens,
    call_tokens,
    meaningful_probability,
    minimum_argument_probability,
    self_consistency,
    sequence_probability,
    token_probability,
)
from ttsi_jax.steps.asking import Asking
from ttsi_jax.tasks import Call
from ttsi_jax.tasks.calls import render_calls
from ttsi_jax.tasks.prompts import PromptEncoder

LOG_PROBS = jnp.log(jnp.asarray([0.5, 0.9, 0.8, 0.4, 0.25, 1.0]))
ROLES = jnp.asarray([SYNTAX, NAME, 0, 1, 1, SYNTAX])
ALL = jnp.ones(6, bool)
ONE, TWO = [Call("f", {"a": 1})], [Call("f", {"a": 2})]


def test_likelihoods_by_hand():
    assert float(sequence_probability(LOG_PROBS, ALL)) == pytest.approx(0.5 * 0.9 * 0.8 * 0.4 * 0.25)
    assert float(token_probability(LOG_PROBS, ALL)) == pytest.approx((0.5 * 0.9 * 0.8 * 0.4 * 0.25) ** (1 / 6))
    assert float(meaningful_probability(LOG_PROBS, ROLES)) == pytest.approx((0.9 * 0.8 * 0.4 * 0.25) ** 0.25)
    assert float(minimum_argument_probability(LOG_PROBS, ROLES)) == pytest.approx(0.4 * 0.25)


def test_nothing_to_be_unsure_about():
    none = jnp.zeros(6, bool)
    assert float(sequence_probability(LOG_PROBS, none)) == float(token_probability(LOG_PROBS, none)) == 1.0
    assert float(minimum_argument_probability(LOG_PROBS, jnp.full(6, NAME))) == 1.0


@given(st.lists(st.floats(-20, 0, width=32), min_size=6, max_size=6), st.permutations([-2, -1, 0, 0, 1, 3]))
def test_certainties_are_within_0_and_1_and_padding_does_not_count(values, roles):
    own, roles = jnp.asarray(values), jnp.asarray(roles)
    padded = jnp.concatenate([own, jnp.full(2, jnp.nan)]), jnp.concatenate([roles, jnp.full(2, SYNTAX)])
    for measure in (meaningful_probability, minimum_argument_probability):
        assert 0.0 <= float(measure(own, roles)) <= 1.0
        assert float(measure(*padded)) == pytest.approx(float(measure(own, roles)), rel=1e-5)
    for measure in (sequence_probability, token_probability):
        assert float(measure(padded[0], jnp.arange(8) < 6)) == pytest.approx(float(measure(own, ALL)), rel=1e-5)


def test_they_map_over_inputs():
    rows = jnp.stack([LOG_PROBS, 2 * LOG_PROBS])
    for measure, second in ((sequence_probability, ALL), (minimum_argument_probability, ROLES)):
        found = jax.vmap(measure, (0, None))(rows, second)
        np.testing.assert_allclose(found, [measure(row, second) for row in rows], rtol=1e-6)


@pytest.mark.parametrize(
    "call",
    [
        Call("add", {"a": 1, "b": 22}),
        Call("f", {"text": "", "list": [], "n": 0, "other": "x", "object": {}, "flag": False}),
        Call("g", {"list": [1, "two"], "object": {"a": None}}),
        Call("ping", {}),
    ],
)
def test_the_tokens_of_a_call_and_their_roles(call):
    encoder = PromptEncoder(byte_level())
    ids, roles = call_tokens(call, encoder.fragment)
    assert ids == call_ids(encoder, call) and len(ids) == len(roles)
    text = lambda role: byte_level().decode([i for i, r in zip(ids, roles, strict=True) if r == role])  # noqa: E731
    assert text(NAME) == f'{call.name}"'
    for place, value in enumerate(call.arguments.values()):
        assert text(place).strip() == str(value) or not isinstance(value, str | int) or isinstance(value, bool)
        assert bool(text(place)) == (value not in ("", [], {}))


def test_the_tokens_of_several_calls():
    fragment, calls = PromptEncoder(byte_level()).fragment, [Call("add", {"a": 1, "b": 22}), Call("f", {"x": "y"})]
    ids, roles = answer_tokens(calls, fragment)
    assert byte_level().decode(ids) == render_calls(calls) and len(ids) == len(roles)
    text = lambda role: byte_level().decode([i for i, r in zip(ids, roles, strict=True) if r == role])  # noqa: E731
    assert [text(role).strip(' "') for role in (NAME, 0, 1, 2)] == ['add"f', "1", "22", "y"]
    assert answer_tokens(calls[:1], fragment) == call_tokens(calls[0], fragment)


def test_samples_that_gate_are_others_than_those_that_vote(monkeypatch):
    keys, decode = [], Asking.decode

    def listening(self, draft, stage, work):
        keys.extend([jax.random.key_data(work.prompt.key).tolist()] * (work.sampling.temperature > 0))
        return decode(self, draft, stage, work)

    monkeypatch.setattr(Asking, "decode", listening)
    config = settings(**gate(estimator="consistency", samples=3), method="base")
    run(tiny_model(), task_of(EXAMPLES[0]), replace(config, answer=replace(config.answer, samples=3)))
    assert len(keys) == 6 == len(set(map(tuple, keys)))


def reply(**changes):
    return Reply(0.8, LOG_PROBS, ROLES, ONE, [ONE, TWO])._replace(**changes)


def test_estimators_of_a_reply():
    found = {name: estimator.certainty(reply()) for name, estimator in CALL_ESTIMATORS.items()}
    assert found == {
        "sequence": pytest.approx(0.036), "token": pytest.approx(0.036 ** (1 / 6)),
        "meaningful": pytest.approx(0.072**0.25), "least-argument": pytest.approx(0.1),
        "consistency": 0.5, "consistent-margin": pytest.approx(0.4), "soundness": 1.0,
    }  # fmt: skip
    assert CALL_ESTIMATORS["consistency"].certainty(reply(answers=[None, TWO])) == 0.0
    assert CALL_ESTIMATORS["soundness"].certainty(reply(sound=False)) == 0.0
    assert self_consistency([ONE, TWO, ONE, None], TWO) == 0.25


# Whole runs.

MODEL = tiny_model()


@pytest.mark.parametrize("name", CALL_ESTIMATORS)
def test_a_run_gates_by_the_whole_call(name):
    config = settings(**gate(estimator=name, tau=0.5), method="base")
    usual = run(MODEL, TASK, replace(config, gate=replace(config.gate, estimator="margin"))).records
    certainties = set()
    for own, theirs in zip(run(MODEL, TASK, config).records, usual, strict=True):
        assert (own.text_base, own.probabilities) == (theirs.text_base, theirs.probabilities)
        assert 0 <= own.uncertainty <= 1 and own.uncertain == (own.uncertainty < 0.5)
        certainties.add(own.uncertainty)
    assert len(certainties) > 1 or name == "sequence"  # a random model's calls have no probability in float32


@pytest.mark.parametrize("number", [np.float64, np.float32, jnp.float32])
def test_estimators_may_return_any_number(number, tmp_path):
    mine = CallEstimator(lambda own: number(own.margin / 2))
    found = run(MODEL, TASK, settings(method="base"), out=tmp_path, estimator=mine).records
    assert all(type(record.uncertainty) is float for record in found)


def test_an_answer_that_is_no_call_is_uncertain():
    config = settings("free", **gate(estimator="token"), method="base")
    found = run(MODEL, TASK, config).records
    assert any(not record.base_calls for record in found)
    assert all((record.uncertainty == 0) == (not record.base_calls) for record in found)
