"""The paper's methods as settings of one loop: votes, pairs in the prompt, pairs from elsewhere, shared parts."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest

from tiny_runs import ADD, EXAMPLES, GREET, TASK, example, gate, settings, task_of, tiny_model, untimed
from ttsi_jax.batching.shared import Shared
from ttsi_jax.batching.waves import Waves
from ttsi_jax.config import check
from ttsi_jax.errors import InputError
from ttsi_jax.loop import run
from ttsi_jax.model.scoring import score_wave
from ttsi_jax.quality.votes import vote
from ttsi_jax.runs.directory import read_records
from ttsi_jax.synthesis import SynthesisConfig, recorded
from ttsi_jax.synthesis.training import from_training
from ttsi_jax.tasks import GoldCall, Task, call_correct, read_calls
from ttsi_jax.tasks.prompts import ANY_NUMBER, PromptEncoder, answer_messages

MODEL = tiny_model()
FOUR = task_of(*(EXAMPLES[index] for index in (1, 2, 3, 5)))  # each of them writes itself a pair


def synthesis(**changes) -> dict[str, SynthesisConfig]:
    return {"synthesis": replace(settings().synthesis, **changes)}


def answers(form: str = "free", **changes):
    return {"answer": replace(settings(form).answer, temperature=1.5, top_p=1.0, **changes)}


@pytest.fixture(scope="module")
def usual():
    return run(MODEL, FOUR, settings()).records


# Votes.


@pytest.fixture(scope="module")
def voted():
    return run(MODEL, TASK, settings(**answers(samples=5, vote=True))).records


def test_the_vote_of_sampled_answers_stands_on_both_sides(voted):
    changed = 0
    for record in voted:
        greedy = run_greedy()[record.id]
        assert len(record.samples_base) == 5 and len(record.samples_adapted) == 5 * record.adapted
        winner = vote([*map(read_calls, record.samples_base)], read_calls(greedy.text_base))
        assert record.text_base == (greedy.text_base if winner is None else record.samples_base[winner])
        assert record.base_calls == (None if winner is None else [vars(c) for c in read_calls(record.text_base)])
        if record.adapted:
            assert record.text_adapted in (greedy.text_adapted, *record.samples_adapted)
        changed += record.text_base != greedy.text_base
        assert record.log_likelihoods == greedy.log_likelihoods and record.synthetic == greedy.synthetic
    assert changed and any(record.adapted for record in voted)
    assert len({text for record in voted for text in record.samples_base}) > 2, "samples differ"


def run_greedy():
    return {record.id: record for record in run(MODEL, TASK, settings("free", method="tt-si")).records}


def test_samples_without_a_vote_are_counted_and_change_nothing():
    found, summary = run(MODEL, TASK, settings(method="base", **answers(samples=3)))
    plain = run(MODEL, TASK, settings("free", method="base")).records
    for own, theirs, one in zip(found, plain, TASK.examples, strict=True):
        assert (own.text_base, own.calls) == (theirs.text_base, theirs.calls) and own.samples_adapted == []
        if one.gold:
            right = sum(call_correct(read_calls(text), one.gold) for text in own.samples_base)
            assert own.samples_right_base == own.samples_right == right
        elif one.gold is None:
            assert own.samples_right is None
    assert summary["pass_at"].keys() == {"1", "2", "3"} and summary["pass_at"] == summary["pass_at_base"]


def test_who_shares_a_wave_changes_no_sample(voted):
    [alone] = run(MODEL, task_of(EXAMPLES[1]), settings(**answers(samples=5, vote=True))).records
    assert alone.samples_base == voted[1].samples_base and alone.samples_adapted == voted[1].samples_adapted


def test_a_vote_needs_samples():
    with pytest.raises(InputError, match="--answer.samples is 0; it must be at least 1"):
        check(settings(**answers(vote=True)))


# Pairs in the prompt.


def test_pairs_may_be_shown_instead_of_trained_on(usual, monkeypatch):
    rows, score = [], Waves.score

    def noted(self, wave, *rest):
        rows.extend(wave)
        return score(self, wave, *rest)

    monkeypatch.setattr(Waves, "score", noted)
    monkeypatch.setattr(Waves, "adapt", None)  # nothing is trained
    found, summary = run(MODEL, FOUR, settings(method="tt-icl"))
    encoder = PromptEncoder(MODEL.tokenizer)
    for own, theirs, one in zip(found, usual, FOUR.examples, strict=True):
        assert own.synthetic == theirs.synthetic and own.text_base == theirs.text_base
        assert own.adapted and own.losses == [] and own.reason is None and not own.reverted
        pair = next(pair for pair in own.synthetic if pair["accepted"])
        call = json.dumps(pair["calls"][0])
        prompts = [MODEL.tokenizer.decode(row.prefix + row.suffix) for row in rows]
        with_pair = [text for text in prompts if text.count(pair["query"]) and call in text and one.query in text]
        assert len(with_pair) == 1 and with_pair[0].index(call) < with_pair[0].index(one.query)
        [row] = [row for row, text in zip(rows, prompts, strict=True) if text == with_pair[0]]
        assert row.prefix == encoder.prefix(one), "the base's cache of the prefix serves this prompt too"
    assert any(own.text_adapted != own.text_base for own in found) and summary["adapted"] == 4


def test_the_answer_with_shown_pairs_is_that_of_the_whole_prompt():
    """The prefix's cache and padding change nothing: the same prompt, as an input of its own, gives the same answer."""
    found = run(MODEL, FOUR, settings(method="tt-icl")).records
    for record, one in zip(found, FOUR.examples, strict=True):
        pair = next(pair for pair in record.synthetic if pair["accepted"])
        call = json.dumps(pair["calls"][0])
        turns = ({"role": "user", "content": pair["query"]}, {"role": "assistant", "content": call}, *one.messages)
        [whole] = run(MODEL, task_of(replace(one, messages=turns)), settings(method="base")).records
        assert (whole.text_base, whole.pick) == (record.text_adapted, record.pick)


