"""What the model is asked for the sake of quality, in whole runs."""

from collections import Counter
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from tiny_runs import ADD, EXAMPLES, GREET, TASK, settings, task_of, tiny_model
from ttsi_jax.batching.inputs import prepare
from ttsi_jax.batching.waves import Pair, Shape, Waves
from ttsi_jax.loop import run
from ttsi_jax.quality.choice import similarity
from ttsi_jax.runs.clock import CompileClock
from ttsi_jax.steps.reading import read_answer
from ttsi_jax.synthesis import REQUEST, Synthetic
from ttsi_jax.tasks import Call
from ttsi_jax.tasks.prompts import PromptEncoder

MODEL = tiny_model()
WARM = replace(settings().synthesis, temperature=1.5)
SUMS = [Synthetic(f"Add {a} to 5", (Call("add", {"a": a, "b": 5}),)) for a in (4, 4, 7)]
SUMS.append(Synthetic("Say hi to Cy", (Call("greet", {"name": "Cy"}),)))
ONE = task_of(replace(EXAMPLES[0], tools=(ADD, GREET)))


def written(k=1, **changes):
    """The pairs that are kept of four candidates, with their likelihoods: the losses before the first step."""
    synthesis = replace(WARM, k=k, candidates=4, tries=1, **changes)
    config = replace(settings(), synthesis=synthesis)
    [record] = run(MODEL, ONE, config, synthesizer=lambda example, attempt: SUMS[attempt]).records
    return record


@pytest.fixture(scope="module")
def losses():
    """Of each of the pairs, trained on alone."""
    alone = settings()
    return [
        run(MODEL, ONE, alone, synthesizer=partial(lambda own, example, attempt: own, pair)).records[0].losses[0]
        for pair in SUMS
    ]


def test_the_likeliest_candidate_is_kept(losses):
    record = written(diversity=0.0)
    kept = [pair["query"] for pair in record.synthetic if pair["accepted"]]
    assert kept == [SUMS[int(np.argmin(losses))].query] and len(record.synthetic) == 4
    assert record.losses[0] == pytest.approx(min(losses), rel=1e-4)
    assert {pair["reason"] for pair in record.synthetic[1:]} == {"others are better"}


def test_one_candidate_that_repeats_another_is_dropped():
    record = written(k=4)
    assert sorted(pair["query"] for pair in record.synthetic if pair["accepted"]) == sorted({p.query for p in SUMS})
    assert [pair["check"] for pair in record.synthetic if not pair["accepted"]] == ["copy"]


def test_diversity_takes_one_that_is_unlike_the_first():
    kept = [pair["query"] for pair in written(k=2, diversity=1.0).synthetic if pair["accepted"]]
    assert similarity(*kept) == min(similarity(kept[0], other.query) for other in SUMS)


def test_candidates_are_the_attempts_of_a_run_that_writes_one_after_another():
    """Each has its own random numbers, whoever is written beside it."""
    many = replace(settings(), synthesis=replace(WARM, candidates=4, tries=1, checks=("schema",)))
    found = run(MODEL, TASK, many).records
    several = replace(settings(), synthesis=replace(WARM, k=4, tries=1, checks=("schema",)))
    for own, theirs in zip(found, run(MODEL, TASK, several).records, strict=True):
        texts = [sorted((p["query"], str(p["calls"])) for p in record.synthetic) for record in (own, theirs)]
        assert texts[0] == texts[1] and len(texts[0]) == 4
        assert sum(pair["accepted"] for pair in own.synthetic) == bool(own.adapted)
    [alone] = run(MODEL, task_of(EXAMPLES[1]), many).records
    assert alone.synthetic == found[1].synthetic


def test_what_asks_for_pairs_is_read_once_for_all_candidates(monkeypatch):
    config = replace(settings(), synthesis=replace(WARM, k=4, candidates=4, tries=1, checks=("schema",)))
    encoder, read, score = PromptEncoder(MODEL.tokenizer), Counter(), Waves.score
    draft = prepare(ONE.examples[0], "task", encoder, config, MODEL.config.context_length, REQUEST)

    def counting(self, rows, *others):
        read.update((row.prefix, row.suffix) for row in rows)
        return score(self, rows, *others)

    monkeypatch.setattr(Waves, "score", counting)
    [record] = run(MODEL, ONE, config).records
    assert len(record.synthetic) == 4 and read[draft.prefix, draft.requests[0]] == 1


def test_answers_of_any_length_compile_nothing():
    encoder = PromptEncoder(MODEL.tokenizer)
    draft = prepare(ONE.examples[0], "task", encoder, settings(), MODEL.config.context_length, REQUEST)
    draft.shape = Shape(32, 16, 2, 4)
    read = np.random.default_rng(0).normal(size=(2, 1, 8)).astype(np.float32)
    prompt = SimpleNamespace(read=SimpleNamespace(token_log_likelihoods=jax.device_put(read)), row=1)
    with CompileClock() as clock:
        for length in range(1, 9):
            reading = read_answer(draft, "score", Pair((1, 2, 3), tuple(range(length))))
            next(reading)
            with pytest.raises(StopIteration) as end:
                reading.send((None, prompt))
            np.testing.assert_array_equal(end.value.value, read[1, 0, :length])
    assert clock.seconds == 0


def test_rounds_go_on_until_there_are_enough():
    none = Synthetic("", (), "nothing")
    numbers = []

    def write(example, attempt):
        numbers.append(attempt)
        return SUMS[0] if attempt == 5 else none

    config = replace(settings(), synthesis=replace(WARM, candidates=2, tries=3))
    [record] = run(MODEL, ONE, config, synthesizer=write).records
    assert numbers == [0, 1, 2, 3, 4, 5] and record.adapted
    [record] = run(MODEL, ONE, config, synthesizer=lambda example, attempt: none).records
    assert record.reason == "no usable pair in 6 tries"
