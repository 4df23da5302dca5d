"""Meshes: the same answers as one device, the base divided, and no more communication than that needs."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractMesh, NamedSharding, PartitionSpec

from collectives import groups
from model.tiny import VARIANTS
from scaling.alike import assert_alike
from scaling.on_meshes import MESHES
from tiny_runs import tiny_model, write_model
from ttsi_jax.adaptation import init_wave
from ttsi_jax.checkpoints.adapters import load_adapter
from ttsi_jax.checkpoints.config import from_hf
from ttsi_jax.cli import main
from ttsi_jax.errors import InputError
from ttsi_jax.model.lora import LoraConfig
from ttsi_jax.model.sharding import ROWS
from ttsi_jax.rules import RULES
from ttsi_jax.scaling.mesh import Layout, check_wave, for_scales, make_mesh, mesh_of, param_shardings, undivided

ROOT = Path(__file__).parents[2]
PER_EXAMPLE = {"prefill_wave", "score_wave", "adapt_and_score", "prompt_kl_wave", "nothing_decoding", "decode_wave"}
GUIDED_PROGRAMS = {"no_lanes", "admit", "read_tokens", "mask_and_sample", "append"}


@pytest.fixture(scope="module")
def found(tmp_path_factory) -> dict[str, Any]:
    """What `on_meshes.py` came to, with a model of 8 heads, of which 4 share the keys and values of one."""
    directory = tmp_path_factory.mktemp("meshes")
    shape = {"num_attention_heads": 8, "num_key_value_heads": 2, "head_dim": 4, "vocab_size": 536}
    model = write_model(directory / "tiny", **shape)
    flags = "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
    paths = os.pathsep.join(str(ROOT / name) for name in (".", "tests", "scripts"))
    env = os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", "PYTHONPATH": paths}
    program = [sys.executable, str(Path(__file__).with_name("on_meshes.py")), str(model), str(directory / "out")]
    guided = ["guided"] * (importlib.util.find_spec("llguidance") is not None)
    done = subprocess.run([*program, *guided], env=env, capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads((directory / "out" / "found.json").read_text()) | {"kept": directory / "out"}


@pytest.mark.parametrize("mesh", MESHES)
def test_a_run_on_a_mesh_is_the_run_on_one_device(found, mesh):
    own = found[mesh]["records"]
    one = {name: found["one"]["records"][name] for name in own}
    assert_alike(one, own, mesh)
    assert all(sum(record["adapted"] for record in one[scope]) > 3 for scope in ("all", "suffix"))
    assert any(record["evidence"]["kl"] > 0 for record in own["suffix"] if record["adapted"])


@pytest.mark.parametrize("mesh", MESHES)
def test_programs_communicate_only_within_the_devices_that_share_the_base(found, mesh):
    programs = found[mesh]["programs"]
    assert programs.keys() == PER_EXAMPLE | (GUIDED_PROGRAMS if "guided" in found[mesh]["records"] else set())
    assert {name: own["across"] for name, own in programs.items() if own["across"]} == {}
    shape, within = found[mesh]["shape"], {name: own["within"] for name, own in programs.items()}
    if shape["model"] * shape["fsdp"] == 1:
        assert not any(within.values())
    for name in ("score_wave", "adapt_and_score", "decode_wave"):
        if shape["model"] > 1:  # two sums a layer, at least
            assert within[name].count("all-reduce") >= 2, name
        if shape["fsdp"] > 1:  # the seven matrices of a layer, whose code all layers share, and the vocabulary's
            assert within[name].count("all-gather") >= 8, name


@pytest.mark.parametrize("mesh", [mesh for mesh in MESHES if "fsdp" in mesh])
def test_layers_are_gathered_in_every_step_of_decoding(found, mesh):
    """Gathered before its loop, the whole base would be in memory."""
    assert "all-gather" not in found[mesh]["programs"]["decode_wave"]["not in a loop"]


@pytest.mark.parametrize("mesh", MESHES)
def test_each_device_holds_its_part_of_the_base(found, mesh):
    n, n_fsdp, shards = found[mesh]["shape"]["model"], found[mesh]["shape"]["fsdp"], found[mesh]["shards"]
    axes = {f"layers.0.{name}.kernel": 1 for name in ("q", "gate", "up", *(("k", "v") if n <= 2 else ()))}
    axes |= {"layers.0.o.kernel": 0, "layers.0.down.kernel": 0, "embed": 0, "head.kernel": 1}
    for name, own in shards.items():
        expected = list(own["whole"])
        if name in axes:
            expected[axes[name]] //= n
        if len(expected) == 2:
            expected[int(name.split(".")[-2:][0] in ("o", "down", "embed"))] //= n_fsdp
        assert own["part"] == expected, name


@pytest.mark.parametrize("mesh", MESHES)
def test_each_device_holds_what_belongs_to_its_own_rows(found, mesh):
    """Adapters, the rule's states and stacked prefix caches are never there for the whole wave, not even at first."""
    assert found[mesh]["whole"] == []


