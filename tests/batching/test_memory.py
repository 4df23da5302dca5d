"""What happens when a device's memory runs out."""

import logging

import jax
import numpy as np
import pytest

from batching.test_waves import MODEL, NAMES, ROWS, E, waves
from ttsi_jax.adaptation import AdaptConfig
from ttsi_jax.batching import waves as module
from ttsi_jax.batching.memory import within_memory
from ttsi_jax.batching.waves import Pair
from ttsi_jax.rules import adamw, answer_cross_entropy


def full(chunk: int) -> jax.errors.JaxRuntimeError:
    return jax.errors.JaxRuntimeError(f"RESOURCE_EXHAUSTED: Out of memory with {chunk}")


def test_half_as_many_rows_at_a_time_until_it_fits(caplog):
    tried = []

    def train(chunk):
        tried.append(chunk)
        if chunk > 2:
            raise full(chunk)
        return "trained"

    with caplog.at_level(logging.WARNING, "ttsi_jax"):
        assert within_memory(train, 12, 12) == ("trained", 1)
    assert tried == [12, 6, 3, 1]
    assert "out of memory with 12 inputs in training at a time; going on with 6" in caplog.messages


@pytest.mark.parametrize("error", [full(1), jax.errors.JaxRuntimeError("INTERNAL: a bug"), ValueError("else")])
def test_other_errors_and_a_single_row_are_no_reason_to_go_on(error):
    def train(chunk):
        raise error

    with pytest.raises(type(error), match=str(error)):
        within_memory(train, 1 if "EXHAUSTED" in str(error) else 4, 4)


def test_a_wave_learns_the_same_and_later_waves_begin_with_what_fitted(monkeypatch, caplog):
    pairs = [[Pair(row.suffix, (5, 6, 7))] for row in ROWS]
    how = {"max_pairs": 1, "rule": adamw(1e-2), "loss": answer_cross_entropy, "config": AdaptConfig(epochs=2, rank=2)}
    losses, scores, _ = waves().adapt(ROWS, pairs, NAMES, **how)
    program, chunks = module.adapt_and_score, []

    def small(*arguments, chunk, **more):
        chunks.append(chunk)
        if chunk > 2:
            raise full(chunk)
        return program(*arguments, chunk=chunk, **more)

    monkeypatch.setattr(module, "adapt_and_score", small)
    own = waves()
    found = own.adapt(ROWS, pairs, NAMES, **how)
    own.adapt(ROWS, pairs, NAMES, **how)
    assert chunks == [E, 2, 2] and MODEL.params["embed"] is own.model.params["embed"]
    np.testing.assert_allclose(found[0], losses, atol=1e-5)
    for a, b in zip(found[1], scores, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4)
