"""Model files that are damaged, absurd or of another kind: all end with exit code 3."""

from __future__ import annotations

import json
import pickle
import struct
from typing import Any

import numpy as np

from reliability.cases import Case, Content, changed, cut, safetensors, with_header

WEIGHTS, INDEX = "model/model.safetensors", "model/model.safetensors.index.json"
NORM = "model.norm.weight"
F32 = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
BAD = "is not a complete safetensors file"


def weights(name: str, said: str, content: Content) -> Case:
    return Case(f"weights: {name}", 3, said, {WEIGHTS: content})


def entry(**values: Any) -> Content:
    """The norm's entry with other values."""
    return with_header(lambda header: header[NORM].update(values))


def value(number: float) -> Content:
    """One of the norm's values is `number`."""

    def change(content: bytes) -> bytes:
        (length,) = struct.unpack("<Q", content[:8])
        start, _ = json.loads(content[8 : 8 + length])[NORM]["data_offsets"]
        place = 8 + length + start
        return content[:place] + struct.pack("<f", number) + content[place + 4 :]

    return change


SAFETENSORS = (
    weights("empty", BAD, b""),
    weights("one byte", BAD, b"\0"),
    weights("seven bytes", BAD, b"\0" * 7),
    weights("zeros", BAD, b"\0" * 4096),
    weights("ones", BAD, b"\xff" * 4096),
    weights("header of 2**62 bytes", BAD, struct.pack("<Q", 2**62)),
    weights("header of 2**64 - 1 bytes", BAD, struct.pack("<Q", 2**64 - 1) + b"{}"),
    weights("header one byte too long", BAD, safetensors({"x": F32}, b"", 61)),
    weights("header longer than the file", BAD, safetensors({}, b"", 1 << 20)),
    weights("header of no bytes", BAD, safetensors(b"", b"\0" * 8)),
    weights("header is no JSON", BAD, safetensors(b"{" * 40)),
    weights("header is a list", BAD, safetensors([1])),
    weights("header is a text", BAD, safetensors("model")),
    weights("header is not UTF-8", BAD, safetensors(b'{"\xff\xfe": 1}')),
    weights("header nested 100,000 deep", BAD, safetensors(b'{"a":' * 100_000)),
    weights("tensor is a number", BAD, safetensors({"x": 1})),
    weights("no offsets", BAD, safetensors({"x": {"dtype": "F32", "shape": [2]}}, b"\0" * 8)),
    weights("no dtype", BAD, safetensors({"x": {"shape": [2], "data_offsets": [0, 8]}}, b"\0" * 8)),
    weights("no shape", BAD, safetensors({"x": {"dtype": "F32", "data_offsets": [0, 8]}}, b"\0" * 8)),
    weights("three offsets", BAD, safetensors({"x": F32 | {"data_offsets": [0, 4, 8]}}, b"\0" * 8)),
    weights("unknown dtype", BAD, entry(dtype="F7")),
    weights("dtype is a number", BAD, entry(dtype=4)),
    weights("integers", "tensor x is I32, not one of F64, F32, F16, BF16", safetensors({"x": F32 | {"dtype": "I32"}}, b"\0" * 8)),
    weights("booleans", "tensor x is BOOL", safetensors({"x": F32 | {"dtype": "BOOL", "shape": [8]}}, b"\0" * 8)),
    weights("dtype of another size", BAD, entry(dtype="F64")),
    weights("negative shape", BAD, entry(shape=[-64])),
    weights("shape is a number", BAD, entry(shape=64)),
    weights("fractional shape", BAD, entry(shape=[64.5])),
    weights("shape of 2**60", BAD, entry(shape=[2**60])),
    weights("shape whose product overflows", BAD, entry(shape=[2**33, 2**33])),
    weights("offsets reversed", BAD, with_header(lambda h: h[NORM]["data_offsets"].reverse())),
    weights("offsets negative", BAD, entry(data_offsets=[-256, 0])),
    weights("offsets overlap", BAD, with_header(lambda h: h[NORM].update(data_offsets=[0, 256]))),
    weights("offsets past the end", BAD, entry(data_offsets=[2**40, 2**40 + 256])),
    weights("a hole between tensors", BAD, safetensors({"x": F32, "y": F32 | {"data_offsets": [16, 24]}}, b"\0" * 24)),
    weights("metadata is a list", BAD, with_header(lambda h: h | {"__metadata__": [1]})),
    *(weights(f"cut to {share:.0%}", BAD, cut(share)) for share in (0.01, 0.1, 0.5, 0.9, 0.999)),
    weights("more bytes than tensors", BAD, lambda content: content + b"\0" * 64),
    weights("no tensors", "missing tensor model.embed_tokens.weight", safetensors({})),
    weights("one tensor too many", "unknown tensor model.layers.9.x", with_header(lambda h: h.update({"model.layers.9.x": h.pop(NORM)}))),
    weights("one tensor missing", f"missing tensor {NORM} [64]", with_header(lambda h: h.update({"y": h.pop(NORM)}))),
    weights("a shape that does not fit", f"tensor {NORM} has shape [2, 32], expected [64]", entry(shape=[2, 32])),
    weights("NaN", f"tensor {NORM} has values that are not finite in float32", value(float("nan"))),
    weights("infinity", f"tensor {NORM} has values that are not finite in float32", value(float("inf"))),
    weights("minus infinity", f"tensor {NORM} has values that are not finite", value(float("-inf"))),
    weights("a web page", BAD, b"<!DOCTYPE html><html><body>404 Not Found</body></html>"),
    weights("a pointer of Git LFS", BAD, b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 4\n"),
    weights("a pickle", BAD, pickle.dumps({"model": [1.0] * 100})),
    weights("a zip archive", BAD, b"PK\x03\x04" + b"\0" * 200),
    Case("weights: PyTorch's pickle alone", 3, "PyTorch pickle files only, which can run code and are not read", {WEIGHTS: None, "model/pytorch_model.bin": b"x"}),
    Case("weights: none", 3, "has neither model.safetensors nor model.safetensors.index.json", {WEIGHTS: None}),
    *(
        Case(f"index: {name}", 3, said, {WEIGHTS: None, "model/a.safetensors": lambda c: c, INDEX: content})
        for name, said, content in (
            ("no JSON", "is not valid JSON", "{"),
            ("no weight_map", "has no weight_map of tensor names to file names", "{}"),
            ("files that are numbers", "has no weight_map", '{"weight_map": {"x": 1}}'),
            ("files elsewhere", "lacks ../good.jsonl", '{"weight_map": {"x": "../good.jsonl"}}'),
            ("absolute paths", "lacks /etc/passwd", '{"weight_map": {"x": "/etc/passwd"}}'),
            ("files that are not there", "lacks b.safetensors", '{"weight_map": {"x": "b.safetensors"}}'),
            ("no files", "missing tensor", '{"weight_map": {}}'),
        )
    ),
)  # fmt: skip


def config(name: str, said: str, content: Content) -> Case:
    return Case(f"config: {name}", 3, said, {"model/config.json": content})


WRONG = "config.json"
CONFIGS = (
    config("none", "model/config.json cannot be read: No such file", None),
    config("empty", "is not valid JSON", ""),
    config("cut", "is not valid JSON", cut(0.5)),
    config("a list", "holds a list, not a JSON object", "[]"),
    config("not UTF-8", "is not valid JSON", b'{"model_type": "\xff"}'),
    config("nested 100,000 deep", "is not valid JSON", "[" * 100_000),
    config("no settings", "architecture 'None' is not supported", "{}"),
    config("another architecture", "architecture 'mamba' is not supported; supported: llama, qwen2, qwen3, gemma3", changed(model_type="mamba")),
    config("architecture is a list", "architecture '['llama']' is not supported", changed(model_type=["llama"])),
    config("no hidden_size", "lacks 'hidden_size'", changed(hidden_size=...)),
    *(
        config(f"hidden_size {value!r}", f"hidden_size is {value!r}, not a whole number", changed(hidden_size=value))
        for value in (0, -64, 10**9, 64.5, "64", True, None, [64])
    ),
    config("10**9 layers", "num_hidden_layers is 1000000000, not a whole number from 1 to 1000", changed(num_hidden_layers=10**9)),
    config("vocabulary of 2**40", "vocab_size is 1099511627776, not a whole number", changed(vocab_size=2**40)),
    config("heads that do not fit", "4 attention heads cannot be shared by 3 key-value heads", changed(num_key_value_heads=3)),
    config("odd head_dim", "of an odd head_dim, is not supported", changed(head_dim=15)),
    config("context of no tokens", "max_position_embeddings is 0", changed(max_position_embeddings=0)),
    config("another activation", "activation 'relu' is not supported for llama", changed(hidden_act="relu")),
    config("biased attention", "attention_bias = True is not supported", changed(attention_bias=True)),
    config("another rope", "rope scaling 'yarn' is not supported", changed(rope_scaling={"rope_type": "yarn", "factor": 2})),
    config("rope without a factor", "lacks 'factor'", changed(rope_scaling={"rope_type": "linear"})),
    config("rope factor 0", "rope factor is 0, not a positive number", changed(rope_scaling={"rope_type": "linear", "factor": 0})),
    config("rope is a list", "has a value of the wrong kind", changed(rope_scaling=[1])),
    config("rope theta NaN", "rope_theta is nan, not a positive number", changed(rope_theta=float("nan"))),
    config("epsilon 0", "rms_norm_eps is 0", changed(rms_norm_eps=0)),
    config("layer types of another count", "layer_types must name", changed(layer_types=["full_attention"])),
    config("layer types of another kind", "layer_types must name", changed(layer_types=["a", "b"])),
    config("vocabulary below the tokenizer's", "the tokenizer has", changed(vocab_size=100)),
    config("end token that is none", "end-of-sequence ids [100000] are not tokens", changed(eos_token_id=100_000)),
    config("end token as text", "end-of-sequence ids ['</s>'] are not tokens", changed(eos_token_id="</s>")),
    Case("config: generation_config is a list", 3, "generation_config.json holds a list", {"model/generation_config.json": "[]"}),
)  # fmt: skip


def tokenizer(name: str, said: str, content: Content) -> Case:
    return Case(f"tokenizer: {name}", 3, said, {"model/tokenizer.json": content})


def template(name: str, said: str, text: Any) -> Case:
    return Case(f"template: {name}", 3, said, {"model/tokenizer_config.json": changed(chat_template=text)})


UNUSABLE = "cannot be used as a tokenizer"
TOKENIZERS = (
    tokenizer("none", "model/tokenizer.json cannot be read", None),
    tokenizer("empty", "is not valid JSON", ""),
    tokenizer("a list", "holds a list", "[]"),
    tokenizer("an empty object", UNUSABLE, "{}"),
    tokenizer("cut", "is not valid JSON", cut(0.5)),
    tokenizer("not UTF-8", "is not valid JSON", b'{"model": "\xff"}'),
    tokenizer("another model", UNUSABLE, changed(model={"type": "Neural", "vocab": {}})),
    tokenizer("no model", UNUSABLE, changed(model=...)),
    tokenizer("negative ids", UNUSABLE, changed(model={"type": "BPE", "vocab": {"a": -1}, "merges": []})),
    tokenizer("merges of unknown tokens", UNUSABLE, changed(model={"type": "BPE", "vocab": {"a": 0}, "merges": ["x y"]})),
    tokenizer("a broken regular expression", UNUSABLE, changed(pre_tokenizer={"type": "Split", "pattern": {"Regex": "("}, "behavior": "Isolated", "invert": False})),
    tokenizer("added tokens are numbers", UNUSABLE, changed(added_tokens=[1, 2])),
    Case("tokenizer: settings are no JSON", 3, UNUSABLE, {"model/tokenizer_config.json": "{"}),
    Case("tokenizer: settings are a list", 3, UNUSABLE, {"model/tokenizer_config.json": "[]"}),
    template("none", "has no chat template: an instruct (chat) model is needed", ...),
    template("empty", "has no chat template", ""),
    template("a number", "chat template", 5),
    template("does not parse", "the chat template cannot be rendered", "{% for m in messages %}"),
    template("refuses", "the chat template cannot be rendered: no thanks", "{{ raise_exception('no thanks') }}"),
    template("unknown filter", "the chat template cannot be rendered", "{{ messages | sendmail }}"),
    template("unknown method", "the chat template cannot be rendered", "{{ messages.run() }}"),
    template("divides by zero", "the chat template cannot be rendered", "{{ 1 / 0 }}"),
    template("a loop of 10**9", "the chat template cannot be rendered: Range too big", "{% for i in range(1000000000) %}x{% endfor %}"),
    template("calls itself without end", "the chat template cannot be rendered", "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}"),
    template("reaches for Python", "the chat template cannot be rendered", "{{ ''.__class__.__mro__[1].__subclasses__()[0]() }}"),
    template("reads a file", "the chat template cannot be rendered", "{% include '/etc/passwd' %}"),
    template("imports", "the chat template cannot be rendered", "{{ cycler.__init__.__globals__.os.system('true') }}"),
    template("changes the messages", "the chat template cannot be rendered", "{{ messages.append(1) }}"),
    template("leaves the answer out", "the chat template leaves out what the assistant said", "{{ messages[0].content }}"),
)  # fmt: skip


# GGUF files by hand: little-endian header, then metadata, then tensors.


def text(value: str | bytes) -> bytes:
    raw = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(raw)) + raw


