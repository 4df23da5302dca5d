"""The embedded SmolLM2 against what transformers computes from the same GGUF file."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from model.make_golden import GOLDEN, MESSAGES, N_NEW, reference
from model.tiny import prompted, run_lanes, script, sequence, stack
from ttsi_jax.model.decoder import forward, logits
from ttsi_jax.model.generation import Rows, Sampling, SlotTables

golden = json.loads(GOLDEN.read_text(encoding="utf-8"))
PROMPT = golden["prompt"]


@pytest.fixture(scope="module")
def scores(smollm2):
    """Logits of the golden prompt [T, V]."""
    run = jax.jit(forward, static_argnums=0)
    hidden, _ = run(smollm2.config, smollm2.params, sequence(PROMPT))
    return np.asarray(logits(smollm2.config, smollm2.params, hidden))


def test_the_prompt_is_tokenised_alike(smollm2):
    ids = smollm2.tokenizer.apply_chat_template(MESSAGES, add_generation_prompt=True, return_dict=False)
    assert ids == PROMPT


def test_logits_are_the_golden_ones(scores):
    for position, ids, values in zip(golden["positions"], golden["top_ids"], golden["top_logits"], strict=True):
        np.testing.assert_allclose(scores[position, ids], values, rtol=0, atol=1e-3)
        assert np.sort(scores[position])[-len(ids)] >= min(values) - 1e-3


def test_the_greedy_continuation_is_the_golden_one(smollm2):
    vocabulary = smollm2.config.vocab_size
    stops = np.zeros((1, vocabulary), np.int8)
    stops[0, list(smollm2.stop_ids)] = -1
    anything = jnp.ones((1, vocabulary), bool)
    read = prompted(smollm2.config, smollm2.params, stack([sequence(PROMPT, 64)]))
    tables = SlotTables(jnp.asarray(stops), anything, anything)
    scripts, keys = stack([script([(1, N_NEW)], 1)]), jax.random.split(jax.random.key(0), 1)
    base = smollm2.config, smollm2.params
    found = run_lanes(*base, Rows(read), scripts, tables, keys, Sampling(0.0, 1.0), N_NEW)
    assert found.ids[0].tolist() == golden["continuation"]


@pytest.mark.torch
def test_logits_are_transformers(scores):
    torch = pytest.importorskip("torch")
    with torch.no_grad():
        expected = reference()(torch.tensor([PROMPT])).logits[0].numpy()
    np.testing.assert_allclose(scores, expected, rtol=0, atol=1e-3)
