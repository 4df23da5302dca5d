"""A model's answer, read as function calls and written as text. Nothing in it is ever executed."""

import ast
import json
import re
import warnings
from collections.abc import Sequence
from typing import Any

from ttsi_jax.tasks import strict_json
from ttsi_jax.tasks.example import Call

MAX_LENGTH = 20_000

_TAG = re.compile(r"<tool_call>\s*")
_JSON_START = re.compile(r'\{\s*"|\[\s*\{\s*"')
_EMPTY_LIST = re.compile(r"\[\s*\]")
_FENCED = re.compile(r"```(?:\w*[ \t]*\n)?(.*?)(?:```|\Z)", re.DOTALL)
_CALL_START = re.compile(r"\[?\s*[^\W\d][\w.]*\(\s*\w+\s*=")
_CALL_FORM = re.compile(r"[\[(]?\s*[^\W\d][\w.]*\s*\(.*\)\s*[\])]?", re.DOTALL)
_CONSTANT_NAMES = {"true": True, "false": False, "null": None}


class CallSyntaxError(ValueError):
    """A text that holds no function call, or a malformed one; the message is a short reason."""


class NoCallError(CallSyntaxError):
    """A text that does not even begin a function call, such as one in words."""


def parse_calls(text: str) -> list[Call]:
    """Reads the function calls in a model's answer.

    These forms are understood, in this order:
      1. JSON: `{"name": ..., "arguments": {...}}` or a list of such objects. The keys may also be `tool` or `function`,
         and `parameters`; the arguments may be a string that holds JSON.
      2. The same inside `<tool_call>` tags, any number of them.
      3. `f(a=1)` and `[f(a=1), g.h(b="x")]` as the whole answer or a ``` fence: keywords and literal values only.
      4. JSON with other text around it, such as prose or a fence: the first value that is a call or a list of calls.
         Text that begins like a JSON object and is none makes the answer malformed.

    Returns:
        The calls in the order of the text; `[]` only for an explicit empty list.

    Raises:
        CallSyntaxError: for a malformed call, over `MAX_LENGTH` characters or nested too deep; as `NoCallError` for a
            text without a call.
    """
    if len(text) > MAX_LENGTH:
        raise CallSyntaxError(f"the answer is longer than {MAX_LENGTH} characters")
    text = text.strip()
    if not text:
        raise NoCallError("the answer is empty")
    try:
        calls = _first_json_calls(text) if _JSON_START.match(text) else _calls_of_other_forms(text)
    except strict_json.JsonError as error:
        raise CallSyntaxError(str(error)) from None
    if calls is None:
        begun = _JSON_START.search(text) is not None
        raise (CallSyntaxError if begun else NoCallError)("no function call found")
    return calls


def read_calls(text: str | None) -> list[Call] | None:
    """The calls in an answer, or None where there is none or it cannot be read."""
    try:
        return None if text is None else parse_calls(text)
    except CallSyntaxError:
        return None


def render_call(call: Call) -> str:
    """The canonical text of a call, `{"name": "f", "arguments": {"a": 1}}` on one line."""
    return json.dumps({"name": call.name, "arguments": call.arguments}, ensure_ascii=False, allow_nan=False)


def render_calls(calls: Sequence[Call]) -> str:
    """The text of an answer: a call, or a list of several or none."""
    return render_call(calls[0]) if len(calls) == 1 else f"[{', '.join(map(render_call, calls))}]"


def _calls_of_other_forms(text: str) -> list[Call] | None:
    if _TAG.search(text):
        return _tagged_calls(text)
    fenced = _FENCED.search(text)
    for body in (text, fenced[1].strip()) if fenced else (text,):
        if _EMPTY_LIST.fullmatch(body):
            return []
        if _CALL_FORM.fullmatch(body) and (calls := _python_calls(body)):
            return calls
        if _CALL_START.match(body):  # a JSON object inside a broken call is not the answer
            raise CallSyntaxError("the call is not complete or not well-formed")
    return _first_json_calls(text)


