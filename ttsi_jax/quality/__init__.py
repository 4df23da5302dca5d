"""Making self-improvement safe: which examples to learn from, and which results to keep. No labels are seen.

`checks` drops synthetic examples: `grounding` says whether a call follows from its request, `agreement` whether answers
make the same calls. `choice` takes the best of several candidates, `confidence` and `thresholds` say which inputs
adapt, `accept` whether an adapted answer replaces the base's. All of it is pure functions of plain values, so that
every rule can be evaluated afterwards from a run's records; `ttsi_jax.steps` asks the model for them.
"""