def pair(key: str | bytes, kind: int, value: bytes) -> bytes:
    return text(key) + struct.pack("<I", kind) + value


def array(kind: int, count: int, values: bytes = b"") -> bytes:
    return struct.pack("<IQ", kind, count) + values


def info(name: str, shape: tuple[int, ...] = (4,), kind: int = 0, offset: int = 0, n: int | None = None) -> bytes:
    dimensions = struct.pack(f"<{len(shape)}Q", *shape)
    return (
        text(name) + struct.pack("<I", len(shape) if n is None else n) + dimensions + struct.pack("<IQ", kind, offset)
    )


def gguf(
    pairs: tuple[bytes, ...] = (), infos: tuple[bytes, ...] = (), data: bytes = b"\0" * 256, *,
    magic: bytes = b"GGUF", version: int = 3, n_tensors: int | None = None, n_pairs: int | None = None,
) -> bytes:  # fmt: skip
    counts = len(infos) if n_tensors is None else n_tensors, len(pairs) if n_pairs is None else n_pairs
    header = magic + struct.pack("<IQQ", version, *counts) + b"".join(pairs) + b"".join(infos)
    return header + b"\0" * (-len(header) % 32) + data


def from_good(name: str, said: str, content: Content) -> Case:
    return Case(f"gguf: {name}", 3, said, {"model.gguf": content}, ("run", "--model", "model.gguf", "--task", "good.jsonl"))  # fmt: skip


