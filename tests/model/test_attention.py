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


@pytest.mark.parametrize("cached", [0, 2**21], ids=["a row at a time", "all rows together"])
@pytest.mark.parametrize("axes", [(0, (0, 0), 0), (0, (None, 0), None)], ids=["own pasts", "a common past"])
def test_rows_of_a_wave_attend_as_each_does_alone(monkeypatch, cached, axes):
    monkeypatch.setattr(attention, "QUERIES", 8)
    monkeypatch.setattr(attention, "CACHED", cached)
    q, blocks, visible = inputs(20, 9)
    scaled = lambda x, axis: x if axis is None else jnp.stack([x, 0.5 * x, -x])  # noqa: E731
    of_axis = lambda axis, block: tuple(scaled(x, axis) for x in block)  # noqa: E731
    seen = visible if axes[2] is None else jnp.stack([visible] * 3)
    rows = scaled(q, 0), [of_axis(axis, block) for axis, block in zip(axes[1], blocks, strict=True)], seen

    def outputs_and_gradients(q, blocks, visible):
        found, pull = jax.vjp(lambda q, blocks: attend(q, blocks, visible), q, blocks)
        return found, pull(found)

    together = jax.jit(jax.vmap(outputs_and_gradients, (0, [(axis, axis) for axis in axes[1]], axes[2])))
    found = together(*rows)
    assert ("while" in together.lower(*rows).as_text()) == (cached == 0 and jax.default_backend() == "cpu")
    for row in range(3):
        own = [
            tuple(x if axis is None else x[row] for x in block) for axis, block in zip(axes[1], rows[1], strict=True)
        ]
        alone = outputs_and_gradients(rows[0][row], own, seen if axes[2] is None else seen[row])
        jax.tree.map(lambda a, b, n=row: np.testing.assert_allclose(a[n], b, atol=1e-5), found, alone)
