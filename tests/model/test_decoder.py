"""The decoder against transformers, and what its three arrays per sequence promise."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from model.tiny import FAMILIES, VARIANTS, in_bfloat16, in_int8, random_adapter, random_ids, sequence, stack, tiny_model
from ttsi_jax.model.cache import PADDING, SHARED, empty, write
from ttsi_jax.model.decoder import (
    RMSNorm,
    Tokens,
    forward,
    logits,
    merge,
    rotation_angles,
    tokens_after,
    visibility,
)

LENGTHS = (17, 9, 13)  # longer than the sliding windows of the variants
ROWS = [random_ids(seed, length) for seed, length in enumerate(LENGTHS)]
SIZE = 20

run = jax.jit(forward, static_argnums=0)
head = jax.jit(logits, static_argnums=0)


def batch_logits(config, params, tokens: Tokens):
    """[B, T, V] logits of a batch without past or adapter."""
    return head(config, params, jax.vmap(lambda row: run(config, params, row)[0])(tokens))


def pad(side: str) -> tuple[np.ndarray, np.ndarray]:
    """The rows as ids and mask [B, SIZE], padded on one side."""
    ids, mask = np.zeros((len(ROWS), SIZE), int), np.zeros((len(ROWS), SIZE), int)
    for index, row in enumerate(ROWS):
        where = slice(0, len(row)) if side == "right" else slice(SIZE - len(row), SIZE)
        ids[index, where], mask[index, where] = row, 1
    return ids, mask


@pytest.mark.torch
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_logits_of_padded_batches_are_transformers(references, variant, side):
    torch = pytest.importorskip("torch")
    theirs, ours = references(variant)
    ids, mask = pad(side)
    positions = np.cumsum(mask, axis=1) - 1
    with torch.no_grad():
        inputs = {"input_ids": ids, "attention_mask": mask, "position_ids": np.maximum(positions, 0)}
        expected = theirs(**{name: torch.tensor(value) for name, value in inputs.items()}).logits.numpy()
    tokens = Tokens(jnp.asarray(ids), jnp.asarray(positions), jnp.where(jnp.asarray(mask) == 1, SHARED, PADDING))
    found = batch_logits(ours.config, ours.params, tokens)
    real = mask.astype(bool)
    assert np.abs(expected[real]).max() > 1
    np.testing.assert_allclose(found[real], expected[real], rtol=0, atol=1e-4)


@pytest.mark.torch
@pytest.mark.parametrize("variant", FAMILIES)
def test_each_part_is_transformers(references, variant):
    torch = pytest.importorskip("torch")
    theirs, ours = references(variant)
    config, model = ours.config, merge(ours.config, ours.params)
    with torch.no_grad():
        stream = theirs(torch.tensor([ROWS[0]]), output_hidden_states=True).hidden_states
        noise = torch.randn(5, config.hidden_size) * 3
        normed = theirs.model.norm(noise).numpy()
    stream = [x[0].numpy() for x in stream]
    compare = partial(np.testing.assert_allclose, rtol=0, atol=1e-4)

    compare(ours.params["embed"][jnp.asarray(ROWS[0])] * config.embed_scale, stream[0])
    compare(model.final_norm(jnp.asarray(noise.numpy())), normed)
    tokens = sequence(ROWS[0])
    for index, layer in enumerate(model.layers):
        local = config.local_layers[index]
        rope = config.local_rope or config.rope if local else config.rope
        rotation = rotation_angles(rope, config.head_dim, tokens.positions)
        visible = visibility(tokens, tokens.positions, tokens.segments, config.sliding_window if local else None)
        out, *_ = layer(jnp.asarray(stream[index]), rotation, visible, [], {}, 1.0)
        last = index == config.n_layers - 1  # transformers gives that one after the final norm
        compare(model.final_norm(out) if last else out, stream[index + 1])


def test_cached_decoding_is_the_full_forward():
    config, params = tiny_model("gemma3")
    ids, adapter = ROWS[0], random_adapter(config, 1)
    full = head(config, params, run(config, params, sequence(ids), (), adapter, 2.0)[0])

    n_prefix, n_prompt = 6, 11
    _, prefix = run(config, params, sequence(ids[:n_prefix], len(ids)), (), adapter, 2.0)
    prompt = sequence(ids[n_prefix:n_prompt], 7, n_prefix)
    hidden, read = run(config, params, prompt, (prefix,), adapter, 2.0)
    found = [head(config, params, hidden)[: n_prompt - n_prefix]]
    own = empty(read, len(ids) - n_prompt)
    for index, token in enumerate(ids[n_prompt:]):
        tokens = tokens_after(jnp.asarray([token]), jnp.int32(1), jnp.int32(n_prompt + index))
        hidden, new = run(config, params, tokens, (prefix, read, own), adapter, 2.0)
        own = write(own, new, jnp.int32(index))
        found.append(head(config, params, hidden))
    np.testing.assert_allclose(jnp.concatenate(found), full[n_prefix:], rtol=0, atol=1e-4)


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="of XLA's CPU compiler")
def test_a_cpu_computes_rotations_once_for_all_layers_and_heads():
    config, params = tiny_model("llama")
    wave = jax.jit(lambda tokens: jax.vmap(lambda row: forward(config, params, row)[0])(tokens))
    program = wave.lower(stack([sequence(row, SIZE) for row in ROWS])).compile().as_text()
    assert config.n_layers > 1
    assert program.count(" cosine(") == 1


def test_padding_changes_nothing():
    config, params = tiny_model("gemma3")
    alone = head(config, params, run(config, params, sequence(ROWS[1]))[0])
    tokens = sequence(ROWS[1], SIZE)
    for filler in (0, 5):
        ids = jnp.where(tokens.segments == PADDING, filler, tokens.ids)
        found = head(config, params, run(config, params, tokens._replace(ids=ids))[0])
        np.testing.assert_allclose(found[: len(ROWS[1])], alone, rtol=0, atol=1e-5)


def test_rows_of_a_batch_are_independent_to_the_bit():
    config, params = tiny_model("gemma3")
    batch = stack([sequence(ids, SIZE) for ids in ROWS])
    other = stack([sequence(ROWS[0], SIZE), sequence(random_ids(8, 20), SIZE), sequence([5], SIZE)])
    one, two = batch_logits(config, params, batch), batch_logits(config, params, other)
    np.testing.assert_array_equal(one[0, : LENGTHS[0]], two[0, : LENGTHS[0]])


def test_a_token_sees_only_what_came_before():
    config, params = tiny_model()
    changed = [*ROWS[0][:10], *random_ids(9, len(ROWS[0]) - 10)]
    one, two = (head(config, params, run(config, params, sequence(ids))[0]) for ids in (ROWS[0], changed))
    np.testing.assert_array_equal(one[:10], two[:10])
    assert np.abs(one[10:] - two[10:]).max() > 1e-2


def test_local_layers_forget_what_left_the_window():
    config, params = tiny_model("qwen2-tied")
    local = type(config)(**{**vars(config), "local_layers": (True,) * config.n_layers})
    reach = config.n_layers * (config.sliding_window - 1)
    changed = [(ROWS[0][0] + 1) % 100 + 3, *ROWS[0][1:]]
    one, two = (head(local, params, run(local, params, sequence(ids))[0]) for ids in (ROWS[0], changed))
    np.testing.assert_array_equal(one[reach + 1 :], two[reach + 1 :])
    assert (one[: reach + 1] != two[: reach + 1]).any(axis=-1).all()


def test_visibility_by_segment_and_position():
    tokens = Tokens(jnp.zeros(5, int), jnp.asarray([0, 1, 2, 2, 9]), jnp.asarray([SHARED, SHARED, 1, 2, PADDING]))
    seen = visibility(tokens, tokens.positions, tokens.segments, None)
    expected = [[1, 0, 0, 0, 0], [1, 1, 0, 0, 0], [1, 1, 1, 0, 0], [1, 1, 0, 1, 0], [1, 1, 0, 0, 0]]
    np.testing.assert_array_equal(seen, np.asarray(expected, bool))
    near = visibility(tokens, tokens.positions, tokens.segments, 2)
    np.testing.assert_array_equal(near[3], [False, True, False, True, False])


def test_bfloat16_weights_keep_float32_where_it_matters():
    config, params = tiny_model("qwen3")
    narrow = in_bfloat16(config, params)
    assert narrow["layers"][0]["q"]["kernel"].dtype == jnp.bfloat16
    assert narrow["final_norm"]["scale"].dtype == jnp.float32
    hidden, cache = run(config, narrow, sequence(ROWS[0]), (), random_adapter(config, 0), 2.0)
    assert hidden.dtype == cache.keys[0].dtype == jnp.bfloat16
    scores = head(config, narrow, hidden)
    wide = head(config, params, run(config, params, sequence(ROWS[0]), (), random_adapter(config, 0), 2.0)[0])
    assert scores.dtype == jnp.float32
    assert np.corrcoef(np.ravel(scores), np.ravel(wide))[0, 1] > 0.999


@pytest.mark.parametrize("as_kept", [lambda x: x, in_int8], ids=["float", "int8"])
def test_products_are_of_narrow_factors_also_in_the_backward_pass(as_kept):
    """Else a copy of a weight would be made in float32: for one wide factor, and on a CPU for a narrow result."""
    config, params = tiny_model("qwen3")
    narrow = in_bfloat16(config, params)
    tokens, adapter = sequence(ROWS[0]), random_adapter(config, 0)

    def loss(adapter, params):
        hidden, _ = forward(config, params, tokens, (), adapter, 2.0)
        return jnp.sum(jax.nn.logsumexp(logits(config, params, hidden), axis=-1))

    gradient = jax.jit(jax.grad(loss))
    text = gradient.lower(adapter, as_kept(narrow)).as_text()
    products = re.findall(
        r"dot_general .* : \(tensor<(?:\d+x)*(\w+)>, tensor<(?:\d+x)*(\w+)>\) -> tensor<(?:\d+x)*(\w+)>", text
    )
    assert len(products) > 50 and {*products} == {("bf16", "bf16", "f32")}
    both = (jax.tree.leaves(gradient(adapter, as_kept(own))) for own in (narrow, params))
    for own, wide in zip(*both, strict=True):
        assert np.corrcoef(np.ravel(own), np.ravel(wide))[0, 1] > 0.99


def test_norm_is_computed_in_float32():
    norm = RMSNorm(4096, 1e-6)
    norm.scale[...] = jnp.full(4096, 1.5)
    x = jnp.asarray(np.random.default_rng(0).normal(size=(3, 4096)), jnp.bfloat16)
    wide = np.asarray(x, np.float64)
    expected = 1.5 * wide / np.sqrt(np.mean(wide**2, axis=-1, keepdims=True) + 1e-6)
    np.testing.assert_allclose(norm(x).astype(jnp.float32), expected, rtol=2**-8)  # one rounding to bfloat16
