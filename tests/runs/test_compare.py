import pytest
from hypothesis import given
from hypothesis import strategies as st

from ttsi_jax.errors import InputError
from ttsi_jax.runs.compare import Paired, Run, compare, load_run, load_runs, mcnemar_p
from ttsi_jax.runs.directory import open_run
from ttsi_jax.runs.record import Record, to_json


@pytest.mark.parametrize(
    "fixed, broke, p",
    [
        (0, 0, 1.0),
        (1, 0, 1.0),
        (3, 3, 1.0),
        (5, 0, 2 / 2**5),
        (8, 1, 2 * (1 + 9) / 2**9),
        (6, 16, 2 * (1 + 22 + 231 + 1540 + 7315 + 26334 + 74613) / 2**22),
        (2000, 0, 0.0),
    ],
)
def test_mcnemar_against_known_values(fixed, broke, p):
    assert mcnemar_p(fixed, broke) == pytest.approx(p, rel=1e-4)
    assert mcnemar_p(broke, fixed) == mcnemar_p(fixed, broke)


@given(st.integers(0, 60), st.integers(0, 60))
def test_p_is_a_probability_and_falls_with_imbalance(fixed, broke):
    assert 0 < mcnemar_p(fixed, broke) <= 1
    if fixed > broke:
        assert mcnemar_p(fixed + 1, broke) < mcnemar_p(fixed, broke)


def labelled(id, tool, call, **values):
    return Record(id, "t", "q", tool_correct=tool, call_correct=call, **values)


def test_only_inputs_labelled_and_sound_in_both_runs_are_paired():
    first = [
        labelled("a", True, False),
        labelled("b", False, False),
        labelled("c", True, True),
        labelled("d", None, None),
        labelled("e", False, False),
        labelled("only here", False, False),
    ]
    second = [
        labelled("e", True, True, error="out of memory"),
        labelled("d", True, True),
        labelled("c", False, True),
        labelled("b", True, False),
        labelled("a", True, True),
    ]
    runs = {
        "base": Run({"gate": {"select": "certain"}, "seed": 0}, first, {"n": 6}),
        "tt-si": Run({"gate": {"select": "all"}, "seed": 0}, second, None),
    }
    base, adapted = compare(runs)
    assert base.finished and not adapted.finished
    assert base.tool == Paired(0, 0, 5, 1.0)
    assert adapted.tool == Paired(fixed=1, broke=1, same=1, p=1.0)
    assert adapted.call == Paired(fixed=1, broke=0, same=2, p=1.0)
    assert adapted.settings == {"gate.select": ('"certain"', '"all"')}
    assert adapted.summary["tool_accuracy"] == 3 / 4


def test_no_runs():
    assert compare({}) == []


def test_loading_an_unfinished_run_changes_nothing(tmp_path):
    with open_run(tmp_path, {"seed": 0}) as run:
        run.append([labelled("a", True, True, error="once")])
        run.append([labelled("b", True, True), labelled("a", True, False)])
        with open(tmp_path / "records.jsonl", "ab") as file:
            file.write(to_json(labelled("c", True, True)).encode()[:10])
        size = (tmp_path / "records.jsonl").stat().st_size
        config, records, summary = load_run(tmp_path)  # although another process writes
    assert config == {"seed": 0} and summary is None
    assert records == [labelled("a", True, False), labelled("b", True, True)]
    assert (tmp_path / "records.jsonl").stat().st_size == size


def test_runs_are_named_after_their_directories(tmp_path):
    paths = [tmp_path / "base", tmp_path / "tt-si", tmp_path / "other" / "base"]
    for path in paths:
        with open_run(path, {}) as run:
            run.complete([], {"n": 0})
    assert list(load_runs(paths[:2])) == ["base", "tt-si"]
    assert list(load_runs(paths)) == [str(path) for path in paths]
    with pytest.raises(InputError, match="given twice"):
        load_runs([paths[0], paths[0] / ".." / "base"])
    with pytest.raises(InputError, match="holds no run"):
        load_runs([tmp_path / "nowhere"])
