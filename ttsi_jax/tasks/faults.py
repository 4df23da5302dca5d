"""What is wrong with a benchmark's inputs: right calls that no answer can match, duplicates, nothing to choose."""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterable
from typing import Any, NamedTuple

from ttsi_jax.tasks.example import Call, Example, GoldCall
from ttsi_jax.tasks.prompts import own_turns
from ttsi_jax.tasks.schema import check_call

# Whole parts of an argument's name, as in access_key, appid, apiKey and user-password.
_CREDENTIAL = re.compile(
    r"(?:^|_)(?:(?:api|app|access|auth|client|secret)_?(?:key|id|token)|token|secret|passw[a-z]+)(?:_|$)"
)
_BORDER = re.compile(r"-|(?<=[a-z0-9])(?=[A-Z])")  # between the parts, where there is no underscore


class Faults(NamedTuple):
    """Counts over a task's usable inputs.

    Attributes:
        several_calls: inputs that need more than one call.
        one_candidate: inputs with one function, so that nothing is chosen.
        no_candidate: inputs without a function, which fail in a run.
        duplicates: inputs with the conversation and functions of an earlier one.
        unmatchable: inputs whose right calls no answer can match (see `unmatchable`).
        loose: inputs with a right value of another type than its parameter, such as "40.7" for a number.
    """

    several_calls: int = 0
    one_candidate: int = 0
    no_candidate: int = 0
    duplicates: int = 0
    unmatchable: int = 0
    loose: int = 0


def count_faults(examples: Iterable[Example]) -> Faults:
    examples = list(examples)
    candidates = Counter(len(example.tools) for example in examples)
    return Faults(
        several_calls=sum(len(example.gold or ()) > 1 for example in examples),
        one_candidate=candidates[1],
        no_candidate=candidates[0],
        duplicates=len(examples) - len({fingerprint(example) for example in examples}),
        unmatchable=sum(unmatchable(example) is not None for example in examples),
        loose=sum(map(_is_loose, examples)),
    )


def fingerprint(example: Example) -> str:
    """A short hash of the conversation and the functions, in whichever order: duplicates have the same one.

    What the library adds to a task that is loaded by its name does not count: by its file the input is the same.
    """
    tools = sorted((tool.name, tool.description, json.dumps(tool.parameters)) for tool in example.tools)
    return hashlib.sha256(json.dumps([own_turns(example), tools]).encode()).hexdigest()[:16]


def unmatchable(example: Example) -> str | None:
    """Why no answer that keeps to the input can be right, or None.

    A right call is unmatchable when it names a function that the input does not list, gives an argument that its
    function does not have, or gives a credential (a key, token or password by its name, and text) that stands nowhere
    in the input. Arguments that a right call may leave out do not count, nor do loose types.
    """
    text = _plain([example.messages, [vars(tool) for tool in example.tools]])
    reasons = (_unmatchable(call, example, text) for call in example.gold or ())
    return next(filter(None, reasons), None)


def _is_loose(example: Example) -> bool:
    """Whether a right call names a function and arguments as they are described, but not a value."""
    for right in example.gold or ():
        arguments = {name: values[0] for name, values in right.arguments.items() if name not in right.optional}
        if (check_call(Call(right.name, arguments), example.tools) or "").startswith("argument"):
            return True
    return False


def _unmatchable(call: GoldCall, example: Example, text: str) -> str | None:
    tool = next((tool for tool in example.tools if tool.name == call.name), None)
    if tool is None:
        return f"the right function {call.name!r} is not listed"
    for name in call.arguments.keys() - call.optional:
        if name not in tool.properties and tool.parameters.get("additionalProperties", False) is False:
            return f"{call.name!r} has no argument {name!r}, which the right call gives"
        hidden = lambda value: isinstance(value, str) and _plain(value)[1:-1] not in text  # noqa: E731
        if _CREDENTIAL.search(_BORDER.sub("_", name).lower()) and all(map(hidden, call.arguments[name])):
            return f"the right value of {name!r} stands nowhere in the input"
    return None


def _plain(value: Any) -> str:
    """JSON in which a value is found whatever its case."""
    return json.dumps(value, ensure_ascii=False).casefold()
