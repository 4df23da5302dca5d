import pytest

from ttsi_jax.tasks import strict_json


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "not valid JSON"),
        ("{", "not valid JSON"),
        ("[1,]", "not valid JSON"),
        ("1 2", "more text after the JSON value, from character 2"),
        ("NaN", "NaN is not a JSON value"),
        ("[-Infinity]", "-Infinity is not a JSON value"),
        ("1e999", "out of range"),
        ("9" * 400, "out of range"),
        ("9" * 5000, "out of range"),
        ('"\\ud800"', "surrogate"),
        ('{"\\ud800": 1}', "surrogate"),
        ("[" * 60 + "]" * 60, "nested more than 50"),
        ('{"a":' * 60 + "1" + "}" * 60, "nested more than 50"),
        ("[" * 100_000, "nested more than 50"),
    ],
)
def test_what_is_not_strict_json_is_refused(text, reason):
    with pytest.raises(strict_json.JsonError, match=reason):
        strict_json.decode(text)


def test_values_are_decoded():
    assert strict_json.decode(' {"a": [1, 2.5, null, true, "\\ud83d\\ude00"]}\n') == {"a": [1, 2.5, None, True, "😀"]}
    assert strict_json.decode("[" * 50 + "]" * 50)
    assert strict_json.decode_at("see [1] there", 4) == ([1], 7)


@pytest.mark.parametrize("item", ['"\\ud800"', "NaN", '{"a": [-Infinity]}', '{"a": %s}' % ("9" * 5000)])  # noqa: UP031
def test_one_bad_item_leaves_the_others(item):
    good, bad, last = strict_json.decode_items(f"[1, {item}, 3]")
    assert (good, last) == (1, 3)
    assert isinstance(bad, strict_json.JsonError)
    with pytest.raises(strict_json.JsonError, match="not a JSON array"):
        strict_json.decode_items("{}")
