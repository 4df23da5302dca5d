"""Which of several adapters is believed."""

import numpy as np
import pytest

from ttsi_jax.steps.outcome import Answered, Outcome, elect


def outcome(text: str | None, losses=(1.0, 0.5), scores=(0.0, -1.0)) -> Outcome:
    said = Answered(text and f'{{"name": "{text}", "arguments": {{}}}}', (), ())
    return Outcome(np.array(losses, np.float32), None, None, np.array(scores, np.float32), said, None)


@pytest.mark.parametrize(
    ("texts", "expected"),
    [(["f"], 0), (["f", "g", "g"], 1), (["f", "g"], 0), (["f", "g", "h", "h"], 2), (["f", "g", "f"], 0)],
)
def test_most_adapters_decide_and_the_earliest_in_doubt(texts, expected):
    assert elect([outcome(text) for text in texts], np.ones((len(texts), 2)), "vote") == expected


def test_answers_that_are_no_calls_do_not_vote():
    words = outcome("f")._replace(said=Answered("no call", (), ()))
    assert elect([words, words, outcome("g")], np.ones((3, 2)), "vote") == 2
    assert elect([words, words], np.ones((2, 2)), "vote") == 0


def test_the_mean_probability_decides():
    outcomes = [outcome("f"), outcome("f"), outcome("g")]
    unsure = np.array([[0.55, 0.45], [0.6, 0.4], [0.1, 0.9]])
    assert elect(outcomes, unsure, "likelihood") == 2, "two that are unsure against one that is sure"
    assert elect(outcomes, unsure, "vote") == 0
    assert elect(outcomes, np.array([[0.7, 0.3], [0.8, 0.2], [0.4, 0.6]]), "likelihood") == 1
    surest = np.array([[0.36, 0.32, 0.32], [0.4, 0.41, 0.19], [0.38, 0.3, 0.32]])
    assert elect(outcomes, surest, "likelihood") == 2, "one that chooses another function does not speak for this"


@pytest.mark.parametrize(
    ("faulty", "fault"),
    [
        (outcome("g", losses=(1.0, np.nan)), "a loss or a score is not finite"),
        (outcome("g", scores=(np.inf, 0.0)), "a loss or a score is not finite"),
        (outcome(None), "a loss or a score is not finite"),
        (outcome("g", losses=(0.1, 2000.0)), "the loss grew to 2e+03"),
    ],
)
def test_adapters_that_diverged_have_no_vote(faulty, fault):
    assert faulty.fault() == fault and outcome("f").fault() is None
    probabilities = np.array([[0.0, 1.0], [0.0, 1.0], [0.9, 0.1]])
    for combine in ("vote", "likelihood"):
        assert elect([faulty, faulty, outcome("f")], probabilities, combine) == 2
        assert elect([faulty, faulty], probabilities[:2], combine) == 0
