"""Guides: whatever a model proposes, a call comes out that parses, validates and fits the limit."""

import json
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from guided.tools import SIZE, STOP, byte_level, sentencepiece, tool_lists
from tiny_runs import ADD, EVERY_TOOL, GREET, ORDER, PING, tool
from ttsi_jax.errors import InputError
from ttsi_jax.guided import masks
from ttsi_jax.guided.grammar import Bounds, call_schema
from ttsi_jax.tasks import Call, check_call, parse_calls, render_call

pytest.importorskip("llguidance")

GRAMMARS = masks.Grammars(byte_level(), SIZE, STOP)


def allowed(guide, grammars=GRAMMARS):
    """The tokens that a guide's mask allows."""
    bits = np.unpackbits(grammars.masks([guide]).view(np.uint8), bitorder="little")
    return np.flatnonzero(bits)


def write(guide, choose, tokenizer=None, grammars=GRAMMARS):
    """What a model writes that chooses tokens by `choose`: allowed tokens -> one of them."""
    ids = []
    while not guide.done:
        ids.append(guide.take(int(choose(allowed(guide, grammars)))))
    return (tokenizer or byte_level()).decode(ids, clean_up_tokenization_spaces=False), ids


def one_call(text, tools):
    """The call in a guided text, which is that call and nothing else."""
    (call,) = parse_calls(text)
    assert check_call(call, tools) is None
    assert render_call(call) == text or json.loads(text) == {"name": call.name, "arguments": call.arguments}
    return call


@settings(max_examples=150)
@given(tool_lists, st.integers(0, 2**32 - 1), st.integers(0, 60))
def test_any_choice_of_allowed_tokens_is_a_valid_call_within_the_limit(tools, seed, spare):
    rng = np.random.default_rng(seed)
    shortest = len(GRAMMARS.guide(call_schema(tools), 10_000)._way_out)
    guide = GRAMMARS.guide(call_schema(tools), shortest + spare)
    text, ids = write(guide, rng.choice)
    one_call(text, tools)
    assert len(ids) <= shortest + spare
    assert guide.room == shortest + spare - len(ids)


@settings(max_examples=60)
@given(tool_lists, st.text('"\\{}[],: 0e-.é漢', min_size=1, max_size=4), st.integers(0, 40))
def test_a_model_that_loves_a_few_letters_closes_its_call(tools, letters, spare):
    loved = byte_level().encode(letters)
    shortest = len(GRAMMARS.guide(call_schema(tools), 10_000)._way_out)
    guide = GRAMMARS.guide(call_schema(tools), shortest + spare)
    text, ids = write(guide, lambda tokens: next((token for token in loved if token in tokens), tokens[-1]))
    one_call(text, tools)
    assert len(ids) <= shortest + spare


@given(st.lists(st.integers(0, SIZE - 1), min_size=200, max_size=200))
def test_proposals_that_are_not_allowed_are_replaced(proposals):
    guide = GRAMMARS.guide(call_schema([ADD, GREET]), 60)
    ids = []
    while not guide.done:
        ids.append(guide.take(proposals[len(ids)]))
    one_call(byte_level().decode(ids), [ADD, GREET])
    assert guide.cut or ids == proposals[: len(ids)]


@settings(max_examples=30)
@given(tool_lists, st.integers(0, 2**32 - 1))
def test_a_sentencepiece_tokenizer_with_bytes(tools, seed):
    tokenizer, rng = sentencepiece(), np.random.default_rng(seed)
    grammars = masks.Grammars(tokenizer, len(tokenizer), (2,))
    guide = grammars.guide(call_schema(tools), 400)
    # the byte tokens of one letter do not decode in every order, so only text is compared
    text, ids = write(guide, rng.choice, tokenizer, grammars)
    one_call(text.strip(), tools)
    assert len(ids) <= 400


