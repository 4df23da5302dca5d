import jax.numpy as jnp

from ttsi_jax.model.cache import PADDING, SHARED, Cache, empty, first, write


def cache(values: list[float], position: int = 0) -> Cache:
    """Two layers of one key-value head of size 2."""
    x = jnp.asarray(values)[None, :, None] * jnp.ones((1, 1, 2))
    keys = jnp.swapaxes(x, 1, 2)
    positions = position + jnp.arange(len(values))
    return Cache((keys, keys + 10), (x + 20, x + 30), positions, jnp.full(len(values), SHARED))


def test_free_slots_are_seen_by_nothing():
    found = empty(cache([1.0, 2.0]), 3)
    assert found.segments.tolist() == [PADDING] * 3 and found.positions.shape == (3,)
    assert [(x.shape, x.dtype) for x in found.keys] == [((1, 2, 3), jnp.float32)] * 2
    assert [(x.shape, x.dtype) for x in found.values] == [((1, 3, 2), jnp.float32)] * 2


def test_the_first_slots_of_which_the_end_is_hidden():
    found = first(cache([1.0, 2.0, 3.0, 4.0]), 3, jnp.int32(2))
    assert found.segments.tolist() == [SHARED, SHARED, PADDING] and found.positions.tolist() == [0, 1, 2]
    assert found.keys[1][0, 0].tolist() == [11, 12, 13] and found.values[0].shape == (1, 3, 2)


def test_write_fills_one_slot_and_leaves_the_others():
    own = empty(cache([1.0]), 4)
    found = write(own, cache([7.0], position=5), jnp.int32(2))
    assert found.keys[0][0, 0].tolist() == [0, 0, 7, 0]
    assert found.values[1][0, :, 0].tolist() == [0, 0, 37, 0]
    assert found.positions.tolist() == [0, 0, 5, 0]
    assert found.segments.tolist() == [PADDING, PADDING, SHARED, PADDING]
    assert own.segments[2] == PADDING
