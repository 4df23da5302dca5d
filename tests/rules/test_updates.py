import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.tiny import random_adapter, tiny_model
from ttsi_jax.model.cache import PADDING, SHARED
from ttsi_jax.model.lora import LowRank
from ttsi_jax.rules import (
    LOSSES,
    RULES,
    adamw,
    answer_cross_entropy,
    by_projection,
    lion,
    lora_plus,
    muon,
    optax_rule,
    ridge,
    sgd,
    sign_sgd,
    warmup_cosine,
)
from ttsi_jax.rules.interface import LossFn, Outputs

_schedule = jax.jit(jax.vmap(warmup_cosine, (0, None, None)))


def schedule(n_steps: int, ratio: float = 0.03) -> list[float]:
    return _schedule(jnp.arange(200), n_steps, ratio)[:n_steps].tolist()


def test_five_steps_as_in_the_paper():
    np.testing.assert_allclose(schedule(5), [0, 1, 0.853553, 0.5, 0.146447], atol=1e-6)


def test_a_single_step_is_no_warm_up():
    assert schedule(1) == schedule(1, 1.0) == [1] and schedule(2) == schedule(2, 1.0) == [0, 1]


@pytest.mark.torch
def test_the_schedule_is_transformers():
    torch = pytest.importorskip("torch")
    from transformers import get_cosine_schedule_with_warmup

    for n_steps in [*range(2, 45), 100, 101, 150]:
        optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
        reference = get_cosine_schedule_with_warmup(optimizer, math.ceil(0.03 * n_steps), n_steps)
        expected = []
        for _ in range(n_steps):
            expected.append(reference.get_last_lr()[0])
            optimizer.step()
            reference.step()
        np.testing.assert_allclose(schedule(n_steps), expected, atol=1e-5, err_msg=str(n_steps))


@given(st.integers(1, 200), st.integers(0, 50))
def test_the_schedule_rises_then_falls(n_steps, percent):
    warmup = min(-(-n_steps * percent // 100), n_steps - 1)
    rates = schedule(n_steps, percent / 100)
    np.testing.assert_allclose(rates[:warmup], np.arange(warmup) / max(warmup, 1), atol=1e-5)
    assert all(a >= b - 1e-6 for a, b in zip(rates[warmup:], rates[warmup + 1 :], strict=False))
    assert all(0 <= rate <= 1 for rate in rates)
    if warmup < n_steps:
        assert rates[warmup] == 1


def toy_adapter() -> dict:
    rng = np.random.default_rng(0)
    draw = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)  # noqa: E731
    return {0: {"q": LowRank(draw(5, 2), draw(2, 3))}, 1: {"down": LowRank(draw(4, 2), draw(2, 5))}}


def toy_loss(adapter, batch, key):
    del key
    leaves = jax.tree.leaves(adapter)
    return sum(jnp.sum(jnp.sin(leaf * batch) * (1 + index)) for index, leaf in enumerate(leaves)), {"seen": batch}


def take_steps(rule, n_steps=5):
    adapter = toy_adapter()
    state = rule.init(adapter, jnp.int32(n_steps))
    metrics = []
    for index in range(n_steps):
        adapter, state, own = rule.step(toy_loss, adapter, state, jnp.float32(1 + index), jax.random.key(0))
        metrics.append(own)
    return adapter, metrics


def clipped(gradients):
    norm = np.sqrt(sum(np.sum(np.square(g, dtype=np.float64)) for g in gradients))
    assert norm > 1
    return [np.asarray(g, np.float64) / norm for g in gradients]


def test_adamw_by_hand():
    lr, beta1, beta2, eps = 0.03, 0.9, 0.999, 1e-8
    leaves, treedef = jax.tree.flatten(toy_adapter())
    values = [np.asarray(x, np.float64) for x in leaves]
    first, second = [0 * x for x in values], [0 * x for x in values]
    for index, rate in enumerate(schedule(5)):
        adapter = jax.tree.unflatten(treedef, [jnp.asarray(x, jnp.float32) for x in values])
        gradients = jax.grad(lambda a, i=index: toy_loss(a, 1.0 + i, None)[0])(adapter)
        for k, gradient in enumerate(clipped(jax.tree.leaves(gradients))):
            first[k] = beta1 * first[k] + (1 - beta1) * gradient
            second[k] = beta2 * second[k] + (1 - beta2) * gradient**2
            mean, variance = first[k] / (1 - beta1 ** (index + 1)), second[k] / (1 - beta2 ** (index + 1))
            values[k] = values[k] - lr * rate * mean / (np.sqrt(variance) + eps)
    found, _ = take_steps(adamw(lr))
    for ours, expected in zip(jax.tree.leaves(found), values, strict=True):
        np.testing.assert_allclose(ours, expected, atol=1e-5)


def test_a_rule_from_optax_is_optax_with_the_schedule():
    adapter = toy_adapter()
    tx = optax.sgd(lambda step: 0.1 * jnp.asarray([0, 1, 0.8535534, 0.5, 0.1464466])[step], momentum=0.9)
    state = tx.init(adapter)
    for index in range(5):
        gradients = jax.grad(lambda a, i=index: toy_loss(a, 1.0 + i, None)[0])(adapter)
        updates, state = tx.update(gradients, state, adapter)
        adapter = optax.apply_updates(adapter, updates)
    found, _ = take_steps(optax_rule(momentum_sgd, lr=0.1))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), found, adapter)


