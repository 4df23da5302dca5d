import json
import subprocess
import sys

import pytest

from ttsi_jax.errors import InputError
from ttsi_jax.runs.directory import open_run, read_records
from ttsi_jax.runs.record import Record, to_json

CONFIG = {"model": "m", "gate": {"tau": 0.95, "select": "uncertain"}, "stop": (1, 2)}
IDS = [f"input-{i}" for i in range(6)]


def record(id, **values):
    return Record(id, "task", f"query of {id} – ü", **values)


def contents(path):
    return {file.name: file.read_bytes() for file in path.iterdir()}


def test_a_run_is_written_and_read_again(tmp_path):
    path = tmp_path / "deep" / "run"
    with open_run(path, CONFIG) as run:
        assert run.finished == {}
        run.write("environment.json", {"python": "3"})
        run.append([record("b"), record("a")])
        run.append([record("c", error="no candidates")])
        run.complete(["a", "b", "c"], {"n": 3, "share": float("nan")})
    assert [json.loads(line)["id"] for line in (path / "records.jsonl").read_text().splitlines()] == ["a", "b", "c"]
    assert json.loads((path / "summary.json").read_text()) == {"n": 3, "share": None}
    assert json.loads((path / "config.json").read_text())["gate"] == CONFIG["gate"]
    assert json.loads((path / "environment.json").read_text()) == {"python": "3"}
    with open_run(path, CONFIG) as run:
        assert list(run.finished.values()) == [record("a"), record("b")]


def test_failed_inputs_are_tried_again_and_their_old_lines_dropped(tmp_path):
    with open_run(tmp_path, CONFIG) as run:
        run.append([record("a", error="out of memory"), record("b")])
        run.complete(["a", "b"], {})
    with open_run(tmp_path, CONFIG) as run:
        assert list(run.finished) == ["b"] and list(run.failed) == ["a"]
        run.append([record("a", pick="f")])
        assert not (tmp_path / "summary.json").exists(), "the old summary would speak of other records"
        run.complete(["a", "b"], {})
    lines = [to_json(record("a", pick="f")), to_json(record("b"))]
    assert (tmp_path / "records.jsonl").read_text() == "\n".join(lines) + "\n"


def test_a_line_torn_at_any_byte_is_cut_off(tmp_path):
    whole = [to_json(record(id)).encode() + b"\n" for id in IDS[:2]]
    last = to_json(record("torn 東\u2028")).encode() + b"\n"
    with open_run(tmp_path, CONFIG):
        pass
    for kept in range(len(last) + 1):
        (tmp_path / "records.jsonl").write_bytes(b"".join(whole) + last[:kept])
        with open_run(tmp_path, CONFIG) as run:
            assert list(run.finished) == IDS[:2] + ["torn 東\u2028"] * (kept == len(last))
            run.append([record("next")])
            assert list(read_records(tmp_path / "records.jsonl")[0]) == [*run.finished]


@pytest.mark.parametrize("broken", [b"{", b"\xff\xfe", b"", b"[1]", b'{"id": "x"}', b"[" * 100_000])
def test_a_broken_line_is_named_and_nothing_is_changed(tmp_path, broken):
    with open_run(tmp_path, CONFIG) as run:
        run.append([record("a")])
    with open(tmp_path / "records.jsonl", "ab") as file:
        file.write(broken + b"\n" + to_json(record("b")).encode() + b"\n" + b'{"torn')
    before = contents(tmp_path)
    with pytest.raises(InputError, match=r"records\.jsonl:2: "):
        open_run(tmp_path, CONFIG)
    assert contents(tmp_path) == before


def test_another_configuration_is_refused_with_every_difference(tmp_path):
    with open_run(tmp_path, CONFIG):
        pass
    before = contents(tmp_path)
    other = {"gate": {"tau": 0.5, "select": "uncertain"}, "stop": [1, 2], "seed": None, "model": "m"}
    with pytest.raises(InputError) as refusal:
        open_run(tmp_path, other)
    message = str(refusal.value)
    assert "gate.tau: 0.95 there, 0.5 now" in message
    assert "seed: (absent) there, null now" in message
    assert "another directory" in message
    assert "select" not in message and "model" not in message and "stop" not in message
    assert contents(tmp_path) == before
    with open_run(tmp_path, dict(reversed(CONFIG.items()))):
        pass


def test_what_is_no_run_is_refused(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(InputError, match="not empty"):
        open_run(tmp_path, CONFIG)
    assert list(contents(tmp_path)) == ["thesis.tex"]
    with pytest.raises(InputError, match="cannot be used"):
        open_run(tmp_path / "thesis.tex", CONFIG)


def test_a_damaged_configuration_is_named(tmp_path):
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(InputError, match=r"config\.json: not a JSON file"):
        open_run(tmp_path, CONFIG)


def test_completing_needs_exactly_the_inputs_that_have_a_record(tmp_path):
    with open_run(tmp_path, CONFIG) as run:
        run.append([record("a"), record("b")])
        with pytest.raises(InputError, match="without a record: c"):
            run.complete(["a", "b", "c"], {})
        with pytest.raises(InputError, match="its task does not: b"):
            run.complete(["a"], {})
        assert not (tmp_path / "summary.json").exists()
    with open_run(tmp_path, CONFIG) as run:
        assert list(run.finished) == ["a", "b"]


def test_a_second_process_is_refused_until_the_first_is_done(tmp_path):
    pytest.importorskip("fcntl")
    program = f"from ttsi_jax.runs.directory import open_run; open_run({str(tmp_path)!r}, {CONFIG!r})"
    with open_run(tmp_path, CONFIG):
        second = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
        assert "InputError" in second.stderr and "another process" in second.stderr
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0
