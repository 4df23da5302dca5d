"""What a wave of inputs learns: training, and what is measured of its result."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import repeat

from ttsi_jax.batching.schedule import Adapt, Learned
from ttsi_jax.batching.waves import Adapted, Waves
from ttsi_jax.config import RunConfig
from ttsi_jax.model.lora import Adapter
from ttsi_jax.rules.interface import Loss, UpdateRule


def learn(
    waves: Waves, wave: Sequence[Adapt], rule: UpdateRule, loss: Loss, config: RunConfig, start: Adapter | None = None
) -> list[Learned]:
    """What several `Adapt` give, of inputs with the same shape of training; `start`: see `Waves.adapt`."""
    drafts, settings = [wish.draft for wish in wave], config.adapt
    rows, *others = zip(*(wish.rows for wish in wave), strict=True)
    held_out = [draft.held_out for draft in drafts if draft.held_out]  # all have one, or none has
    names = [draft.names for draft in drafts]
    losses, scores, prompts = waves.adapt(
        rows, [wish.pairs for wish in wave], names, max_pairs=config.n_trained,
        rule=rule, loss=loss, config=settings, start=start, held_out=held_out if settings.stop_rising else (),
    )  # fmt: skip
    adapted = Adapted(prompts[0].read.rows.adapters, prompts[0].read.scale, settings.scope)
    siblings, kls = repeat(None), repeat(None)
    if held_out:
        siblings = zip(*(waves.losses(rows, held_out, own) for own in (None, adapted)), strict=True)
    if "kl" in (*settings.accept, *settings.measure):
        kls = waves.prompt_kl(rows, adapted)
    reads = [
        zip(scores, prompts, strict=True),
        *(zip(*waves.score(own, names, adapted), strict=True) for own in others),
    ]
    return list(map(Learned, losses, zip(*reads, strict=True), siblings, kls))
