"""What decides a part that runs have in common."""

from dataclasses import replace

from tiny_runs import EXAMPLES, settings, tiny_model
from ttsi_jax.batching.inputs import Draft, prepare
from ttsi_jax.batching.shared import Shared
from ttsi_jax.synthesis import REQUEST
from ttsi_jax.tasks.prompts import PromptEncoder

MODEL = tiny_model()


def test_the_bases_answers_are_shared_whatever_pairs_are_asked_for_with():
    encoder = PromptEncoder(MODEL.tokenizer)
    found = prepare(EXAMPLES[0], "t", encoder, settings(), MODEL.config.context_length, REQUEST)
    assert isinstance(found, Draft)
    shared, done = Shared.between_runs().of(settings(), MODEL, 8, (), REQUEST), []

    def steps(draft):
        done.append(draft.requests)
        return len(done)
        yield

    def go_through(part, draft):
        try:
            next(shared.once(part, draft, steps))
        except StopIteration as ended:
            return ended.value

    otherwise = replace(found, requests=((1, 2, 3),))
    assert [go_through("base", draft) for draft in (found, otherwise)] == [1, 1]
    assert [go_through("pairs", draft) for draft in (found, otherwise, found)] == [2, 3, 2]
