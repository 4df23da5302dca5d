"""The compiled programs of a run, with shapes in the place of arrays: what can be lowered or compiled without a model.

They are the functions that `ttsi_jax.batching` calls, with the arguments that it gives them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from ttsi_jax.adaptation import AdaptConfig, init_wave
from ttsi_jax.answering import BOOLEAN
from ttsi_jax.batching.memory import training_chunk
from ttsi_jax.batching.waves import Shape, adapt_and_score, prefill_rows
from ttsi_jax.model.config import DecoderConfig
from ttsi_jax.model.decoder import Params, Tokens, abstract_params
from ttsi_jax.model.generation import Arrivals, Rows, Sampling, Script, SlotTables, decode_wave, nothing_decoding
from ttsi_jax.model.scoring import Candidates, prefill_wave, score_wave
from ttsi_jax.rules.interface import Batch, Loss, UpdateRule
from ttsi_jax.scaling.mesh import Layout, param_shardings, put, put_weight

SCOPES = ("all", "suffix")


class Sizes(NamedTuple):
    """What the inputs of a wave are padded to."""

    wave: int  # inputs, E
    shape: Shape
    sequence: int  # tokens of a training sequence after the prefix
    trained: int  # of them, those that the loss is on
    decoded: int  # most tokens of an answer


class Program(NamedTuple):
    """A jitted function, with a `jax.ShapeDtypeStruct` for each array that a run gives it."""

    function: Any
    arguments: tuple[Any, ...]
    options: dict[str, Any]

    def trace(self) -> Any:
        return self.function.trace(*self.arguments, **self.options)

    def result(self) -> Any:
        """The shapes of what it returns."""
        plain = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype)  # noqa: E731
        return jax.tree.map(plain, self.trace().out_info)

    def placed(self, mesh: Mesh) -> Program:
        """The same with every array where a run on this mesh has it."""
        config, *arrays = self.arguments
        return self._replace(arguments=(config, *placed(config, mesh, *arrays)))


def placed(config: DecoderConfig, mesh: Mesh, params: Params, *others: Any) -> tuple[Any, ...]:
    """Shapes with where the arrays of a run on a mesh lie: the base, and what a program takes after it."""
    layout = Layout(config, mesh)

    def place(x: Any) -> Any:
        if isinstance(x, SlotTables) or getattr(x, "shape", None) == ():
            return put(x, NamedSharding(mesh, PartitionSpec()))
        return layout.rows(x) if any(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(x)) else x

    base = jax.tree.map(lambda where, weight: put_weight(weight, where), param_shardings(config, mesh), params)
    return base, *map(place, others)


def run_programs(
    config: DecoderConfig,
    dtype: Any,
    sizes: Sizes,
    settings: AdaptConfig,
    rule: UpdateRule,
    loss: Loss,
    scopes: Sequence[str] = SCOPES,
    max_pairs: int = 1,
    mesh: Mesh | None = None,
) -> dict[str, Program]:
    """Every program that a run compiles for one length bucket, by the name of what it does.

    Args:
        config: the decoder's shape.
        dtype: of the base.
        sizes: of the wave.
        settings: of training; `scope` is taken from `scopes`.
        rule: the update rule.
        loss: one that needs nothing of a batch but the pair.
        scopes: of the adapters.
        max_pairs: pairs of an input, K.
        mesh: that the wave is divided over.
    """
    wave, shape, layout = sizes.wave, sizes.shape, Layout(config, mesh)
    own_rows = wave // layout.parts
    n_prefixes = prefill_rows(own_rows) * layout.parts
    params = abstract_params(config, dtype)
    found = {"prefill": Program(prefill_wave, (config, params, _ints(n_prefixes, shape.prefix), _ints(n_prefixes)), {})}
    prefixes = jax.tree.map(lambda x: _array((wave, *x.shape[1:]), x.dtype), found["prefill"].result())
    prompts = {
        "all": (_tokens(wave, shape.prefix + shape.suffix), ()),
        "suffix": (_tokens(wave, shape.suffix), (prefixes,)),
    }
    candidates = Candidates(_ints(wave, shape.candidates, shape.name), _ints(wave, shape.candidates))

    tokens, past = prompts["suffix"]
    read = (config, params, tokens, _ints(wave), candidates, past, None)
    found["score"] = Program(score_wave, read, {"scale": 1.0})
    rows = Rows(found["score"].result().prompted, past, None)
    found["decode"] = _decoding(config, params, rows, sizes.decoded, 1.0)
    for scope in scopes:
        tokens, past = prompts[scope]
        whole = scope == "all"
        length = sizes.sequence + shape.prefix * whole
        n_past = 0 if whole else shape.prefix
        chunk, remat = training_chunk(layout.share, settings, own_rows, length, n_past, sizes.trained, recomputes=True)
        keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), wave))
        adapters, states = jax.eval_shape(
            lambda keys, n_steps: init_wave(keys, config, settings.lora, rule, n_steps), keys, _ints(wave)
        )
        trained = (wave, max_pairs, sizes.trained)
        batches = Batch(
            _tokens(wave, max_pairs, length), _ints(*trained), _ints(*trained), _array(trained, jnp.float32)
        )
        arguments = (
            config, params, rule.step, loss, adapters, states, batches, _ints(wave), _ints(wave), keys, tokens,
            _ints(wave), candidates, past, None, None,
        )  # fmt: skip
        how = {"max_steps": settings.epochs * max_pairs, "scale": settings.lora.scale, "chunk": chunk, "remat": remat}
        how |= {"stop_below": -math.inf}
        found[f"adapt, {scope}"] = Program(adapt_and_score, arguments, how)
        adapters, _, _, scored = found[f"adapt, {scope}"].result()
        rows = Rows(scored.prompted, past, adapters)
        found[f"decode, {scope}"] = _decoding(config, params, rows, sizes.decoded, settings.lora.scale)
    return found


def _decoding(config: DecoderConfig, params: Any, rows: Rows, n_steps: int, scale: float) -> Program:
    """Lanes that decode rows of these shapes."""
    wave = rows.prompts.position.shape[0]
    lanes = jax.eval_shape(lambda rows: nothing_decoding(rows, n_steps, n_steps), rows)
    slots = _ints(wave, n_steps)
    script = Script(slots, slots, slots, _ints(wave))
    table = lambda dtype: _array((BOOLEAN, config.vocab_size), dtype)  # noqa: E731
    tables = SlotTables(table(jnp.int8), table(jnp.bool_), table(jnp.bool_))
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), wave))
    sampling = Sampling(_array((wave,), jnp.float32), _array((wave,), jnp.float32))
    arrivals = Arrivals(rows, _ints(wave), _ints(wave))
    arguments = (config, params, lanes, arrivals, script, tables, keys, sampling, _ints(), ())
    return Program(decode_wave, arguments, {"scale": scale})


def _array(shape: tuple[int, ...], dtype: Any) -> Any:
    return jax.ShapeDtypeStruct(shape, dtype)


def _ints(*shape: int) -> Any:
    return _array(shape, jnp.int32)


def _tokens(*shape: int) -> Tokens:
    return Tokens(_ints(*shape), _ints(*shape), _ints(*shape))
