from ttsi_jax.rules.extras import corrupted, reward
from ttsi_jax.synthesis import Synthetic
from ttsi_jax.tasks import Call, Tool, check_call, normalise_parameters

SCHEMA = {"type": "object", "properties": {"name": {"type": "string"}, "n": {"type": "integer"}}, "required": ["name"]}
GREET, PART = (Tool(name, "", normalise_parameters(SCHEMA)) for name in ("greet", "part"))


def pair(query="Say hello to Bo", **arguments) -> Synthetic:
    return Synthetic(query, (Call("greet", arguments),))


def test_a_corrupted_call_is_another_one():
    seen = set()
    for number in range(40):
        own = pair(f"Say hello to Bo {number}", name="Bo", n=2)
        wrong = corrupted(own, (GREET, PART))
        assert wrong is not None and wrong != own.calls[0] and wrong == corrupted(own, (GREET, PART))
        assert check_call(wrong, (GREET, PART)) is None, "wrong, but not so that a parser would see it"
        seen.add((wrong.name, wrong.arguments["name"] == "Bo", wrong.arguments["n"]))
    assert {("part", True, 2), ("greet", False, 2), ("greet", True, 3)} == seen


def test_values_of_every_type_have_another():
    for value in ("Bo", "Say hello to Bo", "", True, 0, 1.5, [1], [], {"a": 1}, {}, None):
        wrong = corrupted(pair(name=value), (GREET,))
        assert wrong is not None and wrong.arguments["name"] != value


def test_a_call_without_another_has_none():
    assert corrupted(pair(), (GREET,)) is None


def test_rewards():
    own, tools = pair(name="Bo"), (GREET, PART)
    assert reward(list(own.calls), own, tools) == 1.0
    assert reward([Call("part", {"name": "Al"})], own, tools) == 0.5
    assert reward([Call("greet", {"name": 3})], own, tools) == reward([], own, tools) == reward(None, own, tools) == 0.0