def test_few_programs_for_longer_prompts(usual):
    run(MODEL, FOUR, settings(method="tt-icl"))
    before = score_wave._cache_size()
    run(MODEL, FOUR, settings(method="tt-icl", seed=3))
    assert score_wave._cache_size() <= before + 1  # another bucket of lengths


def test_several_pairs_are_shown_in_their_order():
    config = settings(method="tt-icl", **synthesis(k=2, temperature=1.5))
    found = run(MODEL, TASK, config).records
    two = [record for record in found if sum(pair["accepted"] for pair in record.synthetic) == 2]
    assert two and all(record.adapted for record in two)
    texts = answer_messages(EXAMPLES[0], shown=[("a", ()), ("b", ())])
    assert [turn["content"] for turn in texts] == ["a", "[]", "b", "[]", EXAMPLES[0].query]


# Labelled examples.

SHELF = tuple(
    example(f"train-{i}", query, tools, gold)
    for i, (query, tools, gold) in enumerate([
        ("Please greet Al loudly", (ADD, GREET), (GoldCall("greet", {"name": ("Al",), "loud": (True,)}),)),
        ("What is 8 and 9?", (ADD,), (GoldCall("add", {"a": (8,), "b": (9,)}),)),
        ("Please greet Bo", (ADD, GREET), (GoldCall("greet", {"name": ("nobody",)}),)),  # an input's own request
        ("Nothing to call", (ADD,), ()),
    ])
)  # fmt: skip


@pytest.fixture
def shelf(tmp_path):
    path = tmp_path / "train.jsonl"
    path.write_text("\n".join(map(as_line, SHELF)))
    return str(path)


def as_line(one) -> str:
    calls = [{"name": call.name, "arguments": {k: v[0] for k, v in call.arguments.items()}} for call in one.gold]
    tools = [{"name": t.name, "description": t.description, "parameters": t.parameters} for t in one.tools]
    return json.dumps({"id": one.id, "query": one.query, "tools": tools, "calls": calls})


@pytest.mark.parametrize("choose", ["nearest", "random"])
def test_labelled_examples_are_shown_to_every_input(shelf, choose):
    config = settings(method="icl", gate=replace(settings().gate, tau=0.0), **synthesis(file=shelf, choose=choose, k=2))
    found = run(MODEL, TASK, config).records
    origins = {record.id: [pair["origin"] for pair in record.synthetic if pair["accepted"]] for record in found}
    assert all(record.adapted for record in found)
    assert all(len(own) == 2 for own in origins.values())
    if choose == "nearest":
        assert origins["two"][0] == "train-0" and origins["one"][0] == "train-1"
    assert "train-2" not in origins["two"], "an input's own request, whatever its label, is not shown"
    assert not any("train-3" in own for own in origins.values()), "only those with one right call"


