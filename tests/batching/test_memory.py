"""What happens when a device's memory runs out."""

import logging
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from batching.test_waves import MODEL, NAMES, ROWS, E, waves
from model.tiny import tiny_model as tiny_params
from ttsi_jax.adaptation import AdaptConfig
from ttsi_jax.batching import waves as module
from ttsi_jax.batching.memory import training_bytes, training_chunk, within_memory
from ttsi_jax.batching.waves import Pair, Shape
from ttsi_jax.rules import LOSSES, adamw, answer_cross_entropy
from ttsi_jax.rules.anchors import anchored
from ttsi_jax.scaling.programs import Sizes, run_programs


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


def test_training_chunks_divide_the_wave_and_follow_memory():
    config, _ = tiny_params()

    def chunk(memory, n_examples=12, n_past=256, recomputes=True):
        return training_chunk(config, AdaptConfig(memory=memory), n_examples, 512, n_past, 64, recomputes=recomputes)

    sizes = [chunk(memory)[0] for memory in (1e-4, 0.05, 0.1, 0.2, 100.0)]
    assert sizes == sorted(sizes) and sizes[0] == 1 and sizes[-1] == 12
    assert all(12 % size == 0 for size in sizes)
    assert chunk(1e-4)[1] and not chunk(100.0)[1]
    assert chunk(100.0, 7, 0) == (7, False)


def test_where_recomputing_saves_nothing_chunks_hold_what_is_kept():
    config, _ = tiny_params()
    of = partial(training_chunk, config, AdaptConfig(memory=1e-4), 12, 512, 0, 64)
    assert of(recomputes=True) == (1, True) and of(recomputes=False) == (1, False)
    assert of() == of(recomputes=jax.default_backend() != "cpu")


LAYERS = {"n_layers": 4, "local_layers": (False,) * 4, "hidden_size": 128, "mlp_size": 384, "vocab_size": 64}
VOCABULARY = {"n_layers": 1, "local_layers": (False,), "vocab_size": 32768}


@pytest.mark.parametrize(
    ("shape", "scope", "loss", "kl"),
    [
        (LAYERS, "all", "answer_cross_entropy", 0.0),
        (LAYERS, "suffix", "answer_cross_entropy", 0.0),
        (LAYERS, "suffix", "answer_cross_entropy", 0.1),
        (VOCABULARY, "suffix", "entropy", 0.0),
        (VOCABULARY, "suffix", "self_distillation", 0.0),
        (VOCABULARY, "suffix", "self_distillation", 0.1),
    ],
    ids=lambda own: own if isinstance(own, str | float) else f"{own['n_layers']} layers",
)
def test_the_compiled_program_takes_what_the_formula_says(shape, scope, loss, kl):
    """Of the CPU's compiler; models whose layers, or whose logits, outweigh the rest."""
    config, settings = replace(tiny_params()[0], **shape), AdaptConfig(loss=loss, kl=kl)
    n_answer = 16 if shape is LAYERS else 128
    sizes = Sizes(4, Shape(384, 128, 2, 4), 128, n_answer, 4)
    program = run_programs(config, jnp.float32, sizes, settings, adamw(1e-2), anchored(LOSSES[loss], kl), (scope,))
    program = program[f"adapt, {scope}"]
    taken = {}
    for chunk in (1, 4):
        own = program._replace(options=program.options | {"chunk": chunk, "remat": False})
        taken[chunk] = own.trace().lower().compile().memory_analysis().temp_size_in_bytes
    measured = (taken[4] - taken[1]) / 3
    n_tokens, n_past = (512, 0) if scope == "all" else (128, 384)
    formula = training_bytes(config, settings, n_tokens, n_past, n_answer)
    assert 0.5 * formula <= measured <= 1.1 * formula
