"""The whole loop with a small random model: complete records that depend on their own input alone."""

from dataclasses import fields, replace
from functools import lru_cache

import jax
import numpy as np
import pytest

from tiny_runs import (
    ADD,
    EXAMPLES,
    GREET,
    MARKED,
    TASK,
    example,
    gate,
    settings,
    task_of,
    timeless,
    tiny_model,
    untimed,
    with_template,
)
from ttsi_jax import adaptation, loop
from ttsi_jax.batching.waves import adapt_and_score
from ttsi_jax.loop import Loop, run
from ttsi_jax.model.generation import decode_wave
from ttsi_jax.model.scoring import prefill_wave, score_wave
from ttsi_jax.runs.clock import CompileClock
from ttsi_jax.runs.record import Record, to_json
from ttsi_jax.synthesis import REQUEST, SynthesisConfig, Synthesizer, Synthetic
from ttsi_jax.tasks import Call, Example, GoldCall, Task, Tool, normalise_parameters
from ttsi_jax.uncertainty import gate_wave

MODEL = tiny_model()
KINDS = [(form, scope, "tt-si") for form in ("keys", "free") for scope in ("suffix", "all")]
KINDS += [(form, "suffix", "base") for form in ("keys", "free")]
LABELS = ("gold", "unmatchable", "pick_correct_base", "pick_correct", "tool_correct_base", "tool_correct",
          "call_correct_base", "call_correct")  # fmt: skip


@lru_cache
def result(form: str, scope: str, method: str) -> loop.Result:
    return run(MODEL, TASK, settings(form, scope, method))


def records(task: Task = TASK, *kind: str, **changes) -> list[Record]:
    return run(MODEL, task, settings(*kind, **changes)).records


@pytest.fixture(scope="module")
def usual() -> dict[str, Record]:
    """Records of the usual run, keys and suffix, without their seconds."""
    return untimed(result("keys", "suffix", "tt-si").records)


@pytest.fixture(scope="module")
def tau(usual) -> float:
    """Four of the seven inputs are less certain than this."""
    certainties = sorted(record.uncertainty for record in usual.values())
    return (certainties[3] + certainties[4]) / 2


# Records.


@pytest.mark.parametrize("kind", KINDS, ids="-".join)
def test_every_input_has_a_complete_record_in_its_place(kind):
    form, _, method = kind
    found, summary = result(*kind)
    assert [record.id for record in found] == [one.id for one in EXAMPLES]
    for record, one in zip(found, EXAMPLES, strict=True):
        names = [tool.name for tool in one.tools]
        assert (record.task, record.query, record.candidates, record.error) == ("tiny", one.query, names, None)
        assert record.n_prompt_tokens > 100
        assert len(record.log_likelihoods) == len(record.probabilities) == len(names)
        assert sum(record.probabilities) == pytest.approx(1, abs=1e-5)
        top = sorted(record.probabilities)[-2:]
        assert record.uncertainty == pytest.approx(top[1] - top[0], abs=1e-6)
        assert record.uncertain is True, "tau is above 1"
        assert record.pick_base == names[int(np.argmax(record.log_likelihoods))] and record.pick in names
        assert record.text_base is not None
        assert record.reverted is False
        if form == "keys":
            assert record.base_calls[0]["name"] == record.pick_base
        assert all(getattr(record, name) is None for name in LABELS) == (one.gold is None)
        assert "<|im_end|>" not in to_json(record), "stops are no text"
        base_stages = {"score", "answer"} if method == "base" else {"score", "base_answer", "synthesize"}
        assert base_stages <= record.seconds.keys() and all(value > 0 for value in record.seconds.values())
        assert record.tokens.keys() == record.seconds.keys() and record.tokens["score"] >= record.n_prompt_tokens
        if record.adapted:
            assert record.tokens["adapt"] > 3 * record.n_prompt_tokens
            assert record.seconds.keys() == base_stages | {"adapt", "answer"}
            assert record.calls == record.adapted_calls and record.text_adapted is not None
            assert sum(pair["accepted"] for pair in record.synthetic) == 1 and record.reason is None
            assert len(record.losses) == 3 and record.losses[0] == record.losses[1] > record.losses[2]
        else:
            assert (record.calls, record.pick) == (record.base_calls, record.pick_base)
            assert record.losses == [] and record.text_adapted is None and record.adapted_calls is None
    adapted = sum(record.adapted for record in found)
    assert (adapted == 0) == (method == "base")
    assert (summary["n"], summary["failed"], summary["uncertain"], summary["adapted"]) == (7, 0, 7, adapted)
    assert {"f1", "f1_base", "compile_seconds"} <= summary.keys()


