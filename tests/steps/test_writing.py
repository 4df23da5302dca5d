"""Training sequences: what of a pair is learned."""

import json
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tiny_runs import ADD, EXAMPLES, PING, TASK, settings, task_of, tiny_model
from ttsi_jax.batching.inputs import prepare
from ttsi_jax.config import check, find_parts
from ttsi_jax.errors import InputError
from ttsi_jax.loop import run
from ttsi_jax.model.decoder import Tokens, forward, logits
from ttsi_jax.quality.checks import examine
from ttsi_jax.quality.confidence import call_tokens
from ttsi_jax.runs.groups import load_runs, notes
from ttsi_jax.steps.writing import CUT, NO_GOLD, NO_ROOM, Writing, skipping
from ttsi_jax.synthesis import REQUEST, SYNTHESIZERS, Synthetic
from ttsi_jax.tasks import Call
from ttsi_jax.tasks.prompts import NEW_REQUEST, PromptEncoder, answer_messages

MODEL = tiny_model()
ENCODER = PromptEncoder(MODEL.tokenizer)
PAIR = Synthetic("What is 41 and 5?", (Call("add", {"a": 41, "b": 777}),))  # nothing in the request gives 777
SKIPS = replace(settings().synthesis, skip_values=True)


def one_run(**changes):
    """An input whose one pair is PAIR."""
    assert "add" in {tool.name for tool in EXAMPLES[0].tools}
    [record] = run(MODEL, task_of(EXAMPLES[0]), settings(**changes), synthesizer=lambda *_: PAIR).records
    return record


def negative_log_likelihoods(pair):
    """Of each token of the pair's answer, from one forward pass over the whole sequence."""
    prefix = ENCODER.prefix(EXAMPLES[0])
    prompt = prefix + ENCODER.suffix(EXAMPLES[0], answer_messages(EXAMPLES[0], pair.query), prefix)
    answer = call_tokens(pair.calls[0], ENCODER.fragment).ids + MODEL.stop_ids[:1]
    ids = jnp.asarray(prompt + answer)
    index = jnp.arange(len(ids))
    hidden, _ = forward(MODEL.config, MODEL.params, Tokens(ids, index, jnp.zeros_like(index)))
    log_probs = jax.nn.log_softmax(logits(MODEL.config, MODEL.params, hidden))
    return -np.asarray(log_probs)[np.arange(len(prompt), len(ids)) - 1, answer]


def test_values_without_ground_are_read_but_not_learned():
    by_token, roles = negative_log_likelihoods(PAIR), call_tokens(PAIR.calls[0], ENCODER.fragment).roles
    given = np.array([role != 1 for role in (*roles, -2)])  # the place of `b`; the stop is learned
    everything, skipping = one_run(), one_run(synthesis=SKIPS)
    assert "skipped" not in everything.synthetic[0] and skipping.synthetic[0]["skipped"] == ["b"]
    np.testing.assert_allclose(everything.losses[0], by_token.mean(), atol=1e-4)
    np.testing.assert_allclose(skipping.losses[0], by_token[given].mean(), atol=1e-4)
    assert abs(by_token.mean() - by_token[given].mean()) > 1e-2


def test_values_of_another_type_are_not_learned():
    """A pair with them would be dropped by `schema`."""
    wrong = PAIR._replace(calls=(Call("add", {"a": 41, "b": "["}),))
    of = lambda config: run(MODEL, task_of(EXAMPLES[0]), config, synthesizer=lambda *_: wrong).records[0]  # noqa: E731
    dropped, kept = of(settings()), of(settings(synthesis=SKIPS))
    assert not dropped.adapted and dropped.synthetic[0]["check"] == "schema"
    assert kept.adapted and kept.synthetic[0]["skipped"] == ["b"]


def test_a_run_that_skipped_values_can_be_resumed(tmp_path):
    how = {"config": settings(synthesis=SKIPS), "synthesizer": lambda *_: PAIR, "out": tmp_path / "run"}
    [before] = run(MODEL, task_of(EXAMPLES[0]), **how).records
    [after] = run(MODEL, task_of(EXAMPLES[0]), **how).records
    assert before == after and after.synthetic[0]["skipped"] == ["b"]


def test_what_is_skipped():
    tools = EXAMPLES[0].tools
    assert skipping(PAIR, tools).skipped == ("b",)
    assert skipping(PAIR._replace(skipped=("a",)), tools).skipped == ("a", "b")
    assert skipping(PAIR._replace(query="What is 41 and 777?"), tools).skipped == ()
    assert skipping(PAIR._replace(reason="another"), tools).reason == "another"
    unknown = PAIR._replace(query="41", calls=(Call("add", {"a": 41, "c": 1}),))
    assert skipping(unknown, tools).skipped == ("c",)


def test_a_value_that_was_cut_is_skipped_or_its_pair_dropped(monkeypatch):
    """Also one that the request holds."""

    def reply(*_, **__):
        yield from ()
        return json.dumps({"name": "add", "arguments": {"a": 41, "b": 5}}), (1,), []

    monkeypatch.setattr(Writing, "reply", reply)
    request = Synthetic("What is 41 and 5?", ())
    labelled = lambda how: run(MODEL, task_of(EXAMPLES[0]), how, synthesizer=lambda *_: request).records[0].synthetic[0]  # noqa: E731
    assert labelled(settings("keys"))["reason"] == CUT
    kept = labelled(settings("keys", synthesis=SKIPS))
    assert kept["accepted"] and kept["skipped"] == ["b"]


