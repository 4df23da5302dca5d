"""Runs on meshes of 8 devices of the CPU: what they come to, and what their compiled programs say, as JSON.

A process of its own, since the number of devices is fixed when JAX starts: python on_meshes.py MODEL OUT [GUIDED]
"""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import jax

from collectives import KIND, groups
from tiny_runs import numbered, settings, task_of, timeless
from ttsi_jax.answering import AnswerConfig
from ttsi_jax.batching import guided, lanes, waves
from ttsi_jax.checkpoints import load_model
from ttsi_jax.guided import decoding
from ttsi_jax.loop import run
from ttsi_jax.model.sharding import FSDP, MODEL
from ttsi_jax.scaling.mesh import Layout, make_mesh

MESHES = (
    "data=8,model=1", "data=4,model=2", "data=2,model=4", "data=1,model=8", "data=2,fsdp=4", "data=2,fsdp=2,model=2",
)  # fmt: skip
MORE = (MESHES[1], MESHES[-1])  # where a base in int8 and guided calls are run too
WAVE, TASK = 8, task_of(*numbered(10))
PROGRAMS = (
    (waves, "prefill_wave"), (waves, "score_wave"), (waves, "adapt_and_score"), (waves, "prompt_kl_wave"),
    (lanes, "nothing_decoding"), (lanes, "decode_wave"), (guided, "no_lanes"), (guided, "admit"),
    (decoding, "read_tokens"), (decoding, "mask_and_sample"), (decoding, "append"),
)  # fmt: skip


@contextmanager
def replaced(spies: list[tuple[Any, str, Any]]) -> Any:
    """Functions in the place of those that these owners have under these names, for a while."""
    with ExitStack() as stack:
        for owner, name, function in spies:
            stack.enter_context(patch.object(owner, name, function))
        yield


@contextmanager
def collectives(n_devices: int, found: dict[str, dict[str, list[str]]]) -> Any:
    """Notes each program that is called, and of its collectives the kinds: `within` so many neighbouring devices, which
    have the base together, those that go `across` such groups, and those `not in a loop`."""

    def spy(name: str, function: Any) -> Any:
        known: set[Any] = set()

        def called(*arguments: Any, **options: Any) -> Any:
            leaves, tree = jax.tree.flatten((arguments, options))
            if not any(isinstance(x, jax.core.Tracer) for x in leaves):  # not from within another
                key = (tree, *((x.shape, x.dtype) if hasattr(x, "shape") else x for x in leaves))
                if key not in known:
                    known.add(key)
                    note(name, function.lower(*arguments, **options).compile().as_text())
            return function(*arguments, **options)

        return called

    def note(name: str, text: str) -> None:
        own = found.setdefault(name, {"within": [], "across": [], "not in a loop": []})
        own["not in a loop"] += [kind[1] for kind in KIND.finditer(text[text.index("\nENTRY") :])]
        for line in text.splitlines():
            if kind := KIND.search(line):
                parts = [{device // n_devices for device in group} for group in groups(line, len(jax.devices()))]
                own["within" if all(len(part) == 1 for part in parts) else "across"].append(kind[1])

    with replaced([(module, name, spy(name, getattr(module, name))) for module, name in PROGRAMS]):
        yield


@contextmanager
def laid(parts: int, whole: list[str]) -> Any:
    """Notes what of a wave's own arrays, as they are made, a device has more of than its own rows."""

    def spy(name: str, function: Any) -> Any:
        def called(*arguments: Any, **options: Any) -> Any:
            made = function(*arguments, **options)
            for keys, leaf in jax.tree_util.tree_leaves_with_path(made):
                if any(len(shard.data) * parts != len(leaf) for shard in leaf.addressable_shards):
                    whole.append(f"{name}{jax.tree_util.keystr(keys)}")
            return made

        return called

    own = ((waves, "init_wave"), (Layout, "stack"))
    with replaced([(owner, name, spy(name, getattr(owner, name))) for owner, name in own]):
        yield


def runs(model: Any, int8: Any, out: Path, guided: bool) -> dict[str, list[Any]]:
    """Records of runs, kept in `out`, that take every program: both scopes, a base in int8 where there is one, and
    guided calls where asked for."""
    suffix = settings(wave=WAVE)
    suffix = replace(suffix, adapt=replace(suffix.adapt, measure=("kl",)))
    whole = settings(scope="all", wave=WAVE)
    configs = {"suffix": suffix, "all": replace(whole, adapt=replace(whole.adapt, save=True))}
    if guided:
        answers = AnswerConfig(form="guided", max_tokens=24)
        configs["guided"] = settings(method="base", answer=answers, wave=WAVE)
    found = {name: run(model, TASK, config, out=out / name).records for name, config in configs.items()}
    if int8 is not None:
        found["int8"] = run(int8, TASK, settings(method="base", wave=WAVE)).records
    return {name: [asdict(timeless(record)) for record in records] for name, records in found.items()}


def main(path: str, out: str, guided: str = "") -> None:
    """Keeps runs in the directory `out`, and what was found in its `found.json`."""
    kept = Path(out)
    one = runs(load_model(path), load_model(path, dtype="int8"), kept / "one", bool(guided))
    found: dict[str, Any] = {"one": {"records": one}}
    for text in MESHES:
        mesh = make_mesh(text, WAVE)
        assert mesh is not None
        model = load_model(path, mesh=mesh)
        int8 = load_model(path, dtype="int8", mesh=mesh) if text in MORE else None
        programs: dict[str, Any] = {}
        whole: list[str] = []
        with collectives(mesh.shape[FSDP] * mesh.shape[MODEL], programs), laid(mesh.size // mesh.shape[MODEL], whole):
            records = runs(model, int8, kept / text, bool(guided) and text in MORE)
        shards = defaultdict(dict)
        for keys, leaf in jax.tree_util.tree_leaves_with_path(model.params):
            name = ".".join(str(key.key) for key in keys)
            shards[name] = {"whole": leaf.shape, "part": leaf.addressable_shards[0].data.shape}
        own = {"records": records, "programs": programs, "shards": shards, "shape": dict(mesh.shape)}
        found[text] = own | {"whole": whole}
        jax.clear_caches()
    (kept / "found.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
