"""A run that is one process of several: a child does it, and this process says in a message how it ended.

Where a process of a job is lost, JAX's runtime aborts the others with a stack of C++ functions, and no handler in them
can prevent that. So what the runtime writes goes into a file, and only the child's own words to the terminal.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import threading
import traceback
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import NoReturn, TextIO

from ttsi_jax.cli.codes import BAD_INPUT, BAD_MODEL, DONE, HOST_LOST, INTERRUPTED, SOME_FAILED

CODES = (DONE, SOME_FAILED, BAD_INPUT, BAD_MODEL, INTERRUPTED)  # with which the child has said what there is to say
PATIENCE = 20  # seconds that an interrupted child has to end by itself; it may be waiting for another host


def watch(argv: Sequence[str]) -> tuple[int, str | None]:
    """Runs a command in a child; returns the exit code, and where a host was lost, a message.

    Whatever ends this process ends the child.
    """
    descriptor, name = tempfile.mkstemp(prefix="ttsi-jax-", suffix=".log")
    os.close(descriptor)
    log = Path(name)
    # A group of its own: Ctrl-C reaches the child once, from here. It ends when its standard input does.
    command = [sys.executable, "-P", "-c", f"from {__name__} import main; main()", name, *argv]
    with subprocess.Popen(command, stdin=subprocess.PIPE, process_group=0) as child:
        try:
            code = child.wait()
        except KeyboardInterrupt:
            child.terminate()
            with suppress(subprocess.TimeoutExpired):
                child.wait(PATIENCE)
            if child.returncode != INTERRUPTED:  # it said nothing
                raise
            code = INTERRUPTED
        finally:
            child.kill()
            child.wait()
    if code in CODES:
        log.unlink()
        return code, None
    how = f"was ended by signal {-code}" if code < 0 and code != -signal.SIGABRT else "ended with it"
    return HOST_LOST, (
        f"a process of this job was lost or never came, and the one on this host {how} (what JAX said of it: {log}); "
        f"finished inputs are kept, and the same command on all hosts resumes the run"
    )


def main() -> NoReturn:
    """The child: it is given the file and the command's arguments."""
    log, *argv = sys.argv[1:]
    kept = os.open(log, os.O_WRONLY | os.O_APPEND)
    sys.stdout, sys.stderr = map(_for_python_alone, (1, 2), (kept, kept))
    threading.Thread(target=_end_with_parent, daemon=True).start()
    from ttsi_jax.cli import main as run

    try:
        code = run(argv, watched=True)
        if code in (DONE, SOME_FAILED) and not _left_together():
            code = HOST_LOST
    except KeyboardInterrupt:
        code = INTERRUPTED
    except BaseException:
        traceback.print_exc()
        code = SOME_FAILED  # as Python ends
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(code)  # not by way of JAX's own farewell, which would wait for the other hosts


def _for_python_alone(descriptor: int, others: int) -> TextIO:
    """A stream to where a descriptor leads; what else writes to the descriptor goes to another one."""
    stream = os.fdopen(os.dup(descriptor), "w", buffering=1, errors="backslashreplace")
    os.dup2(others, descriptor)
    return stream


def _left_together() -> bool:
    """Waits for the other processes, which the first one serves; whether all of them came to their ends."""
    import jax

    try:
        jax.distributed.shutdown()
    except jax.errors.JaxRuntimeError as error:
        os.write(2, f"{error}\n".encode())
        return False
    return True


def _end_with_parent() -> None:
    sys.stdin.buffer.read()
    os._exit(INTERRUPTED)
