"""What a run takes on one device, by a formula, and the largest wave that a budget holds.

The formula counts arrays, and the compiler's intermediate values, at the fullest moment that the schedule comes to.
Where something cannot be known beforehand it takes the larger: what training keeps counts as float32, its sequences as
twice as long as a prompt after its prefix. What the runtime and the host take is not in it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh

from ttsi_jax.adaptation import AdaptConfig
from ttsi_jax.batching.inputs import Draft, assign_shapes, channel_shape, passes, prepare
from ttsi_jax.batching.memory import adapter_size, training_bytes
from ttsi_jax.batching.waves import ANSWER_SIZES, PREFIX_MEMORY, Shape, bucket, prefill_rows
from ttsi_jax.checkpoints import LanguageModel
from ttsi_jax.config import Parts, RunConfig
from ttsi_jax.errors import InputError
from ttsi_jax.model.attention import QUERIES
from ttsi_jax.model.config import DecoderConfig
from ttsi_jax.model.decoder import Params, abstract_params
from ttsi_jax.model.lora import init_adapter
from ttsi_jax.model.quantized import Quantized
from ttsi_jax.rules.interface import UpdateRule, needed
from ttsi_jax.runs.directory import CONFIG, read_config, setting
from ttsi_jax.scaling.mesh import AXES, Layout, check_wave, device_bytes
from ttsi_jax.scaling.programs import Sizes, placed
from ttsi_jax.tasks import Task
from ttsi_jax.tasks.prompts import PromptEncoder

GIB = 2**30
LARGEST = 64  # rows of a wave on one device
TRAINED = 1024  # tokens that train at a time, where a wave has them: fewer leave a device idle
KEPT_WAVES = 3  # waves of prefix caches that are kept: as many are under way
READ_WAVES = 2  # that were read with the same weights and still decode


class Takes(NamedTuple):
    """Bytes on one device at a run's fullest moment."""

    weights: float
    prefixes: float  # caches that are kept
    prompts: float  # waves that were read: caches, logits, adapters
    lanes: float  # the same of rows that decode, and what they were fed
    states: float  # adapters and optimizer states of a wave in training
    programs: float  # intermediate values and results of the largest program

    @property
    def total(self) -> float:
        return sum(self)

    def __str__(self) -> str:
        shares = (f"{name} {value / GIB:.3g}" for name, value in self._asdict().items() if value)
        return f"{self.total / GIB:.3g} GiB ({', '.join(shares)})"


class Fitted(NamedTuple):
    """A run within its budget."""

    config: RunConfig  # with the wave, and the memory of training
    prefix_memory: float  # GiB for prefix caches that are kept
    takes: Takes


class Base(NamedTuple):
    """What of a model decides how much a run with it takes on one device."""

    config: DecoderConfig  # of what the device computes: with its share of the heads, the MLP and the vocabulary
    parts: int  # that a wave is divided into; each keeps the prefixes of all of them
    weights: int  # bytes
    converted: int  # bytes of weights that the compiler keeps in float32 besides, for a program
    copied: int  # the same in training, with those that it keeps transposed
    itemsize: int  # of caches
    width: int  # bytes of an intermediate value: XLA's compiler for CPUs computes in float32
    gathered: int  # bytes of weights that `fsdp` makes whole for a program: a layer's, and the vocabulary's
    on_cpu: bool


def within(
    memory: float | None,
    model: LanguageModel,
    task: Task,
    layout: Layout,
    config: RunConfig,
    parts: Parts,
    out: str | PathLike[str] | None,
    tell: Callable[[str], None],
    n_passes: int | None = None,
) -> tuple[RunConfig, float, dict[str, float] | None]:
    """A run's configuration with the wave and the memory of training that `memory` GiB on each device hold; how many
    GiB of prefix caches it keeps, and the formula's bytes for `environment.json`.

    All inputs of the task decide, so that shards agree. A run that is in the directory `out` goes on with what it began
    with. Without `memory` all is as the configuration says.

    Raises:
        InputError: see `fit` and `check_wave`, or the memory is no number above 0.
    """
    if memory is None:
        check_wave(config.wave, layout.parts)
        return config, PREFIX_MEMORY, None
    if not 0 < memory < math.inf:
        raise InputError(f"--memory is {memory}; it must be above 0")
    recorded = read_config(Path(out)) if out is not None and (Path(out) / CONFIG).exists() else {}
    wave, training = recorded.get("wave"), setting(recorded, "adapt.memory")
    begun = False  # what lacks one of the two is refused as another run
    if isinstance(wave, int) and wave > 0 and isinstance(training, int | float):
        begun, config = True, replace(config, wave=wave, adapt=replace(config.adapt, memory=training))
        check_wave(config.wave, layout.parts)
    encoder, length = PromptEncoder(model.tokenizer), model.config.context_length
    prepared = (prepare(one, task.name, encoder, config, length, parts.synthesizer) for one in task.examples)
    drafts = [draft for draft in prepared if isinstance(draft, Draft)]
    found = fit(model, layout, config, parts, drafts, memory, begun, n_passes)
    tell(f"--memory {memory:g}: waves of {found.config.wave}, which take up to {found.takes} on each device")
    return found.config, found.prefix_memory, {"budget": memory * GIB, **found.takes._asdict()}


