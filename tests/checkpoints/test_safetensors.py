"""Damaged safetensors files: refused with their name, never with a traceback."""

import struct
import tracemalloc

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from checkpoints.tiny_models import hf_settings, hf_tensors, write_hf
from ttsi_jax.checkpoints import load_model
from ttsi_jax.checkpoints.safetensors import SafetensorsFiles, open_checkpoint
from ttsi_jax.errors import ModelFileError


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    chosen = hf_settings("qwen2")
    return write_hf(tmp_path_factory.mktemp("model"), chosen, hf_tensors(chosen))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        struct.pack("<Q", 2**62),
        struct.pack("<Q", 2) + b"[]",
        struct.pack("<Q", 2**20) + b"{}",
        b"\xff" * 64,
    ],
)
def test_damaged_headers(tmp_path, data):
    (tmp_path / "model.safetensors").write_bytes(data)
    tracemalloc.start()
    with pytest.raises(ModelFileError, match="model.safetensors is not a complete safetensors file"):
        open_checkpoint(tmp_path)
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()


def test_a_directory_in_place_of_the_file(tmp_path):
    (tmp_path / "model.safetensors").mkdir()
    with pytest.raises(ModelFileError, match="model.safetensors"):
        open_checkpoint(tmp_path)


def test_blocks_are_rows_in_order(tmp_path, monkeypatch):
    monkeypatch.setattr("ttsi_jax.checkpoints.safetensors.BLOCK_BYTES", 4 * 3 * 2)
    value = np.arange(21, dtype=np.float16).reshape(7, 3)
    save_file({"x": value}, tmp_path / "x.safetensors")
    blocks = list(SafetensorsFiles([tmp_path / "x.safetensors"]).blocks("x"))
    assert [len(block) for block in blocks] == [2, 2, 2, 1]
    np.testing.assert_array_equal(np.concatenate(blocks), value)


FUZZ = settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@FUZZ
@given(data=st.data())
def test_a_damaged_file_loads_or_is_refused(tiny, data):
    path = tiny / "model.safetensors"
    original = path.read_bytes()
    contents = bytearray(original)
    if data.draw(st.booleans()):
        contents = contents[: data.draw(st.integers(0, len(contents)))]
    for _ in range(data.draw(st.integers(0, 4)) if contents else 0):
        contents[data.draw(st.integers(0, min(4000, len(contents)) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(contents)
    try:
        load_model(tiny)
    except ModelFileError:
        pass
    finally:
        path.write_bytes(original)
