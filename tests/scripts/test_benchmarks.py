"""The benchmarks run on tiny shapes, both sides do the same work, and their figures are what they say."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import jax
import pytest

import bench_report
import bench_roofline
import bench_scaling
import bench_vs_pytorch
import comparison
from benchmarking import Seconds, alternate, plain
from bounds import Cost, Costs, Machine
from tiny_runs import tiny_model
from ttsi_jax.checkpoints.config import from_hf
from ttsi_jax.errors import InputError
from ttsi_jax.model.decoder import abstract_params
from ttsi_jax.model.lora import LoraConfig, init_adapter
from workload import SHAPES, Clock, Found, JaxSide, Work, load, make_inputs, random_model

ROOT = Path(__file__).parents[2]
WORK = Work(prefix=40, suffix=16, trained=4, synthesis=4, answer=4, candidates=3, name=3)
SMALL = ["--random-weights", "tiny", "--rounds", "1"]
SIZES = [f"--work.{name}={getattr(WORK, name)}" for name in vars(WORK) if name not in ("lr", "steps")]


def run(monkeypatch, script, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", [script.__name__, *SMALL, *SIZES, *arguments])
    monkeypatch.setattr(bench_roofline, "measure_machine", lambda dtype: Machine(1e9, 1e9))
    monkeypatch.setattr(bench_scaling, "measure_machine", lambda dtype: Machine(1e9, 1e9))
    monkeypatch.setattr(bench_vs_pytorch, "measure_machine", lambda dtype: Machine(1e9, 1e9))
    return script.main()


def read(path):
    results = json.loads(path.read_text())
    assert {"ratios", "seconds", "environment", "command"} <= set(results)
    assert {"threads", "dtype", "versions", "compile_seconds", "load"} <= set(results["environment"])
    return results


@pytest.mark.parametrize("script", ["bench_steps", "bench_vs_pytorch", "bench_guided"])
def test_a_device_that_is_not_there_is_named(script):
    command = [sys.executable, ROOT / "scripts" / f"{script}.py", "--platform", "nowhere"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    ended = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=100)
    said = ended.stdout + ended.stderr
    assert ended.returncode == 2 and "error: --platform nowhere: JAX finds no such device\n" in said
    assert "Traceback" not in said


def test_sides_on_different_devices_are_not_timed_together(monkeypatch):
    with_cuda = SimpleNamespace(cuda=SimpleNamespace(is_available=lambda: True))
    monkeypatch.setitem(sys.modules, "torch", with_cuda)
    options = bench_vs_pytorch.VsPyTorch()
    with pytest.raises(InputError, match="JAX runs on cpu, PyTorch on cuda: time each with --side"):
        bench_vs_pytorch.torch_device(options)
    assert bench_vs_pytorch.torch_device(replace(options, side="torch")) == "cuda"
    assert bench_vs_pytorch.torch_device(replace(options, platform="cpu")) == "cpu"


def test_a_model_that_is_not_there_is_told(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["bench_roofline", "--model", "nowhere.gguf"])
    assert bench_roofline.main() == 3
    assert "error: " in capsys.readouterr().out


def test_files_of_results_that_cannot_be_merged_are_told(monkeypatch, tmp_path, capsys):
    (tmp_path / "none").write_text('{"work": {}, "runs": {}}')
    for files, why in (
        (["missing", "x"], "missing: cannot be read"),
        (["none", "none"], "no found and no environment"),
    ):
        monkeypatch.setattr(sys, "argv", ["x", "--merge", *(str(tmp_path / file) for file in files)])
        assert bench_vs_pytorch.main() == 2
        assert why in " ".join(capsys.readouterr().out.split())


def test_a_run_that_no_report_can_repeat_is_told(monkeypatch, tmp_path, capsys):
    (tmp_path / "begun").mkdir()
    (tmp_path / "begun/config.json").write_text('{"task": "t", "model": "m", "method": "base"}')
    for name, why in (("missing", "holds no run"), ("begun", "the run has no record yet")):
        monkeypatch.setattr(sys, "argv", ["x", "--like", str(tmp_path / name)])
        assert bench_report.main() == 2
        assert why in " ".join(capsys.readouterr().out.split())


# Timing and bounds.


def test_sides_take_turns_and_the_first_turn_is_not_counted():
    calls = []
    found = alternate({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, rounds=2)
    assert calls == ["a", "b"] * 3 and {name: own.n for name, own in found.items()} == {"a": 2, "b": 2}


def test_seconds():
    own = Seconds.of([3.0, 1.0, 2.0])
    assert own == (2.0, 1.0, 3.0, 3) and plain({"x": own}) == {"x": own._asdict()}
    assert str(own) == "2.000 (1.000–3.000)" and str(Seconds.of([12.0])) == "12.0"


def test_weights_and_caches_are_counted_as_they_are():
    config = from_hf(SHAPES["tiny"] | {"rms_norm_eps": 1e-5})
    costs = Costs(config, itemsize=4)
    params = abstract_params(config)
    layers = [x.size for layer in params["layers"].values() for part in layer.values() for x in part.values()]
    norms = 2 * config.n_layers * config.hidden_size
    assert costs.weights == sum(layers) - norms and costs.head == params["embed"].size
    assert costs.cache == 2 * 2 * 2 * 12 * 4  # keys and values, layers, heads, head size, bytes


def test_a_sequence_costs_the_same_read_at_once_as_in_two_parts():
    costs = Costs(from_hf(SHAPES["tiny"] | {"rms_norm_eps": 1e-5}), itemsize=4)
    parts = costs.read(1, 7, 0, projected=0).flops + costs.read(1, 5, 7, projected=1).flops
    assert costs.read(1, 12, 0, projected=1).flops == parts


def test_a_bound_is_the_longer_of_arithmetic_and_reading():
    assert Cost(6.0, 2.0).seconds(Machine(3.0, 4.0)) == 2.0 and Cost(1.0, 8.0).seconds(Machine(3.0, 4.0)) == 2.0


# Inputs.


@pytest.mark.parametrize("source", ["random", "bfcl:multiple"])
def test_inputs_have_exactly_the_sizes_asked_for(source):
    model = random_model("tiny") if source == "random" else tiny_model()
    try:
        one, other = make_inputs(WORK, model, source, 3, 2)
    except InputError:
        pytest.skip("needs the bfcl-eval distribution")
    assert one.prefix != other.prefix
    for own in (one, other):
        assert (len(own.prefix), len(own.request), len(own.synthesis)) == (40, 16, 16)
        assert [len(name) for name in own.names] == [3] * 3
        assert (len(own.pair.prompt), len(own.pair.answer)) == (12, 4)


def test_unknown_shape():
    with pytest.raises(InputError, match="no shape is called 'huge'; known: tiny"):
        random_model("huge")


def test_our_side_decodes_exactly_as_many_tokens_as_asked_for():
    _, model = load("", "tiny", None)
    clock, inputs = Clock(), make_inputs(WORK, model, "random", 0, 2)
    found = JaxSide(model, WORK, 2).improve(inputs, clock)
    assert (len(found.synthesis), len(found.answer), len(found.losses), len(found.scores)) == (4, 4, 5, 3)
    assert set(clock.seconds) == {stage for stages in comparison.STAGES.values() for stage in stages}


# The scripts.


def test_roofline(monkeypatch, tmp_path):
    assert run(monkeypatch, bench_roofline, "--wave", "2", "--json", str(tmp_path / "r.json")) == 0
    results = read(tmp_path / "r.json")
    assert set(results["ratios"]) == set(results["seconds"]) and min(results["ratios"].values()) > 0


def test_scaling(monkeypatch, tmp_path):
    sizes = ["--waves", "1", "2", "--prompts", "40", "--inputs", "4", "8", "--wave", "2"]
    assert run(monkeypatch, bench_scaling, *sizes, "--json", str(tmp_path / "s.json")) == 0
    results = read(tmp_path / "s.json")
    assert {"uncertain_to_plain_2", "decode_2_to_1", "score_12_to_prefill", "seconds_8_to_4_inputs"} <= set(
        results["ratios"]
    )
    assert set(results["seconds"]["prompts"]) == {"40"}


@pytest.mark.torch
def test_both_sides_agree_and_files_of_one_side_each_are_laid_side_by_side(monkeypatch, tmp_path):
    pytest.importorskip("torch")
    paths = {side: str(tmp_path / f"{side}.json") for side in ("both", "jax", "torch", "merged")}
    small = ["--wave", "2", "--torch-inputs", "1", "--shared", "64"]
    for side in ("both", "jax", "torch"):
        assert run(monkeypatch, bench_vs_pytorch, *small, "--side", side, "--json", paths[side], "--no-trainer") == 0
    both = read(tmp_path / "both.json")
    agreement = both["agreement"]["pytorch"]
    assert max(agreement["scores"], agreement["losses"], agreement["adapted_scores"]) < 1e-4
    assert agreement["synthesis"] == agreement["answer"] == 1
    wanted = {"end_to_end_all", "end_to_end_suffix", "score", "synthesize", "train", "decode", "shared_prefix"}
    assert wanted <= set(both["ratios"])

    monkeypatch.setattr(sys, "argv", ["x", "--merge", paths["jax"], paths["torch"], "--json", paths["merged"]])
    assert bench_vs_pytorch.main() == 0
    merged = json.loads((tmp_path / "merged.json").read_text())
    assert merged["agreement"]["pytorch"]["answer"] == 1 and set(merged["ratios"]) == set(both["ratios"])


@pytest.mark.torch
@pytest.mark.filterwarnings("ignore")  # of PEFT and transformers, about each other
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-4), ("bfloat16", 0.02)])
def test_the_trainer_trains_each_input_as_the_bare_loop_does(dtype, tolerance):
    torch = pytest.importorskip("torch")
    from pytorch_baseline import PyTorchBaseline

    model = random_model("tiny", dtype)
    baseline = PyTorchBaseline(model.config, model.params, dtype=getattr(torch, dtype))
    adapter = init_adapter(jax.random.key(0), model.config, LoraConfig())
    for ids in (list(range(3, 60)), list(range(60, 3, -1))):
        losses = (
            train(ids, n_answer=10, steps=4, lr=1e-2, initial=adapter)
            for train in (baseline.train, baseline.train_with_trainer)
        )
        bare, with_trainer = map(list, losses)
        assert bare == pytest.approx(with_trainer, abs=tolerance) and bare[-1] < bare[0] - 5 * tolerance


def test_ratios_are_to_the_fastest_other_side():
    runs = {"jax": [{"score": 2.0}], "pytorch": [{"score": 8.0}], "pytorch compiled": [{"score": 6.0}]}
    seconds, ratios = comparison.summarise(runs)
    assert seconds["jax"]["score"].median == 2.0 and ratios == {"score": 3.0, "pytorch: score": 4.0}


def test_sides_that_differ_are_refused():
    same = Found([-1.0], [2.0], [-1.0], [1, 2, 3, 4], [5])
    agreement = comparison.compare({"jax": same, "pytorch": same._replace(synthesis=[1, 2, 4, 4])})
    assert agreement["pytorch"]["synthesis"] == 0.5
    with pytest.raises(InputError, match="do not compute the same"):
        comparison.refuse_unequal(agreement, "float32")
    comparison.refuse_unequal(agreement, "bfloat16")


def test_plots(tmp_path):
    pytest.importorskip("matplotlib")
    one = Seconds.of([1.0])
    comparison.draw(tmp_path / "a.png", {"jax": {name: one for name in comparison.STAGES}})
    bench_scaling.draw(tmp_path / "b.png", {"inputs": {"64": {"per input": 1.0}, "128": {"per input": 1.1}}})
    results = {"machine": Machine(4.0, 2.0), "costs": {"x": Cost(1.0, 1.0)}, "seconds": {"x": one}}
    bench_roofline.draw(tmp_path / "c.png", results)
    assert len(list(tmp_path.glob("*.png"))) == 3
