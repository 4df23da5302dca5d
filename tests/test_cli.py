"""The command line: exit codes, what is said where, directories, and an interrupted process."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import tyro

import ttsi_jax
from tiny_runs import EXAMPLES, timeless, write_model
from ttsi_jax import cli
from ttsi_jax.cli import main
from ttsi_jax.cli.arguments import run_of
from ttsi_jax.config import check
from ttsi_jax.errors import InputError
from ttsi_jax.runs.directory import read_records
from ttsi_jax.runs.record import to_json

SETTINGS = [
    *("--answer.form", "keys", "--answer.max-tokens", "24", "--answer.value-tokens", "4", "--wave", "4"),
    *("--synthesis.form", "request", "--synthesis.max-tokens", "8", "--gate.tau", "1.1"),
    *("--adapt.scope", "suffix", "--adapt.epochs", "3", "--adapt.lr", "3e-2", "--adapt.rank", "2"),
]


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    return str(write_model(tmp_path_factory.mktemp("models") / "tiny"))


def line(one) -> str:
    gold = [{"name": call.name, "arguments": {k: v[0] for k, v in call.arguments.items()}} for call in one.gold or ()]
    tools = [{"name": t.name, "description": t.description, "parameters": t.parameters} for t in one.tools]
    return json.dumps({"id": one.id, "query": one.query, "tools": tools, "calls": gold})


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """Every test has a directory of its own with a task of three inputs."""
    monkeypatch.chdir(tmp_path)
    Path("mine.jsonl").write_text("\n".join(map(line, EXAMPLES[:3])))


def run(model, *more, task="mine.jsonl"):
    return main(["run", "--model", model, "--task", task, *SETTINGS, *more])


def lines(directory) -> list[str]:
    return [to_json(timeless(record)) for record in read_records(Path(directory) / "records.jsonl")[0].values()]


def one_line(text: str) -> str:
    return " ".join(text.split())


def test_a_run_that_is_done(model, capsys):
    assert run(model, "--out", "first") == cli.DONE == 0
    out, err = capsys.readouterr()
    assert "mine · tiny · tt-si" in out and "accuracy" in out and out.endswith("run: first\n")
    assert "3 inputs of mine; loading" in err and "the run is kept in first" in err and "compiling took" in err
    assert "Traceback" not in err and "accuracy" not in err
    assert len(lines("first")) == 3 and Path("first/summary.json").exists()


@pytest.mark.parametrize("option", ["--adapt.rule", "--adapt.loss", "--synthesis.form", "--gate.estimator"])
def test_an_unknown_name_ends_it_before_anything_is_loaded(model, capsys, option):
    assert run(model, option, "nope") == cli.BAD_INPUT
    err = capsys.readouterr().err
    assert "unknown" in err and "'nope'" in err and "loading" not in err


def test_the_same_command_shows_the_finished_run_again(model, capsys):
    run(model, "--out", "first")
    content, shown = Path("first/records.jsonl").read_bytes(), capsys.readouterr().out
    assert run(model, "--out", "first") == 0
    assert Path("first/records.jsonl").read_bytes() == content and capsys.readouterr().out == shown


def test_the_directory_is_named_after_the_settings(model):
    base = ("--method", "base")
    assert run(model, *base) == run(model, *base) == 0
    [first] = Path("runs").iterdir()
    assert re.fullmatch(r"mine\.tiny\.base\.[0-9a-f]{8}", first.name)
    assert run(model, *base, "--limit", "2") == run(model, *base, "--seed", "1") == 0
    assert run(model, *base, "--dtype", "float32") == 0
    sizes = sorted(len(lines(path)) for path in Path("runs").iterdir())
    assert sizes == [2, 3, 3, 3]


@pytest.mark.parametrize(
    ("model", "task", "words"),
    [
        ("Qwen/Qwen2.5-1.5B-Instruct", "bfcl:multiple", "bfcl-multiple.Qwen2-5-1-5B-Instruct"),
        ("models/Mine-0.5.gguf", "some dir/my.task.jsonl", "my-task.Mine-0-5"),
    ],
)
def test_names_of_directories(model, task, words):
    named = str(cli.Run(model=model, task=task).directory())
    assert re.fullmatch(rf"runs/{re.escape(words)}\.tt-si\.[0-9a-f]{{8}}", named)
    assert cli.Run(model=model, task=task, out=Path("x")).directory() == Path("x")


def test_broken_lines_fail_by_their_numbers_and_the_rest_runs(model, capsys):
    Path("mine.jsonl").write_text("\n".join(["{", line(EXAMPLES[0]), '{"query": "a"}', line(EXAMPLES[1])]))
    for _ in range(2):  # a resumed run tells of them again
        assert run(model, "--method", "base", "--out", "run") == cli.SOME_FAILED == 1
        err = one_line(capsys.readouterr().err)
        assert "cannot be used: mine.jsonl:1: not valid JSON" in err and "cannot be used: mine.jsonl:3: " in err
        assert "failed: input 'line-1': mine.jsonl:1: not valid JSON" in err
        kept = [json.loads(each) for each in lines("run")]
        assert [record["id"] for record in kept] == ["line-1", "one", "line-3", "two"]
        assert [record["error"] is None for record in kept] == [False, True, False, True]
        summary = json.loads(Path("run/summary.json").read_bytes())
        assert (summary["n"], summary["failed"]) == (4, 2)


def test_data_is_where_a_named_training_file_lies_too(model, capsys):
    entry = json.loads(line(EXAMPLES[0]))
    Path("elsewhere").mkdir()
    Path("elsewhere/sealtool.json").write_text(json.dumps([entry | {"query": "2 and 3", "answers": entry["calls"]}]))
    icl = ("--method", "icl", "--synthesis.file", "sealtools", "--limit", "1", "--out", "icl")
    assert run(model, *icl) == 2 and "another folder: --data" in one_line(capsys.readouterr().err)
    assert run(model, *icl, "--data", "elsewhere") == 0
    assert json.loads(lines("icl")[0])["synthetic"][0]["origin"] == "sealtools-0"


def test_unmatchable_right_calls_are_counted_and_can_be_left_out(model, capsys):
    hidden = json.loads(line(EXAMPLES[0])) | {"id": "hidden", "calls": [{"name": "nowhere", "arguments": {}}]}
    with open("mine.jsonl", "a") as file:
        file.write("\n" + json.dumps(hidden))
    labelled = {}
    for choice in ("keep", "drop"):
        assert run(model, "--method", "base", "--unmatchable", choice, "--out", choice) == 0
        summary = json.loads(Path(choice, "summary.json").read_bytes())
        assert (summary["n"], summary["unmatchable"]) == (4, 1)
        labelled[choice] = summary["labelled"]["call_accuracy"]
    assert labelled == {"keep": 4, "drop": 3}
    assert run(model, "--method", "base", "--unmatchable", "drop", "--out", "keep") == 2
    assert 'unmatchable: "keep" there, "drop" now' in one_line(capsys.readouterr().err)


def test_failed_inputs_are_named(model, capsys):
    with open("mine.jsonl", "a") as file:
        file.write('\n{"id": "bare", "query": "hi", "tools": [], "calls": []}\n')
    assert run(model, "--method", "base", "--out", "run") == 1
    assert "failed: input 'bare': the input has no candidate function" in capsys.readouterr().err
    assert len(lines("run")) == 4


NO_MODEL = ["run", "--model", "nowhere", "--task", "mine.jsonl"]


@pytest.mark.parametrize(
    ("argv", "code", "message"),
    [
        (NO_MODEL, 3, "error: there is no model at nowhere"),
        (
            ["run", "--model", "m.bin", "--task", "mine.jsonl"],
            3,
            "error: m.bin is neither a directory nor a .gguf file",
        ),
        (["run", "--model", "damaged", "--task", "mine.jsonl"], 3, "config.json"),
        (["run", "--model", "damaged", "--task", "sealtool"], 2, "unknown task 'sealtool' (did you mean sealtools?)"),
        (["run", "--model", "damaged", "--task", "none.jsonl"], 2, "cannot read the task file none.jsonl"),
        (["run", "--model", "damaged", "--task", "bad.jsonl"], 2, "bad.jsonl has no usable example: bad.jsonl:1"),
        ([*NO_MODEL, "--limit", "0"], 2, "the limit on examples must be at least 1, not 0"),
        ([*NO_MODEL, "--wave", "0"], 2, "error: --wave is 0; it must be at least 1"),
        ([*NO_MODEL, "--adapt.lr", "-1"], 2, "error: --adapt.lr is -1.0; it must be above 0"),
        (["compare", "nowhere"], 2, "error: nowhere: holds no run"),
        (["compare"], 2, "name at least one run directory"),
        (["report", "nowhere", "--out", "x.html"], 2, "error: nowhere: holds no run"),
    ],
)
def test_what_cannot_be_used_is_told_on_stderr(capsys, argv, code, message):
    Path("m.bin").write_text("")
    Path("damaged").mkdir()
    Path("damaged/config.json").write_text("{")
    Path("bad.jsonl").write_text("{")
    assert main(argv) == code
    out, err = capsys.readouterr()
    assert message in one_line(err) and out == "" and "Traceback" not in err


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["--dtype", "int4"], "dtype 'int4' is not supported; supported: float32, bfloat16, int8"),
        (["--adapt.rule", "ftrl"], "unknown update rule 'ftrl'. Known: adamw"),
        (["--gate.estimator", "nowhere:f"], "estimator 'nowhere:f' cannot be imported"),
    ],
)
def test_settings_that_a_model_is_needed_for(model, capsys, changes, message):
    assert run(model, "--out", "run", *changes) == cli.BAD_INPUT == 2
    assert message in one_line(capsys.readouterr().err) and not Path("run").exists()


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([*NO_MODEL, "--method", "tt-x"], "tt-x"),
        ([*NO_MODEL, "--gate.select", "some"], "some"),
        ([*NO_MODEL, "--waves", "3"], "--waves"),
        ([*NO_MODEL, "--wave", "many"], "many"),
        (["run", "--task", "mine.jsonl"], "--model"),
        (["walk"], "walk"),
        (["report", "nowhere"], "--out"),
    ],
)
def test_arguments_that_do_not_exist(capsys, argv, message):
    with pytest.raises(SystemExit) as caught:
        main(argv)
    assert caught.value.code == 2 and message in capsys.readouterr().err


def test_a_directory_with_another_run_is_refused_and_left_as_it_is(model, capsys):
    run(model, "--method", "base", "--out", "run")
    before = {path.name: path.read_bytes() for path in Path("run").iterdir()}
    assert run(model, "--method", "base", "--out", "run", "--seed", "5") == 2
    err = capsys.readouterr().err
    assert "run: holds a run with other settings" in err and "seed: 0 there, 5 now" in err
    assert run(model, "--method", "base", "--out", "run", "--limit", "2") == 2
    assert {path.name: path.read_bytes() for path in Path("run").iterdir()} == before
    Path("full").mkdir()
    Path("full/thesis.txt").write_text("precious")
    assert run(model, "--out", "full") == 2 and Path("full/thesis.txt").read_text() == "precious"


INTERRUPTED = """
import os, signal, sys
from ttsi_jax import cli, loop