def momentum_sgd(lr):
    return optax.sgd(lr, momentum=0.9)


def test_metrics_report_loss_rate_and_what_the_loss_adds():
    _, metrics = take_steps(adamw(0.01))
    np.testing.assert_allclose([m["lr"] for m in metrics], 0.01 * np.asarray(schedule(5)), rtol=1e-5)
    assert [float(m["seen"]) for m in metrics] == [1, 2, 3, 4, 5]
    assert float(metrics[0]["loss"]) == pytest.approx(float(toy_loss(toy_adapter(), 1.0, None)[0]), rel=1e-5)


def test_warmup_ratio_is_a_setting():
    _, metrics = take_steps(optax_rule(optax.sgd, lr=1.0, warmup_ratio=0.0))
    assert float(metrics[0]["lr"]) == 1.0


def test_another_rate_compiles_nothing():
    one, two = adamw(1e-4), adamw(3e-2)
    assert one.step == two.step and hash(one.step) == hash(two.step)
    assert one.step != optax_rule(optax.sgd, 1e-4).step
    step = jax.jit(lambda step, *args: step(toy_loss, *args), static_argnums=0)
    results = []
    for rule in (one, two):
        adapter, state = toy_adapter(), rule.init(toy_adapter(), jnp.int32(5))
        state = state._replace(step=jnp.int32(1))
        results.append(step(rule.step, adapter, state, jnp.float32(1), jax.random.key(0))[0])
    assert step._cache_size() == 1
    assert (results[0][0]["q"].a != results[1][0]["q"].a).all()


def test_rules_and_losses_have_names():
    assert RULES["adamw"](1e-3).step == adamw(1e-4).step
    assert LOSSES["answer_cross_entropy"] is answer_cross_entropy
    config, _ = tiny_model()
    state = RULES["adamw"](2e-3).init(random_adapter(config, 0), jnp.int32(7))
    assert (float(state.lr), int(state.n_steps)) == (pytest.approx(2e-3), 7)


def test_every_rule_has_a_rate_of_its_own():
    for make in RULES.values():
        adapter, metrics = take_steps_with_inputs(make())
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(adapter)) and "lr" in metrics


def test_a_ready_transformation_is_scaled_by_the_schedule():
    found, _ = take_steps(optax_rule(optax.sgd(0.1)))
    expected, _ = take_steps(optax_rule(optax.sgd, lr=0.1))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), found, expected)


def test_rates_are_where_they_belong():
    with pytest.raises(TypeError, match="has its rate and settings already"):
        optax_rule(optax.sgd(0.1), lr=0.1)
    with pytest.raises(TypeError, match=r"optax_rule\(sgd, lr=1e-4\)"):
        optax_rule(optax.sgd)


TRANSFORMATIONS = [lambda lr: optax.chain(optax.clip_by_global_norm(1.0), optax.adam(lr)), optax.sign_sgd, momentum_sgd]


@pytest.mark.parametrize("make", TRANSFORMATIONS)
def test_all_layers_together_learn_what_each_would(make):
    """In layers that do not all have the same projections, in any order; only rounding differs."""
    rng = np.random.default_rng(1)
    draw = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)  # noqa: E731
    names = {5: ("down", "q"), 0: ("q", "down"), 2: ("q",)}
    draws = {"q": lambda: LowRank(draw(5, 2), draw(2, 3)), "down": lambda: LowRank(draw(4, 2), draw(2, 5))}
    adapter = {layer: {name: draws[name]() for name in own} for layer, own in names.items()}
    gradients = jax.tree.map(lambda x: jnp.sin(3 * x), adapter)
    moves = []
    for tx in (make(0.1), by_projection(make(0.1))):
        _, state = tx.update(gradients, tx.init(adapter))
        moves.append(tx.update(jax.tree.map(jnp.square, gradients), state, adapter)[0])
    assert jax.tree.structure(moves[0]) == jax.tree.structure(moves[1]) == jax.tree.structure(adapter)
    jax.tree.map(lambda one, all_: np.testing.assert_allclose(one, all_, atol=1e-6), *moves)
    assert max(np.abs(leaf).max() for leaf in jax.tree.leaves(moves[0])) > 0.01


