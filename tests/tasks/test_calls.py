import json
import keyword

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ttsi_jax.tasks.calls import MAX_LENGTH, CallSyntaxError, NoCallError, parse_calls, render_call
from ttsi_jax.tasks.example import Call

numbers = st.integers(-(2**1000), 2**1000) | st.floats(allow_nan=False, allow_infinity=False)
json_values = st.recursive(
    st.none() | st.booleans() | numbers | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=10,
)
calls = st.builds(Call, st.text(min_size=1, max_size=12), st.dictionaries(st.text(max_size=8), json_values, max_size=4))
identifiers = st.from_regex(r"[a-z_][a-z0-9_]{0,8}", fullmatch=True).filter(lambda word: not keyword.iskeyword(word))


def same(left, right):
    """Equality that tells True from 1 and 1 from 1.0."""
    return repr(left) == repr(right)


@given(calls)
def test_rendered_calls_parse_to_themselves(call):
    text = render_call(call)
    assert "\n" not in text
    assert same(parse_calls(text), [call])


@given(st.lists(calls, min_size=1, max_size=3), st.sampled_from(["list", "tags", "fence", "prose"]))
def test_calls_survive_their_wrapping(wanted, wrapping):
    rendered = [render_call(call) for call in wanted]
    text = f"[{', '.join(rendered)}]"
    if wrapping == "tags":
        text = "Let me see.\n" + "\n".join(f"<tool_call>\n{one}\n</tool_call>" for one in rendered)
    elif wrapping == "fence":
        text = f"Here it is:\n```json\n{text}\n```\nDone."
    elif wrapping == "prose":
        text = f"I'd call {text} (see above)."
    assert same(parse_calls(text), wanted)


@given(st.lists(st.tuples(identifiers, st.dictionaries(identifiers, json_values, max_size=3)), min_size=1, max_size=3))
def test_python_calls(wanted):
    text = ", ".join(f"api.{name}({', '.join(f'{k}={v!r}' for k, v in given_.items())})" for name, given_ in wanted)
    assert same(parse_calls(f"[{text}]"), [Call(f"api.{name}", given_) for name, given_ in wanted])


@given(st.text() | st.text("{}[]()\"'`,:= fa1-<>tol_c\n\\", max_size=60))
def test_any_text_gives_calls_or_a_short_reason(text):
    try:
        found = parse_calls(text)
    except CallSyntaxError as error:
        assert 0 < len(str(error)) < 200
    else:
        assert all(isinstance(call, Call) for call in found)


F = [Call("f", {"a": 1})]


@pytest.mark.parametrize(
    "text",
    [
        '{"name": "f", "arguments": {"a": 1}}',
        '[{"name": "f", "parameters": {"a": 1}}]',
        '{"tool": "f", "parameters": {"a": 1}}',
        '{"function": "f", "arguments": {"a": 1}}',
        '{"name": "f", "arguments": "{\\"a\\": 1}"}',
        '{"type": "function", "function": {"name": "f", "arguments": "{\\"a\\": 1}"}}',
        '```json\n{"name": "f", "arguments": {"a": 1}}\n```',
        '```\n[{"name": "f", "arguments": {"a": 1}}]\n```',
        '```[{"name": "f", "arguments": {"a": 1}}]```',
        '<tool_call>\n{"name": "f", "arguments": {"a": 1}}\n</tool_call>',
        '<tool_call>{"name": "f", "arguments": {"a": 1}}',
        '{"thought": "hm"} so {"name": "f", "arguments": {"a": 1}} and {"name": "g", "arguments": {}}',
        'Function(s) to call: {"name": "f", "arguments": {"a": 1}}',
        "f(a=1)",
        "[f(a=1)]",
        " ( f (a=1) ) ",
        "```python\nf(a=1)\n```",
        "Sure:\n```\n[f(a=1)]\n```",
    ],
)
def test_forms_of_one_call(text):
    assert same(parse_calls(text), F)


def test_several_calls():
    two = [Call("f", {"a": 1}), Call("g.h", {"b": "x"})]
    assert parse_calls('[f(a=1), g.h(b="x")]') == two
    assert parse_calls('f(a=1), g.h(b="x")') == two
    tags = "".join(f"<tool_call>{render_call(call)}</tool_call>" for call in two)
    assert parse_calls(tags) == two


def test_literals():
    text = "f(a=true, b=False, c=null, d=None, e=-1.5, g=(1, 'x'), h={'k': [+2]}, i=\"```f(a=1)```\", j='\\d')"
    expected = {"a": True, "b": False, "c": None, "d": None, "e": -1.5, "g": [1, "x"], "h": {"k": [2]}}
    assert same(parse_calls(text), [Call("f", {**expected, "i": "```f(a=1)```", "j": "\\d"})])


def test_tags_and_fences_inside_a_string_are_text():
    call = Call("f", {"a": '</tool_call><tool_call>{"name": "g", "arguments": {}} ```\n[]\n```'})
    assert parse_calls(render_call(call)) == [call]
    assert parse_calls(f"<tool_call>{render_call(call)}</tool_call>") == [call]


