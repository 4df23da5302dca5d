# pyright: strict, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportUnknownLambdaType=false
"""A run's configuration: the settings of its steps, the names that stand for objects, and what it may not hold."""

from __future__ import annotations

import importlib.util
import inspect
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from os import PathLike
from typing import Any, Literal, NamedTuple

from ttsi_jax.adaptation import AdaptConfig
from ttsi_jax.answering import ANSWERERS, AnswerConfig, Answerer
from ttsi_jax.config.checks import check
from ttsi_jax.errors import InputError
from ttsi_jax.quality.confidence import CALL_ESTIMATORS, CallEstimator
from ttsi_jax.rules import LOSSES, RULES
from ttsi_jax.rules.anchors import anchored
from ttsi_jax.rules.identity import digest, named
from ttsi_jax.rules.interface import Loss, UpdateRule, needed
from ttsi_jax.rules.names import make_rule, resolve
from ttsi_jax.synthesis import (
    SYNTHESIZERS,
    PairSource,
    SynthesisConfig,
    Synthesizer,
    TeacherConfig,
    find_source,
)
from ttsi_jax.uncertainty import ESTIMATORS, Estimator, GateConfig

__all__ = ["Parts", "RunConfig", "automatic", "check", "find_parts"]


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
    def n_trained(self) -> int:
        """Most sequences that an adapter trains on: pairs and their copies."""
        n_pairs = -(-self.synthesis.k // self.adapt.adapters) if self.adapt.divide else self.synthesis.k
        return n_pairs * (1 + len(self.synthesis.augment))

    @property
    def n_decoded(self) -> int:
        """Most tokens that are decoded after a prompt: an answer's or a request's."""
        return max(self.answer.max_tokens, self.synthesis.max_tokens)

    @property
    def asks_channel(self) -> bool:
        """Whether the noisy channel picks a function for every input (see `Asking.request_likelihoods`)."""
        return "channel" in (self.gate.score, self.answer.judge, self.synthesis.label)

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
        if isinstance(given.get("rule"), UpdateRule):  # which has its rate already
            config = replace(config, adapt=replace(config.adapt, lr=None))
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

    estimator: Estimator | CallEstimator  # H
    synthesizer: PairSource  # G
    loss: Loss  # T
    rule: UpdateRule
    answerer: Answerer


_PARTS: dict[str, tuple[str, str, Mapping[str, Any], str]] = {  # part -> its settings, the name there, objects, kind
    "estimator": ("gate", "estimator", ESTIMATORS | CALL_ESTIMATORS, "estimator"),
    "synthesizer": ("synthesis", "form", SYNTHESIZERS, "synthesizer"),
    "loss": ("adapt", "loss", LOSSES, "loss"),
    "rule": ("adapt", "rule", RULES, "update rule"),
    "answerer": ("answer", "form", ANSWERERS, "form of answers"),
}


def find_parts(config: RunConfig, given: Mapping[str, Any], data: str | PathLike[str] | None = None) -> Parts:
    """The objects that a configuration names, or those given in their place.

    Args:
        config: the configuration.
        given: objects by the names of `Parts`.
        data: the folder of the files of a task that `synthesis.file` names; see `load_task`.

    Raises:
        InputError: a name that stands for nothing, or an object that is not what it should be.
    """
    found = {}
    for part, (step, setting, known, kind) in _PARTS.items():
        name = config.synthesis_form if part == "synthesizer" else getattr(getattr(config, step), setting)
        if part == "synthesizer" and part not in given and config.source != "self" and config.method != "base":
            found[part] = find_source(config.source, config.synthesis, config.teacher, config.seed, data)
        else:
            found[part] = given[part] if part in given else resolve(name, known, kind)
    if not isinstance(found["rule"], UpdateRule):
        found["rule"] = make_rule(found["rule"], config.adapt.rule, config.adapt.lr)
    elif config.adapt.lr is not None and "rule" not in given:
        raise InputError(
            f"--adapt.lr is {config.adapt.lr}, but --adapt.rule {config.adapt.rule} has its rate already: leave "
            "--adapt.lr out (None in the place of a preset's), or name a function from the rate to a rule"
        )
    skips = {"augment": bool(config.synthesis.augment), "skip-values": config.synthesis.skip_values}
    if (extras := needed(found["loss"])) and (option := next((name for name, own in skips.items() if own), None)):
        raise InputError(
            f"--synthesis.{option} is for losses of a pair alone: --adapt.loss {config.adapt.loss} learns from "
            f"{' and '.join(extras)} too"
        )
    found["loss"] = anchored(found["loss"], config.adapt.kl, config.adapt.l2)
    if not isinstance(found["answerer"], Answerer):
        raise InputError(f"form of answers '{config.answer.form}' is {found['answerer']!r}, not an Answerer")
    _refuse_other_arguments(found["synthesizer"], config.synthesis_form)
    return Parts(**found)


def _refuse_other_arguments(source: PairSource, name: str) -> None:
    """Refuses a function that cannot be called as one that writes pairs is."""
    if isinstance(source, Synthesizer):
        return
    try:
        inspect.signature(source).bind("an input", 0)
    except TypeError as error:
        raise InputError(
            f"synthesizer '{name}' cannot be called with an input and the number of an attempt ({error}); name a "
            "Synthesizer, or a function of both that gives a Synthetic"
        ) from None
    except ValueError:  # a callable that does not say what it takes
        pass
