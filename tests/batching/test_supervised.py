"""One adapter for all examples: its steps, its files, and what a run that starts from it says of its inputs."""

import json
from dataclasses import replace

import jax
import numpy as np
import pytest

from tiny_runs import ADD, EXAMPLES, GREET, example, proximal, settings, task_of, tiny_model, with_tokens_beyond
from ttsi_jax.batching import supervised
from ttsi_jax.batching.supervised import fine_tune, make_directory, save, settings_there
from ttsi_jax.cli import main
from ttsi_jax.errors import InputError
from ttsi_jax.loop import run
from ttsi_jax.model.lora import init_adapter
from ttsi_jax.rules import adamw, answer_cross_entropy, dpo, ridge
from ttsi_jax.runs.groups import load_runs, notes
from ttsi_jax.synthesis.training import TrainedOn, trained_on
from ttsi_jax.tasks import GoldCall

MODEL = tiny_model()
SHELF = [
    example("a", "What is 1 and 2?", (ADD, GREET), (GoldCall("add", {"a": (1,), "b": (2,)}),)),
    example("b", "Please greet Bo", (ADD, GREET), (GoldCall("greet", {"name": ("Bo",)}),)),
    example("c", "Sum of 4 and 5", (ADD,), (GoldCall("add", {"a": (4,), "b": (5,)}),)),
    example("none is right", "Hi", (ADD,), ()),
    example("unlabelled", "Hi", (ADD,), None),
]


def tuned(scope="suffix", wave=2, epochs=3, lr=3e-2, make=adamw, **changes):
    config = replace(settings().adapt, scope=scope, epochs=epochs, **changes)
    return fine_tune(MODEL, SHELF, config, make(lr), answer_cross_entropy, wave=wave, seed=0), config


@pytest.mark.parametrize("scope", ["suffix", "all"])
def test_one_adapter_learns_all_examples(scope):
    trained, _ = tuned(scope, epochs=8)
    assert [one.id for one in trained.used] == ["a", "b", "c"] and len(trained.losses) == 16
    assert np.mean(trained.losses[-2:]) < 0.8 * np.mean(trained.losses[:2])
    again, _ = tuned(scope, epochs=8)
    jax.tree.map(np.testing.assert_array_equal, trained.adapter, again.adapter)


def test_a_step_takes_the_mean_gradient_and_chunks_change_nothing():
    """Three examples in a wave of three or of four, all at once or one by one: the same first update."""
    one, _ = tuned(wave=3, epochs=2)
    for other in (tuned(wave=4, epochs=2)[0], tuned(wave=3, epochs=2, memory=1e-9)[0]):
        np.testing.assert_allclose(one.losses, other.losses, rtol=1e-4)
    assert len(one.losses) == 2


def test_steps_have_a_scope_and_draw_by_other_keys_than_the_adapter(monkeypatch):
    began, stepped, texts, program = [], [], [], supervised._step

    def init(key, *rest):
        began.append(key)
        return init_adapter(key, *rest)

    def step(*arguments, **how):
        stepped.append(arguments[8])
        texts.append(program.lower(*arguments, **how).as_text(debug_info=True))
        return program(*arguments, **how)

    monkeypatch.setattr(supervised, "init_adapter", init)
    monkeypatch.setattr(supervised, "_step", step)
    tuned(epochs=1)
    layers = [jax.random.fold_in(began[0], layer) for layer in range(10)]
    bits = lambda keys: {tuple(jax.random.key_data(key).tolist()) for key in keys}  # noqa: E731
    assert len(bits(stepped)) == 2 and not bits(stepped) & bits(layers)
    assert all("adapt/step" in text for text in texts)


def test_the_base_stays_as_it_is():
    before = jax.tree.map(lambda x: np.array(x), MODEL.params)
    tuned("all")
    jax.tree.map(lambda x, y: np.testing.assert_array_equal(np.asarray(x), y), MODEL.params, before)


