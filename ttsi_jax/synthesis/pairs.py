# pyright: strict, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportUnknownLambdaType=false
"""What a synthetic pair is, and who may write one."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import asdict, dataclass
from threading import Thread
from typing import Any, Literal, NamedTuple

from ttsi_jax.tasks import Call, Example, Tool
from ttsi_jax.tasks.prompts import with_tools


@dataclass(frozen=True)
class SynthesisConfig:
    """Settings of data synthesis.

    Attributes:
        k: pairs wanted per input (paper: 1).
        source: who writes them: `self` (the model), `teacher` (see --teacher), `recorded` (they are those that a run
          kept, or lie in a file), `training` (they are labelled examples). `auto`: `teacher` for tt-d, `training` for
          icl, else `self`.
        file: for `recorded` a run's directory, or a .jsonl file with `id`, `query` and `calls` a line; for `training` a
          task name or file.
        choose: examples of a training file: the `nearest` ones in words (BM25), or `random` ones.
        form: what the model writes: `pair`, `request`, or `auto`: `request` where answers have the form `keys`, else
          `pair`. Or `package.module:object`: a `Synthesizer`, or a function of an example and the number of the attempt
          (from 0) to a `Synthetic`, which may take its pairs from anywhere.
        label: the function that a written request is labelled with (form `request`): `scoring`: the one that the
          candidates' scores pick for it, as in answering; `channel`: the one that makes the input's own request
          likeliest, which is named to the model before it writes; `gold`: in the same way the one of the input's label,
          as an upper bound (records say `seen`).
        tries: attempts per wanted pair, or rounds of candidates, before an input keeps its base answer.
        candidates: pairs that are written side by side, of which the best are kept, by the likelihood of their calls
          and by how unlike each other they are; 1 takes the first good ones.
        diversity: of the choice among candidates: 0 takes the likeliest, 1 the least alike.
        temperature: of sampling.
        top_p: of sampling.
        max_tokens: most tokens of a request (form `request`).
        checks: what a pair must pass to be learned from, by name: `schema`, `copy`, `grounded`, `round-trip`,
          `channel`, `agreement` (see docs/quality.md).
        labels: sampled answers to a pair's request, for the check `agreement`.
        skip_values: values that a pair's request does not hold, or that are not of their type, are read in training but
          not learned, in the place of dropping the pair (with the check `grounded` it is dropped all the same).
        held_out: write one more pair, which is not trained on; its loss before and after is recorded as evidence.
        augment: train on a copy of each pair for each of these names too: the functions in another `order`, among
          `distractors` (functions of other inputs), or with a `rename` of functions and arguments (needs the scope
          `all`, see `ttsi_jax.synthesis.augment`).
    """

    k: int = 1
    source: Literal["auto", "self", "teacher", "recorded", "training"] = "auto"
    file: str | None = None
    choose: Literal["nearest", "random"] = "nearest"
    form: str = "auto"
    label: Literal["scoring", "channel", "gold"] = "scoring"
    tries: int = 3
    candidates: int = 1
    diversity: float = 0.3
    temperature: float = 0.7
    top_p: float = 0.95
    max_tokens: int = 64
    checks: tuple[str, ...] = ("schema", "copy")
    labels: int = 4
    skip_values: bool = False
    held_out: bool = False
    augment: tuple[Literal["order", "distractors", "rename"], ...] = ()


class Synthetic(NamedTuple):
    """One written pair; `reason` says why it was dropped, `check` which check did (None: it was of no use before)."""

    query: str
    calls: tuple[Call, ...]  # none: the model labels the request, with its own answer to it
    reason: str | None = None
    check: str | None = None
    last: bool = False  # whether another attempt is of no use
    tools: tuple[Tool, ...] = ()  # the functions that it is about, where they are not the input's
    origin: str | None = None  # the id of the labelled example that it is
    usage: Mapping[str, float] | None = None  # what a teacher counted, see `ttsi_jax.synthesis.teacher`
    skipped: tuple[str, ...] = ()  # arguments whose values are not learned
    seen: bool = False  # the input's label was used for it, which makes a run with it an upper bound

    def record(self) -> dict[str, Any]:
        """The pair as it stands in a run's records."""
        calls, accepted = [asdict(call) for call in self.calls], self.reason is None
        kept = {"query": self.query, "calls": calls, "accepted": accepted, "reason": self.reason, "check": self.check}
        others: dict[str, Any] = {"tools": [*map(asdict, self.tools)] or None, "origin": self.origin}
        others |= {"usage": self.usage and dict(self.usage), "skipped": [*self.skipped] or None}
        return kept | {name: value for name, value in others.items() if value is not None}

    def asked(self) -> str:
        """The request as the model is shown it."""
        return with_tools(self.query, self.tools)


class Synthesizer(NamedTuple):
    """How the model writes one pair for one input; the library writes those of a wave together.

    Attributes:
        prompt: example -> (the user's turn that asks for it, in which `{query}` is the input's request and other braces
            are doubled; how the model's reply begins).
        read: what the model went on to write -> the pair, with the reason where it is of no use.
        line: whether a line break ends the reply; it may then have `synthesis.max_tokens` tokens, else
            `answer.max_tokens`.
        schema: the JSON schema of the reply for a tool list, which it is written under where answers are guided.
    """

    prompt: Callable[[Example], tuple[str, str]]
    read: Callable[[str], Synthetic]
    line: bool = False
    schema: Callable[[Sequence[Tool]], dict[str, Any]] | None = None


PairSource = Synthesizer | Callable[[Example, int], Synthetic]


@dataclass(frozen=True)
class Collection:
    """A source of pairs that are there before the run begins.

    Attributes:
        write: gives the pairs of an input in turn.
        checksum: of all that it chooses from, so that a run is not resumed with others.
        notes: what a user must know of them, in sentences.
        upper_bound: why a run with them is one, where it is.
    """

    write: Callable[[Example, int], Synthetic]
    checksum: str
    notes: tuple[str, ...] = ()
    upper_bound: str | None = None

    def __call__(self, example: Example, attempt: int) -> Synthetic:
        return self.write(example, attempt)


def write_all(source: Any, examples: Sequence[Example], attempts: Sequence[int]) -> list[Synthetic]:
    """The pairs of a source for several inputs; from as many threads as it may have in flight (`in_flight`).

    Where it is interrupted nobody waits for what is under way, and the source is told so (`stop`).
    """
    if (threads := getattr(source, "in_flight", 1)) == 1:
        return [*map(source, examples, attempts)]
    found = [Future[Synthetic]() for _ in examples]
    waiting = deque(zip(found, examples, attempts, strict=True))

    def work() -> None:
        while waiting:
            try:
                future, example, attempt = waiting.popleft()
            except IndexError:  # another thread was faster
                return
            try:
                future.set_result(source(example, attempt))
            except Exception as error:
                future.set_exception(error)

    try:
        for _ in range(min(threads, len(found))):
            Thread(target=work, daemon=True).start()  # an executor's thread would hold up the end of the process
        return [future.result() for future in found]
    except BaseException:
        waiting.clear()
        getattr(source, "stop", lambda: None)()
        raise
