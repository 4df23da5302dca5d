"""Inputs: the few shapes of a run, keys that depend on the input alone, and those that cannot run say why."""

import copy
from dataclasses import replace
from itertools import combinations

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tiny_runs import ADD, EXAMPLES, GREET, PING, example, gate, settings, tiny_model
from ttsi_jax.batching.inputs import (
    Channel,
    Draft,
    assign_shapes,
    channel_shape,
    example_key,
    length_buckets,
    nameable,
    passes,
    prepare,
)
from ttsi_jax.batching.schedule import Adapt
from ttsi_jax.batching.waves import Pair
from ttsi_jax.runs.record import Record
from ttsi_jax.runs.scores import plain, read_plain
from ttsi_jax.synthesis import REQUEST, SYNTHESIZERS
from ttsi_jax.tasks import Call, GoldCall
from ttsi_jax.tasks.prompts import OPENING, PromptEncoder

ENCODER = PromptEncoder(tiny_model().tokenizer)


def draft(one=EXAMPLES[0], context_length=4096, **changes) -> Draft:
    config = settings(**changes)
    made = prepare(one, "tiny", ENCODER, config, context_length, SYNTHESIZERS[config.synthesis_form])
    assert isinstance(made, Draft), made
    return made


def refused(one, context_length=4096, encoder=ENCODER, **changes) -> Record:
    made = prepare(one, "tiny", encoder, settings(**changes), context_length, REQUEST)
    assert isinstance(made, Record)
    return made


def test_an_input_is_tokenised_for_every_phase():
    one = draft()
    assert one.record.id == "one" and one.record.candidates == ["add", "greet"] and one.record.task == "tiny"
    assert one.record.n_prompt_tokens == len(one.prefix) + len(one.answer)
    assert one.opened == one.answer + ENCODER.fragment(OPENING)
    assert one.names == [ENCODER.fragment('add"'), ENCODER.fragment('greet"')]
    assert ENCODER.tokenizer.decode(one.requests[0]).endswith("Request 1: What is 1 and 2?\nRequest 2:")
    pair = draft(synthesis=replace(settings().synthesis, form="pair"))
    assert "Do not answer this request" in ENCODER.tokenizer.decode(pair.requests[0])
    assert pair.prefix == one.prefix
    named = draft(synthesis=replace(settings().synthesis, label="channel"))
    texts = [ENCODER.tokenizer.decode(request) for request in named.requests]
    assert ["The function is add." in texts[0], "The function is greet." in texts[1]] == [True, True]
    assert named.room >= max(map(len, named.requests)) and named.prefix == one.prefix
    gold = draft(synthesis=replace(settings().synthesis, label="gold"))
    assert gold.requests == named.requests[:1]


def test_labels_name_a_function_only_where_there_is_one():
    one, unlabelled, irrelevant = EXAMPLES[0], EXAMPLES[3], EXAMPLES[4]
    assert nameable(one, "scoring") == () and nameable(one, "channel") == one.tools
    assert [tool.name for tool in nameable(one, "gold")] == ["add"]
    assert nameable(unlabelled, "gold") == nameable(irrelevant, "gold") == ()
    both = replace(one, gold=(GoldCall("add", {}), GoldCall("greet", {})))
    assert nameable(both, "gold") == () == nameable(replace(one, tools=one.tools[1:]), "gold")


def test_shapes_hold_every_input_of_their_bucket():
    drafts = [draft(one) for one in EXAMPLES]
    assign_shapes(drafts, 4)
    [shape] = {one.shape for one in drafts}  # so few inputs are not worth a second bucket
    assert shape.prefix % 32 == shape.suffix % 16 == 0 and shape.common == ()
    for one in drafts:
        assert shape.prefix >= len(one.prefix) and shape.suffix >= max(one.room, len(one.opened), len(one.requests[0]))
        assert shape.candidates >= len(one.names) and shape.name >= max(map(len, one.names))
    wish = Adapt(drafts[0], "adapt", [], [Pair((1,) * shape.suffix, (2,))])
    assert wish.shape() == (shape, (2 * shape.suffix, 64), None, 0)
    assign_shapes([], 4)