def test_training_on_the_nearest_examples(shelf):
    found = run(MODEL, task_of(EXAMPLES[1]), settings(**synthesis(source="training", file=shelf))).records
    assert found[0].adapted and found[0].synthetic[0]["origin"] == "train-0" and len(found[0].losses) == 3


def test_a_training_file_by_its_tasks_name_lies_where_the_data_is(tmp_path, monkeypatch):
    monkeypatch.delenv("TTSI_DATA", raising=False)
    monkeypatch.chdir(tmp_path)
    tools = [{"name": tool.name, "parameters": tool.parameters} for tool in (ADD, GREET)]
    entry = {"query": "Greet Al", "tools": tools, "answers": [{"name": "greet", "arguments": {"name": "Al"}}]}
    data = tmp_path / "elsewhere"
    data.mkdir()
    (data / "sealtool.json").write_text(json.dumps([entry]))
    config = settings(**synthesis(source="training", file="sealtools"))
    [found] = run(MODEL, task_of(EXAMPLES[1]), config, data=data).records
    assert found.synthetic[0]["origin"] == "sealtools-0"
    with pytest.raises(InputError, match="another folder: --data"):
        run(MODEL, task_of(EXAMPLES[1]), config)


def test_what_is_to_be_known_of_a_training_file_is_told(shelf):
    with open(shelf, "a") as file:
        file.write("\n{")
    told = []
    run(MODEL, task_of(EXAMPLES[1]), settings(**synthesis(source="training", file=shelf)), tell=told.append)
    assert told[0].startswith("cannot be used: train.jsonl:5: not valid JSON") and len(told) == 2
    assert told[1].startswith("--synthesis.file: 1 of 4 examples of train are left out: they have several turns, or")


def test_examples_of_several_turns_are_not_shown(tmp_path):
    """Their calls rest on earlier turns, which a pair does not hold; what the library adds is no turn of theirs."""
    one = SHELF[0]
    talk = ({"role": "user", "content": "I am Al"}, {"role": "assistant", "content": "Hi!"}, *one.messages)
    dated = ({"role": "system", "content": "It is May."}, *one.messages)
    added = ({"role": "system", "content": ANY_NUMBER}, *one.messages)
    shelf = [replace(one, id=str(place), messages=turns) for place, turns in enumerate((talk, dated, added))]
    source = from_training(Task("shelf", tuple(shelf)), "nearest", 0)
    assert "2 of 3 examples of shelf are left out" in source.notes[0] and "a system turn counts" in source.notes[0]
    assert [source(EXAMPLES[1], attempt).origin for attempt in range(2)] == ["2", None]
    with pytest.raises(InputError, match=r"of one turn with one right call \(a system turn counts: a pair is"):
        from_training(Task("shelf", tuple(shelf[:2])), "nearest", 0)


# Pairs that were recorded.


def test_a_run_only_writes_pairs_and_another_learns_from_them(tmp_path, usual):
    written = run(MODEL, FOUR, settings(method="pairs"), out=tmp_path / "written")
    assert written.summary["adapted"] == 0 and written.summary["synthetic_accepted"] == 4
    for own, theirs in zip(written.records, usual, strict=True):
        assert own.synthetic == theirs.synthetic and own.calls == theirs.base_calls and own.reason is None
    source = synthesis(source="recorded", file=str(tmp_path / "written"))
    learned = run(MODEL, FOUR, settings(method="tt-d", **source), out=tmp_path / "learned").records
    for own, theirs in zip(learned, usual, strict=True):
        np.testing.assert_allclose(own.losses, theirs.losses, rtol=1e-5)
        assert own.calls == theirs.calls
    assert list(read_records(tmp_path / "learned/records.jsonl")[0].values()) == learned


def test_a_recorded_pair_keeps_functions_of_its_own(tmp_path):
    total = replace(ADD, name="total")
    shelf, task = tmp_path / "train.jsonl", task_of(EXAMPLES[1])
    shelf.write_text(as_line(example("train", "Total 8 and 9", (total,), (GoldCall("total", {"a": (8,), "b": (9,)}),))))
    labelled = settings(**synthesis(source="training", file=str(shelf)))
    [taught] = run(MODEL, task, labelled, out=tmp_path / "written").records
    [learned] = run(MODEL, task, settings(**synthesis(source="recorded", file=str(tmp_path / "written")))).records
    assert taught.synthetic[0]["tools"] == learned.synthetic[0]["tools"] == [asdict(total)]
    assert learned.adapted and learned.losses == taught.losses


