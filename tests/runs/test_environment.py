import json
import subprocess
from pathlib import Path

import pytest

from ttsi_jax.runs import environment as module
from ttsi_jax.runs.environment import environment


def test_an_environment_says_what_speed_depends_on_and_not_who_measured_it():
    import jax

    found = environment()
    assert found["versions"]["jax"] == jax.__version__
    assert sum(found["jax"]["devices"].values()) == jax.device_count()
    assert found["jax"]["backend"] == jax.default_backend()
    assert found["cpu"]["count"] > 0
    assert found.keys() == {"python", "platform", "cpu", "versions", "jax", "revision"}
    assert str(module.__file__) not in json.dumps(found)


def test_a_revision_is_that_of_the_repository_which_tracks_the_file(tmp_path):
    def git(*arguments):
        identity = ("-c", "user.name=t", "-c", "user.email=t@example.org")
        command = ["git", "-C", str(tmp_path), *identity, *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    try:
        git("init")
    except OSError:
        pytest.skip("git is not installed")
    tracked, stranger = tmp_path / "tracked.py", tmp_path / "stranger.py"
    tracked.write_text("1")
    stranger.write_text("1")
    assert module._revision(tracked) is None
    git("add", tracked.name)
    git("-c", "core.hooksPath=/dev/null", "commit", "-m", "first", "--no-gpg-sign")
    commit = git("rev-parse", "HEAD")
    assert module._revision(tracked) == commit
    assert module._revision(stranger) is None
    tracked.write_text("2")
    assert module._revision(tracked) == f"{commit}-dirty"


def test_what_cannot_be_found_is_none(monkeypatch, tmp_path):
    assert module._version("no-such-package-anywhere") is None
    monkeypatch.setenv("PATH", str(tmp_path))
    assert module._revision(Path(module.__file__)) is None
