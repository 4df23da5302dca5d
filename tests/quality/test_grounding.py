"""What follows from a request, and what does not."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tiny_runs import BOOLEAN, STRING, tool
from ttsi_jax.quality.grounding import ungrounded
from ttsi_jax.tasks import Call

TOOLS = [
    tool(
        "f",
        x={},
        unit={"type": "string", "enum": ["meter", "foot"]},
        wait={"type": "integer", "default": 42},
        flag=BOOLEAN,
        y=STRING,
    )
]


def follows(value, request, name="x"):
    return not ungrounded(Call("f", {name: value}), request, TOOLS)


@pytest.mark.parametrize(
    ("value", "request_"),
    [
        ("Paris", "weather in paris?"),
        ("São Paulo", "Is it warm in Sao Paulo"),
        ("Zürich", "trains to Zürich"),
        ("New York City", "Restaurants in NYC"),
        ("NYC", "Restaurants in New York City"),
        ("mathematics", "a math course"),
        ("cats", "Show me a cat picture"),
        ("running", "How long was my last run"),
        ("USD", "How much is 5 dollars"),
        ("250", "for 250 people"),
        ("en", "Translate it into English"),
        ("The Lord of the Rings", "who wrote lord of the rings?"),
        (3, "three apples"),
        (3, "the third of them"),
        (21, "twenty-one days"),
        (250, "two hundred and fifty people"),
        (1500, "1,500 metres"),
        (1500, "fifteen hundred metres"),
        (2_000_000, "a prize of 2 million"),
        (1200, "one thousand two hundred"),
        (12_000, "a budget of 12k"),
        (0.05, "a rate of 5%"),
        (5, "a rate of 0.05"),
        (2.5, "2.5 hours"),
        (-3, "minus 3 degrees"),
        (1, "order a pizza"),
        (12, "a dozen eggs"),
        (0.5, "half a litre"),
        (15, "at 3 pm"),
        ("15:30", "at 3:30pm"),
        (7, "in July"),
        (0, "anything at all"),
        ("42", "number forty two"),
        ("2024-03-05", "on March 5th, 2024"),
        ("2024-03-05", "on the fifth of march"),
        ("05/03/2024", "on 5 March 2024"),
        ("2024-03-05", "tomorrow"),
        ("2024-03-05", "next Monday"),
        ("2024-03-05", "in three days"),
        ("2024-03-05", "two weeks ago"),
        ("2024-05-05", "on May 5"),
        ("12/12/2024", "on 12 December"),
        (["tea", "milk"], "buy milk and tea"),
        ({"city": "Rome", "days": 2}, "two days in Rome"),
        (True, "whatever"),
        (None, "whatever"),
        ("", "whatever"),
        ([], "whatever"),
    ],
)
def test_follows(value, request_):
    assert follows(value, request_)


@pytest.mark.parametrize(
    ("value", "request_"),
    [
        ("London", "weather in Paris"),
        ("John Smith", "greet Mary"),
        ("pepperoni", "order a pizza"),
        (7, "three apples"),
        (22, "twenty-one days"),
        (99, "a rate of 5%"),
        (8, "in July"),
        ("2024-03-05", "on June 9th"),
        (["tea", "coffee"], "buy milk and tea"),
        ({"city": "Rome", "days": 5}, "two days in Rome"),
        ("abcd", ""),
        ("999", "Weather in Paris"),
        ("7 8", "three apples"),
    ],
)
def test_does_not_follow(value, request_):
    assert not follows(value, request_)


def test_what_the_schema_proposes_needs_no_ground():
    assert follows("foot", "how far is it", "unit")
    assert follows(42, "go", "wait") and not follows(43, "go", "wait")


def test_the_first_argument_without_ground_is_named():
    call = Call("f", {"x": "Paris", "y": "Berlin"})
    assert ungrounded(call, "from paris", TOOLS) == ["y"]
    assert ungrounded(Call("unknown", {"z": "Oslo"}), "from paris", TOOLS) == ["z"]


values = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**300), 10**300) | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=12),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=4,
)  # fmt: skip


@given(values, st.text(max_size=40) | st.text("0123456789,.-/ ²½五th hundred and", max_size=40))
def test_nothing_breaks_it(value, request_):
    assert follows(value, request_) in (True, False)


@given(st.integers(0, 10**7), st.text("abc ", max_size=10))
def test_a_number_that_is_written_follows(number, text):
    assert follows(number, f"{text} {number} {text}")
    assert follows(number, f"{text} {number:,} {text}")
