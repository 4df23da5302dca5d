# pyright: strict, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportUnknownLambdaType=false
"""A run's configuration: the settings of its steps, and the names that stand for objects."""

from __future__ import annotations

import importlib
import importlib.util
import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, is_dataclass, replace
from difflib import get_close_matches
from typing import Any, Literal, NamedTuple, get_args, get_origin, get_type_hints

from ttsi_jax.adaptation import AdaptConfig
from ttsi_jax.answering import ANSWERERS, AnswerConfig, Answerer
from ttsi_jax.errors import InputError
from ttsi_jax.model.lora import TARGETS
from ttsi_jax.quality.accept import CONDITIONS
from ttsi_jax.quality.checks import CHECKS
from ttsi_jax.rules import LOSSES, RULES
from ttsi_jax.rules.identity import digest, named
from ttsi_jax.rules.interface import Loss, UpdateRule
from ttsi_jax.synthesis import (
    SYNTHESIZERS,
    PairSource,
    SynthesisConfig,
    Synthesizer,
    TeacherConfig,
    check_sources,
    find_source,
)
from ttsi_jax.uncertainty import ESTIMATORS, Estimator, GateConfig


@dataclass(frozen=True)
class RunConfig:
    """Everything that decides a run's results, apart from the model and the task themselves.

    Attributes:
        method: `base` only answers. `tt-si` trains on pairs that the model writes itself (the paper), `tt-d` on those
          of a teacher. `tt-icl` shows the pairs in the prompt and trains nothing, `icl` does so with labelled examples
          and for every input. `pairs` only writes them, for other runs (--synthesis.source recorded).
        gate: H, which inputs are uncertain.
        synthesis: G, how training examples are written.
        teacher: who writes them, where it is an endpoint.
        adapt: T, how adapters are trained.
        answer: how answers are decoded.
        unmatchable: `drop` leaves right calls that no answer can match out of the accuracies (see docs/tasks.md).
        wave: inputs that go through a program together, E.
        seed: of all random numbers; each input's own come from this and its id.
    """

    method: Literal["base", "tt-si", "tt-d", "tt-icl", "icl", "pairs"] = "tt-si"
    gate: GateConfig = field(default_factory=GateConfig)
    synthesis: SynthesisConfig = field(default_factory=SynthesisConfig)
    teacher: TeacherConfig = field(default_factory=TeacherConfig)
    adapt: AdaptConfig = field(default_factory=AdaptConfig)
    answer: AnswerConfig = field(default_factory=AnswerConfig)
    unmatchable: Literal["keep", "drop"] = "keep"
    wave: int = 16
    seed: int = 0

    @property
    def source(self) -> str:
        """Who writes pairs: what `auto` comes to."""
        auto = {"tt-d": "teacher", "icl": "training"}.get(self.method, "self")
        return auto if self.synthesis.source == "auto" else self.synthesis.source

    @property
    def synthesis_form(self) -> str:
        """`pair` or `request`: what the form `auto` comes to."""
        auto = "request" if self.answer.form == "keys" else "pair"
        return auto if self.synthesis.form == "auto" else self.synthesis.form

    def with_parts(self, given: Mapping[str, Any]) -> RunConfig:
        """The settings with the identity of every part that is not the library's: one of `given`, or a named one."""
        config = self
        for part, (step, setting, known, kind) in _PARTS.items():
            name = getattr(getattr(config, step), setting)
            if part in given or ":" in name:
                own = named(given[part]) if part in given else f"{name}#{digest(resolve(name, known, kind))}"
                config = replace(config, **{step: replace(getattr(config, step), **{setting: own})})
        return config

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values, as they stand in a run's `config.json`."""
        return json.loads(json.dumps(asdict(self)))


def automatic(config: RunConfig) -> RunConfig:
    """The settings with the form of answers that `auto` stands for here."""
    if config.answer.form != "auto":
        return config
    form = "guided" if importlib.util.find_spec("llguidance") else "keys"
    return replace(config, answer=replace(config.answer, form=form))


class Parts(NamedTuple):
    """The exchangeable steps of a run."""

    estimator: Estimator  # H
    synthesizer: PairSource  # G
    loss: Loss  # T
    rule: UpdateRule
    answerer: Answerer


_PARTS: dict[str, tuple[str, str, Mapping[str, Any], str]] = {  # part -> its settings, the name there, objects, kind
    "estimator": ("gate", "estimator", ESTIMATORS, "estimator"),
    "synthesizer": ("synthesis", "form", SYNTHESIZERS, "synthesizer"),
    "loss": ("adapt", "loss", LOSSES, "loss"),
    "rule": ("adapt", "rule", RULES, "update rule"),
    "answerer": ("answer", "form", ANSWERERS, "form of answers"),
}


