"""A teacher behind a server of this machine, which fails in every way that one can."""

import json
import os
import signal
import threading
import time
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from tiny_runs import EXAMPLES, TASK, settings, task_of, tiny_model, untimed
from ttsi_jax.config import check
from ttsi_jax.errors import InputError
from ttsi_jax.loop import run
from ttsi_jax.runs.groups import load_runs
from ttsi_jax.runs.report import render_report
from ttsi_jax.synthesis.pairs import write_all
from ttsi_jax.synthesis.teacher import MAX_BYTES, Teacher, TeacherConfig

KEY = "sk-very-s3cr3t"
PAIR = '{"request": "Greet Di", "call": {"name": "greet", "arguments": {"name": "Di"}}}'


def completion(text: str | None, **message) -> bytes:
    usage = {"prompt_tokens": 1000, "completion_tokens": 50}
    message = {"role": "assistant", "content": text, **message}
    return json.dumps({"choices": [{"message": message}], "usage": usage}).encode()


class Server:
    """Answers each request by the next of some functions of a handler; the last one answers all that follow."""

    def __init__(self, *answers):
        self.answers, self.asked, self.headers, self.most, self.now = list(answers), [], [], 0, 0
        self.lock = threading.Lock()

    def handle(self, handler) -> None:
        body = handler.rfile.read(int(handler.headers["Content-Length"]))
        with self.lock:
            self.asked.append(json.loads(body))
            self.headers.append(dict(handler.headers))
            answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
            self.now += 1
            self.most = max(self.most, self.now)
        try:
            answer(handler)
        except OSError:
            pass  # the other side gave up
        finally:
            with self.lock:
                self.now -= 1


def says(body: bytes, code: int = 200, **headers):
    def answer(handler) -> None:
        handler.send_response(code)
        for name, value in ({"Content-Length": str(len(body))} | headers).items():
            handler.send_header(name.replace("_", "-"), value)
        handler.end_headers()
        handler.wfile.write(body)

    return answer


def later(seconds: float, answer):
    def slow(handler) -> None:
        time.sleep(seconds)
        answer(handler)

    return slow


def trickles(handler) -> None:
    handler.send_response(200)
    handler.end_headers()
    for _ in range(40):
        handler.wfile.write(b" ")
        handler.wfile.flush()
        time.sleep(0.05)


def hangs_up(handler) -> None:
    handler.close_connection = True


@contextmanager
def serving(*answers):
    server = Server(*answers)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            server.handle(self)

        def log_message(self, *args):
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    http.daemon_threads = True
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    server.url = f"http://127.0.0.1:{http.server_port}/v1"
    try:
        yield server
    finally:
        http.shutdown()
        http.server_close()
        thread.join()


@pytest.fixture(autouse=True)
def key(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)


def ask(server, **changes):
    waits = []
    config = TeacherConfig(url=server.url, model="big", **{"timeout": 5.0, "retries": 2} | changes)
    return Teacher(config, sleep=lambda stopped, seconds: waits.append(seconds))(EXAMPLES[1], 0), waits


GOOD = says(completion(PAIR))


def test_a_pair_and_what_it_cost():
    with serving(GOOD) as server:
        pair, waits = ask(server, price_in=2.0, price_out=10.0)
    assert (pair.query, pair.calls[0].name, pair.reason, waits) == ("Greet Di", "greet", None, [])
    assert pair.usage == {"requests": 1, "prompt_tokens": 1000, "completion_tokens": 50, "cost": pytest.approx(0.0025)}
    [asked] = server.asked
    assert asked.keys() == {"model", "messages"} and asked["model"] == "big"
    assert [turn["role"] for turn in asked["messages"]] == ["system", "user"]
    assert '"greet"' in asked["messages"][0]["content"] and "Please greet Bo" in asked["messages"][1]["content"]
    assert server.headers[0]["Authorization"] == f"Bearer {KEY}"


@pytest.mark.parametrize(
    "failure",
    [
        says(b"{}", 500), says(b"busy", 429), says(b"busy", 503, Retry_After="7"), says(b"not JSON"), says(b"[]"),
        says(b'{"choices": []}'), says(b'{"choices": [{"message": null}]}'), says(completion(None, refusal="No.")),
        says(completion("")), says(b"\xff\xfe"), says(b"[" * 20_000), hangs_up,
    ],
)  # fmt: skip
def test_what_can_pass_is_tried_again(failure):
    with serving(failure, GOOD) as server:
        pair, waits = ask(server)
    assert pair.reason is None and pair.usage["requests"] == 2
    assert waits in ([0.5], [7.0])


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (says(b"overloaded", 503), "HTTP 503: overloaded"),
        (says(b"x" * 99), "its answer is not a chat completion"),
        (says(completion(None, refusal="I would rather not")), "it refused, or wrote nothing: I would rather not"),
        (hangs_up, "no connection: "),
    ],
)
def test_then_there_is_a_reason(answer, said):
    with serving(answer) as server:
        pair, waits = ask(server)
    assert pair.calls == () and pair.last and pair.reason.startswith(f"the teacher failed 3 times, at last: {said}")
    assert waits == [0.5, 1.0] and pair.usage["requests"] == 3


