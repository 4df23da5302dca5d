"""The noisy channel: how likely each function makes a request, and what is decided by it."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tiny_runs import ADD, EXAMPLES, GREET, PING, TASK, gate, numbered, settings, task_of, tiny_model, untimed
from ttsi_jax.loop import run
from ttsi_jax.model.decoder import Tokens, forward, logits
from ttsi_jax.quality.soundness import sound
from ttsi_jax.synthesis import Synthetic
from ttsi_jax.tasks import Call, read_calls
from ttsi_jax.tasks.prompts import PromptEncoder, asked

MODEL = tiny_model()
ENCODER = PromptEncoder(MODEL.tokenizer)
JUDGED = replace(settings(), answer=replace(settings().answer, judge="channel"))


def alone(tool, request):
    """log P(request | function), from one forward pass over all of it."""
    before, rest = ENCODER.channel(tool)
    prompt, ids = before + rest, ENCODER.fragment(request)
    tokens = jnp.asarray(prompt + ids)
    index = jnp.arange(len(tokens))
    hidden, _ = forward(MODEL.config, MODEL.params, Tokens(tokens, index, jnp.zeros_like(index)))
    log_probs = jax.nn.log_softmax(logits(MODEL.config, MODEL.params, hidden))
    return float(sum(log_probs[len(prompt) - 1 + place, token] for place, token in enumerate(ids)))


@pytest.fixture(scope="module")
def judged():
    return run(MODEL, TASK, JUDGED).records


def likeliest(record):
    return record.candidates[int(np.argmax(record.channel))]


def test_likelihoods_are_those_of_each_function_alone(judged):
    for record, one in zip(judged, TASK.examples, strict=True):
        expected = [alone(tool, asked(one)) for tool in one.tools]
        np.testing.assert_allclose(record.channel, expected, rtol=0, atol=1e-3)  # of sums of about -100
    assert any(likeliest(record) != record.pick_base for record in judged)


def test_nobody_is_asked_by_default():
    assert not any(record.channel for record in run(MODEL, TASK, settings(method="base")).records)


def test_neighbours_change_nothing(judged):
    there = untimed(judged)
    assert untimed(run(MODEL, task_of(*reversed(TASK.examples)), JUDGED).records) == there
    for record in run(MODEL, TASK, replace(JUDGED, wave=2)).records:
        np.testing.assert_allclose(record.channel, there[record.id].channel, rtol=0, atol=1e-4)


def test_a_sound_answer_calls_the_likeliest_function(judged):
    found = {True: 0, False: 0}
    for record, one in zip(judged, TASK.examples, strict=True):
        if record.adapted:
            for side, text in (("sound_base", record.text_base), ("sound", record.text_adapted)):
                calls = read_calls(text)
                calls_it = likeliest(record) in {call.name for call in calls or ()}
                assert record.evidence[side] == (sound(calls, one) and calls_it)
                found[calls_it] += 1
    assert all(found.values())


def test_soundness_gates():
    config = replace(JUDGED, **gate(estimator="soundness", tau=0.5))
    records = run(MODEL, task_of(*numbered(14)), config).records
    for record, one in zip(records, numbered(14), strict=True):
        assert record.uncertainty == float(sound(read_calls(record.text_base), one, likeliest(record)))
    assert {record.uncertainty for record in records} == {0.0, 1.0}


@pytest.mark.parametrize("changes", [{"label": "channel"}, {}])
def test_labels_by_the_channel(changes):
    """A request that a source writes without a call is labelled by the model: with the function that makes it
    likeliest, or with the one that scoring picks."""
    config = settings(synthesis=replace(settings().synthesis, checks=("schema",), tries=1, **changes))
    tools = (ADD, GREET, PING)
    task = task_of(*(replace(one, tools=tools) for one in TASK.examples))
    records = run(MODEL, task, config, synthesizer=lambda one, attempt: Synthetic(one.query, ())).records
    called = [record.synthetic[0]["calls"][0]["name"] for record in records]
    likeliest = [tools[int(np.argmax([alone(tool, one.query) for tool in tools]))].name for one in TASK.examples]
    assert (called == likeliest) == bool(changes)


def test_scores_by_the_channel():
    for form in ("keys", "free"):
        for record in run(MODEL, TASK, settings(form, **gate(score="channel"), method="base")).records:
            assert record.log_likelihoods == record.channel and record.pick_base == likeliest(record)
            if form == "keys":
                assert record.base_calls is not None and record.base_calls[0]["name"] == record.pick_base


def test_a_pair_of_another_function_is_dropped():
    config = settings(synthesis=replace(settings().synthesis, checks=("schema", "channel"), tries=2))
    request = "What is 4 and 5?"
    pairs = [Synthetic(request, (Call("add", {"a": 4, "b": 5}),)), Synthetic(request, (Call("greet", {"name": "x"}),))]
    [record] = run(
        MODEL, task_of(replace(EXAMPLES[0], tools=(ADD, GREET))), config, synthesizer=lambda _, attempt: pairs[attempt]
    ).records
    best = max((ADD, GREET), key=lambda tool: alone(tool, request)).name
    kept = [pair["calls"][0]["name"] for pair in record.synthetic if pair["accepted"]]
    assert kept == [best]
    dropped = [pair for pair in record.synthetic if not pair["accepted"]]
    assert all(pair["check"] == "channel" and best in pair["reason"] for pair in dropped)


@pytest.mark.parametrize("own_tools", [(), (GREET, PING, ADD)])
def test_pairs_that_are_checked_together(own_tools):
    """Each is judged as it would be alone, among the input's functions or its own."""
    requests = ["Add 4 and 5", "Hello Ann!", "Is anybody there?", "What is 4 and 5?"]
    tools = own_tools or (ADD, GREET, PING)
    best = [max(tools, key=lambda tool, own=own: alone(tool, own)).name for own in requests]
    calls = {"add": Call("add", {"a": 4, "b": 5}), "greet": Call("greet", {"name": "Ann"}), "ping": Call("ping", {})}
    drifted = {"add": "greet", "greet": "ping", "ping": "add"}
    names = [best[0], drifted[best[1]], best[2], drifted[best[3]]]
    pairs = [Synthetic(own, (calls[name],), tools=own_tools) for own, name in zip(requests, names, strict=True)]
    synthesis = replace(settings().synthesis, checks=("schema", "channel"), k=4, candidates=4, tries=1)
    task = task_of(replace(EXAMPLES[0], tools=(ADD, GREET, PING)))
    [record] = run(MODEL, task, settings(synthesis=synthesis), synthesizer=lambda _, attempt: pairs[attempt]).records
    found = {pair["query"]: pair["check"] for pair in record.synthetic}
    assert found == dict(zip(requests, [None, "channel", None, "channel"], strict=True))