def find_parts(config: RunConfig, given: Mapping[str, Any]) -> Parts:
    """The objects that a configuration names, or those given in their place.

    Raises:
        InputError: a name that stands for nothing, or an object that is not what it should be.
    """
    found = {}
    for part, (step, setting, known, kind) in _PARTS.items():
        name = config.synthesis_form if part == "synthesizer" else getattr(getattr(config, step), setting)
        if part == "synthesizer" and part not in given and config.source != "self":
            found[part] = find_source(config.source, config.synthesis, config.teacher, config.seed)
        else:
            found[part] = given[part] if part in given else resolve(name, known, kind)
    if not isinstance(found["rule"], UpdateRule):
        found["rule"] = _make_rule(found["rule"], config.adapt)
    if not isinstance(found["answerer"], Answerer):
        raise InputError(f"form of answers '{config.answer.form}' is {found['answerer']!r}, not an Answerer")
    return Parts(**found)


def _make_rule(make: Callable[..., Any], config: AdaptConfig) -> UpdateRule:
    try:
        rule = make() if config.lr is None else make(config.lr)
    except TypeError as error:
        hint = "" if config.lr else "; perhaps it has no rate of its own, then give one: --adapt.lr 1e-4"
        raise InputError(f"update rule '{config.rule}' cannot be made: {error}{hint}") from error
    if not isinstance(rule, UpdateRule):
        raise InputError(f"update rule '{config.rule}' gives {rule!r}, not an UpdateRule")
    return rule


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
        "synthesis.labels": (config.synthesis.labels, 1 << 10),
        "adapt.epochs": (config.adapt.epochs, 1 << 16),
        "adapt.rank": (config.adapt.rank, 1 << 12),
        "adapt.samples": (config.adapt.samples, 1 << 10),
        "answer.max-tokens": (config.answer.max_tokens, 1 << 20),
        "answer.value-tokens": (config.answer.value_tokens, 1 << 20),
        "answer.samples": (config.answer.samples + (not config.answer.vote), 1 << 10),  # without a vote none is enough
        "teacher.in-flight": (config.teacher.in_flight, 1 << 10),
        "teacher.retries": (config.teacher.retries + 1, 1 << 10),
    }
    for name, (value, most) in counts.items():
        if not 1 <= value <= most:
            raise InputError(f"--{name} is {value}; it must be at {'least 1' if value < 1 else f'most {most}'}")
    positive = {"adapt.lr": config.adapt.lr, "adapt.alpha": config.adapt.alpha, "adapt.memory": config.adapt.memory}
    positive["teacher.timeout"] = config.teacher.timeout
    for name, value in positive.items():
        if value is not None and not 0 < value < float("inf"):
            raise InputError(f"--{name} is {value}; it must be above 0")
    for option, names, known in (
        ("adapt.targets", config.adapt.targets, TARGETS),
        ("synthesis.checks", config.synthesis.checks, CHECKS),
        ("adapt.accept", config.adapt.accept, CONDITIONS),
    ):
        for name in names:
            if name not in known:
                raise InputError(f"--{option} is {name!r}; it must be one of {', '.join(known)}")
    if "schema" not in config.synthesis.checks:
        raise InputError("--synthesis.checks lacks schema: only a pair with one valid call can be learned from")
    if config.adapt.accept and not ("sibling" in config.adapt.accept and config.synthesis.held_out):
        raise InputError(
            "--adapt.accept needs sibling and --synthesis.held-out: no other condition speaks for an adapter"
        )
    if config.adapt.reset == "never" and config.wave != 1:
        raise InputError(f"--adapt.reset never takes inputs one after another: --wave is {config.wave}; it must be 1")
    if math.isnan(config.gate.tau):
        raise InputError("--gate.tau is not a number")
    for name, sampling in (("synthesis", config.synthesis), ("answer", config.answer)):
        if not 0 < sampling.top_p <= 1:
            raise InputError(f"--{name}.top-p is {sampling.top_p}; it must be above 0 and at most 1")
        if not 0 <= sampling.temperature < float("inf"):
            raise InputError(f"--{name}.temperature is {sampling.temperature}; it must be at least 0")
    check_sources(config.method, config.source, config.synthesis)
    if config.adapt.accept and config.method in ("tt-icl", "icl"):
        raise InputError(f"--adapt.accept judges what was trained, and --method {config.method} trains nothing")
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
    name = name.partition("#")[0]  # what follows is its hash
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
    if not callable(found) and not isinstance(found, UpdateRule | Synthesizer | Answerer):
        raise InputError(f"{kind} '{name}' is {found!r}, which cannot be called")
    return found
