"""Everything that reads files or a model's words, as functions of bytes that raise nothing but what is documented."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path

from reliability.cases import GOOD_LINE, safetensors
from reliability.model_cases import LLAMA, array, gguf, info, pair, text
from reliability.task_cases import CONFIG, RECORD
from ttsi_jax.checkpoints.config import from_gguf, from_hf
from ttsi_jax.checkpoints.files import read_json
from ttsi_jax.checkpoints.gguf import GgufFile
from ttsi_jax.checkpoints.safetensors import SafetensorsFiles
from ttsi_jax.checkpoints.tokenizer import tokenizer_from_gguf
from ttsi_jax.errors import InputError, ModelFileError
from ttsi_jax.quality.checks import Evidence, examine
from ttsi_jax.runs.compare import compare
from ttsi_jax.runs.comparison_tables import comparison_tables
from ttsi_jax.runs.groups import load_run
from ttsi_jax.runs.report import render_report
from ttsi_jax.runs.table import examples_table
from ttsi_jax.synthesis import read_pair, read_request
from ttsi_jax.tasks import CallSyntaxError, call_correct, check_call, parse_calls, render_call
from ttsi_jax.tasks.hammer import load_hammer
from ttsi_jax.tasks.jsonl import load_jsonl
from ttsi_jax.tasks.pieces import call_pieces
from ttsi_jax.tasks.prompts import render_tools


@cache
def folder() -> Path:
    """Where data becomes a file: in memory, where the system has such a place."""
    memory = Path("/dev/shm")
    made = tempfile.mkdtemp(dir=memory if os.access(memory, os.W_OK) else None)
    return Path(made)


def written(name: str, data: bytes) -> Path:
    path = folder() / name
    path.write_bytes(data)
    return path


def read_calls(data: bytes) -> None:
    """What a model says, as calls and as a synthetic pair."""
    said = data.decode("utf-8", "replace")
    read_request(said)
    examine(read_pair(said), Evidence("seed", _tools()))
    try:
        calls = parse_calls(said)
    except CallSyntaxError:
        return
    call_correct(calls, ())
    for call in calls:
        check_call(call, _tools())
        "".join(call_pieces(call)).encode()
        assert parse_calls(render_call(call)) == [call]


@cache
def _tools():  # noqa: ANN202
    return load_jsonl(written("good.jsonl", GOOD_LINE.encode())).examples[0].tools


def read_task_lines(data: bytes) -> None:
    for example in load_jsonl(written("task.jsonl", data)).examples:
        render_tools(example.tools).encode()


def read_task_array(data: bytes) -> None:
    try:
        load_hammer(written("task.json", data))
    except InputError:
        pass


def read_gguf(data: bytes) -> None:
    try:
        file = GgufFile(written("model.gguf", data))
        if not file.problems:
            for name in file.shapes:
                for _ in file.blocks(name):
                    pass
        from_gguf(file.metadata, file.shapes)
        tokenizer_from_gguf(file.metadata)
    except ModelFileError:
        pass


def read_safetensors(data: bytes) -> None:
    try:
        file = SafetensorsFiles([written("model.safetensors", data)])
        for name, shape in file.shapes.items():
            if not file.problems and shape and min(shape) > 0:  # others fit no model and are refused before
                for _ in file.blocks(name):
                    pass
    except ModelFileError:
        pass


def read_config(data: bytes) -> None:
    try:
        from_hf(read_json(written("config.json", data)))
    except ModelFileError:
        pass


def read_report(data: bytes) -> None:
    """A run's records, and every table and page that is made of them."""
    run = folder() / "run"
    run.mkdir(exist_ok=True)
    (run / "config.json").write_text(CONFIG)
    (run / "records.jsonl").write_bytes(data)
    try:
        runs = {"run": load_run(run)}
    except InputError:
        return
    render_report(runs).encode()
    comparison_tables(compare(runs))
    examples_table(runs["run"].records)


READERS: dict[str, Callable[[bytes], None]] = {
    "calls": read_calls,
    "task_lines": read_task_lines,
    "task_array": read_task_array,
    "gguf": read_gguf,
    "safetensors": read_safetensors,
    "config": read_config,
    "report": read_report,
}

ENTRY = {"query": "a", "tools": [{"name": "f", "parameters": {"a": {"type": "list[int]", "required": True}}}],
         "answers": [{"tool": "f", "parameters": {"a": [1]}}]}  # fmt: skip
