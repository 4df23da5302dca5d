"""From an example to token ids: one prefix for every phase, and each phase's own last turn.

All prompts of an input begin with the same tokens: the instructions and the tool list, rendered here and not by the
model's template, so that the cache of this prefix serves scoring, synthesis, training and answering. What a phase
wants stands in the last user turn. Text that continues a prompt (an answer's opening, a function's name, a key) is
tokenised by itself and its ids are appended: a tokenizer would merge `",` or `"_` across such a border.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from os.path import commonprefix
from typing import Any

from ttsi_jax.errors import InputError
from ttsi_jax.tasks.calls import render_calls
from ttsi_jax.tasks.example import Call, Example, Tool

SYSTEM = """You are a function-calling assistant. Answer each request with a call of one of these functions:
{tools}

Reply with one JSON object and nothing else: {{"name": "<function name>", "arguments": {{"<argument>": <value>}}}}"""

ANY_NUMBER = "Where a request needs several calls, reply with a JSON list of them; where no function fits, with []."

NEW_REQUEST = "Write different requests for the same function, each with other words, names, numbers and places."
NAMED = " The function is {function}."
REQUEST_OPENING = "Request 1: {query}\nRequest 2:"  # the model continues a list: a small one copies a bare seed

NEW_PAIR = """Request: {query}

Do not answer this request. Write another request of the same kind, for the same purpose but with other words and \
other values, and the call that answers it. Reply with one JSON object: \
{{"request": "<new request>", "call": {{"name": "<function name>", "arguments": {{"<argument>": <value>}}}}}}"""

CONTINUE = "Now write the function call that this conversation asks for."

OTHER_TOOLS = "Use these functions this time:\n{tools}\n\n{query}"

# The noisy channel: how likely is the request, given one function?
CHANNEL = (
    {"role": "system", "content": "You write requests that users make to an assistant with functions."},
    {"role": "user", "content": "Function:\n{tool}\n\nWrite a request that this function serves."},
)

OPENING = '{"name": "'  # how an answer begins, up to the function's name

# What templates ask for besides the messages: no thinking before the answer, and a date that is the same every day.
TEMPLATE_SETTINGS = {"enable_thinking": False, "date_string": "01 Jan 2025"}

_PROBES = ("a", "1?")  # two requests that differ from their first character on

Messages = Sequence[dict[str, str]]


def render_tools(tools: Sequence[Tool]) -> str:
    """One line of JSON per tool: name, description and the JSON schema of its parameters."""
    lines = ({"name": tool.name, "description": tool.description, "parameters": tool.parameters} for tool in tools)
    return "\n".join(json.dumps(line, ensure_ascii=False) for line in lines)


def answer_messages(
    example: Example, query: str | None = None, shown: Sequence[tuple[str, Sequence[Call]]] = ()
) -> Messages:
    """The conversation up to where the call is due; with `query`, that request stands in for the last one.

    `shown` are requests with their calls, which stand before the last request as turns that went well.
    """
    history, last, after = _split(example)
    for request, calls in shown:
        history += [{"role": "user", "content": request}, {"role": "assistant", "content": render_calls(calls)}]
    if query is not None:
        return [*history, {"role": "user", "content": query}]
    if not after:
        return [*history, last]
    return [*history, last, *after, {"role": "user", "content": CONTINUE}]


def with_tools(query: str, tools: Sequence[Tool]) -> str:
    """A request with functions of its own, in the place of those that the conversation begins with."""
    return OTHER_TOOLS.format(tools=render_tools(tools), query=query) if tools else query


def conversation(example: Example, messages: Messages) -> Messages:
    """Messages after the instructions and the tool list, with what the input's own system turns say."""
    own = [message["content"] for message in example.messages if message["role"] == "system"]
    system = "\n\n".join([SYSTEM.format(tools=render_tools(example.tools)), *own])
    return [{"role": "system", "content": system}, *messages]


def synthesis_messages(example: Example, instruction: str) -> Messages:
    """The conversation with an instruction (`NEW_REQUEST`, `NEW_PAIR`) in the place of the last request."""
    history, last, _ = _split(example)
    return [*history, {"role": "user", "content": instruction.format(query=last["content"])}]


def naming(instruction: str, tool: Tool) -> str:
    """An instruction to write pairs, for one function."""
    return instruction + NAMED.format(function=tool.name.replace("{", "{{").replace("}", "}}"))


def own_turns(example: Example) -> Messages:
    """The input's turns as its file has them, without the library's word on how many calls may be right."""
    return [turn for turn in example.messages if not _says_any_number(turn)]


def any_number(example: Example) -> bool:
    """Whether the input was told that several calls may be right, or none."""
    return any(map(_says_any_number, example.messages))


