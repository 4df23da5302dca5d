"""The communication between devices that a compiled program's text asks for."""

from __future__ import annotations

import re
from collections import Counter
from math import prod

KIND = re.compile(
    r" (all-reduce|all-gather|all-to-all|ragged-all-to-all|collective-permute|collective-broadcast|reduce-scatter)"
    r"(-start)?\("
)
_CHANNEL = re.compile(r"channel_id=(\d+)")  # one that is computed in pieces stands there several times
_ARRAY = re.compile(r"(pred|[a-z]+(\d+)[a-z0-9]*)\[([\d,]*)\]")


def collectives(text: str) -> Counter[str]:
    """Bytes that the collectives of a program without loops give each device, by kind."""
    found: Counter[str] = Counter()
    seen: set[str] = set()
    for line in text.splitlines():
        kind, channel = KIND.search(line), _CHANNEL.search(line)
        if kind and not (channel and channel[1] in seen):
            seen |= {channel[1]} if channel else set()
            result = line[: kind.start()].partition(" = ")[2]
            sizes = [_bytes(*array.groups()) for array in _ARRAY.finditer(result)]
            # What starts one that ends elsewhere lists its arguments before its results.
            found[kind[1]] += sum(sizes[len(sizes) // 2 :] if kind[2] and kind[1] != "all-reduce" else sizes)
    return found


def sent(found: Counter[str], n: int) -> float:
    """Bytes that each of n devices sends at least for them, in a ring (Thakur et al., IJHPCA 19, 2005)."""
    share = (n - 1) / n
    times = {"all-reduce": 2 * share, "reduce-scatter": n - 1.0, "collective-permute": 1.0}  # of the result
    return sum(times.get(kind, share) * size for kind, size in found.items())


def _bytes(dtype: str, bits: str | None, shape: str) -> int:
    size = 1 if dtype == "pred" else max(1, int(bits or 8) // 8)
    return size * prod(int(n) for n in shape.split(",") if n)
