"""Answers: what a slot may hold and what closes it, and calls that come back from their tokens as they were."""

import json

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tiny_runs import ADD, GREET, PING, tiny_model, tool
from ttsi_jax.answering import (
    BOOLEAN,
    INTEGER,
    LINE,
    NESTED,
    NUMBER,
    STRING,
    TEXT,
    AnswerConfig,
    Slot,
    call_ids,
    free_texts,
    keys_script,
    script_arrays,
    value_kind,
)
from ttsi_jax.batching.slots import slot_tables, special_ids
from ttsi_jax.model.generation import FORCED
from ttsi_jax.tasks import Call, check_call, parse_calls, read_calls
from ttsi_jax.tasks.pieces import keys_text, name_text, read_value, written_arguments
from ttsi_jax.tasks.prompts import OPENING, PromptEncoder

MODEL = tiny_model()
TOKENIZER, STOPS, V = MODEL.tokenizer, MODEL.stop_ids, MODEL.config.vocab_size
ENCODER = PromptEncoder(TOKENIZER)
TABLES = slot_tables(TOKENIZER, V, STOPS)
KINDS = {"text": TEXT, "line": LINE, "string": STRING, "nested": NESTED, "integer": INTEGER, "number": NUMBER,
         "boolean": BOOLEAN}  # fmt: skip


def token(text: str) -> int:
    """The token that is exactly this text."""
    matches = [i for i in range(len(TOKENIZER)) if TOKENIZER.decode([i], clean_up_tokenization_spaces=False) == text]
    return matches[0]


def rule(kind: str, index: int) -> str:
    """How a slot takes a token: f(irst), l(ater), then the change of depth."""
    first, later = TABLES.first[KINDS[kind] - 1, index], TABLES.later[KINDS[kind] - 1, index]
    return f"{'f' if first else ''}{'l' if later else ''}{int(TABLES.depth_changes[KINDS[kind] - 1, index]):+d}"


HELD_AND_CLOSING = [
    ("text", '"', "fl+0"), ("text", "\n", "fl+0"), ("text", "}", "fl+0"),
    ("line", "a", "fl+0"), ("line", '"', "fl+0"), ("line", "\n", "l-1"),
    ("string", "a", "fl+0"), ("string", "\n", "fl+0"), ("string", '"', "l-1"), ("string", '",', "l-1"),
    ("string", "\\", "fl+0"), ("string", "}", "fl+0"),
    ("nested", "a", "fl+0"), ("nested", '"', "fl+0"), ("nested", "[", "fl+1"), ("nested", "{", "fl+1"),
    ("nested", "]", "fl-1"), ("nested", "}", "fl-1"), ("nested", "}}", "fl-2"),
    ("integer", "4", "fl+0"), ("integer", "-", "fl+0"), ("integer", ".", "+0"), ("integer", "a", "+0"),
    ("integer", '"', "+0"), ("integer", ",", "l-1"), ("integer", "}", "l-1"), ("integer", "}}", "l-1"),
    ("number", "4", "fl+0"), ("number", "-", "fl+0"), ("number", ".", "fl+0"), ("number", "a", "+0"),
    ("number", "]", "l-1"),
    ("boolean", "t", "fl+0"), ("boolean", "f", "fl+0"), ("boolean", "u", "l+0"), ("boolean", "1", "+0"),
    ("boolean", ",", "l-1"),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "text", "expected"), HELD_AND_CLOSING)
def test_what_a_slot_holds_and_what_closes_it(kind, text, expected):
    assert rule(kind, token(text)) == expected


@pytest.mark.parametrize("kind", KINDS)
def test_a_stop_closes_every_slot_at_any_depth_but_only_text_may_begin_with_it(kind):
    for stop in STOPS:
        assert rule(kind, stop) == ("fl-127" if kind == "text" else "l-127")


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "text"])
def test_no_slot_of_a_value_holds_special_tokens_or_rows_without_a_token(kind):
    assert len(TOKENIZER) < V
    for index in (token("<|im_start|>"), *range(len(TOKENIZER), V)):
        assert rule(kind, index) == "+0"


