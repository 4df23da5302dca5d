# pyright: strict, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportUnknownLambdaType=false
"""What no run can have: values out of range, settings that contradict each other, and those that would do nothing."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from ttsi_jax.errors import InputError
from ttsi_jax.model.lora import TARGETS
from ttsi_jax.quality.accept import CONDITIONS, SPEAK_FOR
from ttsi_jax.quality.checks import ANSWERING, CHECKS
from ttsi_jax.rules.names import choices
from ttsi_jax.synthesis import check_key, check_sources, check_url
from ttsi_jax.synthesis.augment import AUGMENTATIONS
from ttsi_jax.uncertainty import GateConfig

if TYPE_CHECKING:
    from ttsi_jax.config import RunConfig

LARGEST = 1e30  # float32 holds it, and what is multiplied with it
LONGEST = 86_400  # seconds for a teacher's answer; clocks and sockets refuse some larger numbers
Refusals = tuple[tuple[bool, str], ...]  # whether a configuration is refused, and why


def check(config: RunConfig) -> None:
    """Refuses values that no run can have.

    Raises:
        InputError: naming the option, its value and what it may be.
    """
    check_key(config.teacher.key)
    check_url(config.teacher.url)
    _check_each(config)
    for refused, why in (*_contradictions(config), *_in_vain(config)):
        if refused:
            raise InputError(why)
    check_sources(config.method, config.source, config.synthesis)
    if config.source == "training" and (asking := {*ANSWERING} & {*config.synthesis.checks}):
        what = f"--synthesis.checks {' '.join(sorted(asking))}"
        raise InputError(f"{what}: the model is asked with the input's functions, a training file's pairs have others")


def _check_each(config: RunConfig) -> None:
    """Refuses values that no setting may have by itself."""
    for name, value, words in choices(config):
        if value not in words:
            raise InputError(f"--{name} is {value!r}; it must be one of {', '.join(words)}")
    counts = {  # with the least that they may be, and what no machine could hold
        "wave": (config.wave, 1, 1 << 16),
        "synthesis.k": (config.synthesis.k, 1, 1 << 10),
        "synthesis.tries": (config.synthesis.tries, 1, 1 << 10),
        "synthesis.candidates": (config.synthesis.candidates, 1, 1 << 10),
        "gate.samples": (config.gate.samples, 1, 1 << 10),
        "gate.calibration": (config.gate.calibration, 0, 1 << 30),
        "synthesis.max-tokens": (config.synthesis.max_tokens, 1, 1 << 20),
        "synthesis.labels": (config.synthesis.labels, 1, 1 << 10),
        "adapt.epochs": (config.adapt.epochs, 1, 1 << 16),
        "adapt.rank": (config.adapt.rank, 1, 1 << 12),
        "adapt.samples": (config.adapt.samples, 1, 1 << 10),
        "adapt.adapters": (config.adapt.adapters, 1, 1 << 10),
        "answer.max-tokens": (config.answer.max_tokens, 1, 1 << 20),
        "answer.value-tokens": (config.answer.value_tokens, 1, 1 << 20),
        "answer.orders": (config.answer.orders, 1, 1 << 10),
        "answer.samples": (config.answer.samples, int(config.answer.vote), 1 << 10),  # without a vote none is enough
        "teacher.in-flight": (config.teacher.in_flight, 1, 1 << 10),
        "teacher.retries": (config.teacher.retries, 0, 1 << 10),
    }
    for name, (value, least, most) in counts.items():
        if not least <= value <= most:
            bound = f"least {least}" if value < least else f"most {most}"
            raise InputError(f"--{name} is {value}; it must be at {bound}")
    adapt, gate, synthesis, answer, teacher = config.adapt, config.gate, config.synthesis, config.answer, config.teacher
    positive, not_negative = f"above 0 and at most {LARGEST:g}", f"at least 0 and at most {LARGEST:g}"
    stop = adapt.stop_below
    numbers = (  # and whether they may be, and what they must be
        ("adapt.lr", adapt.lr, adapt.lr is None or 0 < adapt.lr <= LARGEST, positive),
        ("adapt.alpha", adapt.alpha, 0 < adapt.alpha <= LARGEST, positive),
        ("adapt.memory", adapt.memory, 0 < adapt.memory <= LARGEST, positive),
        ("adapt.stop-below", stop, stop is None or abs(stop) <= LARGEST, f"a number between ±{LARGEST:g}"),
        ("adapt.kl", adapt.kl, 0 <= adapt.kl <= LARGEST, not_negative),
        ("adapt.l2", adapt.l2, 0 <= adapt.l2 <= LARGEST, not_negative),
        ("teacher.timeout", teacher.timeout, 0 < teacher.timeout <= LONGEST, f"above 0 and at most {LONGEST} (a day)"),
        ("teacher.price-in", teacher.price_in, 0 <= teacher.price_in <= LARGEST, not_negative),
        ("teacher.price-out", teacher.price_out, 0 <= teacher.price_out <= LARGEST, not_negative),
        ("gate.budget", gate.budget, 0 <= gate.budget <= 1, "between 0 and 1"),
        ("synthesis.diversity", synthesis.diversity, 0 <= synthesis.diversity <= 1, "between 0 and 1"),
        ("synthesis.top-p", synthesis.top_p, 0 < synthesis.top_p <= 1, "above 0 and at most 1"),
        ("synthesis.temperature", synthesis.temperature, 0 <= synthesis.temperature <= LARGEST, not_negative),
        ("answer.top-p", answer.top_p, 0 < answer.top_p <= 1, "above 0 and at most 1"),
        ("answer.temperature", answer.temperature, 0 <= answer.temperature <= LARGEST, not_negative),
        ("seed", config.seed, 0 <= config.seed < 2**32, f"between 0 and {2**32 - 1}"),
    )
    for name, value, fits, what in numbers:
        if not fits:
            raise InputError(f"--{name} is {value}; it must be {what}")
    if not adapt.targets:
        raise InputError(f"--adapt.targets is empty; name at least one of {', '.join(TARGETS)}")
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


def _contradictions(config: RunConfig) -> Refusals:
    """Settings that exclude each other, or need one that is not there."""
    gate, synthesis, adapt = config.gate, config.synthesis, config.adapt
    seeds = next((option for option in ("accept", "measure") if "seeds" in getattr(adapt, option)), None)
    return (
        (
            "schema" not in synthesis.checks,
            "--synthesis.checks lacks schema: only a pair with one valid call can be learned from",
        ),
        (
            bool(adapt.accept) and not SPEAK_FOR.keys() & set(adapt.accept),
            f"--adapt.accept needs {' or '.join(SPEAK_FOR)}: nothing else speaks for an adapter",
        ),
        (
            "sibling" in adapt.accept and not synthesis.held_out,
            "--adapt.accept sibling needs --synthesis.held-out: a pair that is not trained on",
        ),
        (
            adapt.reset == "never" and config.wave != 1,
            f"--adapt.reset never takes inputs one after another: --wave is {config.wave}; it must be 1",
        ),
        (
            adapt.reset == "never" and adapt.adapters > 1,
            f"--adapt.reset never goes on from one adapter: --adapt.adapters is {adapt.adapters}",
        ),
        (
            adapt.stop_rising and not synthesis.held_out,
            "--adapt.stop-rising needs --synthesis.held-out: a pair whose loss is watched",
        ),
        (
            bool(synthesis.augment) and adapt.scope != "all",
            "--synthesis.augment changes the tool list: it needs --adapt.scope all",
        ),
        (
            adapt.divide and adapt.adapters > synthesis.k,
            f"--adapt.divide: {adapt.adapters} adapters cannot share --synthesis.k {synthesis.k} pairs",
        ),
        (
            adapt.divide and seeds is not None,
            f"--adapt.{seeds} seeds compares adapters of the same pairs: not with --adapt.divide",
        ),
        (
            gate.tau != "auto" and (isinstance(gate.tau, str) or not math.isfinite(gate.tau)),
            f"--gate.tau is {gate.tau}; it must be a number or auto",
        ),
    )


def _in_vain(config: RunConfig) -> Refusals:
    """Settings that would do nothing, or not what their name promises."""
    gate, synthesis, adapt, answer, usual = config.gate, config.synthesis, config.adapt, config.answer, GateConfig()
    chooses = next(
        (name for name in ("budget", "calibration", "labelled") if getattr(gate, name) != getattr(usual, name)), None
    )
    unchanging = gate.score == "channel"  # scores that no adapter changes
    return (
        (chooses is not None and gate.tau != "auto", f"--gate.{chooses} is for choosing tau: it needs --gate.tau auto"),
        (gate.tau == "auto" and gate.select == "all", "--gate.select all adapts all inputs: not with --gate.tau auto"),
        (
            gate.budget < 1 and gate.select == "certain",
            "--gate.budget is of uncertain inputs: not with --gate.select certain",
        ),
        (
            gate.labelled is not None and gate.select == "certain",
            "--gate.labelled finds the tau below which adapting gains: not with --gate.select certain",
        ),
        (
            adapt.adapters == 1 and (adapt.divide or adapt.combine != "vote"),
            f"--adapt.{'divide' if adapt.divide else 'combine'} is about several adapters: --adapt.adapters is 1",
        ),
        (
            answer.repair and answer.samples + answer.orders + adapt.adapters < 3,
            "--answer.repair chooses among answers: it needs --answer.samples, --answer.orders or --adapt.adapters",
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
            (adapt.start is not None or adapt.reset == "never") and "seeds" in (*adapt.accept, *adapt.measure),
            "seeds compares adapters that begin differently: not with --adapt.start, nor with --adapt.reset never",
        ),
        (
            adapt.start is not None and adapt.l2 > 0,
            "--adapt.l2 holds adapters near the model without any: not with --adapt.start (--adapt.kl does)",
        ),
        (
            unchanging and "margin" in adapt.accept,
            "--adapt.accept margin needs scores that adapters change: not with --gate.score channel",
        ),
        (
            unchanging and adapt.adapters > 1 and adapt.combine == "likelihood",
            "--adapt.combine likelihood needs scores that adapters change: not with --gate.score channel",
        ),
        *_about_training(config),
    )


def _about_training(config: RunConfig) -> Refusals:
    """What is about training, where nothing is trained."""
    in_context = config.method in ("tt-icl", "icl")
    synthesis, adapt = config.synthesis, config.adapt
    given = {
        "adapt.accept": bool(adapt.accept),
        "adapt.measure": bool(adapt.measure),
        "adapt.adapters": adapt.adapters > 1,
        "adapt.stop-below": adapt.stop_below is not None,
        "adapt.kl": adapt.kl > 0,
        "adapt.l2": adapt.l2 > 0,
        "adapt.reset never": adapt.reset == "never",
        "adapt.save": adapt.save,
        "synthesis.held-out": synthesis.held_out,
        "synthesis.augment": bool(synthesis.augment),
        "synthesis.skip-values": synthesis.skip_values,
    }
    return tuple(
        (in_context and own, f"--{option} is about what is trained, and --method {config.method} trains nothing")
        for option, own in given.items()
    )
