# pyright: strict, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportUnknownLambdaType=false
"""Pairs that were written before: by another run, or into a file."""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from ttsi_jax.errors import InputError
from ttsi_jax.runs.directory import RECORDS, read_config, read_records, read_summary
from ttsi_jax.runs.record import Pair, Record
from ttsi_jax.runs.scores import first_values
from ttsi_jax.synthesis.pairs import Collection, Synthetic
from ttsi_jax.tasks import Call, Example, Tool
from ttsi_jax.tasks.entries import EntryError, json_lines, read_gold
from ttsi_jax.tasks.strict_json import JsonError


def recorded(records: Iterable[Record]) -> Callable[[Example, int], Synthetic]:
    """Gives the pairs that another run accepted, so that runs differ in nothing but what they do with them."""
    return _in_turn(_accepted(records))


def read_pairs(path: Path) -> Collection:
    """Gives the pairs of a run's directory, or of a JSON Lines file, each line with `id`, `query` and `calls`.

    Raises:
        InputError: there is nothing of the kind, or a line that is none; the line is named.
    """
    if path.is_dir():
        read_config(path)  # or it holds no run
        records = read_records(path / RECORDS)[0].values()
        told = f"--synthesis.file {path}: an unfinished run, with {len(records)} inputs so far; others get no pairs"
        return _collection(_accepted(records), *[told] * (read_summary(path) is None))
    pairs: dict[str, list[Synthetic]] = defaultdict(list)
    for entry in json_lines(path):
        value = entry.value
        try:
            if isinstance(value, JsonError):
                raise EntryError(str(value))
            if not isinstance(value, dict) or not (isinstance(value.get("id"), str) and value.get("query")):
                raise EntryError("a pair is an object with 'id', 'query' and 'calls'")
            calls = read_gold(value.get("calls"))
        except EntryError as error:
            raise InputError(f"{entry.where}: {error}") from None
        calls = tuple(Call(call.name, first_values(call)) for call in calls)
        pairs[value["id"]].append(Synthetic(str(value["query"]), calls))
    return _collection(pairs)


def _accepted(records: Iterable[Record]) -> dict[str, list[Synthetic]]:
    def read(pair: Pair) -> Synthetic:
        tools = tuple(Tool(**tool) for tool in pair.get("tools", ()))
        return Synthetic(pair["query"], tuple(Call(**call) for call in pair["calls"]), tools=tools)

    return {record.id: [read(pair) for pair in record.synthetic if pair["accepted"]] for record in records}


def _collection(pairs: Mapping[str, Sequence[Synthetic]], *notes: str) -> Collection:
    content = json.dumps({id: [pair.record() for pair in own] for id, own in pairs.items()}, sort_keys=True)
    return Collection(_in_turn(pairs), hashlib.sha256(content.encode()).hexdigest()[:16], notes)


def _in_turn(pairs: Mapping[str, Sequence[Synthetic]]) -> Callable[[Example, int], Synthetic]:
    def write(example: Example, attempt: int) -> Synthetic:
        own = pairs.get(example.id, ())
        return own[attempt] if attempt < len(own) else Synthetic("", (), "no further pair is recorded", last=True)

    return write
