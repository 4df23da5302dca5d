# pyright: strict, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportUnknownLambdaType=false
"""What losses and update rules are, for ONE example; `ttsi_jax.adaptation` runs them over steps and inputs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol

from jax import Array

from ttsi_jax.model.decoder import LayerInputs, Tokens
from ttsi_jax.model.lora import Adapter

State = Any  # a pytree that belongs to the rule
Metrics = dict[str, Array]  # scalars by name
Extra = Literal["rejected", "samples"]  # what a loss may need beside the pair; see `Batch`


class Batch(NamedTuple):
    """One training sequence; a rule sees one at a time (batch size 1, as in the paper).

    The last three fields are there for a loss that asks for them (see `needs`), and `()` for others.
    """

    tokens: Tokens  # [T]
    predict: Array  # [A] int32: indices into T whose next token is trained on
    labels: Array  # [A] int32: those next tokens
    weights: Array  # [A] float32: 0 is padding
    rejected: Batch | tuple[()] = ()  # the same request with a wrong call; weights 0 where none could be made
    samples: Batch | tuple[()] = ()  # answers that the model sampled to the request; all with a leading axis M
    rewards: Array | tuple[()] = ()  # [M] float32 in [0, 1]: how good each sample is


class Outputs(NamedTuple):
    """What the model says about one sequence."""

    logits: Array  # [A, V] float32, at the positions asked for
    inputs: LayerInputs | tuple[()] = ()  # on request: what each projection read, [T, in] by layer and name


class Forward(Protocol):
    """The model with the base bound: adapter (None is theta_0), tokens [T], indices [A] int32 -> `Outputs`."""

    def __call__(self, adapter: Adapter | None, tokens: Tokens, predict: Array, inputs: bool = False) -> Outputs: ...


class Loss(Protocol):
    """A loss of one example: (forward, adapter, batch, key) -> (float32 scalar, e.g. nats; dict of scalars to report).

    Hyperparameters are keyword arguments with defaults (`functools.partial` sets others) and belong to the program: a
    new value compiles it anew.
    """

    def __call__(self, forward: Forward, adapter: Adapter, batch: Batch, key: Array) -> tuple[Array, Metrics]: ...


def needs(*extras: Extra) -> Callable[[Loss], Loss]:
    """Declares what a loss reads from its batch beside the pair; the loop then provides it.

    >>> @needs("rejected")
    ... def hinge(forward, adapter, batch, key): ...
    """

    def declare(loss: Loss) -> Loss:
        loss.needs = extras  # pyright: ignore[reportAttributeAccessIssue]
        return loss

    return declare


def needed(loss: Loss) -> tuple[Extra, ...]:
    """What `needs` declared of a loss, also through `functools.partial`."""
    return getattr(loss, "needs", getattr(getattr(loss, "func", None), "needs", ()))


@dataclass(frozen=True)
class LossFn:
    """A loss with the model bound: (adapter, batch, key) -> (float32 scalar, dict of scalars).

    A rule that wants more than the loss's value and gradient asks `forward` itself.
    """

    loss: Loss
    forward: Forward

    def __call__(self, adapter: Adapter, batch: Batch, key: Array) -> tuple[Array, Metrics]:
        return self.loss(self.forward, adapter, batch, key)


class RuleStep(Protocol):
    """One step of one example: changes an adapter and the rule's state by one training sequence."""

    def __call__(
        self, loss_fn: LossFn, adapter: Adapter, state: State, batch: Batch, key: Array
    ) -> tuple[Adapter, State, Metrics]: ...


class UpdateRule(NamedTuple):
    """How one example's adapter changes; a pair of pure functions, as in optax.

    Attributes:
        init: (adapter, n_steps int32 scalar) -> state. Hyperparameters go into the state as arrays: another learning
            rate then compiles nothing. The number of steps is an input's own, and schedules need it.
        step: (loss_fn, adapter, state, batch, key) -> (adapter, state, metrics); metrics has at least `loss`.
    """

    init: Callable[[Adapter, Array], State]
    step: RuleStep
