from dataclasses import replace

import pytest

from ttsi_jax.tasks import Example, Faults, GoldCall, Tool, count_faults, normalise_parameters, unmatchable
from ttsi_jax.tasks.faults import fingerprint


def tool(name, **properties):
    return Tool(name, f"To {name}.", normalise_parameters({"type": "object", "properties": properties}))


TEXT = {"type": "string"}
RAIN, LOGIN, PING = tool("rain", city=TEXT), tool("login", api_key=TEXT, user=TEXT), tool("ping")


def asked(*gold, query="Rain in Oslo? My key is k-1.", tools=(RAIN, LOGIN)):
    return Example("a", ({"role": "user", "content": query},), tools, gold)


@pytest.mark.parametrize(
    ("call", "reason"),
    [
        (GoldCall("rain", {"city": ("Bergen",)}), None),
        (GoldCall("snow", {}), "the right function 'snow' is not listed"),
        (GoldCall("rain", {"town": ("Oslo",)}), "'rain' has no argument 'town', which the right call gives"),
        (GoldCall("rain", {"town": ("Oslo",)}, frozenset({"town"})), None),
        (GoldCall("rain", {"city": (5,)}), None),
        (GoldCall("login", {"api_key": ("k-1",), "user": ("nobody",)}), None),
        (GoldCall("login", {"api_key": ("k-2", "k-1")}), None),
        (GoldCall("login", {"api_key": ("<API_KEY>",)}), "the right value of 'api_key' stands nowhere in the input"),
    ],
)
def test_right_calls_that_no_answer_can_match(call, reason):
    assert unmatchable(asked(call)) == reason
    assert unmatchable(asked(GoldCall("rain", {}), call)) == reason


@pytest.mark.parametrize(
    "name",
    ["access_key", "appid", "apiKey", "api-key", "auth_token", "password", "newPassword", "client_secret", "API_KEY"],
)
def test_names_of_credentials(name):
    example = asked(GoldCall("f", {name: ("x7",)}), tools=(tool("f", **{name: TEXT}),))
    assert unmatchable(example) and not unmatchable(replace(example, messages=({"role": "user", "content": "x7"},)))


@pytest.mark.parametrize(
    ("name", "value", "query"),
    [
        ("max_tokens", 100, "At most one hundred tokens"),
        ("token_amount", 5000, "Send 5,000 tokens"),
        ("remember_token", True, "Remember me"),
        ("token", ["abc", "def"], "The tokens are abc and def"),
        ("secretary_name", "Ann Lee", "My secretary"),
        ("password", "Open Sesame", "It is open sesame"),
        ("password", 'a"b', 'It is a"b'),
        ("password", "C:\\x", "It is C:\\x"),
    ],
)
def test_what_is_no_credential_or_stands_in_the_input(name, value, query):
    example = asked(GoldCall("f", {name: (value,)}), query=query, tools=(tool("f", **{name: {}}),))
    assert unmatchable(example) is None


def test_a_function_that_takes_any_argument_takes_the_right_one():
    schema = {"type": "object", "properties": {}, "additionalProperties": True}
    open_tool = Tool("f", "", normalise_parameters(schema))
    assert unmatchable(asked(GoldCall("f", {"x": (1,)}), tools=(open_tool,))) is None


def test_where_nothing_is_labelled_or_no_call_is_right_nothing_is_unmatchable():
    assert unmatchable(asked()) is None
    assert unmatchable(replace(asked(), gold=None)) is None


def test_duplicates_have_the_conversation_and_the_functions_of_another():
    first = asked()
    assert fingerprint(first) == fingerprint(replace(first, id="b", gold=None, tools=(LOGIN, RAIN)))
    system = replace(first, messages=({"role": "system", "content": "Be brief."}, *first.messages))
    said = ({"role": "user", "content": "Hm"}, {"role": "assistant", "content": "Yes?"}, *first.messages)
    others = [system, replace(first, messages=said), replace(first, tools=(RAIN,)), asked(tools=(tool("rain"), LOGIN))]
    assert len({fingerprint(example) for example in (first, *others)}) == 5


def test_counts():
    examples = [asked(), asked(GoldCall("snow", {})), asked(GoldCall("rain", {}), GoldCall("rain", {}), tools=(RAIN,))]
    assert count_faults([*examples, asked(tools=())]) == Faults(1, 1, 1, 1, 1)
    assert count_faults([]) == Faults()


def test_loose_types():
    number = tool("f", n={"type": "number"})
    loose, right = (asked(GoldCall("f", {"n": (value,)}), tools=(number,)) for value in ("40.7", 40.7))
    optional = asked(GoldCall("f", {"n": ("40.7",)}, frozenset({"n"})), tools=(number,))
    assert [count_faults([example]).loose for example in (loose, right, optional)] == [1, 0, 0]
