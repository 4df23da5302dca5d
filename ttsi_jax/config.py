# pyright: strict, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportUnknownLambdaType=false
"""A run's configuration: the settings of its steps, and the names that stand for objects."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from os import PathLike
from typing import Any, Literal, NamedTuple

from ttsi_jax.adaptation import AdaptConfig
from ttsi_jax.answering import ANSWERERS, AnswerConfig, Answerer
from ttsi_jax.errors import InputError
from ttsi_jax.model.lora import TARGETS
from ttsi_jax.quality.accept import CONDITIONS, SPEAK_FOR
from ttsi_jax.quality.checks import CHECKS
from ttsi_jax.quality.confidence import CALL_ESTIMATORS, CallEstimator
from ttsi_jax.rules import LOSSES, RULES
from ttsi_jax.rules.anchors import anchored
from ttsi_jax.rules.identity import digest, named
from ttsi_jax.rules.interface import Loss, UpdateRule
from ttsi_jax.rules.names import choices, make_rule, resolve
from ttsi_jax.synthesis import (
    SYNTHESIZERS,
    PairSource,
    SynthesisConfig,
    TeacherConfig,
    check_key,
    check_sources,
    check_url,
    find_source,
)
from ttsi_jax.synthesis.augment import AUGMENTATIONS
from ttsi_jax.uncertainty import ESTIMATORS, Estimator, GateConfig

LONGEST = 86_400  # seconds for a teacher's answer; clocks and sockets refuse some larger numbers


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


_GATE = GateConfig()
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
        if part == "synthesizer" and part not in given and config.source != "self":
            found[part] = find_source(config.source, config.synthesis, config.teacher, config.seed, data)
        else:
            found[part] = given[part] if part in given else resolve(name, known, kind)
    if not isinstance(found["rule"], UpdateRule):
        found["rule"] = make_rule(found["rule"], config.adapt.rule, config.adapt.lr)
    found["loss"] = anchored(found["loss"], config.adapt.kl, config.adapt.l2)
    if not isinstance(found["answerer"], Answerer):
        raise InputError(f"form of answers '{config.answer.form}' is {found['answerer']!r}, not an Answerer")
    return Parts(**found)


def check(config: RunConfig) -> None:
    """Refuses values that no run can have.

    Raises:
        InputError: naming the option, its value and what it may be.
    """
    check_key(config.teacher.key)
    check_url(config.teacher.url)
    for name, value, words in choices(config):
        if value not in words:
            raise InputError(f"--{name} is {value!r}; it must be one of {', '.join(words)}")
    counts = {  # with what no machine could hold
        "wave": (config.wave, 1 << 16),
        "synthesis.k": (config.synthesis.k, 1 << 10),
        "synthesis.tries": (config.synthesis.tries, 1 << 10),
        "synthesis.candidates": (config.synthesis.candidates, 1 << 10),
        "gate.samples": (config.gate.samples, 1 << 10),
        "gate.calibration": (config.gate.calibration or 1, 1 << 30),
        "synthesis.max-tokens": (config.synthesis.max_tokens, 1 << 20),
        "synthesis.labels": (config.synthesis.labels, 1 << 10),
        "adapt.epochs": (config.adapt.epochs, 1 << 16),
        "adapt.rank": (config.adapt.rank, 1 << 12),
        "adapt.samples": (config.adapt.samples, 1 << 10),
        "adapt.adapters": (config.adapt.adapters, 1 << 10),
        "answer.max-tokens": (config.answer.max_tokens, 1 << 20),
        "answer.value-tokens": (config.answer.value_tokens, 1 << 20),
        "answer.orders": (config.answer.orders, 1 << 10),
        "answer.samples": (config.answer.samples + (not config.answer.vote), 1 << 10),  # without a vote none is enough
        "teacher.in-flight": (config.teacher.in_flight, 1 << 10),
        "teacher.retries": (config.teacher.retries + 1, 1 << 10),
    }
    for name, (value, most) in counts.items():
        if not 1 <= value <= most:
            raise InputError(f"--{name} is {value}; it must be at {'least 1' if value < 1 else f'most {most}'}")
    adapt, gate, synthesis, answer, inf = config.adapt, config.gate, config.synthesis, config.answer, float("inf")
    teacher = config.teacher
    numbers = (  # and whether they may be, and what they must be
        ("adapt.lr", adapt.lr, adapt.lr is None or 0 < adapt.lr < inf, "above 0"),
        ("adapt.alpha", adapt.alpha, 0 < adapt.alpha < inf, "above 0"),
        ("adapt.memory", adapt.memory, 0 < adapt.memory < inf, "above 0"),
        ("adapt.kl", adapt.kl, 0 <= adapt.kl < inf, "at least 0"),
        ("adapt.l2", adapt.l2, 0 <= adapt.l2 < inf, "at least 0"),
        ("teacher.timeout", teacher.timeout, 0 < teacher.timeout <= LONGEST, f"above 0 and at most {LONGEST} (a day)"),
        ("teacher.price-in", teacher.price_in, 0 <= teacher.price_in < inf, "at least 0"),
        ("teacher.price-out", teacher.price_out, 0 <= teacher.price_out < inf, "at least 0"),
        ("gate.budget", gate.budget, 0 <= gate.budget <= 1, "between 0 and 1"),
        ("synthesis.diversity", synthesis.diversity, 0 <= synthesis.diversity <= 1, "between 0 and 1"),
        ("synthesis.top-p", synthesis.top_p, 0 < synthesis.top_p <= 1, "above 0 and at most 1"),
        ("synthesis.temperature", synthesis.temperature, 0 <= synthesis.temperature < inf, "at least 0"),
        ("answer.top-p", answer.top_p, 0 < answer.top_p <= 1, "above 0 and at most 1"),
        ("answer.temperature", answer.temperature, 0 <= answer.temperature < inf, "at least 0"),
        ("seed", config.seed, 0 <= config.seed < 2**32, f"between 0 and {2**32 - 1}"),
    )
    for name, value, fits, what in numbers:
        if not fits:
            raise InputError(f"--{name} is {value}; it must be {what}")
    for option, names, known in (
        ("adapt.targets", config.adapt.targets, TARGETS),
        ("synthesis.checks", config.synthesis.checks, CHECKS),
        ("adapt.accept", config.adapt.accept, CONDITIONS),
        ("adapt.measure", config.adapt.measure, ("kl", "seeds")),
        ("synthesis.augment", config.synthesis.augment, AUGMENTATIONS),
    ):
        for name in names:
            if name not in known:
                raise InputError(f"--{option} is {name!r}; it must be one of {', '.join(known)}")
    if "schema" not in config.synthesis.checks:
        raise InputError("--synthesis.checks lacks schema: only a pair with one valid call can be learned from")
    if adapt.accept and not SPEAK_FOR.keys() & set(adapt.accept):
        raise InputError(f"--adapt.accept needs {' or '.join(SPEAK_FOR)}: nothing else speaks for an adapter")
    if "sibling" in adapt.accept and not synthesis.held_out:
        raise InputError("--adapt.accept sibling needs --synthesis.held-out: a pair that is not trained on")
    if config.adapt.reset == "never" and config.wave != 1:
        raise InputError(f"--adapt.reset never takes inputs one after another: --wave is {config.wave}; it must be 1")
    if adapt.reset == "never" and adapt.adapters > 1:
        raise InputError(f"--adapt.reset never goes on from one adapter: --adapt.adapters is {adapt.adapters}")
    if config.adapt.stop_rising and not config.synthesis.held_out:
        raise InputError("--adapt.stop-rising needs --synthesis.held-out: a pair whose loss is watched")
    if synthesis.augment and adapt.scope != "all":
        raise InputError("--synthesis.augment changes the tool list: it needs --adapt.scope all")
    if adapt.divide and adapt.adapters > synthesis.k:
        raise InputError(f"--adapt.divide: {adapt.adapters} adapters cannot share --synthesis.k {synthesis.k} pairs")
    if adapt.divide and "seeds" in (*adapt.accept, *adapt.measure):
        option = "accept" if "seeds" in adapt.accept else "measure"
        raise InputError(f"--adapt.{option} seeds compares adapters of the same pairs: not with --adapt.divide")
    chosen = next(
        (name for name in ("budget", "calibration", "labelled") if getattr(gate, name) != getattr(_GATE, name)), ""
    )
    in_vain = (  # what would have no effect, or not the one that its name promises
        (chosen and gate.tau != "auto", f"--gate.{chosen} is for choosing tau: it needs --gate.tau auto"),
        (gate.tau == "auto" and gate.select == "all", "--gate.select all adapts all inputs: not with --gate.tau auto"),
        (
            gate.budget < 1 and gate.select == "certain",
            "--gate.budget is of uncertain inputs: not with --gate.select certain",
        ),
        (
            synthesis.label == "gold" and config.source != "self",
            f"--synthesis.label gold is about what the model writes: not with --synthesis.source {config.source}",
        ),
        (
            adapt.start is not None and adapt.adapters > 1 and not adapt.divide,
            "--adapt.adapters: all that begin at --adapt.start and learn the same pairs are equal; add --adapt.divide",
        ),
        (
            adapt.start is not None and "seeds" in (*adapt.accept, *adapt.measure),
            "seeds compares adapters that begin differently: not with --adapt.start",
        ),
        (
            adapt.start is not None and adapt.l2 > 0,
            "--adapt.l2 holds adapters near the model without any: not with --adapt.start (--adapt.kl does)",
        ),
        (
            gate.score == "channel"
            and ("margin" in adapt.accept or adapt.adapters > 1 and adapt.combine == "likelihood"),
            "--gate.score channel gives scores that no adapter changes: --adapt.accept margin and --adapt.combine "
            "likelihood need others",
        ),
    )
    for wrong, why in in_vain:
        if wrong:
            raise InputError(why)
    if isinstance(config.gate.tau, str) and config.gate.tau != "auto" or config.gate.tau != config.gate.tau:
        raise InputError("--gate.tau is not a number")
    check_sources(config.method, config.source, config.synthesis)
    if config.source == "training" and (asking := {"round-trip", "agreement"} & {*synthesis.checks}):
        what = f"--synthesis.checks {' '.join(sorted(asking))}"
        raise InputError(f"{what}: the model is asked with the input's functions, a training file's pairs have others")
    trains = {"--adapt.accept": adapt.accept, "--synthesis.augment": synthesis.augment, "--adapt.divide": adapt.divide}
    trains["--synthesis.skip-values"] = synthesis.skip_values
    if config.method in ("tt-icl", "icl") and (option := next((name for name in trains if trains[name]), None)):
        raise InputError(f"{option} is about what is trained, and --method {config.method} trains nothing")
