"""Inputs: their shapes and keys depend on themselves alone, and those that cannot run say why."""

import copy
from dataclasses import replace

import jax
import numpy as np
import pytest

from tiny_runs import ADD, EXAMPLES, GREET, PING, example, settings, tiny_model
from ttsi_jax.inputs import Draft, example_key, next_wave, prepare
from ttsi_jax.runs.record import Record
from ttsi_jax.runs.scores import plain, read_plain
from ttsi_jax.tasks import Call, GoldCall
from ttsi_jax.tasks.prompts import OPENING, PromptEncoder
from ttsi_jax.waves import Pair

ENCODER = PromptEncoder(tiny_model().tokenizer)


def draft(one=EXAMPLES[0], context_length=4096, **changes) -> Draft:
    made = prepare(one, "tiny", ENCODER, settings(**changes), context_length)
    assert isinstance(made, Draft), made
    return made


def refused(one, context_length=4096, encoder=ENCODER) -> Record:
    made = prepare(one, "tiny", encoder, settings(), context_length)
    assert isinstance(made, Record)
    return made


def test_an_input_is_tokenised_for_every_phase():
    one = draft()
    assert one.record.id == "one" and one.record.candidates == ["add", "greet"] and one.record.task == "tiny"
    assert one.record.n_prompt_tokens == len(one.prefix) + len(one.answer)
    assert one.opened == one.answer + ENCODER.fragment(OPENING)
    assert one.names == [ENCODER.fragment('add"'), ENCODER.fragment('greet"')]
    assert ENCODER.tokenizer.decode(one.request).endswith("Request 1: What is 1 and 2?\nRequest 2:")
    pair = draft(synthesis=replace(settings().synthesis, form="pair"))
    assert "Do not answer this request" in ENCODER.tokenizer.decode(pair.request)
    assert pair.prefix == one.prefix


def test_shapes_are_buckets_of_the_input():
    one = draft()
    assert one.scoring_shape() == one.synthesis_shape() == (512, 4, 16, 128)
    five_tools = tuple(replace(ADD, name=f"add_{i}") for i in range(5))
    assert draft(example("x", "hi", five_tools)).scoring_shape() == (512, 8, 16, 128)
    long_name = replace(PING, name="€" * 20)
    assert draft(example("x", "hi", (ADD, long_name))).scoring_shape() == (512, 4, 64, 128)
    assert draft(example("x", "€ " * 60)).scoring_shape() == (512, 4, 16, 256)
    described = replace(ADD, description="€ " * 200)
    assert draft(example("x", "hi", (described, GREET))).scoring_shape()[0] == 1024
    one.pairs = [Pair((1,) * 100, (2,) * 20), Pair((1,) * 120, (2,) * 65)]
    assert one.training_shape() == (*one.scoring_shape(), 512, 256, 128)


def test_the_room_for_synthesis_holds_the_models_own_request():
    long = replace(settings().synthesis, max_tokens=120)
    assert draft(synthesis=long).synthesis_room == 256


def test_the_best_candidate_is_the_one_with_the_highest_score():
    one = draft()
    assert one.best(np.array([-2.0, -1.0])) == "greet" and one.best(np.array([-1.0, -1.0])) == "add"
    assert one.tool("greet") is GREET


@pytest.mark.parametrize(
    ("seed", "id", "expected"),
    [
        (0, "one", [3166308013, 3795909354]),
        (1, "one", [761369799, 2548844780]),
        (0, "gr\xf6\xdfe \ud83d", [4152279869, 406857432]),
    ],
)
def test_keys_are_the_same_in_every_process(seed, id, expected):
    assert jax.random.key_data(example_key(seed, id)).tolist() == expected


def test_keys_differ_between_ids_seeds_and_purposes():
    one = draft()
    keys = [one.row((), 128, *purpose).key for purpose in ((), (0,), (1,), (0, 0), (0, 1))]
    keys += [example_key(0, "two"), example_key(0, "One"), example_key(1, "one"), example_key(0, "")]
    assert len({tuple(jax.random.key_data(key).tolist()) for key in keys}) == len(keys)
    assert (jax.random.key_data(keys[0]) == jax.random.key_data(example_key(0, "one"))).all()


def test_an_input_without_candidates():
    record = refused(example("x", "hi", ()))
    assert record.error == "the input has no candidate function" and record.candidates == []


