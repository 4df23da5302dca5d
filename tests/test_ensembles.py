"""Several answers to one input by one loop: adapters of several seeds, orders of the functions, augmented pairs."""

from dataclasses import replace

import numpy as np
import pytest

from tiny_runs import EXAMPLES, TASK, settings, task_of, tiny_model, untimed
from ttsi_jax.algorithm import Algorithm
from ttsi_jax.batching.waves import Waves
from ttsi_jax.config import check
from ttsi_jax.errors import InputError
from ttsi_jax.loop import run
from ttsi_jax.quality.soundness import sound
from ttsi_jax.quality.votes import vote
from ttsi_jax.tasks import read_calls

MODEL = tiny_model()
FOUR = task_of(*(EXAMPLES[index] for index in (1, 2, 3, 5)))  # each of them writes itself a pair


def changed(scope: str = "suffix", **steps):
    config = settings(scope=scope)
    return replace(config, **{step: replace(getattr(config, step), **values) for step, values in steps.items()})


def records(task=FOUR, scope: str = "suffix", **steps):
    return run(MODEL, task, changed(scope, **steps)).records


@pytest.fixture(scope="module")
def usual():
    return records()


@pytest.fixture(scope="module")
def three():
    return records(adapt={"adapters": 3})


def test_the_first_of_several_adapters_is_the_one_that_there_is_alone(usual, three):
    for alone, record in zip(usual, three, strict=True):
        assert alone.adapters == [] and len(record.adapters) == 3
        assert record.adapters[0] == alone.text_adapted
        assert record.text_base == alone.text_base and record.synthetic == alone.synthetic
        assert record.tokens["adapt"] == 3 * alone.tokens["adapt"]


def test_several_adapters_vote(three):
    for record in three:
        winner = vote([*map(read_calls, record.adapters)])
        assert record.text_adapted == record.adapters[winner or 0]
    assert any(len(set(record.adapters)) > 1 for record in three), "adapters of several seeds are different adapters"


def test_the_likeliest_function_is_taken_from_the_surest_adapter(three):
    for record, other in zip(records(adapt={"adapters": 3, "combine": "likelihood"}), three, strict=True):
        assert record.adapters == other.adapters and record.text_adapted in record.adapters


@pytest.mark.parametrize(
    ("tries", "adapters", "shares"),
    [(8, 2, [1, 2]), (2, 3, [1, 1, 1])],  # of three pairs, and of the two that were good
)
def test_adapters_with_shares_of_the_pairs(monkeypatch, tries, adapters, shares):
    seen, adapt = [], Waves.adapt

    def noted(self, rows, pairs, *rest, **settings):
        seen.extend((own, settings["max_pairs"]) for own in pairs)
        return adapt(self, rows, pairs, *rest, **settings)

    monkeypatch.setattr(Waves, "adapt", noted)
    how = {"adapters": adapters, "divide": True}
    [found] = records(task_of(EXAMPLES[1]), synthesis={"k": 3, "tries": tries}, adapt=how)
    n_pairs = sum(pair["accepted"] for pair in found.synthetic)
    assert n_pairs > 1 and len(found.adapters) == adapters
    assert sorted(len(own) for own, _ in seen) == shares
    assert {most for _, most in seen} == {max(shares)}, "no steps are scanned for pairs that no adapter has"
    assert len({pair for own, _ in seen for pair in own}) == n_pairs


def test_neighbours_change_nothing_where_inputs_have_several_adapters(three):
    alone = records(task_of(EXAMPLES[1], EXAMPLES[5]), adapt={"adapters": 3})
    together = untimed(three)
    assert all(together[id].adapters == record.adapters for id, record in untimed(alone).items())


# Orders of the functions.


@pytest.fixture(scope="module")
def turned():
    return records(TASK, answer={"orders": 3})


def test_answers_under_every_rotation_vote_on_both_sides(turned):
    for record, greedy in zip(turned, records(TASK), strict=True):
        n = min(3, len(record.candidates)) - 1
        assert len(record.orders_base) == n and len(record.orders_adapted) == n * record.adapted
        texts = [greedy.text_base, *record.orders_base]
        assert record.text_base == texts[vote([*map(read_calls, texts)], read_calls(texts[0])) or 0]
        np.testing.assert_allclose(record.log_likelihoods, greedy.log_likelihoods, rtol=1e-4)
    assert any(record.adapted for record in turned)


def test_a_rotation_is_the_input_with_its_functions_rotated(turned):
    inputs = [replace(one, tools=one.tools[1:] + one.tools[:1]) for one in TASK.examples]
    rotated = run(MODEL, task_of(*inputs), settings(method="base")).records
    for record, own in zip(turned, rotated, strict=True):
        assert record.orders_base[0] == own.text_base


