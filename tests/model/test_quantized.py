"""Matrices in int8: how far they are from the float ones, and that everything computes with what they stand for."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from model.tiny import dense, in_int8, pair, random_adapter, random_ids, sequence, tiny_model
from ttsi_jax.adaptation import bind_forward
from ttsi_jax.checkpoints.int8 import quantise, storage
from ttsi_jax.model import quantized
from ttsi_jax.model.decoder import abstract_params, forward, logits
from ttsi_jax.model.quantized import Int8, Quantized, contract, rows
from ttsi_jax.rules import answer_cross_entropy

GROUPS = (None, 16)  # a scale per channel, and per 16 inputs
IDS = random_ids(0, 11)


@given(
    arrays(
        np.float32,
        st.tuples(st.integers(1, 4), st.integers(1, 8)),
        elements=st.floats(-(2.0**100), 2.0**100, width=32).map(lambda x: x if abs(x) > 2.0**-100 else 0.0),
    )
)
def test_a_value_is_off_by_half_a_scale_at_most(matrix):
    values, scales = quantise(matrix)
    assert values.dtype == np.int8 and scales.dtype == np.float32 and scales.shape == (len(matrix), 1)
    error = np.abs(values.astype(np.float64) * scales - matrix)
    assert (error <= scales * (0.5 + 1e-4)).all()
    largest = np.abs(values.astype(int)).max(axis=1)
    assert (largest == np.where(np.abs(matrix).max(axis=1) > 0, 127, 0)).all()


def test_values_that_are_not_finite_show_in_the_scales():
    matrix = np.ones((3, 4), np.float32)
    matrix[0, 1], matrix[2, 3] = np.nan, np.inf
    assert np.isfinite(quantise(matrix)[1]).ravel().tolist() == [False, True, False]


def matrix(axis: int, group: int | None, dtype=jnp.float32) -> Quantized:
    """300 outputs of 48 inputs, which are on the given axis."""
    rng = np.random.default_rng(0)
    values, scales = rng.integers(-128, 128, (300, 48)), rng.uniform(0.01, 0.1, (300, 48 // (group or 48)))
    if axis == 0:
        values, scales = values.T, scales.T
    kind = jnp.float32 if group is None else jnp.float16
    return Quantized(jnp.asarray(values, jnp.int8), jnp.asarray(scales, kind), jnp.dtype(dtype))


@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("at_once", [1 << 24, 1])  # all outputs, or 128 of them at a time
@pytest.mark.parametrize("n_rows", [1, 5])
def test_products_and_their_gradients_are_those_of_the_matrix_it_stands_for(monkeypatch, axis, group, at_once, n_rows):
    monkeypatch.setattr(quantized, "DEQUANTISED", at_once)
    weight = matrix(axis, group)
    repeats = np.asarray(weight.values.shape) // weight.scales.shape
    scales = np.asarray(weight.scales, np.float32).repeat(repeats[0], axis=0).repeat(repeats[1], axis=1)
    plain = jnp.asarray(np.asarray(weight.values) * scales)
    np.testing.assert_array_equal(weight.dense(), plain)

    rng = np.random.default_rng(1)
    x, wanted = (jnp.asarray(rng.normal(size=(2, n_rows, n)), jnp.float32) for n in (48, 300))
    product = jax.vmap(partial(contract, axis=axis), in_axes=(0, None))
    np.testing.assert_allclose(product(x, weight), product(x, plain), rtol=0, atol=2e-4)
    loss = lambda x, weight: jnp.sum(product(x, weight) * wanted)  # noqa: E731
    gradients = [jax.jit(jax.grad(loss))(x, w) for w in (weight, plain)]
    np.testing.assert_allclose(*gradients, rtol=0, atol=1e-3)


@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("n_ids", [1, 2])
def test_rows_are_those_of_the_matrix_it_stands_for(group, n_ids):
    weight, ids = matrix(1, group), jnp.asarray([[4, 0], [299, 4]])[:, :n_ids]
    np.testing.assert_array_equal(jax.vmap(partial(rows, weight))(ids), weight.dense()[ids])


@pytest.mark.parametrize("group", GROUPS)
def test_products_are_given_in_the_dtype_of_the_activations(group):
    x = jnp.ones((2, 48), jnp.bfloat16)
    for axis in (0, 1):
        weight = matrix(axis, group, jnp.bfloat16)
        assert contract(x, weight, axis).dtype == weight.dense().dtype == jnp.bfloat16
        assert contract(x, weight, axis, jnp.float32).dtype == jnp.float32


@pytest.mark.parametrize(("variant", "group"), [("qwen2-tied", None), ("qwen2", 16), ("gemma3", 16)])
def test_a_decoder_computes_with_the_weights_that_it_stands_for(variant, group):
    config, plain = tiny_model(variant)
    params = in_int8(plain, group)
    described = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), params)
    assert described == abstract_params(config, Int8("float32", group))

    @jax.jit
    def scores(params):
        return logits(config, params, forward(config, params, sequence(IDS), (), random_adapter(config, 0), 2.0)[0])

    found, expected, unquantised = scores(params), scores(dense(params)), scores(plain)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4 * np.abs(expected).max())
    assert np.corrcoef(np.ravel(found), np.ravel(unquantised))[0, 1] > 0.99
    assert np.abs(found - unquantised).max() > 1e-3


@pytest.mark.parametrize(("group", "remat"), [(None, True), (16, False)])
def test_adapters_get_the_gradients_of_the_weights_that_it_stands_for(group, remat):
    config, plain = tiny_model("qwen2")
    params, adapter = in_int8(plain, group), random_adapter(config, 0)
    batch = pair(IDS[:7], IDS[7:], 16, 6)

    @jax.jit
    def gradients(params):
        run = bind_forward(config, params, (), None, 2.0, remat)
        return jax.grad(lambda adapter: answer_cross_entropy(run, adapter, batch, jax.random.key(0))[0])(adapter)

    found, expected = gradients(params), gradients(dense(params))
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-5), found, expected)
    assert max(np.abs(x).max() for x in jax.tree.leaves(expected)) > 0.01


def test_how_a_base_is_kept_is_told():
    _, params = tiny_model()
    assert storage(params) == "float32"
    assert storage(in_int8(params)) == "int8 with a scale per channel, computed in float32"
    assert storage(in_int8(params, 16)) == "int8 with a scale per 16 inputs, computed in float32"
    both = in_int8(params) | {"embed": in_int8(params, 16)["embed"]}
    assert storage(both) == f"{storage(in_int8(params, 16))}; {storage(in_int8(params))}"
