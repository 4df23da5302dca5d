"""Benchmarks: readers of task files, call parsing and checking, metrics."""

from ttsi_jax.tasks.calls import CallSyntaxError, NoCallError, parse_calls, read_calls, render_call
from ttsi_jax.tasks.downloads import fetch
from ttsi_jax.tasks.example import Call, Example, GoldCall, Task, Tool
from ttsi_jax.tasks.faults import Faults, count_faults, unmatchable
from ttsi_jax.tasks.metrics import MicroF1, call_correct, micro_f1, normalise, tool_correct
from ttsi_jax.tasks.registry import TASK_NAMES, TaskInfo, describe_tasks, load_task
from ttsi_jax.tasks.schema import SchemaError, check_call, mistyped, normalise_parameters

__all__ = [
    "TASK_NAMES",
    "Call",
    "CallSyntaxError",
    "Example",
    "Faults",
    "GoldCall",
    "MicroF1",
    "NoCallError",
    "SchemaError",
    "Task",
    "TaskInfo",
    "Tool",
    "call_correct",
    "check_call",
    "mistyped",
    "count_faults",
    "describe_tasks",
    "fetch",
    "load_task",
    "micro_f1",
    "normalise",
    "normalise_parameters",
    "parse_calls",
    "read_calls",
    "render_call",
    "tool_correct",
    "unmatchable",
]
