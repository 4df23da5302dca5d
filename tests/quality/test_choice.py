"""The best K of several candidates."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ttsi_jax.quality.choice import best, similarity

TEXTS = ["weather in Paris", "weather in Paris today", "book a table", "weather in Rome"]


def test_the_likeliest_come_first_where_nothing_else_counts():
    assert best([-3.0, -1.0, -2.0, -4.0], TEXTS, 3, diversity=0.0) == [1, 2, 0]


def test_a_candidate_like_a_chosen_one_gives_way_to_another():
    assert best([-1.0, -1.1, -2.0, -9.0], TEXTS, 2, diversity=0.5) == [0, 2]
    assert best([-1.0, -1.1, -2.0, -9.0], TEXTS, 2, diversity=0.0) == [0, 1]


def test_a_candidate_like_one_that_was_kept_before_gives_way_too():
    assert best([-1.0, -1.1, -2.0, -9.0], TEXTS, 1, diversity=0.5) == [0]
    assert best([-1.0, -1.1, -2.0, -9.0], TEXTS, 1, diversity=0.5, kept=["weather in Paris"]) == [2]


def test_what_is_not_finite_is_never_chosen():
    assert best([float("nan"), -1.0, float("-inf")], TEXTS[:3], 3) == [1]
    assert best([float("nan")], TEXTS[:1], 1) == [] and best([], [], 2) == []


def test_equal_candidates_keep_their_order():
    assert best([-1.0, -1.0], ["a", "b"], 2) == [0, 1]


@given(st.lists(st.floats(-50, 0), min_size=1, max_size=8), st.integers(1, 8), st.floats(0, 1))
def test_a_choice_has_k_different_candidates_and_no_unit(scores, k, diversity):
    texts = [f"{TEXTS[i % 4]} {i // 4}" for i in range(len(scores))]
    found = best(scores, texts, k, diversity)
    assert len(found) == len(set(found)) == min(k, len(scores))
    assert found == best([2.0 * score for score in scores], texts, k, diversity)


@given(st.text(max_size=20), st.text(max_size=20))
def test_similarity(one, other):
    assert similarity(one, other) == similarity(other, one)
    assert 0.0 <= similarity(one, other) <= 1.0 == similarity(one, one)


def test_similarity_by_hand():
    assert similarity("Weather in Paris", "weather in Rome!") == pytest.approx(2 / 4)