def test_methods_and_scopes_share_all_that_comes_before_they_differ():
    same = ("log_likelihoods", "uncertainty", "pick_base", "text_base", "base_calls")
    for form in ("keys", "free"):
        groups = [result(*kind).records for kind in KINDS if kind[0] == form]
        for alike in zip(*groups, strict=True):
            assert len({to_json(Record("", "", "", **{name: getattr(r, name) for name in same})) for r in alike}) == 1


def test_adapting_changes_answers():
    changed = [r for kind in KINDS for r in result(*kind).records if r.adapted and r.text_adapted != r.text_base]
    assert len(changed) > 3


def test_the_final_pick_is_the_adapted_scores(monkeypatch, usual):
    adapt = loop.Waves.adapt

    def last_is_best(self, *args, **more):
        losses, scores, prompts = adapt(self, *args, **more)
        return losses, [np.arange(len(own), dtype=np.float32) for own in scores], prompts

    monkeypatch.setattr(loop.Waves, "adapt", last_is_best)
    for record in records():
        if record.adapted:
            assert record.pick == record.adapted_calls[0]["name"] == record.candidates[-1]
            assert record.pick_base == usual[record.id].pick_base


def test_the_base_is_neither_changed_nor_deleted():
    before = jax.tree.map(lambda x: np.array(x), MODEL.params)
    records(TASK, "keys", "suffix")
    records(TASK, "free", "all")
    jax.tree.map(lambda x, y: np.testing.assert_array_equal(np.asarray(x), y), MODEL.params, before)
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(MODEL.params))


@pytest.mark.parametrize("scope", ["suffix", "all"])
def test_labels_decide_nothing(scope):
    expected = result("keys", scope, "tt-si").records
    stripped = task_of(*(replace(one, gold=None) for one in EXAMPLES))
    swapped = task_of(*(replace(one, gold=(GoldCall("ping", {"x": (1,)}),)) for one in EXAMPLES))
    for task in (stripped, swapped):
        for own, theirs in zip(records(task, "keys", scope), expected, strict=True):
            blank = dict.fromkeys(LABELS)
            assert to_json(replace(timeless(own), **blank)) == to_json(replace(timeless(theirs), **blank))


# Who shares a wave, and when, does not matter.


@pytest.mark.parametrize("kind", KINDS[:4], ids="-".join)
def test_mates_and_order_change_nothing(kind):
    expected = untimed(result(*kind).records)
    assert untimed(records(task_of(*EXAMPLES[::-1]), *kind)) == expected
    for one in (EXAMPLES[1], EXAMPLES[4]):
        differ_in_roundings(untimed(records(task_of(one), *kind)), {one.id: expected[one.id]})


def differ_in_roundings(found: dict[str, Record], expected: dict[str, Record]) -> None:
    """All fields are equal, and floats are within 1e-4: another wave size or other padding."""
    assert found.keys() == expected.keys()
    for id, record in found.items():
        for name in [field.name for field in fields(Record)]:
            own, theirs = getattr(record, name), getattr(expected[id], name)
            if name in ("log_likelihoods", "probabilities", "uncertainty", "losses"):
                np.testing.assert_allclose(own, theirs, atol=1e-4)
            elif name == "evidence":
                assert own == pytest.approx(theirs, abs=1e-4)
            else:
                assert own == theirs, name


