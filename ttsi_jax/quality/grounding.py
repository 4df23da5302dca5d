"""Whether a call's values appear in a request or follow from it.

Nobody is asked, so only what can be read off is judged, and a doubt counts for the value: a wrong rejection costs a
good example, while a wrong value that slips through still has to pass the other checks. Numbers may be written in
words, dates in any form, names shortened or inflected; booleans, null, and values that the schema itself proposes
(enums, defaults) need no ground.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

from ttsi_jax.tasks import Call, Tool, normalise

_ONES = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen"
).split()
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety".split()
_SCALES = {"hundred": 100, "thousand": 10**3, "k": 10**3, "million": 10**6, "m": 10**6, "billion": 10**9}
_ORDINALS = "first second third fourth fifth sixth seventh eighth ninth tenth eleventh twelfth".split()
_OTHER_WORDS = {"a": 1, "an": 1, "single": 1, "once": 1, "twice": 2, "double": 2, "couple": 2, "pair": 2, "both": 2}
_OTHER_WORDS |= {"triple": 3, "dozen": 12, "half": 0.5, "quarter": 0.25, "percent": 0.01, "noon": 12, "midnight": 0}
_WORDS = {word: n for n, word in enumerate(_ONES)} | {word: 10 * n for n, word in enumerate(_TENS, 2)} | _OTHER_WORDS
_WORDS |= {word: n for n, word in enumerate(_ORDINALS, 1)}
_MONTHS = "january february march april may june july august september october november december".split()
_RELATIVE_DATES = {"today", "tonight", "tomorrow", "yesterday", "now", "current", "currently", "next", "last", "this"}
_RELATIVE_DATES |= {"weekend", "morning", "evening", "night", "recent", "latest", "upcoming"}
_RELATIVE_DATES |= {unit + end for unit in ("day", "week", "month", "year") for end in ("", "s")}
_RELATIVE_DATES |= {f"{day}day" for day in ("mon", "tues", "wednes", "thurs", "fri", "satur", "sun")}
_NUMBER = re.compile(r"\d[\d,]*(?:\.\d+)?|\.\d+")
_DATE = re.compile(r"(\d{4})[-/.](\d{1,2})[-/.](\d{1,2})|(\d{1,2})[-/.](\d{1,2})[-/.](\d{4})")
_WORD = re.compile(r"[^\W_]+")
_FACTORS = (1.0, 100.0, 0.01, 1e3, 1e6, 1e-3)  # percent and fractions, thousands, kilo- and milli-
_STEM = 4  # letters in which inflected words agree
_SHORT = 3  # codes of a language, currency or country cannot be judged by their letters
_INITIALS = 5  # most letters of a name made of initials
_ENOUGH = 0.5  # share of a text's words that must be in the request


def ungrounded(call: Call, request: str, tools: Sequence[Tool]) -> list[str]:
    """The arguments whose values do not follow from the request."""
    schemas = next((tool.properties for tool in tools if tool.name == call.name), {})
    known = _Request(request)

    def follows(value: Any, schema: Mapping[str, Any]) -> bool:
        return all(_proposed(leaf, schema) or known.holds(leaf) for leaf in _leaves(value))

    return [name for name, value in call.arguments.items() if not follows(value, schemas.get(name, {}))]


class _Request:
    """A request, read for its words and numbers."""

    def __init__(self, text: str):
        self.text = _plain(text)
        self.words = _WORD.findall(self.text)
        self.numbers = {0.0, *_numbers(self.text, self.words)}
        self.initials = "".join(word[0] for word in self.words)

    def holds(self, value: Any) -> bool:
        if value is None or isinstance(value, bool):
            return True
        if isinstance(value, int | float):
            return self._number(abs(float(value)))
        return self._text(_plain(value))

    def _number(self, value: float) -> bool:
        return any(abs(value - n * f) <= 1e-6 * max(1.0, value) for n in self.numbers for f in self._factors(n))

    def _factors(self, number: float) -> tuple[float, ...]:
        """By which a number may be written otherwise: not the one that is only an article."""
        return _FACTORS if number != 1 or "1" in self.words else (1.0,)

    def _text(self, text: str) -> bool:
        words = _WORD.findall(text)
        code = len("".join(words)) <= _SHORT and not any(word.isdecimal() for word in words)
        if code or "".join(words) in "".join(self.words):
            return True
        if date := _DATE.search(text):
            year, month, day = (int(part) for part in (date[1] or date[6], date[2] or date[5], date[3] or date[4]))
            return self._date(year, month, day)
        number = normalise(text)
        if isinstance(number, int | float) and not isinstance(number, bool):
            return self._number(abs(float(number)))
        shortened = "".join(word[0] for word in words)  # the request says NYC
        return (len(words) > 1 and shortened in self.words) or sum(map(self._word, words)) >= _ENOUGH * len(words)

    def _word(self, word: str) -> bool:
        if word.isdecimal():
            return self._number(float(word))
        if any(word in own or own in word for own in self.words if min(len(word), len(own)) >= _STEM):
            return True
        if any(word.startswith(own) or own.startswith(word) for own in self.words if min(len(word), len(own)) > 2):
            return True
        shortened = len(word) <= _INITIALS and word in self.initials  # the value is NYC
        return shortened or any(_stem(word) == _stem(own) for own in self.words)

    def _date(self, year: int, month: int, day: int) -> bool:
        if _RELATIVE_DATES.intersection(self.words):
            return True
        return sum(part in self.numbers for part in (year, month, day)) >= 2


def _leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, list | tuple):
        for item in value:
            yield from _leaves(item)
    else:
        yield value


def _proposed(value: Any, schema: Mapping[str, Any]) -> bool:
    """Whether the schema itself names the value."""
    inner = [schema.get("items"), *schema.get("properties", {}).values()]
    inner += [option for key in ("anyOf", "oneOf", "allOf") for option in schema.get(key, ())]
    named = [*schema.get("enum", ()), *([schema["default"]] if "default" in schema else [])]
    return value in named or any(_proposed(value, each) for each in inner if isinstance(each, Mapping))


def _plain(text: str) -> str:
    """Text without case and accents; the signs of money and percent are words."""
    for sign, word in {"%": " percent ", "$": " dollar ", "€": " euro ", "£": " pound "}.items():
        text = text.replace(sign, word)
    letters = unicodedata.normalize("NFKD", text)
    return "".join(letter for letter in letters if not unicodedata.combining(letter)).casefold()


def _stem(word: str) -> str:
    return word[: max(_STEM, len(word) - 3)]


def _numbers(text: str, words: list[str]) -> Iterator[float]:
    """Every number that a text may mean: in digits, in words, of months, of hours after noon."""
    for found in _NUMBER.finditer(text):
        number = float(found[0].replace(",", "") or 0)
        after = text[found.end() :].lstrip()[:8]
        yield number
        yield from (float(part) for part in re.findall(r"\d+", found[0]))
        if after.startswith(("pm", "p.m")):
            yield number + 12
        yield from (number * size for word, size in _SCALES.items() if re.match(rf"{word}\b", after))
    yield from (float(n) for n, month in enumerate(_MONTHS, 1) if {month, month[:3]}.intersection(words))
    total, current, previous = 0.0, 0.0, False
    for word, following in pairwise([*words, ""]):
        ordinal = re.sub(r"(ieth|th)$", lambda end: "y" if end[1] == "ieth" else "", word)
        value = _WORDS.get(word, _WORDS.get(ordinal))
        if value is not None:
            yield value
            current = current + value if previous and current >= 20 else float(value)
            previous = True
        elif word in _SCALES and previous:
            current = max(current, 1.0) * _SCALES[word]
            if current >= 1000:
                total, current = total + current, 0.0
        elif word != "and" or not previous:
            previous, total, current = False, 0.0, 0.0
        yield total + current
        if following == "" and previous:
            yield total + current
