"""The communication between devices that a compiled program's text asks for."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping
from math import prod

KIND = re.compile(
    r" (all-reduce|all-gather|all-to-all|ragged-all-to-all|collective-permute|collective-broadcast|reduce-scatter)"
    r"(-start)?\("
)
_COMPUTATION = re.compile(r"(?:ENTRY )?%([\w-]+)[\w.-]* \(")
_ARRAY = re.compile(r"(pred|[a-z]+(\d+)[a-z0-9]*)\[([\d,]*)\]")


def collectives(text: str) -> dict[str, float]:
    """Bytes that the collectives of a program without loops give each device, by kind.

    A TPU's compiler writes one that goes on beside other work several times: in the fusions where it begins and ends,
    and in those that go on with it.
    """
    found = defaultdict[str, float](float)
    share = 1.0
    for line in text.splitlines():
        if begins := _COMPUTATION.match(line):
            share = {"async_collective_fusion": 0.0, "fused_computation": 0.5}.get(begins[1], 1.0)
        if kind := KIND.search(line):
            result = line[: kind.start()].partition(" = ")[2]
            sizes = [_bytes(*array.groups()) for array in _ARRAY.finditer(result)]
            # What starts one that ends elsewhere lists its arguments before its results.
            own = sizes[len(sizes) // 2 :] if kind[2] and kind[1] != "all-reduce" else sizes
            found[kind[1]] += share * sum(own)
    return found


def sent(found: Mapping[str, float], n: int) -> float:
    """Bytes that each of n devices sends at least for them, in a ring (Thakur et al., IJHPCA 19, 2005)."""
    share = (n - 1) / n
    times = {"all-reduce": 2 * share, "reduce-scatter": n - 1.0, "collective-permute": 1.0}  # of the result
    return sum(times.get(kind, share) * size for kind, size in found.items())


def _bytes(dtype: str, bits: str | None, shape: str) -> int:
    size = 1 if dtype == "pred" else max(1, int(bits or 8) // 8)
    return size * prod(int(n) for n in shape.split(",") if n)
