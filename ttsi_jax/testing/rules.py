# pyright: strict, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportUnknownLambdaType=false
"""`check_rule` and `check_loss`: one example's training, taken through every way in which the library runs it.

A loss is checked as the library uses it, under a rule that follows its gradient; a rule under the paper's loss.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ttsi_jax.adaptation import Batch, Extra, Loss, LossFn, UpdateRule, bind_forward, needed
from ttsi_jax.model.cache import PADDING, SHARED
from ttsi_jax.model.decoder import Tokens
from ttsi_jax.model.lora import Adapter, LoraConfig, LowRank, init_adapter
from ttsi_jax.rules.losses import answer_cross_entropy
from ttsi_jax.testing.contract import ContractError, check_pure, explained, finite, same_types, same_values
from ttsi_jax.testing.tiny import tiny_model

_LORA = LoraConfig(rank=2, alpha=4.0, targets=("q", "down"))
_CLOSE = 1e-3  # of a change's norm: sums in another order round differently, and some rules divide by a gradient's size
_STEPS = 3
_AVERAGE = (
    "Average with batch.weights (padding has weight 0), and leave out tokens whose batch.tokens.segments is PADDING."
)


def check_rule(rule: UpdateRule | Callable[..., UpdateRule]) -> None:
    """Checks that an update rule is what the library takes it for.

    It can be traced, is pure, keeps the types and sizes of its state, is compiled once whatever its step or rate,
    begins anew at every `init`, stays finite, and gives an example the same whatever its padding, whoever shares its
    wave, and whether it runs in a wave or alone.

    >>> from ttsi_jax.rules import adamw
    >>> check_rule(adamw)

    Args:
        rule: an `UpdateRule`, or a function from the rate to one, which is then checked with two rates.

    Raises:
        ContractError: naming the property, with the smallest case in which it fails.
    """
    what = f"update rule '{_name(rule)}'"
    if not isinstance(rule, UpdateRule):
        rule = _same_program(what, rule)
    _check(what, rule, answer_cross_entropy)


def check_loss(loss: Loss) -> None:
    """Checks that a loss is what the library takes it for: the properties of `check_rule`, and that it is a float32
    scalar with a gradient.

    >>> from ttsi_jax.rules import dpo
    >>> check_loss(dpo)

    Raises:
        ContractError: naming the property, with the smallest case in which it fails.
    """
    what = f"loss '{_name(loss)}'"
    _check(what, UpdateRule(_init_descent, _descend), loss)
    adapter, batch, key = _example(0, needed(loss))
    gradient = jax.jit(jax.grad(lambda adapter: _bound(loss)(adapter, batch, key)[0]))(adapter)
    if not any(np.any(leaf) for leaf in jax.tree.leaves(gradient)):
        raise ContractError(f"{what} has no gradient: it is zero in every factor. Does it ask forward(adapter, ...)?")


def check_shapes(what: str, rule: UpdateRule, loss: Loss) -> None:
    """The quick part of the checks, without compiling anything: can it be traced, and do its types stay?

    Raises:
        ContractError: with the line at fault.
    """
    adapter, batch, key = _example(0, needed(loss))
    with explained(what):
        state = jax.eval_shape(rule.init, adapter, jnp.int32(_STEPS))
        value = jax.eval_shape(_bound(loss), adapter, batch, key)
    if not (isinstance(value, tuple) and len(value) == 2 and isinstance(value[1], dict)):
        raise ContractError(f"{what}: a loss returns (scalar, dict of scalars), not {value}")
    if value[0].shape != () or value[0].dtype != jnp.float32:
        raise ContractError(f"{what}: the loss is {value[0].dtype}{list(value[0].shape)}, not a float32 scalar")
    with explained(what):
        found = jax.eval_shape(partial(rule.step, _bound(loss)), adapter, state, batch, key)
    if not (isinstance(found, tuple) and len(found) == 3 and isinstance(found[2], dict) and "loss" in found[2]):
        raise ContractError(f"{what}: a step returns (adapter, state, metrics with 'loss'), not {found}")
    same_types(what, "changes the adapter's shape", adapter, found[0], "A step keeps the pytree that it was given.")
    hint = "The state is carried through a scan: arrays of the same shape and dtype, from `init` on."
    same_types(what, "changes its state's size", state, found[1], hint)


class _Trained(NamedTuple):
    """What one example's training gave."""

    adapters: list[Adapter]  # after each step
    losses: list[Array]


