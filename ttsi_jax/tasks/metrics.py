"""Whether calls are right: tool accuracy, call accuracy, and the micro F1 of Hammer's evaluation."""

import json
import re
from collections import Counter, defaultdict
from collections.abc import Collection, Hashable, Iterable, Sequence
from typing import Any, TypedDict

from ttsi_jax.tasks.example import Call, GoldCall

_IGNORED = re.compile(r"""[\s,./\-_*^'"()]""")
# No leading zeros: "007" is an identifier.
_NUMBER = re.compile(r"[+-]?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]{1,2})?")
_MAX_NUMBER_LENGTH = 100


class MicroF1(TypedDict):
    """F1 of the function names, and of the (function, argument, value) triples."""

    name: float
    arguments: float


def normalise(value: Any) -> Any:
    """Brings an argument's value into the form in which values are compared; lists elementwise, objects by key.

    Numbers, and strings that are written as one, become the number (whole ones an int). Other strings are casefolded
    and lose white space and the characters `,./-_*^'"()`, unless nothing else is in them. Booleans and null stay.

    This is more lenient than BFCL's checker, which compares only values of the declared type, knows no number in a
    string (here "40.7" is 40.7 and 5.0 is 5), and keeps brackets, quotes and white space other than blanks. It is
    stricter in that "12.5" is not "125", and "/" not "*". No type is checked here: `schema.check_call` does.
    """
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, str):
        return _normalise_text(value)
    if isinstance(value, list | tuple):
        return [normalise(item) for item in value]
    if isinstance(value, dict):
        return {key: normalise(item) for key, item in value.items()}
    return value


def tool_correct(calls: Sequence[Call] | None, gold: Sequence[GoldCall]) -> bool:
    """Whether the right functions are called, each as often as it should be; an unreadable answer (None) is wrong."""
    return calls is not None and Counter(call.name for call in calls) == Counter(call.name for call in gold)


def call_correct(calls: Sequence[Call] | None, gold: Sequence[GoldCall]) -> bool:
    """Whether the calls are the right ones, in any order; an unreadable answer (None) is wrong.

    A call is right when its name is the gold call's, every argument that is not optional is there, none is there that
    the gold call does not have, and each value equals an accepted one after `normalise`.
    """
    if calls is None or not tool_correct(calls, gold):
        return False
    edges = [[index for index, call in enumerate(calls) if _is_right(call, right)] for right in gold]
    return len(_match(edges)) == len(gold)


def micro_f1(pairs: Iterable[tuple[Sequence[Call] | None, Sequence[GoldCall]]]) -> MicroF1:
    """Micro-averaged F1 over a task, as Hammer's evaluation counts it.

    Names, and triples (function, argument, value), are multisets within an input. An accepted value counts as the gold
    value. An optional argument counts as expected only where it is given right. An unreadable answer (None) predicts
    nothing.

    Returns:
        Both F1 scores, `2·hits / (predicted + expected)`; 0 where nothing is predicted or expected.
    """
    names, arguments = Counter[str](), Counter[str]()
    for calls, gold in pairs:
        calls = calls or ()
        hits = Counter(call.name for call in calls) & Counter(right.name for right in gold)
        names.update(hits=hits.total(), counted=len(calls) + len(gold))
        arguments.update(_count_arguments(calls, gold))
    return {"name": _f1(names), "arguments": _f1(arguments)}


def _f1(counts: Counter[str]) -> float:
    return 2 * counts["hits"] / counts["counted"] if counts["counted"] else 0.0


def _count_arguments(calls: Sequence[Call], gold: Sequence[GoldCall]) -> dict[str, int]:
    predicted: dict[Hashable, list[str]] = defaultdict(list)
    for call in calls:
        for name, value in call.arguments.items():
            predicted[call.name, name].append(_key(value))
    expected: dict[Hashable, list[tuple[bool, set[str]]]] = defaultdict(list)
    for right in gold:
        for name, accepted in right.arguments.items():
            expected[right.name, name].append((name in right.optional, {_key(value) for value in accepted}))

    hits = optional_hits = 0
    for argument, slots in expected.items():
        slots.sort(key=lambda slot: slot[0])  # a value goes to a slot that must be filled first
        edges = [
            [index for index, key in enumerate(predicted.get(argument, [])) if key in accepted] for _, accepted in slots
        ]
        matched = _match(edges)
        hits += len(matched)
        optional_hits += sum(slots[slot][0] for slot in matched)
    must = sum(not optional for slots in expected.values() for optional, _ in slots)
    return {"hits": hits, "counted": sum(map(len, predicted.values())) + must + optional_hits}


def _is_right(call: Call, gold: GoldCall) -> bool:
    if call.name != gold.name or not call.arguments.keys() <= gold.arguments.keys():
        return False
    if not gold.arguments.keys() - gold.optional <= call.arguments.keys():
        return False
    return all(
        _key(value) in {_key(accepted) for accepted in gold.arguments[name]} for name, value in call.arguments.items()
    )


def _match(edges: Sequence[Collection[int]]) -> set[int]:
    """The rows that a largest bipartite matching covers; earlier rows stay covered when later ones are added (Kuhn)."""
    row_of: dict[int, int] = {}

    def place(row: int, seen: set[int]) -> bool:
        for column in edges[row]:
            if column not in seen:
                seen.add(column)
                if column not in row_of or place(row_of[column], seen):
                    row_of[column] = row
                    return True
        return False

    return {row for row in range(len(edges)) if place(row, set())}


def _key(value: Any) -> str:
    """Text that two values share if they compare as equal; unlike Python's `==` it tells True from 1."""
    return json.dumps(normalise(value), sort_keys=True)


def _normalise_text(text: str) -> Any:
    folded = text.casefold()
    kept = _IGNORED.sub("", folded) or "".join(folded.split())
    number = next((form for form in (text.strip(), kept) if _NUMBER.fullmatch(form)), None)
    if number is None or len(number) > _MAX_NUMBER_LENGTH:
        return kept
    return int(number) if number.lstrip("+-").isdigit() else normalise(float(number))
