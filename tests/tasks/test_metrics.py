import pytest
from hypothesis import given
from hypothesis import strategies as st

from ttsi_jax.tasks.example import Call, GoldCall
from ttsi_jax.tasks.metrics import call_correct, micro_f1, normalise, tool_correct


def equal(left, right):
    return call_correct([Call("f", {"a": left})], [GoldCall("f", {"a": (right,)})])


@pytest.mark.parametrize(
    ("left", "right"),
    [
        ("40.7", 40.7),
        (5.0, 5),
        ("5", 5),
        (" 5 ", 5.0),
        ("-3", -3),
        ("1e3", 1000),
        (-0.0, 0),
        ("New York", "new-york"),
        ("April 1, 2024", "april 1 2024"),
        ("555-1234", "5551234"),
        ('it\'s (a) "b"', "ITS A B"),
        ("straße", "STRASSE"),
        (["A b", 1], ["ab", "1.0"]),
        ({"k": ["X"]}, {"k": ["x"]}),
        (float(2**70), 2**70),
        (None, None),
        (True, True),
    ],
)
def test_equal_values(left, right):
    assert equal(left, right)
    assert equal(right, left)


@pytest.mark.parametrize(
    ("left", "right"),
    [
        (True, 1),
        (False, 0),
        (False, None),
        ("", None),
        ("true", True),
        ("007", 7),
        ("12.5", "125"),
        ("/", "*"),
        ("-", "+"),
        ("-", ""),
        ([1, 2], [2, 1]),
        ([1], 1),
        ([[True]], [[1]]),
        ({"k": 1}, {"K": 1}),
        ({"k": 1}, {"k": 1, "l": 2}),
        ("12345678901234567890", "12345678901234567891"),
        ("a", "b"),
    ],
)
def test_different_values(left, right):
    assert not equal(left, right)
    assert not equal(right, left)


def test_normalised_forms():
    assert normalise([" 5.0", 2.5, "A-b", True, None, {"K": "1"}, (1,)]) == [5, 2.5, "ab", True, None, {"K": 1}, [1]]
    assert normalise(True) is True


TWO = (
    GoldCall("f", {"a": (1, 2), "b": ("x",)}, frozenset({"b"})),
    GoldCall("f", {"a": (1,)}),
)


@pytest.mark.parametrize(
    ("calls", "right"),
    [
        # Matching the first call with the first gold call greedily would fail here.
        ([Call("f", {"a": 1}), Call("f", {"a": 2})], True),
        ([Call("f", {"a": 2}), Call("f", {"a": 1})], True),
        ([Call("f", {"a": 1}), Call("f", {"a": 2, "b": "X"})], True),
        ([Call("f", {"a": 1}), Call("f", {"a": 1})], True),
        ([Call("f", {"a": 2}), Call("f", {"a": 2})], False),
        ([Call("f", {"a": 1, "b": "x"}), Call("f", {"a": 2})], False),
        ([Call("f", {"a": 1}), Call("f", {"b": "x"})], False),
        ([Call("f", {"a": 1}), Call("f", {"a": 2, "c": 1})], False),
        ([Call("f", {"a": 1}), Call("f", {"a": 2, "b": "y"})], False),
        ([Call("f", {"a": 1})], False),
        ([Call("f", {"a": 1}), Call("f", {"a": 2}), Call("f", {"a": 2})], False),
        ([], False),
        (None, False),
    ],
)
def test_call_correct(calls, right):
    assert call_correct(calls, TWO) is right


def test_tool_correct_counts_names():
    assert tool_correct([Call("f", {}), Call("f", {"z": 1})], TWO)
    assert not tool_correct([Call("f", {})], TWO)
    assert not tool_correct([Call("f", {}), Call("g", {})], TWO)
    assert not tool_correct(None, TWO)


def test_where_no_call_is_right():
    for correct in (tool_correct, call_correct):
        assert correct([], ())
        assert not correct([Call("f", {})], ())
        assert not correct(None, ())


