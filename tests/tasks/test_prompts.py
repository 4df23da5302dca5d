"""Prompts: one prefix for all phases, suffixes that complete it, dialogues, and templates that refuse."""

import copy
from dataclasses import replace
from os.path import commonprefix

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tiny_runs import ADD, EVERY_TOOL, GREET, TASK, example, tiny_model
from ttsi_jax.errors import InputError
from ttsi_jax.tasks import Example
from ttsi_jax.tasks.prompts import (
    CONTINUE,
    NEW_PAIR,
    NEW_REQUEST,
    OPENING,
    PromptEncoder,
    answer_messages,
    asked,
    naming,
    render_tools,
    request_opening,
    synthesis_messages,
)

TOKENIZER = tiny_model().tokenizer
ENCODER = PromptEncoder(TOKENIZER)


def turns(*pairs: tuple[str, str], tools=(ADD, GREET)) -> Example:
    return Example("dialogue", tuple({"role": role, "content": content} for role, content in pairs), tools, None)


def prompts(encoder: PromptEncoder, one: Example) -> list[tuple[int, ...]]:
    """The prompts of every phase, of new requests too."""
    messages = [answer_messages(one), answer_messages(one, "Some other request"), answer_messages(one, "1, 2")]
    messages += [synthesis_messages(one, instruction) for instruction in (NEW_REQUEST, NEW_PAIR)]
    return [encoder.encode(one, each) for each in messages]


def with_template(template: str) -> PromptEncoder:
    tokenizer = copy.deepcopy(TOKENIZER)
    tokenizer.chat_template = template
    return PromptEncoder(tokenizer)


DIALOGUE = turns(
    ("system", "Be brief."), ("user", "Hi"), ("assistant", "Hello"), ("user", "Add 1 and 2"), ("system", "Units: m.")
)
AFTER = turns(("user", "Add 1 and 2"), ("assistant", "Tool result: 3"))


@pytest.mark.parametrize("one", [*TASK.examples, DIALOGUE, AFTER], ids=lambda one: one.id)
def test_the_prefix_is_all_that_the_prompts_have_in_common(one):
    prefix = ENCODER.prefix(one)
    assert commonprefix([prefix, *prompts(ENCODER, one)]) == prefix
    text = TOKENIZER.decode(prefix)
    assert text.endswith("<|im_start|>user\n"), "it ends where the last request begins"
    assert render_tools(one.tools) in text


@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=30))
def test_prefix_and_suffix_are_the_whole_prompt(query):
    one = example("x", query)
    prefix = ENCODER.prefix(one)
    whole = ENCODER.encode(one, answer_messages(one))
    assert prefix + ENCODER.suffix(one, answer_messages(one), prefix) == whole
    opened = ENCODER.suffix(one, answer_messages(one), prefix, OPENING)
    assert prefix + opened == whole + ENCODER.fragment(OPENING)
    if not query[0].isspace():
        assert prefix == ENCODER.prefix(example("y", "Anything else"))


def test_inputs_with_the_same_tools_share_their_prefix_and_others_do_not():
    one, two, three = (
        ENCODER.prefix(TASK.examples[0]),
        ENCODER.prefix(TASK.examples[1]),
        ENCODER.prefix(TASK.examples[3]),
    )
    assert one == two != three


def test_a_border_that_the_tokenizer_merges_across_is_left_to_the_suffix():
    """A template that ends the head of a turn in a blank, which byte-level tokenizers join with the word after it."""
    encoder = with_template("{% for m in messages %}[{{ m['role'] }}]: {{ m['content'] }}\n{% endfor %}[assistant]: ")
    one = TASK.examples[0]
    prefix = encoder.prefix(one)
    assert TOKENIZER.decode(prefix).endswith("[user]:")
    for messages in (answer_messages(one), synthesis_messages(one, NEW_PAIR)):
        assert prefix + encoder.suffix(one, messages, prefix) == encoder.encode(one, messages)


def test_a_dialogue_keeps_its_history_in_the_prefix():
    text = TOKENIZER.decode(ENCODER.prefix(DIALOGUE))
    assert text.endswith("user\nHi<|im_end|>\n<|im_start|>assistant\nHello<|im_end|>\n<|im_start|>user\n")
    assert [m["content"] for m in answer_messages(DIALOGUE)] == ["Hi", "Hello", "Add 1 and 2"]
    assert [m["content"] for m in answer_messages(DIALOGUE, "Add 3")] == ["Hi", "Hello", "Add 3"]
    assert [m["content"] for m in synthesis_messages(DIALOGUE, "Like {query}")] == ["Hi", "Hello", "Like Add 1 and 2"]