def _says_any_number(turn: Mapping[str, str]) -> bool:
    return (turn["role"], turn["content"]) == ("system", ANY_NUMBER)


def asked(example: Example) -> str:
    """What the user says in the conversation, as one text."""
    return "\n".join(message["content"] for message in example.messages if message["role"] == "user")


def request_opening(example: Example) -> str:
    """How the model's reply to `NEW_REQUEST` begins: the seed, in one line, as the first of several requests."""
    return REQUEST_OPENING.format(query=" ".join(example.query.split()))


def _split(example: Example) -> tuple[list[dict[str, str]], dict[str, str], list[dict[str, str]]]:
    """The turns before the last user turn, that turn, and those after it; system turns are left to the prefix."""
    turns = [message for message in example.messages if message["role"] != "system"]
    last = max(index for index, message in enumerate(turns) if message["role"] == "user")
    return turns[:last], turns[last], turns[last + 1 :]


class PromptEncoder:
    """Renders and tokenises with a model's own tokenizer and chat template (`transformers.PreTrainedTokenizerFast`).

    `vocab_size`: the rows of the model's embedding, where prompts with a token beyond them are to be refused.
    """

    def __init__(self, tokenizer: Any, vocab_size: int | None = None):
        self.tokenizer, self.vocab_size = tokenizer, vocab_size
        # Some SentencePiece tokenizers put a space before any text; behind a line break it does not reach a fragment.
        self._anchor = "" if self._ids("\na") == self._ids("\n") + self._ids("a") else "\n"

    def _ids(self, text: str) -> tuple[int, ...]:
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise InputError(f"the text is not valid Unicode: {error.reason}") from None
        return tuple(self.tokenizer.encode(text, add_special_tokens=False))

    def fragment(self, text: str) -> tuple[int, ...]:
        """Token ids of text that is appended to other ids.

        Raises:
            InputError: the text holds half of a surrogate pair, which no tokenizer takes.
        """
        return self._ids(self._anchor + text)[len(self._ids(self._anchor)) :]

    def encode(self, example: Example, messages: Messages) -> tuple[int, ...]:
        """Token ids of a whole prompt: instructions, tools, messages, and the head of the assistant's turn.

        Raises:
            InputError: the model's chat template refuses these messages, or its embedding lacks one of their tokens.
        """
        ids = self._ids(self._render(conversation(example, messages), f"input '{example.id}'"))
        if self.vocab_size is not None and max(ids, default=0) >= self.vocab_size:
            raise InputError(
                f"a prompt of input '{example.id}' holds the token '{self.tokenizer.convert_ids_to_tokens(max(ids))}' "
                f"with the id {max(ids)}, and the model's embedding has only {self.vocab_size} rows: take it out of "
                "the input, or use the tokenizer that the model was trained with"
            )
        return ids

    def _render(self, turns: Messages, what: str) -> str:
        try:
            return self.tokenizer.apply_chat_template(
                turns, tokenize=False, add_generation_prompt=True, **TEMPLATE_SETTINGS
            )
        except Exception as error:  # a template is a program that came with the model: it may raise anything
            raise InputError(f"the model's chat template refuses {what}: {error}") from None

    @cached_property
    def _channel(self) -> tuple[tuple[int, ...], str]:
        """`CHANNEL` up to the function, as ids, and after it."""
        before, _, after = self._render(CHANNEL, "a system turn and a user's").partition("{tool}")
        return self._ids(before), after

    def channel(self, tool: Tool) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The prompt that a request is the answer to where this function serves it: how it begins for all functions,
        and the rest.

        Raises:
            InputError: the model's chat template refuses it.
        """
        before, after = self._channel
        return before, self.fragment(render_tools([tool])) + self.fragment(after)

    def prefix(self, example: Example) -> tuple[int, ...]:
        """The tokens that all of the input's prompts begin with: up to where the last request differs.

        It depends on the instructions, the tools and earlier turns, so inputs with the same tools have the same prefix.
        """
        prompts = [self.encode(example, answer_messages(example, probe)) for probe in _PROBES]
        prompts.append(self.encode(example, answer_messages(example)))
        prompts.extend(self.encode(example, synthesis_messages(example, text)) for text in (NEW_REQUEST, NEW_PAIR))
        return tuple(commonprefix(prompts))

    def suffix(
        self, example: Example, messages: Messages, prefix: tuple[int, ...], opening: str = ""
    ) -> tuple[int, ...]:
        """What follows `prefix` in the prompt of `messages`, and then `opening`.

        Raises:
            InputError: the prompt does not begin with the prefix.
        """
        ids = self.encode(example, messages)
        if ids[: len(prefix)] != prefix:
            raise InputError(f"a prompt of input '{example.id}' does not begin with its tool list's tokens")
        return ids[len(prefix) :] + (self.fragment(opening) if opening else ())
