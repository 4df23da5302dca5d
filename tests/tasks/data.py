"""Where the real data is, and small entries to build broken ones from."""

from importlib import metadata
from pathlib import Path

import pytest

SHARED = Path(__file__).parents[3] / "shared" / "data"
HAMMER = SHARED / "hammer"

needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason="needs ../shared/data")


def has_bfcl() -> bool:
    try:
        metadata.distribution("bfcl-eval")
    except metadata.PackageNotFoundError:
        return False
    return True


needs_bfcl = pytest.mark.skipif(not has_bfcl(), reason="needs bfcl-eval")

WEATHER = {
    "name": "get_weather",
    "description": "The weather in a city.",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}
LINE = {"query": "Is it raining in Oslo?", "tools": [WEATHER], "calls": [{"name": "get_weather", "arguments": {}}]}
