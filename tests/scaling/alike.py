"""Records that are the same but for rounding."""

from typing import Any

import numpy as np


def assert_alike(one: Any, other: Any, where: str) -> None:
    """The same but for rounding."""
    if isinstance(one, dict):
        assert one.keys() == other.keys(), where
        for key in one:
            assert_alike(one[key], other[key], f"{where}.{key}")
    elif isinstance(one, list):
        assert len(one) == len(other), where
        for index, pair in enumerate(zip(one, other, strict=True)):
            assert_alike(*pair, f"{where}[{index}]")
    elif isinstance(one, float):
        np.testing.assert_allclose(other, one, rtol=0, atol=1e-4, err_msg=where)
    else:
        assert one == other, where