def test_another_wave_size_changes_only_roundings(usual):
    before = programs()
    differ_in_roundings(untimed(records(wave=2)), usual)
    new = {name: n - before[name] for name, n in programs().items()}
    assert new["decode_wave"] <= 2 and max(new[name] for name in new if name != "decode_wave") <= 1


def test_inputs_with_one_prefix_in_common_give_what_they_give_with_copies_of_it():
    alike = task_of(*(example(str(i), query) for i, query in enumerate(["Hi", "1 and 2?", "Greet Bo", "Sum up"])))
    differ_in_roundings(untimed(records(alike, wave=2)), untimed(records(alike, wave=4)))


def test_the_first_cycle_and_later_ones_are_alike(usual):
    one = Loop(MODEL, settings(), lambda stage, done, known: None, CompileClock())
    for _ in range(3):
        assert untimed(one.records(TASK)) == usual


def test_another_seed_writes_other_requests(usual):
    found = untimed(records(seed=1))
    assert [r.synthetic for r in found.values()] != [r.synthetic for r in usual.values()]
    assert [r.log_likelihoods for r in found.values()] == [r.log_likelihoods for r in usual.values()]


# Gate.


@pytest.mark.parametrize(("select", "wanted"), [("uncertain", {True}), ("certain", {False}), ("all", {True, False})])
def test_the_gate_selects(usual, tau, select, wanted):
    found = untimed(records(**gate(tau=tau, select=select)))
    assert sum(record.uncertain for record in found.values()) == 4
    for id, record in found.items():
        assert record.uncertain == (record.uncertainty < tau)
        if record.uncertain in wanted:
            assert record == replace(usual[id], uncertain=record.uncertain)
        else:
            assert not record.adapted and record.synthetic == [] and record.reason is None
            assert (record.pick, record.calls) == (usual[id].pick_base, usual[id].base_calls)


def test_scores_may_be_means(usual):
    for record in records(**gate(score="mean"), method="base"):
        lengths = [len(MODEL.tokenizer.encode(f'{name}"')) for name in record.candidates]
        np.testing.assert_allclose(
            record.log_likelihoods, np.array(usual[record.id].log_likelihoods) / lengths, rtol=1e-5
        )


# Synthesis.


def test_pairs_are_recorded_with_their_reasons():
    synthesis = SynthesisConfig(form="pair", k=2)
    found = records(TASK, "free", "suffix", synthesis=synthesis)
    reasons = {pair["reason"] for record in found for pair in record.synthetic}
    assert {None, "the request repeats another one"} < reasons
    for record in found:
        accepted = [pair for pair in record.synthetic if pair["accepted"]]
        assert all(pair["accepted"] == (pair["reason"] is None) for pair in record.synthetic)
        assert len(record.synthetic) <= 6 and (len(record.synthetic) == 6 or len(accepted) == 2)
        assert len({pair["query"] for pair in accepted}) == len(accepted)
        assert record.adapted == bool(accepted) and len(record.losses) == 3 * len(accepted)
        if not accepted:
            assert record.reason == "no usable pair in 6 tries" and record.calls == record.base_calls


def test_the_model_answers_a_request_again_where_a_check_asks_for_it():
    checks = ("schema", "copy", "round-trip", "agreement")
    asking = replace(settings().synthesis, checks=checks, labels=3, temperature=1.5)
    found, summary = run(MODEL, TASK, settings(synthesis=asking))
    dropped = [pair for record in found for pair in record.synthetic if not pair["accepted"]]
    by_check = {check: sum(pair["check"] == check for pair in dropped) for check in checks}
    assert by_check["agreement"] > 0, "at this temperature labels differ"
    assert by_check["round-trip"] == 0, "with the form `keys` the label is the answer itself"
    assert summary["rejections"].items() >= {k: n for k, n in by_check.items() if n}.items()
    assert sum(summary["rejections"].values()) == len(dropped)
    unasked = untimed(records(synthesis=replace(asking, checks=("schema", "copy"))))
    asked = [r for r in found if any(p["accepted"] or p["check"] == "agreement" for p in r.synthetic)]
    assert asked
    for record in asked:
        assert record.tokens["synthesize"] > unasked[record.id].tokens["synthesize"]


