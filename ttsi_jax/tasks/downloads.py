"""Downloads of test sets, checked before they are used.

The files come from one commit of the Hammer project's repository. Each is compared with its SHA-256 where that is
known here, and otherwise with the object id that GitHub lists for it in that commit.
"""

import hashlib
import http.client
import json
import os
import urllib.request
from pathlib import Path
from tempfile import TemporaryDirectory

from ttsi_jax.errors import InputError
from ttsi_jax.tasks.hammer import load_hammer
from ttsi_jax.tasks.registry import file_of, find_published

REPOSITORY, COMMIT = "MadeAgents/Hammer", "5e3ca28c40f98e21bae4794d73d5546321533fe3"
FOLDER = "data/test/original"
RAW, API = "https://raw.githubusercontent.com", "https://api.github.com"
MOST_BYTES, MOST_SECONDS = 64 << 20, 30.0  # seconds of silence, not in all


def fetch(task: str, data_dir: Path | None = None) -> str:
    """Downloads a task's file into the folder where `load_task` looks for it, unless it is there already.

    Returns:
        What was done, in a sentence.

    Raises:
        InputError: for a task that is no such file, a file that cannot be had or written (the message says what to do
            by hand), that is not the published one, or that holds no usable input. Then nothing is kept of it.
    """
    path, known = file_of(task, data_dir), find_published(task).sha256
    if path.exists():
        return f"{path} is there already{_compared(path.read_bytes(), known)}"
    url = f"{RAW}/{REPOSITORY}/{COMMIT}/{FOLDER}/{path.name}"
    try:
        content = _download(url)
        listed = None if known else _listed_id(path.name)
    except (OSError, http.client.HTTPException, ValueError) as error:
        reason = getattr(error, "reason", error)
        raise InputError(f"{task} could not be downloaded: {reason}. {_by_hand(url, path, known)}") from None
    digest = hashlib.sha256(content).hexdigest()
    if digest != known if known else git_id(content) != listed:
        raise InputError(f"{url} gives another file than was published ({_size(content)}, SHA-256 {digest})")
    return f"{path}: {_keep(content, path)} inputs, {_size(content)}, SHA-256 {digest}"


def git_id(content: bytes) -> str:
    """The id under which git keeps a file of this content."""
    return hashlib.sha1(b"blob %d\0%b" % (len(content), content), usedforsecurity=False).hexdigest()


def _download(url: str) -> bytes:
    with urllib.request.urlopen(url, timeout=MOST_SECONDS) as response:
        content = response.read(MOST_BYTES + 1)
        declared = response.headers.get("Content-Length")
    if len(content) > MOST_BYTES:
        raise ValueError(f"{url} gives more than {MOST_BYTES >> 20} MiB")
    if declared is not None and len(content) != int(declared):
        raise ValueError(f"the connection ended after {len(content)} of {declared} bytes")
    return content


def _listed_id(name: str) -> str:
    """The git id of a file, as GitHub's listing of the folder has it."""
    listing = json.loads(_download(f"{API}/repos/{REPOSITORY}/contents/{FOLDER}?ref={COMMIT}"))
    try:
        return next(file["sha"] for file in listing if file["name"] == name)
    except (StopIteration, TypeError, KeyError):
        raise ValueError(f"GitHub does not list {name} in {FOLDER}, so that it cannot be checked") from None


def _keep(content: bytes, path: Path) -> int:
    """Puts the file into its place, whole or not at all; returns the number of its usable inputs."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=path.parent) as folder:
            temporary = Path(folder, path.name)
            temporary.write_bytes(content)
            if not (n_inputs := len(load_hammer(temporary).usable)):
                raise InputError(f"{path.name} holds no usable input")
            os.replace(temporary, path)
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error.strerror}") from None
    return n_inputs


def _compared(content: bytes, sha256: str | None) -> str:
    if sha256 is None:
        return ""
    same = hashlib.sha256(content).hexdigest() == sha256
    return ", and is the published one" if same else "; it is not the published one: move it away to get that"


def _by_hand(url: str, path: Path, sha256: str | None) -> str:
    check = f"; its SHA-256 must be {sha256}" if sha256 else ""
    return f"By hand, where there is a network: get {url} and put it at {path}{check}"


def _size(content: bytes) -> str:
    return f"{len(content):,} bytes"
