"""The schema of a call: what is kept of the tools' own, and that nothing in it is endless."""

from hypothesis import given

from guided.tools import schemas, tool_lists
from tiny_runs import ADD, CONVERT, ORDER, tool
from ttsi_jax.guided.grammar import Bounds, bounded, call_schema, calls_schema
from ttsi_jax.tasks import normalise_parameters

SMALL = Bounds(characters=5, items=2, depth=1, magnitude=9)


def value(**schema):
    """A parameter's schema, bounded."""
    return bounded(normalise_parameters({"x": schema})["properties"]["x"], SMALL)


def test_a_call_by_hand():
    number = {"type": "integer", "minimum": -9, "maximum": 9}
    assert call_schema([ADD], SMALL) == {
        "type": "object",
        "properties": {
            "name": {"const": "add"},
            "arguments": {
                "type": "object",
                "properties": {"a": number, "b": number},
                "required": ["a", "b"],
                "additionalProperties": False,
            },
        },
        "required": ["name", "arguments"],
        "additionalProperties": False,
    }


def test_one_of_several_tools_in_their_order():
    options = call_schema([ORDER, ADD], SMALL)["anyOf"]
    assert [option["properties"]["name"]["const"] for option in options] == ["order", "add"]


def test_any_number_of_calls():
    assert calls_schema([ADD], SMALL) == {
        "anyOf": [call_schema([ADD], SMALL), {"type": "array", "items": call_schema([ADD], SMALL), "maxItems": 2}]
    }


def test_arguments_keep_their_order_and_only_the_required_ones_must_be_there():
    arguments = call_schema([tool("f", ["z"], z=dict(type="string"), a=dict(type="string"))])["properties"]["arguments"]
    assert list(arguments["properties"]) == ["z", "a"]
    assert arguments["required"] == ["z"]


def test_enums_keep_the_values_that_the_type_allows():
    assert value(type="string", enum=["m", "ft"]) == {"enum": ["m", "ft"]}
    assert value(type="integer", enum=[1, "2", True]) == {"enum": [1]}
    assert value(type="integer", enum=["one"])["type"] == "integer"  # no value fits both: the type is what can be had
    assert value(type="array", enum=["a", "b"])["items"] == {"enum": ["a", "b"]}


def test_patterns_formats_and_defaults_are_left_out():
    assert value(type="string", pattern="(?=x)", format="date", default="x") == {"type": "string", "maxLength": 5}


def test_combinations():
    string, null = {"type": "string", "maxLength": 5}, {"type": "null"}
    assert value(type=["string", "null"]) == {"anyOf": [string, null]}
    assert value(anyOf=[{"type": "string"}, {"type": "null"}]) == {"anyOf": [string, null]}
    assert value(type="string", oneOf=[{"enum": ["a"]}, {"enum": ["b", 1]}]) == {
        "anyOf": [{"enum": ["a"]}, {"enum": ["b"]}]
    }
    both = value(
        allOf=[
            {"type": "object", "properties": {"a": {"type": "null"}}, "required": ["a"]},
            {"type": "object", "properties": {"b": {"type": "null"}}},
        ]
    )
    assert (list(both["properties"]), both["required"]) == (["a", "b"], ["a"])


def test_members_that_are_not_named():
    of = lambda more: value(type="object", properties={}, additionalProperties=more)["additionalProperties"]  # noqa: E731
    assert of({}) == of(True) and of(False) is False
    assert of({"type": "null"}) == {"type": "null"}


def test_a_value_of_any_type_has_a_greatest_depth():
    def depth(schema):
        inner = [schema.get("items"), schema.get("additionalProperties"), *schema.get("anyOf", [])]
        nested = max((depth(each) for each in inner if each), default=0)
        return nested + (schema.get("type") in ("array", "object"))

    assert depth(value(type="any")) == SMALL.depth
    assert depth(bounded({}, Bounds(depth=3))) == 3
    assert depth(value(type="object")) == 1


@given(schemas)
def test_nothing_is_endless(schema):
    def check(schema):
        if "enum" in schema or "const" in schema:
            return
        if "anyOf" in schema:
            assert schema["anyOf"]
            return [check(option) for option in schema["anyOf"]]
        kind = schema["type"]
        if kind == "string":
            assert schema["maxLength"] == SMALL.characters
        elif kind == "array":
            assert schema["maxItems"] == SMALL.items
            check(schema["items"])
        elif kind == "object":
            inner = [schema["additionalProperties"]] if schema["additionalProperties"] else []
            [check(each) for each in (*schema["properties"].values(), *inner)]
        else:
            assert kind in ("integer", "number", "boolean", "null")

    check(bounded(normalise_parameters({"x": schema}), SMALL))


@given(tool_lists)
def test_every_tool_list_has_a_schema(tools):
    assert call_schema(tools, SMALL)


def test_numbers_have_a_range():
    assert bounded(CONVERT.properties["amount"], SMALL) == {"type": "number", "minimum": -9, "maximum": 9}