def _tagged_calls(text: str) -> list[Call]:
    calls: list[Call] = []
    tag = _TAG.search(text)
    while tag:
        value, end = strict_json.decode_at(text, tag.end())
        found = _calls_in(value)
        if found is None:
            raise CallSyntaxError("<tool_call> holds something other than a function call")
        calls += found
        tag = _TAG.search(text, end)
    return calls


def _first_json_calls(text: str) -> list[Call] | None:
    position = 0
    while start := _JSON_START.search(text, position):
        # What begins like an object and is none is a broken or unfinished answer: no part of it may pass for the whole.
        value, position = strict_json.decode_at(text, start.start())
        if calls := _calls_in(value):
            return calls
    return None


def _calls_in(value: Any) -> list[Call] | None:
    """The calls that a JSON value stands for, or None if it, or a member of the list, is something else."""
    calls = []
    for item in value if isinstance(value, list) else [value]:
        call = _call_in(item)
        if call is None:
            return None
        calls.append(call)
    return calls


def _call_in(value: Any) -> Call | None:
    if not isinstance(value, dict):
        return None
    if isinstance(value.get("function"), dict):
        value = value["function"]  # OpenAI's {"type": "function", "function": {...}}
    name = next((value[key] for key in ("name", "tool", "function") if key in value), None)
    arguments = next((value[key] for key in ("arguments", "parameters") if key in value), None)
    if not isinstance(name, str) or not name or arguments is None:
        return None
    if isinstance(arguments, str):
        arguments = strict_json.decode(arguments)
    if not isinstance(arguments, dict):
        raise CallSyntaxError("the arguments are not an object")
    return Call(name, arguments)


def _python_calls(text: str) -> list[Call] | None:
    """The calls of a text in Python's call syntax, or None if it is not Python."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # such as invalid escapes in the model's strings
            tree = ast.parse(text, mode="eval").body
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        return None
    nodes = tree.elts if isinstance(tree, ast.List | ast.Tuple) else [tree]
    return [_python_call(node) for node in nodes]


def _python_call(node: ast.expr) -> Call:
    if not isinstance(node, ast.Call):
        raise CallSyntaxError("the list holds something other than function calls")
    if node.args or any(keyword.arg is None for keyword in node.keywords):
        raise CallSyntaxError("an argument is given without its name")
    arguments: dict[str, Any] = {}
    for keyword in node.keywords:
        if keyword.arg in arguments:
            raise CallSyntaxError(f"argument '{keyword.arg}' is given twice")
        arguments[str(keyword.arg)] = _literal(keyword.value, 0)
    strict_json.check(arguments)
    return Call(_dotted_name(node.func), arguments)


def _dotted_name(node: ast.expr) -> str:
    parts = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
        if len(parts) > strict_json.MAX_DEPTH:  # how deep Python itself reads differs between its versions
            raise CallSyntaxError(f"nested more than {strict_json.MAX_DEPTH} levels deep")
    if not isinstance(node, ast.Name):
        raise CallSyntaxError("the function is not given by its name")
    return ".".join([node.id, *reversed(parts)])


def _literal(node: ast.expr | None, depth: int) -> Any:
    if depth > strict_json.MAX_DEPTH:
        raise CallSyntaxError(f"nested more than {strict_json.MAX_DEPTH} levels deep")
    match node:
        case ast.Constant(value=str() | int() | float() | None as value):  # bool is an int
            return value
        case ast.Name(id=name) if name in _CONSTANT_NAMES:
            return _CONSTANT_NAMES[name]
        case ast.UnaryOp(op=ast.USub() | ast.UAdd() as sign, operand=ast.Constant(value=int() | float() as value)):
            if not isinstance(value, bool):
                return -value if isinstance(sign, ast.USub) else value
        case ast.List(elts=items) | ast.Tuple(elts=items):
            return [_literal(item, depth + 1) for item in items]
        case ast.Dict(keys=keys, values=values):
            names = [_literal(key, depth + 1) for key in keys]
            if all(isinstance(name, str) for name in names):
                return {name: _literal(value, depth + 1) for name, value in zip(names, values, strict=True)}
    raise CallSyntaxError("an argument's value is not a literal")
