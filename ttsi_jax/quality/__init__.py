"""Making self-improvement safe: which examples to learn from, and which results to keep. No labels are seen.

`checks` drops synthetic examples and `choice` picks among the rest; `grounding` says whether a call follows from its
request. `augmentation` makes other views of an input, and `voting` brings calls together. `confidence` and `thresholds`
say which inputs to adapt, `accept` whether an adapted answer replaces the base's. All of it is pure functions of plain
values, so that every rule can be evaluated afterwards from a run's records.
"""
