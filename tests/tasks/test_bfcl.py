import json
import sys

import pytest

from ttsi_jax.errors import InputError
from ttsi_jax.tasks import bfcl
from ttsi_jax.tasks.bfcl import CATEGORIES, load_bfcl
from ttsi_jax.tasks.example import Call
from ttsi_jax.tasks.metrics import call_correct

from .data import needs_bfcl

COUNTS = dict(zip(CATEGORIES, (400, 200, 200, 200, 258, 1053, 16, 24, 240, 884), strict=True))


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(bfcl, "data_folder", lambda: tmp_path)
    (tmp_path / "possible_answer").mkdir()
    return tmp_path


def question(identifier="q", **changes):
    parameters = {"type": "dict", "properties": {"x": {"type": "float"}}, "required": ["x"]}
    turns = [[{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Go."}]]
    function = [{"name": "math.f", "description": "", "parameters": parameters}]
    return {"id": identifier, "question": turns, "function": function, **changes}


def write(folder, questions, answers, category="multiple", version=4):
    name = f"BFCL_v{version}_{category}.json"
    (folder / name).write_text("\n".join(map(json.dumps, questions)))
    (folder / "possible_answer" / name).write_text("\n".join(map(json.dumps, answers)))


def answer(arguments, identifier="q"):
    return {"id": identifier, "ground_truth": [{"math.f": arguments}]}


def test_an_entry(folder):
    write(folder, [question("a"), question("b")], [answer({"x": [2]}, "b"), answer({"x": [1.0, 1], "y": ["", 5]}, "a")])
    task = load_bfcl("multiple")
    assert task.name == "bfcl:multiple"
    first, second = task.examples
    assert [message["role"] for message in first.messages] == ["system", "user"]
    assert first.tools[0].properties == {"x": {"type": "number"}}
    assert first.gold is not None and second.gold is not None
    assert first.gold[0].arguments["x"] == (1.0, 1)
    assert first.gold[0].optional == {"y"}
    assert second.gold[0].arguments == {"x": (2,)}


@pytest.mark.parametrize(
    ("accepted", "right", "wrong"),
    [
        ([{"k": [1, 2], "l": ["", "z"]}], [{"k": 1}, {"k": 2, "l": "Z"}], [{"k": 3}, {"l": "z"}, {"k": [1, 2]}, {}]),
        ([[{"k": [1, 2]}, {"k": [3]}]], [[{"k": 2}, {"k": 3}]], [[{"k": 3}, {"k": 2}], [{"k": 1}]]),
        ([[1, 2], [3]], [[1, 2], [3]], [1, [1], [1, 2, 3]]),
        ([{"k": []}], [{"k": []}], [{}, {"k": 1}]),
        ([{"k": [{"m": 1}]}], [{"k": {"m": 1}}], [{"k": {"m": 2}}]),
        ([], [[]], [1]),
    ],
)
def test_accepted_values_inside_objects(folder, accepted, right, wrong):
    write(folder, [question()], [answer({"x": accepted})])
    [example] = load_bfcl("multiple").examples
    assert example.gold is not None
    for value in right:
        assert call_correct([Call("math.f", {"x": value})], example.gold)
    for value in wrong:
        assert not call_correct([Call("math.f", {"x": value})], example.gold)


BAD = [
    (question(id=None), answer({}), "no 'id'"),
    (question(question=[]), answer({}), "not a list with one conversation"),
    (question(question="Go."), answer({}), "not a list with one conversation"),
    (question(function=None), answer({}), "'tools' is not a list"),
    (question(), answer({}, "another"), "no answer with this id"),
    (question(), {"id": "q", "ground_truth": ["f()"]}, "not one function with its arguments"),
    (question(), {"id": "q", "ground_truth": [{"f": {}, "g": {}}]}, "not one function with its arguments"),
    (question(), answer([1]), "are not a list"),
    (question(), answer({"x": 1}), "are not a list"),
    (question(), answer({"x": [{"k": 1}]}), "does not list the values of each key"),
    (question(), answer({"x": [{str(key): [0, 1] for key in range(40)}]}), "more than 4096 accepted values"),
]


@pytest.mark.parametrize(("asked", "answered", "reason"), BAD, ids=[reason for *_, reason in BAD])
def test_a_bad_line_is_a_problem_and_the_others_still_run(folder, asked, answered, reason):
    write(folder, [question("good"), asked], [answer({}, "good"), answered])
    task = load_bfcl("multiple")
    assert [example.id for example in task.usable] == ["good"]
    [problem] = task.problems
    assert problem.startswith("BFCL_v4_multiple.json:2: ")
    assert reason in problem


def test_the_newest_version_of_just_this_category(folder):
    write(folder, [question("old")], [answer({}, "old")], version=9)
    write(folder, [question("new")], [answer({}, "new")], version=10)
    write(folder, [question("other")], [answer({}, "other")], category="live_multiple", version=11)
    assert [example.id for example in load_bfcl("multiple").examples] == ["new"]


def test_irrelevance_needs_no_answers(folder):
    (folder / "BFCL_v4_irrelevance.json").write_text(json.dumps(question()))
    [example] = load_bfcl("irrelevance").examples
    assert example.gold == ()


@pytest.mark.parametrize(
    ("category", "reason"),
    [
        ("nonsense", "unknown BFCL category 'nonsense'; known are simple_python"),
        ("", "unknown BFCL category"),
        ("simple_java", "Java and JavaScript are not supported"),
        ("simple_javascript", "Java and JavaScript are not supported"),
        ("../multiple", "unknown BFCL category"),
        ("parallel", r"no file BFCL_v\*_parallel\.json"),
    ],
)
def test_categories_that_are_not_there(folder, category, reason):
    with pytest.raises(InputError, match=reason):
        load_bfcl(category)


def test_not_installed(monkeypatch):
    def missing(name):
        raise bfcl.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(bfcl.metadata, "distribution", missing)
    with pytest.raises(InputError, match="pip install --no-deps bfcl-eval"):
        load_bfcl("multiple")


@needs_bfcl
@pytest.mark.parametrize("category", CATEGORIES)
def test_installed_categories(category):
    task = load_bfcl(category)
    assert task.problems == ()
    assert len(task.usable) == COUNTS[category]
    assert "bfcl_eval" not in sys.modules


@needs_bfcl
def test_simple_is_simple_python():
    assert load_bfcl("simple").name == "bfcl:simple_python"
