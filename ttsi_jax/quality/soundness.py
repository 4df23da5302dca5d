"""Whether an answer can be right at all, judged by the request alone: no label and no confidence comes into it."""

from __future__ import annotations

from ttsi_jax.quality.agreement import Answer
from ttsi_jax.quality.grounding import ungrounded
from ttsi_jax.tasks import Example, check_call


def sound(answer: Answer, example: Example, function: str | None = None) -> bool:
    """Whether an answer is valid calls of the input's functions, with values that its messages hold, and one of them
    calls this `function`, where the noisy channel was asked for it."""
    if function is not None and function not in {call.name for call in answer or ()}:
        return False
    said = "\n".join(message["content"] for message in example.messages if message["role"] != "system")
    return bool(answer) and all(
        check_call(call, example.tools) is None and not ungrounded(call, said, example.tools) for call in answer or ()
    )
