import pytest
from hypothesis import given
from hypothesis import strategies as st

from ttsi_jax.tasks.example import Call, Tool
from ttsi_jax.tasks.schema import SchemaError, check_call, mistyped, normalise_parameters

SPELLINGS = [
    ("str", {"type": "string"}),
    ("String", {"type": "string"}),
    ("int", {"type": "integer"}),
    ("float", {"type": "number"}),
    ("double", {"type": "number"}),
    ("bool", {"type": "boolean"}),
    ("dict", {"type": "object"}),
    ("Dict[str, int]", {"type": "object"}),
    ("list", {"type": "array"}),
    ("tuple", {"type": "array"}),
    ("List[str]", {"type": "array", "items": {"type": "string"}}),
    ("list(str)", {"type": "array", "items": {"type": "string"}}),
    ("typing.List[List[float]]", {"type": "array", "items": {"type": "array", "items": {"type": "number"}}}),
    ("Tuple[int, int]", {"type": "array"}),
    ("Optional[int]", {"type": "integer"}),
    ("Union[str, int]", {}),
    ("any", {}),
    ("datetime", {}),
    ("a list of things", {}),
    (["string", "null"], {"type": ["string", "null"]}),
    (["string", "thing"], {}),
    (None, {}),
]


def tool(parameters, required=()):
    return Tool("f", "", normalise_parameters(parameters, required))


def reason(parameters, arguments, required=()):
    return check_call(Call("f", arguments), [tool(parameters, required)])


@pytest.mark.parametrize(("spelling", "schema"), SPELLINGS)
def test_type_spellings(spelling, schema):
    assert normalise_parameters({"a": {"type": spelling}})["properties"]["a"] == schema


@pytest.mark.parametrize(
    "parameters",
    [
        {"type": "object", "properties": {"a": {"type": "string"}, "b": {"type": "integer"}}, "required": ["a"]},
        {
            "type": "dict",
            "properties": {"a": {"type": "str"}, "b": {"type": "int", "optional": True}},
            "required": ["a"],
        },
        {"properties": {"a": {"type": "str"}, "b": {"type": "int"}}, "required": ["a", "no such parameter"]},
        {"a": {"type": "str", "required": True}, "b": {"type": "int", "required": False}},
    ],
)
def test_dialects_become_the_same_schema(parameters):
    expected = {
        "type": "object",
        "properties": {"a": {"type": "string"}, "b": {"type": "integer"}},
        "required": ["a"],
    }
    assert normalise_parameters(parameters) == expected
    assert normalise_parameters(expected) == expected


def test_required_beside_the_parameters():
    assert normalise_parameters({"a": {"type": "str"}, "b": {"type": "str"}}, ["b"])["required"] == ["b"]


def test_no_parameters():
    empty = {"type": "object", "properties": {}, "required": []}
    assert normalise_parameters({}) == normalise_parameters({"type": "object"}) == empty


def test_parameters_named_like_keywords():
    bare = {"type": {"type": "str"}, "properties": {"type": "str", "description": "d"}, "required": {"type": "bool"}}
    assert list(normalise_parameters(bare)["properties"]) == ["type", "properties", "required"]


def test_nested_and_annotations():
    parameters = {
        "type": "dict",
        "properties": {
            "filter": {
                "type": "dict",
                "description": "d",
                "properties": {"unit": {"type": "string", "enum": ["C", "F"], "default": "C"}},
                "required": ["unit"],
            },
            "tags": {"type": "array", "items": {"type": "string"}, "enum": ["x", "y"]},
            "move": {"type": "str", "choices": ["walk", "run"], "example": "run"},
        },
    }
    assert normalise_parameters(parameters)["properties"] == {
        "filter": {
            "type": "object",
            "description": "d",
            "properties": {"unit": {"type": "string", "default": "C", "enum": ["C", "F"]}},
            "required": ["unit"],
        },
        "tags": {"type": "array", "items": {"type": "string", "enum": ["x", "y"]}},
        "move": {"type": "string", "example": "run", "enum": ["walk", "run"]},
    }


def nested(levels):
    schema = {"type": "integer"}
    for _ in range(levels):
        schema = {"type": "array", "items": schema}
    return {"a": schema}


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        (None, "not an object"),
        ([], "not an object"),
        ({"a": "str"}, "parameter 'a' is not described by an object"),
        ({"a": {"type": 3}}, "type of parameter 'a' is not text"),
        ({"a": {"$ref": "#/definitions/A"}}, r"parameter 'a' uses \$ref"),
        ({"a": {"type": "array", "items": {"$ref": "#"}}}, r"\$ref"),
        ({"a": {"anyOf": [{"$ref": "#"}]}}, r"\$ref"),
        ({"a": {"type": "dict", "properties": []}}, "properties of parameter 'a' are not an object"),
        ({"a": {"enum": "x"}}, "enum of parameter 'a' is not a list"),
        ({"a": {"anyOf": {}}}, "anyOf of parameter 'a' is not a list"),
        ({"type": "object", "properties": {"a": {}}, "required": "a"}, "not a list of names"),
        ({"type": "object", "properties": None}, "properties of parameters are not an object"),
        (nested(25), "nested more than 20 levels"),
        ({"a": {"type": "List[" * 30 + "str" + "]" * 30}}, "nested more than 20 levels"),
    ],
)
def test_bad_descriptions_are_refused(parameters, message):
    with pytest.raises(SchemaError, match=message):
        normalise_parameters(parameters)


