# pyright: strict
"""What the model's programs do on a device mesh, the one that `jax.set_mesh` has made current.

Its axis `data` divides the rows of a wave: `map_rows` gives each part of the devices its own, with loops of their own
length and without communication. The axis `model` divides the weights (`ttsi_jax.scaling.mesh` says how) and is left to
XLA's partitioner, which adds the collectives that they need. Without a mesh nothing here changes a program.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import PartitionSpec

DATA, MODEL = "data", "model"


def map_rows(function: Callable[..., Any], shared: tuple[Any, ...], rows: tuple[Any, ...]) -> Any:
    """`function(*shared, *rows)` on each part of a wave: every array in `rows`, and of the result, has a leading axis
    that is divided over `data`; those in `shared` are the same for all parts."""
    if jax.sharding.get_abstract_mesh().shape.get(DATA, 1) == 1:
        return function(*shared, *rows)
    specs = (PartitionSpec(),) * len(shared) + (PartitionSpec(DATA),) * len(rows)
    divided = jax.shard_map(function, in_specs=specs, out_specs=PartitionSpec(DATA), axis_names={DATA}, check_vma=False)
    return divided(*shared, *rows)
