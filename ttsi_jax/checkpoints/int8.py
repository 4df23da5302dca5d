"""From weights in float to int8, and how a base says that it is kept so."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from ttsi_jax.model.quantized import Quantized


def quantise(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows [m, n] as int8 values and float32 scales [m, 1] such that the largest of a row is 127; symmetric.

    Values that are not finite give scales that are not.
    """
    rows = rows.astype(np.float32)
    scales = np.abs(rows).max(axis=1, keepdims=True) / np.float32(127)
    with np.errstate(invalid="ignore"):
        values = np.rint(rows / np.where(scales > 0, scales, 1))
        return np.clip(values, -127, 127).astype(np.int8), scales


def storage(params: dict[str, Any]) -> str:
    """How a base is kept: its dtype, or for int8 every kind of scale in it and the dtype that it is computed in."""
    leaves = jax.tree.leaves(params, is_leaf=lambda x: isinstance(x, Quantized))
    kinds = {str(leaf) for leaf in leaves if isinstance(leaf, Quantized)}
    return "; ".join(sorted(kinds)) or str(params["embed"].dtype)
