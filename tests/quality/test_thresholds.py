"""Choosing tau: by budget, by the distribution, by the gain on labels."""

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tiny_runs import EXAMPLES, TASK, gate, settings, timeless, tiny_model
from ttsi_jax.config import check
from ttsi_jax.errors import InputError
from ttsi_jax.loop import run
from ttsi_jax.quality.thresholds import NONE, Chosen, automatic_tau, by_budget, by_distribution, by_gain, labelled
from ttsi_jax.runs.directory import CONFIG, RECORDS, SUMMARY
from ttsi_jax.runs.groups import load_runs, notes
from ttsi_jax.runs.record import Record

certainties = st.lists(st.floats(0, 1), min_size=1, max_size=40)


def adapted(values, tau):
    return sum(value < tau for value in values)


@given(certainties, st.floats(0, 1))
def test_a_budget_is_kept_and_used(values, fraction):
    tau = by_budget(values, fraction)
    assert adapted(values, tau) <= fraction * len(values) + 1e-6
    above = [value for value in values if value > tau]
    if above:  # the next larger tau would adapt too many
        assert adapted(values, min(above)) > int(fraction * len(values) + 1e-9)


def test_budgets_by_hand():
    values = [0.9, 0.1, 0.5, 0.3]
    assert by_budget(values, 0.5) == 0.5
    assert by_budget(values, 0.0) == 0.1
    assert adapted(values, by_budget(values, 1.0)) == 4
    assert adapted([0.2] * 4, by_budget([0.2] * 4, 0.5)) == 0  # equal ones adapt together or not at all
    assert by_budget([float("nan"), 0.4], 0.0) == 0.4
    assert by_budget([], 0.5) == NONE


def test_two_groups_are_told_apart():
    rng = np.random.default_rng(0)
    values = [*rng.normal(0.2, 0.05, 30), *rng.normal(0.9, 0.03, 70)]
    assert 0.35 < by_distribution(values) < 0.8
    assert by_distribution([0.1, 0.2, 0.9]) == pytest.approx(0.55)
    assert by_distribution([0.4] * 5) == by_distribution([]) == NONE


@given(st.lists(st.floats(0, 1), min_size=2, max_size=12))
def test_the_cut_has_the_largest_variance_between_groups(values):
    def between(tau):
        low, high = [v for v in values if v < tau], [v for v in values if v >= tau]
        return len(low) * len(high) * (np.mean(high) - np.mean(low)) ** 2 if low and high else 0.0

    found = between(by_distribution(values))
    assert found >= max(between(value) for value in values) * (1 - 1e-9) - 1e-12


def test_gains_by_hand():
    values, gains = [0.1, 0.3, 0.5, 0.9], [1, 1, -1, -1]
    tau = by_gain(values, gains)
    assert adapted(values, tau) == 2
    assert by_gain(values, [-1, 0, 0, 0]) == by_gain([], []) == NONE
    assert adapted(values, by_gain(values, [1, -1, 1, 0])) == 1  # of equal gains the one that adapts fewest
    assert by_gain([0.3, 0.3], [1, -1]) == NONE  # equal certainties cannot be told apart


@given(st.lists(st.tuples(st.sampled_from([0.1, 0.2, 0.4, 0.8]), st.sampled_from([-1, 0, 1])), max_size=12))
def test_no_tau_gains_more(labelled):
    values, gains = [v for v, _ in labelled], [g for _, g in labelled]
    total = lambda tau: sum(g for v, g in labelled if v < tau)  # noqa: E731
    assert total(by_gain(values, gains)) == max(map(total, (0.0, 0.15, 0.3, 0.6, 1.0)))


def test_automatic():
    values = [0.1, 0.15, None, 0.2, 0.9, 0.95]
    known = [value for value in values if value is not None]
    for how, n, by in (({}, 3, "distribution"), ({"budget": 0.4}, 2, "budget")):
        found = automatic_tau(values, **how)
        assert (adapted(known, found.tau), found.tau_by) == (n, by)
    gains = ([0.1, 0.16, 0.17, 0.3], [1, -1, 1, 1])
    assert adapted(known, automatic_tau(values, labelled=gains).tau) == 3
    assert adapted(known, automatic_tau(values, 0.2, gains).tau) == 1
    assert automatic_tau([0.2, 0.5], labelled=([0.3, 0.9], [1, 1])).tau > 0.9  # nothing caps it
    assert automatic_tau([]) == Chosen(NONE, "distribution")


def test_what_a_labelled_run_tells():
    fixed = Record("a", "t", "?", uncertainty=0.2, adapted=True, call_correct_base=False, call_correct=True)
    broke = replace(fixed, id="b", uncertainty=0.6, call_correct_base=True, call_correct=False)
    no_label = replace(fixed, id="c", call_correct=None)
    no_pair = replace(fixed, id="d", adapted=False, synthetic=[{}])
    assert labelled([fixed, broke, no_label, no_pair]) == ((0.2, 0.6), (1, -1))
    for records in ([fixed, replace(no_pair, synthetic=[])], [no_label]):
        with pytest.raises(InputError, match="--gate.select all"):
            labelled(records)