LLAMA = pair("general.architecture", 8, text("llama"))
GGUF = (
    from_good("empty", "model.gguf is empty", b""),
    from_good("another format", "does not begin with GGUF", b"GGML" + b"\0" * 60),
    from_good("three bytes", "ends inside its header", b"GGU"),
    from_good("version 1", "is GGUF version 1; supported: 2, 3", gguf(version=1)),
    from_good("version 4", "is GGUF version 4", gguf(version=4)),
    from_good("big-endian", "is a big-endian GGUF file", gguf(version=3 << 24)),
    from_good("2**63 tensors", "tensors and 0 metadata entries, more than it can hold", gguf(n_tensors=2**63)),
    from_good("2**63 entries", "metadata entries, more than it can hold", gguf(n_pairs=2**63)),
    from_good("counts that overflow together", "more than it can hold", gguf(n_tensors=2**64 - 1, n_pairs=2**64 - 1)),
    from_good("more entries than there are", "", gguf((LLAMA,), n_pairs=9)),
    *(from_good(f"cut to {share:.1%}", "", cut(share)) for share in (0.0005, 0.005, 0.02, 0.1, 0.5, 0.999)),
    from_good("a key of 2**62 bytes", "ends inside its header", gguf((struct.pack("<Q", 2**62),), n_pairs=1)),
    from_good("a text of 2**62 bytes", "ends inside its header", gguf((text("a") + struct.pack("<IQ", 8, 2**62),))),
    from_good("a key that is not UTF-8", "a text that is not UTF-8", gguf((pair(b"\xff\xfe", 4, b"\0" * 4),))),
    from_good("a text that is not UTF-8", "a text that is not UTF-8", gguf((pair("a", 8, text(b"\xff")),))),
    from_good("a key twice", "has the metadata key 'general.architecture' twice", gguf((LLAMA, LLAMA))),
    from_good("a value of unknown type", "a metadata value of unknown type 99", gguf((pair("a", 99, b"\0" * 8),))),
    from_good("an array of 2**60", "claims an array of", gguf((pair("a", 9, array(4, 2**60)),))),
    from_good("an array of 2**22 that is not there", "ends inside its header", gguf((pair("a", 9, array(4, 2**22)),))),
    from_good("texts that are not there", "more than the file can hold", gguf((pair("a", 9, array(8, 2**20)),))),
    from_good("arrays of arrays", "has an array of type 9", gguf((pair("a", 9, array(9, 1, array(4, 0))),))),
    from_good("an array of unknown type", "has an array of type 77", gguf((pair("a", 9, array(77, 1)),))),
    from_good("no dimensions", "has 0 dimensions", gguf((LLAMA,), (info("x", ()),))),
    from_good("2**31 dimensions", "dimensions (1 to 4 are possible)", gguf((LLAMA,), (info("x", n=2**31),))),
    from_good("a dimension of 0", "is damaged or incomplete: tensor x [0]", gguf((LLAMA,), (info("x", (0,)),))),
    from_good("2**62 values", "is damaged or incomplete", gguf((LLAMA,), (info("x", (2**62,)),))),
    from_good("a product that overflows", "is damaged or incomplete", gguf((LLAMA,), (info("x", (2**33, 2**33)),))),
    from_good("a tensor of unknown type", "which the installed gguf does not know", gguf((LLAMA,), (info("x", kind=999),))),
    from_good("half a block", "in Q8_0 blocks of 32", gguf((LLAMA,), (info("x", (33,), kind=8),))),
    from_good("an offset past the end", "is damaged or incomplete", gguf((LLAMA,), (info("x", offset=2**40),))),
    from_good("an offset that overflows", "is damaged or incomplete", gguf((LLAMA,), (info("x", offset=2**64 - 32),))),
    from_good("offsets that overlap", "says tensors x and y overlap", gguf((LLAMA,), (info("x", (16,)), info("y", offset=32)))),
    from_good("the same offset twice", "says tensors x and y overlap", gguf((LLAMA,), (info("x"), info("y")))),
    from_good("an offset that is not aligned", "says tensor x begins at byte 5", gguf((LLAMA,), (info("x", offset=5),))),
    from_good("a tensor twice", "has the tensor x twice", gguf((LLAMA,), (info("x"), info("x", offset=32)))),
    from_good("alignment 3", "has general.alignment = 3, not a power of two", gguf((pair("general.alignment", 4, struct.pack("<I", 3)),))),
    from_good("alignment is text", "has general.alignment = 'x'", gguf((pair("general.alignment", 8, text("x")),))),
    from_good("no architecture", "architecture 'None' is not supported", gguf()),
    from_good("another architecture", "architecture 'mamba' is not supported", gguf((pair("general.architecture", 8, text("mamba")),))),
    from_good("no embedding", "has no two-dimensional token_embd.weight", gguf((LLAMA,))),
    from_good("no sizes", "attention.head_count is None", gguf((LLAMA,), (info("token_embd.weight", (4, 4)),))),
    from_good("infinite norm", "has values that are not finite", lambda c: c[:-4] + struct.pack("<f", np.inf)),
    from_good("a web page", "does not begin with GGUF", b"<!DOCTYPE html>" * 20),
)  # fmt: skip