score, waves = loop.Waves.score, []

def interrupted(self, rows, *rest):
    waves.append(rows)
    if len(waves) == 2:
        os.kill(os.getpid(), signal.SIGINT)
    return score(self, rows, *rest)

loop.Waves.score = interrupted
sys.exit(cli.main(sys.argv[1:]))
"""


def test_an_interrupted_process_exits_with_130_and_the_same_command_resumes(model, monkeypatch, capsys):
    """The signal comes before the second wave is scored, when the first one's inputs are finished."""
    monkeypatch.setattr("sys.path", [*sys.path])
    Path("mine.jsonl").write_text("\n".join(map(line, EXAMPLES)))
    argv = ["run", "--model", model, "--task", "mine.jsonl", *SETTINGS, "--method", "base"]
    env = os.environ | {"PYTHONPATH": str(Path(ttsi_jax.__file__).parents[1])}
    command = [sys.executable, "-c", INTERRUPTED, *argv, "--out", "run"]
    process = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300)
    assert process.returncode == 130, process.stderr
    assert "interrupted; finished inputs are in run, and the same command resumes the run" in process.stderr
    assert "Traceback" not in process.stderr
    kept = Path("run/records.jsonl").read_bytes()
    assert kept.count(b"\n") == 4

    assert main([*argv, "--out", "run"]) == main([*argv, "--out", "whole"]) == 0
    assert set(kept.splitlines()) < set(Path("run/records.jsonl").read_bytes().splitlines())
    assert lines("run") == lines("whole") and len(lines("run")) == 7


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_a_program_compiles_exits_with_130(model, number):
    Path("mine.jsonl").write_text("\n".join(map(line, EXAMPLES)))
    argv = ["run", "--model", model, "--task", "mine.jsonl", *SETTINGS, "--out", "run"]
    env = os.environ | {"PYTHONPATH": str(Path(ttsi_jax.__file__).parents[1]), "JAX_LOG_COMPILES": "1"}
    command = [sys.executable, "-m", "ttsi_jax.cli", *argv]
    with subprocess.Popen(command, env=env, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        said = []
        for text in process.stderr:
            said.append(text)
            if "Compiling jit(score" in text:
                process.send_signal(number)
                break
        said.append(process.stderr.read())
    assert process.returncode == 130, "".join(said)
    assert "the same command resumes the run" in said[-1]


COMPILING = """
import threading, time
import jax, jax.numpy as jnp
from ttsi_jax import cli

def long(x):
    for _ in range(3000):
        x = jnp.tanh(x @ x)
    return x

threading.Thread(target=jax.jit(long), args=(jnp.eye(64),), daemon=True).start()
time.sleep(1)
cli.main = lambda: cli.INTERRUPTED
cli.entry()
"""


def test_an_interrupted_process_does_not_wait_for_what_compiles():
    """XLA would go on, and crash where Python is no longer there."""
    env = os.environ | {"PYTHONPATH": str(Path(ttsi_jax.__file__).parents[1])}
    process = subprocess.run([sys.executable, "-c", COMPILING], env=env, capture_output=True, text=True, timeout=300)
    assert process.returncode == 130, process.stderr


def test_an_interrupt_before_the_run_begins(model, monkeypatch, capsys):
    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr("ttsi_jax.checkpoints.load_model", interrupt)
    assert run(model) == cli.INTERRUPTED == 130
    assert "interrupted" in capsys.readouterr().err and not Path("runs").exists()


def test_a_termination_signal_is_an_interrupt(model, monkeypatch):
    monkeypatch.setattr("ttsi_jax.checkpoints.load_model", lambda *a, **k: os.kill(os.getpid(), signal.SIGTERM))
    assert run(model) == 130


def test_memory_decides_the_wave(model, capsys):
    wave = SETTINGS.index("--wave")
    own = ["run", "--model", model, "--task", "mine.jsonl", *SETTINGS[:wave], *SETTINGS[wave + 2 :], "--memory"]
    assert run(model, "--memory", "1") == 2
    assert "--memory decides --wave: give one of them" in one_line(capsys.readouterr().err)
    assert main([*own, "1e-4", "--out", "none"]) == 2 and not Path("none").exists()
    assert "--memory 0.0001 is too little: a wave of 1 takes up to" in one_line(capsys.readouterr().err)
    assert main([*own, "1", "--out", "out", "--method", "base"]) == 0
    assert "--memory 1: waves of 4, which take up to" in one_line(capsys.readouterr().err)
    assert json.loads(Path("out", "config.json").read_text())["wave"] == 4


def test_shards_are_joined(model, capsys):
    base = ("--method", "base")
    assert run(model, *base, "--out", "whole") == run(model, *base, "--shard", "1/2", "--out", "a") == 0
    assert "1 of 3 inputs of mine" in capsys.readouterr().err
    assert main(["merge", "a", "--out", "joined"]) == cli.SOME_FAILED
    out, err = capsys.readouterr()
    assert "shard 2/2 is not given: inputs that are missing: 2" in err and "--out joined" in err
    assert "run: joined, 1 of 3 inputs" in out
    assert run(model, *base, "--shard", "2/2", "--out", "b") == main(["merge", "a", "b", "--out", "joined"]) == 0
    assert "mine · tiny · base" in capsys.readouterr().out and lines("joined") == lines("whole")
    assert main(["compare", "whole", "joined"]) == 0
    assert run(model, "--shard", "3/2") == run(model, "--shard", "1/9") == main(["merge", "a", "a", "--out", "c"]) == 2


def test_compare_and_report(model, capsys):
    for method in ("base", "tt-si"):
        run(model, "--method", method, "--out", method)
    capsys.readouterr()
    assert main(["compare", "base", "tt-si", "--json", "figures.json"]) == 0
    out, err = capsys.readouterr()
    assert {group["group"]["name"] for group in json.loads(Path("figures.json").read_text())["groups"]} == {
        "base",
        "tt-si",
    }
    assert "base" in out and "tt-si" in out and "call" in out and err == ""
    assert main(["report", "base", "tt-si", "--out", "report.html"]) == 0
    assert "report: report.html" in capsys.readouterr().err
    html = Path("report.html").read_text()
    assert html.lstrip().startswith("<!") and "tt-si" in html
    assert main(["report", "base", "--out", "missing/report.html"]) == 2
    assert "missing/report.html: cannot be written: No such file or directory" in capsys.readouterr().err
    assert main(["compare", "base", "base"]) == 2 and "given twice" in one_line(capsys.readouterr().err)


def test_a_report_is_replaced_whole_and_where_a_link_leads(model, capsys, monkeypatch):
    def full(file, content):
        file.write(content[:9])
        raise OSError(28, "No space left on device")

    assert run(model, "--method", "base", "--out", "base") == 0
    Path("old.html").write_text("old")
    Path("link.html").symlink_to("old.html")
    with monkeypatch.context() as patch:
        patch.setattr("ttsi_jax.runs.directory._write", full)
        before = sorted(Path().iterdir())
        assert main(["report", "base", "--out", "link.html"]) == 2
    assert "link.html: cannot be written: No space left on device" in capsys.readouterr().err
    assert Path("old.html").read_text() == "old" and sorted(Path().iterdir()) == before
    assert main(["report", "base", "--out", "link.html"]) == 0
    assert Path("link.html").is_symlink() and Path("old.html").read_text().lstrip().startswith("<!")


def test_a_terminal_that_knows_fewer_characters():
    """A table has lines and an ellipsis."""
    env = os.environ | {"PYTHONPATH": str(Path(ttsi_jax.__file__).parents[1]), "PYTHONIOENCODING": "ascii"}
    command = [sys.executable, "-m", "ttsi_jax.cli", "tasks"]
    process = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300)
    assert process.returncode == 0, process.stderr
    assert "sealtools" in process.stdout and "?" in process.stdout


