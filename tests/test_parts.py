"""What a researcher exchanges, in whole runs of a small model: losses, rules, pairs, answers, starts and resets."""

import importlib
import json
import sys
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tiny_runs import EXAMPLES, settings, task_of, tiny_model, untimed
from ttsi_jax.adaptation import AdaptConfig
from ttsi_jax.answering import KEYS
from ttsi_jax.checkpoints.adapters import export_adapter, load_adapter, saved_ids
from ttsi_jax.checkpoints.peft import load_peft, save_peft
from ttsi_jax.cli import main
from ttsi_jax.errors import InputError
from ttsi_jax.loop import run
from ttsi_jax.model.lora import LoraConfig, init_adapter
from ttsi_jax.rules import answer_cross_entropy, kl_anchored, lion, sgd
from ttsi_jax.rules.interface import UpdateRule
from ttsi_jax.synthesis import Synthetic, recorded
from ttsi_jax.testing import ContractError

MODEL = tiny_model()
FOUR = task_of(*(EXAMPLES[index] for index in (1, 2, 3, 5)))  # each of them writes itself a pair


def adapt(**changes) -> AdaptConfig:
    return replace(settings().adapt, **changes)


@pytest.fixture(scope="module")
def usual():
    return run(MODEL, FOUR, settings()).records


@pytest.mark.parametrize("loss", ["kl_anchored", "dpo", "reinforce"])  # the others need nothing that these do not
def test_every_loss_runs_by_its_name(loss, usual):
    found = run(MODEL, FOUR, settings(adapt=adapt(loss=loss, rule="sgd", lr=1.0, samples=2, epochs=2))).records
    adapted = [record for record in found if record.adapted]
    assert len(adapted) == 4 and all(np.isfinite(record.losses).all() for record in adapted)
    for before, record in zip(usual, found, strict=True):
        pairs = [(pair["query"], pair["calls"]) for pair in record.synthetic]
        assert pairs == [(pair["query"], pair["calls"]) for pair in before.synthetic]
    sampled = [
        pair["samples"] for record in found for pair in record.synthetic if pair["accepted"] and loss == "reinforce"
    ]
    assert all(len(samples) == 2 for samples in sampled)
    rewards = {sample["reward"] for samples in sampled for sample in samples}
    assert rewards <= {0.0, 0.5, 1.0} and (loss != "reinforce" or rewards)
    if loss == "dpo":
        assert all(record.losses[0] == pytest.approx(np.log(2), rel=1e-4) for record in adapted)


def test_objects_stand_in_for_names(usual, tmp_path):
    found = run(MODEL, FOUR, settings(), out=tmp_path, rule=sgd(0.5), loss=answer_cross_entropy)
    assert [r.losses[0] for r in found.records] == [r.losses[0] for r in usual]
    assert [r.losses[2] for r in found.records] != [r.losses[2] for r in usual]
    kept = json.loads((tmp_path / "config.json").read_text())["adapt"]
    assert kept["loss"].startswith("ttsi_jax.rules.losses:answer_cross_entropy#")
    assert kept["rule"].startswith("ttsi_jax.rules.updates:optax_rule")
    again = run(MODEL, FOUR, settings(), out=tmp_path, rule=sgd(0.5), loss=answer_cross_entropy)
    assert again.records == found.records, "the same objects carry the run on"
    for others in ({"rule": sgd(5.0)}, {"rule": lion(0.5)}, {"loss": partial(kl_anchored, beta=1.0)}):
        parts = {"rule": sgd(0.5), "loss": answer_cross_entropy} | others
        with pytest.raises(InputError, match=f"other settings:\n  adapt.{min(others)}: .*#.* there, .*#.* now\nChoose"):
            run(MODEL, FOUR, settings(), out=tmp_path, **parts)
    with pytest.raises(
        TypeError, match="run\\(\\) takes no 'rul'; exchangeable are estimator, synthesizer, loss, rule"
    ):
        run(MODEL, FOUR, settings(), rul=sgd())


