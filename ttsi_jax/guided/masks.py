"""Which tokens may come next: grammars compiled by llguidance, and one guide per row that always finds the way out.

A grammar alone does not say when a call ends: a model may write one string after another until its tokens are used up.
So a guide knows the shortest way to close the call from where it stands, and a token after which the tokens left would
not suffice is replaced by the first one of that way. The guide then notes that the call was cut.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import numpy as np

from ttsi_jax.errors import InputError
from ttsi_jax.guided.grammar import Schema

KEPT_GRAMMARS = 256  # compiled ones; inputs often share their tools
_SEPARATORS: Any = {
    "item_separator": ", ",
    "key_separator": ": ",
    "whitespace_flexible": False,
}  # as calls are rendered


class Guide:
    """One row's way through its grammar, at most `room` tokens long."""

    def __init__(self, grammars: Grammars, matcher: Any, room: int):
        self.grammars, self.matcher = grammars, matcher
        self._way_out = grammars.way_out(matcher)  # never longer than the room that is left
        self.room = room
        self.cut = False  # whether a token had to be replaced

    @property
    def done(self) -> bool:
        """Whether the call is complete."""
        return not self._way_out

    def take(self, proposal: int) -> int:
        """Goes on by the token that the model wants, or by one that still leaves room to close; returns it.

        A proposal that the grammar does not allow (the logits were not finite) is replaced as well.
        """
        if proposal != self._way_out[0]:
            way_out = self._way_out_after(proposal)
            if way_out is None:
                self.cut = True
            else:
                self._way_out = [proposal, *way_out]
        token, *self._way_out = self._way_out
        self.matcher.consume_token(token)
        self.room -= 1
        return token

    def _way_out_after(self, token: int) -> list[int] | None:
        """None where the token is not allowed, or the way out after it too long."""
        if self.matcher.validate_tokens([token]) != 1:
            return None
        after = self.matcher.deep_copy()
        after.consume_token(token)
        way_out = self.grammars.way_out(after, self.room)
        return way_out if len(way_out) < self.room else None


class Grammars:
    """Compiles tool lists for one tokenizer, and fills masks."""

    def __init__(self, tokenizer: Any, vocab_size: int, stop_ids: Sequence[int]):
        """Takes a `transformers.PreTrainedTokenizerFast`, the size of the logits and the tokens that end an answer.

        Raises:
            InputError: llguidance is not installed, or cannot use this tokenizer.
        """
        try:
            import llguidance.hf
            import llguidance.numpy
        except ImportError:
            raise InputError("guided calls need llguidance: pip install 'ttsi_jax[guided]'") from None
        self._library: Any = llguidance
        try:
            self._tokens = llguidance.hf.from_tokenizer(
                tokenizer, n_vocab=vocab_size, eos_token=list(stop_ids), slices=llguidance.LLTokenizer.json_slices()
            )
        except ValueError as error:
            raise InputError(f"llguidance cannot use this model's tokenizer: {error}") from None
        self.width = -(-vocab_size // 32)  # of a packed mask
        self._executor = llguidance.LLExecutor(1)  # the device has the other cores
        self._compiled: OrderedDict[str, Any] = OrderedDict()
        self._bytes = {}  # byte -> its token
        for token in range(vocab_size):
            text = self._tokens.decode_bytes([token])
            if len(text) == 1 and not self._tokens.is_special_token(token):
                self._bytes.setdefault(text[0], token)

    def guide(self, schema: Schema, limit: int) -> Guide:
        """A guide for a JSON value of a bounded schema, such as `call_schema` gives, in at most `limit` tokens.

        Raises:
            InputError: no such value fits the limit, or the schema allows none.
        """
        matcher = self._compile(schema).deep_copy()
        needed = len(self.way_out(matcher))
        if needed > limit:
            raise InputError(
                f"the shortest call of these functions has {needed} tokens, more than the limit of {limit}"
            )
        return Guide(self, matcher, limit)

    def masks(self, guides: Sequence[Guide | None]) -> np.ndarray:
        """The tokens that may come next, [E, ceil(V / 32)] uint32: bit i of word w is token 32 w + i.

        Rows without a guide, or with one that is done, may hold anything.
        """
        masks = np.full((len(guides), self.width), 0xFFFFFFFF, np.uint32)
        open_rows = [(guide.matcher, row) for row, guide in enumerate(guides) if guide is not None and not guide.done]
        if open_rows:
            self._library.numpy.fill_next_token_bitmask_par(self._executor, open_rows, masks.view(np.int32))
        return masks

    def way_out(self, matcher: Any, most: int | None = None) -> list[int]:
        """A short way from a matcher's state to a complete call, as tokens; it need not be the shortest.

        What the grammar forces is taken as it comes. Where there is a choice, whatever closes comes first: the end of a
        string within one, else the end of an object or list; then as short a value as there is (1: -0 may be none).

        `most`: ways of so many tokens or more need not be taken to their end.
        """
        matcher, way = matcher.deep_copy(), []
        while not matcher.is_accepting() and (most is None or len(way) < most):
            forced = matcher.compute_ff_bytes()
            tokens = self._tokens.tokenize_bytes(forced) if forced else [self._choice(matcher)]
            matcher.consume_tokens(tokens)
            way += tokens
        return way

    def _choice(self, matcher: Any) -> int:
        mask = np.frombuffer(matcher.compute_bitmask(), np.uint8)

        def allowed(byte: int) -> bool:
            token = self._bytes.get(byte)
            return token is not None and bool(mask[token // 8] >> (token % 8) & 1)

        within_string = all(map(allowed, b'"]}'))  # no other place takes all three
        order = b'"' if within_string else b']},"1'
        return self._bytes[next(byte for byte in (*order, *sorted(self._bytes)) if allowed(byte))]

    def _compile(self, schema: Schema) -> Any:
        """A matcher at its start, to be copied."""
        grammar = self._library.LLMatcher.grammar_from_json_schema(schema, overrides=_SEPARATORS)
        if grammar not in self._compiled:
            try:
                self._compiled[grammar] = self._library.LLMatcher(self._tokens, grammar, log_level=0)
            except ValueError as error:
                raise InputError(f"the functions' parameters allow no call: {error}") from None
            if len(self._compiled) > KEPT_GRAMMARS:
                self._compiled.popitem(last=False)
        self._compiled.move_to_end(grammar)
        return self._compiled[grammar]
