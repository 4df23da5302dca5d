"""What a kept run remembers of objects: the same in every process, another one for whatever does something else."""

import functools
import subprocess
import sys
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import jax
import jax.numpy as jnp
import optax
import pytest

from ttsi_jax.answering import KEYS
from ttsi_jax.config import RunConfig
from ttsi_jax.rules import answer_cross_entropy, kl_anchored, lion, optax_rule, sgd
from ttsi_jax.rules.identity import named
from ttsi_jax.rules.interface import UpdateRule

SETTINGS = {"lr": 0.1}


def step(loss_fn, adapter, state, batch, key):
    return adapter, state, {"loss": jnp.float32(0)}


def trusted(lr):
    return UpdateRule(lambda adapter, n_steps: {"lr": jnp.float32(lr)}, step)


def from_settings():
    return UpdateRule(lambda adapter, n_steps: {"lr": jnp.float32(SETTINGS["lr"])}, step)


def compiled(source: str, name: str = "loss"):
    namespace = {"__name__": "mine", "jnp": jnp, "jax": jax, "dataclass": dataclass, "cached_property": cached_property}
    exec(source, namespace)
    return namespace[name]


OBJECTS = {
    "rule": lambda: trusted(0.05),
    "another rate": lambda: trusted(5.0),
    "sgd": lambda: sgd(0.5),
    "lion": lambda: lion(0.5),
    "another sgd": lambda: sgd(0.25),
    "ready": lambda: optax_rule(optax.sgd(0.5)),
    "ready, another rate": lambda: optax_rule(optax.sgd(0.25)),
    "ready, another": lambda: optax_rule(optax.lion(0.5)),
    "loss": lambda: answer_cross_entropy,
    "another loss": lambda: kl_anchored,
    "partial": lambda: functools.partial(kl_anchored, beta=0.2),
    "another partial": lambda: functools.partial(kl_anchored, beta=0.3),
    "own": lambda: compiled("def loss(f, adapter, batch, key):\n    return 1.0, {}"),
    "own, changed": lambda: compiled("def loss(f, adapter, batch, key):\n    return 2.0, {}"),
    "own, helped": lambda: compiled("def half(): return 0.5\ndef loss(f, a, batch, key):\n    return half(), {}"),
    "own, helped else": lambda: compiled("def half(): return 0.6\ndef loss(f, a, batch, key):\n    return half(), {}"),
    "own, constant": lambda: compiled("W = 1.0\ndef loss(f, adapter, batch, key):\n    return W, {}"),
    "own, another constant": lambda: compiled("W = 2.0\ndef loss(f, adapter, batch, key):\n    return W, {}"),
    "jitted": lambda: compiled("W = 3.0\n@jax.jit\ndef loss(f, adapter, batch, key):\n    return W, {}"),
    "jitted, constant": lambda: compiled("W = 4.0\n@jax.jit\ndef loss(f, adapter, batch, key):\n    return W, {}"),
    "answerer": lambda: KEYS,
    "answerer, else": lambda: KEYS._replace(opened=False),
}  # fmt: skip


