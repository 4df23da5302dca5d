# pyright: strict, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportUnknownLambdaType=false
"""Labelled examples of a training file as pairs: random ones, or those nearest in words.

An example that is the input itself is never given: its label would be the answer.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ttsi_jax.errors import InputError
from ttsi_jax.runs.scores import first_values
from ttsi_jax.synthesis.pairs import Collection, Synthetic
from ttsi_jax.tasks import Call, Example, Task
from ttsi_jax.tasks.faults import fingerprint
from ttsi_jax.tasks.prompts import own_turns

SEEN = "trained_on.json"  # beside an adapter: what it was trained on
_TURNS = "a system turn counts: a pair is the request alone, and the call may rest on what was said before it"
_SATURATION, _LENGTH = 1.5, 0.75  # k1 and b of BM25, their usual values


def from_training(task: Task, choose: str, seed: int) -> Collection:
    """Gives labelled examples with one right call, the nearest or random ones in order; attempt 0 the first.

    Examples of several turns are left out, and so are those with a system turn of their own: a pair is one request, and
    their calls rest on what was said before it.

    Raises:
        InputError: none is left.
    """
    pool = [example for example in task.usable if len(example.gold or ()) == len(own_turns(example)) == 1]
    if not pool:
        raise InputError(f"--synthesis.file: {task.name} has no example of one turn with one right call ({_TURNS})")
    notes = [f"cannot be used: {problem}" for problem in task.problems]
    if n_out := len(task.usable) - len(pool):
        notes.append(
            f"--synthesis.file: {n_out} of {len(task.usable)} examples of {task.name} are left out: they have several "
            f"turns, or not exactly one right call ({_TURNS})"
        )
    prints, order = [fingerprint(example) for example in pool], Bm25([example.query for example in pool]).order

    def write(example: Example, attempt: int) -> Synthetic:
        own = fingerprint(example)
        rng = np.random.default_rng([seed, int(own, 16)])
        ranked = order(example.query) if choose == "nearest" else rng.permutation(len(pool)).tolist()
        others = [index for index in ranked if prints[index] != own and pool[index].query != example.query]
        if attempt >= len(others):
            return Synthetic("", (), "the training file has no further example", last=True)
        found = pool[others[attempt]]
        tools = () if {tool.name for tool in found.tools} <= {tool.name for tool in example.tools} else found.tools
        calls = tuple(Call(call.name, first_values(call)) for call in found.gold or ())
        return Synthetic(found.query, calls, tools=tools, origin=found.id)

    return Collection(write, task.fingerprint, tuple(notes))


class TrainedOn(NamedTuple):
    """What an adapter was trained on: fingerprints of its examples, and how many these are, duplicates too; None where
    that is not known."""

    fingerprints: frozenset[str] = frozenset()
    n_examples: int | None = None


def trained_on(start: str | None) -> TrainedOn:
    """What an adapter was trained on, where it says so.

    Raises:
        InputError: the file that says so cannot be read.
    """
    path = Path(start or "", SEEN)
    if start is None or not path.is_file():
        return TrainedOn()
    try:
        said = json.loads(path.read_text(encoding="utf-8"))
        n = said.get("examples")
        if n is not None and type(n) is not int:
            raise TypeError
        return TrainedOn(frozenset(said["fingerprints"]), n)
    except (ValueError, LookupError, TypeError, AttributeError):
        raise InputError(f"{path}: cannot be read; it should hold what the adapter was trained on") from None


class Bm25:
    """Ranks texts by the words that they share with a query (Robertson and Zaragoza, 2009)."""

    def __init__(self, texts: Sequence[str]):
        counts = [Counter(words(text)) for text in texts]
        self.n = len(texts)
        lengths = np.array([count.total() for count in counts], np.float64)
        self._norm = _SATURATION * (1 - _LENGTH + _LENGTH * lengths / max(1.0, lengths.mean() if self.n else 1.0))
        self._places: dict[str, list[tuple[int, int]]] = defaultdict(list)  # word -> (text, how often)
        for index, count in enumerate(counts):
            for word, often in count.items():
                self._places[word].append((index, often))

    def scores(self, query: str) -> np.ndarray:
        """[N] float64: of each text, 0 where it shares no word."""
        found = np.zeros(self.n)
        for word in sorted(set(words(query)) & self._places.keys()):  # rounding depends on their order
            index, often = np.array(self._places[word]).T
            rarity = math.log(1 + (self.n - len(index) + 0.5) / (len(index) + 0.5))
            found[index] += rarity * often * (_SATURATION + 1) / (often + self._norm[index])
        return found

    def order(self, query: str) -> list[int]:
        """All texts, the nearest first; equal ones in their own order."""
        return np.argsort(-self.scores(query), kind="stable").tolist()


def words(text: str) -> list[str]:
    return re.findall(r"\w+", text.casefold())
