"""Programs are compiled for a TPU where libtpu is installed."""

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from jax.sharding import AbstractMesh

import compile_for_tpu
from chips import CHIPS, TPUS
from collectives import collectives
from compile_for_tpu import TOPOLOGIES, Compile, Memory, by_formula, run_of
from ttsi_jax.scaling.mesh import AXES, mesh_shape
from workload import SHAPES, Work

ROOT = Path(__file__).parents[2]


def test_every_chip_has_its_figures():
    assert set(TPUS) == TOPOLOGIES.keys() < CHIPS.keys()
    assert all(chip.flops > chip.bandwidth > chip.memory for chip in CHIPS.values())


def test_without_libtpu_it_says_what_to_install(monkeypatch, capsys):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setattr(sys, "argv", ["compile_for_tpu", "--shape", "tiny"])
    assert compile_for_tpu.main() == 2
    assert "tpu-aot" in capsys.readouterr().out


@pytest.mark.parametrize("path", sorted((ROOT / "docs" / "results").glob("tpu_*.json")), ids=lambda path: path.stem)
def test_the_formulas_hold_for_what_was_compiled(path):
    """Memory, but for code, the seconds of a bound and what is sent: within 15 % of the figures in docs/scaling.md. The
    compiler's FLOPs are within 5 % of those by hand."""
    found = json.loads(path.read_text())
    chosen = {name: found[name] for name in ("shape", "chip", "mesh", "wave", "dtype")}
    options = Compile(**chosen, adapt_memory=found.get("memory", 2.0), work=Work(**found["work"]))
    config, sizes, _, programs = run_of(options)
    mesh = AbstractMesh(mesh_shape(options.mesh), AXES)
    for name, own in found["programs"].items():
        formula = by_formula(name, programs[config.n_layers][name], options, config, sizes, mesh)
        if "memory" in own:
            taken = sum(own["memory"][share] for share in ("arguments", "temporaries", "results"))
            assert formula.memory == pytest.approx(taken, rel=0.15), name
        if "estimate" in own:
            assert formula.seconds == pytest.approx(own["estimate"]["seconds"], rel=0.15), name
            assert formula.sent == pytest.approx(own["estimate"]["work"]["sent"], rel=0.15), name
            assert own["estimate"]["work"]["flops"] == pytest.approx(own["estimate"]["by_hand"], rel=0.05), name


def test_what_collectives_give_each_device():
    text = """
%fused_computation.1 (p: bf16[50]) -> bf16[100] {
      %all-gather.5 = bf16[100]{0} all-gather(%p), channel_id=7, dimensions={0}
%async_collective_fusion.2 (p: bf16[50]) -> bf16[100] {
      %all-gather.6 = bf16[100]{0} all-gather(%p), channel_id=7, dimensions={0}
%fused_computation.3 (p: bf16[50]) -> bf16[100] {
      %all-gather.7 = bf16[100]{0} all-gather(%p), channel_id=7, dimensions={0}
%all-reduce-scatter.8 (input: bf16[2,16]) -> bf16[2,8] {
      %all-reduce.9 = bf16[2,16]{1,0} all-reduce(%input), replica_groups={{0,1}}, to_apply=%add
ENTRY %main.4_spmd (x: bf16[2,8]) -> f32[8] {
      %all-reduce.1 = bf16[2,8]{1,0:T(8,128)} all-reduce(bf16[2,8]{1,0} %x), replica_groups={{0,1}}
      %all-reduce.2 = (f32[4]{0}, s32[]) all-reduce(f32[4]{0} %y, s32[] %z), to_apply=%add
      %all-gather-start.3 = (bf16[4,8]{1,0}, bf16[8,8]{1,0}) all-gather-start(bf16[4,8]{1,0} %w), dimensions={0}
      %all-gather-done.3 = bf16[8,8]{1,0} all-gather-done(%all-gather-start.3)
      %collective-permute-start.5 = (f32[9]{0}, f32[9]{0}, u32[], u32[]) collective-permute-start(%v)
      %add.4 = f32[8]{0} add(f32[8]{0} %a, f32[8]{0} %b)
    """
    reduced, gathered = 2 * 16 + 4 * 4 + 4, 2 * 64 + 200
    for n_devices in (2, 4):  # the first is among two of them, the others among all
        found = collectives(text, n_devices)
        assert found.received == {
            "all-reduce": reduced,
            "all-gather": gathered,
            "collective-permute": 36,
            "reduce-scatter": 32,
        }
        share = (n_devices - 1) / n_devices
        assert found.sent == pytest.approx(32 + 2 * share * 20 + share * gathered + 36 + 32)