def test_an_edited_file_is_another_rule(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    file, config = tmp_path / "edited.py", settings(method="base", adapt=adapt(rule="edited:rule"))
    for rate in ("0.1", "0.2"):
        file.write_text(f"from ttsi_jax import sgd\n\n\ndef rule(lr={rate}):\n    return sgd(lr)\n")
        monkeypatch.delitem(sys.modules, "edited", raising=False)
        importlib.invalidate_caches()
        monkeypatch.setattr(sys, "dont_write_bytecode", True)
        if rate == "0.1":
            run(MODEL, task_of(EXAMPLES[1]), config, out=tmp_path / "run")
    with pytest.raises(InputError, match='adapt.rule: "edited:rule#.*" there, "edited:rule#.*" now'):
        run(MODEL, task_of(EXAMPLES[1]), config, out=tmp_path / "run")


def choosing(loss_fn, adapter, state, batch, key):
    loss, _ = loss_fn(adapter, batch, key)
    return (adapter if loss > 1 else adapter), state, {"loss": loss}


def test_a_broken_rule_is_explained_before_anything_runs(tmp_path):
    rule = UpdateRule(lambda adapter, n_steps: (), choosing)
    with pytest.raises(ContractError, match="test_parts.py:.*if loss > 1.*jnp.where"):
        run(MODEL, FOUR, settings(), out=tmp_path / "run", rule=rule)
    with pytest.raises(ContractError, match="estimator '.*' cannot be traced: .* needs an array's value in Python"):
        run(MODEL, FOUR, settings(), out=tmp_path / "run", estimator=lambda scores, mask: float(scores[0]))
    with pytest.raises(ContractError, match="the loss's dict\\['weights'\\] is float32.* not a scalar"):
        run(MODEL, FOUR, settings(), loss=lambda forward, a, batch, key: (jnp.float32(0), {"weights": batch.weights}))
    with pytest.raises(ContractError, match="keeps traced values outside of itself"):
        run(MODEL, FOUR, settings(), rule=UpdateRule(remembering, sgd().step))
    assert not (tmp_path / "run").exists()


KEPT = []


def remembering(adapter, n_steps):
    KEPT[:] = KEPT or [sgd().init(adapter, n_steps + 0)]
    return KEPT[0]


def test_recorded_pairs_give_the_same_training(usual):
    again = run(MODEL, FOUR, settings(), synthesizer=recorded(usual)).records
    for one, two in zip(usual, again, strict=True):
        # Without prompts for writing pairs, sequences are padded to another length: the same but for rounding.
        np.testing.assert_allclose(one.losses, two.losses, rtol=1e-5)
        assert one.calls == two.calls
        assert [pair for pair in one.synthetic if pair["accepted"]] == two.synthetic


def test_a_function_may_write_requests_alone():
    """The model labels those without a call."""
    own = lambda example, attempt: Synthetic(f"Attempt {attempt}", ())  # noqa: E731
    [record] = run(MODEL, task_of(EXAMPLES[0]), settings(), synthesizer=own).records
    assert record.synthetic[0]["query"] == "Attempt 0"
    assert record.synthetic[0]["calls"] or record.synthetic[0]["reason"]


def test_answers_of_ones_own_form(usual):
    shout = KEYS._replace(text=lambda tool, texts: f'{{"name": "{tool.name}", "arguments": {{}}}}')
    found = run(MODEL, FOUR, settings(), answerer=shout).records
    assert [record.text_base for record in found] == [f'{{"name": "{r.pick_base}", "arguments": {{}}}}' for r in usual]


def test_adapters_of_other_shapes():
    small = adapt(rank=1, layers=(-1,), targets=("q", "v"), scaling="rslora", alpha=4.0)
    assert small.lora.scale == 4.0
    found = run(MODEL, FOUR, settings(adapt=small)).records
    assert all(record.adapted and record.losses[0] != record.losses[2] for record in found)
    with pytest.raises(InputError, match="there is no layer 5: the model's are 0 to 0"):
        run(MODEL, FOUR, settings(adapt=adapt(layers=(5,))))
    with pytest.raises(InputError, match="--adapt.targets is 'w'; it must be one of q, k"):
        run(MODEL, FOUR, settings(adapt=adapt(targets=("w",))))


def test_adapters_outlive_their_run(tmp_path, usual):
    """Kept adapters are those that answered: training again from one of them begins where it ended."""
    run(MODEL, FOUR, settings(adapt=adapt(save=True)), out=tmp_path / "run")
    assert sorted(saved_ids(tmp_path / "run")) == sorted(example.id for example in FOUR.examples)
    adapter, lora = load_adapter(tmp_path / "run", "two")
    assert lora == settings().adapt.lora and all(np.any(own["q"].b) for own in adapter.values())
    assert main(["export", str(tmp_path / "run"), "two", "--out", str(tmp_path / "two")]) == 0
    exported, rank, alpha = load_peft(tmp_path / "two", MODEL.config)
    jax.tree.map(np.testing.assert_array_equal, exported, adapter)
    assert alpha / rank == lora.scale
    with pytest.raises(InputError, match="keeps no adapter of input 'nine'; kept are four, six, three, two"):
        export_adapter(tmp_path / "run", "nine", tmp_path / "nine")

    started = settings(adapt=adapt(start=str(tmp_path / "two"), lr=1e-6))
    [record] = run(MODEL, task_of(EXAMPLES[1]), started, synthesizer=recorded(usual)).records
    before = next(r for r in usual if r.id == "two")
    assert record.pick_base == before.pick and record.text_base == before.text_adapted, "theta_0 is the start"
    np.testing.assert_allclose(record.losses[0], record.losses[2], rtol=1e-4)
    assert record.losses[0] < before.losses[-1]


def test_a_start_of_another_shape_says_what_to_give(tmp_path):
    lora = LoraConfig(3, 6.0, ("q", "down"))
    save_peft(tmp_path, init_adapter(jax.random.key(0), MODEL.config, lora), MODEL.config, rank=3, alpha=6.0)
    with pytest.raises(InputError, match="add --adapt.rank 3 --adapt.alpha 6 --adapt.targets q down"):
        run(MODEL, FOUR, settings(adapt=adapt(start=str(tmp_path))))


def test_without_a_reset_inputs_follow_one_another(tmp_path, usual):
    config = settings(adapt=adapt(reset="never", save=True, lr=1e-2), wave=1)
    found = {record.id: record for record in run(MODEL, FOUR, config, out=tmp_path / "whole").records}
    assert [record.adapted_after for record in found.values()] == [None, "two", "three", "four"]
    own = run(MODEL, task_of(EXAMPLES[2]), replace(config, adapt=adapt(lr=1e-2))).records[0]
    assert found["three"].losses[0] != own.losses[0] and found["three"].synthetic == own.synthetic

    told = []

    def interrupt(*args):
        told.append(args)
        if args == ("adapt", 2, 2):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(MODEL, FOUR, config, out=tmp_path / "cut", progress=interrupt)
    resumed = run(MODEL, FOUR, config, out=tmp_path / "cut").records
    assert untimed(resumed) == untimed(found.values())


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (settings(adapt=adapt(reset="never")), "--adapt.reset never takes inputs one after another: --wave is 4"),
        (settings(adapt=adapt(reset="never", adapters=2), wave=1), "goes on from one adapter: --adapt.adapters is 2"),
        (settings(adapt=adapt(reset="never"), wave=1), "add --adapt.save"),
    ],
)
def test_continual_runs_say_what_they_need(tmp_path, config, message):
    with pytest.raises(InputError, match=message):
        run(MODEL, FOUR, config, out=tmp_path / "run")


def test_wrong_objects_are_named():
    with pytest.raises(InputError, match="is 3, not an Answerer"):
        run(MODEL, FOUR, settings(), answerer=3)
    with pytest.raises(InputError, match="cannot be made: .*--adapt.lr 1e-4"):
        run(MODEL, FOUR, settings(adapt=adapt(rule="tiny_runs:diverging", lr=None)))