@pytest.mark.parametrize("answer", [later(1.0, GOOD), trickles])
def test_a_teacher_that_is_too_slow(answer):
    with serving(answer) as server:
        pair, _ = ask(server, timeout=0.2, retries=1)
    assert pair.reason == "the teacher failed 2 times, at last: no answer within 0.2 s"


def test_nobody_there():
    config = TeacherConfig(url="http://127.0.0.1:9", model="big", retries=1)
    pair = Teacher(config, sleep=lambda stopped, seconds: None)(EXAMPLES[1], 0)
    assert pair.reason.startswith("the teacher failed 2 times, at last: no connection: ")


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (says(f"wrong key: {KEY}".encode(), 401), "the teacher failed: HTTP 401: wrong key: [key]"),
        (says(b"no such model", 404), "the teacher failed: HTTP 404: no such model"),
        (says(b" " * (MAX_BYTES + 1)), "the teacher failed: its answer is longer than"),
    ],
)
def test_what_cannot_pass_is_not_tried_again(answer, said):
    with serving(answer) as server:
        pair, waits = ask(server)
    assert pair.reason.startswith(said) and waits == [] and pair.last and len(server.asked) == 1


ODD = "sk/a-é.1"
CODES = "".join(f"\\u{ord(char):04X}" for char in ODD)


@pytest.mark.parametrize("said", [ODD, r"sk\/a-\u00e9.1", CODES, CODES.replace("\\", "\\\\")])
def test_a_key_is_found_however_it_is_escaped(monkeypatch, said):
    monkeypatch.setenv("OPENAI_API_KEY", ODD)
    pair = PAIR.replace("Di", said)
    body = completion(pair).replace(b"/", rb"\/")
    refused, failed = says(completion("", refusal=f"not with {said}")), says(f'{{"error": "{said}!"}}'.encode(), 403)
    for answer, expected in ((says(body), "Greet [key]"), (refused, "not with [key]"), (failed, '{"error": "[key]!"}')):
        with serving(answer) as server:
            found, _ = ask(server, retries=0)
        assert (found.query or found.reason).endswith(expected) and ODD not in str(found.record())
    assert Teacher(TeacherConfig(url="http://x", model="big"))._hidden("SK/A-É.1") == "SK/A-É.1"


def test_a_key_that_stands_in_json_by_chance_breaks_nothing(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "1")
    with serving(GOOD) as server:
        pair, _ = ask(server)
    assert pair.query == "Greet Di" and pair.usage["prompt_tokens"] == 1000


@pytest.mark.parametrize("method", ["tt-d", "base"])
def test_a_key_in_the_place_of_its_variable_is_refused_before_anything_is_written(tmp_path, method):
    config = settings(method=method, teacher=TeacherConfig(url="http://x", model="big", key=KEY))
    with pytest.raises(InputError, match=r"--teacher\.key names no environment variable that is set") as caught:
        run(tiny_model(), TASK, config, out=tmp_path / "run")
    assert KEY not in str(caught.value) and list(tmp_path.iterdir()) == []


def test_a_key_may_lie_in_another_variable_and_the_usual_one_may_be_unset(monkeypatch):
    monkeypatch.setenv("MINE", "sk-mine")
    check(settings(teacher=TeacherConfig(key="MINE")))
    with serving(GOOD) as server:
        ask(server, key="MINE")
        monkeypatch.delenv("OPENAI_API_KEY")
        check(settings())
        ask(server)
    assert [headers.get("Authorization") for headers in server.headers] == ["Bearer sk-mine", None]


def test_the_key_goes_nowhere_else():
    with serving(GOOD) as other, serving(says(b"", 302, Location=other.url)) as server:
        pair, _ = ask(server)
    assert "HTTP 302" in pair.reason and other.asked == []


@pytest.mark.parametrize("key", ["bad\nkey", "schlüssel ☃"])
def test_a_key_that_cannot_be_sent_is_not_shown(monkeypatch, key):
    monkeypatch.setenv("OPENAI_API_KEY", key)
    with serving(GOOD) as server:
        pair, _ = ask(server)
    assert pair.reason == "the teacher failed: what the variable OPENAI_API_KEY holds cannot be sent as a key"


