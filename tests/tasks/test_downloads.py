"""Downloads, from a server on this machine that stands for GitHub."""

import json
from contextlib import contextmanager
from dataclasses import replace
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pytest

from ttsi_jax.errors import InputError
from ttsi_jax.tasks import downloads, fetch, load_task
from ttsi_jax.tasks.downloads import git_id
from ttsi_jax.tasks.registry import PUBLISHED

from .data import HAMMER, needs_shared

SET = json.dumps([{"query": "Go.", "tools": [{"name": "f"}], "answers": [{"name": "f", "arguments": {}}]}] * 2).encode()
FILE = f"/{downloads.REPOSITORY}/{downloads.COMMIT}/{downloads.FOLDER}/"
LIST = f"/repos/{downloads.REPOSITORY}/contents/{downloads.FOLDER}?ref={downloads.COMMIT}"


@contextmanager
def github(monkeypatch, files, listing=(), declared=None):
    """Serves a commit's files, and the listing of their folder."""
    pages = {FILE + name: content for name, content in files.items()} | {LIST: json.dumps(listing).encode()}
    asked = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            content = pages.get(self.path)
            self.send_response(404 if content is None else 200)
            self.send_header("Content-Length", str(declared or len(content or b"")))
            self.end_headers()
            self.wfile.write(content or b"")

        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    for name in ("RAW", "API"):
        monkeypatch.setattr(downloads, name, f"http://127.0.0.1:{server.server_port}")
    try:
        yield asked
    finally:
        server.shutdown()
        server.server_close()


def pin(monkeypatch, task, content):
    monkeypatch.setitem(PUBLISHED, task, replace(PUBLISHED[task], sha256=sha256(content).hexdigest()))


def test_a_file_is_compared_with_its_checksum(monkeypatch, tmp_path):
    pin(monkeypatch, "sealtools", SET)
    with github(monkeypatch, {"sealtool.json": SET}) as asked:
        said = fetch("sealtools", tmp_path / "new" / "folder")
    assert "sealtool.json: 2 inputs" in said and sha256(SET).hexdigest() in said
    assert asked == [f"{FILE}sealtool.json"]
    assert len(load_task("sealtools", data_dir=tmp_path / "new" / "folder").usable) == 2


def test_without_a_checksum_it_is_compared_with_what_github_lists(monkeypatch, tmp_path):
    listing = [{"name": "other", "sha": "0"}, {"name": "NexusRaven.json", "sha": git_id(SET)}]
    with github(monkeypatch, {"NexusRaven.json": SET}, listing) as asked:
        assert "2 inputs" in fetch("nexusraven", tmp_path)
    assert asked == [f"{FILE}NexusRaven.json", LIST]


def test_the_id_that_git_gives_a_file():
    assert git_id(b"") == "e69de29bb2d1d6434b8b29ae775ad8c2e48c5391"
    assert git_id(b"hello\n") == "ce013625030ba8dba906f756967f9e9ca394464a"


BAD = {
    "another file": ("sealtools", {"sealtool.json": SET + b" "}, (), "gives another file than was published"),
    "another file than is listed": ("nexusraven", {"NexusRaven.json": SET}, [{"name": "NexusRaven.json", "sha": "0"}],
                                    "gives another file than was published"),
    "not listed": ("nexusraven", {"NexusRaven.json": SET}, [], "does not list NexusRaven.json.*By hand"),
    "no listing": ("nexusraven", {"NexusRaven.json": SET}, {"message": "rate limit"}, "does not list.*By hand"),
    "gone": ("sealtools", {}, (), "could not be downloaded: .*Not Found.* By hand.*SHA-256 must be"),
}  # fmt: skip


@pytest.mark.parametrize(("task", "files", "listing", "reason"), BAD.values(), ids=BAD)
def test_what_is_not_the_published_file_is_not_kept(monkeypatch, tmp_path, task, files, listing, reason):
    pin(monkeypatch, "sealtools", SET)
    with github(monkeypatch, files, listing), pytest.raises(InputError, match=reason):
        fetch(task, tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("content", "reason"), [(b"[]", "no usable input"), (b"{", "not valid JSON")])
def test_a_file_without_inputs_is_not_kept(monkeypatch, tmp_path, content, reason):
    pin(monkeypatch, "sealtools", content)
    with github(monkeypatch, {"sealtool.json": content}), pytest.raises(InputError, match=reason):
        fetch("sealtools", tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_connection_that_ends_too_early(monkeypatch, tmp_path):
    with github(monkeypatch, {"sealtool.json": SET}, declared=9999):
        with pytest.raises(InputError, match="the connection ended after 1.. of 9999 bytes.*By hand"):
            fetch("sealtools", tmp_path)
    assert not list(tmp_path.iterdir())


def test_more_than_is_taken(monkeypatch, tmp_path):
    monkeypatch.setattr(downloads, "MOST_BYTES", 10)
    with github(monkeypatch, {"sealtool.json": SET}), pytest.raises(InputError, match="gives more than 0 MiB"):
        fetch("sealtools", tmp_path)


def test_without_a_network_it_says_what_to_do_by_hand(monkeypatch, tmp_path):
    monkeypatch.setattr(downloads, "RAW", "http://127.0.0.1:9")
    with pytest.raises(InputError) as raised:
        fetch("sealtools", tmp_path)
    said = str(raised.value)
    assert f"get http://127.0.0.1:9{FILE}sealtool.json and put it at {tmp_path}/sealtool.json" in said
    assert PUBLISHED["sealtools"].sha256 in said and "refused" in said


def test_a_file_that_is_there_is_left_alone(tmp_path):
    for name in ("sealtool.json", "toolalpaca.json"):
        (tmp_path / name).write_bytes(SET)
    assert "is there already; it is not the published one" in fetch("sealtools", tmp_path)
    assert fetch("toolalpaca", tmp_path).endswith("toolalpaca.json is there already")
    assert (tmp_path / "sealtool.json").read_bytes() == SET


@needs_shared
@pytest.mark.parametrize("task", ["sealtools", "apibank"])
def test_the_checksums_are_those_of_the_real_files(task):
    assert "and is the published one" in fetch(task, HAMMER)


@pytest.mark.parametrize(
    ("task", "reason"),
    [
        ("bfcl:multiple", "comes with a package, not as a file: pip install --no-deps bfcl-eval"),
        ("sealtool", "did you mean sealtools"),
        ("../sealtools", "unknown task"),
    ],
)
def test_tasks_that_are_not_fetched(tmp_path, task, reason):
    with pytest.raises(InputError, match=reason):
        fetch(task, tmp_path)


def test_a_folder_that_cannot_be_written(monkeypatch, tmp_path):
    pin(monkeypatch, "sealtools", SET)
    (tmp_path / "file").write_text("")
    with github(monkeypatch, {"sealtool.json": SET}), pytest.raises(InputError, match="cannot be written"):
        fetch("sealtools", tmp_path / "file" / "folder")
