"""Settings that go together, by name. The command line takes one with `--preset`; options given beside it win."""

from __future__ import annotations

from ttsi_jax.adaptation import AdaptConfig
from ttsi_jax.answering import AnswerConfig
from ttsi_jax.config import RunConfig
from ttsi_jax.synthesis import SynthesisConfig
from ttsi_jax.uncertainty import GateConfig

PRESETS: dict[str, RunConfig] = {
    "paper": RunConfig(),
    # Measured in docs/quality.md: only what cannot be right is adapted, and only what may be right replaces it.
    "recommended": RunConfig(
        gate=GateConfig(estimator="soundness"),
        synthesis=SynthesisConfig(
            k=2, candidates=4, label="channel", checks=("schema", "copy", "channel"), skip_values=True
        ),
        adapt=AdaptConfig(scope="suffix", lr=5e-4, accept=("repairs",)),
        answer=AnswerConfig(form="keys", judge="channel"),
    ),
}