def fit(
    model: LanguageModel,
    layout: Layout,
    config: RunConfig,
    parts: Parts,
    drafts: Sequence[Draft],
    memory: float,
    begun: bool = False,
    n_passes: int | None = None,
) -> Fitted:
    """The largest wave with which a run over these inputs takes at most `memory` GiB on each device, and what of that
    training may take.

    A wave has a power of two of rows on each part of the devices, up to `LARGEST` or what takes all inputs at once.

    Args:
        begun: keeps the wave and the memory of training in `config`: those of a run that goes on.
        n_passes: see `ttsi_jax.loop.run`.

    Raises:
        InputError: the memory is too little for one row on each part, or for what has begun.
    """
    base, found = base_of(model.params, layout), None
    most = 1 if config.adapt.reset == "never" else min(LARGEST, bucket(-(-len(drafts) // layout.parts), 1))
    every = [config.wave // layout.parts] if begun else [1 << power for power in range(most.bit_length())]
    for rows in every:
        wave = rows * layout.parts
        assign_shapes(drafts, wave, n_passes or passes(config))
        now = _fitted(base, replace(config, wave=wave), parts, drafts, rows, memory * GIB, begun)
        if now.takes.total > memory * GIB:
            if found is None:
                raise InputError(f"--memory {memory:g} is too little: a wave of {wave} takes up to {now.takes}")
            break
        found = now
    assert found is not None
    return found


def base_on(config: DecoderConfig, dtype: Any, mesh: tuple[int, int, int]) -> Base:
    """On a mesh of accelerators with these sizes of its axes, none of which has to be there; `dtype`: see
    `abstract_params`."""
    devices: Any = AbstractMesh(mesh, AXES)
    params, *_ = placed(config, devices, abstract_params(config, dtype))
    return base_of(params, Layout(config, devices), on_cpu=False)


def base_of(params: Params, layout: Layout, on_cpu: bool | None = None) -> Base:
    """Measured on the weights as they lie on the devices."""
    on_cpu = jax.default_backend() == "cpu" if on_cpu is None else on_cpu
    n_fsdp = (layout.shape or {}).get("fsdp", 1)
    together = [params["layers"][0], params["embed"], params.get("head")]
    itemsize = jnp.dtype(params["embed"].dtype).itemsize
    return Base(
        layout.share,
        layout.parts,
        sum(map(device_bytes, jax.tree.leaves(params))),
        *(_copies(params) if on_cpu else (0, 0)),
        itemsize,
        width=4 if on_cpu else itemsize,
        gathered=n_fsdp * sum(map(device_bytes, jax.tree.leaves(together))) if n_fsdp > 1 else 0,
        on_cpu=on_cpu,
    )


def _copies(params: Params) -> tuple[int, int]:
    """XLA's compiler for CPUs takes what it makes of weights out of a program's loop, and keeps it: float32 of other
    dtypes, and for training the layers' matrices transposed. Those for accelerators do not."""
    is_int8 = lambda x: isinstance(x, Quantized)  # noqa: E731

    def in_float(tree: Any) -> int:
        values = (x.values if is_int8(x) else x for x in jax.tree.leaves(tree, is_leaf=is_int8))
        return sum(4 * device_bytes(x) // x.dtype.itemsize for x in values if x.ndim == 2)

    if is_int8(params["embed"]) or params["embed"].dtype != jnp.float32:
        return in_float(params), in_float(params)
    return 0, in_float(params["layers"])


def _fitted(
    base: Base, config: RunConfig, parts: Parts, drafts: Sequence[Draft], rows: int, budget: float, begun: bool
) -> Fitted:
    """The run with so many rows on each part of the devices, whether it fits or not."""
    sizes = {prefix: draft.shape.prefix for draft in drafts for prefix in (draft.prefix, *draft.orders)}
    cached = [cache_bytes(base, size) for size in sizes.values()]
    kept = min(PREFIX_MEMORY * GIB, sum(cached), KEPT_WAVES * base.parts * rows * max(cached, default=0))
    channel = largest_of_channel(drafts, config)
    runs = [moments(base, config, parts, shape, rows, kept, channel) for shape in {draft.shape for draft in drafts}]
    training = config.adapt.memory * GIB if begun else min((budget - run.beside for run in runs), default=0.0)
    nothing = Takes(base.weights, 0, 0, 0, 0, 0)  # but the weights, where no input can run
    takes = max((run.with_training(training) for run in runs), key=lambda takes: takes.total, default=nothing)
    if trains(config) and not begun:  # rounded down, so that a run which goes on takes no more than it began with
        config = replace(config, adapt=replace(config.adapt, memory=max(training // 1024, 1) / 2**20))
    return Fitted(config, kept / GIB, takes)


def largest_of_channel(drafts: Sequence[Draft], config: RunConfig) -> Shape | None:
    """What the longest function and requests in the noisy channel are padded to, where it is asked."""
    channels = [draft.channel for draft in drafts if draft.channel.prompts]
    if not channels:
        return None
    checks = "channel" in config.synthesis.checks and config.method != "base"
    written, most = (config.synthesis.max_tokens, config.synthesis.candidates) if checks else (0, 1)
    request = max(written, *(channel.n_request for channel in channels))
    return channel_shape(channels[0], channels[0].prompts[0][0], channels[0].sizes[-1], request, most)


def trains(config: RunConfig) -> bool:
    return config.method in ("tt-si", "tt-d")


class Moments(NamedTuple):
    """Bytes of a run over inputs of one shape."""

    arrays: Takes  # that are there at any moment
    others: float  # of the largest program that does not train
    states: float  # in training
    fixed: float  # of the training program, whatever its chunk is
    chunks: tuple[float, float]  # of its chunk, and of the reading that follows it: the least and the most

    @property
    def beside(self) -> float:
        """All but the chunk, in training."""
        return self.arrays.total + self.states + self.fixed

    def with_training(self, chunk: float) -> Takes:
        """At the fullest moment, with so much for a chunk."""
        least, most = self.chunks
        training = self.fixed + min(max(chunk, least), most)
        if self.others > self.states + training:
            return self.arrays._replace(programs=self.others)
        return self.arrays._replace(states=self.states, programs=training)


def moments(
    base: Base,
    config: RunConfig,
    parts: Parts,
    shape: Shape,
    rows: int,
    kept: float | None = None,
    channel: Shape | None = None,
) -> Moments:
    """By what `ttsi_jax.batching` has at a time: waves that were read, rows that decode, and one program.

    Args:
        kept: bytes of prefix caches; by default as many as a run with such prefixes keeps.
        channel: the largest shape of the noisy channel, where it is asked.
    """
    settings, whole = config.adapt, config.adapt.scope == "all"
    shows = config.method in ("tt-icl", "icl")  # pairs before the request
    read = shape._replace(suffix=bucket((1 + config.synthesis.k) * shape.suffix, shape.suffix)) if shows else shape
    sizes = Sizes(rows, read, bucket(shape.suffix + ANSWER_SIZES, shape.suffix), ANSWER_SIZES, config.n_decoded)
    state = state_bytes(base.config, settings, parts.rule) if trains(config) else 0
    extras = needed(parts.loss)
    n_sequences = 1 + ("rejected" in extras) + settings.samples * ("samples" in extras)
    of = temporaries(base, settings, state, sizes, n_sequences)

    adapter, scores = 4 * adapter_size(base.config, settings.lora), 4 * base.config.vocab_size
    prefix = cache_bytes(base, shape.prefix)
    kept = min(PREFIX_MEMORY * GIB, KEPT_WAVES * base.parts * rows * prefix) if kept is None else kept
    own_prefix = 0 if shape.common else prefix
    row = own_prefix + cache_bytes(base, read.suffix) + scores + (adapter if settings.start else 0)
    adapted = (cache_bytes(base, shape.prefix + shape.suffix) if whole else row - scores) + scores + adapter
    kinds = [row] * (1 + shows + (config.answer.form == "guided")) + [adapted] * trains(config)  # lanes of their own
    prompts = READ_WAVES * config.answer.orders * rows * (row + adapted * trains(config))
    lanes = rows * sum(own + cache_bytes(base, config.n_decoded) for own in kinds)
    arrays = Takes(base.weights, kept, prompts, lanes, 0, 0)
    more = max(0, base.parts * rows * own_prefix - kept)  # while a wave is put together, all of its prefixes are there
    gathering = rows * own_prefix + more + (1 + base.parts) * prefill_rows(rows) * prefix + of.prefill
    watched = shape._replace(candidates=1, name=ANSWER_SIZES, suffix=sizes.sequence)  # a pair that is not trained on
    held_out = temporaries(base, settings, 0, sizes._replace(shape=watched)) if config.synthesis.held_out else of
    asked = temporaries(base, settings, 0, sizes._replace(shape=channel)).score if channel else 0
    kl = 4 * scores * shape.suffix if "kl" in (*settings.accept, *settings.measure) else 0  # of one row's logits
    others = (
        max(gathering, of.score, of.decode, asked, held_out.score, held_out.reading * trains(config), kl)
        + base.converted
        + base.gathered
    )
    if not trains(config):
        return Moments(arrays, others, 0, 0, (0, 0))
    n_trained = sizes.sequence + shape.prefix * whole
    least = min(rows, max(1, TRAINED // n_trained))
    chunks = max(least * of.example, of.reading), max(rows * of.whole_example, of.reading)
    return Moments(arrays, others, rows * (adapter + state), of.training, chunks)


class Temporaries(NamedTuple):
    """Bytes of the intermediate values of a run's programs (see `ttsi_jax.scaling.programs`)."""

    prefill: float
    score: float
    decode: float
    training: float  # of training, but for what its chunk keeps
    example: float  # that each example of a chunk keeps
    whole_example: float  # the same without layers that are computed again
    reading: float  # of the reading that follows training, when the chunk is gone

    def adapt(self, chunk: int) -> float:
        """Of training with so many examples at a time."""
        return self.training + max(chunk * self.example, self.reading)


def temporaries(
    base: Base, settings: AdaptConfig, state: int, sizes: Sizes, n_sequences: int = 1, remat: bool | None = None
) -> Temporaries:
    """Of the programs for a wave of these sizes, with `state` bytes of a rule's state for each adapter."""
    remat = not base.on_cpu if remat is None else remat
    rows, shape, whole = sizes.wave, sizes.shape, settings.scope == "all"
    n_names, n_past = shape.candidates * shape.name, 0 if whole else shape.prefix
    read = partial(reading_bytes, base, n_name=shape.name)
    own_past = 0 if whole or shape.common else cache_bytes(base, shape.prefix)
    length = sizes.sequence + shape.prefix - n_past
    seen = shape.prefix + shape.suffix + sizes.decoded  # by a token that is decoded
    # What goes through the loop over chunks and comes out of it: on accelerators in place, but for the past.
    through_loop = 8 * adapter_size(base.config, settings.lora) + state + 2 * own_past if base.on_cpu else own_past
    keeps = partial(training_bytes, base.config, settings, length, n_past, sizes.trained, n_sequences)
    return Temporaries(
        prefill=prefill_rows(rows) * read(shape.prefix, 0),
        score=rows * read(shape.suffix + n_names, shape.prefix),
        decode=rows * (20 * base.config.vocab_size + 6 * base.config.n_heads * seen + cache_bytes(base, sizes.decoded)),
        training=base.copied + base.gathered + rows * through_loop,
        example=keeps(remat),
        whole_example=keeps(),
        reading=rows * read(shape.suffix + n_names + shape.prefix - n_past, n_past),
    )


def cache_bytes(base: Base, n_tokens: int) -> int:
    """Of one sequence's keys and values, positions and segments."""
    config = base.config
    numbers = 2 * config.n_layers * config.n_kv_heads * config.head_dim
    return n_tokens * (numbers * base.itemsize + 8)


def reading_bytes(base: Base, n_tokens: int, n_past: int, n_name: int) -> float:
    """The intermediate values of reading one prompt, and its new cache: of one layer the MLP's and the stream, and one
    part of the queries' scores and exponentials; or the logits of one candidate. On accelerators the new keys and
    values are there in two more layouts."""
    config = base.config
    layer = n_tokens * (3 * config.mlp_size + 2 * config.hidden_size)
    scores = config.n_heads * min(n_tokens, QUERIES) * (n_tokens + n_past)
    computed, logits = base.width * layer + 6 * scores, 8 * (n_name + 2) * config.vocab_size
    cache = cache_bytes(base, n_tokens)
    return max(computed + cache, logits) if base.on_cpu else max(computed, logits) + 3 * cache


def state_bytes(config: DecoderConfig, settings: AdaptConfig, rule: UpdateRule) -> int:
    """Of a rule's state for one adapter."""
    state = jax.eval_shape(
        lambda key: rule.init(init_adapter(key, config, settings.lora), jnp.int32(1)), jax.eval_shape(jax.random.key, 0)
    )
    return sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(state))
