"""Task files, options and run directories that are wrong: all end with exit code 2, but for files with good inputs too."""

from __future__ import annotations

import json
from typing import Any

from reliability.cases import GOOD_LINE, RUN, Case, Content

TASK = ("run", "--model", "model", "--task", "bad.jsonl")
ARRAY = ("run", "--model", "model", "--task", "bad.json")
LONG = "x" * 10_000_000
TOOL = {"name": "f", "parameters": {"type": "object", "properties": {"a": {"type": "string"}}}}


def line(**values: Any) -> str:
    """A line that is good but for these values; `...` leaves one out."""
    merged = {"id": "a", "query": "Do it", "tools": [TOOL]} | values
    return json.dumps({key: value for key, value in merged.items() if value is not ...})


def bad_line(name: str, said: str, content: Content) -> Case:
    return Case(f"line: {name}", 2, said, {"bad.jsonl": content}, TASK)


def among_good(name: str, said: str, content: str) -> Case:
    """A broken line after a good one: the good one runs, and the other fails by its number."""
    short = ("--method", "base", "--answer.max-tokens", "4", "--wave", "1", "--out", "out")
    return Case(f"line after a good one: {name}", 1, said, {"bad.jsonl": f"{GOOD_LINE}\n{content}\n"}, (*TASK, *short))


def tools(name: str, said: str, value: Any) -> Case:
    return bad_line(f"tools: {name}", f"bad.jsonl:1: {said}", line(tools=value))


def schema(name: str, said: str, value: Any) -> Case:
    return tools(f"schema {name}", f"the tool 'f': {said}", [{"name": "f", "parameters": value}])


def nested(depth: int, inner: Any = None) -> dict[str, Any]:
    value = inner or {"type": "string"}
    for _ in range(depth):
        value = {"type": "object", "properties": {"a": value}}
    return value


