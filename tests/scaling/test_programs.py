"""The programs of a run without its arrays: they are the ones that a run compiles, and every platform takes them."""

from typing import Any

import jax
import jax.numpy as jnp
import pytest

from tpu_pieces import Flops, pieces
from ttsi_jax.adaptation import AdaptConfig
from ttsi_jax.batching import lanes, waves
from ttsi_jax.batching.divergence import prompt_kl_wave
from ttsi_jax.batching.waves import training_shape
from ttsi_jax.guided.decoding import admit, append, mask_and_sample, no_lanes, read_tokens
from ttsi_jax.model.generation import nothing_decoding
from ttsi_jax.model.quantized import Int8
from ttsi_jax.rules import adamw, answer_cross_entropy
from ttsi_jax.scaling.programs import Program, Sizes, run_programs
from workload import Clock, JaxSide, Work, load, make_inputs

WORK = Work(prefix=40, suffix=16, trained=4, synthesis=4, answer=4, candidates=3, name=3)
WAVE = 2
SIDE = JaxSide(load("", "tiny", None)[1], WORK, WAVE)
INPUTS = make_inputs(WORK, SIDE.waves.model, "random", 0, WAVE)
CONFIG = SIDE.waves.model.config
NAMES = ("prefill", "score", "decode", "adapt, all", "decode, all", "adapt, suffix", "decode, suffix")


def sizes() -> Sizes:
    return Sizes(WAVE, SIDE.shape(), *training_shape(SIDE.shape(), [[one.pair] for one in INPUTS]), WORK.answer)


PROGRAMS = run_programs(
    CONFIG, jnp.float32, sizes(), AdaptConfig(epochs=WORK.steps), adamw(WORK.lr), answer_cross_entropy
)


def signature(arguments: tuple, options: dict[str, Any]) -> tuple:
    """What decides whether a program is compiled anew."""
    leaves, tree = jax.tree.flatten((arguments, options))
    described = [(x.shape, str(x.dtype), getattr(x, "weak_type", False)) if hasattr(x, "dtype") else x for x in leaves]
    return str(tree), tuple(described)


def test_they_are_what_a_run_compiles(monkeypatch):
    called = []
    for module, name in (
        (waves, "prefill_wave"), (waves, "score_wave"), (waves, "adapt_and_score"), (lanes, "decode_wave"),
    ):  # fmt: skip
        function = getattr(module, name)

        def spied(*arguments: Any, _function: Any = function, **options: Any) -> Any:
            if not any(isinstance(x, jax.core.Tracer) for x in jax.tree.leaves(arguments)):  # not from within another
                called.append((_function.__name__, signature(arguments, options)))
            return _function(*arguments, **options)

        monkeypatch.setattr(module, name, spied)
    SIDE.improve(INPUTS, Clock())
    expected = {(p.function.__name__, signature(p.arguments, p.options)) for p in PROGRAMS.values()}
    assert tuple(PROGRAMS) == NAMES and len(expected) == len(NAMES)
    assert set(called) == expected


@pytest.mark.parametrize("name", NAMES)
def test_every_platform_takes_them(name):
    lowered = PROGRAMS[name].trace().lower(lowering_platforms=("tpu", "cuda", "cpu"))
    assert "mhlo.num_partitions" in lowered.as_text()


@pytest.mark.parametrize("group", [None, 16])
def test_every_platform_takes_them_with_a_base_in_int8(group):
    programs = run_programs(
        CONFIG, Int8(jnp.bfloat16, group), sizes(), AdaptConfig(epochs=WORK.steps), adamw(WORK.lr),
        answer_cross_entropy, ("suffix",),
    )  # fmt: skip
    for name in ("decode", "adapt, suffix"):
        programs[name].trace().lower(lowering_platforms=("tpu", "cuda", "cpu"))
    assert programs["prefill"].result().keys[0].dtype == jnp.bfloat16


