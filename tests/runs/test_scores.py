import pytest

from ttsi_jax.runs.record import Record
from ttsi_jax.runs.scores import begun, scored
from ttsi_jax.tasks import Example, GoldCall, Tool, normalise_parameters
from ttsi_jax.tasks.prompts import ANY_NUMBER

TOOL = Tool("f", "", normalise_parameters({}))
ASKED = ({"role": "user", "content": "Go."},)
WORDS, EMPTY_LIST, CALL, BROKEN = "I cannot do that.", "[]", {"name": "f", "arguments": {}}, '{"name": "f", "argum'


def answered(text_base, base_calls, text_adapted=None, adapted_calls=None, **values):
    texts = {"text_base": text_base, "base_calls": base_calls, "text_adapted": text_adapted}
    return Record("a", "t", "Go.", pick_base="f", pick="f", **texts, adapted_calls=adapted_calls, **values)


@pytest.mark.parametrize(
    ("text", "calls", "right"),
    [(WORDS, None, True), ("", None, True), (EMPTY_LIST, [], True), (BROKEN, None, False), ("f()", [CALL], False)],
)
def test_where_no_call_is_right_an_answer_without_one_is(text, calls, right):
    record = scored(answered(text, calls), ())
    assert (record.tool_correct, record.call_correct, record.call_correct_base) == (right, right, right)
    assert record.gold == [] and record.calls == calls
    assert record.pick_correct is record.pick_correct_base is None  # a pick is always a function


def test_each_side_is_judged_by_its_own_words():
    fixed = scored(answered("f()", [CALL], WORDS, None, adapted=True), ())
    assert (fixed.call_correct_base, fixed.call_correct) == (False, True)
    broken = scored(answered(WORDS, None, BROKEN, None, adapted=True), ())
    assert (broken.call_correct_base, broken.call_correct) == (True, False)
    reverted = scored(answered(WORDS, None, BROKEN, None, adapted=True, reverted=True), ())
    assert (reverted.call_correct_base, reverted.call_correct) == (True, True)


def test_where_a_call_is_right_words_are_wrong():
    record = scored(answered(WORDS, None), (GoldCall("f", {}),))
    assert record.call_correct is False and record.tool_correct is False


def test_several_right_calls_may_come_in_any_order_but_all_must():
    gold = tuple(GoldCall("f", {"n": (n,)}) for n in (1, 1, 2))
    calls = [{"name": "f", "arguments": {"n": n}} for n in (2, 1, 1)]
    assert scored(answered("", calls), gold).call_correct
    assert not scored(answered("", calls[:2]), gold).call_correct
    assert not scored(answered("", [*calls, calls[0]]), gold).call_correct
    twice = scored(answered("", [calls[0], *calls[:2]]), gold)
    assert (twice.tool_correct, twice.call_correct) == (True, False)


def test_a_label_leaves_out_what_a_right_call_may_leave_out():
    """BFCL marks such an argument by "" among its values, often the first, which is no value of the argument."""
    gold = GoldCall("f", {"n": (1, 2), "unit": ("", "km"), "round": (True, "")}, frozenset({"unit", "round"}))
    assert scored(answered("", [CALL]), (gold,)).gold == [{"name": "f", "arguments": {"n": 1}}]


def test_the_beginning_of_a_record():
    record = begun(Example("a", ASKED, (TOOL,), (GoldCall("g", {}),)), "t")
    assert (record.id, record.task, record.query, record.candidates, record.error) == ("a", "t", "Go.", ["f"], None)
    assert record.unmatchable == "the right function 'g' is not listed" and record.fingerprint
    assert begun(Example("a", ASKED, (), None), "t").error == "the input has no candidate function"
    dialogue = ({"role": "system", "content": "Be brief."}, *ASKED, {"role": "assistant", "content": "Where to?"})
    assert begun(Example("a", dialogue, (TOOL,), None), "t").query == [*dialogue]
    assert begun(Example("a", dialogue[:2], (TOOL,), None), "t").query == [*dialogue[:2]]
    told = {"role": "system", "content": ANY_NUMBER}  # the library's own word
    assert begun(Example("a", (told, *ASKED), (TOOL,), None), "t").query == "Go."
    broken = begun(Example("line-3", (), (), None, problem="a.jsonl:3: not valid JSON"), "t")
    assert (broken.error, broken.fingerprint, broken.query) == ("a.jsonl:3: not valid JSON", None, "")
