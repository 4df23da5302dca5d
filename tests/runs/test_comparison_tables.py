from runs.synthetic import base_run, run
from ttsi_jax.runs.compare import compare
from ttsi_jax.runs.comparison_tables import comparison_tables
from ttsi_jax.runs.groups import Run

SEALTOOLS = {"task": "sealtools", "gate": {"select": "uncertain", "tau": 0.95}}


def tables(runs):
    return {rows.title: rows for rows in comparison_tables(compare(runs))}


def test_every_table_has_its_rows_and_as_many_cells_as_headings():
    runs = {"base": base_run(60, **SEALTOOLS), "tt-0": run(60, **SEALTOOLS), "tt-1": run(60, seed=1, **SEALTOOLS)}
    found = tables(runs)
    assert list(found) == [
        "Accuracy, base → final",
        "What changed",
        "Where the gain comes from",
        "What it cost",
        "Gate: errors",
        "Gate: calibration and gain",
        "Beside the paper",
        "Not as in the paper",
    ]
    for rows in found.values():
        assert {len(row) for row in rows.rows} == {len(rows.headings)}
    assert found["What changed"].headings[:4] == ("answers", "metric", "broke, % of right", "broke")
    assert [row[:2] for row in found["What changed"].rows] == [
        ("tt (2 seeds): base → final", "tool"),
        ("tt (2 seeds): base → final", "call"),
        ("base → tt (2 seeds)", "tool"),
        ("base → tt (2 seeds)", "call"),
    ]
    cost = found["What it cost"].rows[1]
    assert cost[-1].endswith("×") and "– (–)" in cost
    beside = found["Beside the paper"].rows[1]
    assert beside[1:4] == ("TT-SI", "72.43", "+5.76") and beside[-1] == "2"
    assert [row[1:] for row in found["Not as in the paper"].rows[2:]] == [
        ("model", "tiny", "Qwen2.5-1.5B-Instruct"),
        ("inputs", "60", "294"),
    ]


def test_a_run_without_labels_or_records_has_no_figures():
    found = tables({"empty": Run({}, [], None)})
    assert found["Accuracy, base → final"].rows == [("empty", "0", *["– → –"] * 3, "")]
    assert "Gate: errors" not in found and "Beside the paper" not in found