def test_an_input_that_the_template_refuses():
    tokenizer = copy.deepcopy(ENCODER.tokenizer)
    tokenizer.chat_template = "{{ raise_exception('no') }}"
    assert (
        refused(EXAMPLES[0], encoder=PromptEncoder(tokenizer)).error
        == "the model's chat template refuses input 'one': no"
    )


def test_a_prompt_must_leave_room_in_the_models_context():
    one = draft()
    n_decoded = settings().answer.max_tokens
    longest = len(one.prefix) + max(len(one.opened), len(one.request)) + n_decoded
    assert draft(context_length=longest).prefix == one.prefix
    n_prompt = one.record.n_prompt_tokens
    record = refused(EXAMPLES[0], longest - 1)
    assert (
        record.error
        == f"the prompt has {n_prompt} tokens and {n_decoded} may follow; the model's context is {longest - 1}"
    )
    assert record.n_prompt_tokens == n_prompt


def test_waves_gather_equal_shapes_and_wait_until_they_are_full():
    waiting, waves = ["a1", "b1", "a2", "c1", "a3", "b2"], []
    while wave := next_wave(waiting, lambda item: item[0], 2, last=False):
        waves.append(wave)
    assert waves == [["a1", "a2"], ["b1", "b2"]] and waiting == ["c1", "a3"]


def test_the_last_waves_need_not_be_full():
    drafts = [draft(one) for one in EXAMPLES]
    waiting, taken = list(drafts), []
    assert next_wave(waiting, Draft.scoring_shape, 8, last=False) == [] and waiting == drafts
    while wave := next_wave(waiting, Draft.scoring_shape, 3, last=True):
        taken.append(wave)
    assert [len(wave) for wave in taken] == [3, 3, 1]
    assert [one for wave in taken for one in wave] == drafts, "in order, each once"
    assert waiting == [] and next_wave([], Draft.scoring_shape, 3, last=True) == []


BASE = {
    "pick_base": "add",
    "base_calls": [{"name": "add", "arguments": {"a": 1, "b": 2}}],
    "log_likelihoods": [-1.0, -2.0],
}
WRONG = {"pick": "greet", "adapted_calls": [{"name": "greet", "arguments": {}}]}


def test_a_finished_record_has_the_bases_answer_unless_it_adapted():
    one = draft()
    one.note(**BASE, **WRONG)
    kept = one.finished()
    assert (kept.pick, kept.calls) == ("add", BASE["base_calls"])
    assert kept.pick_correct and kept.tool_correct and kept.call_correct
    one.note(adapted=True)
    changed = one.finished()
    assert (changed.pick, changed.calls) == ("greet", WRONG["adapted_calls"])
    assert (changed.pick_correct, changed.tool_correct, changed.call_correct) == (False, False, False)
    assert changed.pick_correct_base and changed.tool_correct_base and changed.call_correct_base
    assert changed.gold == [{"name": "add", "arguments": {"a": 1, "b": 2}}], "the first accepted values"


def test_labels_that_are_none_and_labels_that_are_empty():
    unlabelled, nothing = draft(replace(EXAMPLES[0], gold=None)), draft(replace(EXAMPLES[0], gold=()))
    for one in (unlabelled, nothing):
        one.note(**BASE)
    assert unlabelled.finished().call_correct is None and unlabelled.finished().gold is None
    assert nothing.finished().call_correct is False and nothing.finished().gold == []
    nothing.note(base_calls=[])
    assert nothing.finished().call_correct is True and nothing.finished().pick_correct is None


def test_an_answer_that_cannot_be_read_is_wrong():
    one = draft(replace(EXAMPLES[0], gold=(GoldCall("add", {}),)))
    one.note(**(BASE | {"base_calls": None}))
    assert one.finished().tool_correct is False and one.finished().pick_correct is True


def test_a_score_that_is_not_finite_is_an_error():
    one = draft()
    one.note(**(BASE | {"log_likelihoods": [-1.0, float("nan")]}))
    assert one.finished().error == "the model gives a score that is not finite"


def test_calls_go_to_records_and_back():
    calls = [Call("add", {"a": [1]}), Call("ping", {})]
    assert read_plain(plain(calls)) == calls
    assert plain(None) is None and read_plain(None) is None