PLACES = (
    Case("model: nothing there", 3, "there is no model at nowhere", argv=("run", "--model", "nowhere", "--task", "good.jsonl")),
    Case("model: an empty name", 3, "", argv=("run", "--model", "", "--task", "good.jsonl")),
    Case("model: a name of 100,000 characters", 3, "there is no model at", argv=("run", "--model", "x" * 100_000, "--task", "good.jsonl")),
    Case("model: a file of another kind", 3, "good.jsonl is neither a directory nor a .gguf file", argv=("run", "--model", "good.jsonl", "--task", "good.jsonl")),
    Case("model: an empty directory", 3, "config.json cannot be read", {"empty/x": ""}, ("run", "--model", "empty", "--task", "good.jsonl")),
    Case("model: a directory called .gguf", 3, "config.json cannot be read", {"d.gguf/x": ""}, ("run", "--model", "d.gguf", "--task", "good.jsonl")),
    Case("model: markup as its name", 3, "there is no model at [bold]x[/bold]", argv=("run", "--model", "[bold]x[/bold]", "--task", "good.jsonl")),
    Case("model: control characters as its name", 3, r"there is no model at \x1b[2Jx\x07", argv=("run", "--model", "\x1b[2Jx\x07", "--task", "good.jsonl")),
)  # fmt: skip

MODEL_CASES = (*SAFETENSORS, *CONFIGS, *TOKENIZERS, *GGUF, *PLACES)
