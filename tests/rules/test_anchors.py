"""Anchors: what they add to a loss, by hand."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rules.test_losses import KEY, answer, forward, value
from tiny_runs import settings
from ttsi_jax.config import find_parts
from ttsi_jax.model.lora import LowRank
from ttsi_jax.rules import answer_cross_entropy, dpo, kl_anchored
from ttsi_jax.rules.anchors import anchored, squared_change
from ttsi_jax.rules.interface import needed

RNG = np.random.default_rng(0)
ADAPTER = {
    layer: {name: LowRank(*(jnp.asarray(RNG.normal(size=shape), jnp.float32) for shape in ((5, 2), (2, 3))))}
    for layer, name in enumerate("qv")
}


def test_no_weight_is_no_anchor():
    assert anchored(answer_cross_entropy) is answer_cross_entropy


def test_the_kl_term_is_that_of_the_anchored_loss():
    found, aux = value(anchored(answer_cross_entropy, kl=0.3), answer(1))
    expected, theirs = value(kl_anchored, answer(1), beta=0.3)
    assert found == pytest.approx(expected, rel=1e-5) and aux["kl"] == pytest.approx(theirs["kl"], rel=1e-5)


def test_a_loss_and_its_anchor_read_the_pair_once():
    read = []

    def listening(adapter, *rest):
        read.append(adapter is None)
        return forward(adapter, *rest)

    anchored(answer_cross_entropy, kl=0.3)(listening, ADAPTER, answer(1), KEY)
    assert sorted(read) == [False, True], "with the adapter, and theta_0"


def test_the_l2_term_is_the_squared_change_of_the_weights():
    changes = [np.asarray(own.a @ own.b) for layer in ADAPTER.values() for own in layer.values()]
    expected = sum(float((change**2).sum()) for change in changes)
    assert float(squared_change(ADAPTER)) == pytest.approx(expected, rel=1e-5)
    loss, plain = anchored(answer_cross_entropy, l2=0.5), answer_cross_entropy
    (found, aux), (without, _) = (own(forward, ADAPTER, answer(1), KEY) for own in (loss, plain))
    assert float(found - without) == pytest.approx(0.5 * expected, rel=1e-4)
    assert float(aux["squared_change"]) == pytest.approx(expected, rel=1e-5)


def test_a_fresh_adapter_is_not_held():
    fresh = {0: {"q": LowRank(jnp.ones((5, 2)), jnp.zeros((2, 3)))}}
    gradient = jax.grad(squared_change)(fresh)
    assert float(squared_change(fresh)) == 0 and not any(np.any(leaf) for leaf in jax.tree.leaves(gradient))


def test_it_is_the_same_program_for_the_same_weights_and_needs_what_its_loss_needs():
    assert anchored(dpo, 0.1) == anchored(dpo, 0.1) != anchored(dpo, 0.2)
    assert hash(anchored(dpo, 0.1)) == hash(anchored(dpo, 0.1)) and needed(anchored(dpo, 0.1)) == ("rejected",)


def test_settings_anchor_the_loss():
    config = settings()
    assert find_parts(config, {}).loss is answer_cross_entropy
    held = replace(config, adapt=replace(config.adapt, kl=0.1, l2=0.2))
    assert find_parts(held, {}).loss == anchored(answer_cross_entropy, 0.1, 0.2)