@pytest.mark.parametrize("label", ["channel", "scoring"])
def test_a_request_that_drifted_is_not_labelled_where_it_is_known_what_it_should_ask_for(label):
    requests = ["Add 4 and 5", "Hello Ann!", "Is anybody there?", "What is 4 and 5?"]
    tools, example = (ADD, GREET, PING), replace(EXAMPLES[0], tools=(ADD, GREET, PING))
    best = [max(tools, key=lambda tool, own=own: alone(tool, own)).name for own in (asked(example), *requests)]
    own = [best[0] == other for other in best[1:]]
    assert not all(own)
    synthesis = replace(settings().synthesis, checks=("schema", "channel"), label=label, candidates=4, tries=1)
    source = lambda _, attempt: Synthetic(requests[attempt], ())  # noqa: E731
    [record] = run(MODEL, task_of(example), settings(synthesis=synthesis), synthesizer=source).records
    found = {pair["query"]: pair for pair in record.synthetic}
    labelled = [bool(found[request]["calls"]) for request in requests]
    assert labelled == (own if label == "channel" else [True] * 4)
    if label == "channel":
        assert [found[request]["check"] == "channel" for request in requests] == [not fits for fits in own]


def test_a_function_is_read_once_for_all_requests():
    """Where each of them drifted, nothing else is read."""
    tools = (ADD, GREET, PING)
    calls = {"add": Call("add", {"a": 4, "b": 5}), "greet": Call("greet", {"name": "Ann"}), "ping": Call("ping", {})}
    requests = ["Add 4 and 5", "Hello Ann!", "What is 4 and 5?"]
    least = [min(tools, key=lambda tool, own=own: alone(tool, own)).name for own in requests]
    pairs = [Synthetic(own, (calls[name],)) for own, name in zip(requests, least, strict=True)]
    synthesis = replace(settings().synthesis, checks=("schema", "channel"), candidates=3, tries=1)
    task = task_of(replace(EXAMPLES[0], tools=tools))
    [record] = run(MODEL, task, settings(synthesis=synthesis), synthesizer=lambda _, attempt: pairs[attempt]).records
    assert [pair["check"] for pair in record.synthetic] == ["channel"] * 3
    functions = [sum(map(len, ENCODER.channel(tool))) for tool in tools]
    n_asked = sum(len(ENCODER.fragment(request)) for request in requests)
    assert record.tokens["synthesize"] == sum(functions) + len(tools) * n_asked


def test_a_resumed_run_goes_on_with_the_same(judged, tmp_path):
    run(MODEL, TASK, JUDGED, out=tmp_path / "run")
    lines = (tmp_path / "run" / "records.jsonl").read_text().splitlines()
    (tmp_path / "run" / "records.jsonl").write_text("\n".join(lines[:3]) + "\n")
    (tmp_path / "run" / "summary.json").unlink()
    assert untimed(run(MODEL, TASK, JUDGED, out=tmp_path / "run").records) == untimed(judged)
