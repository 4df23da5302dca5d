"""The formula for a run's memory, against the compiler and against what a run holds; and the wave that it picks."""

import json
from dataclasses import replace
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import pytest

from model.tiny import tiny_model as tiny_params
from tiny_runs import TASK, gate, numbered, settings, task_of, timeless, tiny_model
from ttsi_jax.adaptation import AdaptConfig
from ttsi_jax.batching import lanes, waves
from ttsi_jax.batching.divergence import prompt_kl_wave
from ttsi_jax.batching.inputs import assign_shapes, prepare
from ttsi_jax.batching.memory import adapter_size
from ttsi_jax.batching.waves import Shape, prefill_rows
from ttsi_jax.config import find_parts
from ttsi_jax.errors import InputError
from ttsi_jax.loop import run
from ttsi_jax.model.decoder import abstract_params
from ttsi_jax.model.quantized import Int8
from ttsi_jax.rules import adamw, answer_cross_entropy
from ttsi_jax.rules.updates import sgd
from ttsi_jax.scaling import budget
from ttsi_jax.scaling.budget import GIB, base_of, cache_bytes, fit, state_bytes, temporaries
from ttsi_jax.scaling.mesh import Layout
from ttsi_jax.scaling.programs import Sizes, run_programs
from ttsi_jax.synthesis import Synthetic
from ttsi_jax.tasks import Call
from ttsi_jax.tasks.prompts import PromptEncoder

MODEL = tiny_model()
LAYOUT = Layout(MODEL.config)
PARTS = find_parts(settings(), {})


def drafts(n: int, **changes):
    encoder, config = PromptEncoder(MODEL.tokenizer), settings(**changes)
    return [prepare(one, "tiny", encoder, config, 4096, PARTS.synthesizer) for one in numbered(n)]


def fitted(memory: float, n: int = 12, layout=LAYOUT, begun: bool = False, **changes) -> budget.Fitted:
    return fit(MODEL, layout, settings(**changes), PARTS, drafts(n), memory, begun)


def of_shapes(config, dtype=jnp.float32) -> budget.Base:
    """A base without its arrays."""
    return base_of(abstract_params(config, dtype), Layout(config))


CONFIG = replace(tiny_params()[0], n_layers=2, local_layers=(False,) * 2, hidden_size=96, mlp_size=256, vocab_size=512)
SIZES = Sizes(4, Shape(384, 64, 3, 4), 128, 64, 32)


@pytest.mark.parametrize(
    ("dtype", "name"),
    [*((jnp.float32, name) for name in ("prefill", "score", "decode", "adapt, all", "adapt, suffix")),
     (Int8(jnp.float32), "decode")],
    ids=str,
)  # fmt: skip
def test_the_compiled_programs_take_what_the_formula_says(dtype, name):
    """Of the CPU's compiler: at most a tenth more, and not half as much."""
    scope = "suffix" if "suffix" in name else "all"
    how = AdaptConfig(scope=scope)
    program = run_programs(CONFIG, dtype, SIZES, how, adamw(1e-2), answer_cross_entropy, (scope,))[name]
    base = of_shapes(CONFIG, dtype)
    of = temporaries(base, how, state_bytes(CONFIG, how, adamw(1e-2)), SIZES)
    expected = of.adapt(2) if "adapt" in name else getattr(of, name) + base.converted
    if "adapt" in name:
        program = program._replace(options=program.options | {"chunk": 2, "remat": False})
    taken = program.trace().lower().compile().memory_analysis().temp_size_in_bytes
    assert 0.5 * expected <= taken <= 1.1 * expected


def test_on_a_mesh_a_device_has_the_prefixes_of_all_parts_while_a_wave_is_put_together():
    base, rows = of_shapes(CONFIG), 4
    prefix, run_config = cache_bytes(base, SIZES.shape.prefix), settings(method="base")

    def largest(parts: int, kept: float) -> float:
        return budget.moments(base._replace(parts=parts), run_config, PARTS, SIZES.shape, rows, kept).others

    assert largest(9, 0) - largest(8, 0) == (rows + prefill_rows(rows)) * prefix
    assert largest(8, 0) - largest(8, rows * prefix) == rows * prefix, "kept ones are counted as such"