def test_every_slot_has_something_to_begin_with():
    assert TABLES.first.any(axis=1).all() and TABLES.depth_changes.shape == (len(KINDS), V)


def test_special_tokens_are_those_marked_in_the_files_and_the_stops():
    assert token("<|im_start|>") not in TOKENIZER.all_special_ids
    assert special_ids(TOKENIZER, (7,)) == {token("<|endoftext|>"), token("<|im_start|>"), token("<|im_end|>"), 7}


def said(ids, slots, closing, kinds):
    arrays = map(np.asarray, (slots, ids, closing, kinds))
    return free_texts(TOKENIZER, special_ids(TOKENIZER, STOPS), *arrays)


def test_free_texts_hold_what_closed_them_but_neither_stops_nor_special_tokens():
    a, b, quote, start = token("a"), token("b"), token('"'), token("<|im_start|>")
    ids, slots = [a, b, start, b, a, -1], [0, 1, 1, 3, 3, -1]
    assert said(ids, slots, [-1, quote, -1, STOPS[1]], [FORCED, STRING, FORCED, TEXT]) == ['b"', "ba"]
    assert said(ids, slots, [-1, -1, -1, -1], [FORCED, STRING, FORCED, TEXT]) == ["b", "ba"]
    assert said([-1], [-1], [-1, -1], [FORCED, FORCED]) == []


def test_script_arrays_are_cut_to_their_slots():
    rows = [[Slot(FORCED, (5, 6)), Slot(STRING, limit=3)], [], [Slot(FORCED, (7,) * 9)]]
    kinds, tokens, limits, lengths = script_arrays(rows, 4)
    assert kinds.tolist() == [[FORCED, FORCED, STRING, FORCED], [0] * 4, [0] * 4]
    assert tokens.tolist() == [[5, 6, 0, 0], [0] * 4, [7] * 4]
    assert limits.tolist() == [[0, 0, 3, 0], [0] * 4, [0] * 4]
    assert lengths.tolist() == [3, 0, 4]


# Calls there and back.


def members(values):
    return st.dictionaries(NAMES, values, max_size=3)


def between_brackets(value) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text[1:-1] if isinstance(value, str | list | dict) else text


TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
ODD = st.sampled_from(['a"b', "math.add", "größe", "a\\", "<|im_end|>", "{x}", "a b", "\n", "東京"])
NAMES = (TEXTS | ODD).filter(bool)
SCALARS = {
    "string": TEXTS | ODD,
    "integer": st.integers(-(10**12), 10**12),
    "number": st.floats(allow_nan=False, allow_infinity=False) | st.integers(-9, 9),
    "boolean": st.booleans(),
}
SCALAR = st.none() | st.one_of(*SCALARS.values())
ANY = st.recursive(SCALAR, lambda inner: st.lists(inner, max_size=3) | members(inner), max_leaves=5)
VALUES = SCALARS | {"array": st.lists(ANY, max_size=3), "object": members(ANY)}


@st.composite
def tools_and_calls(draw):
    """A tool with required parameters of all types, and a call that fits."""
    types = draw(st.dictionaries(NAMES, st.sampled_from(sorted(VALUES)), max_size=4))
    own = tool(draw(NAMES), **{})
    own.parameters["properties"].update({name: {"type": kind} for name, kind in types.items()})
    own.parameters["required"].extend(types)
    return own, Call(own.name, {name: draw(VALUES[kind]) for name, kind in types.items()})


@given(tools_and_calls())
@example((PING, Call("ping", {})))
def test_a_call_comes_back_from_its_tokens(both):
    own, call = both
    assert check_call(call, [own]) is None
    text = TOKENIZER.decode(call_ids(ENCODER, call), clean_up_tokenization_spaces=False)
    assert json.loads(text) == {"name": call.name, "arguments": call.arguments}
    assert parse_calls(text) == [call]


