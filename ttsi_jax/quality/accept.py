"""Accept or revert: whether an adapted answer replaces the base's, decided per input and without a label.

A condition is a pure function of the evidence that was recorded about one input; it gives the reason to revert, or
None. Two can speak for the adapter: `sibling` looks at an example that was not trained on, and `repairs` at what the
request itself holds. The others can only speak against it. A rule is a set of conditions that must all hold, and one
without any of the two is refused: an adapter trained on its own label raises the model's confidence in that label
whether it is right or wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import combinations
from typing import NamedTuple

import numpy as np

from ttsi_jax.quality.agreement import Answer
from ttsi_jax.quality.soundness import sound as is_sound
from ttsi_jax.runs.record import Record
from ttsi_jax.runs.scores import judged, read_plain
from ttsi_jax.tasks import Example, Task, call_correct, check_call

COLLAPSE = 0.5  # the share of the base's margin below which the adapter's has collapsed
NEAR = 0.1  # nats per token that the adapted model may be away from the base on the prompt
DIVERGED = "training diverged"  # how the reason begins where an adapter is dropped whatever the rule


class Evidence(NamedTuple):
    """What is known of one input before and after adapting; None: not measured, or not finite."""

    sibling_loss_base: float | None = None  # of a synthetic example that was not trained on, nats per token
    sibling_loss: float | None = None  # the same with the adapter
    valid: bool | None = None  # whether the adapted answer consists of calls that `check_call` takes
    margin_base: float | None = None  # the gate's certainty
    margin: float | None = None  # the same with the adapter
    kl: float | None = None  # KL(adapted || base) on the input's prompt, nats per token
    seeds_agree: bool | None = None  # whether an adapter of another seed makes the same calls
    sound_base: bool | None = None  # see `ttsi_jax.quality.soundness`
    sound: bool | None = None  # the same with the adapter

    def record(self) -> dict[str, float | bool | None]:
        """As it stands in a run's records: what was not asked to be measured is left out."""
        optional = {name for name in ("kl", "seeds_agree", "sound_base", "sound") if getattr(self, name) is None}
        return {name: value for name, value in self._asdict().items() if name not in optional}


def gather(
    sibling_losses: tuple[float, float] | None,
    margins: tuple[float | None, float],
    answers: tuple[Answer, Answer],
    example: Example,
    kl: float | None = None,
    seeds_agree: bool | None = None,
    function: str | None = None,
) -> Evidence:
    """The evidence on an input: a held-out example's losses, the gate's certainties and the answers (each of the base,
    and with the adapter), and what else was measured. `function` is the one that a sound answer must call, if any."""
    calls = answers[1]
    valid = bool(calls) and all(check_call(call, example.tools) is None for call in calls or ())
    before, after = map(_finite, sibling_losses or (None, None))
    margin_base, margin = map(_finite, margins)
    judged = [is_sound(answer, example, function) for answer in answers]
    return Evidence(before, after, valid, margin_base, margin, _finite(kl), seeds_agree, *judged)


Condition = Callable[[Evidence], str | None]


def sibling(evidence: Evidence) -> str | None:
    """The loss on a held-out sibling example fell."""
    before, after = evidence.sibling_loss_base, evidence.sibling_loss
    if before is None or after is None:
        return "the loss on a sibling example was not measured"
    return None if after < before else f"the loss on a sibling example went from {before:.3g} to {after:.3g}"


def repairs(evidence: Evidence) -> str | None:
    """The base's answer could not be right, and the adapted one can."""
    if evidence.sound_base or evidence.sound_base is None:
        return "the base's answer needs no repair" if evidence.sound_base else "the base's answer was not judged"
    return (
        None
        if evidence.sound
        else "the adapted answer cannot be right either: the request does not hold its values, or it is no valid call"
    )


def sound(evidence: Evidence) -> str | None:
    """The adapted answer is a valid call, and the request holds its values."""
    return None if evidence.sound else "the request does not hold the adapted answer's values, or it is no valid call"


def valid(evidence: Evidence) -> str | None:
    """The adapted answer is a valid call."""
    return None if evidence.valid else "the adapted answer is not a valid call"


def margin(evidence: Evidence) -> str | None:
    """The margin between the candidates did not collapse. (That it rose proves nothing, see the module's text.)"""
    before, after = evidence.margin_base, evidence.margin
    if before is None or after is None:
        return "the margin was not measured"
    return None if after >= COLLAPSE * before else f"the margin fell from {before:.3g} to {after:.3g}"


def kl(evidence: Evidence) -> str | None:
    """The adapter left the model near the base on the input's own prompt, which it was not trained on."""
    if evidence.kl is None:
        return "the divergence from the base was not measured"
    return None if evidence.kl <= NEAR else f"the model went {evidence.kl:.3g} nats per token away from the base"


def seeds(evidence: Evidence) -> str | None:
    """An adapter trained on the same pairs from another seed makes the same calls."""
    if evidence.seeds_agree is None:
        return "no adapter of another seed was trained"
    return None if evidence.seeds_agree else "an adapter of another seed answers otherwise"


SPEAK_FOR: dict[str, Condition] = {"sibling": sibling, "repairs": repairs}  # of which a rule needs one
CONDITIONS: dict[str, Condition] = SPEAK_FOR | {
    "valid": valid,
    "sound": sound,
    "margin": margin,
    "kl": kl,
    "seeds": seeds,
}


def rules(names: Iterable[str] = CONDITIONS) -> list[tuple[str, ...]]:
    """All rules of these conditions that can accept anything."""
    names = list(names)
    chosen = (some for n in range(1, len(names) + 1) for some in combinations(names, n))
    return [some for some in chosen if SPEAK_FOR.keys() & set(some)]


def revert_reason(evidence: Evidence, rule: Sequence[str]) -> str | None:
    """Why the adapted answer is dropped under a rule, as `<condition>: <why>`; None: it is kept."""
    found = ((name, CONDITIONS[name](evidence)) for name in CONDITIONS if name in rule)
    return next((f"{name}: {why}" for name, why in found if why), None)


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


def cases(records: Iterable[Record], task: Task) -> list[Case]:
    """The adapted inputs of a finished run that it judged, whatever its own rule made of them; without those whose
    training diverged, which no rule could keep."""
    gold = {example.id: example.gold for example in task.examples}
    found = []
    for record in records:
        label, right_base = gold.get(record.id), record.call_correct_base
        diverged = (record.reason or "").startswith(DIVERGED)
        if record.adapted and not diverged and label is not None and right_base is not None:
            calls = judged(read_plain(record.adapted_calls), record.text_adapted, label)
            evidence = Evidence(**record.evidence)  # type: ignore[arg-type]
            found.append(Case(evidence, right_base, call_correct(calls, label)))
    return found


def effect(cases: Iterable[Case], rule: Sequence[str]) -> Effect:
    """A rule's effect on the adapted inputs of a run; the empty rule accepts all."""
    rows = [(case, revert_reason(case.evidence, rule) is None) for case in cases]

    def count(kept: bool, base: bool, adapted: bool) -> int:
        return sum(accepted == kept and (case.right_base, case.right) == (base, adapted) for case, accepted in rows)

    accepted = sum(accepted for _, accepted in rows)
    return Effect(
        accepted,
        fixed=count(True, False, True),
        broke=count(True, True, False),
        spared=count(False, True, False),
        lost=count(False, False, True),
    )


def _finite(value: float | None) -> float | None:
    return None if value is None or not np.isfinite(value) else float(value)
