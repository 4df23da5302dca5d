"""Rules of accept or revert on a finished run."""

import accept_rules
from tiny_runs import TASK
from ttsi_jax.quality.accept import Evidence
from ttsi_jax.runs.groups import Run
from ttsi_jax.runs.record import Record

RIGHT = {"name": "add", "arguments": {"a": 1, "b": 2}}
FELL = Evidence(2.0, 1.0, True, 0.5, 0.1)._asdict()
FIXED = Record("one", "tiny", "?", adapted_calls=[RIGHT], adapted=True, evidence=FELL, call_correct_base=False)


def test_every_rule_has_a_line(monkeypatch, capsys):
    monkeypatch.setattr(accept_rules, "load_run", lambda path: Run({}, [FIXED], None))
    monkeypatch.setattr(accept_rules, "load_task", lambda name, data_dir: TASK)
    assert accept_rules.main(["runs/mine", "tiny"]) == 0
    lines = [line.replace("│", " ").replace("|", " ").split() for line in capsys.readouterr().out.splitlines()]
    found = {" ".join(line[:-5]): line[-5:] for line in lines if len(line) > 5}
    assert found["all"] == found["sibling"] == found["sibling, valid"] == ["1", "1", "0", "0", "0"]
    assert found["sibling, margin"] == ["0", "0", "0", "0", "1"]


def test_a_run_that_is_not_there_is_named(tmp_path, capsys):
    assert accept_rules.main([str(tmp_path / "none"), "bfcl:multiple"]) == 2
    assert "none" in capsys.readouterr().err