def test_micro_f1_by_hand():
    gold = (GoldCall("f", {"a": (1,), "b": ("x", "y")}), GoldCall("g", {"c": (3,)}))
    calls = [Call("f", {"a": 1, "b": "Y", "z": 0}), Call("h", {"c": 3})]
    scores = micro_f1([(calls, gold), (None, gold)])
    assert scores["name"] == pytest.approx(2 * 1 / (2 + 4))
    assert scores["arguments"] == pytest.approx(2 * 2 / (4 + 6))


def test_micro_f1_of_optional_arguments():
    gold = [GoldCall("f", {"a": (1,), "b": (2, "")}, frozenset({"b"}))]
    assert micro_f1([([Call("f", {"a": 1})], gold)])["arguments"] == 1
    assert micro_f1([([Call("f", {"a": 1, "b": 2})], gold)])["arguments"] == 1
    assert micro_f1([([Call("f", {"a": 1, "b": 3})], gold)])["arguments"] == pytest.approx(2 / 3)


def test_micro_f1_gives_a_value_to_the_call_that_needs_it():
    gold = [GoldCall("f", {"a": (1,)}, frozenset({"a"})), GoldCall("f", {"a": (1,)})]
    assert micro_f1([([Call("f", {"a": 1}), Call("f", {})], gold)])["arguments"] == 1


def test_micro_f1_of_repeated_values_counts_each_once():
    gold = [GoldCall("f", {"a": (1,)}), GoldCall("f", {"a": (2,)})]
    assert micro_f1([([Call("f", {"a": 1}), Call("f", {"a": 1})], gold)])["arguments"] == pytest.approx(0.5)


def test_micro_f1_of_nothing_is_zero():
    assert micro_f1([]) == micro_f1([([], ())]) == {"name": 0.0, "arguments": 0.0}


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)
names = st.sampled_from("fg")


@st.composite
def gold_calls(draw):
    accepted = draw(st.dictionaries(st.sampled_from("abc"), st.lists(values, min_size=1, max_size=3).map(tuple)))
    return GoldCall(draw(names), accepted, frozenset(draw(st.sets(st.sampled_from(sorted(accepted) or ["a"])))))


@st.composite
def gold_and_right_calls(draw):
    gold = draw(st.lists(gold_calls(), max_size=4))
    calls = [
        Call(
            right.name,
            {
                name: draw(st.sampled_from(accepted))
                for name, accepted in right.arguments.items()
                if name not in right.optional or draw(st.booleans())
            },
        )
        for right in gold
    ]
    return gold, draw(st.permutations(calls))


some_calls = st.lists(st.builds(Call, names, st.dictionaries(st.sampled_from("ab"), st.integers(0, 1))), max_size=4)
some_gold = st.lists(
    st.builds(
        GoldCall,
        names,
        st.dictionaries(st.sampled_from("ab"), st.lists(st.integers(0, 1), min_size=1, max_size=2).map(tuple)),
        st.frozensets(st.just("a")),
    ),
    max_size=4,
)


@given(values)
def test_normalising_twice_changes_nothing(value):
    once = normalise(value)
    assert repr(normalise(once)) == repr(once)


@given(values)
def test_every_value_equals_itself(value):
    assert equal(value, value)


@given(gold_and_right_calls())
def test_right_calls_in_any_order_are_right(pair):
    gold, calls = pair
    assert tool_correct(calls, gold)
    assert call_correct(calls, gold)
    scores = micro_f1([(calls, gold)])
    assert scores["name"] == (1 if calls else 0)
    assert scores["arguments"] == (1 if any(call.arguments for call in calls) else 0)


@given(some_calls, some_gold, st.randoms(use_true_random=False))
def test_order_never_matters(calls, gold, random):
    shuffled_calls, shuffled_gold = random.sample(calls, len(calls)), random.sample(gold, len(gold))
    assert call_correct(calls, gold) == call_correct(shuffled_calls, shuffled_gold)
    assert tool_correct(calls, gold) == tool_correct(shuffled_calls, shuffled_gold)
    assert micro_f1([(calls, gold)]) == micro_f1([(shuffled_calls, shuffled_gold)])


@given(some_calls, some_gold)
def test_bounds(calls, gold):
    if call_correct(calls, gold):
        assert tool_correct(calls, gold)
    scores = micro_f1([(calls, gold)])
    assert 0 <= scores["name"] <= 1
    assert 0 <= scores["arguments"] <= 1