def test_recorded_pairs_are_for_the_input_that_they_were_written_for(tmp_path, usual):
    """Whatever has the same id: without a fingerprint, as older runs are, they go by that."""
    other, old = replace(FOUR.examples[0], messages=EXAMPLES[0].messages), replace(usual[0], fingerprint=None)
    [found] = run(MODEL, task_of(other), settings(), synthesizer=recorded(usual)).records
    assert found.reason == "the pairs that are recorded under its id are of another input" and not found.adapted
    assert recorded([old])(other, 0) == recorded(usual)(FOUR.examples[0], 0)


def test_an_upper_bound_stays_one_through_its_recorded_pairs(tmp_path, usual):
    def learn(name, source):
        config = settings(method="tt-d", **synthesis(source="recorded", file=str(tmp_path / source)))
        found = run(MODEL, FOUR, config, out=tmp_path / name)
        return found.records, json.loads((tmp_path / name / "config.json").read_text())

    run(MODEL, FOUR, settings(method="pairs", **synthesis(label="gold", checks=("schema",))), out=tmp_path / "gold")
    again, config = learn("again", "gold")
    assert [record.seen for record in again] == [any(p["accepted"] for p in record.synthetic) for record in again]
    assert any(record.seen for record in again)
    why = "pairs are written for the function of each input's label"
    assert config["upper_bound"] == f"its pairs are from an upper bound: {why}"
    further, config = learn("further", "again")
    assert [record.seen for record in further] == [record.seen for record in again] and why in config["upper_bound"]
    run(MODEL, FOUR, settings(method="pairs"), out=tmp_path / "plain")
    plain, config = learn("not", "plain")
    assert not any(record.seen for record in plain) and "upper_bound" not in config
    marked = recorded([replace(usual[0], seen=True), *usual[1:]])
    assert marked.upper_bound == "its pairs are from a run that saw the labels of 1 of their inputs"
    assert marked.checksum != recorded(usual).checksum


def test_recorded_pairs_keep_which_values_are_not_learned(usual):
    pair = next(pair for pair in usual[0].synthetic if pair["accepted"])
    name = next(iter(pair["calls"][0]["arguments"]))
    source = recorded([replace(usual[0], synthetic=[{**pair, "skipped": [name]}])])
    for skips in (False, True):
        [found] = run(
            MODEL, task_of(FOUR.examples[0]), settings(**synthesis(skip_values=skips)), synthesizer=source
        ).records
        assert found.adapted and name in found.synthetic[0]["skipped"]
    assert found.losses != usual[0].losses


def test_an_unfinished_source_is_told(tmp_path):
    written, told = tmp_path / "written", []
    run(MODEL, FOUR, settings(method="pairs"), out=written)
    config = settings(method="tt-d", **synthesis(source="recorded", file=str(written)))
    run(MODEL, FOUR, config, tell=told.append)
    assert told == []
    (written / "summary.json").unlink()
    lines = (written / "records.jsonl").read_text().splitlines(keepends=True)
    (written / "records.jsonl").write_text("".join(lines[:3]))
    run(MODEL, FOUR, config, tell=told.append)
    assert told == [f"--synthesis.file {written}: an unfinished run, with 3 inputs so far; others get no pairs"]


def test_a_run_is_not_resumed_with_other_pairs(tmp_path, shelf):
    pair = {"id": "two", "query": "Greet Di", "calls": [{"name": "greet", "arguments": {"name": "Di"}}]}
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text(json.dumps(pair))
    task, changed = task_of(EXAMPLES[1]), json.dumps(pair | {"query": "Greet Ed"})
    for source, file, new in (("recorded", pairs, changed), ("training", Path(shelf), as_line(SHELF[0]))):
        config, out = settings(**synthesis(source=source, file=str(file))), tmp_path / source
        found = run(MODEL, task, config, out=out).records
        file.write_text(file.read_text() + "\n")
        assert run(MODEL, task, config, out=out).records == found, "a line end is no other pair"
        file.write_text(new)
        with pytest.raises(InputError, match=r'holds a run with other settings:\n  pairs: "\w+" there, "\w+" now\n'):
            run(MODEL, task, config, out=out)


