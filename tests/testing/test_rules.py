"""The library's own rules and losses pass their check, and each way to be broken is caught by its property."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ttsi_jax.rules import LOSSES, RULES, answer_cross_entropy, kl_anchored
from ttsi_jax.rules.interface import UpdateRule, needs
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


def returning(change):
    """The usual step, with something else in the place of what it returns."""
    usual = rule()
    return UpdateRule(usual.init, lambda *args: change(*usual.step(*args)))


def late(loss_fn, adapter, state, batch, key):
    adapter, state, _ = rule().step(loss_fn, adapter, state, batch, key)
    return adapter, state, {"loss": loss_fn(adapter, batch, key)[0]}


SEEN, CACHE = [], {}


def seen(adapter, state, metrics):
    SEEN.append(metrics["loss"])
    return adapter, state, metrics


def cached(adapter, n_steps):
    if not CACHE:
        CACHE["momentum"] = jax.tree.map(jnp.zeros_like, adapter)
    return dict(CACHE)


def without_aux(loss_fn, adapter, state, batch, key):
    loss, gradient = jax.value_and_grad(loss_fn)(adapter, batch, key)
    return jax.tree.map(lambda x, g: x - 0.1 * g, adapter, gradient), state, {"loss": loss}


def closed_over(lr):
    return rule(lambda gradient, batch, state: lr * gradient)


BROKEN = {
    "cannot be traced": (rule(choosing), r"test_rules.py:\d+: `return gradient if jnp.sum.* jnp.where"),
    "is not pure": (rule(noisy), "two programs"),
    "changes the state's shape": (
        rule(init=lambda adapter, n: jnp.zeros(1), after=lambda state: jnp.append(state, 1.0)),
        r"state is float32\[1\] before and float32\[2\] after",
    ),
    "changes the state's dtype": (
        rule(init=lambda adapter, n: {"t": jnp.int32(0)}, after=lambda state: {"t": state["t"] + 1.0}),
        r"state\['t'\] is int32\[\] before and float32\[\] after a step. `\+ 1.0` .* make floats",
    ),
    "changes the state's structure": (
        rule(init=lambda adapter, n: {"t": n}, after=lambda state: {}),
        r"state\['t'\] is int32\[\] before and not there after",
    ),
    "changes the adapter's shape": (rule(lambda g, batch, state: g[None]), r"\[0\]\['down'\].a is .* before"),
    "is compiled 2 times": (
        rule(init=lambda adapter, n: {"lr": 0.1}, after=lambda state: {"lr": jnp.float32(state["lr"])}),
        r"3 steps: .* of state\['lr'\] in `init`, such as jnp.float32",
    ),
    "is compiled anew for another rate": (closed_over, "two rates give two step functions"),
    "does not reset": (counting(), "the same example once more, step 1"),
    "is not finite": (
        rule(normalised),
        r"a fresh adapter \(b = 0\), step 1: \['adapter'\]\[0\]\['down'\].a\[0, 0\] is nan",
    ),
    "is not finite: n_steps = 1": (
        rule(
            lambda gradient, batch, state: gradient * (1 - state["t"] / (state["n"] - 1)),
            init=lambda adapter, n_steps: {"t": jnp.int32(0), "n": n_steps},
            after=lambda state: {"t": state["t"] + 1, "n": state["n"]},
        ),
        r"the only step.* is nan. n_steps may be 1: .*jnp.maximum\(n_steps - 1, 1\)",
    ),
    "does not report the loss before the step": (UpdateRule(lambda adapter, n_steps: (), late), "in step 1 metrics"),
    "returns 2 things": (returning(lambda *found: found[:2]), r"\(.*\), not 3$"),
    "metrics has no 'loss', only 'lr'": (
        returning(lambda a, s, m: (a, s, {"lr": m["loss"]})),
        r"\*\*aux, \"loss\": loss",
    ),
    "metrics['each'] is float32[3], not a scalar": (returning(lambda a, s, m: (a, s, {**m, "each": jnp.ones(3)})), ""),
    "keeps traced values outside": (returning(seen), "jax.debug.print"),
    "keeps traced values outside of itself": (rule(init=cached), "make the state anew in every `init`"),
    "step takes (a, b), but is called as step(loss_fn, adapter": (
        UpdateRule(lambda a, n: (), lambda a, b: a),
        "too many",
    ),
    "write jax.value_and_grad(loss_fn, has_aux=True)": (UpdateRule(lambda adapter, n_steps: (), without_aux), ""),
    "reads padding": (rule(labelled), "one padding token"),
    "is not padding invariant": (rule(shortened), r"6 tokens, 1 padding token, step 1: .* is \S+ and \S+\. Average"),
    "depends on batch mates": (rule(lambda g, batch, state: averaged(g)), "a wave of 2"),
    "is not the same under vmap": (rule(lambda g, batch, state: shared_out(g)), "example 0 of a wave of 2, and alone"),
}


@pytest.mark.parametrize("property", BROKEN)
def test_a_broken_rule_is_caught_by_its_property(property):
    broken, shown = BROKEN[property]
    with pytest.raises(ContractError, match=f"(?s){re.escape(property)}.*{shown}"):
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


def says_loss(forward, adapter, batch, key):
    return answer_cross_entropy(forward, adapter, batch, key)[0], {"loss": jnp.float32(0)}


def says_all(forward, adapter, batch, key):
    return answer_cross_entropy(forward, adapter, batch, key)[0], {"weights": batch.weights}


def unpredicted(forward, adapter, batch, key):
    return jnp.mean(forward(adapter, batch.tokens).logits), {}


def unweighted(forward, adapter, batch, key):
    loss, aux = answer_cross_entropy(forward, adapter, batch, key)
    return loss * jnp.sum(batch.weights) / jnp.sum(batch.weights), aux


def keyless(forward, adapter, batch):
    return answer_cross_entropy(forward, adapter, batch, None)


def undeclared(forward, adapter, batch, key):
    return answer_cross_entropy(forward, adapter, batch.rejected, key)


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (padded_mean, "loss 'padded_mean' is not padding invariant"),
        (vector, r"the loss is float32\[3\], not a float32 scalar"),
        (bare, r"a loss returns \(scalar, dict of scalars\); this one returns float32\[\]$"),
        (says_loss, "has an entry 'loss', which would hide the loss itself"),
        (says_all, r"the loss's dict\['weights'\] is float32\[3\], not a scalar"),
        (unpredicted, r"test_rules.py:\d+: .* forward\(\) missing .* It is forward\(adapter, tokens, predict\)"),
        (unweighted, r"an answer of weight 0, step 1: \['loss'\] is nan. There sum\(batch.weights\) is 0"),
        (keyless, r"loss takes \(forward, adapter, batch\), but is called as loss\(forward, adapter, batch, key\)"),
        (untouched, "loss 'untouched' has no gradient"),
        (undeclared, "loss 'undeclared' cannot be traced: .*AttributeError: 'tuple' .*@ttsi.needs"),
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
