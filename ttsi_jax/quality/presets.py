"""Settings that go together, by name. The command line takes one with `--preset`; options given beside it win."""

from __future__ import annotations

from ttsi_jax.adaptation import AdaptConfig
from ttsi_jax.answering import AnswerConfig
from ttsi_jax.config import RunConfig
from ttsi_jax.synthesis import SynthesisConfig

PRESETS: dict[str, RunConfig] = {
    "paper": RunConfig(),
    "recommended": RunConfig(
        synthesis=SynthesisConfig(k=2, candidates=6, checks=("schema", "copy", "grounded"), held_out=True),
        adapt=AdaptConfig(lr=5e-4, stop_rising=True, accept=("sibling", "valid", "margin")),
        answer=AnswerConfig(form="auto"),
    ),
}