def first_move(rule):
    """The change of an adapter in the first step with a rate, leaf by leaf."""
    adapter = toy_adapter()
    state = rule.init(adapter, jnp.int32(5))._replace(step=jnp.int32(1))
    moved, _, _ = rule.step(toy_loss, adapter, state, jnp.float32(1), jax.random.key(0))
    return jax.tree.map(lambda new, old: np.asarray(new - old, np.float64), moved, adapter)


@pytest.mark.parametrize("make", [lion, sign_sgd])
def test_sign_rules_move_every_element_by_the_rate(make):
    for change in jax.tree.leaves(first_move(make(1e-2))):
        np.testing.assert_allclose(np.abs(change), 1e-2, rtol=1e-3)


def test_sgd_moves_by_the_rate_at_most():
    norm = np.sqrt(sum(np.sum(change**2) for change in jax.tree.leaves(first_move(sgd(0.3)))))
    assert norm == pytest.approx(0.3, rel=1e-4)  # the toy's gradient is longer than 1


def test_lora_plus_has_two_rates():
    one, two = first_move(adamw(1e-3)), first_move(lora_plus(1e-3, ratio=8.0))
    np.testing.assert_allclose(two[0]["q"].a, one[0]["q"].a, rtol=1e-2)
    np.testing.assert_allclose(two[1]["down"].b, 8 * one[1]["down"].b, rtol=1e-2)
    assert lora_plus(1e-3, 2.0).step == lora_plus(1e-4, 3.0).step


def test_muon_makes_singular_values_alike():
    for change in jax.tree.leaves(first_move(muon(1e-2))):
        values = np.linalg.svd(change / 1e-2, compute_uv=False)
        assert values.min() > 0.5 and values.max() < 1.4


SCALE = 2.0
READ = np.random.default_rng(3).normal(size=(4, 5)).astype(np.float32)  # [T, in], the last token is padding
PULL = np.random.default_rng(4).normal(size=(4, 3)).astype(np.float32)  # the loss's gradient at the output


class Toy:
    """A model of one projection, and a loss that pulls at its output."""

    class batch:
        class tokens:
            segments = jnp.asarray([SHARED] * 3 + [PADDING])

        predict = None

    @staticmethod
    def forward(adapter, tokens, predict, inputs=False):
        own = adapter[0]["q"]
        return Outputs(SCALE * READ @ own.a @ own.b, {0: {"q": jnp.asarray(READ)}})

    @staticmethod
    def loss(forward, adapter, batch, key):
        return jnp.sum((PULL * forward(adapter, batch.tokens, batch.predict).logits)[:3]), {}


def take_steps_with_inputs(rule):
    adapter = {0: {"q": toy_adapter()[0]["q"]}}
    state = rule.init(adapter, jnp.int32(5))
    adapter, _, metrics = rule.step(LossFn(Toy.loss, Toy.forward), adapter, state, Toy.batch, jax.random.key(0))
    return adapter, metrics


@pytest.mark.parametrize("damping", [1e-9, 0.1, 3.0])
def test_ridge_is_the_least_squares_fit(damping):
    """Against numpy's lstsq, with the ridge written as two more rows of the system."""
    factors = toy_adapter()[0]["q"]
    z, pull = np.float64(READ[:3] @ factors.a), np.float64(PULL[:3])
    extra = np.sqrt(damping * np.trace(z.T @ z) / 2) * np.eye(2)
    fit = np.linalg.lstsq(np.vstack([z, extra]), np.vstack([-pull, np.zeros((2, 3))]), rcond=None)[0]
    expected = 0.7 * fit / np.sqrt(np.sum(-pull * (z @ fit)))
    found, metrics = take_steps_with_inputs(ridge(0.7, damping))
    np.testing.assert_allclose(found[0]["q"].b - factors.b, expected, rtol=1e-3, atol=1e-5)
    np.testing.assert_array_equal(found[0]["q"].a, factors.a)
    assert float(metrics["lr"]) == pytest.approx(0.7)  # there is no warm-up: one step is a whole fit
    if damping < 1e-6:
        assert np.linalg.norm(z @ expected) == pytest.approx(0.7, rel=1e-3)
