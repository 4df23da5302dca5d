# pyright: strict, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportUnknownLambdaType=false
"""What the model's programs do on a device mesh, the one that `jax.set_mesh` has made current.

Its axes `data` and `fsdp` divide the rows of a wave: `map_rows` gives each part of the devices its own. The axis
`model` divides the weights (`ttsi_jax.scaling.mesh` says how) and is left to XLA's partitioner, which adds the
collectives that they need. `fsdp` divides every matrix of the base along the hidden size as well, and `gathered` makes
those of a layer whole where they are used (Zhao et al., arXiv 2304.11277, for a base that is only read). Without `fsdp`
the parts run loops of their own length and do not communicate; with it they take their steps together. Without a mesh
nothing here changes a program.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import PartitionSpec

DATA, FSDP, MODEL = "data", "fsdp", "model"
ROWS = (DATA, FSDP)  # what the rows of a wave are divided over
_GATHERED = "gathered"
drop_gathered = jax.checkpoint_policies.save_anything_except_these_names(_GATHERED)


def axis_size(*axes: str) -> int:
    """How many parts these axes of the current mesh make."""
    shape, n = jax.sharding.get_abstract_mesh().shape, 1
    for axis in axes:
        n *= shape.get(axis, 1)
    return n


def map_rows(function: Callable[..., Any], shared: tuple[Any, ...], rows: tuple[Any, ...]) -> Any:
    """`function(*shared, *rows)` on each part of a wave: every array in `rows`, and of the result, has a leading axis
    that is divided over `data` and `fsdp`; those in `shared` are the same for all parts, but of the base's matrices
    each has its share."""
    if axis_size(*ROWS) == 1:
        return function(*shared, *rows)

    def share(path: tuple[Any, ...], _: Any) -> PartitionSpec:
        axis = hidden_axis(path)
        return PartitionSpec() if axis is None else PartitionSpec(*(None,) * axis, FSDP)

    specs = (*jax.tree_util.tree_map_with_path(share, shared), *(PartitionSpec(ROWS),) * len(rows))
    divided = jax.shard_map(
        function, in_specs=specs, out_specs=PartitionSpec(ROWS), axis_names={*ROWS}, check_vma=False
    )
    return divided(*shared, *rows)


def hidden_axis(path: tuple[Any, ...]) -> int | None:
    """The axis of a base's matrix that is the hidden size, from the path of its leaf; None for any other leaf."""
    names = [str(getattr(key, "key", getattr(key, "name", ""))) for key in path]
    if "scales" in names or not {"kernel", "embed"}.intersection(names):
        return None
    return int(bool({"embed", "o", "down"}.intersection(names)))


def gathered(weights: Any, x: Array) -> tuple[Any, Array]:
    """The weights whole, on a part of the devices of which each has its share; and x, which they are for.

    Until x is there they are not gathered, so that one layer after the other is whole, in every step of a loop anew.
    That holds only for those who go on with the x that is returned: the compiler drops what nobody uses.
    """
    if axis_size(FSDP) == 1:
        return weights, x
    weights, x = jax.lax.optimization_barrier((weights, x))

    def whole(path: tuple[Any, ...], x: Array) -> Array:
        axis = hidden_axis(path)
        return x if axis is None else checkpoint_name(jax.lax.all_gather(x, FSDP, axis=axis, tiled=True), _GATHERED)

    return jax.tree_util.tree_map_with_path(whole, weights), x


def in_any_part(flag: Array) -> Array:
    """Whether a flag holds in one of the parts that take their steps together."""
    if axis_size(FSDP) == 1:
        return flag
    return jax.lax.pmax(flag.astype(jnp.int32), FSDP) > 0
