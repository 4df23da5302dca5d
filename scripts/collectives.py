"""The communication between devices that a compiled program's text asks for."""

from __future__ import annotations

import re
from collections import defaultdict
from math import prod
from typing import NamedTuple

import numpy as np

KIND = re.compile(
    r" (all-reduce|all-gather|all-to-all|ragged-all-to-all|collective-permute|collective-broadcast|reduce-scatter)"
    r"(-start)?\("
)
_COMPUTATION = re.compile(r"(?:ENTRY )?%([\w-]+)[\w.-]* \(")
_ARRAY = re.compile(r"(pred|[a-z]+(\d+)[a-z0-9]*)\[([\d,]*)\]")


class Traffic(NamedTuple):
    """What collectives move, in bytes of each device."""

    received: dict[str, float]  # by kind
    sent: float  # at least, in a ring (Thakur et al., IJHPCA 19, 2005)


def collectives(text: str, n_devices: int) -> Traffic:
    """The collectives of a program without loops, compiled for so many devices.

    A TPU's compiler writes one that goes on beside other work several times: in the fusions where it begins and ends,
    and in those that go on with it. A reduce-scatter it writes as an all-reduce, of which each device cuts its share.
    """
    received, sent = defaultdict[str, float](float), 0.0
    share, scatters = 1.0, False
    for line in text.splitlines():
        if begins := _COMPUTATION.match(line):
            share = {"async_collective_fusion": 0.0, "fused_computation": 0.5}.get(begins[1], 1.0)
            scatters = begins[1] == "all-reduce-scatter"
        if found := KIND.search(line):
            result = line[: found.start()].partition(" = ")[2]
            sizes = [_bytes(*array.groups()) for array in _ARRAY.finditer(result)]
            if found[2]:  # what starts one that ends elsewhere lists its arguments before its results, most do
                starts = {"all-reduce": sizes, "collective-permute": sizes[1:2]}
                sizes = starts.get(found[1], sizes[len(sizes) // 2 :])
            n, kind, own = max(map(len, groups(line, n_devices))), found[1], share * sum(sizes)
            if scatters:
                kind, own = "reduce-scatter", own / n
            received[kind] += own
            sent += own * _sent(kind, n)
    return Traffic(dict(received), sent)


def _sent(kind: str, n: int) -> float:
    """What each of n devices sends, as a share of what it is given."""
    special = {"all-reduce": 2 * (n - 1) / n, "reduce-scatter": n - 1.0, "collective-permute": 1.0}
    return special.get(kind, (n - 1) / n)


def groups(line: str, n_devices: int) -> list[list[int]]:
    """The devices that take part in a collective together."""
    if found := re.search(r"(?:replica_groups|source_target_pairs)=\{(\{[\d,{} ]*\})\}", line):
        return [[int(n) for n in own.split(",")] for own in re.findall(r"\{([\d, ]+)\}", found[1])]
    if found := re.search(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", line):
        shape, dims, order = ([int(n) for n in part.split(",")] if part else None for part in found.groups())
        assert shape and dims
        return np.arange(prod(dims)).reshape(dims).transpose(order).reshape(shape).tolist()
    if found := re.search(r"replica_groups=mesh\[([^]]*)\] \{([^}:]*)\}", line):
        sizes = [int(n) for n in re.findall(r"=(\d+)", found[1])]
        assert prod(sizes) == n_devices and "device_ids" not in found[1]
        within = [int(n) for n in re.findall(r"axis_(\d+)", found[2])]
        order = [axis for axis in range(len(sizes)) if axis not in within] + within
        return np.arange(n_devices).reshape(sizes).transpose(order).reshape(-1, prod(sizes[i] for i in within)).tolist()
    return [list(range(n_devices))]


def _bytes(dtype: str, bits: str | None, shape: str) -> int:
    size = 1 if dtype == "pred" else max(1, int(bits or 8) // 8)
    return size * prod(int(n) for n in shape.split(",") if n)
