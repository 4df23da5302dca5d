import json

import pytest

from ttsi_jax.errors import InputError
from ttsi_jax.tasks import TASK_NAMES, Call, call_correct, describe_tasks, load_task, micro_f1, tool_correct

from .data import HAMMER, LINE, SHARED, has_bfcl, needs_bfcl, needs_shared

ENTRY = {"query": "Go.", "tools": [{"name": "f"}], "answers": [{"name": "f", "arguments": {}}]}


def right_calls(gold_calls):
    return [
        Call(gold.name, {name: accepted[0] for name, accepted in gold.arguments.items() if name not in gold.optional})
        for gold in gold_calls
    ]


def real_tasks():
    hammer = ["sealtools", "apibank", "toolalpaca"] if SHARED.is_dir() else []
    files = [str(SHARED / "sealtools.dev.jsonl")] if SHARED.is_dir() else []
    return [*hammer, *files, *(name for name in TASK_NAMES if name.startswith("bfcl:") and has_bfcl())]


@pytest.mark.parametrize("name", real_tasks())
def test_the_gold_is_right_on_real_data(name):
    examples = load_task(name, data_dir=HAMMER).examples
    pairs = [(right_calls(example.gold), example.gold) for example in examples if example.gold is not None]
    assert len(pairs) == len(examples)
    for calls, gold in pairs:
        assert tool_correct(calls, gold)
        assert call_correct(calls, gold)
        assert not call_correct([*calls, Call("no such function", {})], gold)
    assert micro_f1(pairs)["name"] == (0 if "irrelevance" in name else 1)


@needs_shared
def test_named_tasks():
    task = load_task("sealtools", data_dir=HAMMER, limit=3)
    assert task.name == "sealtools"
    assert [example.id for example in task.examples] == ["sealtools-0", "sealtools-1", "sealtools-2"]


def test_where_named_tasks_are_looked_for(tmp_path, monkeypatch):
    for folder in ("argument", "environment", "data"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "sealtool.json").write_text(json.dumps([{**ENTRY, "query": folder}]))
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("TTSI_DATA", raising=False)
    assert load_task("sealtools").examples[0].query == "data"
    monkeypatch.setenv("TTSI_DATA", str(tmp_path / "environment"))
    assert load_task("sealtools").examples[0].query == "environment"
    assert load_task("sealtools", data_dir=tmp_path / "argument").examples[0].query == "argument"


def test_a_missing_file_says_where_to_get_it(tmp_path):
    with pytest.raises(InputError, match=r"NexusRaven\.json.*MadeAgents/Hammer.*data/test/original.*TTSI_DATA"):
        load_task("nexusraven", data_dir=tmp_path)


def test_files(tmp_path):
    (tmp_path / "a.jsonl").write_text(json.dumps(LINE))
    (tmp_path / "b.json").write_text(json.dumps([ENTRY]))
    assert load_task(str(tmp_path / "a.jsonl")).examples[0].id == "line-1"
    assert load_task(str(tmp_path / "b.json")).examples[0].id == "b-0"


def test_limit_counts_usable_examples(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join(["{", json.dumps(LINE), json.dumps(LINE), json.dumps(LINE)]))
    task = load_task(str(path), limit=2)
    assert [example.id for example in task.examples] == ["line-2", "line-3"]
    assert len(task.problems) == 1
    assert len(load_task(str(path), limit=99).examples) == 3
    for limit in (0, -1):
        with pytest.raises(InputError, match="at least 1"):
            load_task(str(path), limit=limit)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("sealtool", "unknown task 'sealtool' .did you mean sealtools."),
        ("bfcl_multiple", "did you mean bfcl:multiple"),
        ("", "unknown task ''; a task is"),
        ("xyz", "one of sealtools, apibank"),
        ("bfcl:", "unknown BFCL category"),
        ("no/such/file.jsonl", "cannot read the task file"),
        ("no/such/file.json", "cannot read the task file"),
    ],
)
def test_unknown_tasks(name, reason):
    with pytest.raises(InputError, match=reason):
        load_task(name)


def test_a_task_without_a_usable_example(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text("")
    with pytest.raises(InputError, match=r"a\.jsonl has no usable example: it is empty"):
        load_task(str(path))
    path.write_text("{\n[]\n")
    with pytest.raises(InputError, match=r"no usable example: a\.jsonl:1: not valid JSON.*; a\.jsonl:2: "):
        load_task(str(path))


def test_descriptions_of_absent_tasks(tmp_path):
    infos = {info.name: info for info in describe_tasks(tmp_path)}
    assert tuple(infos) == TASK_NAMES
    assert infos["sealtools"].n_examples is None
    assert "sealtool.json from github.com/MadeAgents/Hammer" in infos["sealtools"].source
    assert all(info.licence and info.source for info in infos.values())


@needs_shared
@needs_bfcl
def test_descriptions_count_examples():
    counts = {info.name: info.n_examples for info in describe_tasks(HAMMER)}
    assert (counts["sealtools"], counts["apibank"], counts["toolalpaca"]) == (294, 399, 114)
    assert (counts["nexusraven"], counts["bfcl:multiple"]) == (None, 200)
