"""What a benchmark is made of: tools, calls, labelled inputs."""

import hashlib
import json
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Tool:
    """A function that the model may call.

    Attributes:
        parameters: a JSON schema `{"type": "object", "properties": {...}, "required": [...]}` as
            `schema.normalise_parameters` makes it, whatever dialect the file was written in.
    """

    name: str
    description: str
    parameters: dict[str, Any]

    @property
    def properties(self) -> dict[str, Any]:
        """The schema of each parameter, by name."""
        return self.parameters["properties"]

    @property
    def required(self) -> tuple[str, ...]:
        """The names of the parameters that a call must give."""
        return tuple(self.parameters["required"])


@dataclass(frozen=True)
class Call:
    """One function call as a model wrote it; the arguments are JSON values."""

    name: str
    arguments: dict[str, Any]


@dataclass(frozen=True)
class GoldCall:
    """A function call that counts as right.

    Attributes:
        arguments: the accepted values of each argument, at least one.
        optional: the arguments that a right call may leave out.
    """

    name: str
    arguments: dict[str, tuple[Any, ...]]
    optional: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Example:
    """One input of a benchmark.

    Attributes:
        messages: `{"role", "content"}` turns, roles system, user or assistant, at least one of them the user's.
        tools: the candidates, in the file's order; names are unique.
        gold: the right calls; `()` where calling nothing is right, None where there is no label.
        problem: why this line or entry of a file cannot be used, which stands in for all but the id; else None.
    """

    id: str
    messages: tuple[dict[str, str], ...]
    tools: tuple[Tool, ...]
    gold: tuple[GoldCall, ...] | None
    problem: str | None = None

    @property
    def query(self) -> str:
        """The last thing the user said; nothing in an input with a problem."""
        said = (message["content"] for message in reversed(self.messages) if message["role"] == "user")
        return next(said, "")


@dataclass(frozen=True)
class Task:
    """A named list of inputs.

    Attributes:
        examples: in the file's order; a line or entry that cannot be used keeps its place, with its `problem`.
    """

    name: str
    examples: tuple[Example, ...]

    @property
    def usable(self) -> tuple[Example, ...]:
        """The inputs without a problem."""
        return tuple(example for example in self.examples if example.problem is None)

    @property
    def problems(self) -> tuple[str, ...]:
        """One sentence for each line or entry that cannot be used; it names the file and the line."""
        return tuple(example.problem for example in self.examples if example.problem is not None)

    @property
    def fingerprint(self) -> str:
        """A short hash of the inputs, so that a run is not resumed with others."""
        text = json.dumps([asdict(example) for example in self.examples], sort_keys=True, default=sorted)
        return hashlib.sha256(text.encode()).hexdigest()[:16]
