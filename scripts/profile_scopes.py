"""The paper's steps in a JAX profile: seconds per named scope of one wave, as a table and a picture.

    python scripts/profile_scopes.py --plot docs/profile.png

The profiler's trace names every executed operation by its name in the compiled program; the program's text says under
which scopes each was written. The script runs a wave's programs once to compile them, traces a second time, and adds up
the times of the operations by scope. Only operations on the compute threads count, and loops only by their bodies.
"""

from __future__ import annotations

import gzip
import json
import re
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from rich.console import Console
from rich.table import Table

import ttsi_jax as ttsi
from benchmarking import choose_platform, told
from ttsi_jax.adaptation import adapt_wave, init_wave
from ttsi_jax.model.decoder import tokens_after
from ttsi_jax.model.generation import Arrivals, Rows, Sampling, Script, SlotTables, decode_wave, nothing_decoding
from ttsi_jax.model.scoring import Candidates, prefill_wave, score_wave
from ttsi_jax.rules.interface import Batch

STAGES = ("prefill", "score", "decode", "adapt")
PARTS = ("attention", "mlp", "logits")


@dataclass(frozen=True)
class Settings:
    """Profile one wave.

    Attributes:
        model: as for `ttsi-jax run`, or `tiny`.
        inputs: rows of the wave.
        prefix: tokens of the shared prefix.
        suffix: tokens after it.
        decoded: tokens that each row decodes.
        steps: training steps.
        plot: file for the picture (needs the extra `report`).
        trace: folder to keep the profiler's trace in.
        platform: cpu, gpu or tpu; by default what JAX finds.
    """

    model: str = "smollm2-135m-instruct"
    inputs: int = 4
    prefix: int = 256
    suffix: int = 96
    decoded: int = 16
    steps: int = 3
    plot: Path | None = None
    trace: Path | None = None
    platform: str | None = None


def programs(model: ttsi.LanguageModel, s: Settings) -> dict[str, tuple[Any, tuple[Any, ...], dict[str, Any]]]:
    """The four programs of a wave with arguments of the given sizes: stage -> (jitted function, args, settings)."""
    config, params = model.config, model.params
    rng = np.random.default_rng(0)
    ids = jnp.asarray(rng.integers(3, config.vocab_size, (s.inputs, s.prefix + s.suffix)), jnp.int32)
    keys = jax.random.split(jax.random.key(0), s.inputs)
    prefixes = (ids[:, : s.prefix], jnp.full(s.inputs, s.prefix))
    past = (prefill_wave(config, params, *prefixes),)
    prompts = jax.vmap(lambda x: tokens_after(x, jnp.int32(s.suffix), s.prefix))(ids[:, s.prefix :])
    names = Candidates(ids[:, :24].reshape(s.inputs, 4, 6), jnp.full((s.inputs, 4), 6))
    scoring = (config, params, prompts, jnp.full(s.inputs, s.suffix), names, past)
    prompted = score_wave(*scoring).prompted
    free = jnp.ones((s.inputs, 1), jnp.int32)
    script = Script(free, 0 * free, s.decoded * free, free[:, 0])
    anything = jnp.ones((1, config.vocab_size), bool)
    tables = SlotTables(jnp.zeros((1, config.vocab_size), jnp.int8), anything, anything)
    rows, everyone, n = Rows(prompted, past), jnp.arange(s.inputs), jnp.int32(s.inputs)
    lanes, greedy = nothing_decoding(rows, s.decoded, 1), Sampling(jnp.zeros(s.inputs), jnp.ones(s.inputs))
    decoding = (config, params, lanes, Arrivals(rows, everyone, everyone), script, tables, keys, greedy, n)
    index = s.suffix // 2 + jnp.tile(jnp.arange(s.suffix // 2 - 1), (s.inputs, 1))
    labels = jnp.take_along_axis(ids[:, s.prefix :], index + 1, axis=1)
    batch = Batch(prompts, index, labels, jnp.ones(index.shape))
    rule, lora, n_steps = ttsi.adamw(), ttsi.LoraConfig(), jnp.full(s.inputs, s.steps)
    adapters, states = init_wave(keys, config, lora, rule, n_steps)
    pairs = jax.tree.map(lambda x: x[:, None], batch)
    training = (config, params, rule.step, ttsi.answer_cross_entropy, adapters, states, pairs, n_steps // s.steps,
                n_steps, keys, past)  # fmt: skip
    return {
        "prefill": (prefill_wave, (config, params, *prefixes), {}),
        "score": (score_wave, scoring, {}),
        "decode": (decode_wave, decoding, {}),
        "adapt": (adapt_wave, training, {"max_steps": s.steps, "scale": lora.scale, "chunk": s.inputs}),
    }