def test_nesting_up_to_the_limit():
    assert normalise_parameters(nested(19))


@pytest.mark.parametrize(
    ("spelling", "value", "kind"),
    [
        ("int", "5", "a string, not an integer"),
        ("int", True, "a boolean, not an integer"),
        ("int", 5.5, "a number, not an integer"),
        ("float", "5", "a string, not a number"),
        ("float", False, "a boolean, not a number"),
        ("str", 5, "an integer, not a string"),
        ("str", None, "null, not a string"),
        ("bool", 1, "an integer, not a boolean"),
        ("list", {}, "an object, not an array"),
        ("dict", [], "an array, not an object"),
        (["string", "null"], 5, "an integer, not a string or null"),
    ],
)
def test_wrong_types(spelling, value, kind):
    assert reason({"a": {"type": spelling}}, {"a": value}) == f"argument 'a' is {kind}"


@pytest.mark.parametrize(
    ("spelling", "value"),
    [("int", 5), ("int", 5.0), ("float", 5), ("float", 5.5), ("any", True), (["string", "null"], None), ("list", [1])],
)
def test_right_types(spelling, value):
    assert reason({"a": {"type": spelling}}, {"a": value}) is None


def test_reasons_name_the_place():
    parameters = {
        "rows": {
            "type": "list",
            "items": {"type": "dict", "properties": {"n": {"type": "int"}}, "required": ["n"]},
            "required": True,
        },
        "unit": {"type": "str", "enum": ["C", "F"]},
        "either": {"anyOf": [{"type": "int"}, {"type": "str", "enum": ["all"]}]},
        "open": {"type": "dict", "properties": {}, "additionalProperties": {"type": "int"}},
    }
    rows = [{"n": 1}]
    assert check_call(Call("g", {}), [tool(parameters)]) == "unknown function 'g'"
    assert reason(parameters, {}) == "missing argument 'rows'"
    assert reason(parameters, {"rows": rows, "x": 1}) == "unknown argument 'x'"
    assert reason(parameters, {"rows": [{"n": 1}, {"n": "1"}]}) == "argument 'rows[1].n' is a string, not an integer"
    assert reason(parameters, {"rows": [{}]}) == "missing argument 'rows[0].n'"
    assert reason(parameters, {"rows": [{"n": 1, "m": 1}]}) == "unknown argument 'rows[0].m'"
    assert reason(parameters, {"rows": rows, "unit": "K"}) == 'argument \'unit\' is "K", not one of "C", "F"'
    assert reason(parameters, {"rows": rows, "either": 1.5}) == "argument 'either' is a number, not an integer"
    assert reason(parameters, {"rows": rows, "open": {"z": "1"}}) == "argument 'open.z' is a string, not an integer"
    assert reason(parameters, {"rows": rows, "unit": "F", "either": "all", "open": {"z": 1}}) is None


def test_an_enum_tells_true_from_one():
    assert reason({"a": {"enum": [1, 2]}}, {"a": True})
    assert reason({"a": {"enum": [1, 2]}}, {"a": 1.0}) is None


def test_an_enum_of_arrays_is_of_the_whole_value():
    parameters = {"a": {"type": "list", "enum": [[1, 2]]}}
    assert reason(parameters, {"a": [1, 2]}) is None
    assert reason(parameters, {"a": [2]})


def test_reasons_stay_short():
    assert len(reason({"a": {"enum": ["x" * 500] * 50}}, {"a": "y" * 500}) or "") < 500
    assert len(reason({}, {"z" * 5000: 1}) or "") < 200


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
keywords = st.sampled_from(["type", "properties", "items", "required", "enum", "anyOf", "a"])
described = st.recursive(
    json_values | st.sampled_from([s for s, _ in SPELLINGS]),
    lambda inner: st.dictionaries(keywords, inner, max_size=4) | st.lists(inner, max_size=2),
    max_leaves=12,
)


@given(
    described | st.dictionaries(st.sampled_from(["a", "type", "items"]), described),
    st.dictionaries(st.sampled_from(["a", "type", "items"]), json_values, max_size=3),
)
def test_any_description_is_refused_or_gives_a_stable_schema(parameters, arguments):
    try:
        schema = normalise_parameters(parameters)
    except SchemaError:
        return
    assert normalise_parameters(schema) == schema
    result = check_call(Call("f", arguments), [Tool("f", "", schema)])
    assert result is None or isinstance(result, str)


def test_values_that_are_not_judged():
    tool = Tool(
        "f", "", normalise_parameters({"x": {"type": "array", "items": {"type": "string"}}, "n": {"type": "integer"}})
    )
    of = lambda **arguments: mistyped(Call("f", arguments), [tool])  # noqa: E731
    assert of(x=["a"], n=1) == [] and of(x="[", n=1) == ["x"] and of(x=[1], n="one") == ["x", "n"]
    assert of(x="[", m=1) == [], "an unknown argument is wrong whatever its value is"
    assert check_call(Call("f", {"x": "[", "n": 1}), [tool], {"x"}) is None
    assert "'n' is a string" in (check_call(Call("f", {"x": "[", "n": "1"}), [tool], {"x"}) or "")