def test_an_inputs_own_system_turns_follow_ours_in_one_system_turn():
    text = TOKENIZER.decode(ENCODER.prefix(DIALOGUE))
    assert text.count("<|im_start|>system") == 1
    head = text[: text.index("<|im_end|>")]
    assert render_tools(DIALOGUE.tools) in head and head.endswith("\n\nBe brief.\n\nUnits: m.")


def test_a_dialogue_that_ends_with_the_assistant_is_asked_for_its_call():
    messages = answer_messages(AFTER)
    assert [m["role"] for m in messages] == ["user", "assistant", "user"]
    assert [m["content"] for m in messages] == ["Add 1 and 2", "Tool result: 3", CONTINUE]
    assert [m["content"] for m in answer_messages(AFTER, "Add 3")] == ["Add 3"]


def test_braces_of_tools_and_requests_are_text():
    one = example("x", "What is {a} {{b}} {query}?", EVERY_TOOL)
    assert synthesis_messages(one, NEW_PAIR)[0]["content"].startswith("Request: What is {a} {{b}} {query}?\n")
    assert render_tools(one.tools) in TOKENIZER.decode(ENCODER.prefix(one))


def test_the_seed_is_one_line_and_the_first_of_a_list():
    assert request_opening(example("x", " Add\n 1 {and} 2")) == "Request 1: Add 1 {and} 2\nRequest 2:"


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("{{ raise_exception('no system turns, please') }}", "no system turns, please"),
        ("{{ messages[7]['content'] }}", ""),
        ("{{ nothing.there }}", "nothing"),
        ("{% for m in messages %", ""),
    ],
)
def test_a_template_that_fails_names_the_input(template, reason):
    encoder = with_template(template)
    with pytest.raises(InputError, match=f"refuses input 'one': .*{reason}"):
        encoder.prefix(TASK.examples[0])


def test_a_prompt_without_its_prefix_names_the_input():
    with pytest.raises(InputError, match="input 'two' does not begin with"):
        ENCODER.suffix(TASK.examples[1], answer_messages(TASK.examples[1]), ENCODER.prefix(TASK.examples[2]))


def test_templates_are_told_not_to_think_and_always_the_same_day():
    encoder = with_template("{{ messages[-1]['content'] }}{{ enable_thinking }} {{ date_string }}")
    one = turns(("user", "What?"))
    ids = encoder.encode(one, answer_messages(one))
    assert encoder.tokenizer.decode(ids).endswith("False 01 Jan 2025")


class SpacedTokenizer:
    """A word-level stand-in for SentencePiece tokenizers that put a space before any text."""

    def encode(self, text: str, add_special_tokens: bool) -> list[int]:
        return [ord(c) for c in " " + text]


def test_fragments_have_no_space_that_the_tokenizer_adds():
    assert PromptEncoder(SpacedTokenizer()).fragment('get"') == tuple(map(ord, 'get"'))


def test_a_function_that_is_named_to_the_writer():
    odd = replace(GREET, name="greet{query}{x}")
    for instruction in (NEW_REQUEST, NEW_PAIR):
        [*_, turn] = synthesis_messages(TASK.examples[0], naming(instruction, odd))
        assert turn["content"].endswith("The function is greet{query}{x}.")
        [*_, usual] = synthesis_messages(TASK.examples[0], instruction)
        assert turn["content"].startswith(usual["content"])


def test_prompts_of_the_noisy_channel_begin_alike_and_hold_one_function():
    prompts = [ENCODER.channel(tool) for tool in EVERY_TOOL]
    assert len({before for before, _ in prompts}) == 1
    for tool, (before, rest) in zip(EVERY_TOOL, prompts, strict=True):
        text = TOKENIZER.decode(before + rest)
        assert render_tools([tool]) in text and text.endswith("<|im_start|>assistant\n")
        assert not any(render_tools([other]) in text for other in EVERY_TOOL if other is not tool)


def test_what_a_user_asks_is_all_that_they_say():
    assert asked(DIALOGUE) == "Hi\nAdd 1 and 2" and asked(AFTER) == "Add 1 and 2"


def test_a_template_that_refuses_the_noisy_channel():
    encoder = with_template("{{ raise_exception('no system turns') }}")
    with pytest.raises(InputError, match="no system turns"):
        encoder.channel(ADD)
