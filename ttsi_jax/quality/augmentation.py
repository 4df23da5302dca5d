"""Other views of the same input: its tools in another order, among others, or under other names.

A model that has understood a request gives the same call in every view. Views serve training, where they keep an
adapter from learning a place or a name by heart, and answering, where `ttsi_jax.quality.voting` brings the views' calls
together. A view knows the way back: `read` gives a call its original names.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from ttsi_jax.quality.voting import Answer
from ttsi_jax.tasks import Call, Tool

Names = Mapping[str, str]
_SYLLABLES = ("ba", "do", "fi", "ka", "lu", "me", "no", "pi", "ra", "su", "ta", "vo", "ze")


class View(NamedTuple):
    """Tools as the model is shown them, and what they are called otherwise."""

    tools: tuple[Tool, ...]
    functions: Names = {}  # original name -> shown name; the others keep theirs
    arguments: Mapping[str, Names] = {}  # original function -> original argument -> shown argument

    def write(self, call: Call) -> Call:
        """A call under the names that are shown."""
        own = self.arguments.get(call.name, {})
        return Call(self.functions.get(call.name, call.name), _renamed(call.arguments, own))

    def read(self, call: Call) -> Call:
        """A call that was made under the shown names, under the original ones."""
        back = {shown: name for name, shown in self.functions.items()}
        name = back.get(call.name, call.name)
        own = {shown: argument for argument, shown in self.arguments.get(name, {}).items()}
        return Call(name, _renamed(call.arguments, own))

    def read_all(self, answer: Answer) -> Answer:
        """The same for all calls of an answer."""
        return None if answer is None else [self.read(call) for call in answer]


def reordered(tools: Sequence[Tool], rng: np.random.Generator) -> View:
    """The tools in a random order."""
    return View(tuple(tools[index] for index in rng.permutation(len(tools))))


def with_distractors(tools: Sequence[Tool], pool: Sequence[Tool], n: int, rng: np.random.Generator) -> View:
    """The tools in their order, with up to n others from a pool at random places; none has the name of a listed one."""
    others = list({tool.name: tool for tool in pool if tool.name not in {own.name for own in tools}}.values())
    chosen = [others[index] for index in rng.permutation(len(others))[:n]]
    places = set(rng.permutation(len(tools) + len(chosen))[: len(chosen)].tolist())
    rest, added = iter(tools), iter(chosen)
    return View(tuple(next(added) if place in places else next(rest) for place in range(len(tools) + len(chosen))))


def renamed(tools: Sequence[Tool], rng: np.random.Generator, *, functions: bool = True, arguments: bool = True) -> View:
    """The tools under random names that say nothing, as in Hammer's function masking (arXiv 2410.04587): what remains
    are the descriptions. Names of nested members stay."""
    taken = {name for tool in tools for name in (tool.name, *tool.properties)}

    def fresh() -> str:
        while (name := "".join(rng.choice(_SYLLABLES, 3))) in taken:
            pass
        taken.add(name)
        return name

    shown = {tool.name: fresh() for tool in tools} if functions else {}
    own = {tool.name: {name: fresh() for name in tool.properties} for tool in tools} if arguments else {}
    return rename(tools, shown, own)


def rename(tools: Sequence[Tool], functions: Names, arguments: Mapping[str, Names]) -> View:
    """The tools under given names, also where their descriptions speak of an identifier.

    Raises:
        ValueError: two functions, or two arguments of one, would have the same name.
    """
    view = View(tuple(_rename(tool, functions, arguments.get(tool.name, {})) for tool in tools), functions, arguments)
    if len({tool.name for tool in view.tools}) < len(tools):
        raise ValueError(f"two functions would have the same name: {[tool.name for tool in view.tools]}")
    for before, after in zip(tools, view.tools, strict=True):
        if len(after.properties) < len(before.properties):
            raise ValueError(f"two arguments of {before.name} would have the same name: {list(after.properties)}")
    return view


def _rename(tool: Tool, functions: Names, own: Names) -> Tool:
    parameters = {
        **tool.parameters,
        "properties": _renamed(tool.properties, own),
        "required": [own.get(name, name) for name in tool.required],
    }
    name = functions.get(tool.name, tool.name)
    words = {old: new for old, new in {**functions, **own}.items() if _is_identifier(old)}
    if not words:
        return replace(tool, name=name, parameters=parameters)
    pattern = re.compile(rf"(?<!\w)({'|'.join(map(re.escape, sorted(words, key=len, reverse=True)))})(?!\w)")
    swap = lambda text: pattern.sub(lambda found: words[found[0]], text)  # noqa: E731
    return Tool(name, swap(tool.description), _with_descriptions(parameters, swap))


def _with_descriptions(schema: Any, swap: Any) -> Any:
    """A schema with its descriptions changed, at any depth."""
    if isinstance(schema, list):
        return [_with_descriptions(item, swap) for item in schema]
    if not isinstance(schema, dict):
        return schema
    return {
        key: swap(value) if key == "description" and isinstance(value, str) else _with_descriptions(value, swap)
        for key, value in schema.items()
    }


def _is_identifier(name: str) -> bool:
    """Whether a name cannot be an ordinary word: `get_weather`, `maxItems`, `geo.distance`."""
    return bool(re.search(r"[a-z][A-Z]|[\w][_.][\w]", name))


def _renamed(values: Mapping[str, Any], names: Names) -> dict[str, Any]:
    return {names.get(name, name): value for name, value in values.items()}