CALL = "def __call__(self, f, adapter, batch, key):"
EDITS = {  # what an edit of a number in a user's file may touch
    "a method": f"""
class Loss:
    def half(self): return NUMBER
    {CALL} return self.half(), {{}}
loss = Loss()""",
    "a dataclass's method": f"""
@dataclass(frozen=True)
class Loss:
    beta: float = 0.1
    def half(self): return NUMBER
    {CALL} return self.half(), {{}}
loss = Loss()""",
    "a dataclass's method, bound": """
@dataclass(frozen=True)
class Losses:
    beta: float = 0.1
    def half(self): return NUMBER
    def loss(self, f, adapter, batch, key): return self.half(), {}
loss = Losses().loss""",
    "what is inherited": f"""
class Base:
    {CALL} return NUMBER, {{}}
class Loss(Base): pass
loss = Loss()""",
    "a property": f"""
class Loss:
    @property
    def half(self): return NUMBER
    {CALL} return self.half, {{}}
loss = Loss()""",
    "a cached property": f"""
class Loss:
    @cached_property
    def half(self): return NUMBER
    {CALL} return self.half, {{}}
loss = Loss()""",
    "a class method": f"""
class Loss:
    @classmethod
    def half(cls): return NUMBER
    {CALL} return self.half(), {{}}
loss = Loss()""",
    "a class's attribute": """
class Settings: beta = NUMBER
def loss(f, adapter, batch, key): return Settings.beta, {}""",
    "a class's attribute, by an instance": """
class Settings: beta = NUMBER
SETTINGS = Settings()
def loss(f, adapter, batch, key): return SETTINGS.beta, {}""",
    "an instance's attribute": """
@dataclass
class Settings: beta: float
SETTINGS = Settings(NUMBER)
def loss(f, adapter, batch, key): return SETTINGS.beta, {}""",
    "a backward pass": """
@jax.custom_vjp
def half(x): return 0.5 * x
half.defvjp(lambda x: (half(x), None), lambda _, g: (NUMBER * g,))
def loss(f, adapter, batch, key): return half(1.0), {}""",
    "a tangent": """
@jax.custom_jvp
def half(x): return 0.5 * x
half.defjvp(lambda x, t: (half(*x), NUMBER * t[0]))
def loss(f, adapter, batch, key): return half(1.0), {}""",
}  # fmt: skip
OBJECTS |= {
    f"{what}, {number}": functools.partial(compiled, source.replace("NUMBER", number))
    for what, source in EDITS.items()
    for number in ("0.5", "0.6")
}


@pytest.mark.parametrize("what", EDITS)
def test_an_edit_is_another_name(what):
    one, two = (named(OBJECTS[f"{what}, {number}"]()) for number in ("0.5", "0.6"))
    assert one != two
    again = compiled("\n# why\n" + EDITS[what].replace("NUMBER", "0.5"))
    assert named(again) == one, "comments do not count, nor lines"


def test_what_programs_fill_does_not_count():
    loss = compiled(f"class Loss:\n    known = {{}}\n    {CALL} return 1.0, {{}}\nloss = Loss()")
    before = named(loss)
    loss.known["a"] = 1
    assert named(loss) == before


def test_whatever_differs_has_another_name():
    names = {key: named(make()) for key, make in OBJECTS.items()}
    assert len(set(names.values())) == len(names), names
    assert names == {key: named(make()) for key, make in OBJECTS.items()}
    assert names["rule"].partition("#")[0].endswith(":step") and names["partial"].startswith(
        "ttsi_jax.rules.losses:kl_"
    )
    assert names["sgd"].startswith("ttsi_jax.rules.updates:optax_rule(_clipped_sgd)#")


def test_comments_do_not_count():
    one, two = (f"def loss(f, adapter, batch, key):\n{text}    return 1.0, {{}}" for text in ("", "    # why\n\n"))
    assert named(compiled(one)) == named(compiled(two))


def test_the_state_tells_what_the_code_does_not(monkeypatch):
    before = named(from_settings())
    monkeypatch.setitem(SETTINGS, "lr", 0.2)
    assert named(from_settings()) != before


def test_it_is_the_same_in_another_process():
    """Also where modules are read from their compiled files, and text hashes otherwise."""
    names = ("rule", "ready", "partial", "own, helped", "sgd", *(f"{what}, 0.5" for what in EDITS))
    program = (
        "import sys; sys.path.insert(0, sys.argv[1]); import test_identity as t;"
        f"print(*[t.named(t.OBJECTS[key]()).partition('#')[2] for key in {names!r}])"
    )
    command = [sys.executable, "-c", program, str(Path(__file__).parent)]
    one, two = (subprocess.run(command, capture_output=True, text=True, check=True).stdout for _ in range(2))
    assert one == two and len(set(one.split())) == len(names)


def test_named_parts_are_followed_to_their_file(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    config = RunConfig().with_parts({})
    assert config == RunConfig(), "the library's own names stay"
    found = []
    for number, rate in enumerate((1, 2)):
        (tmp_path / f"own{number}.py").write_text(f"def rule(lr={rate}):\n    return lr\n")
        named_so = RunConfig(adapt=type(config.adapt)(rule=f"own{number}:rule")).with_parts({})
        name, _, hashed = named_so.adapt.rule.partition("#")
        assert name == f"own{number}:rule"
        found.append(hashed)
    assert found[0] != found[1]


@pytest.mark.parametrize("part", [3, None, object(), print, len, jnp.sin])
def test_anything_has_a_name(part):
    assert "#" in named(part) and "0x" not in named(part)