def test_models_and_tasks_are_listed(capsys):
    assert main(["models"]) == main(["tasks"]) == 0
    out, err = capsys.readouterr()
    assert "smollm2-135m-instruct" in one_line(out).replace(" ", "") or "smollm2" in out
    assert "sealtools" in out and "nexusraven" in out and err == ""


def test_tasks_are_fetched(capsys, monkeypatch):
    monkeypatch.setattr("ttsi_jax.tasks.fetch", lambda name, data: f"{data}/{name} is there")
    assert main(["tasks", "fetch", "sealtools", "apibank", "--data", "here"]) == 0
    assert capsys.readouterr().err == "here/sealtools is there\nhere/apibank is there\n"


def test_a_task_that_cannot_be_fetched_keeps_none_of_the_others(capsys, monkeypatch):
    def fetch(name, data):
        if name == "b":
            raise InputError("b is gone")
        if name == "c":
            raise PermissionError(13, "Permission denied", "c.json")
        return f"{name} is there"

    monkeypatch.setattr("ttsi_jax.tasks.fetch", fetch)
    assert main(["tasks", "fetch", "a", "b", "c", "d"]) == 2
    told = ["a is there", "error: b is gone", "error: c.json: Permission denied", "d is there"]
    assert capsys.readouterr().err.splitlines() == told


