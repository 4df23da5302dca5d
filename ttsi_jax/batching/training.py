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
    drafts, rows, settings = [wish.draft for wish in wave], [wish.row for wish in wave], config.adapt
    held_out = [draft.held_out for draft in drafts if draft.held_out]  # all have one, or none has
    losses, scores, prompts = waves.adapt(
        rows, [draft.pairs for draft in drafts], [draft.names for draft in drafts], max_pairs=config.synthesis.k,
        rule=rule, loss=loss, config=settings, start=start, held_out=held_out if settings.stop_rising else (),
    )  # fmt: skip
    adapted = Adapted(prompts[0].read.rows.adapters, prompts[0].read.scale, settings.scope)
    siblings, kls = repeat(None), repeat(None)
    if held_out:
        siblings = zip(*(waves.losses(rows, held_out, own) for own in (None, adapted)), strict=True)
    if "kl" in (*settings.accept, *settings.measure):
        kls = waves.prompt_kl(rows, adapted)
    return list(map(Learned, losses, scores, prompts, siblings, kls))