def scopes_of(text: str) -> dict[str, str]:
    """The scope of every operation in a compiled program's text, such as `jit(adapt_wave)/adapt/while/body/mlp/...`."""
    found = re.findall(r"^\s*(?:ROOT )?%?([\w.\-]+) = .*?op_name=\"([^\"]*)\"", text, flags=re.MULTILINE)
    return dict(found)


def traced_seconds(directory: Path) -> Counter[tuple[str, str]]:
    """Seconds by module and operation in the newest trace of a folder."""
    [file] = sorted(directory.glob("plugins/profile/*/*.trace.json.gz"))[-1:]
    events = json.loads(gzip.decompress(file.read_bytes()))["traceEvents"]
    total: Counter[tuple[str, str]] = Counter()
    for event in events:
        details = event.get("args", {})
        if event.get("ph") == "X" and "hlo_op" in details:
            total[details.get("hlo_module", ""), details["hlo_op"]] += event["dur"] / 1e6
    return total


def _copied(args: Any) -> Any:
    """Arguments that may be donated."""
    return jax.tree.map(lambda x: x.copy() if isinstance(x, jax.Array) else x, args)


def measure(s: Settings) -> dict[str, Counter[str]]:
    """Seconds by stage and part of a layer."""
    model = ttsi.tiny_language_model() if s.model == "tiny" else ttsi.load_model(s.model)
    result: dict[str, Counter[str]] = {}
    for stage, (function, args, how) in programs(model, s).items():
        compiled = function.lower(*args, **how).compile()
        scopes = scopes_of(compiled.as_text() or "")
        dynamic = tuple(x for x in args if x is not model.config and not callable(x))
        jax.block_until_ready(compiled(*_copied(dynamic)))
        again = jax.block_until_ready(_copied(dynamic))
        folder = (s.trace or Path(tempfile.mkdtemp())) / stage
        with jax.profiler.trace(str(folder)):
            jax.block_until_ready(compiled(*again))
        parts: Counter[str] = Counter()
        for (_, operation), seconds in traced_seconds(folder).items():
            scope = scopes.get(operation, "")
            if re.search(r"(^|/)(while|cond)$", scope) or operation.startswith(("while", "conditional", "call")):
                continue  # its body's operations are there themselves
            parts[next((part for part in PARTS if part in scope), "other")] += seconds
        result[stage] = parts
    return result


def plot(result: dict[str, Counter[str]], path: Path, title: str) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=(7.5, 2.8))
    left = np.zeros(len(result))
    for part in (*PARTS, "other"):
        widths = np.array([own[part] for own in result.values()])
        axis.barh(list(result), widths, left=left, label=part)
        left += widths
    axis.invert_yaxis()
    axis.set(xlabel="seconds of operations (all threads)", title=title)
    axis.legend(fontsize="small")
    figure.tight_layout()
    figure.savefig(path, dpi=90)


@told
def main(argv: Sequence[str] | None = None) -> int:
    settings = tyro.cli(Settings, args=list(sys.argv[1:] if argv is None else argv))
    choose_platform(settings.platform)
    result = measure(settings)
    title = f"{settings.model}: {settings.inputs} inputs, {settings.prefix} + {settings.suffix} tokens"
    shown = Table(title=f"{title}, {settings.decoded} decoded, {settings.steps} training steps")
    for column in ("scope", *PARTS, "other", "all"):
        shown.add_column(column, justify="left" if column == "scope" else "right")
    for stage, parts in result.items():
        values = [parts[part] for part in (*PARTS, "other")]
        shown.add_row(stage, *(f"{value:.2f}" for value in (*values, sum(values))))
    Console().print(shown)
    if settings.plot:
        plot(result, settings.plot, title)
    return 0


if __name__ == "__main__":
    sys.exit(main())
