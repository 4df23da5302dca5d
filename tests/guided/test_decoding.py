"""Guided decoding on the device: masks, choices, one forward step, and the whole loop of a wave."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from guided.tools import SIZE, STOP, byte_level, tool_lists
from model.tiny import VOCABULARY, prompted, random_adapter, random_ids, run_lanes, sequence, stack
from tiny_runs import ADD, EVERY_TOOL, GREET, example
from tiny_runs import tiny_model as talking_model
from ttsi_jax.answering import TEXT
from ttsi_jax.batching.slots import slot_tables
from ttsi_jax.guided import masks
from ttsi_jax.guided.decoding import Seat, admit, append, decode_guided, mask_and_sample, no_lanes, read_tokens, unpack
from ttsi_jax.guided.grammar import call_schema
from ttsi_jax.model.cache import empty
from ttsi_jax.model.generation import Arrivals, Rows, Sampling, Script, SlotTables
from ttsi_jax.model.scoring import prefill_wave
from ttsi_jax.tasks import check_call, parse_calls
from ttsi_jax.tasks.prompts import PromptEncoder, answer_messages
from ttsi_jax.testing import tiny_model

GREEDY, WARM = Sampling(0.0, 1.0), Sampling(1.0, 0.9)
STEPS = 64
KEYS = jax.random.split(jax.random.key(0), 3)


def write(config, params, rows, guides, keys, sampling):
    """What rows with these guides write, all together."""
    n = len(guides)
    seats = [guide and Seat(guide, key, sampling) for guide, key in zip(guides, keys, strict=True)]
    everyone = jnp.arange(n)
    lanes = admit(no_lanes(rows, STEPS), Arrivals(rows, everyone, everyone))
    decode_guided(config, params, lanes, seats, n)
    return seats


def each(n, sampling):
    """The same for n rows."""
    return Sampling(*(jnp.full(n, value, jnp.float32) for value in sampling))


@pytest.fixture(scope="module")
def grammars():
    pytest.importorskip("llguidance")
    return masks.Grammars(byte_level(), SIZE, STOP)


def wave(size=12):
    return stack([sequence(random_ids(seed, length), size) for seed, length in enumerate((12, 5, 9))])


def packed(allowed):
    """[E, V] bool as masks."""
    width = -(-allowed.shape[1] // 32) * 32
    bits = np.pad(allowed, ((0, 0), (0, width - allowed.shape[1])))
    return np.packbits(bits, axis=1, bitorder="little").view(np.uint32)


def test_every_program_has_its_scope():
    config, params = tiny_model(VOCABULARY, 16)
    rows = Rows(prompted(config, params, wave()))
    lanes, three = no_lanes(rows, STEPS), jnp.arange(3)
    masks = jnp.zeros((3, VOCABULARY // 32), jnp.uint32)
    _, new = jax.eval_shape(partial(read_tokens, config), params, rows, lanes.own, three, three)
    for lowered in (
        admit.lower(lanes, Arrivals(rows, three, three)),
        mask_and_sample.lower(lanes.scores, masks, KEYS, three, each(3, GREEDY)),
        read_tokens.lower(config, params, rows, lanes.own, three, three),
        append.lower(lanes.own, new, three),
    ):
        assert "decode/" in lowered.as_text(debug_info=True)


@given(st.integers(0, 2**32 - 1))
def test_unpacking_is_the_inverse_of_packing(seed):
    allowed = np.random.default_rng(seed).random((2, 70)) < 0.5
    np.testing.assert_array_equal(unpack(jnp.asarray(packed(allowed)), 70), allowed)


@given(st.integers(0, 2**32 - 1))
def test_the_greedy_choice_is_the_best_allowed_token(seed):
    rng = np.random.default_rng(seed)
    scores, allowed = rng.normal(size=(3, 70)).astype(np.float32), rng.random((3, 70)) < 0.3
    allowed[:, 7] = True
    tokens, finite = mask_and_sample(
        jnp.asarray(scores), jnp.asarray(packed(allowed)), KEYS, jnp.zeros(3, int), each(3, GREEDY)
    )
    np.testing.assert_array_equal(tokens, np.where(allowed, scores, -np.inf).argmax(1))
    best = scores.argmax(1)
    kept = allowed[np.arange(3), best]
    np.testing.assert_array_equal(np.asarray(tokens)[kept], best[kept])  # what is allowed is not changed
    assert np.all(finite)


def test_samples_are_allowed_and_depend_on_the_rows_key_alone():
    rng = np.random.default_rng(0)
    scores, allowed = rng.normal(size=(3, 70)).astype(np.float32), rng.random((3, 70)) < 0.3
    draw = lambda step, rows: np.asarray(  # noqa: E731
        mask_and_sample(
            jnp.asarray(scores[rows]), jnp.asarray(packed(allowed)[rows]), KEYS[rows], jnp.full(3, step), each(3, WARM)
        )[0]
    )
    drawn = np.stack([draw(step, np.arange(3)) for step in range(30)])
    assert all(allowed[row, token] for tokens in drawn for row, token in enumerate(tokens))
    assert len(set(drawn[:, 0])) > 3
    np.testing.assert_array_equal(draw(4, np.array([2, 0, 1])), drawn[4][[2, 0, 1]])


def test_logits_that_are_not_finite_are_noted():
    scores = jnp.asarray([[1.0, 2.0], [jnp.nan, 0.0]])
    finite = mask_and_sample(scores, jnp.asarray([[3], [3]], jnp.uint32), KEYS[:2], jnp.zeros(2, int), each(2, GREEDY))[
        1
    ]
    assert finite.tolist() == [True, False]


def everything(kinds=1):
    allowed = jnp.ones((kinds, VOCABULARY), bool)
    return SlotTables(jnp.zeros((kinds, VOCABULARY), jnp.int8), allowed, allowed)


def test_steps_with_an_open_mask_are_the_unguided_loop():
    """With pasts and adapters of their own, and a row that ends early, whose later steps read nothing."""
    config, params = tiny_model(VOCABULARY, 16)
    past = (prefill_wave(config, params, jnp.asarray([random_ids(9 + row, 6) for row in range(3)]), jnp.full(3, 6)),)
    adapters = stack([random_adapter(config, seed) for seed in range(3)])
    prompts = stack([sequence(random_ids(seed, n), 12, 6) for seed, n in enumerate((12, 5, 9))])
    rows = Rows(prompted(config, params, prompts, past, adapters, 2.0), past, adapters)
    limits = [6, 3, 6]
    script = Script(
        jnp.ones((3, 1), jnp.int32), jnp.zeros((3, 1), jnp.int32), jnp.asarray(limits)[:, None], jnp.ones(3, int)
    )
    expected = run_lanes(config, params, rows, script, everything(), KEYS, WARM, 6, scale=2.0).ids

    own = jax.vmap(partial(empty, n_slots=6))(rows.prompts.cache)
    open_masks = jnp.full((3, VOCABULARY // 32), 0xFFFFFFFF, jnp.uint32)
    scores, found = rows.prompts.logits, []
    for step in range(6):
        ids = mask_and_sample(scores, open_masks, KEYS, jnp.full(3, step), each(3, WARM))[0]
        ids = jnp.where(step < jnp.asarray(limits), ids, -1)
        found.append(np.asarray(ids))
        scores, new = read_tokens(config, params, rows, own, ids, jnp.full(3, step), scale=2.0)
        own = append(own, new, jnp.full(3, step))
    np.testing.assert_array_equal(np.stack(found, 1), expected)


@settings(max_examples=15)
@given(tool_lists, st.booleans(), st.integers(0, 20))
def test_every_answer_of_a_random_model_parses_validates_and_closes(grammars, tools, greedy, seed):
    config, params = tiny_model(VOCABULARY, 16)
    rows = Rows(prompted(config, params, wave()))
    try:
        guides = [
            grammars.guide(call_schema(tools), STEPS),
            grammars.guide(call_schema(EVERY_TOOL), STEPS),
            grammars.guide(call_schema([GREET]), STEPS),
        ]
    except masks.InputError:
        return  # a call of these tools has more tokens
    keys = jax.random.split(jax.random.key(seed), 3)
    sampling = GREEDY if greedy else WARM
    said = write(config, params, rows, guides, keys, sampling)
    for own, listed in zip(said, (tools, EVERY_TOOL, [GREET]), strict=True):
        (call,) = parse_calls(byte_level().decode(own.ids, clean_up_tokenization_spaces=False))
        assert check_call(call, listed) is None
        assert len(own.ids) <= STEPS and own.finite


def test_rows_do_not_depend_on_each_other_and_a_wave_may_have_empty_ones(grammars):
    config, params = tiny_model(VOCABULARY, 16)
    rows = Rows(prompted(config, params, wave()))

    def said(*tool_lists):
        guides = [tools and grammars.guide(call_schema(tools), STEPS) for tools in tool_lists]
        return [seat and seat.ids for seat in write(config, params, rows, guides, KEYS, WARM)]

    both, alone = said([ADD], EVERY_TOOL, None), said([ADD], None, None)
    assert both[0] == alone[0] and both[1] and alone[1] is both[2] is None


def test_a_row_that_takes_the_lane_of_another_writes_what_it_writes_alone(grammars):
    """It comes when the others are on their way, and nothing is left of the row before."""
    config, params = tiny_model(VOCABULARY, 16)
    rows = Rows(prompted(config, params, wave()))
    of = lambda *tools: grammars.guide(call_schema(tools), STEPS)  # noqa: E731
    alone = [own.ids for own in write(config, params, rows, [of(ADD), of(*EVERY_TOOL), of(GREET)], KEYS, WARM)]
    seats = [Seat(of(ADD), KEYS[0], WARM), Seat(of(*EVERY_TOOL), KEYS[1], WARM), None]
    lanes = admit(no_lanes(rows, STEPS), Arrivals(rows, jnp.asarray([0, 1, -1]), jnp.arange(3)))
    lanes = decode_guided(config, params, lanes, seats, 2)  # one of the two has ended
    [lane] = [lane for lane in (0, 1) if seats[lane].guide.done]
    ended, seats[lane] = seats[lane], Seat(of(GREET), KEYS[2], WARM)
    assert 0 < len(seats[1 - lane].ids) and ended.ids == alone[lane]
    lanes = admit(lanes, Arrivals(rows, jnp.asarray([2, -1, -1]), jnp.asarray([lane, 0, 0])))
    decode_guided(config, params, lanes, seats, 3)
    assert (seats[lane].ids, seats[1 - lane].ids) == (alone[2], alone[1 - lane])


def test_a_model_whose_logits_are_not_finite_still_closes_and_says_so(grammars):
    config, params = tiny_model(VOCABULARY, 16)
    rows = Rows(prompted(config, params | {"embed": params["embed"] * jnp.nan}, wave()))
    guides = [grammars.guide(call_schema([GREET]), STEPS), None, None]
    own = write(config, params, rows, guides, KEYS, GREEDY)[0]
    assert not own.finite
    assert parse_calls(byte_level().decode(own.ids))


def test_guided_greedy_is_unguided_greedy_where_the_grammar_accepts_that():
    pytest.importorskip("llguidance")
    model = talking_model()  # says whole answers, some of which are calls
    encoder = PromptEncoder(model.tokenizer)
    grammars = masks.Grammars(model.tokenizer, model.config.vocab_size, model.stop_ids)
    table = slot_tables(model.tokenizer, model.config.vocab_size, model.stop_ids)
    asked = [example(str(i), f"What is {i} and {i * i}?" if i % 2 else f"Hello {i * 7}") for i in range(16)]
    prompts_of = [encoder.encode(own, answer_messages(own)) for own in asked]
    size = max(map(len, prompts_of))
    rows = Rows(prompted(model.config, model.params, stack([sequence(list(ids), size) for ids in prompts_of])))
    n = len(asked)
    keys = jax.random.split(jax.random.key(0), n)
    ones = jnp.ones((n, 1), jnp.int32)
    script = Script(ones * TEXT, ones * 0, ones * STEPS, ones[:, 0])
    free = run_lanes(model.config, model.params, rows, script, table, keys, GREEDY, STEPS).ids
    guides = [grammars.guide(call_schema(EVERY_TOOL), STEPS) for _ in asked]
    guided = write(model.config, model.params, rows, guides, keys, GREEDY)
    accepted = 0
    for row, own in zip(np.asarray(free), guided, strict=True):
        row = [int(token) for token in row if token >= 0]
        follower = grammars.guide(call_schema(EVERY_TOOL), STEPS)
        kept = 0
        while kept < len(row) and not follower.done and follower.take(row[kept]) == row[kept]:
            kept += 1
        assert own.ids[:kept] == row[:kept]  # equal up to the first token that no call has
        if follower.done and not follower.cut:
            assert own.ids == row[:kept] and not own.cut  # which then ends, where the unguided model may go on
            accepted += 1
    assert accepted >= 2
