"""What decides a part that runs have in common."""

from dataclasses import replace

import pytest

from tiny_runs import EXAMPLES, gate, settings, tiny_model
from ttsi_jax.batching.inputs import Draft, prepare
from ttsi_jax.batching.shared import Shared
from ttsi_jax.batching.waves import Pair
from ttsi_jax.config import find_parts
from ttsi_jax.quality.confidence import CallEstimator
from ttsi_jax.synthesis import REQUEST
from ttsi_jax.tasks.prompts import PromptEncoder

MODEL = tiny_model()
OWN = CallEstimator(lambda reply: 0.5)


@pytest.fixture
def draft():
    encoder = PromptEncoder(MODEL.tokenizer)
    found = prepare(EXAMPLES[0], "t", encoder, settings(), MODEL.config.context_length, REQUEST)
    assert isinstance(found, Draft)
    return found


def of(shared, config, **parts):
    return shared.of(config.with_parts(parts), find_parts(config, parts), MODEL, ())


def go_through(shared, part, draft, steps):
    try:
        next(shared.once(part, draft, steps))
    except StopIteration as ended:
        return ended.value


def counting(done, pairs=()):
    def steps(draft):
        draft.pairs += pairs
        done.append(draft.requests)
        return len(done)
        yield

    return steps


def test_the_bases_answers_are_shared_whatever_pairs_are_asked_for_with(draft):
    shared, steps = of(Shared.between_runs(), settings()), counting([])
    otherwise = replace(draft, requests=((1, 2, 3),))
    assert [go_through(shared, "base", one, steps) for one in (draft, otherwise)] == [1, 1]
    assert [go_through(shared, "pairs", one, steps) for one in (draft, otherwise, draft)] == [2, 3, 2]


def test_certainties_of_calls_are_those_of_one_estimator(draft):
    shared, steps = Shared.between_runs(), counting([])
    sound = settings(**gate(estimator="soundness"))
    for config, parts, n_done in ((settings(), {}, 1), (sound, {}, 2), (settings(), {"estimator": OWN}, 3)):
        for _ in range(2):
            assert go_through(of(shared, config, **parts), "base", draft, steps) == n_done


def test_what_an_object_of_the_users_own_made_does_not_outlive_the_process(draft):
    stored = {}
    shared, steps = Shared.between_runs(stored), counting([])
    for _ in range(2):
        assert go_through(of(shared, settings(), estimator=OWN), "base", draft, steps) == 1
    assert not stored
    assert go_through(of(shared, settings()), "base", draft, steps) == 2 and stored


def test_a_teacher_who_gave_nothing_is_asked_again(draft):
    taught = replace(settings(), synthesis=replace(settings().synthesis, source="teacher"))
    taught = replace(taught, teacher=replace(taught.teacher, url="http://localhost:9/v1", model="m"))
    shared = of(Shared.between_runs(), taught)
    assert [go_through(shared, "pairs", draft, counting(done)) for done in ([], [0])] == [1, 2]
    assert [go_through(shared, "pairs", draft, counting(done, [Pair((1,), (2,))])) for done in ([], [0])] == [1, 1]
