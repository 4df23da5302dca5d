"""Whole runs whose calls are guided."""

import json
from dataclasses import replace

import numpy as np
import pytest

from tiny_runs import ADD, EXAMPLES, GREET, ORDER, PING, STRING, TASK, example, settings, task_of, tiny_model, tool
from ttsi_jax import config as configuration
from ttsi_jax.answering import AnswerConfig
from ttsi_jax.config import RunConfig, automatic
from ttsi_jax.errors import InputError
from ttsi_jax.loop import run
from ttsi_jax.synthesis import SynthesisConfig, Synthetic
from ttsi_jax.tasks import Call, check_call, read_calls
from ttsi_jax.tasks.prompts import ANY_NUMBER

MODEL = tiny_model()
ANSWERS = AnswerConfig(form="guided", max_tokens=80)
GUIDED = settings(answer=ANSWERS, synthesis=SynthesisConfig(form="pair", temperature=1.5))


@pytest.fixture(scope="module")
def usual():
    pytest.importorskip("llguidance")
    return run(MODEL, TASK, GUIDED).records


def valid(call, tools) -> bool:
    return check_call(Call(**call), tools) is None


def test_every_answer_and_every_pair_holds_a_valid_call(usual):
    for record, one in zip(usual, EXAMPLES, strict=True):
        assert record.error is None
        for calls in (record.base_calls, record.adapted_calls, record.calls):
            assert calls is None or (len(calls) == 1 and valid(calls[0], one.tools))
        assert record.base_calls is not None and (record.adapted_calls is not None) == record.adapted
        for pair in record.synthetic:
            assert pair["calls"] and valid(pair["calls"][0], one.tools)
    assert sum(record.adapted for record in usual) > 3
    assert any(record.text_adapted != record.text_base for record in usual if record.adapted)


def test_who_shares_a_wave_changes_nothing(usual):
    """Alone, the input has other lengths of padding, so numbers agree but for their last digits."""
    [alone], together = run(MODEL, task_of(EXAMPLES[1]), GUIDED).records, usual[1]
    for field in ("synthetic", "text_base", "text_adapted", "calls", "reason"):
        assert getattr(alone, field) == getattr(together, field)


def test_guided_is_free_where_free_answers_are_calls():
    pytest.importorskip("llguidance")
    task = task_of(*(example(str(i), f"What is {i} and {i * i}?" if i % 2 else f"Hello {i * 7}") for i in range(16)))
    base = replace(GUIDED, method="base")
    free = run(MODEL, task, replace(base, answer=replace(ANSWERS, form="free"))).records
    equal = 0
    for own, theirs in zip(run(MODEL, task, base).records, free, strict=True):
        text, cut = theirs.text_base, theirs.text_base.find("}}") + 2
        if cut > 1 and read_calls(text[:cut]) and valid(json.loads(text[:cut]), (ADD, GREET)):
            assert own.text_base == text[:cut]  # the guided answer ends where the call does
            equal += 1
    assert equal > 0


def test_a_request_of_any_words_is_labelled_by_a_guided_call():
    pytest.importorskip("llguidance")
    config = replace(GUIDED, synthesis=replace(settings().synthesis, temperature=1.5))
    labelled = [
        (pair, one.tools)
        for record, one in zip(run(MODEL, TASK, config).records, EXAMPLES, strict=True)
        for pair in record.synthetic
        if pair["calls"]
    ]
    assert labelled and all(valid(pair["calls"][0], tools) for pair, tools in labelled)


@pytest.mark.parametrize("form", ["request", "pair"])
def test_a_named_function_is_the_only_one_that_a_guided_pair_may_call(form):
    pytest.importorskip("llguidance")
    config = replace(GUIDED, synthesis=replace(GUIDED.synthesis, form=form, label="channel", checks=("schema",)))
    labels = 0
    for record, one in zip(run(MODEL, TASK, config).records, EXAMPLES, strict=True):
        likeliest = one.tools[int(np.argmax(record.channel))]
        for pair in record.synthetic:
            assert all(valid(call, [likeliest]) for call in pair["calls"])
            labels += len(one.tools) > 1 and len(pair["calls"])
    assert labels


