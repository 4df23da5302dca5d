"""A run's configuration: the settings of its steps, and the names that stand for objects."""

from __future__ import annotations

import importlib
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, is_dataclass
from difflib import get_close_matches
from typing import Any, Literal, get_args, get_origin, get_type_hints

from ttsi_jax.adaptation import AdaptConfig, UpdateRule
from ttsi_jax.answering import AnswerConfig
from ttsi_jax.errors import InputError
from ttsi_jax.synthesis import SynthesisConfig
from ttsi_jax.uncertainty import GateConfig


@dataclass(frozen=True)
class RunConfig:
    """Everything that decides a run's results, apart from the model and the task themselves.

    Attributes:
        method: `base` only answers; `tt-si` adapts to examples that the model writes itself (the paper).
        gate: H, which inputs are uncertain.
        synthesis: G, how training examples are written.
        adapt: T, how adapters are trained.
        answer: how answers are decoded.
        wave: inputs that go through a program together, E.
        seed: of all random numbers; each input's own come from this and its id.
    """

    method: Literal["base", "tt-si"] = "tt-si"
    gate: GateConfig = field(default_factory=GateConfig)
    synthesis: SynthesisConfig = field(default_factory=SynthesisConfig)
    adapt: AdaptConfig = field(default_factory=AdaptConfig)
    answer: AnswerConfig = field(default_factory=AnswerConfig)
    wave: int = 16
    seed: int = 0

    @property
    def synthesis_form(self) -> str:
        """`pair` or `request`: what the form `auto` comes to."""
        auto = "request" if self.answer.form == "keys" else "pair"
        return auto if self.synthesis.form == "auto" else self.synthesis.form

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def check(config: RunConfig) -> None:
    """Refuses values that no run can have.

    Raises:
        InputError: naming the option, its value and what it may be.
    """
    for name, value, choices in _choices(config):
        if value not in choices:
            raise InputError(f"--{name} is {value!r}; it must be one of {', '.join(choices)}")
    counts = {  # with what no machine could hold
        "wave": (config.wave, 1 << 16),
        "synthesis.k": (config.synthesis.k, 1 << 10),
        "synthesis.tries": (config.synthesis.tries, 1 << 10),
        "synthesis.max-tokens": (config.synthesis.max_tokens, 1 << 20),
        "adapt.epochs": (config.adapt.epochs, 1 << 16),
        "adapt.rank": (config.adapt.rank, 1 << 12),
        "answer.max-tokens": (config.answer.max_tokens, 1 << 20),
        "answer.value-tokens": (config.answer.value_tokens, 1 << 20),
    }
    for name, (value, most) in counts.items():
        if not 1 <= value <= most:
            raise InputError(f"--{name} is {value}; it must be at {'least 1' if value < 1 else f'most {most}'}")
    positive = {"adapt.lr": config.adapt.lr, "adapt.alpha": config.adapt.alpha, "adapt.memory": config.adapt.memory}
    for name, value in positive.items():
        if not 0 < value < float("inf"):
            raise InputError(f"--{name} is {value}; it must be above 0")
    if math.isnan(config.gate.tau):
        raise InputError("--gate.tau is not a number")
    if not 0 < config.synthesis.top_p <= 1:
        raise InputError(f"--synthesis.top-p is {config.synthesis.top_p}; it must be above 0 and at most 1")
    if not 0 <= config.synthesis.temperature < float("inf"):
        raise InputError(f"--synthesis.temperature is {config.synthesis.temperature}; it must be at least 0")
    if not 0 <= config.seed < 2**32:
        raise InputError(f"--seed is {config.seed}; it must be between 0 and {2**32 - 1}")


def _choices(settings: Any, above: str = "") -> Iterator[tuple[str, Any, tuple[str, ...]]]:
    """The settings that take one of a few words: option, value, words."""
    for name, hint in get_type_hints(type(settings)).items():
        value = getattr(settings, name)
        if get_origin(hint) is Literal:
            yield above + name, value, get_args(hint)
        elif is_dataclass(value):
            yield from _choices(value, f"{name}.")


def resolve(name: str, known: Mapping[str, Any], kind: str) -> Any:
    """The object that a name stands for: a key of `known`, or `package.module:object`.

    Raises:
        InputError: the name is unknown, or the module or object cannot be found.
    """
    if name in known:
        return known[name]
    module_name, colon, attribute = name.partition(":")
    if not colon:
        close = get_close_matches(name, known, 1)
        hint = f"; did you mean '{close[0]}'?" if close else "."
        raise InputError(f"unknown {kind} '{name}'{hint} Known: {', '.join(known)}; or package.module:object")
    try:
        found = getattr(importlib.import_module(module_name), attribute)
    except Exception as error:  # importing runs the user's own code, which may raise anything
        raise InputError(f"{kind} '{name}' cannot be imported: {type(error).__name__}: {error}") from error
    if not callable(found) and not isinstance(found, UpdateRule):
        raise InputError(f"{kind} '{name}' is {found!r}, which cannot be called")
    return found