@pytest.mark.parametrize("mesh", MESHES)
def test_a_run_may_go_on_elsewhere(found, mesh):
    """The mesh is no setting of it, and what it keeps does not depend on devices."""
    one, own = found["kept"] / "one" / "all", found["kept"] / mesh / "all"
    assert (own / "config.json").read_bytes() == (one / "config.json").read_bytes()
    shapes = [json.loads((path / "environment.json").read_text())["mesh"] for path in (one, own)]
    assert shapes == [None, found[mesh]["shape"]]
    adapted = next(record["id"] for record in found[mesh]["records"]["all"] if record["adapted"])
    (theirs, _), (ours, lora) = (load_adapter(path, adapted) for path in (one, own))
    assert lora.rank == 2
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-2), ours, theirs)


# What needs no devices.


@pytest.mark.parametrize("text", ["", "data", "data=0", "data=2;model=2", "rows=2", "data=2,data=4", "data=2,", "2x4"])
def test_what_means_no_mesh_is_refused(text):
    with pytest.raises(InputError, match=r"it must be data=D,fsdp=F,model=M or some of these, such as data=4,model=2"):
        make_mesh(text)


def test_one_device_is_no_mesh():
    assert make_mesh("data=1,model=1") is None and make_mesh("model=1") is None
    assert mesh_of(tiny_model().params) is None
    many = 4 * len(jax.devices())
    with pytest.raises(InputError, match=f"--mesh data={many} needs {many} devices; there are {many // 4}"):
        make_mesh(f"data={many}")
    with pytest.raises(InputError, match="--wave is 6; --mesh divides it into 4 parts, so it must be a multiple of 4"):
        check_wave(6, 4)


def test_the_command_line_refuses_a_mesh_before_anything_is_loaded(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["run", "--model", "none", "--task", "none", "--mesh", "model=4096"]) == 2
    assert "needs 4096 devices" in capsys.readouterr().err


def config_of(**changes: Any) -> Any:
    return from_hf(VARIANTS["qwen2"] | changes)


def specs(n_model: int, n_fsdp: int = 1, **changes: Any) -> dict[str, PartitionSpec]:
    mesh: Any = AbstractMesh((2, n_fsdp, n_model), ("data", "fsdp", "model"))
    tree = jax.tree_util.tree_leaves_with_path(param_shardings(config_of(**changes), mesh))
    return {".".join(str(key.key) for key in keys): leaf.spec for keys, leaf in tree}


def test_weights_are_divided_as_in_megatron():
    found, into, back = specs(2), PartitionSpec(None, "model"), PartitionSpec("model", None)
    for name in ("q", "k", "v", "gate", "up"):
        assert found[f"layers.1.{name}.kernel"] == into
    assert found["layers.1.o.kernel"] == found["layers.1.down.kernel"] == found["embed"] == back
    assert found["head.kernel"] == into and found["layers.0.q.bias"] == PartitionSpec("model")
    assert found["layers.0.mlp_norm.scale"] == found["final_norm.scale"] == PartitionSpec()
    assert set(specs(1).values()) <= {PartitionSpec(), PartitionSpec(None), PartitionSpec(None, None)}