def test_answers_that_a_loss_samples_call_the_pairs_function():
    pytest.importorskip("llguidance")
    config = replace(GUIDED, adapt=replace(GUIDED.adapt, loss="reinforce", samples=6))
    config = replace(config, synthesis=replace(config.synthesis, checks=("schema",)))
    pair = Synthetic("Say hi to Cy", (Call("greet", {"name": "Cy"}),))
    [record] = run(MODEL, task_of(EXAMPLES[0]), config, synthesizer=lambda *_: pair).records
    samples = record.synthetic[0]["samples"]
    assert len(samples) == 6 and {read_calls(sample["text"])[0].name for sample in samples} == {"greet"}


def test_a_function_whose_call_is_too_long_to_be_sampled():
    """A loss that samples answers goes on without; the grammar of all functions has a shorter one."""
    pytest.importorskip("llguidance")
    long = tool("g" * 80, name=STRING)
    config = replace(GUIDED, adapt=replace(GUIDED.adapt, loss="reinforce", samples=2))
    config = replace(config, answer=replace(config.answer, max_tokens=60), wave=1)
    config = replace(config, synthesis=replace(config.synthesis, checks=("schema",)))
    pair = Synthetic("Say hi to Cy", (Call(long.name, {"name": "Cy"}),))
    one = replace(EXAMPLES[0], tools=(ADD, long))
    [record] = run(MODEL, task_of(one), config, synthesizer=lambda *_: pair).records
    assert record.error is None and record.synthetic[0]["samples"] == [{"text": "", "reward": 0.0}] * 2


def test_where_several_calls_may_be_right_any_number_is_answered_and_pairs_hold_one():
    pytest.importorskip("llguidance")
    told = [replace(one, messages=({"role": "system", "content": ANY_NUMBER}, *one.messages)) for one in EXAMPLES]
    sampled = replace(ANSWERS, samples=4, temperature=3.0, top_p=1.0)
    lengths = set()
    for record, one in zip(run(MODEL, task_of(*told), replace(GUIDED, answer=sampled)).records, told, strict=True):
        for text in (record.text_base, *record.samples_base):
            calls = read_calls(text)
            assert calls is not None and all(check_call(call, one.tools) is None for call in calls)
            lengths.add(len(calls))
        assert all(len(pair["calls"]) == 1 for pair in record.synthetic)
    assert {1, 2} <= lengths


def test_an_input_whose_calls_are_longer_than_the_limit_is_named():
    pytest.importorskip("llguidance")
    config = replace(GUIDED, method="base", answer=replace(ANSWERS, max_tokens=4))
    shorter = replace(config, answer=replace(ANSWERS, max_tokens=18))
    task = task_of(example("one", "hi", (PING,)), example("two", "hi", (ORDER,)))
    for settings_, failed in ((config, [True, True]), (shorter, [False, True])):
        found = run(MODEL, task, settings_).records
        assert [record.error is not None for record in found] == failed
        assert all("more than the limit of" in record.error for record in found if record.error)


def test_without_llguidance_guided_is_refused_and_auto_is_keys(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "llguidance.hf", None)
    with pytest.raises(InputError, match="guided calls need llguidance: pip install"):
        run(MODEL, TASK, GUIDED)
    auto = RunConfig(answer=AnswerConfig(form="auto"))
    monkeypatch.setattr(configuration.importlib.util, "find_spec", lambda name: None)
    assert automatic(auto).answer.form == "keys" and automatic(GUIDED) is GUIDED
    monkeypatch.setattr(configuration.importlib.util, "find_spec", lambda name: name == "llguidance")
    assert automatic(auto).answer.form == "guided"
