"""Accept or revert: whether an adapted answer replaces the base's, decided per input and without a label.

A condition is a pure function of the evidence that was recorded about one input; it gives the reason to revert, or
None. Some speak for the adapter, since they look at something that it was not trained on; the others can only speak
against it. A rule is a set of conditions that must all hold, and one that has none of the first kind accepts nothing:
an adapter trained on its own label raises the model's confidence in that label whether it is right or wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ttsi_jax.errors import InputError
from ttsi_jax.runs.record import Record
from ttsi_jax.runs.scores import read_plain
from ttsi_jax.tasks import Task, call_correct


class Evidence(NamedTuple):
    """What is known of one input before and after adapting; None: not measured."""

    sibling_loss_base: float | None = None  # of a synthetic example that was not trained on, nats per token
    sibling_loss: float | None = None  # the same with the adapter
    valid: bool | None = None  # whether the adapted answer is a call that `check_call` takes
    kl: float | None = None  # `prompt_kl` of the adapter on the input's prompt
    margin_base: float | None = None  # the gate's certainty
    margin: float | None = None  # the same with the adapter
    seeds_agree: bool | None = None  # whether an adapter of another seed gives the same call


@dataclass(frozen=True)
class Limits:
    """Where the conditions draw their lines.

    Attributes:
        gain: the sibling's loss must fall by at least this share of itself.
        kl: most nats per token.
        collapse: the margin may not fall below this share of the base's.
    """

    gain: float = 0.0
    kl: float = 0.1
    collapse: float = 0.5


Condition = Callable[[Evidence, Limits], str | None]


def sibling(evidence: Evidence, limits: Limits) -> str | None:
    """The loss on a held-out sibling example fell."""
    before, after = _number(evidence.sibling_loss_base), _number(evidence.sibling_loss)
    if np.isnan(before) or np.isnan(after):
        return "the loss on a sibling example was not measured"
    return (
        None
        if after < before * (1 - limits.gain)
        else f"the loss on a sibling example went from {before:.3g} to {after:.3g}"
    )


def seeds(evidence: Evidence, limits: Limits) -> str | None:
    """Adapters of two seeds give the same call."""
    return None if evidence.seeds_agree else "adapters of two seeds do not agree"


def valid(evidence: Evidence, limits: Limits) -> str | None:
    """The adapted answer is a valid call."""
    return None if evidence.valid else "the adapted answer is not a valid call"


def near(evidence: Evidence, limits: Limits) -> str | None:
    """On the input's own prompt the model is still close to the base."""
    kl = _number(evidence.kl)
    if np.isnan(kl):
        return "the distance to the base was not measured"
    return None if kl <= limits.kl else f"the distance to the base is {kl:.3g} nats per token"


def margin(evidence: Evidence, limits: Limits) -> str | None:
    """The margin between the candidates did not collapse. (That it rose proves nothing, see the module's text.)"""
    before, after = _number(evidence.margin_base), _number(evidence.margin)
    if np.isnan(before) or np.isnan(after):
        return "the margin was not measured"
    return None if after >= limits.collapse * before else f"the margin fell from {before:.3g} to {after:.3g}"


SUPPORT: dict[str, Condition] = {"sibling": sibling, "seeds": seeds}  # these can speak for an adapter
VETOES: dict[str, Condition] = {"valid": valid, "kl": near, "margin": margin}  # these only against it
CONDITIONS = SUPPORT | VETOES
UNSUPPORTED = "nothing but the model's own confidence speaks for the adapter"


def named(names: str) -> tuple[str, ...]:
    """The conditions of a rule such as `sibling,valid,kl`.

    Raises:
        InputError: for a name that no condition has, or a rule without one that can speak for an adapter.
    """
    given = [name.strip() for name in names.split(",") if name.strip()]
    if unknown := [name for name in given if name not in CONDITIONS]:
        raise InputError(f"unknown condition '{unknown[0]}'. Known: {', '.join(CONDITIONS)}")
    if not SUPPORT.keys() & set(given):
        raise InputError(f"a rule of '{names}' would accept nothing: it needs one of {', '.join(SUPPORT)}")
    return tuple(name for name in CONDITIONS if name in given)