def test_arrays_are_counted_exactly():
    base, how = base_of(MODEL.params, LAYOUT), AdaptConfig(rank=2)
    assert base.weights == sum(x.nbytes for x in jax.tree.leaves(MODEL.params))
    program = run_programs(CONFIG, jnp.float32, SIZES, how, adamw(1e-2), answer_cross_entropy, ("suffix",))
    of = lambda tree: sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))  # noqa: E731
    assert of(program["prefill"].result()) == 4 * cache_bytes(of_shapes(CONFIG), 384)
    adapters, states = program["adapt, suffix"].arguments[4:6]
    assert of(adapters) == 4 * 4 * adapter_size(CONFIG, how.lora)
    assert of(states) == 4 * state_bytes(CONFIG, how, adamw(1e-2)) > 4 * state_bytes(CONFIG, how, sgd(1e-2))


@pytest.mark.parametrize(("scope", "adapters"), [("all", 1), ("suffix", 1), ("suffix", 12)])
def test_a_run_holds_no_more_arrays_than_the_formula_says(monkeypatch, scope, adapters):
    """However many adapters an input has, all of which a source's pairs let it ask for at once."""
    held, others = [], sum(x.nbytes for x in jax.live_arrays()) - base_of(MODEL.params, LAYOUT).weights
    for module, name in (
        (waves, "prefill_wave"), (waves, "score_wave"), (waves, "adapt_and_score"), (lanes, "decode_wave"),
    ):  # fmt: skip
        function = getattr(module, name)

        def spied(*arguments, _function=function, **options):
            held.append(sum(x.nbytes for x in jax.live_arrays()) - others)
            return _function(*arguments, **options)

        monkeypatch.setattr(module, name, spied)
    config, own = settings(scope=scope), drafts(16, scope=scope)
    config = replace(config, adapt=replace(config.adapt, adapters=adapters))
    found = fit(MODEL, LAYOUT, config, PARTS, own, 64.0, begun=True)
    pair = lambda example, attempt: Synthetic(f"{attempt} and 2", (Call("add", {"a": 1, "b": 2}),))  # noqa: E731
    run(MODEL, task_of(*numbered(16)), config, **({"synthesizer": pair} if adapters > 1 else {}))
    arrays = found.takes.total - found.takes.programs
    assert 0.5 * arrays <= max(held) <= 1.1 * arrays


def test_more_memory_gives_larger_waves_and_more_to_train_with():
    least = fitted(64.0, begun=True, wave=1).takes.total / GIB
    found = [fitted(factor * least) for factor in (1.05, 2, 4, 8, 64)]
    sizes = [one.config.wave for one in found]
    assert sizes == sorted(sizes) and sizes[0] == 1 < sizes[1] and sizes[-1] == 16, "which takes all twelve"
    assert all(size & (size - 1) == 0 for size in sizes)
    for factor, one in zip((1.05, 2, 4, 8, 64), found, strict=True):
        assert one.takes.total <= factor * least * GIB
        again = fitted(factor * least, begun=True, wave=one.config.wave, adapt=one.config.adapt)
        assert again.config == one.config and again.prefix_memory == one.prefix_memory
    assert found[-1].config.adapt.memory > found[0].config.adapt.memory > 0


def test_what_a_run_reads_besides_is_counted():
    def programs(**changes) -> float:
        return fitted(64.0, begun=True, wave=4, method="tt-icl", **changes).takes.programs

    plain = settings()
    assert programs(synthesis=replace(plain.synthesis, held_out=True)) > programs()
    assert fitted(64.0, begun=True, answer=replace(plain.answer, orders=3)).takes.prompts == (
        3 * fitted(64.0, begun=True).takes.prompts
    )


