import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.tiny import VOCABULARY, pair, random_adapter, random_ids, tiny_model
from ttsi_jax.adaptation import Outputs
from ttsi_jax.model.lora import LowRank
from ttsi_jax.rules import LOSSES, RULES, adamw, answer_cross_entropy, optax_rule, warmup_cosine

_schedule = jax.jit(jax.vmap(warmup_cosine, (0, None, None)))


def schedule(n_steps: int, ratio: float = 0.03) -> list[float]:
    return _schedule(jnp.arange(200), n_steps, ratio)[:n_steps].tolist()


def test_five_steps_as_in_the_paper():
    np.testing.assert_allclose(schedule(5), [0, 1, 0.853553, 0.5, 0.146447], atol=1e-6)


@pytest.mark.torch
def test_the_schedule_is_transformers():
    torch = pytest.importorskip("torch")
    from transformers import get_cosine_schedule_with_warmup

    for n_steps in [*range(1, 45), 100, 101, 150]:
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
    warmup = -(-n_steps * percent // 100)
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


def test_cross_entropy_counts_the_answer_alone():
    logits = jnp.asarray(np.random.default_rng(0).normal(size=(4, VOCABULARY)), jnp.float32)
    batch = pair(random_ids(0, 6), random_ids(1, 3), 12, 4)

    def forward(adapter, tokens, predict):
        assert tokens is batch.tokens
        np.testing.assert_array_equal(predict[:3], [5, 6, 7])
        return Outputs(logits)

    loss, aux = answer_cross_entropy(forward, {}, batch, jax.random.key(0))
    log_p = jax.nn.log_softmax(logits)
    expected = -sum(float(log_p[i, token]) for i, token in enumerate(random_ids(1, 3))) / 3
    assert float(loss) == pytest.approx(expected, rel=1e-5) and aux == {}
    nothing = batch._replace(weights=jnp.zeros(4))
    assert float(answer_cross_entropy(forward, {}, nothing, jax.random.key(0))[0]) == 0.0


def test_rules_and_losses_have_names():
    assert RULES["adamw"](1e-3).step == adamw(1e-4).step
    assert LOSSES["answer_cross_entropy"] is answer_cross_entropy
    config, _ = tiny_model()
    state = RULES["adamw"](2e-3).init(random_adapter(config, 0), jnp.int32(7))
    assert (float(state.lr), int(state.n_steps)) == (pytest.approx(2e-3), 7)