def revert_reason(evidence: Evidence, rule: Sequence[str], limits: Limits = Limits()) -> str | None:  # noqa: B008
    """Why the adapted answer is dropped under a rule, as `<condition>: <why>`; None: it is kept."""
    found = ((name, CONDITIONS[name](evidence, limits)) for name in rule)
    if failed := next((f"{name}: {why}" for name, why in found if why), None):
        return failed
    return None if SUPPORT.keys() & set(rule) else UNSUPPORTED


def prompt_kl(base: Array, adapted: Array, mask: Array) -> Array:
    """How far an adapter moves the model on a prompt: mean KL(adapted || base) over its tokens, in nats.

    Args:
        base, adapted: [T, V] float32 logits.
        mask: [T] bool, the tokens that count.
    """
    log_p, log_q = jax.nn.log_softmax(adapted), jax.nn.log_softmax(base)
    each = jnp.sum(jnp.exp(log_p) * (log_p - log_q), axis=-1)
    return jnp.sum(jnp.where(mask, each, 0.0)) / jnp.maximum(jnp.sum(mask), 1)


# Afterwards


class Case(NamedTuple):
    """One adapted input of a finished run, with both answers judged."""

    evidence: Evidence
    right_base: bool
    right: bool  # the adapted answer


class Effect(NamedTuple):
    """What a rule would have done: adapted inputs by what happens to them."""

    accepted: int
    fixed: int  # accepted, from wrong to right
    broke: int  # accepted, from right to wrong
    spared: int  # reverted, would have broken
    lost: int  # reverted, would have been fixed
    accuracy_base: float
    accuracy: float


def cases(records: Iterable[Record], task: Task) -> list[Case]:
    """The adapted, labelled inputs of a finished run, whatever its own rule made of them."""
    gold = {example.id: example.gold for example in task.examples}
    return [
        Case(
            Evidence(**record.evidence),  # type: ignore[arg-type]
            call_correct(read_plain(record.base_calls), label),
            call_correct(read_plain(record.adapted_calls), label),
        )
        for record in records
        if record.adapted and (label := gold.get(record.id)) is not None
    ]


def effect(cases: Iterable[Case], rule: Sequence[str], limits: Limits = Limits()) -> Effect:  # noqa: B008
    """A rule's effect on the adapted inputs of a run that recorded both answers."""
    rows = [(case, revert_reason(case.evidence, rule, limits) is None) for case in cases]

    def count(kept: bool, base: bool, adapted: bool) -> int:
        return sum(accepted == kept and (case.right_base, case.right) == (base, adapted) for case, accepted in rows)

    fixed, broke = count(True, False, True), count(True, True, False)
    right, n = sum(case.right_base for case, _ in rows), max(len(rows), 1)
    return Effect(
        sum(accepted for _, accepted in rows), fixed, broke, count(False, True, False), count(False, False, True),
        right / n, (right + fixed - broke) / n,
    )  # fmt: skip


def effects(cases: Sequence[Case], limits: Limits = Limits()) -> dict[str, Effect]:  # noqa: B008
    """The effect of every rule that can accept anything, by its conditions."""
    return {",".join(rule): effect(cases, rule, limits) for rule in _rules()}


def _rules() -> Iterator[tuple[str, ...]]:
    for size in range(1, len(CONDITIONS) + 1):
        yield from (rule for rule in combinations(CONDITIONS, size) if SUPPORT.keys() & set(rule))


def _number(value: float | None) -> float:
    """NaN for what was not measured or is not finite."""
    return float("nan") if value is None or not np.isfinite(value) else value
