"""Plans: what formulas say of runs on meshes that nobody has here."""

import json
import sys
from dataclasses import replace

import pytest

import plan
from chips import CHIPS
from plan import Load, Loads, Plan, memory, rows_of, stages, with_wave
from ttsi_jax.adaptation import AdaptConfig
from ttsi_jax.checkpoints.config import from_hf
from workload import SHAPES


def config_of(shape):
    return from_hf(SHAPES[shape] | {"rms_norm_eps": 1e-5})


@pytest.mark.parametrize("scope", ["all", "suffix"])
def test_a_mesh_divides_the_work(scope):
    """Over `model` arithmetic is divided and the stream is sent; over `data` nothing is."""
    config = config_of("qwen2.5-7b")
    whole = Plan(shape="qwen2.5-7b", wave=32, scope=scope, adapt_memory=1000.0)
    of = lambda mesh: stages(replace(whole, mesh=mesh), config)  # noqa: E731
    one, model, data = of("data=1"), of("model=4"), of("data=4")
    for name, load in one.items():
        assert load.sent == data[name].sent == 0 < model[name].sent
        assert data[name].flops == pytest.approx(load.flops / 4)
        assert load.flops / 4 <= model[name].flops < 0.26 * load.flops, "of an adapter a part is on every chip"
        assert load.bytes / 4 <= model[name].bytes < 0.5 * load.bytes, "as is the stream"
        assert data[name].bytes > load.bytes / 4


def test_what_a_mesh_cannot_divide_is_whole_on_every_chip(monkeypatch, capsys):
    """1.5B has 12 heads: over 8 chips each computes all of them, and sums nothing of theirs."""
    config = config_of("qwen2.5-1.5b")
    one, eight = Loads(config, (1, 1, 1), 8, 8), Loads(config, (1, 1, 8), 8, 8)
    assert eight.config.n_heads == 12 and eight.costs.cache == one.costs.cache
    assert eight.flops.products == one.flops.products and eight.flops.down == one.flops.down / 8
    assert eight.n_sums == config.n_layers + 1
    monkeypatch.setattr(sys, "argv", ["plan", "--mesh", "model=8", "--wave", "64"])
    assert plan.main() == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "12 heads cannot be divided, so every chip has the attention whole" in printed
    assert "it does not fit; without --wave the largest that does is taken" in printed


def test_fsdp_sends_the_base_once_a_pass():
    config = config_of("qwen2.5-7b")
    of = Loads(config, (1, 4, 1), 8, 8)
    weights = 2 * (of.flops.weights + of.flops.head)
    assert of.read(8, 100, 0, 1).sent == pytest.approx(0.75 * weights)
    assert of.decode(10, 100).sent == pytest.approx(10 * 0.75 * weights)
    assert of.train(100, 0, 10, 5, 2, remat=True, settings=AdaptConfig()).sent == pytest.approx(
        5 * 4 * 3 * 0.75 * weights
    )


def test_the_slowest_resource_decides():
    chip = CHIPS["v5e"]
    assert Load(chip.flops, chip.bandwidth / 2, 0.0).seconds(chip) == (1.0, "arithmetic")
    assert Load(chip.flops, chip.bandwidth, 0.0).seconds(chip, (1.0, 0.5, 1.0)) == (2.0, "memory")
    assert Load(0.0, 0.0, chip.connections).seconds(chip, (1.0, 1.0, 0.25)) == (4.0, "connections")


def test_memory_follows_the_mesh():
    config, whole = config_of("qwen2.5-7b"), Plan(shape="qwen2.5-7b", wave=32)
    of = lambda mesh, **more: memory(replace(whole, mesh=mesh, **more), config)  # noqa: E731
    one, model, fsdp = of("data=1"), of("model=4"), of("fsdp=4")
    matrices = (
        2 * config.n_layers * sum(n * m for n, m in ((3584, 3584), (3584, 1024), (3584, 3584), (3584, 3 * 18944)))
    )
    assert one.weights == pytest.approx(matrices + 4 * 152064 * 3584, rel=1e-3)
    assert model.weights == pytest.approx(one.weights / 4, rel=1e-3) == fsdp.weights
    assert of("data=1", dtype="int8").weights == pytest.approx(one.weights / 2, rel=1e-2)
    assert of("data=4").prompts == pytest.approx(one.prompts / 4) == fsdp.prompts
    assert of("data=1", scope="suffix").total < one.total


@pytest.mark.parametrize("mesh", ["data=1", "model=2", "fsdp=2", "data=2,fsdp=2,model=2"])
def test_it_tells_hours_and_dollars(mesh, monkeypatch, capsys, tmp_path):
    path = tmp_path / "plan.json"
    options = [
        "--wave",
        "32",
        "--shape",
        "qwen2.5-72b",
        "--chip",
        "h200",
        "--mesh",
        mesh,
        "--price",
        "3",
        "--json",
        str(path),
    ]
    monkeypatch.setattr(sys, "argv", ["plan", *options])
    assert plan.main() == 0
    found = json.loads(path.read_text())["found"]
    n_chips = 8 if mesh.startswith("data=2") else 1 if mesh == "data=1" else 2
    assert found["inputs_per_hour"] == pytest.approx(3600 * 32 / found["seconds"])
    assert found["dollars_per_thousand"] == pytest.approx(3 * n_chips * 1000 / found["inputs_per_hour"])
    assert "connections" in capsys.readouterr().out or "fsdp" not in mesh


def test_what_cannot_be_planned_is_refused(monkeypatch, capsys):
    for options, why in ((["--shape", "gpt"], "no shape is called 'gpt'"), (["--mesh", "4"], "--mesh is '4'"),
                         (["--mesh", "data=3", "--wave", "32"], "must be a multiple of 3"),
                         (["--wave", "0"], "--wave is 0; it must be at least 1"),
                         (["--wave", "-1"], "--wave is -1; it must be at least 1"),
                         (["--reached", "0", "0.6", "0.6"], "--reached is 0.0 0.6 0.6; shares are above 0"),
                         (["--shape", "qwen2.5-72b"], "give it more in --mesh")):  # fmt: skip
        monkeypatch.setattr(sys, "argv", ["plan", *options])
        assert plan.main() == 2
        assert why in capsys.readouterr().out


@pytest.mark.parametrize("mesh", ["data=1", "data=2"])
def test_the_wave_is_the_largest_that_fits(mesh):
    config, chip = config_of("qwen2.5-1.5b"), CHIPS["v5e"]
    found = with_wave(Plan(shape="qwen2.5-1.5b", mesh=mesh), config)
    assert found.wave is not None and rows_of(found) in (8, 16, 32)
    assert memory(found, config).total <= chip.memory < memory(replace(found, wave=2 * found.wave), config).total