def test_the_noisy_channel_is_counted():
    """Whole requests are scored there, where else names of functions are."""
    base, asks = of_shapes(CONFIG), settings(**gate(score="channel"), method="base")
    own = drafts(2, **gate(score="channel"), method="base")
    assign_shapes(own, 2)
    channel = budget.largest_of_channel(own, asks)
    assert channel.candidates == 1 and channel.name >= max(one.channel.n_request for one in own)
    assert channel.suffix >= max(len(rest) for one in own for _, rest in one.channel.prompts)
    checks = replace(asks.synthesis, checks=("schema", "channel"), candidates=4, max_tokens=200)
    written = budget.largest_of_channel(own, replace(asks, method="tt-si", synthesis=checks))
    assert (written.candidates, written.name) == (4, 256)
    others = lambda channel: budget.moments(base, asks, PARTS, SIZES.shape, 4, None, channel).others  # noqa: E731
    sizes = SIZES._replace(shape=written)
    assert others(None) < others(written) == temporaries(base, asks.adapt, 0, sizes).score + base.converted


def test_the_divergence_of_prompts_takes_no_more_than_is_counted_where_it_is_measured():
    config, plain = replace(CONFIG, vocab_size=32768), settings()
    adapted = run_programs(config, jnp.float32, SIZES, plain.adapt, PARTS.rule, PARTS.loss, ("suffix",))
    _, params, _, _, adapters, _, _, _, counts, _, tokens, *_, past, _, _ = adapted["adapt, suffix"].arguments
    lowered = prompt_kl_wave.lower(
        config, params, tokens, counts, counts, past, adapters, scale=1.0, n_positions=SIZES.shape.suffix
    )
    taken = lowered.compile().memory_analysis().temp_size_in_bytes

    def largest(**changes) -> float:
        own = replace(plain, adapt=replace(plain.adapt, **changes))
        return budget.moments(of_shapes(config), own, PARTS, SIZES.shape, SIZES.wave).others

    assert largest() < taken <= 1.1 * largest(measure=("kl",))


def test_a_mesh_gets_waves_that_it_divides():
    layout = SimpleNamespace(parts=3, shape={"data": 3, "model": 1}, share=MODEL.config)
    assert fitted(64.0, layout=layout).config.wave == 3 * 4, "for twelve inputs"
    assert fitted(64.0, layout=layout, n=2).config.wave == 3


def test_too_little_is_refused_with_what_takes_how_much():
    with pytest.raises(InputError, match=r"^--memory 0.0001 is too little: a wave of 1 takes up to .* GiB \(weights "):
        fitted(1e-4)
    with pytest.raises(InputError, match="a wave of 4 takes up to"):
        fitted(1e-4, begun=True)


def test_a_run_goes_on_with_the_wave_that_it_began_with(tmp_path):
    memory = 1.05 * fitted(1.0, n=2).takes.total / GIB
    one = run(MODEL, task_of(*numbered(2)), settings(), memory=memory, out=tmp_path / "a").records
    written = json.loads((tmp_path / "a" / "config.json").read_text())
    assert written["wave"] == 2 and written["adapt"]["memory"] < 1
    told = json.loads((tmp_path / "a" / "environment.json").read_text())["memory"]
    assert told["budget"] == memory * GIB >= sum(value for key, value in told.items() if key != "budget")
    other = run(MODEL, task_of(*numbered(2)), replace(settings(), wave=2)).records
    assert [timeless(record) for record in one] == [timeless(record) for record in other]
    (tmp_path / "a" / "records.jsonl").write_text("")
    run(MODEL, task_of(*numbered(2)), settings(), memory=64.0, out=tmp_path / "a")
    assert json.loads((tmp_path / "a" / "config.json").read_text()) == written
    with pytest.raises(InputError, match="a wave of 2 takes up to"):
        run(MODEL, task_of(*numbered(2)), settings(), memory=1e-4, out=tmp_path / "a")
    for damaged in ({"adapt": {}}, {"adapt": None}, {"wave": "2"}):
        (tmp_path / "a" / "config.json").write_text(json.dumps(written | damaged))
        with pytest.raises(InputError, match="a: holds a run with other settings"):
            run(MODEL, task_of(*numbered(2)), settings(), memory=64.0, out=tmp_path / "a")
    with pytest.raises(InputError, match="--memory is nan; it must be above 0"):
        run(MODEL, TASK, settings(), memory=float("nan"))
