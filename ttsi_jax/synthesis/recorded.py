# pyright: strict, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportUnknownLambdaType=false
"""Pairs that were written before: by another run, or into a file."""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ttsi_jax.errors import InputError
from ttsi_jax.runs.directory import RECORDS, read_config, read_records, read_summary
from ttsi_jax.runs.record import Pair, Record
from ttsi_jax.runs.scores import first_values
from ttsi_jax.synthesis.pairs import Collection, Synthetic
from ttsi_jax.tasks import Call, Example, Tool
from ttsi_jax.tasks.entries import EntryError, json_lines, read_gold
from ttsi_jax.tasks.faults import fingerprint
from ttsi_jax.tasks.strict_json import JsonError

NO_FURTHER = "no further pair is recorded"
OF_ANOTHER = "the pairs that are recorded under its id are of another input"


def recorded(records: Iterable[Record]) -> Collection:
    """Gives the pairs that another run accepted, so that runs differ in nothing but what they do with them.

    Those of an input that is not the same, but for its id, are not given, and where a label was used for them the run
    that learns from them is an upper bound too.
    """
    records = list(records)
    pairs = {one.id: [_read(pair, one.seen) for pair in one.synthetic if pair["accepted"]] for one in records}
    seen = sum(any(pair.seen for pair in own) for own in pairs.values())
    told = f"its pairs are from a run that saw the labels of {seen} of their inputs" if seen else None
    return _collection(pairs, {one.id: one.fingerprint for one in records if one.fingerprint}, told)


def read_pairs(path: Path) -> Collection:
    """Gives the pairs of a run's directory, or of a JSON Lines file, each line with `id`, `query` and `calls`.

    Raises:
        InputError: there is nothing of the kind, or a line that is none; the line is named.
    """
    if path.is_dir():
        config = read_config(path)  # or it holds no run
        records = read_records(path / RECORDS)[0].values()
        told = f"--synthesis.file {path}: an unfinished run, with {len(records)} inputs so far; others get no pairs"
        found = recorded(records)
        if "upper_bound" in config:
            found = replace(found, upper_bound=f"its pairs are from an upper bound: {config['upper_bound']}")
        return replace(found, notes=(told,) * (read_summary(path) is None))
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
    return _collection(pairs, {})


def _read(pair: Pair, seen: bool) -> Synthetic:
    tools, calls = tuple(Tool(**tool) for tool in pair.get("tools", ())), tuple(Call(**call) for call in pair["calls"])
    return Synthetic(pair["query"], calls, tools=tools, skipped=tuple(pair.get("skipped", ())), seen=seen)


def _collection(
    pairs: Mapping[str, Sequence[Synthetic]], fingerprints: Mapping[str, str], upper_bound: str | None = None
) -> Collection:
    """Gives the pairs of each id in turn, to the input with its fingerprint where one is known."""

    def write(example: Example, attempt: int) -> Synthetic:
        own = pairs.get(example.id, ())
        if own and fingerprints.get(example.id, fingerprint(example)) != fingerprint(example):
            return Synthetic("", (), OF_ANOTHER, last=True)
        return own[attempt] if attempt < len(own) else Synthetic("", (), NO_FURTHER, last=True)

    content = json.dumps({id: [*map(_content, own)] for id, own in pairs.items()}, sort_keys=True)
    return Collection(write, hashlib.sha256(content.encode()).hexdigest()[:16], upper_bound=upper_bound)


def _content(pair: Synthetic) -> dict[str, Any]:
    return pair.record() | ({"seen": True} if pair.seen else {})