def test_a_copy_gets_no_label():
    """Nobody is asked for the call of a pair that is dropped in any case."""
    [copied] = run(MODEL, task_of(EXAMPLES[0]), settings(), **requests("What is 1 and 2?")).records
    assert [(pair["check"], pair["calls"]) for pair in copied.synthetic] == [("copy", [])] * 3


def test_two_pairs_train_in_turn():
    found = records(synthesis=replace(settings().synthesis, k=2, temperature=1.5))
    both = [record for record in found if sum(pair["accepted"] for pair in record.synthetic) == 2]
    assert both
    for record in both:
        assert len(record.losses) == 6 and record.losses[0] != record.losses[1]


def requests(text: str) -> dict[str, Synthesizer]:
    """A synthesizer of this one request, as an argument of `run`."""
    return {"synthesizer": REQUEST._replace(read=lambda _: Synthetic(text, ()))}


def test_no_usable_pair_keeps_the_bases_answer(usual):
    for record in run(MODEL, TASK, settings(), **requests("")).records:
        assert (record.adapted, record.reason) == (False, "no usable pair in 3 tries")
        assert {pair["reason"] for pair in record.synthetic} <= {
            "the request is empty",
            "the request was cut at 8 tokens",
        }
        assert record.calls == record.base_calls == usual[record.id].base_calls


def test_a_request_that_does_not_fit_is_dropped():
    [record] = run(MODEL, task_of(EXAMPLES[0]), settings(), **requests("€ " * 200)).records
    assert {pair["reason"] for pair in record.synthetic} == {"the request is too long"}


@pytest.mark.parametrize("calls", [(), (Call("add", {"a": 1, "b": 2}),)])
def test_a_request_that_the_template_refuses_is_dropped(calls):
    model = with_template("{% if m['content'] == 'no' %}{{ raise_exception('not that') }}{% endif %}")
    refused = lambda example, attempt: Synthetic("no", calls)  # noqa: E731
    [record] = run(model, task_of(EXAMPLES[0]), settings(), synthesizer=refused).records
    assert record.error is None and record.calls == record.base_calls
    assert [pair["reason"].rpartition(": ")[2] for pair in record.synthetic] == ["not that"] * 3


def test_a_pair_that_does_not_fit_the_context_is_dropped():
    long = Synthetic("long " * 2000, (Call("add", {"a": 1, "b": 2}),))
    [record] = run(MODEL, task_of(EXAMPLES[0]), settings(), synthesizer=lambda example, attempt: long).records
    assert {pair["reason"] for pair in record.synthetic} == {"the pair does not fit the model's context"}


# Inputs that cannot run, and training that fails.


def test_a_tool_list_of_3000_tokens_is_read_by_all_its_inputs():
    """As in NexusRaven."""
    schema = normalise_parameters({"query": {"type": "List[str]", "description": "What to search for. " * 60}})
    tools = tuple(Tool(f"search{number}", "", schema) for number in range(4))
    asked = [example(f"long-{number}", f"Find {number}", tools, gold="search1") for number in range(2)]
    found = records(task_of(*asked), "keys", "suffix", "base", wave=2)
    assert [record.error for record in found] == [None, None]
    assert all(3000 < record.n_prompt_tokens < 4096 and len(record.log_likelihoods) == 4 for record in found)
    alone = records(task_of(asked[1]), "keys", "suffix", "base", wave=2)
    assert timeless(alone[0]) == timeless(found[1])