LINES = (
    bad_line("nothing", "it is empty", ""),
    bad_line("blank lines", "it is empty", "\n \n\t\n"),
    bad_line("no JSON", "bad.jsonl:1: not valid JSON", "Hello"),
    bad_line("cut", "bad.jsonl:1: not valid JSON", GOOD_LINE[: len(GOOD_LINE) // 2]),
    bad_line("two values", "bad.jsonl:1: there is more text after the JSON value", GOOD_LINE + GOOD_LINE),
    bad_line("not UTF-8", "bad.jsonl:1: not UTF-8 (byte 9 of the line)", b'{"id": "\xff\xfe"}'),
    bad_line("UTF-16", "bad.jsonl:1: not UTF-8", GOOD_LINE.encode("utf-16")),
    bad_line("a lone surrogate", "a text holds half of a surrogate pair", r'{"id": "\ud800"}'),
    bad_line("NaN", "bad.jsonl:1: NaN is not a JSON value", '{"id": NaN}'),
    bad_line("Infinity", "Infinity is not a JSON value", '{"id": -Infinity}'.replace("-", "")),
    bad_line("1e999", "a number is out of range", '{"id": 1e999}'),
    bad_line("a number of 5,000 digits", "a number is out of range", '{"id": ' + "9" * 5000 + "}"),
    bad_line("nested 100,000 deep", "nested more than 50 levels deep", "[" * 100_000),
    bad_line("objects nested 100,000 deep", "nested more than 50 levels deep", '{"a":' * 100_000),
    bad_line("zero bytes", "not valid JSON", "\0" * 100),
    bad_line("a text", "the entry is not an object", '"Hello"'),
    bad_line("a number", "the entry is not an object", "5"),
    bad_line("a list", "the entry is not an object", "[1]"),
    bad_line("null", "the entry is not an object", "null"),
    bad_line("an empty object", "there must be one of 'query' and 'messages'", "{}"),
    bad_line("10 MB that is no JSON", "not valid JSON", LONG),
    bad_line("10 MB of brackets", "nested more than 50 levels deep", "[" * 10_000_000),
    bad_line("query and messages", "there must be one of", line(messages=[])),
    bad_line("query a number", "the query is neither text nor a list of turns", line(query=5)),
    bad_line("query null", "the query is neither text nor a list", line(query=None)),
    bad_line("query an object", "the query is neither text nor a list", line(query={"role": "user"})),
    bad_line("query empty", "the query has no text from the user", line(query="")),
    bad_line("query of blanks", "the query has no text from the user", line(query=" \n\t")),
    bad_line("messages none", "the query has no text from the user", line(query=..., messages=[])),
    bad_line("messages of numbers", "a turn of the query has no text in 'content'", line(query=..., messages=[1])),
    bad_line("messages without content", "has no text in 'content'", line(query=..., messages=[{"role": "user"}])),
    bad_line("messages with parts", "has no text in 'content'", line(query=..., messages=[{"role": "user", "content": [{"text": "a"}]}])),
    bad_line("messages without a role", "has the role None", line(query=..., messages=[{"content": "a"}])),
    bad_line("messages of another role", "has the role 'root', not one of", line(query=..., messages=[{"role": "root", "content": "a"}])),
    bad_line("messages with a list as role", "has the role ['user']", line(query=..., messages=[{"role": ["user"], "content": "a"}])),
    bad_line("messages without a user", "the query has no text from the user", line(query=..., messages=[{"role": "system", "content": "a"}])),
    bad_line("id a list", "'id' is neither text nor a whole number", line(id=[1])),
    bad_line("id true", "'id' is neither text nor a whole number", line(id=True)),
    bad_line("id a fraction", "'id' is neither text nor a whole number", line(id=1.5)),
    bad_line("id empty", "'id' is neither text nor a whole number", line(id="")),
    bad_line("no tools", "there is no 'tools'", line(tools=...)),
    bad_line("calls a text", "the right calls are not a list", line(calls="f()")),
    bad_line("calls of texts", "a right call has no function name", line(calls=["f"])),
    bad_line("calls without a name", "a right call has no function name", line(calls=[{"arguments": {}}])),
    bad_line("calls whose arguments are a list", "the arguments of the right call of 'f' are not an object", line(calls=[{"name": "f", "arguments": []}])),
    bad_line("calls and gold", "there is both 'calls' and 'gold'", line(calls=[], gold=[])),
    tools("null", "'tools' is not a list", None),
    tools("an object", "'tools' is not a list", TOOL),
    tools("of texts", "a tool has no name", ["f"]),
    tools("without a name", "a tool has no name", [{"description": "a"}]),
    tools("with an empty name", "a tool has no name", [{"name": " "}]),
    tools("with a number as name", "a tool has no name", [{"name": 5}]),
    tools("with one name twice", "two tools have the name 'f'", [TOOL, TOOL]),
    tools("with a list as description", "the description of the tool 'f' is not text", [{"name": "f", "description": [1]}]),
    tools("with a text as required", "'required' of the tool 'f' is not a list of names", [{"name": "f", "required": "a"}]),
    schema("a list", "the parameters are not an object", [1]),
    schema("of a number", "parameter 'a' is not described by an object", {"a": 5}),
    schema("whose type is a number", "the type of parameter 'a' is not text", {"type": "object", "properties": {"a": {"type": 5}}}),
    schema("whose properties are a list", "the properties of parameters are not an object", {"type": "object", "properties": [1]}),
    schema("whose required is text", "'required' of parameters is not a list of names", {"type": "object", "required": "a"}),
    schema("whose enum is text", "the enum of parameter 'a' is not a list", {"type": "object", "properties": {"a": {"enum": "a"}}}),
    schema("whose anyOf is an object", "anyOf of parameter 'a' is not a list", {"type": "object", "properties": {"a": {"anyOf": {}}}}),
    schema("with a $ref", "parameter 'a' uses $ref, which is not supported", {"type": "object", "properties": {"a": {"$ref": "#/$defs/A"}}}),
    schema("with a $ref to itself", "parameters uses $ref, which is not supported", {"type": "object", "$ref": "#"}),
    schema("with cyclic $refs", "parameter 'a' uses $ref, which is not supported", {"type": "object", "properties": {"a": {"$ref": "#/properties/b"}, "b": {"$ref": "#/properties/a"}}}),
    schema("with a $ref deep inside", "parameter 'a' uses $ref, which is not supported", nested(10, {"$ref": "#"})),
    schema("nested 21 deep", "the parameters are nested more than 20 levels deep", nested(21)),
    bad_line("tools: schema nested 60 deep", "bad.jsonl:1: nested more than 50 levels deep", line(tools=[{"name": "f", "parameters": nested(60)}])),
    schema("with a type nested 1,000 deep", "the type of parameter 'a' is nested more than 20 levels deep", {"type": "object", "properties": {"a": {"type": "list[" * 1000 + "int" + "]" * 1000}}}),
    among_good("no JSON", "cannot be used: bad.jsonl:2: not valid JSON", "Hello"),
    among_good("failed", "failed: input 'line-2': bad.jsonl:2: not valid JSON", "{"),
    among_good("no tools", "failed: input 'line-2': bad.jsonl:2: there is no 'tools'", line(tools=...)),
    among_good("the id of another line", "bad.jsonl:2: the id 'good' is already used in bad.jsonl:1", GOOD_LINE),
    among_good("markup as an id", "bad.jsonl:2: two tools have the name 'f'", line(id="[red]<script>", tools=[TOOL, TOOL])),
    Case("file: none", 2, "cannot read the task file bad.jsonl: No such file", {}, TASK),
    Case("file: a directory", 2, "cannot read the task file bad.jsonl", {"bad.jsonl/x": ""}, TASK),
    Case("file: a name of 10,000 characters", 2, "cannot read the task file", {}, ("run", "--model", "model", "--task", "x" * 10_000 + ".jsonl")),
    Case("file: of another kind", 2, "unknown task 'good.csv'; a task is a .jsonl or .json file", {}, ("run", "--model", "model", "--task", "good.csv")),
)  # fmt: skip


def array(name: str, said: str, content: Content) -> Case:
    return Case(f"array: {name}", 2, said, {"bad.json": content}, ARRAY)


ARRAYS = (
    array("empty", "bad.json: not valid JSON", ""),
    array("no entries", "bad.json has no usable example: it is empty", "[]"),
    array("an object", "bad.json: not a JSON array (a file with one object a line must end in .jsonl)", "{}"),
    array("one object a line", "bad.json: there is more text after the JSON value", f"[]\n{GOOD_LINE}"),
    array("not UTF-8", "bad.json is not UTF-8 (byte 3)", b'["\xff"]'),
    array("cut", "bad.json: not valid JSON", '[{"query": "a"'),
    array("nested 100,000 deep", "nested more than 50 levels deep", "[" * 100_000),
    array("of numbers", "bad.json, entry 0: the entry is not an object", "[1]"),
    array("without a query", "bad.json, entry 0: there is no 'query'", "[{}]"),
    array("without tools", "there is no 'tools'", '[{"query": "a"}]'),
    array("answers a text", "the right calls are not a list", json.dumps([{"query": "a", "tools": [TOOL], "answers": "f"}])),
    Case("array: a number after a good entry", 1, "failed: input 'bad-1': bad.json, entry 1: the entry is not an object",
         {"bad.json": f"[{GOOD_LINE}, 1]"}, (*ARRAY, "--method", "base", "--answer.max-tokens", "4", "--wave", "1", "--out", "out")),
    array("a lone surrogate", "half of a surrogate pair", r'[{"query": "\ud800", "tools": []}]'),
)  # fmt: skip


def option(said: str, *argv: str) -> Case:
    return Case(f"option: {' '.join(argv)[:60]}", 2, said, {}, (*RUN, *argv))


OPTIONS = (
    *(
        option(f"--{name} is {value}; it must be at least 1", f"--{name}", value)
        for name in ("wave", "synthesis.k", "synthesis.tries", "synthesis.max-tokens", "adapt.epochs", "adapt.rank",
                     "answer.max-tokens", "answer.value-tokens")
        for value in ("0", "-5")
    ),
    *(
        option(f"--{name} is {10**12}; it must be at most", f"--{name}", str(10**12))
        for name in ("wave", "synthesis.k", "synthesis.tries", "synthesis.max-tokens", "adapt.epochs", "adapt.rank",
                     "answer.max-tokens", "answer.value-tokens")
    ),
    *(option(f"--adapt.{name} is {value}; it must be above 0", f"--adapt.{name}", value)
      for name in ("lr", "alpha", "memory") for value in ("0.0", "-1.0", "nan", "inf")),
    option("--gate.tau is nan; it must be a number or auto", "--gate.tau", "nan"),
    *(option("--synthesis.top-p is", "--synthesis.top-p", value) for value in ("0", "-1", "1.5", "nan", "inf")),
    *(option("--synthesis.temperature is", "--synthesis.temperature", value) for value in ("-1", "nan", "inf")),
    *(option("--seed is", "--seed", value) for value in ("-1", "4294967296", "9" * 30)),
    *(option("the limit on examples must be at least 1", "--limit", value) for value in ("0", "-3")),
    *(option("wave", "--wave", value) for value in ("many", "1.5", "", "1e3", "9" * 5000)),
    option("sometimes", "--gate.select", "sometimes"),
    option("half", "--adapt.scope", "half"),
    option("tt-x", "--method", "tt-x"),
    option("--nothing", "--nothing", "1"),
    option("dtype 'int4' is not supported", "--dtype", "int4"),
    option("unknown update rule 'sgdd'", "--adapt.rule", "sgdd"),
    option("update rule 'nowhere:f' cannot be imported: ModuleNotFoundError", "--adapt.rule", "nowhere:f"),
    option("update rule ':' cannot be imported", "--adapt.rule", ":"),
    option("update rule 'os:sep' is '/', which cannot be called", "--adapt.rule", "os:sep"),
    option("cannot be imported: ValueError: broken on purpose", "--adapt.rule", "raises:f"),
    option("unknown loss 'x'", "--adapt.loss", "x"),
    option("unknown estimator 'margn'; did you mean 'margin'?", "--gate.estimator", "margn"),
    option("--out", "--out"),
    option("good.jsonl: cannot be used as a run's directory", "--out", "good.jsonl"),
    option("full: is not empty and holds no run", "--out", "full"),
    option("cannot be used as a run's directory", "--out", "good.jsonl/run"),
    option("cannot be used as a run's directory", "--out", "x" * 10_000),
    Case("option: no command", 2, "", {}, ()),
    Case("option: an unknown command", 2, "walk", {}, ("walk",)),
    Case("option: no model", 2, "--model", {}, ("run", "--task", "good.jsonl")),
    Case("option: no task", 2, "--task", {}, ("run", "--model", "model")),
    Case("option: an unknown task", 2, "unknown task 'sealtool' (did you mean sealtools?)", {}, ("run", "--model", "model", "--task", "sealtool")),
    Case("option: an empty task", 2, "unknown task ''", {}, ("run", "--model", "model", "--task", "")),
    Case("option: a category that is not read", 2, "unknown BFCL category 'java' (Java and JavaScript are not supported)", {}, ("run", "--model", "model", "--task", "bfcl:java")),
    Case("option: no data", 2, "the task sealtools needs the file sealtool.json", {}, ("run", "--model", "model", "--task", "sealtools", "--data", "nowhere")),
    Case("option: markup as a task", 2, "unknown task '[red]x[/red]'", {}, ("run", "--model", "model", "--task", "[red]x[/red]")),
)  # fmt: skip

RECORD = {"id": "a", "task": "t", "query": "q", "candidates": ["f"], "probabilities": [1.0], "uncertainty": 1.0}
CONFIG = json.dumps({"model": "m", "gate": {"tau": 0.95}})


def record(name: str, said: str, **values: Any) -> Case:
    """A run whose only record has other values."""
    merged = RECORD | values
    kept = json.dumps({key: value for key, value in merged.items() if value is not ...})
    return run_directory(f"record: {name}", f"bad/records.jsonl:1: not a record: {said}", records=kept + "\n")


def run_directory(name: str, said: str, *, config: Content = CONFIG, records: Content = "", summary: Content = None) -> Case:  # fmt: skip
    files = {"bad/config.json": config, "bad/records.jsonl": records, "bad/summary.json": summary}
    return Case(f"run: {name}", 2, said, files, ("report", "bad", "--out", "report.html"))


RUNS = (
    run_directory("no configuration", "bad: holds no run (it has no config.json)", config=None),
    run_directory("configuration cut", "bad/config.json: not a JSON file", config=CONFIG[:20]),
    run_directory("configuration a list", "bad/config.json: a JSON object is expected, not list", config="[]"),
    run_directory("configuration not UTF-8", "bad/config.json: not a JSON file", config=b'{"a": "\xff"}'),
    run_directory("configuration nested 100,000 deep", "bad/config.json: not a JSON file", config='{"a":' * 100_000),
    run_directory("summary cut", "bad/summary.json: not a JSON file", summary='{"n":'),
    run_directory("summary a number", "bad/summary.json: a JSON object is expected, not int", summary="5"),
    run_directory("records of zeros", "bad/records.jsonl:1: not a record", records=b"\0" * 100 + b"\n"),
    run_directory("records not UTF-8", "bad/records.jsonl:1: not a record", records=b"\xff\n"),
    run_directory("records of lists", "bad/records.jsonl:1: not a record: a JSON object is expected", records="[]\n"),
    run_directory("records nested 100,000 deep", "bad/records.jsonl:1: not a record", records="[" * 100_000 + "\n"),
    record("no id", "missing fields: id", id=...),
    record("an unknown field", "unknown fields: cost", cost=1),
    record("id a number", "field 'id'", id=5),
    record("query a number", "field 'query'", query=5),
    record("candidates of numbers", "field 'candidates'", candidates=[5]),
    record("probabilities of texts", "field 'probabilities'", probabilities=["a"]),
    record("probabilities an object", "field 'probabilities'", probabilities={}),
    record("losses of texts", "field 'losses'", losses=["a"]),
    record("uncertainty a text", "field 'uncertainty'", uncertainty="high"),
    record("uncertain a text", "field 'uncertain'", uncertain="yes"),
    record("reason a list", "field 'reason'", reason=["a"]),
    record("error a number", "field 'error'", error=5),
    record("calls of numbers", "field 'calls'", calls=[5]),
    record("calls without arguments", "field 'base_calls'", base_calls=[{"name": "f"}]),
    record("calls whose name is a number", "field 'adapted_calls'", adapted_calls=[{"name": 5, "arguments": {}}]),
    record("correct a number", "field 'call_correct'", call_correct=7),
    record("pairs of numbers", "field 'synthetic'", synthetic=[5]),
    record("pairs without calls", "field 'synthetic'", synthetic=[{"query": "a"}]),
    record("seconds of texts", "field 'seconds'", seconds={"score": "a"}),
    record("seconds a list", "field 'seconds'", seconds=[1]),
    Case("run: none to compare", 2, "name at least one run directory", {}, ("compare",)),
    Case("run: nowhere", 2, "nowhere: holds no run", {}, ("compare", "nowhere")),
    Case("run: a file", 2, "good.jsonl: holds no run", {}, ("compare", "good.jsonl")),
    Case("run: twice", 2, "given twice", {"bad/config.json": CONFIG}, ("compare", "bad", "bad")),
    Case("run: a report without a place", 2, "--out", {"bad/config.json": CONFIG}, ("report", "bad")),
    Case("run: a report into nowhere", 2, "nowhere/x.html: cannot be written", {"bad/config.json": CONFIG}, ("report", "bad", "--out", "nowhere/x.html")),
    Case("run: a report onto a directory", 2, "bad: cannot be written", {"bad/config.json": CONFIG}, ("report", "bad", "--out", "bad")),
)  # fmt: skip

TASK_CASES = (*LINES, *ARRAYS, *OPTIONS, *RUNS)