@pytest.mark.parametrize("method", ["tt-d", "base"])
@pytest.mark.parametrize(
    ("url", "message"),
    [
        *[(url, "no address") for url in ("api.example.org/v1", "ftp://x/v1", "http://[::1", "http://x:y/v1")],
        (f"http://{'x' * 64}/v1", "no address"),
        *[(f"http://x/{path}", "must be ASCII without spaces") for path in ("vé1", "v 1", "v\x7f1")],
        *[(f"https://{url}", "no key or password") for url in (f"me:{KEY}@x/v1", f"x/v1?key={KEY}", f"x/v1#{KEY}")],
    ],
)
def test_addresses_that_are_refused_before_anything_is_written(tmp_path, method, url, message):
    config = settings(method=method, teacher=TeacherConfig(url=url, model="big"))
    with pytest.raises(InputError, match=rf"--teacher\.url .*{message}") as caught:
        run(tiny_model(), TASK, config, out=tmp_path / "run")
    assert KEY not in str(caught.value) and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("missing", ["url", "model"])
def test_a_teacher_needs_an_address_and_a_model(missing):
    with pytest.raises(InputError, match=r"a teacher needs --teacher\.url .* and --teacher\.model"):
        Teacher(replace(TeacherConfig(url="http://x", model="big"), **{missing: None}))


@pytest.fixture
def interruptible():
    """Also where the tests run in the background, whose processes ignore SIGINT."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("when", ["it hangs", "it waits"])
def test_an_interrupt_waits_for_no_teacher_and_nothing_is_tried_again(when, interruptible):
    """The signal comes while both requests hang, or while both wait for their second try."""
    both, answered = threading.Barrier(2, lambda: os.kill(os.getpid(), signal.SIGINT)), threading.Event()

    def hangs(handler) -> None:
        both.wait()
        answered.wait(60)
        says(b"busy", 503)(handler)

    def interrupts(stopped: threading.Event, seconds: float) -> bool:
        if when == "it waits":
            both.wait()
        return stopped.wait(60)

    with serving(hangs if when == "it hangs" else says(b"busy", 503)) as server:
        teacher = Teacher(TeacherConfig(url=server.url, model="big", retries=3, in_flight=2), sleep=interrupts)
        before = set(threading.enumerate())
        with pytest.raises(KeyboardInterrupt):
            write_all(teacher, EXAMPLES[:4], [0] * 4)
        assert not answered.is_set()
        answered.set()
        for thread in set(threading.enumerate()) - before:
            assert thread.daemon
            thread.join(30)
            assert not thread.is_alive()
        assert len(server.asked) == 2
        server.answers = [GOOD]
        assert [pair.reason for pair in write_all(teacher, EXAMPLES[:4], [0] * 4)] == [None] * 4, "it may be used again"


def test_an_error_in_a_source_is_raised():
    class Broken:
        in_flight = 2

        def __call__(self, example, attempt):
            raise LookupError(example.id)

    with pytest.raises(LookupError, match="one"):
        write_all(Broken(), EXAMPLES[:3], [0] * 3)


def distilled(server, **changes):
    teacher = TeacherConfig(url=server.url, model="big", **{"retries": 0, "in_flight": 4} | changes)
    return settings(method="tt-d", teacher=teacher)


def test_a_run_with_a_teacher(tmp_path):
    """Several requests at once; what is written holds no key; who is in flight together changes nothing."""
    with serving(later(0.1, GOOD)) as server:
        found, summary = run(tiny_model(), TASK, distilled(server, price_out=1e3), out=tmp_path / "run")
        alone = run(tiny_model(), TASK, distilled(server, in_flight=1, price_out=1e3)).records
    assert 1 < server.most <= 4 and untimed(found) == untimed(alone)
    greeted = {record.id for record in found if "greet" in record.candidates}
    assert {record.id for record in found if record.adapted} == greeted
    n = sum(len(record.synthetic) for record in found)
    assert summary["teacher"]["requests"] == n and summary["teacher"]["cost"] == pytest.approx(0.05 * n)
    html = render_report(load_runs([tmp_path / "run"]))
    assert KEY not in html and "Greet Di" in html
    for path in tmp_path.rglob("*"):
        assert path.is_dir() or KEY.encode() not in path.read_bytes()


def test_an_input_whose_teacher_fails_keeps_its_base_answer(tmp_path, capfd):
    with serving(says(f"down; your key is {KEY}".encode(), 500)) as server:
        found, summary = run(tiny_model(), task_of(*EXAMPLES[:2]), distilled(server), out=tmp_path / "run")
    for record in found:
        assert record.calls == record.base_calls and not record.adapted and record.error is None
        assert record.reason == "the teacher failed 1 times, at last: HTTP 500: down; your key is [key]"
        assert len(record.synthetic) == 1, "it is not asked again"
    assert summary["teacher"]["requests"] == 2 and KEY not in "".join(capfd.readouterr())
    assert all(path.is_dir() or KEY.encode() not in path.read_bytes() for path in tmp_path.rglob("*"))