def _check(what: str, rule: UpdateRule, loss: Loss) -> None:
    extras, loss_fn = needed(loss), _bound(loss)
    check_shapes(what, rule, loss)
    adapter, batch, key = example = _example(0, extras)
    state = rule.init(adapter, jnp.int32(_STEPS))
    check_pure(what, partial(rule.step, loss_fn), adapter, state, batch, key)

    step = jax.jit(partial(rule.step, loss_fn), compiler_options=_quick())

    def train(
        adapter: Adapter, batch: Batch, key: Array, take: Callable[..., Any] = step, vmap: bool = False
    ) -> _Trained:
        n_steps = jnp.full(key.shape, _STEPS, jnp.int32)
        state, trained = (jax.vmap(rule.init) if vmap else rule.init)(adapter, n_steps), _Trained([], [])
        for _ in range(_STEPS):
            adapter, state, metrics = take(adapter, state, batch, key)
            trained.adapters.append(adapter)
            trained.losses.append(metrics["loss"])
        return trained

    with explained(what):
        alone = train(*example)
        if (n := _n_compiled(step)) != 1:
            raise ContractError(f"{what} is compiled {n} times in {_STEPS} steps: keep no Python numbers in the state")
        again = train(*example)
    _same_training(what, "does not reset", example[0], alone, again, "the same example once more", 0.0,
                   "What an example learned may live in its state alone; `init` starts from nothing.")  # fmt: skip

    fresh = {layer: {name: LowRank(x.a, 0 * x.b) for name, x in own.items()} for layer, own in adapter.items()}
    empty = batch._replace(weights=0 * batch.weights)
    for case, args in {"a fresh adapter (b = 0)": (fresh, batch), "an answer of weight 0": (adapter, empty)}.items():
        trained = train(args[0], args[1], key)
        for index in range(_STEPS):
            values = {"adapter": trained.adapters[index], "loss": trained.losses[index]}
            hint = "There a gradient is 0: add a small number where you divide by its norm or take its root."
            finite(what, values, f"{case}, step {index + 1}", hint)

    padded = _example(0, extras, n_padding=1)
    other = train(*_example(0, extras, n_padding=1, filler=5))
    longer = train(*padded)
    case = "what stands in one padding token and one padding label"
    _same_training(what, "reads padding", adapter, longer, other, case, 0.0, _AVERAGE)
    case = "1 example of 6 tokens, 1 padding token"
    _same_training(what, "is not padding invariant", adapter, alone, longer, case, _CLOSE, _AVERAGE)

    wave = jax.jit(jax.vmap(partial(rule.step, loss_fn)), compiler_options=_quick())
    together = _rows(train(*_stack([example, _example(1, extras)]), take=wave, vmap=True))
    mates = _rows(train(*_stack([example, _example(2, extras)]), take=wave, vmap=True))
    hint = "Write for one example: no averages over the wave, nothing that Python remembers."
    _same_training(what, "depends on batch mates", adapter, together[0], mates[0], "a wave of 2, the other one changed",
                   0.0, hint)  # fmt: skip
    for row, own in enumerate((alone, train(*_example(1, extras)))):
        start = _example(row, extras)[0]
        case = f"example {row} of a wave of 2, and alone"
        _same_training(what, "is not the same under vmap", start, own, together[row], case, _CLOSE, hint)


def _same_training(
    what: str, property: str, start: Adapter, one: _Trained, two: _Trained, case: str, tolerance: float, hint: str
) -> None:
    """Both gave the same after every step; the first step in which they did not is the smallest case."""
    for index in range(_STEPS):
        now = f"{case}, step {index + 1}"
        same_values(what, property, {"loss": one.losses[index]}, {"loss": two.losses[index]}, now, hint, tolerance)
        before, after = {"adapter": one.adapters[index]}, {"adapter": two.adapters[index]}
        same_values(what, property, before, after, now, hint, tolerance, {"adapter": start})


