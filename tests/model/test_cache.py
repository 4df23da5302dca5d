import jax.numpy as jnp
import numpy as np

from ttsi_jax.model.cache import PADDING, SHARED, Cache, with_free_slots, write


def cache(values: list[float], position: int = 0) -> Cache:
    """Two layers of one key-value head of size 2."""
    x = jnp.asarray(values)[:, None, None] * jnp.ones((1, 1, 2))
    positions = position + jnp.arange(len(values))
    return Cache((x, x + 10), (x + 20, x + 30), positions, jnp.full(len(values), SHARED))


def test_free_slots_are_seen_by_nothing():
    found = with_free_slots(cache([1.0, 2.0]), 3)
    assert found.segments.tolist() == [SHARED, SHARED, PADDING, PADDING, PADDING]
    assert [x.shape for x in (*found.keys, *found.values)] == [(5, 1, 2)] * 4
    np.testing.assert_array_equal(found.values[1][:2], cache([1.0, 2.0]).values[1])


def test_write_fills_one_slot_and_leaves_the_others():
    own = with_free_slots(cache([1.0, 2.0]), 2)
    found = write(own, cache([7.0], position=5), jnp.int32(2))
    assert found.keys[0][:, 0, 0].tolist() == [1, 2, 7, 0]
    assert found.values[1][:, 0, 0].tolist() == [31, 32, 37, 0]
    assert found.positions.tolist() == [0, 1, 5, 0]
    assert found.segments.tolist() == [SHARED, SHARED, SHARED, PADDING]
    assert own.segments[2] == PADDING
