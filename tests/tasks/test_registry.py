import json
from collections import Counter
from itertools import pairwise

import pytest

from ttsi_jax.errors import InputError
from ttsi_jax.tasks import (
    TASK_NAMES,
    Call,
    Faults,
    call_correct,
    describe_tasks,
    load_task,
    micro_f1,
    tool_correct,
    unmatchable,
)
from ttsi_jax.tasks.faults import fingerprint
from ttsi_jax.tasks.prompts import ANY_NUMBER
from ttsi_jax.tasks.published import PUBLISHED

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
    examples = load_task(name, data_dir=HAMMER).usable
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
    assert [example.id for example in task.usable] == ["sealtools-0", "sealtools-1", "sealtools-2"]


def test_where_named_tasks_are_looked_for(tmp_path, monkeypatch):
    for folder in ("argument", "environment", "data"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "sealtool.json").write_text(json.dumps([{**ENTRY, "query": folder}]))
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("TTSI_DATA", raising=False)
    assert load_task("sealtools").examples[0].query == "data"
    monkeypatch.setenv("TTSI_DATA", str(tmp_path / "environment"))
    assert load_task("sealtools").examples[0].query == "environment"
    for folder in (tmp_path / "argument", "argument"):
        assert load_task("sealtools", data_dir=folder).examples[0].query == "argument"


def test_a_missing_file_says_how_to_get_it(tmp_path):
    with pytest.raises(InputError, match=r"NexusRaven\.json in .*TTSI_DATA.*: ttsi-jax tasks fetch nexusraven"):
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
    assert [example.id for example in task.examples] == ["line-1", "line-2", "line-3"]
    assert [example.id for example in task.usable] == ["line-2", "line-3"]
    assert len(task.problems) == 1
    path.write_text(path.read_text() + "\n]\n" + json.dumps(LINE))
    assert [example.id for example in load_task(str(path), limit=3).examples] == [f"line-{n}" for n in range(1, 5)]
    path.write_text("\n".join(["{", json.dumps(LINE), json.dumps(LINE), json.dumps(LINE)]))
    assert len(load_task(str(path), limit=99).usable) == 3
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


@needs_shared
@needs_bfcl
def test_where_several_calls_or_none_may_be_right_every_input_is_told():
    for name in ("toolalpaca", "bfcl:parallel", "bfcl:irrelevance", "bfcl:live_irrelevance"):
        task = load_task(name, data_dir=HAMMER)
        assert {example.messages[0]["content"] for example in task.usable} == {ANY_NUMBER}
    for name in real_tasks():
        task = load_task(name, data_dir=HAMMER)
        told = any(message["content"] == ANY_NUMBER for message in task.usable[0].messages)
        assert told or name.endswith(".jsonl") or all(len(example.gold) == 1 for example in task.usable)


def test_an_input_is_the_same_by_its_tasks_name_and_by_its_file(tmp_path):
    file = tmp_path / "toolalpaca.json"
    file.write_text(json.dumps([ENTRY]))
    [named], [filed] = (load_task(name, data_dir=tmp_path).examples for name in ("toolalpaca", str(file)))
    assert named.messages != filed.messages and fingerprint(named) == fingerprint(filed)


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
    sealtools, toolalpaca = infos["sealtools"], infos["toolalpaca"]
    assert (sealtools.present, sealtools.n_inputs, sealtools.faults) == (False, 294, Faults(loose=55))
    assert sealtools.source == "ttsi-jax tasks fetch sealtools"
    assert toolalpaca.known().startswith(
        "20 need several calls, 38 have one candidate, 40 cannot be matched, 5 have loose types; 34"
    )
    assert infos["nexusraven"].licence.startswith("CC-BY-NC-4.0") and "no commercial use" in infos["nexusraven"].known()
    assert infos["apibank-l2"].n_inputs is None and infos["nexusraven"].n_inputs == 318
    assert all(info.licence and info.source for info in infos.values())


def test_descriptions_count_what_is_here(tmp_path):
    (tmp_path / "sealtool.json").write_text(json.dumps([ENTRY, ENTRY]))
    [info] = [info for info in describe_tasks(tmp_path) if info.name == "sealtools"]
    assert (info.present, info.n_inputs, info.faults) == (True, 2, Faults(one_candidate=2, duplicates=1))


@needs_shared
@needs_bfcl
def test_what_is_said_of_the_published_data_is_what_is_in_it():
    found = {info.name: info for info in describe_tasks(HAMMER)}
    assert {name for name, info in found.items() if not info.present} == {"apibank-l2", "nexusraven"}
    for name, info in found.items():
        assert (info.n_inputs, info.faults) == (PUBLISHED[name].n_inputs, PUBLISHED[name].faults), name
    counts = "sealtools 294, apibank 399, toolalpaca 114, bfcl:simple_python 400, bfcl:multiple 200, bfcl:parallel 200"
    for name, count in (each.split() for each in counts.split(", ")):
        assert found[name].n_inputs == int(count)


@needs_shared
def test_unmatchable_right_calls_of_the_real_data():
    def reasons(name):
        return Counter(unmatchable(example) for example in load_task(name, data_dir=HAMMER).usable)

    toolalpaca = reasons("toolalpaca")
    assert sum(n for reason, n in toolalpaca.items() if reason and "stands nowhere" in reason) == 34
    assert sum(n for reason, n in toolalpaca.items() if reason and "is not listed" in reason) == 6
    apibank = reasons("apibank")
    assert apibank["the right value of 'password' stands nowhere in the input"] == 6
    assert sum(n for reason, n in apibank.items() if reason and "no argument 'device_id'" in reason) == 8


@needs_shared
def test_dialogues_of_api_bank_are_chat_turns():
    examples = load_task("apibank", data_dir=HAMMER).usable
    turns = [[message["role"] for message in example.messages] for example in examples]
    assert all(set(roles) <= {"user", "assistant"} and roles[0] == "user" for roles in turns)
    assert all(left != right for roles in turns for left, right in pairwise(roles))  # as chat templates want it
    assert sum(len(roles) > 1 for roles in turns) == 397
    assert sum(roles[-1] == "assistant" for roles in turns) == 276  # the call is due after what was last said