def _same_program(what: str, make: Callable[..., Any]) -> UpdateRule:
    """The rule of one rate, after a look at another's."""
    try:
        one, two = make(1e-2), make(2e-2)
    except TypeError as error:
        raise ContractError(f"{what} is not made from a rate: {error}") from error
    for rule in (one, two):
        if not isinstance(rule, UpdateRule):
            raise ContractError(f"{what} gives {rule!r}, not an UpdateRule")
    if one.step != two.step:
        raise ContractError(
            f"{what} is compiled anew for another rate: two rates give two step functions. Define `step` at the "
            f"module's top level and let `init` put the rate into the state, as an array."
        )
    return one


def _quick() -> dict[str, Any] | None:
    """Compiling takes longest, and on a CPU it need not be thorough here."""
    on_cpu = jax.default_backend() == "cpu"
    return {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True} if on_cpu else None


def _n_compiled(jitted: Any) -> int:
    return jitted._cache_size()


def _bound(loss: Loss) -> LossFn:
    config, params = tiny_model()
    return LossFn(loss, bind_forward(config, params, (), None, _LORA.scale))


def _init_descent(adapter: Adapter, n_steps: Array) -> tuple[()]:
    return ()


def _descend(
    loss_fn: LossFn, adapter: Adapter, state: tuple[()], batch: Batch, key: Array
) -> tuple[Adapter, tuple[()], dict[str, Array]]:
    (loss, _), gradient = jax.value_and_grad(loss_fn, has_aux=True)(adapter, batch, key)
    return jax.tree.map(lambda x, g: x - 0.1 * g, adapter, gradient), state, {"loss": loss}


def _example(
    number: int, extras: tuple[Extra, ...], n_padding: int = 0, filler: int = 0
) -> tuple[Adapter, Batch, Array]:
    """One of some examples with a trained adapter: six tokens, of which up to three are the answer, and padding.

    `filler` is what stands in the padding.
    """
    rng = np.random.default_rng(number)
    prompt, answers = rng.integers(1, 16, 3).tolist(), rng.integers(1, 16, (4, 3 - number % 2)).tolist()
    sequences = [_sequence(prompt, answer, n_padding, filler) for answer in answers]
    batch = sequences[0]
    if "rejected" in extras:
        batch = batch._replace(rejected=sequences[1])
    if "samples" in extras:
        batch = batch._replace(samples=_stack(sequences[2:]), rewards=jnp.asarray([1.0, 0.0]))
    config, _ = tiny_model()
    key = jax.random.key(number)
    adapter = init_adapter(key, config, _LORA)
    draw = lambda x: jnp.asarray(0.3 * rng.normal(size=x.shape), jnp.float32)  # noqa: E731
    trained = {layer: {name: LowRank(x.a, draw(x.b)) for name, x in own.items()} for layer, own in adapter.items()}
    return trained, batch, key


def _sequence(prompt: list[int], answer: list[int], n_padding: int, filler: int) -> Batch:
    n, length, size = len(prompt), len(prompt) + len(answer), 6 + n_padding
    ids = np.full(size, filler)
    ids[:length] = prompt + answer
    index = np.arange(3 + n_padding)
    real = index < len(answer)
    labels = np.full(index.shape, filler)
    labels[: len(answer)] = answer
    segments = np.where(np.arange(size) < length, SHARED, PADDING)
    predict = np.where(real, n - 1 + index, min(filler, size - 1))
    arrays = (ids, np.arange(size), segments, predict, labels)
    ids, positions, segments, predict, labels = (jnp.asarray(x, jnp.int32) for x in arrays)
    return Batch(Tokens(ids, positions, segments), predict, labels, jnp.asarray(real, jnp.float32))


def _stack(trees: list[Any]) -> Any:
    return jax.tree.map(lambda *x: jnp.stack(x), *trees)


def _rows(trained: _Trained) -> list[_Trained]:
    """A wave's training, as its rows'."""
    return [jax.tree.map(lambda x, row=row: x[row], trained) for row in range(len(trained.losses[0]))]


def _name(part: Any) -> str:
    part = getattr(part, "func", part)
    part = part.step if isinstance(part, UpdateRule) else part
    return getattr(part, "__name__", type(part).__name__)