def test_a_method_that_trains_nothing_skips_nothing():
    with pytest.raises(InputError, match="--synthesis.skip-values is about what is trained"):
        check(settings(method="tt-icl", synthesis=SKIPS))


@pytest.mark.parametrize("loss", ["dpo", "reinforce"])
@pytest.mark.parametrize("option", [{"skip_values": True}, {"augment": ("order",)}])
def test_losses_of_more_than_a_pair_skip_nothing_and_train_on_no_copies(loss, option):
    config = settings(scope="all", synthesis=replace(settings().synthesis, **option))
    config = replace(config, adapt=replace(config.adapt, loss=loss))
    with pytest.raises(InputError, match=f"is for losses of a pair alone: --adapt.loss {loss} learns from "):
        find_parts(config, {})


def test_a_step_counts_all_that_it_reads():
    """`dpo` also reads a wrong call for each pair."""
    plain = one_run()
    other = one_run(adapt=replace(settings().adapt, loss="dpo"))
    n_steps = settings().adapt.epochs
    assert n_steps * 20 < other.tokens["adapt"] - plain.tokens["adapt"] < plain.tokens["adapt"]


def test_requests_of_any_length():
    """Those that the model has no room for are dropped before a function is read with them."""
    checks = replace(settings().synthesis, checks=("schema", "channel"))
    long = PAIR._replace(query="What is 41 and 5? " * 1000)
    [record] = run(MODEL, task_of(EXAMPLES[0]), settings(synthesis=checks), synthesizer=lambda *_: long).records
    assert record.error is None and not record.adapted and record.synthetic[0]["reason"] == NO_ROOM


def test_pairs_about_other_functions_cannot_be_asked_again():
    checks = replace(settings().synthesis, checks=("schema", "round-trip"))
    own = PAIR._replace(tools=(ADD, PING))
    [record] = run(MODEL, task_of(EXAMPLES[0]), settings(synthesis=checks), synthesizer=lambda *_: own).records
    assert record.synthetic[0]["reason"] == "it is about other functions than the input's, so it cannot be asked again"


def test_a_base_needs_no_source_of_pairs():
    parts = find_parts(settings(method="base", synthesis=replace(settings().synthesis, source="recorded")), {})
    assert parts.synthesizer == SYNTHESIZERS["request"]


def test_pairs_of_another_function_than_the_one_that_was_named_are_dropped():
    both = (Call("add", {"a": 41, "b": 5}), Call("greet", {"name": "Bo"}))
    config = settings(synthesis=replace(settings().synthesis, label="gold", checks=("schema",), tries=2))
    source = lambda one, attempt: PAIR._replace(calls=(both[attempt],))  # noqa: E731
    [record] = run(MODEL, task_of(EXAMPLES[1]), config, synthesizer=source).records
    assert [(pair["accepted"], pair["reason"]) for pair in record.synthetic] == [
        (False, "it was to be written for 'greet'"),
        (True, None),
    ]


def test_others_than_the_model_may_write_pairs_of_any_function():
    """The noisy channel names one to the model alone."""
    config = settings(synthesis=replace(settings().synthesis, label="channel", checks=("schema",), k=2, tries=1))
    calls = (Call("add", {"a": 41, "b": 5}), Call("greet", {"name": "Bo"}))
    source = lambda one, attempt: PAIR._replace(calls=(calls[attempt],))  # noqa: E731
    [record] = run(MODEL, task_of(EXAMPLES[1]), config, synthesizer=source).records
    assert {tool.name for tool in EXAMPLES[1].tools} >= {"add", "greet"}
    assert [pair["accepted"] for pair in record.synthetic] == [True, True]


def test_an_echo_of_the_instruction_that_names_a_function_is_a_copy():
    config = settings(synthesis=replace(settings().synthesis, label="gold"))
    writing = Writing(config, find_parts(config, {}), ENCODER, MODEL)
    draft = prepare(EXAMPLES[1], "tiny", ENCODER, config, 4096, REQUEST)
    for echo in ("The function is greet.", NEW_REQUEST + " The function is greet."):
        evidence = writing.evidence(draft, Synthetic(echo, ()))
        assert examine(Synthetic(echo, ()), evidence, ["copy"]).reason == "the request repeats the instruction"


def test_labels_by_the_input_s_own_label_are_an_upper_bound_and_say_so(tmp_path):
    """The right function is the label, whichever function the request is about; inputs without one are left alone."""
    request = lambda one, attempt: Synthetic(f"{one.query} {attempt}", ())  # noqa: E731
    config = settings(synthesis=replace(SKIPS, label="gold", checks=("schema",), tries=1))
    found, summary = run(MODEL, TASK, config, out=tmp_path / "run", synthesizer=request)
    for record, one in zip(found, TASK.examples, strict=True):
        right = {call.name for call in one.gold or ()}
        labels = {call["name"] for pair in record.synthetic for call in pair["calls"]}
        assert labels <= right and record.seen == any(pair["accepted"] for pair in record.synthetic)
        assert right or record.reason == NO_GOLD
    assert summary["seen"] == sum(record.seen for record in found) > 0
    kept = json.loads((tmp_path / "run/config.json").read_text())
    assert kept["upper_bound"] == "pairs are written for the function of each input's label"
    assert any("upper bound" in note for note in notes(load_runs([tmp_path / "run"])))