def test_pairs_from_a_file(tmp_path):
    lines = [
        {"id": "two", "query": "Greet Di", "calls": [{"name": "greet", "arguments": {"name": "Di"}}]},
        {"id": "two", "query": "Greet Ed", "calls": [{"name": "greet", "arguments": {"name": "Ed"}}]},
        {"id": "four", "query": "Hi", "calls": [{"name": "wave", "arguments": {}}]},
    ]
    file = tmp_path / "pairs.jsonl"
    file.write_text("\n".join(map(json.dumps, lines)))
    config = settings(**synthesis(source="recorded", file=str(file), k=2))
    found = untimed(run(MODEL, FOUR, config).records)
    assert [pair["query"] for pair in found["two"].synthetic] == ["Greet Di", "Greet Ed"] and found["two"].adapted
    assert found["three"].reason == "no further pair is recorded" and not found["three"].adapted
    assert found["four"].synthetic[0]["check"] == "schema"
    file.write_text('{"id": "two", "query": "Hi", "calls": []}\n{"id": "two"}\n')
    with pytest.raises(InputError, match=r"pairs.jsonl:2: a pair is an object with 'id', 'query' and 'calls'"):
        run(MODEL, FOUR, config)


# Settings that contradict each other.


@pytest.mark.parametrize(
    ("method", "changes", "message"),
    [
        ("tt-si", {"source": "teacher"}, "source is teacher; with --method tt-si it must be self or recorded or train"),
        ("tt-d", {"source": "self"}, "source is self; with --method tt-d it must be teacher or recorded"),
        ("icl", {}, "--synthesis.source training needs --synthesis.file"),
        ("tt-si", {"file": "x"}, "--synthesis.source self takes no --synthesis.file"),
        ("tt-d", {"source": "recorded", "file": "nowhere"}, "nowhere"),
        ("tt-d", {}, "a teacher needs --teacher.url"),
        (
            "icl",
            {"file": "x", "checks": ("schema", "round-trip")},
            "--synthesis.checks round-trip: the model is asked with the input's functions",
        ),
    ],
)
def test_methods_and_sources_must_agree(method, changes, message):
    with pytest.raises(InputError, match=message):
        run(MODEL, FOUR, settings(method=method, **synthesis(**changes)))


# What runs have in common.


def test_runs_that_share_parts_keep_the_records_that_they_would_have_alone(monkeypatch):
    every = settings()
    certainties = sorted(record.uncertainty for record in run(MODEL, TASK, every).records)
    base = settings(**gate(tau=certainties[-1]))  # all but one are uncertain
    fewer = gate(tau=certainties[-3])
    cells = [
        base,
        replace(base, adapt=replace(base.adapt, lr=1e-2, epochs=1)),
        replace(base, **fewer),
        replace(base, method="base"),
        replace(base, method="tt-icl"),
        replace(base, seed=1),
        replace(base, answer=replace(base.answer, value_tokens=3)),
        replace(base, synthesis=replace(base.synthesis, k=2)),
        every,
        replace(base, **fewer, adapt=replace(base.adapt, measure=("kl",))),
    ]
    alone = [untimed(run(MODEL, TASK, cell).records) for cell in cells]
    shared, read, trained = Shared.between_runs(), [], []

    def noted(name, rows_so_far):
        do = getattr(Waves, name)

        def and_note(self, rows, *rest, **settings):
            rows_so_far.extend(rows)
            return do(self, rows, *rest, **settings)

        monkeypatch.setattr(Waves, name, and_note)

    noted("score", read)
    noted("adapt", trained)
    together, counts, counts_trained = [], [], []
    for cell in cells:
        before, trained_before = len(read), len(trained)
        records = run(MODEL, TASK, cell, shared=shared).records
        counts.append(len(read) - before)
        counts_trained.append(len(trained) - trained_before)
        together.append(untimed(records))
        stages = {"score", "answer"} if cell.method == "base" else {"score"}
        assert all(stages <= record.seconds.keys() for record in records)
    assert together == alone
    shown = sum(record.adapted for record in alone[4].values())
    assert counts[1] == counts[2] == counts[3] == 0 and counts[4] >= shown
    assert 0 < counts[5] < counts[0], "another seed writes other pairs, after the same scores"
    assert counts[6] == counts[0], "other answers share nothing"
    n_adapted = [sum(record.adapted for record in records.values()) for records in alone]
    assert counts_trained[:2] == n_adapted[:2] and counts_trained[9] == n_adapted[9], "other training shares no adapter"
    assert 0 < n_adapted[2] < n_adapted[0] and counts_trained[2] == 0, "another tau trains nobody twice"
    assert counts_trained[8] == n_adapted[8] - n_adapted[0] > 0, "and only those who were certain"