def test_rows_with_a_prefix_in_common_turn_their_functions_too():
    same = task_of(*(replace(EXAMPLES[1], id=str(number)) for number in range(9)))  # two waves and one more
    found = records(same, answer={"orders": 2})
    alone = records(task_of(same.examples[4]), answer={"orders": 2})[0]
    for record in found:
        assert len(record.orders_base) == 1 and record.orders_base == found[0].orders_base
    assert untimed(found)["4"] == untimed([alone])["4"]


# Answers that cannot be right give way.


def test_answers_that_cannot_be_right_give_way_to_those_that_can():
    sampled = {"samples": 24, "temperature": 1.5, "top_p": 1.0}
    plain, repaired = (records(TASK, answer={**sampled, "repair": repair}) for repair in (False, True))
    changed = 0
    for record, other, one in zip(repaired, plain, TASK.examples, strict=True):
        assert record.samples_base == other.samples_base
        texts = [other.text_base, *other.samples_base]
        possible = [text for text in texts if sound(read_calls(text), one)]
        if sound(read_calls(other.text_base), one) or not possible:
            assert record.text_base == other.text_base
        else:
            assert record.text_base == possible[vote([*map(read_calls, possible)]) or 0]
            changed += 1
        if record.adapted and not sound(read_calls(record.text_adapted), one):
            assert not any(sound(read_calls(text), one) for text in record.samples_adapted)
    assert changed


def test_faulty_answers_have_no_vote():
    sampled = {"samples": 6, "temperature": 1.5, "top_p": 1.0, "vote": True, "repair": True}
    for record, one in zip(records(TASK, answer=sampled), TASK.examples, strict=True):
        possible = [text for text in record.samples_base if sound(read_calls(text), one)]
        assert not possible or record.text_base in possible


def test_a_faultless_answer_stays_where_all_votes_are_faulty(monkeypatch):
    """The greedy answer alone has no vote, but no faulty one replaces it."""
    monkeypatch.setattr(Algorithm, "sound", lambda self, draft, text: text == greedy[draft.example.id])
    sampled = {"samples": 3, "temperature": 3.0, "top_p": 1.0}
    greedy = {record.id: record.text_base for record in records(TASK, answer=sampled)}
    others = 0
    for record in records(TASK, answer={**sampled, "vote": True, "repair": True}):
        assert record.text_base == greedy[record.id]
        others += record.text_base not in record.samples_base
    assert others


def test_a_repair_is_accepted_without_a_held_out_pair():
    found = records(TASK, adapt={"accept": ("repairs",)})
    reasons = {record.reason for record in found if record.reverted}
    assert reasons and all(reason.startswith("not accepted: repairs: ") for reason in reasons)
    for record in found:
        if record.adapted:
            fit = record.evidence["sound"] and not record.evidence["sound_base"]
            assert record.reverted is not fit


# Augmented pairs.


def test_every_augmentation_is_trained_on(usual):
    names = ("order", "distractors", "rename")
    config = changed("all", synthesis={"augment": names})
    found = run(MODEL, FOUR, config).records
    plain = records(scope="all")
    epochs = config.adapt.epochs
    for record, other in zip(found, plain, strict=True):
        assert record.synthetic == other.synthetic, "the pairs are the same"
        assert len(other.losses) == epochs and len(record.losses) == epochs * (1 + len(names))
        assert record.losses[0] == pytest.approx(other.losses[0], rel=1e-4)
        assert len({round(loss, 3) for loss in record.losses[:4]}) > 1


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (changed(synthesis={"augment": ("order",)}), "needs --adapt.scope all"),
        (changed("all", synthesis={"augment": ("noise",)}), "must be one of order, distractors, rename"),
        (changed(adapt={"adapters": 2, "divide": True}), "2 adapters cannot share --synthesis.k 1 pairs"),
        (changed(adapt={"divide": True, "accept": ("repairs", "seeds")}), "--adapt.accept seeds compares adapters"),
        (changed(adapt={"divide": True, "measure": ("seeds",)}), "--adapt.measure seeds compares adapters"),
        (changed(adapt={"adapters": 0}), "--adapt.adapters is 0"),
        (changed(answer={"orders": 0}), "--answer.orders is 0"),
        (changed(adapt={"combine": "mean"}), "--adapt.combine is 'mean'"),
        (replace(changed("all", synthesis={"augment": ("order",)}), method="tt-icl"), "trains nothing"),
    ],
)
def test_settings_that_cannot_be(config, message):
    with pytest.raises(InputError, match=message):
        check(config)