def test_fetching_needs_a_name_and_listing_none(capsys):
    assert main(["tasks", "fetch"]) == 2
    assert "name the tasks to fetch" in capsys.readouterr().err
    assert main(["tasks", "--data", "nowhere"]) == main(["tasks", "list"]) == 0
    assert main(["tasks", "list", "sealtools"]) == 2
    assert "takes no names; given sealtools" in one_line(capsys.readouterr().err)


def test_an_error_of_the_system_is_told(model, capsys, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device", "run/records.jsonl")

    monkeypatch.setattr("ttsi_jax.runs.directory.RunDirectory.append", full)
    assert run(model, "--method", "base", "--out", "run") == 2
    told = "error: run/records.jsonl: No space left on device; finished inputs are in run, and the same command resumes"
    assert told in capsys.readouterr().err


def test_a_preset_is_what_other_options_change():
    from ttsi_jax.quality.presets import PRESETS

    def config(*more):
        argv = ["run", "--model", "m", "--task", "t", *more]
        return tyro.cli(run_of(argv), args=argv[1:]).config()

    assert config() == config("--preset", "paper") == PRESETS["paper"] == ttsi_jax.RunConfig()
    assert config("--preset=recommended") == config("--preset", "recommended") == PRESETS["recommended"]
    own = config("--synthesis.k", "5", "--preset", "recommended", "--gate.tau", "auto")
    assert (own.synthesis.k, own.synthesis.candidates, own.gate.tau) == (5, 4, "auto")
    for preset in PRESETS.values():
        check(preset)


def test_an_unknown_preset(model, capsys):
    with pytest.raises(SystemExit, match="2"):
        run(model, "--preset", "best")
    assert "recommended" in capsys.readouterr().err


def test_a_chosen_tau_is_told(model, capsys):
    assert run(model, "--gate.tau", "auto", "--method", "base", "--out", "auto") == cli.DONE
    summary = json.loads(Path("auto/summary.json").read_text())
    assert f"--gate.tau auto: {summary['tau']:.4g}, by distribution" in capsys.readouterr().err
