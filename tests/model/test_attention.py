"""Attention against the plain formula: values and gradients, with past blocks, in one part and in several."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ttsi_jax.model import attention
from ttsi_jax.model.attention import attend

HEADS, KV_HEADS, SIZE = 4, 2, 8


def plain(q, keys_values, visible):
    """One softmax over all keys, joined, with a key-value head per query head."""
    joined = [
        jnp.concatenate(blocks, axis) for blocks, axis in zip(zip(*keys_values, strict=True), (2, 1), strict=True)
    ]
    keys, values = (jnp.repeat(x, HEADS // KV_HEADS, axis=0) for x in joined)
    scores = jnp.where(visible, jnp.einsum("tnh,nhs->nts", q, keys), -jnp.inf)
    return jnp.einsum("nts,nsh->tnh", jax.nn.softmax(scores), values).reshape(len(q), -1)


def inputs(n_tokens: int, *n_past: int):
    """Queries, blocks, and a random visibility in which every query sees the first key and none behind its own."""
    rng = np.random.default_rng(n_tokens)
    draw = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)  # noqa: E731
    blocks = [(draw(KV_HEADS, SIZE, n), draw(KV_HEADS, n, SIZE)) for n in (*n_past, n_tokens)]
    seen = rng.random((n_tokens, sum(n_past) + n_tokens)) < 0.7
    seen[:, sum(n_past) :] &= np.tri(n_tokens, dtype=bool)
    seen[:, 0] = True
    return draw(n_tokens, HEADS, SIZE), blocks, jnp.asarray(seen)


@pytest.mark.parametrize(("n_tokens", "past"), [(1, (5, 3)), (7, ()), (7, (6,)), (20, (9, 4))])
def test_values_and_gradients_are_those_of_the_formula(monkeypatch, n_tokens, past):
    monkeypatch.setattr(attention, "QUERIES", 8)  # the longest case has parts of 8, 8 and 4
    q, blocks, visible = inputs(n_tokens, *past)
    np.testing.assert_allclose(attend(q, blocks, visible), plain(q, blocks, visible), atol=1e-5)

    def gradients(of):
        return jax.grad(lambda q, blocks: jnp.sum(of(q, blocks, visible) ** 3), argnums=(0, 1))(q, blocks)

    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), gradients(attend), gradients(plain))


def test_a_query_that_sees_nothing_has_no_gradient_and_no_nan():
    q, blocks, visible = inputs(5)
    visible = visible.at[3].set(False)
    found = jax.grad(lambda q: jnp.sum(attend(q, blocks, visible) ** 2))(q)
    assert np.isfinite(attend(q, blocks, visible)).all() and (found[3] == 0).all() and (found[2] != 0).any()
