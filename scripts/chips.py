"""What accelerators can do, as their makers state it."""

from __future__ import annotations

from typing import NamedTuple

from bounds import Machine

GIB = 2**30


class Chip(NamedTuple):
    """One chip: bfloat16 FLOP/s, bytes per second, the bytes that its compiler gives to a program, bytes per second
    that it can send to other chips, and what it costs."""

    flops: float
    bandwidth: float
    memory: float
    connections: float
    price: float  # US dollars an hour, assumed

    @property
    def machine(self) -> Machine:
        return Machine(self.flops, self.bandwidth)


# https://cloud.google.com/tpu/docs/system-architecture-tpu-vm, https://www.nvidia.com/en-us/data-center/h200; a TPU's
# memory as its compiler states it. Prices are assumptions, looked up by nobody: they differ by region and contract.
CHIPS = {
    "v4": Chip(275e12, 1228e9, 30.75 * GIB, 300e9, 3.22),
    "v5e": Chip(197e12, 819e9, 15.75 * GIB, 200e9, 1.20),
    "v5p": Chip(459e12, 2765e9, 95.74 * GIB, 600e9, 4.20),
    "v6e": Chip(918e12, 1640e9, 31.25 * GIB, 400e9, 2.70),
    "h200": Chip(989e12, 4800e9, 131.0 * GIB, 450e9, 4.00),
}
TPUS = ("v4", "v5e", "v5p", "v6e")