@pytest.mark.parametrize("text", ["[]", " [ ]\n", "```json\n[]\n```"])
def test_an_explicit_empty_list_is_no_call(text):
    assert parse_calls(text) == []


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "empty"),
        (" \n", "empty"),
        ("None of the functions can answer this.", "no function call"),
        ("The list is [] as it happens.", "no function call"),
        ("{}", "no function call"),
        ('{"name": "f"}', "no function call"),
        ('{"name": "", "arguments": {}}', "no function call"),
        ('{"name": ["f"], "arguments": {}}', "no function call"),
        ('[{"name": "f", "arguments": {}}, {"a": 1}]', "no function call"),
        ('{"name": "f", "arguments": [1]}', "arguments are not an object"),
        ('{"name": "f", "arguments": "a=1"}', "not valid JSON"),
        ('{"name": "f", "arguments": {"a": {"name": "g", "arguments": {}}', "not valid JSON"),
        ('{"name": "f", "arguments": {"a": 1,}}', "not valid JSON"),
        ('[{"name": "f", "arguments": {}} {"name": "g", "arguments": {}}]', "not valid JSON"),
        ('{"name": "f", "arguments": {"a": NaN}}', "not a JSON value"),
        ('{"name": "f", "arguments": {"a": "\\udc00"}}', "surrogate"),
        ('<tool_call>{"name": "f"}</tool_call>', "something other than a function call"),
        ("<tool_call>f(a=1)</tool_call>", "not valid JSON"),
        ("f(1)", "without its name"),
        ("f(*a)", "without its name"),
        ("f(**{'a': 1})", "without its name"),
        ("f(a=1, a=2)", "given twice"),
        ("f(a=b)", "not a literal"),
        ("f(a=1+1)", "not a literal"),
        ("f(a=g())", "not a literal"),
        ("f(a=__import__('os').system('true'))", "not a literal"),
        ("f(a=b'x')", "not a literal"),
        ("f(a=1j)", "not a literal"),
        ("f(a=...)", "not a literal"),
        ("f(a=-True)", "not a literal"),
        ("f(a={1: 2})", "not a literal"),
        ("f(a={**b})", "not a literal"),
        ("f(a={1, 2})", "not a literal"),
        ("f(a=f'{x}')", "not a literal"),
        ("[f(a=1), (3)]", "other than function calls"),
        ("f()(a=1)", "not given by its name"),
        ('f(a={"name": "g", "arguments": {}}', "not complete"),
        ("f(a=[]", "not complete"),
        ("f(a=1e999)", "out of range"),
        ("f(a=0x" + "f" * 400 + ")", "out of range"),
    ],
)
def test_what_is_not_a_call(text, reason):
    with pytest.raises(CallSyntaxError, match=reason):
        parse_calls(text)


HOSTILE = {
    "long": '{"name": "f", "arguments": {"a": "' + "x" * MAX_LENGTH + '"}}',
    "json lists": '{"name": "f", "arguments": {"a": ' + "[" * 19_000,
    "closed json lists": '{"name": "f", "arguments": {"a": ' + "[" * 60 + "]" * 60 + "}}",
    "json objects": '{"a":' * 3_900,
    "empty objects": '{"a":1}' * 2_800,
    "brackets": "[" * 20_000,
    "python lists": "f(a=" + "[" * 60 + "]" * 60 + ")",
    "many python lists": "f(a=" + "[" * 9_000 + "]" * 9_000 + ")",
    "minus": "f(a=" + "-" * 19_000 + "1)",
    "sums": "f(a=" + "1+" * 9_000 + "1)",
    "powers": "f(a=" + "1**" * 6_000 + "1)",
    "some attributes": "a" + ".b" * 60 + "()",
    "attributes": "a" + ".b" * 9_900 + "()",
    "called calls": "f" + "()" * 9_900,
    "digits": "f(a=" + "9" * 19_000 + ")",
    "json digits": '{"name": "f", "arguments": {"a": ' + "9" * 19_000 + "}}",
    "tags": "<tool_call>" * 1_800,
    "fences": "```" * 6_000,
    "parentheses": "f(" * 9_900 + ")" * 200,
    "null byte": "f(a=1\0)",
}


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE.keys())
def test_hostile_text_is_only_an_error(text):
    with pytest.raises(CallSyntaxError):
        parse_calls(text)


def test_rendering_is_canonical():
    assert render_call(Call("f", {"a": 1, "b": "ü", "c": [True, None]})) == (
        '{"name": "f", "arguments": {"a": 1, "b": "ü", "c": [true, null]}}'
    )
    assert json.loads(render_call(Call("f", {}))) == {"name": "f", "arguments": {}}


@pytest.mark.parametrize("text", ["", " ", "None of the functions can answer this.", "The list is [] as it happens."])
def test_an_answer_in_words_is_told_from_a_malformed_call(text):
    with pytest.raises(NoCallError):
        parse_calls(text)


@pytest.mark.parametrize("text", ['{"name": "f"}', '{"name": "f", "argu', "f(a=", "<tool_call>{}</tool_call>", "f(1)"])
def test_a_malformed_call_is_a_call(text):
    with pytest.raises(CallSyntaxError) as raised:
        parse_calls(text)
    assert not isinstance(raised.value, NoCallError)