def test_a_rule_may_keep_the_adapter_that_it_starts_from():
    trained, _ = tuned(make=proximal)
    assert trained.losses[-1] < trained.losses[0]


def test_what_cannot_be_trained_on():
    config = settings().adapt
    with pytest.raises(InputError, match="there is nothing to train on"):
        fine_tune(MODEL, SHELF[3:], config, adamw(1e-3), answer_cross_entropy, wave=2, seed=0)
    with pytest.raises(InputError, match="needs rejected, which labels do not give"):
        fine_tune(MODEL, SHELF, config, adamw(1e-3), dpo, wave=2, seed=0)
    with pytest.raises(InputError, match="the update rule asks the model itself .*: choose another --adapt.rule"):
        fine_tune(MODEL, SHELF, config, ridge(), answer_cross_entropy, wave=2, seed=0)


def test_an_example_with_a_token_that_the_model_lacks_is_left_out():
    greeted = [example(name, f"Please greet {name}", (GREET,), "greet") for name in ("<5>", "<4>")]
    trained = fine_tune(
        with_tokens_beyond(), greeted, settings().adapt, adamw(1e-3), answer_cross_entropy, wave=2, seed=0
    )
    assert [one.id for one in trained.used] == ["<4>"]


def test_a_loss_that_is_not_finite_ends_training():
    with pytest.raises(InputError, match="the loss before step 2 of 6 is nan: training diverged, and nothing of it"):
        tuned(lr=float("nan"))
    with pytest.raises(InputError, match="the last step, of 1, diverged, and nothing is saved"):
        tuned(lr=float("nan"), wave=4, epochs=1)


@pytest.mark.parametrize(
    "option",
    [
        "--adapt.start=there",
        "--adapt.accept=repairs",
        "--adapt.stop-below=0.1",
        "--adapt.adapters=3",
        "--adapt.stop-rising",
    ],
)
def test_what_is_about_inputs_of_runs_is_refused(option, capsys):
    assert main(["sft", "--model", "tiny", "--task", "none.jsonl", "--out", "none", option]) == 2
    assert f"{option.split('=')[0]} is for runs; fine-tuning trains one" in " ".join(capsys.readouterr().err.split())