def test_every_platform_takes_what_options_add_to_them():
    """Several pairs, an adapter to start from, a pair that is held out; how far an adapter moved; empty lanes."""
    made = run_programs(
        CONFIG, jnp.float32, sizes(), AdaptConfig(epochs=1), adamw(), answer_cross_entropy, ("suffix",), max_pairs=2
    )["adapt, suffix"]
    config, params, _, _, adapters, _, batches, *_, tokens, starts, _, past, _, _ = made.arguments

    def without(tree: Any, axis: int) -> Any:
        shape = lambda x: x.shape[:axis] + x.shape[axis + 1 :]  # noqa: E731
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct(shape(x), x.dtype), tree)

    theta_0, held_out = without(adapters, 0), without(batches, 1)
    training = made._replace(arguments=(*made.arguments[:-2], theta_0, held_out))
    kl = Program(
        prompt_kl_wave, (config, params, tokens, starts, starts, past, adapters, theta_0),
        {"scale": 1.0, "n_positions": 16},
    )  # fmt: skip
    rows = PROGRAMS["decode"].arguments[3].rows
    empty = Program(nothing_decoding, (rows, 4, 4), {})
    for program in (training, kl, empty):
        program.trace().lower(lowering_platforms=("tpu", "cuda", "cpu"))


def test_every_platform_takes_those_of_guided_decoding():
    """The host is between its programs: it makes the masks."""
    lanes, arrivals, *_, keys, sampling, _, _ = PROGRAMS["decode"].arguments[2:]
    ids = n_fed = jax.ShapeDtypeStruct((WAVE,), jnp.int32)
    arguments = (CONFIG, PROGRAMS["decode"].arguments[1], arrivals.rows, lanes.own, ids, n_fed)
    reading = Program(read_tokens, arguments, {"scale": 1.0})
    scores, new = reading.result()
    masks = jax.ShapeDtypeStruct((WAVE, -(-CONFIG.vocab_size // 32)), jnp.uint32)
    sampling_program = Program(mask_and_sample, (scores, masks, keys, n_fed, sampling), {})
    idle = Program(no_lanes, (arrivals.rows,), {"n_steps": WORK.answer})
    others = (Program(append, (lanes.own, new, n_fed), {}), idle, Program(admit, (idle.result(), arrivals), {}))
    for program in (reading, sampling_program, *others):
        program.trace().lower(lowering_platforms=("tpu", "cuda", "cpu"))


@pytest.mark.parametrize("name", NAMES)
def test_nothing_in_them_waits_for_the_host(name):
    assert "callback" not in PROGRAMS[name].trace().lower(lowering_platforms=("tpu",)).as_text()


def products(jaxpr: Any) -> float:
    """FLOPs of the matrix products in a program without loops."""
    total = 0.0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            left = equation.invars[0].aval.shape
            total += 2.0 * equation.outvars[0].aval.size * jnp.prod(jnp.array([left[axis] for axis in contracted]))
        for inner in jax.tree.leaves(list(equation.params.values()), is_leaf=lambda x: hasattr(x, "eqns")):
            inner = getattr(inner, "jaxpr", inner)
            total += products(inner) if hasattr(inner, "eqns") else 0.0
    return float(total)


@pytest.mark.parametrize("name", ["prefill", "score", "decode", "decode, all", "decode, suffix"])
def test_flops_by_hand_are_those_of_the_pieces(name):
    for piece in pieces(name, PROGRAMS[name], Flops(CONFIG, AdaptConfig().rank)):
        assert products(jax.make_jaxpr(piece.function)(*piece.arguments).jaxpr) == piece.flops


def test_training_takes_a_step_for_each_chunk():
    program = PROGRAMS["adapt, all"]
    chunked = Program(program.function, program.arguments, program.options | {"chunk": 1})
    training, reading = pieces("adapt, all", chunked, Flops(CONFIG, AdaptConfig().rank))
    assert (training.times, reading.times) == (WORK.steps * WAVE, 1)
    whole = pieces("adapt, all", program, Flops(CONFIG, AdaptConfig().rank))[0]
    assert (whole.times, whole.flops) == (WORK.steps, 2 * training.flops)