@given(tools_and_calls())
def test_training_sees_a_call_in_the_pieces_in_which_it_is_decoded(both):
    own, call = both
    script = keys_script(ENCODER, own, AnswerConfig(form="keys", max_tokens=10_000))
    forced = [slot.ids for slot in script if slot.kind == FORCED]
    kinds = [slot.kind for slot in script if slot.kind != FORCED]
    assert kinds == [value_kind(schema) for schema in own.properties.values()]
    expected = ENCODER.fragment(OPENING) + forced[0]
    for key, value in zip(forced[1:], call.arguments.values(), strict=True):
        expected += key + ENCODER.fragment(between_brackets(value))
    ids = call_ids(ENCODER, call)
    assert ids[: len(expected)] == expected
    assert TOKENIZER.decode(ids[len(expected) :]).lstrip('"]}') in ("", ', "arguments": {}}')


def test_tokens_of_a_call_are_its_pieces_tokenised_one_by_one():
    pieces = ('{"name": "', 'add"', ', "arguments": {"a": ', "12", ', "b": "', "hell", '", "c": [', "1, 2", '], "d": {',
              '}, "e": ', "null", "}}")  # fmt: skip
    expected = tuple(token for piece in pieces for token in ENCODER.fragment(piece))
    assert call_ids(ENCODER, Call("add", {"a": 12, "b": "hell", "c": [1, 2], "d": {}, "e": None})) == expected
    assert expected != ENCODER.fragment("".join(pieces)), "the tokenizer merges across these borders"


def test_a_call_without_arguments():
    assert call_ids(ENCODER, Call("ping", {})) == sum(
        map(ENCODER.fragment, ('{"name": "', 'ping"', ', "arguments": {}}')), ()
    )
    assert keys_script(ENCODER, PING, AnswerConfig()) == [Slot(FORCED, ENCODER.fragment('ping"'))]
    assert keys_text(PING, []) == '{"name": "ping", "arguments": {}}'


def test_keys_are_forced_and_values_are_free():
    script = keys_script(ENCODER, ADD, AnswerConfig(value_tokens=9))
    texts = [TOKENIZER.decode(slot.ids) for slot in script if slot.kind == FORCED]
    assert texts == ['add"', ', "arguments": {"a": ', ', "b": ']
    assert [slot for slot in script if slot.kind != FORCED] == [Slot(INTEGER, limit=9)] * 2


def test_only_required_arguments_are_written_unless_none_is():
    assert written_arguments(GREET) == ("name",)
    assert written_arguments(tool("f", [], a={}, b={})) == ("a", "b")


def test_values_share_what_the_keys_leave_of_an_answer():
    forced = sum(len(slot.ids) for slot in keys_script(ENCODER, ADD, AnswerConfig()))
    limits = lambda n: [s.limit for s in keys_script(ENCODER, ADD, AnswerConfig(max_tokens=n)) if s.kind]  # noqa: E731
    assert limits(forced + 11) == [5, 5]
    assert limits(forced) == limits(1) == [1, 1]


@pytest.mark.parametrize(
    ("schema", "kind"),
    [
        ({}, STRING), ({"type": "string"}, STRING), ({"type": "null"}, STRING), ({"enum": ["a"]}, STRING),
        ({"type": "integer"}, INTEGER), ({"type": "number"}, NUMBER), ({"type": "boolean"}, BOOLEAN),
        ({"type": "array"}, NESTED), ({"type": "object"}, NESTED), ({"type": ["null", "integer"]}, INTEGER),
        ({"type": ["string", "null"]}, STRING), ({"type": ["null"]}, STRING),
    ],
)  # fmt: skip
def test_the_kind_of_a_value_is_its_schemas(schema, kind):
    own = tool("f", x=schema)
    assert value_kind(schema) == keys_script(ENCODER, own, AnswerConfig())[-1].kind == kind


def test_a_name_is_scored_with_its_closing_quote():
    assert name_text("add") == 'add"'
    assert name_text('größe "x"') == 'größe \\"x\\""'


ENDS = {"string": ('"', '",', '"}}'), "array": ("]", "]}}"), "object": ("}", "},"), "integer": ("", ",", "}}")}