def compiled(path: Path, *more: str) -> dict:
    """What the script finds for a tiny model, in a process of its own, which may not see a TPU."""
    sizes = [f"--work.{name}={n}" for name, n in (("prefix", 64), ("suffix", 32), ("answer", 8), ("trained", 16))]
    command = [sys.executable, "scripts/compile_for_tpu.py", "--shape", "tiny", "--wave", "8", *sizes]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    subprocess.run([*command, *more, "--json", str(path)], cwd=ROOT, env=environment, check=True, timeout=500)
    return json.loads(path.read_text())["programs"]


@pytest.mark.skipif(find_spec("libtpu") is None, reason="needs libtpu (extra tpu-aot)")
def test_a_tiny_model_is_compiled_for_a_chip(tmp_path):
    found = compiled(tmp_path / "found.json", "--programs", "score", "adapt, suffix")
    assert set(found) == {"score", "adapt, suffix"}
    for own in found.values():
        assert own["memory"].keys() == set(Memory._fields) and own["memory"]["arguments"] > 0
        assert own["estimate"]["work"]["flops"] > 0.9 * own["estimate"]["by_hand"] > 0
        assert own["estimate"]["seconds"] > 0 and not own["estimate"]["work"]["received"]


@pytest.mark.skipif(find_spec("libtpu") is None, reason="needs libtpu (extra tpu-aot)")
def test_a_tiny_model_is_compiled_for_chips_that_share_it(tmp_path):
    """Over `model` the stream is summed after the embedding and twice in each layer whose result is wanted (not in the
    last one, where only keys and values are); over `fsdp` a layer's matrices are gathered."""
    of = lambda mesh: compiled(tmp_path / "found.json", "--programs", "prefill", "--mesh", mesh)["prefill"]  # noqa: E731
    config, one = SHAPES["tiny"], of("data=1")
    stream, n_whole = 2 * 4 * 64 * config["hidden_size"], config["num_hidden_layers"] - 1
    assert of("model=2")["estimate"]["work"]["received"]["all-reduce"] == (1 + 2 * n_whole) * stream
    gathered = of("fsdp=2")
    layer = 48 * (48 + 24 + 24 + 48 + 3 * 80)
    assert gathered["estimate"]["work"]["received"]["all-gather"] >= 2 * n_whole * layer
    assert gathered["memory"]["arguments"] < one["memory"]["arguments"]


@pytest.mark.skipif(find_spec("libtpu") is None, reason="needs libtpu (extra tpu-aot)")
@pytest.mark.parametrize("dtype", ["int8", "q8_0"])
def test_a_decoding_step_of_one_row_copies_no_matrix_in_int8(tmp_path, dtype):
    shape = ("--shape", "qwen2.5-1.5b", "--dtype", dtype, "--wave", "1", "--programs", "decode", "--only", "memory")
    vocabulary = SHAPES["qwen2.5-1.5b"]["vocab_size"] * SHAPES["qwen2.5-1.5b"]["hidden_size"]  # bytes in int8
    assert compiled(tmp_path / "found.json", *shape)["decode"]["memory"]["temporaries"] < vocabulary / 2