@pytest.mark.parametrize(
    "call",
    [
        Call("add", {"a": 1, "b": -20}),
        Call("greet", {"name": 'Zoë "Z" \\ 漢', "loud": True}),
        Call("greet", {"name": ""}),
        Call("convert", {"amount": -0.25, "unit": "ft"}),
        Call("order", {"items": ["tea", "milk"], "options": {"hot": True, "sugar": [1, None]}}),
        Call("ping", {}),
    ],
)
def test_the_call_as_it_is_rendered_is_accepted_and_not_cut(call):
    guide = GRAMMARS.guide(call_schema(EVERY_TOOL), 120)
    text = render_call(call)
    ids = byte_level().encode(text)
    for token in ids:
        assert not guide.done
        assert token in allowed(guide)
        assert guide.take(token) == token
    assert guide.done and not guide.cut


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ('{"name": "sub"', '{"name": "s'),  # no such function
        ('{"name": "add", "arguments": {"b"', '{"name": "add", "arguments": {"'),  # not in the schema's order
        ('{"name": "add", "arguments": {"a": 1}', '{"name": "add", "arguments": {"a": 1'),  # b is required
        ('{"name": "add", "arguments": {"a": "1"', '{"name": "add", "arguments": {"a": '),  # not an integer
        ('{"name": "add", "arguments": {"a": 1.', '{"name": "add", "arguments": {"a": 1'),
        ('{"name": "switch", "arguments": {"on": trus', '{"name": "switch", "arguments": {"on": tru'),
        ('{"name": "ping", "arguments": {"', '{"name": "ping", "arguments": {'),  # takes no argument
        ("I ", ""),
    ],
)  # fmt: skip
def test_what_no_tool_takes_is_not_allowed(text, kept):
    guide = GRAMMARS.guide(call_schema(EVERY_TOOL), 150)
    ids = [byte_level().encode(letter)[0] for letter in text]
    for token in ids[: len(kept)]:
        assert token in allowed(guide)
        guide.take(token)
    assert ids[len(kept)] not in allowed(guide)


def test_strings_and_lists_end():
    bounds = Bounds(characters=3, items=2)
    a, comma, quote = (byte_level().encode(text)[0] for text in ("a", ",", '"'))
    prefer = lambda *loved: lambda tokens: next((token for token in loved if token in tokens), tokens[0])  # noqa: E731
    text, _ = write(GRAMMARS.guide(call_schema([GREET], bounds), 200), prefer(a, quote))
    assert '"name": "aaa"' in text
    items = tool("list", items={"type": "array", "items": {"type": "string"}})
    text, _ = write(GRAMMARS.guide(call_schema([items], bounds), 200), prefer(comma, quote))
    assert len(parse_calls(text)[0].arguments["items"]) == 2


def test_a_limit_below_the_shortest_call_is_refused():
    shortest = len(byte_level().encode('{"name": "ping", "arguments": {}}'))
    text, _ = write(GRAMMARS.guide(call_schema([PING]), shortest), min)
    assert text == '{"name": "ping", "arguments": {}}'
    with pytest.raises(InputError, match=f"has {shortest} tokens, more than the limit of {shortest - 1}"):
        GRAMMARS.guide(call_schema([PING]), shortest - 1)


def test_rows_without_a_guide_or_with_a_finished_one_may_hold_anything():
    done = GRAMMARS.guide(call_schema([PING]), 40)
    write(done, min)
    found = GRAMMARS.masks([None, done, GRAMMARS.guide(call_schema([PING]), 40)])
    assert found.shape == (3, -(-SIZE // 32)) and found.dtype == np.uint32
    assert (found[:2] == 2**32 - 1).all()
    assert np.unpackbits(found[2].view(np.uint8)).sum() < 5
    assert (GRAMMARS.masks([None, done, None]) == 2**32 - 1).all()


def test_guides_of_the_same_tools_are_compiled_once_and_go_their_own_ways():
    grammars = masks.Grammars(byte_level(), SIZE, STOP)
    one, two = (grammars.guide(call_schema([ADD, ORDER]), 80) for _ in range(2))
    assert len(grammars._compiled) == 1
    one.take(allowed(one)[0])
    assert list(allowed(two, grammars)) == list(allowed(grammars.guide(call_schema([ADD, ORDER]), 80), grammars))


def test_without_llguidance_it_is_said_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "llguidance.hf", None)
    with pytest.raises(InputError, match=r"pip install 'ttsi_jax\[guided\]'"):
        masks.Grammars(byte_level(), SIZE, STOP)
