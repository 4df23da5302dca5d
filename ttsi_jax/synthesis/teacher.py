# pyright: strict, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportUnknownLambdaType=false
"""A teacher behind an endpoint that speaks OpenAI's chat completions writes the pairs (the paper's TT-D).

What can pass is tried again: no connection, no answer in time, a busy or failing server, an answer that is none. What
cannot is not. In the end there is a pair or a reason, never an exception. The key comes from the environment, goes into
one header, and is taken out of what is kept of the server's words; redirects, which could carry it elsewhere, are not
followed.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from http.client import HTTPException
from threading import Event
from typing import Any
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import HTTPRedirectHandler, Request, build_opener

from ttsi_jax.errors import InputError
from ttsi_jax.synthesis.pairs import Synthetic
from ttsi_jax.synthesis.written import read_pair
from ttsi_jax.tasks import Example
from ttsi_jax.tasks.prompts import NEW_PAIR, conversation, synthesis_messages

MAX_BYTES = 1 << 20  # of an answer
MAX_REASON = 200  # characters of what a server says went wrong
FIRST_WAIT, LONGEST_WAIT = 0.5, 60.0  # seconds before the second try; doubled each time
PASSING = {408, 409, 425, 429, 500, 502, 503, 504, 529}


@dataclass(frozen=True)
class TeacherConfig:
    """Settings of the teacher, for pairs that `--synthesis.source teacher` writes.

    Attributes:
        url: where its API is, such as `https://api.openai.com/v1`; `/chat/completions` is added.
        model: its name there.
        key: the environment variable that holds the key; none is sent where the default one is not set.
        timeout: seconds that an answer may take, all of it.
        retries: further tries where one fails in a way that can pass.
        in_flight: requests at the same time.
        price_in: what a million tokens of prompt cost, for the summary.
        price_out: what a million tokens of answer cost.
    """

    url: str | None = None
    model: str | None = None
    key: str = "OPENAI_API_KEY"
    timeout: float = 60.0
    retries: int = 4
    in_flight: int = 8
    price_in: float = 0.0
    price_out: float = 0.0


def check_key(name: str) -> None:
    """Refuses a name that stands for no variable: it may be the key itself, and settings are written down.

    Raises:
        InputError: which does not show what was given.
    """
    if name != TeacherConfig.key and name not in os.environ:
        raise InputError(
            "--teacher.key names no environment variable that is set (it is not shown here, in case it is the key "
            "itself); put the key into a variable and give that one's name"
        )


def check_url(url: str | None) -> None:
    """Refuses an address that is none, or that may hold a secret: settings are written down.

    Raises:
        InputError: which does not show what was given.
    """
    if url is None:
        return
    try:
        parts = urlsplit(url)
        usable = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
        (parts.hostname or "").encode("idna")  # as a connection does
        sendable = re.fullmatch("[!-~]*", parts.path)
        secret = parts.username or parts.password or parts.query or parts.fragment
    except ValueError:  # a bracket that does not close, a port that is no number, a name that is too long
        usable = sendable = secret = None
    if not usable:
        raise InputError("--teacher.url is no address such as https://api.openai.com/v1 (it is not shown here)")
    if not sendable:
        raise InputError(
            "--teacher.url must be ASCII without spaces after its host, with other characters as in %C3%A9 (it is not "
            "shown here)"
        )
    if secret:
        raise InputError("--teacher.url must hold no key or password: they belong into the environment")


class _Passing(Exception):
    """A failure that another try may not have."""

    def __init__(self, why: str, wait: float = 0.0):
        super().__init__(why)
        self.wait = wait


class _Lasting(Exception):
    """A failure that every try would have."""


class _NoRedirects(HTTPRedirectHandler):
    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> None:
        return None


class Teacher:
    """Writes pairs for inputs; may be called from several threads.

    A pair's `usage` holds `requests` (tries included), `prompt_tokens` and `completion_tokens` as the server counts
    them, and `cost` in the currency of the prices.
    """

    def __init__(self, config: TeacherConfig, sleep: Callable[[Event, float], object] = Event.wait):
        """Raises InputError where there is no address or no model, and as `check_url`.

        `sleep` waits so many seconds, or until the event; whether it was the event.
        """
        check_url(config.url)
        if not config.url or not config.model:
            raise InputError("a teacher needs --teacher.url (http:// or https://) and --teacher.model")
        self.config, self.in_flight, self._sleep, self._stopped = config, config.in_flight, sleep, Event()
        self._url = f"{config.url.rstrip('/')}/chat/completions"
        self._opener = build_opener(_NoRedirects)

    def stop(self) -> None:
        """Calls that are under way try nothing again; later ones do."""
        self._stopped.set()
        self._stopped = Event()

    def __call__(self, example: Example, attempt: int) -> Synthetic:
        messages = conversation(example, synthesis_messages(example, NEW_PAIR))
        usage = {"requests": 0, "prompt_tokens": 0, "completion_tokens": 0, "cost": 0.0}
        stopped, why = self._stopped, ""
        for number in range(self.config.retries + 1):
            usage["requests"] += 1
            try:
                text = self._answer({"model": self.config.model, "messages": messages}, usage)
                return read_pair(text)._replace(usage=usage)
            except _Lasting as error:
                return Synthetic("", (), f"the teacher failed: {error}", last=True, usage=usage)
            except _Passing as error:
                why = str(error)
                wait = min(LONGEST_WAIT, max(error.wait, FIRST_WAIT * 2**number))
                if number < self.config.retries and self._sleep(stopped, wait):
                    break
        reason = f"the teacher failed {usage['requests']} times, at last: {why}"
        return Synthetic("", (), reason, last=True, usage=usage)

    def _answer(self, question: dict[str, Any], usage: dict[str, float]) -> str:
        """What the teacher writes; adds to `usage`."""
        body = self._post(json.dumps(question).encode())
        try:
            answer = json.loads(body.decode(errors="replace"))
            message = answer["choices"][0]["message"]
            text, refusal = message.get("content"), message.get("refusal")
        except (ValueError, RecursionError, LookupError, TypeError, AttributeError):
            raise _Passing("its answer is not a chat completion") from None
        counted = answer.get("usage") if isinstance(answer.get("usage"), dict) else {}
        for name, price in (("prompt_tokens", self.config.price_in), ("completion_tokens", self.config.price_out)):
            if isinstance(n := counted.get(name), int) and 0 <= n < 1 << 40:
                usage[name] += n
                usage["cost"] += n * price / 1e6
        if not isinstance(text, str) or not text.strip():
            said = f": {self._hidden(str(refusal))[:MAX_REASON]}" if refusal else ""
            raise _Passing(f"it refused, or wrote nothing{said}")
        return self._hidden(text)

    @property
    def _key(self) -> str:
        return os.environ.get(self.config.key, "").strip()

    def _hidden(self, said: str) -> str:
        """A text without the key, also where its characters are escaped, as in JSON within JSON."""
        forms = (rf"(?:\\{{0,8}}{re.escape(char)}|\\{{1,8}}(?:u00|x)(?i:{ord(char):02x}))" for char in self._key)
        return re.sub("".join(forms), "[key]", said) if self._key else said

    def _post(self, content: bytes) -> bytes:
        """The body of the answer."""
        deadline = time.monotonic() + self.config.timeout
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
        try:
            request = Request(self._url, content, headers, method="POST")
            with self._opener.open(request, timeout=self.config.timeout) as response:
                return _read_all(response, deadline)
        except HTTPError as error:
            with error:
                said = self._hidden(_error_text(error, deadline).decode(errors="replace"))
            said = " ".join(said.split())[:MAX_REASON]
            if error.code in PASSING:
                raise _Passing(f"HTTP {error.code}: {said}", _wait(error.headers.get("Retry-After"))) from None
            raise _Lasting(f"HTTP {error.code}: {said}") from None
        except TimeoutError:
            raise _Passing(f"no answer within {self.config.timeout:g} s") from None
        except ValueError:  # http.client shows the header in its message
            raise _Lasting(f"what the variable {self.config.key} holds cannot be sent as a key") from None
        except (OSError, HTTPException) as error:
            reason = getattr(error, "reason", error)
            if isinstance(reason, TimeoutError):
                raise _Passing(f"no answer within {self.config.timeout:g} s") from None
            raise _Passing(f"no connection: {self._hidden(str(reason))[:MAX_REASON]}") from None


def _read_all(response: Any, deadline: float) -> bytes:
    """A body that comes in time and is not too long; one that trickles does not hold the run."""
    found = bytearray()
    while piece := response.read1(1 << 16):
        found += piece
        if time.monotonic() > deadline:
            raise TimeoutError
        if len(found) > MAX_BYTES:
            raise _Lasting(f"its answer is longer than {MAX_BYTES} bytes")
    return bytes(found)


def _error_text(error: HTTPError, deadline: float) -> bytes:
    try:
        return _read_all(error, deadline)
    except (OSError, HTTPException, _Lasting):
        return b""


def _wait(header: str | None) -> float:
    """Seconds that a server asks to wait; a date, or nonsense, counts as none."""
    try:
        return max(0.0, float(header or 0))
    except ValueError:
        return 0.0
