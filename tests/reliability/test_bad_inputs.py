"""A corpus of bad inputs: each ends in its exit code, with a message that says why, soon and in little memory."""

from __future__ import annotations

import shutil
import signal
import sys
import tracemalloc
from pathlib import Path

import pytest

from checkpoints.tiny_models import gguf_tensors, hf_settings, hf_tensors, write_gguf, write_hf
from reliability.cases import GOOD_LINE, Case
from reliability.model_cases import MODEL_CASES
from reliability.task_cases import TASK_CASES
from ttsi_jax.cli import main
from ttsi_jax.tasks import load_task

CASES = (*MODEL_CASES, *TASK_CASES)
LIMIT_SECONDS, LIMIT_BYTES = 10, 100 << 20


def test_the_corpus_is_large_and_its_cases_have_names_of_their_own():
    assert len({case.name for case in CASES}) == len(CASES) >= 200


def test_every_broken_line_of_a_file_is_named_by_its_number(tmp_path):
    broken = [
        case.files["bad.jsonl"] for case in TASK_CASES if case.name.startswith(("line:", "tools:")) and case.files
    ]
    broken = [line.encode() if isinstance(line, str) else line for line in broken]
    broken = [line for line in broken if line.strip() and b"\n" not in line and len(line) < 1 << 20]
    assert len(broken) > 50
    path = tmp_path / "bad.jsonl"
    path.write_bytes(b"\n".join([GOOD_LINE.encode(), *broken, b"", GOOD_LINE.replace("good", "better").encode()]))
    task = load_task(str(path))
    assert [example.id for example in task.usable] == ["good", "better"]
    numbers = [int(problem.partition(":")[2].partition(":")[0]) for problem in task.problems]
    assert numbers == list(range(2, len(broken) + 2))


@pytest.fixture(scope="module")
def good(tmp_path_factory) -> Path:
    """A folder with a good model of each format and a good task."""
    folder = tmp_path_factory.mktemp("good")
    settings = hf_settings("llama")
    tensors = hf_tensors(settings)
    write_hf(folder / "model", settings, tensors)
    write_gguf(folder / "model.gguf", settings, gguf_tensors(settings, tensors))
    (folder / "good.jsonl").write_text(GOOD_LINE)
    (folder / "raises.py").write_text("raise ValueError('broken on purpose')")
    (folder / "full").mkdir()
    (folder / "full/thesis.txt").write_text("precious")
    return folder


def lay_out(case: Case, good: Path) -> int:
    """Puts the case's files over the good ones; returns the bytes of all."""
    shutil.copytree(good, ".", dirs_exist_ok=True)
    for name, content in case.files.items():
        path = Path(name)
        if callable(content):
            source = path if path.exists() else Path("model/model.safetensors")
            content = content((good / source).read_bytes())
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        if content is not None:
            path.write_bytes(content.encode() if isinstance(content, str) else content)
    return sum(file.stat().st_size for file in Path().rglob("*") if file.is_file())


def resident_peak() -> int:
    """The most memory that this process held since `reset_peak`, in bytes; 0 where the system does not say."""
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return 0
    return int(status.partition("VmHWM:")[2].split()[0]) << 10


def reset_peak() -> None:
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        pass


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_bad_input_is_refused(case, good, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [*sys.path])
    size = lay_out(case, good)
    capsys.readouterr()

    def hang(number, frame):
        raise AssertionError(f"{case.name} takes more than {LIMIT_SECONDS} s")

    before = signal.signal(signal.SIGALRM, hang)
    signal.alarm(LIMIT_SECONDS)
    reset_peak()
    resident = resident_peak()
    tracemalloc.start()
    try:
        code = main(list(case.argv))
    except SystemExit as wrong_arguments:
        code = wrong_arguments.code
    finally:
        allocated = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
    out, err = capsys.readouterr()
    told = " ".join(err.split())
    assert code == case.code, told
    assert case.said in told and told, told[:2000]
    assert "Traceback" not in out + err and len(err) < 30_000
    assert not set(err) & set(map(chr, [*range(9), *range(11, 32), 127])), "control characters reach the terminal"
    assert max(allocated, resident_peak() - resident) <= size + LIMIT_BYTES
    assert not Path("runs").exists() and Path("full/thesis.txt").read_text() == "precious"