def test_inputs_that_cannot_run_are_named_and_the_others_do(usual):
    model = with_template("{% if 'refuse me' in m['content'] %}{{ raise_exception('refused') }}{% endif %}")
    bad = {
        "empty": (example("empty", "hi", ()), "no candidate function"),
        "long": (example("long", "€ " * 3000), "the model's context is 4096"),
        "refused": (example("refused", "refuse me"), "refuses input 'refused'"),
    }
    mixed = task_of(bad["empty"][0], *EXAMPLES[:3], bad["long"][0], *EXAMPLES[3:], bad["refused"][0])
    found, summary = run(model, mixed, settings())
    assert [record.id for record in found] == [one.id for one in mixed.examples]
    for record in found:
        if record.id in bad:
            assert bad[record.id][1] in record.error
            assert record.calls is None and record.seconds == {} and record.query == bad[record.id][0].query
        else:
            assert timeless(record) == usual[record.id]
    assert (summary["n"], summary["failed"]) == (10, 3)


def test_an_input_with_one_candidate_is_certain():
    found, summary = run(MODEL, task_of(example("one", "hi", (ADD,))), settings(**gate(tau=0.95)))
    assert found[0].uncertainty == 1.0 and found[0].uncertain is False and found[0].pick == "add"
    assert found[0].probabilities == [1.0] and summary["one_candidate"] == 1


def test_training_that_diverges_keeps_the_base_and_leaves_the_neighbours_alone():
    marked = replace(EXAMPLES[1], tools=(ADD, MARKED))
    task = task_of(EXAMPLES[0], marked, *EXAMPLES[2:4])
    expected = untimed(records(task, "keys", "all"))
    found = untimed(
        records(task, "keys", "all", adapt=replace(settings(scope="all").adapt, rule="tiny_runs:diverging"))
    )
    assert expected[marked.id].adapted
    for id, record in found.items():
        if id == marked.id:
            assert (record.reverted, record.reason) == (True, "training diverged: a loss or a score is not finite")
            assert (record.calls, record.pick) == (record.base_calls, record.pick_base)
            assert np.isnan(record.losses).all() and record.error is None
        else:
            assert record.adapted == expected[id].adapted
            np.testing.assert_allclose(record.losses, expected[id].losses, atol=1e-4)
            assert record.adapted_calls == expected[id].adapted_calls


def test_a_score_that_is_not_finite_is_an_error_of_its_input(monkeypatch, usual):
    score = loop.Waves.score

    def broken(self, rows, names):
        scores, prompts = score(self, rows, names)
        return [own * np.nan if len(own) == 3 else own for own in scores], prompts

    monkeypatch.setattr(loop.Waves, "score", broken)
    for record in records():
        if len(record.candidates) == 3:
            assert record.error == "the model gives a score that is not finite"
        else:
            assert timeless(record) == usual[record.id]


# Programs.


def programs() -> dict[str, int]:
    jitted = (score_wave, decode_wave, prefill_wave, adapt_and_score, adaptation._init_adapters, gate_wave)
    return {program.__name__: program._cache_size() for program in jitted}


def test_other_inputs_and_settings_of_the_same_shapes_compile_nothing(usual):
    before = programs()
    assert before["score_wave"] > 0 and before["adapt_and_score"] > 0
    other = task_of(
        *(replace(one, id=f"other {i}", messages=EXAMPLES[-1 - i].messages) for i, one in enumerate(EXAMPLES))
    )
    base = settings()
    records(
        other, **gate(tau=1.05), seed=7, adapt=replace(base.adapt, lr=1e-2),
        synthesis=replace(base.synthesis, temperature=1.0, top_p=0.5, tries=2, max_tokens=6),
        answer=replace(base.answer, value_tokens=3),
    )  # fmt: skip
    assert programs() == before


def test_a_dialogue_that_the_assistant_ends_goes_through():
    turns = ({"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Tool result: 3"})
    dialogue = Example("dialogue", turns, (ADD, GREET), None)
    found = records(task_of(EXAMPLES[0], dialogue), method="base")
    assert [record.error for record in found] == [None, None]
    assert found[1].query == [*turns] and found[1].request == "Hi"
