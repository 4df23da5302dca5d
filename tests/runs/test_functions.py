"""The functions of a run's inputs, kept once for each distinct list."""

import json
from dataclasses import asdict

import pytest

from tiny_runs import ADD, EXAMPLES, GREET, example, settings, task_of, tiny_model
from ttsi_jax.errors import InputError
from ttsi_jax.loop import run
from ttsi_jax.runs.functions import FUNCTIONS, listed, read_functions
from ttsi_jax.runs.groups import load_run
from ttsi_jax.runs.shards import Shard, merge
from ttsi_jax.tasks import Example

TASK = task_of(EXAMPLES[0], EXAMPLES[3], example("again", "And 3 and 4?"), Example("line-4", (), (), None, "not JSON"))
CONFIG = settings(method="base")
EXPECTED = [
    {"functions": [asdict(ADD), asdict(GREET)], "inputs": ["one", "again"]},
    {"functions": [asdict(GREET), asdict(ADD)], "inputs": ["four"]},
]


def test_each_distinct_list_stands_once_with_its_inputs():
    assert listed(TASK) == EXPECTED


def test_a_run_keeps_them_once(tmp_path):
    run(tiny_model(), TASK, CONFIG, out=tmp_path)
    assert load_run(tmp_path).functions == EXPECTED
    assert len((tmp_path / FUNCTIONS).read_text().splitlines()) == 2
    (tmp_path / FUNCTIONS).write_text("")
    run(tiny_model(), TASK, CONFIG, out=tmp_path)
    assert (tmp_path / FUNCTIONS).read_text() == "", "what is there is not written again"
    (tmp_path / FUNCTIONS).unlink()
    assert load_run(tmp_path).functions == [], "a run of before has none"


def test_joined_shards_have_those_of_all_inputs(tmp_path):
    paths = [tmp_path / "1", tmp_path / "2"]
    for index, path in enumerate(paths, start=1):
        run(tiny_model(), TASK, CONFIG, out=path, shard=Shard(index, 2))
        assert read_functions(path) == EXPECTED
    (paths[0] / FUNCTIONS).unlink()
    merge(paths, tmp_path / "joined")
    assert read_functions(tmp_path / "joined") == EXPECTED


@pytest.mark.parametrize(
    "line", ["{", "[]", "{}", '{"functions": [1], "inputs": []}', '{"functions": [], "inputs": [1]}', "[" * 100_000]
)
def test_a_damaged_file_is_told_by_its_line(tmp_path, line):
    (tmp_path / FUNCTIONS).write_text("\n".join([json.dumps(EXPECTED[0]), line]))
    with pytest.raises(InputError, match=f"{FUNCTIONS}:2: no list of functions .* Delete the file"):
        read_functions(tmp_path)