def test_a_directory_that_cannot_be_written_is_told_before_anything_is_loaded(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("ttsi_jax.checkpoints.load_model", lambda name, dtype: pytest.fail("loaded"))
    line = {"query": "1 and 2", "tools": [{"name": "add"}], "calls": [{"name": "add", "arguments": {}}]}
    file, out = tmp_path / "train.jsonl", tmp_path / "train.jsonl/sft"
    file.write_text(json.dumps(line))
    assert main(["sft", "--model", "tiny", "--task", str(file), "--out", str(out)]) == 2
    assert "sft: no adapter can be written there: Not a directory" in " ".join(capsys.readouterr().err.split())
    make_directory(tmp_path / "new/sft")
    assert settings_there(tmp_path / "new/sft") is None, "it holds nothing yet"


def test_a_run_answers_with_it_and_says_where_it_is_an_upper_bound(tmp_path):
    trained, config = tuned()
    save(trained, tmp_path / "sft", MODEL, config, {})
    start = settings(method="base", adapt=replace(config, start=str(tmp_path / "sft")))
    mixed = task_of(SHELF[0], EXAMPLES[2])
    found, summary = run(MODEL, mixed, start, out=tmp_path / "run")
    assert [record.seen for record in found] == [True, False] and summary["seen"] == 1
    plain = run(MODEL, mixed, settings(method="base")).records
    assert not any(record.seen for record in plain)
    assert found[0].log_likelihoods != plain[0].log_likelihoods
    kept = json.loads((tmp_path / "run/config.json").read_text())
    assert kept["upper_bound"] == "trained on the labels of 1 of its inputs" and kept["trained_on"] == 3
    assert any(
        "upper bound: trained on the labels of 1 of its 2 inputs" in n for n in notes(load_runs([tmp_path / "run"]))
    )
    run(MODEL, task_of(EXAMPLES[2]), start, out=tmp_path / "other")
    assert "upper_bound" not in json.loads((tmp_path / "other/config.json").read_text())
    for damaged in ("{", "[]", '{"examples": 3}', '{"examples": "3", "fingerprints": []}'):
        (tmp_path / "sft/trained_on.json").write_text(damaged)
        with pytest.raises(InputError, match="trained_on.json: cannot be read"):
            run(MODEL, mixed, start)


def test_examples_are_counted_with_their_duplicates(tmp_path):
    trained, config = tuned(epochs=1)
    save(trained._replace(used=trained.used * 2), tmp_path, MODEL, config, {})
    found = trained_on(str(tmp_path))
    assert found.n_examples == 6 and len(found.fingerprints) == 3
    (tmp_path / "trained_on.json").write_text('{"fingerprints": []}')
    assert trained_on(str(tmp_path)).n_examples is None
    assert trained_on(None) == trained_on(str(tmp_path / "nowhere")) == TrainedOn()


def test_no_adapter_is_ever_without_its_list(tmp_path, monkeypatch):
    def killed(*args, **kwargs):
        raise KeyboardInterrupt

    trained, config = tuned(epochs=1)
    monkeypatch.setattr("ttsi_jax.batching.supervised.save_peft", killed)
    with pytest.raises(KeyboardInterrupt):
        save(trained, tmp_path / "sft", MODEL, config, {})
    assert [file.name for file in (tmp_path / "sft").iterdir()] == ["trained_on.json"]
    with pytest.raises(InputError, match="sft: holds an unfinished adapter; delete it, or choose another directory"):
        settings_there(tmp_path / "sft")


def test_the_command(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("ttsi_jax.checkpoints.load_model", lambda name, dtype: MODEL)
    file = tmp_path / "train.jsonl"
    tools = [{"name": t.name, "parameters": t.parameters} for t in (ADD, GREET)]
    line = {"query": "1 and 2", "tools": tools, "calls": [{"name": "add", "arguments": {"a": 1, "b": 2}}]}
    file.write_text(json.dumps(line))
    argv = ["sft", "--model", "tiny", "--task", str(file), "--out", str(tmp_path / "sft"), "--adapt.epochs", "2"]
    own = [*argv, "--adapt.rank", "2", "--wave", "1"]
    assert main(own) == 0
    out, err = capsys.readouterr()
    assert "adapter: " in out and "trained on 1 of 1 examples" in err
    assert (tmp_path / "sft/adapter_model.safetensors").exists()
    before = {path.name: path.read_bytes() for path in (tmp_path / "sft").iterdir()}
    assert main(own) == 0
    out, err = capsys.readouterr()
    assert "sft is complete: nothing is left to train" in err and "adapter: " in out and "trained on" not in err
    assert main(argv) == 2 and "adapt.rank: 2 there, 8 now" in capsys.readouterr().err
    file.write_text(json.dumps(line | {"query": "2 and 3"}))
    assert main(own) == 2 and "inputs: " in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in (tmp_path / "sft").iterdir()} == before
    weights = tmp_path / "sft/adapter_model.safetensors"
    file.write_text(json.dumps(line))
    weights.write_bytes(weights.read_bytes()[:-9])
    assert main(own) == 3 and "adapter_model.safetensors" in capsys.readouterr().err, "cut off"
    assert main([*argv[:-3], str(tmp_path), *argv[-2:]]) == 2 and "is not empty" in capsys.readouterr().err
    file.write_text(f"{json.dumps(line)}\n{{")
    assert main([*argv[:-3], str(tmp_path / "rest"), *argv[-2:]]) == 1
    out, err = capsys.readouterr()
    assert "cannot be used: train.jsonl:2: not valid JSON" in err and "trained on 1 of 2 examples" in err
    assert "adapter: " in out and (tmp_path / "rest/adapter_model.safetensors").exists()