SCHEMA = {"type": "dict", "properties": {"a": {"anyOf": [{"type": "string", "enum": ["x", 1]}, {"type": "null"}]}},
          "required": ["a"], "additionalProperties": {"type": "any"}}  # fmt: skip
CALL = {"name": "add", "arguments": {"a": "1", "b": [1.5, {"c": None}]}}
FULL = RECORD | {
    "log_likelihoods": [None, -1.5], "losses": [1.0, 0.5], "adapted": True, "uncertain": True, "pick": "f",
    "synthetic": [{"query": "q", "calls": [CALL], "accepted": True, "reason": None}], "base_calls": [CALL],
    "calls": [CALL], "gold": [CALL], "call_correct_base": False, "call_correct": True, "seconds": {"score": 0.5},
    "tool_correct_base": True, "tool_correct": True, "pick_correct": True, "pick_correct_base": True, "reason": "r",
}  # fmt: skip
VOCABULARY = (
    pair("tokenizer.ggml.model", 8, text("gpt2")),
    pair("tokenizer.ggml.pre", 8, text("smollm")),
    pair("tokenizer.ggml.tokens", 9, array(8, 3, text("a") + text("b") + text("ab"))),
    pair("tokenizer.ggml.token_type", 9, array(5, 3, b"\1\0\0\0" * 3)),
    pair("tokenizer.ggml.merges", 9, array(8, 1, text("a b"))),
    pair("tokenizer.ggml.eos_token_id", 4, b"\2\0\0\0"),
    pair("tokenizer.chat_template", 8, text("{{ messages[-1].content }}")),
)
SIZES = tuple(
    pair(f"llama.{key}", 4, value.to_bytes(4, "little"))
    for key, value in (("attention.head_count", 2), ("embedding_length", 4), ("block_count", 1),
                       ("feed_forward_length", 8), ("context_length", 64))
)  # fmt: skip
SEEDS: dict[str, list[bytes]] = {
    "calls": [
        json.dumps(CALL).encode(),
        json.dumps([CALL, CALL]).encode(),
        b"<tool_call>\n" + json.dumps(CALL).encode() + b"\n</tool_call>",
        b'Sure:\n```json\n{"name": "add", "arguments": "{\\"a\\": true}"}\n```',
        b'[add(a="x", b=[1, -2.5, {"c": None}]), math.greet(loud=true)]',
        b'{"request": "Add 1", "call": {"name": "add", "arguments": {"a": "1"}}}',
        b'{"type": "function", "function": {"name": "add", "parameters": {}}}',
    ],
    "task_lines": [
        GOOD_LINE.encode(),
        json.dumps({"id": 1, "messages": [{"role": "user", "content": "a"}, {"role": "tool", "content": "b"}],
                    "tools": [{"type": "function", "function": {"name": "f", "parameters": SCHEMA}}],
                    "calls": [CALL]}).encode(),
    ],
    "task_array": [
        json.dumps([ENTRY, ENTRY]).encode(),
        b'[{"query": [{"role": "agent", "content": "a"}], "tools": []}]',
    ],
    "gguf": [
        gguf((LLAMA, *SIZES, *VOCABULARY), (info("token_embd.weight", (4, 3)), info("x", (32,), 8, 64)), b"\1" * 128),
        gguf((LLAMA,), tuple(info(f"t{kind}", (256,), kind, 2048 * kind) for kind in (0, 1)), b"\7" * 4096),
    ],
    "safetensors": [
        safetensors({"x": {"dtype": "F32", "shape": [2, 1], "data_offsets": [0, 8]},
                     "y": {"dtype": "BF16", "shape": [4], "data_offsets": [8, 16]}}, b"\0" * 16),
        safetensors({"__metadata__": {"format": "pt"}}),
    ],
    "config": [
        json.dumps({"model_type": "llama", "vocab_size": 8, "hidden_size": 8, "intermediate_size": 8,
                    "num_hidden_layers": 1, "num_attention_heads": 2, "max_position_embeddings": 64,
                    "rope_scaling": {"rope_type": "llama3", "factor": 8, "low_freq_factor": 1, "high_freq_factor": 4,
                                     "original_max_position_embeddings": 32}}).encode(),
        json.dumps({"model_type": "gemma3", "text_config": {
            "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 2, "sliding_window": 8,
            "layer_types": ["sliding_attention", "full_attention"], "rope_parameters": {
                "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
                "sliding_attention": {"rope_type": "default", "rope_theta": 1e4}}}}).encode(),
    ],
    "report": [json.dumps(RECORD).encode() + b"\n", (json.dumps(FULL) + "\n").encode() * 2],
}  # fmt: skip
