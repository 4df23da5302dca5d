"""Whole runs with a base in int8, and that a run knows how its base is kept."""

from dataclasses import replace

import numpy as np
import pytest

from model.tiny import dense, in_int8
from tiny_runs import EXAMPLES, settings, task_of, tiny_model
from ttsi_jax.batching.shared import Shared
from ttsi_jax.config import find_parts
from ttsi_jax.errors import InputError
from ttsi_jax.loop import run

FLOAT = tiny_model()
PER_CHANNEL, PER_GROUP = (FLOAT._replace(params=in_int8(FLOAT.params, group)) for group in (None, 16))
TASK = task_of(*EXAMPLES[:4])


def test_a_run_is_that_of_the_weights_that_it_stands_for():
    plain = PER_GROUP._replace(params=dense(PER_GROUP.params))
    found, expected = (run(model, TASK, settings()).records for model in (PER_GROUP, plain))
    assert [one.adapted for one in found] == [one.adapted for one in expected]
    assert any(one.adapted for one in found)
    for one, other in zip(found, expected, strict=True):
        assert one.error is None and one.pick_base == other.pick_base
        np.testing.assert_allclose(one.log_likelihoods, other.log_likelihoods, rtol=0, atol=1e-3)
        np.testing.assert_allclose(one.losses[:1], other.losses[:1], rtol=0, atol=1e-3)
        assert not one.adapted or one.losses[-1] < one.losses[0]


def test_runs_whose_bases_are_kept_otherwise_are_told_apart(tmp_path):
    config = settings(method="base")
    run(PER_CHANNEL, TASK, config, out=tmp_path)
    for other in (PER_GROUP, FLOAT):
        with pytest.raises(InputError, match="dtype"):
            run(other, TASK, config, out=tmp_path)
    parts = find_parts(config, {})
    keys = {Shared.between_runs().of(config, parts, model, ()).keys for model in (FLOAT, PER_CHANNEL, PER_GROUP)}
    assert len(keys) == 3
    assert Shared.between_runs().of(replace(config, seed=0), parts, PER_GROUP, ()).keys in keys
