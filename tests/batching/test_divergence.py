"""How far adapters move prompts: against logits that are read one row at a time."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from model.tiny import random_adapter, random_ids, sequence, stack, tiny_model
from ttsi_jax.batching.divergence import prompt_kl_wave
from ttsi_jax.model.decoder import forward, logits

LENGTHS, FIRST = (9, 5, 7), (0, 2, 3)


@pytest.mark.parametrize("theta_0", [False, True])
def test_it_is_the_mean_over_the_stretch(theta_0):
    config, params = tiny_model()
    prompts = [sequence(random_ids(seed, n), 12) for seed, n in enumerate(LENGTHS)]
    adapters = [random_adapter(config, seed) for seed in range(3)]
    start = random_adapter(config, 7) if theta_0 else None
    stretch = [n - first for n, first in zip(LENGTHS, FIRST, strict=True)]
    stretch[2] = 0  # a row without any
    found = prompt_kl_wave(
        config, params, stack(prompts), jnp.asarray(FIRST), jnp.asarray(stretch), (), stack(adapters), start,
        scale=2.0, n_positions=10,
    )  # fmt: skip

    def log_p(prompt, adapter):
        hidden, _ = forward(config, params, prompt, (), adapter, 2.0)
        return np.asarray(jax.nn.log_softmax(logits(config, params, hidden)), np.float64)

    for row in range(2):
        own, base = log_p(prompts[row], adapters[row]), log_p(prompts[row], start)
        kl = (np.exp(own) * (own - base)).sum(-1)[FIRST[row] : LENGTHS[row]]
        assert len(kl) == stretch[row] and found[row] == pytest.approx(kl.mean(), rel=1e-3)
    assert found[2] == 0