def test_the_hidden_size_is_divided_over_fsdp():
    found = specs(2, 3)
    assert found["layers.1.q.kernel"] == found["head.kernel"] == PartitionSpec("fsdp", "model")
    assert found["layers.1.down.kernel"] == found["embed"] == PartitionSpec("model", "fsdp")
    assert found["layers.0.q.bias"] == PartitionSpec("model") and found["final_norm.scale"] == PartitionSpec()
    with pytest.raises(InputError, match="fsdp=5 in --mesh does not divide the hidden size 48"):
        specs(1, 5)


def test_scales_lie_as_the_values_that_they_scale():
    mesh: Any = AbstractMesh((2, 1, 4), ("data", "fsdp", "model"))
    into, back = (NamedSharding(mesh, PartitionSpec(*spec)) for spec in ((None, "model"), ("model", None)))
    assert for_scales(into, (1, 64)).spec == into.spec and for_scales(into, (3, 64)).spec == into.spec
    assert for_scales(back, (8, 64)).spec == back.spec
    gathered = NamedSharding(mesh, PartitionSpec("fsdp", "model"))
    assert for_scales(gathered, (1, 64)).spec == PartitionSpec(None, "model")
    assert for_scales(back, (1, 64)).spec == for_scales(back, (6, 64)).spec == PartitionSpec(None, None)


@pytest.mark.parametrize("name", RULES)
def test_what_a_rule_keeps_of_factors_lies_as_they_do(name):
    mesh: Any = AbstractMesh((2, 1, 2), ("data", "fsdp", "model"))
    config, rule, keys = config_of(), RULES[name](), jax.random.split(jax.random.key(0), 2)
    wave = jax.eval_shape(lambda: init_wave(keys, config, LoraConfig(), rule, jnp.ones(2, jnp.int32)))
    adapters, states = map(jax.tree_util.tree_leaves_with_path, Layout(config, mesh).rows(wave))
    own = {keys[1:]: leaf.sharding.spec for keys, leaf in adapters}  # a projection's are alike in all layers
    assert {PartitionSpec(ROWS, "model"), PartitionSpec(ROWS, None, "model")} <= {*own.values()}
    for keys, leaf in states:
        rows, *others = own.get(keys[-2:], (ROWS,))
        assert leaf.sharding.spec == PartitionSpec(rows, *[None] * (leaf.ndim == 4), *others), keys


def test_what_cannot_be_divided_is_whole_on_every_device():
    assert undivided(config_of(), 2) == {}
    assert undivided(config_of(), 4) == {"keys and values": "2 key-value heads"}
    assert undivided(config_of(), 5) == {"attention": "4 heads", "vocabulary": "288 tokens"}
    assert undivided(config_of(num_attention_heads=9, num_key_value_heads=3), 3) == {"MLP": "80 MLP features"}
    with pytest.raises(InputError, match="model=7 in --mesh divides neither the 4 heads nor the 80 MLP features"):
        undivided(config_of(), 7)
    found = specs(4)
    assert "model" in found["layers.0.q.kernel"] and "model" not in found["layers.0.k.kernel"]


def test_groups_of_devices_are_read_from_a_programs_text():
    assert groups("replica_groups={{0,2},{1,3}}, x", 4) == [[0, 2], [1, 3]]
    assert groups("source_target_pairs={{0,1},{1,0}}", 4) == [[0, 1], [1, 0]]
    assert groups("replica_groups=[2,2]<=[4]", 4) == [[0, 1], [2, 3]]
    assert groups("replica_groups=[2,2]<=[2,2]T(1,0)", 4) == [[0, 2], [1, 3]]
    assert groups("replica_groups=mesh['axis_0'=2,'axis_1'=2] {'axis_0'}", 4) == [[0, 2], [1, 3]]
    assert groups("replica_groups={}", 3) == [[0, 1, 2]]