def test_a_prefix_that_fills_two_waves_has_waves_of_its_own():
    drafts = [draft(example(str(i), "hi " * i, (ADD, GREET) if i else (PING,))) for i in range(5)]
    assign_shapes(drafts, 2)
    assert [one.shape.common == one.prefix for one in drafts] == [False, True, True, True, True]
    assign_shapes(drafts, 3)
    assert {one.shape.common for one in drafts} == {()}


def test_the_room_holds_the_models_own_request():
    one, longer = draft(), draft(synthesis=replace(settings().synthesis, max_tokens=120))
    without_query = len(one.opened) - len(ENCODER.fragment("What is 1 and 2?"))
    assert longer.room == without_query + 120
    assert one.room >= max(len(one.opened), len(one.requests[0]))


@given(st.lists(st.integers(1, 900), min_size=1, max_size=30), st.integers(0, 2000))
def test_length_buckets_waste_least(lengths, cost):
    found = length_buckets(lengths, cost=cost)
    sizes = sorted({-(-length // 32) * 32 for length in lengths})

    def wasted(uppers):
        return sum(min(u for u in uppers if u >= n) - -(-n // 32) * 32 for n in lengths) + cost * len(uppers)

    every = [(*inner, sizes[-1]) for n in range(3) for inner in combinations(sizes[:-1], n)]
    assert list(found) == sorted(set(found)) and set(found) <= set(sizes) and len(found) <= 3
    assert wasted(found) == min(map(wasted, every))


def test_prefixes_that_are_trained_on_are_padded_less():
    tt_si = settings(scope="all")
    assert passes(tt_si) == 1 + 3 * 3
    assert passes(replace(tt_si, synthesis=replace(tt_si.synthesis, k=3))) == 1 + 3 * 3 * 3
    assert passes(settings(scope="suffix")) == passes(replace(tt_si, method="tt-icl")) == 1

    many = tuple(replace(ADD, name=f"add_{i}") for i in range(10))
    drafts = [draft(example(str(i), "hi", many if i > 5 else (ADD, GREET))) for i in range(12)]
    assign_shapes(drafts, 4)
    assert len({one.shape.prefix for one in drafts}) == 1
    assign_shapes(drafts, 4, passes=20)
    assert len({one.shape.prefix for one in drafts}) == 2


def test_functions_in_the_noisy_channel_have_few_sizes():
    tools = [replace(ADD, description="adds " * 20 * n) for n in range(12)]
    drafts = [draft(example(str(i), "hi", (tool, GREET)), **gate(score="channel")) for i, tool in enumerate(tools)]
    assert draft(EXAMPLES[0]).channel == Channel()
    assign_shapes(drafts, 4)
    [sizes] = {one.channel.sizes for one in drafts}
    assert 1 <= len(sizes) <= 3
    for one in drafts:
        for (before, rest), tool in zip(one.channel.prompts, one.example.tools, strict=True):
            assert (before, rest) == ENCODER.channel(tool)
            shape = channel_shape(one.channel, before, len(rest), one.channel.n_request, 1)
            assert len(rest) <= shape.suffix in sizes and shape.name >= one.channel.n_request
    assert channel_shape(drafts[0].channel, before, sizes[-1] + 1, 1, 1).suffix == sizes[-1] + 32, "of a pair's own"


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
    keys = [one.row((), *purpose).key for purpose in ((), (0,), (1,), (0, 0), (0, 1))]
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
    asked = len(one.prefix) + len(one.requests[0])
    assert asked > len(one.prefix) + len(one.opened)
    for n_written, n_after in ((8, settings().answer.max_tokens), (40, 40)):
        synthesis, context = replace(settings().synthesis, max_tokens=n_written), asked + n_after
        assert draft(context_length=context, synthesis=synthesis).prefix == one.prefix
        record = refused(EXAMPLES[0], context - 1, synthesis=synthesis)
        what = f"the prompt that asks for a pair has {asked} tokens and {n_after} may follow"
        assert record.error == f"{what}; the model's context is {context - 1}"
        assert record.n_prompt_tokens == one.record.n_prompt_tokens


BASE = {
    "pick_base": "add",
    "text_base": "an answer",
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