# Whole runs.

MODEL = tiny_model()
AUTO = settings(**gate(tau="auto", budget=0.5), method="base")


@pytest.mark.parametrize("tau", [float("nan"), "much"])
def test_a_tau_that_is_none(tau):
    with pytest.raises(InputError, match=f"--gate.tau is {tau}; it must be a number or auto"):
        check(settings(**gate(tau=tau)))


def test_a_run_chooses_tau_and_says_so():
    found, summary = run(MODEL, TASK, AUTO)
    known, _ = run(MODEL, TASK, replace(AUTO, gate=replace(AUTO.gate, tau=summary["tau"], budget=1.0)))
    certainties = [record.uncertainty for record in found]
    assert summary["tau"] == by_budget(certainties, 0.5) and summary["tau_by"] == "budget"
    assert 0 < sum(record.uncertain for record in found) <= len(EXAMPLES) / 2
    for own, theirs in zip(found, known, strict=True):
        assert timeless(own) == timeless(theirs)  # nothing is read twice
    few, summary = run(MODEL, TASK, replace(AUTO, gate=replace(AUTO.gate, calibration=2)))
    assert summary["tau"] == by_budget([record.uncertainty for record in few[:2]], 0.5)


def test_a_resumed_run_chooses_the_same_tau(tmp_path):
    whole = run(MODEL, TASK, AUTO, out=tmp_path)
    lines = (tmp_path / RECORDS).read_text().splitlines(keepends=True)
    (tmp_path / RECORDS).write_text("".join(lines[::2]))
    (tmp_path / SUMMARY).unlink()
    again = run(MODEL, TASK, AUTO, out=tmp_path)
    assert again.summary["tau"] == whole.summary["tau"]
    assert list(map(timeless, again.records)) == list(map(timeless, whole.records))


def test_tau_from_a_labelled_run(tmp_path):
    every = settings(**gate(select="all"))
    assert run(MODEL, TASK, every, out=tmp_path).summary["adapted"]
    config = replace(AUTO, gate=replace(AUTO.gate, budget=1.0, labelled=str(tmp_path)))
    summary = run(MODEL, TASK, config).summary
    assert (summary["tau"], summary["tau_by"]) == (by_gain(*labelled(run(MODEL, TASK, every).records)), "labels")
    run(MODEL, TASK, config, out=tmp_path / "own")
    assert notes(load_runs([tmp_path / "own"])) == [
        f"own: an upper bound: tau is chosen by the labels of {len(EXAMPLES)} of its inputs"
    ]
    with pytest.raises(InputError, match="its gate.estimator is margin, here it is token; its certainties say nothing"):
        run(MODEL, TASK, replace(config, gate=replace(config.gate, estimator="token")))
    judged = replace(config, gate=replace(config.gate, estimator="soundness"))
    sound = settings(**gate(select="all", estimator="soundness"))
    run(MODEL, TASK, sound, out=tmp_path / "sound")
    judged = replace(judged, gate=replace(judged.gate, labelled=str(tmp_path / "sound")))
    assert run(MODEL, TASK, judged).summary["tau_by"] == "labels"
    with pytest.raises(InputError, match="its answer.judge is values, here it is channel"):
        run(MODEL, TASK, replace(judged, answer=replace(judged.answer, judge="channel")))
    sampled = replace(config, gate=replace(sound.gate, estimator="consistency", labelled=None), method="base")
    sampled = replace(sampled, gate=replace(sampled.gate, select="all"))
    run(MODEL, TASK, sampled, out=tmp_path / "sampled")
    warmer = replace(config, gate=replace(config.gate, estimator="consistency", labelled=str(tmp_path / "sampled")))
    with pytest.raises(InputError, match="its synthesis.temperature is 0.7, here it is 0.9"):
        run(MODEL, TASK, replace(warmer, synthesis=replace(warmer.synthesis, temperature=0.9)))
    started = json.loads((tmp_path / CONFIG).read_text()) | {"start": "a checksum"}
    (tmp_path / CONFIG).write_text(json.dumps(started))
    with pytest.raises(InputError, match="its start is a checksum, here it is None"):
        run(MODEL, TASK, config)
    (tmp_path / SUMMARY).unlink()
    with pytest.raises(InputError, match="the run is not finished"):
        run(MODEL, TASK, config)
    with pytest.raises(InputError, match="holds no run"):
        run(MODEL, TASK, replace(config, gate=replace(config.gate, labelled=str(tmp_path / "none"))))
