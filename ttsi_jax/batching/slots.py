"""Free slots as the decoding program knows them: which tokens each kind may hold, and which end it."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from ttsi_jax.answering import BOOLEAN, INTEGER, LINE, NESTED, NUMBER, STRING, TEXT
from ttsi_jax.model.generation import SlotTables

_STOP = -127  # closes a slot at any depth


def special_ids(tokenizer: Any, stop_ids: Sequence[int]) -> frozenset[int]:
    """Tokens that are no text: those that the tokenizer marks as special, and those that end an answer."""
    marked = (index for index, token in tokenizer.added_tokens_decoder.items() if token.special)
    return frozenset((*tokenizer.all_special_ids, *marked, *stop_ids))


def slot_tables(tokenizer: Any, vocab_size: int, stop_ids: Sequence[int]) -> SlotTables:
    """The rules of each kind of free slot, as arrays over the vocabulary.

    Every kind ends at a stop token. TEXT holds anything; LINE ends at a line break, STRING at an unescaped quote,
    NESTED where its brackets balance. INTEGER, NUMBER and BOOLEAN hold only what such a value is written with, and end
    at whatever follows a value in JSON. All but TEXT and NESTED hold at least one token.
    """
    texts = tokenizer.batch_decode([[i] for i in range(len(tokenizer))], clean_up_tokenization_spaces=False)
    texts = texts[:vocab_size]
    special = np.isin(np.arange(vocab_size), list(special_ids(tokenizer, stop_ids)))
    special |= np.arange(vocab_size) >= len(texts)
    stops = np.isin(np.arange(vocab_size), stop_ids)

    def where(condition: Callable[[str], object]) -> np.ndarray:
        return np.array([bool(condition(text)) for text in texts] + [False] * (vocab_size - len(texts)))

    ends_value = where(lambda text: text.strip() and all(c in ",}]" for c in text.strip()))
    holds = {
        INTEGER: where(re.compile(r"-?[0-9]+|-").fullmatch),
        NUMBER: where(re.compile(r"-?[0-9.]+|-").fullmatch),
        BOOLEAN: where(lambda text: text and (text in "true" or text in "false")),
    }
    closes = {
        TEXT: np.zeros(vocab_size, bool),
        LINE: where(lambda text: "\n" in text),
        STRING: where(lambda text: '"' in text.replace("\\\\", "").replace('\\"', "")),
        **dict.fromkeys(holds, ends_value),
    }
    depth = np.zeros((BOOLEAN, vocab_size), np.int8)
    for kind, closing in closes.items():
        depth[kind - 1] = -closing.astype(np.int8)
    nesting = [np.clip(sum((c in "[{") - (c in "]}") for c in text), -100, 100) for text in texts]
    depth[NESTED - 1, : len(texts)] = nesting
    depth[:, stops] = _STOP

    later = np.tile(~special | stops, (BOOLEAN, 1))
    for kind, held in holds.items():
        later[kind - 1] = held | ends_value | stops
    first = later & (depth >= 0)
    first[NESTED - 1] |= (depth[NESTED - 1] < 0) & ~stops  # an empty list is a value
    first[BOOLEAN - 1] &= where(lambda text: "true".startswith(text) or "false".startswith(text))
    first[TEXT - 1], later[TEXT - 1] = True, True
    return SlotTables(*map(jnp.asarray, (depth, first, later)))