@given(tools_and_calls(), st.data())
def test_a_call_comes_back_from_its_values(both, data):
    own, call = both
    values = []
    for name, value in call.arguments.items():
        kind = own.properties[name]["type"]
        values.append(between_brackets(value) + data.draw(st.sampled_from(ENDS.get(kind, ENDS["integer"]))))
    assert read_calls(keys_text(own, values)) == [call]


QUOTED, BARE, LIST, OBJECT = (' "', '"'), (" ", ""), (" [", "]"), (" {", "}")


@pytest.mark.parametrize(
    ("said", "brackets", "value"),
    [
        ("Oslo", QUOTED, "Oslo"),  # closed by the limit or a stop
        ('Oslo"', QUOTED, "Oslo"),
        ('Oslo", "b": 1', QUOTED, "Oslo"),
        ("", QUOTED, ""),
        ('"', QUOTED, ""),
        ('a\\"b"', QUOTED, 'a"b'),
        ('a\\"', QUOTED, 'a"'),  # the quote was a token of its own and closed the slot
        ("line\nbreak", QUOTED, "line\nbreak"),
        ("\\u00e9", QUOTED, "é"),
        ("a\\", QUOTED, "a\\"),
        ("\\x41", QUOTED, "\\x41"),
        ("5}}", BARE, 5),
        ("-2.5e3,", BARE, -2500.0),
        ("-", BARE, "-"),
        ("", BARE, ""),
        ("true}", BARE, True),
        ("True", BARE, True),
        ("False,", BARE, False),
        ("None", BARE, None),
        ("007}", BARE, 7),
        ("-05", BARE, -5),
        ("00.50,", BARE, 0.5),
        ("0", BARE, 0),
        ('02139"', QUOTED, "02139"),
        ("tru", BARE, "tru"),
        ("NaN", BARE, "NaN"),
        ("Infinity", BARE, "Infinity"),
        ("9" * 5000, BARE, "9" * 5000),
        ("9" * 309, BARE, "9" * 309),  # out of a float's range, as the two that follow
        ("9" * 309 + ".5}", BARE, "9" * 309 + ".5"),
        ("1e999]", LIST, "1e999"),
        ("\\ud83d", QUOTED, "\\ud83d"),  # half of a surrogate pair
        ("]", LIST, []),
        ("1, 2", LIST, [1, 2]),
        ('"a", [1]]}}', LIST, ["a", [1]]),
        ('"a', LIST, ""),
        ("x, y]", LIST, "x, y"),
        ("[" * 3000, LIST, "[" * 3000),
        ('"k": {"l": null}}', OBJECT, {"k": {"l": None}}),
        ("}", OBJECT, {}),
        ("k: 1}", OBJECT, "k: 1"),
    ],
)  # fmt: skip
def test_reading_a_value(said, brackets, value):
    read = read_value(said, *brackets)
    assert read == value and type(read) is type(value)


def test_values_that_are_no_json_still_make_an_answer():
    assert read_calls(keys_text(ADD, ["seven", "-"])) == [Call("add", {"a": "seven", "b": "-"})]


def test_values_that_an_answer_had_no_room_for_are_missing():
    long = tool("f", **{letter * 30: {"type": "string"} for letter in "abc"})
    script = keys_script(ENCODER, long, AnswerConfig(max_tokens=48))
    kinds, *_ = script_arrays([script], 48)
    assert 0 < (kinds != FORCED).sum() < 3
    assert read_calls(keys_text(long, ["x"])) == [Call("f", {"a" * 30: "x"})]


@pytest.mark.parametrize(
    "text", [None, "", "I cannot help.", '{"name": "f"', '{"name": "f", "arguments": {"a": "\\ud83d"}}']
)
def test_an_answer_that_cannot_be_read(text):
    assert read_calls(text) is None


def test_an_answer_that_can_be_read():
    assert read_calls('{"name": "f", "arguments": {}}') == [Call("f", {})]
    assert read_calls("[]") == []
