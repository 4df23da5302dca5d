# pyright: strict, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportUnknownLambdaType=false
"""The same pair among other functions: what the model should learn from it is not where a function stands, what else is
there, or what it is called.

An augmentation takes the functions, the pair's call, functions of other inputs and random numbers; it gives the
functions and the call as they are to be trained on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from ttsi_jax.tasks import Call, Tool

DISTRACTORS = 2  # functions that are added
LETTERS = 6  # of a new name

Augmented = tuple[tuple[Tool, ...], Call]
Augmentation = Callable[[Sequence[Tool], Call, Sequence[Tool], np.random.Generator], Augmented]


def order(tools: Sequence[Tool], call: Call, others: Sequence[Tool], rng: np.random.Generator) -> Augmented:
    """The functions in a random order."""
    return tuple(tools[place] for place in rng.permutation(len(tools))), call


def distractors(tools: Sequence[Tool], call: Call, others: Sequence[Tool], rng: np.random.Generator) -> Augmented:
    """The functions and some of other inputs, in a random order; `others` may hold the input's own."""
    own = {tool.name for tool in tools}
    foreign = [tool for tool in others if tool.name not in own]
    chosen = rng.permutation(len(foreign))[:DISTRACTORS]
    return order([*tools, *(foreign[place] for place in chosen)], call, others, rng)


def rename(tools: Sequence[Tool], call: Call, others: Sequence[Tool], rng: np.random.Generator) -> Augmented:
    """All functions and arguments with new names that mean nothing, so that descriptions must be read (function
    masking, arXiv 2410.04587)."""
    words = sorted({tool.name for tool in tools} | {name for tool in tools for name in tool.properties})
    new = dict(zip(words, _names(len(words), rng), strict=True))
    found = []
    for tool in tools:
        properties = {new[name]: schema for name, schema in tool.properties.items()}
        parameters = tool.parameters | {"properties": properties, "required": [new[name] for name in tool.required]}
        found.append(replace(tool, name=new[tool.name], parameters=parameters))
    arguments = {new.get(name, name): value for name, value in call.arguments.items()}
    return tuple(found), Call(new[call.name], arguments)


AUGMENTATIONS: dict[str, Augmentation] = {"order": order, "distractors": distractors, "rename": rename}


def _names(n: int, rng: np.random.Generator) -> list[str]:
    """N different words of random letters."""
    found: dict[str, None] = {}
    while len(found) < n:
        found["".join(rng.choice(list("abcdefghijklmnopqrstuvwxyz"), LETTERS))] = None
    return list(found)
