"""Algorithms for one input, many at a time: each gets its own results, in full waves where there are enough."""

from types import SimpleNamespace

import pytest

from ttsi_jax.batching.lanes import Prompt, Read, Work
from ttsi_jax.batching.schedule import Adapt, Decode, Schedule, Score, Together
from ttsi_jax.batching.waves import Pair, Shape
from ttsi_jax.errors import InputError
from ttsi_jax.model.generation import Rows

SHAPE = Shape(32, 16, 2, 4)


class FakeRow(str):
    shape = SHAPE
    name = property(str)


class FakeWaves:
    """Echoes what it is asked, and keeps the sizes of waves."""

    def __init__(self, size: int):
        self.size, self.log = size, []

    def score(self, rows, names):
        self.log.append(("score", len(rows)))
        return [f"scores of {row.name}" for row in rows], [prompt(row.name, None) for row in rows]

    def lanes(self):
        return FakeLanes(self), FakeLanes(self, "guided ")


class FakeLanes:
    """Decodes at most `size` rows at a time."""

    def __init__(self, waves: FakeWaves, kind: str = ""):
        self.waves, self.kind, self.waiting = waves, kind, []

    @property
    def load(self) -> int:
        return len(self.waiting)

    def advance(self, to_the_end: bool):
        works = self.waiting[: self.waves.size]
        del self.waiting[: self.waves.size]
        adapted = works[0].prompt.read.rows.adapters is not None
        self.waves.log.append((self.kind + ("decode adapted" if adapted else "decode"), len(works)))
        return works, [(work, f"said after {work.prompt.row}") for work in works]


def prompt(row, adapters) -> Prompt:
    return Prompt(Read(Rows(None, (), adapters), (), 1.0, None), row, None)


def algorithm(name: str, adapts: bool):
    draft = SimpleNamespace(names=[name], shape=SHAPE, held_out=None)
    scores, read = yield Score(draft, "score", FakeRow(name), draft.names)
    assert scores == f"scores of {name}"
    said = yield Decode(draft, "answer", Work(read, ()))
    assert said == f"said after {name}"
    if adapts:
        read = yield Adapt(draft, "adapt", [FakeRow(name)], [Pair((1,), (2,))])
        said = yield Decode(draft, "answer", Work(read, ()))
        assert said == f"said after {name} adapted"
    return f"record of {name}"


def run(n: int, size: int, adapts) -> tuple[list[list[str]], list[tuple[str, int]], list]:
    waves, charged = FakeWaves(size), []

    def adapt(wave):
        waves.log.append(("adapt", len(wave)))
        return [prompt(f"{wish.rows[0]} adapted", "adapters") for wish in wave]

    schedule = Schedule(waves, lambda wave: [], adapt, charged.append)
    ended = list(schedule.run(algorithm(str(i), adapts(i)) for i in range(n)))
    return ended, waves.log, charged


@pytest.mark.parametrize("size", [1, 3, 4, 16])
@pytest.mark.parametrize("n", [0, 1, 7, 12])
def test_every_algorithm_comes_to_its_end_once(n, size):
    ended, log, charged = run(n, size, lambda i: i % 3 != 0)
    assert sorted(record for some in ended for record in some) == sorted(f"record of {i}" for i in range(n))
    assert max((rows for _, rows in log), default=0) <= size
    assert sum(len(shares) for shares in charged) == sum(rows for _, rows in log)


def test_those_that_adapt_wait_for_a_full_wave_and_the_last_do_not():
    _, log, _ = run(12, 4, lambda i: i % 2 == 0)
    assert [rows for stage, rows in log if stage == "score"] == [4, 4, 4]
    assert [rows for stage, rows in log if stage == "adapt"] == [4, 2]


def test_later_stages_go_first():
    """So that few inputs are under way."""
    _, log, _ = run(8, 2, lambda i: True)
    assert [stage for stage, _ in log[:4]] == ["score", "decode", "adapt", "decode adapted"]
    assert log == log[:4] * 4


def test_waves_of_one_go_one_input_after_the_other():
    ended, log, _ = run(3, 1, lambda i: True)
    assert [record for some in ended for record in some] == ["record of 0", "record of 1", "record of 2"]
    assert log[:4] == [("score", 1), ("decode", 1), ("adapt", 1), ("decode adapted", 1)]


def test_parts_run_side_by_side_and_their_results_keep_their_places():
    """In waves that parts of one algorithm and of others fill together; a part may have parts, and may ask nothing."""

    def part(name, n):
        found = []
        for index in range(n):
            row = FakeRow(f"{name}{index}")
            scores, _ = yield Score(None, "score", row, ())
            found.append(scores)
        return found

    def parts(name):
        inner = [part(f"{name} b", 1), part(f"{name} c", 0)]
        whole = yield Together([part(f"{name} a", 2), nested(inner)])
        return whole, (yield Together([]))

    def nested(inner):
        return (yield Together(inner))

    waves = FakeWaves(4)
    schedule = Schedule(waves, lambda wave: [], lambda wave: [], lambda shares: None)
    ended = [record for some in schedule.run(map(parts, "xy")) for record in some]
    assert ended == [([[f"scores of {x} a0", f"scores of {x} a1"], [[f"scores of {x} b0"], []]], []) for x in "xy"]
    assert waves.log == [("score", 4), ("score", 2)] and not schedule.joins


def test_an_error_of_one_part_reaches_its_whole_when_all_have_ended():
    ended = []

    def part(name, fails):
        if fails == "at once":
            raise InputError("refused")
        yield Score(None, "score", FakeRow(name), ())
        if fails:
            raise InputError("refused")
        ended.append(name)

    def whole(fails):
        try:
            yield Together([part("a", fails), part("b", False)])
        except InputError as error:
            return str(error), list(ended)

    for fails in ("at once", "later"):
        ended.clear()
        schedule = Schedule(FakeWaves(1), lambda wave: [], lambda wave: [], lambda shares: None)
        assert [record for some in schedule.run([whole(fails)]) for record in some] == [("refused", ["b"])]
        assert not schedule.joins


def test_prompts_of_other_shapes_have_waves_of_their_own():
    def steps(number):
        row = SimpleNamespace(name=str(number), shape=(number % 2,))
        return (yield Score(None, "score", row, ()))[0]

    waves = FakeWaves(3)
    schedule = Schedule(waves, lambda wave: [], lambda wave: [], lambda shares: None)
    ended = [record for some in schedule.run(map(steps, range(7))) for record in some]
    assert sorted(ended) == [f"scores of {number}" for number in range(7)]
    assert waves.log == [("score", 3), ("score", 3), ("score", 1)]
