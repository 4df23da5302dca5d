"""The library's own rules and losses pass their check, and each way to be broken is caught by its property."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ttsi_jax.adaptation import UpdateRule, needs
from ttsi_jax.rules import LOSSES, RULES, answer_cross_entropy, kl_anchored
from ttsi_jax.testing import ContractError, check_loss, check_rule

RANDOM = np.random.default_rng(0)


@pytest.mark.parametrize("name", RULES)
def test_the_librarys_rules_pass(name):
    check_rule(RULES[name])


@pytest.mark.parametrize("name", LOSSES)
def test_the_librarys_losses_pass(name):
    check_loss(LOSSES[name])


def rule(change=lambda gradient, batch, state: gradient, init=lambda adapter, n_steps: (), after=lambda state: state):
    """Gradient descent with a twist: what becomes of the gradient, the state at first, and after a step."""

    def step(loss_fn, adapter, state, batch, key):
        (loss, _), gradient = jax.value_and_grad(loss_fn, has_aux=True)(adapter, batch, key)
        gradient = jax.tree.map(lambda g: change(g, batch, state), gradient)
        return jax.tree.map(lambda x, g: x - 0.1 * g, adapter, gradient), after(state), {"loss": loss}

    return UpdateRule(init, step)


def choosing(gradient, batch, state):
    return gradient if jnp.sum(gradient) > 0 else -gradient


def noisy(gradient, batch, state):
    return gradient + RANDOM.normal()


def normalised(gradient, batch, state):
    return gradient / jnp.linalg.norm(gradient)


def labelled(gradient, batch, state):
    return gradient * (1 + jnp.mean(batch.labels))


def shortened(gradient, batch, state):
    return gradient / batch.tokens.ids.shape[0]


@jax.custom_batching.custom_vmap
def averaged(x):
    return x


@averaged.def_vmap
def _(axis_size, in_batched, x):
    return jnp.broadcast_to(jnp.mean(x, axis=0), x.shape), True


@jax.custom_batching.custom_vmap
def shared_out(x):
    return x


@shared_out.def_vmap
def _(axis_size, in_batched, x):
    return x / axis_size, True


def counting():
    calls = []

    def init(adapter, n_steps):
        calls.append(n_steps)
        return jnp.float32(len(calls))

    return rule(lambda gradient, batch, state: gradient * state, init)


def closed_over(lr):
    return rule(lambda gradient, batch, state: lr * gradient)


BROKEN = {
    "cannot be traced": (rule(choosing), r"test_rules.py:\d+: `return gradient if jnp.sum.* jnp.where"),
    "is not pure": (rule(noisy), "two programs"),
    "changes its state's size": (
        rule(init=lambda adapter, n: jnp.zeros(1), after=lambda state: jnp.append(state, 1.0)),
        r"float32\[1\] before and float32\[2\] after",
    ),
    "changes the adapter's shape": (rule(lambda g, batch, state: g[None]), r"\[0\]\['down'\].a is .* before"),
    "is compiled 2 times": (rule(init=lambda adapter, n: 0.1, after=lambda state: jnp.float32(state)), "3 steps"),
    "is compiled anew for another rate": (closed_over, "two rates give two step functions"),
    "does not reset": (counting(), "the same example once more, step 1"),
    "is not finite": (
        rule(normalised),
        r"a fresh adapter \(b = 0\), step 1: \['adapter'\]\[0\]\['down'\].a\[0, 0\] is nan",
    ),
    "reads padding": (rule(labelled), "one padding token"),
    "is not padding invariant": (rule(shortened), r"6 tokens, 1 padding token, step 1: .* is \S+ and \S+\. Average"),
    "depends on batch mates": (rule(lambda g, batch, state: averaged(g)), "a wave of 2"),
    "is not the same under vmap": (rule(lambda g, batch, state: shared_out(g)), "example 0 of a wave of 2, and alone"),
}


@pytest.mark.parametrize("property", BROKEN)
def test_a_broken_rule_is_caught_by_its_property(property):
    broken, shown = BROKEN[property]
    with pytest.raises(ContractError, match=f"(?s){property}.*{shown}"):
        check_rule(broken)


def padded_mean(forward, adapter, batch, key):
    log_p = jax.nn.log_softmax(forward(adapter, batch.tokens, batch.predict).logits)
    return -jnp.mean(jnp.take_along_axis(log_p, batch.labels[:, None], axis=-1) * batch.weights[:, None]), {}


def vector(forward, adapter, batch, key):
    return forward(adapter, batch.tokens, batch.predict).logits[:, 0], {}


def bare(forward, adapter, batch, key):
    return jnp.sum(forward(adapter, batch.tokens, batch.predict).logits)


def untouched(forward, adapter, batch, key):
    return answer_cross_entropy(lambda adapter, *rest: forward(None, *rest), adapter, batch, key)


def undeclared(forward, adapter, batch, key):
    return answer_cross_entropy(forward, adapter, batch.rejected, key)


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (padded_mean, "loss 'padded_mean' is not padding invariant"),
        (vector, r"the loss is float32\[3\], not a float32 scalar"),
        (bare, "a loss returns"),
        (untouched, "loss 'untouched' has no gradient"),
        (undeclared, "loss 'undeclared' cannot be traced: .*AttributeError: 'tuple' object has no attribute 'tokens'"),
    ],
)
def test_a_broken_loss_is_caught(loss, message):
    with pytest.raises(ContractError, match=message):
        check_loss(loss)


def test_what_a_loss_declares_is_there():
    check_loss(needs("rejected")(partial(undeclared)))
    check_loss(partial(kl_anchored, beta=1.0))


def test_what_is_no_rule_is_named():
    with pytest.raises(ContractError, match="gives 3, not an UpdateRule"):
        check_rule(lambda lr: 3)
    with pytest.raises(ContractError, match="is not made from a rate"):
        check_rule(lambda: None)
