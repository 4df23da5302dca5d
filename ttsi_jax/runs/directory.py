"""A run on disk: written so that a process killed at any moment loses nothing that was finished.

Every file but `records.jsonl` is replaced whole. Records are appended, and an append returns when they are on the disk.
The last line of an id counts; a last line without its line end was being written when the process died.
"""

import hashlib
import io
import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ttsi_jax.errors import InputError
from ttsi_jax.runs.record import Record, from_json, strict_json, to_json
from ttsi_jax.runs.signals import held_back
from ttsi_jax.runs.summary import summarise

try:
    import fcntl
except ImportError:  # no advisory locks on this platform
    fcntl = None

CONFIG, RECORDS, SUMMARY, ENVIRONMENT = "config.json", "records.jsonl", "summary.json", "environment.json"
LOCK = ".lock"
ABSENT = "(absent)"  # in the place of a setting that a configuration does not have


class RunDirectory:
    """An open run; made by `open_run`, and locked until it is closed.

    Attributes:
        path: The directory.
        finished: The records of inputs that need no more work, by id.
        failed: The records of inputs that ended in an error, by id; a resumed run tries them again.
    """

    def __init__(self, path: Path, records: Mapping[str, Record], lock: int):
        self.path = path
        self.finished = {id: record for id, record in records.items() if record.error is None}
        self.failed = {id: record for id, record in records.items() if record.error is not None}
        self._lock = lock

    def __enter__(self) -> "RunDirectory":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Gives the lock back."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def append(self, records: Iterable[Record]) -> None:
        """Adds records; when this returns they are on the disk. A signal that comes meanwhile waits for that.

        Raises:
            OSError: they could not be written, and nothing of them is left in the file.
        """
        records = list(records)
        with held_back():
            # A summary speaks of all records, so it is void as soon as one more is added.
            (self.path / SUMMARY).unlink(missing_ok=True)
            with open(self.path / RECORDS, "ab", buffering=0) as file:
                before = file.tell()
                try:
                    _write(file, _lines(records))
                except OSError:
                    file.truncate(before)
                    raise
        self.note(records)

    def note(self, records: Iterable[Record]) -> None:
        """Takes records as they are on the disk."""
        for record in records:
            self.finished.pop(record.id, None)
            self.failed.pop(record.id, None)
            (self.finished if record.error is None else self.failed)[record.id] = record

    def complete(self, order: Sequence[str], summary: Mapping[str, Any]) -> None:
        """Ends the run: puts the records into their stable order and writes the summary.

        Args:
            order: The ids of all inputs, each once.
            summary: What `summarise` returns, and whatever the caller adds.

        Raises:
            InputError: `order` does not name exactly the inputs that have a record.
        """
        replace_file(self.path / RECORDS, _lines(self.ordered(order)))
        replace_file(self.path / SUMMARY, _document(summary))

    def ordered(self, order: Sequence[str]) -> list[Record]:
        """The records of all inputs in this order; raises what `complete` does."""
        self.refuse_strays(order)
        records = self.finished | self.failed
        if missing := set(order) - records.keys():
            raise InputError(f"{self.path}: inputs without a record: {_named(missing)}")
        return [records[id] for id in dict.fromkeys(order)]

    def refuse_strays(self, ids: Iterable[str]) -> None:
        """Raises an InputError where there are records of other inputs than these."""
        if stray := (self.finished.keys() | self.failed.keys()) - set(ids):
            raise InputError(f"{self.path}: the run holds inputs that its task does not: {_named(stray)}")

    def summary(self) -> dict[str, Any] | None:
        """What `complete` wrote, see `read_summary`."""
        return read_summary(self.path)

    def write(self, name: str, value: Mapping[str, Any]) -> None:
        """Writes another JSON file beside the records, such as `environment.json`; a resumed run keeps the newest."""
        replace_file(self.path / name, _document(value))

    def write_once(self, name: str, values: Iterable[Mapping[str, Any]]) -> None:
        """Writes a file of JSON lines beside the records; one that is there stays."""
        if not (self.path / name).exists():
            replace_file(self.path / name, b"".join(strict_json(value).encode() + b"\n" for value in values))


def open_run(path: str | os.PathLike[str], config: Mapping[str, Any]) -> RunDirectory:
    """Starts a run in a new or empty directory, or resumes the one that is there.

    Args:
        path: The directory; made with its parents where it is missing.
        config: All settings that decide the results, as JSON values.

    Raises:
        InputError: the directory holds something else, a run with another configuration, or a damaged record, another
            process is writing to it, or it cannot be written.
    """
    path = Path(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
        _refuse_foreign(path)
        lock = _acquire_lock(path)
    except OSError as error:
        raise InputError(f"{path}: cannot be used as a run's directory: {error.strerror}") from None
    try:
        _settle_config(path, config)
        records, intact = read_records(path / RECORDS)
        # Cuts off a line that was being written when the process died; makes the file where there is none.
        with open(path / RECORDS, "ab") as file:
            file.truncate(intact)
        return RunDirectory(path, records, lock)
    except BaseException:
        os.close(lock)
        raise


def named_after(names: Sequence[str], settings: Any) -> Path:
    """A directory under `runs` for these settings: readable by its names, told apart by a hash of all of them."""
    files = (".gguf", ".json", ".jsonl")
    stems = (Path(name).stem if name.endswith(files) else Path(name).name for name in names)
    words = [re.sub(r"\W+", "-", stem).strip("-") for stem in stems]
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()
    return Path("runs", ".".join([*words, digest[:8]]))


def read_config(path: Path) -> dict[str, Any]:
    """The configuration of the run in a directory.

    Raises:
        InputError: there is none, or it cannot be read.
    """
    return read_object(path / CONFIG, missing=f"{path}: holds no run (it has no {CONFIG})")


def read_summary(path: Path) -> dict[str, Any] | None:
    """The summary of the run in a directory; None while the run is unfinished, or where figures are missing.

    Raises:
        InputError: it is damaged.
    """
    if not (path / SUMMARY).exists():
        return None
    try:
        summary = read_object(path / SUMMARY)
    except InputError as error:
        raise InputError(f"{error}. Delete it, and the same command writes it again.") from None
    return summary if summary.keys() >= summarise([]).keys() else None


def read_records(path: Path) -> tuple[dict[str, Record], int]:
    """The records in a file, by id, and the number of bytes in its whole lines; changes nothing.

    Raises:
        InputError: a whole line is no record.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return {}, 0
    intact = data.rfind(b"\n") + 1
    records: dict[str, Record] = {}
    for number, line in enumerate(data[:intact].split(b"\n")[:-1], start=1):
        try:
            record = from_json(line.decode())
        except (ValueError, RecursionError) as error:
            raise InputError(
                f"{path}:{number}: not a record: {error}. Delete the line, and a resumed run does its input again."
            ) from None
        records[record.id] = record
    return records, intact


def config_differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
    """The settings in which two configurations differ: dotted name to both values, as text."""
    a, b = dict(flat(old)), dict(flat(new))
    names = [name for name in a | b if name not in a or name not in b or a[name] != b[name]]
    return {name: (_shown(a, name), _shown(b, name)) for name in names}


def setting(config: Mapping[str, Any], name: str) -> Any:
    """A step's setting by its dotted name; None where a configuration does not have it."""
    step, _, key = name.partition(".")
    settings = config.get(step)
    return settings.get(key) if isinstance(settings, dict) else None


def flat(config: Mapping[str, Any], above: str = "") -> Iterable[tuple[str, Any]]:
    """Settings by their dotted names."""
    for key, value in config.items():
        if isinstance(value, dict) and value:
            yield from flat(value, f"{above}{key}.")
        else:
            yield f"{above}{key}", value


def _shown(settings: Mapping[str, Any], name: str) -> str:
    return strict_json(settings[name]) if name in settings else ABSENT


def _refuse_foreign(path: Path) -> None:
    """Refuses a directory of other things; a process killed before it wrote the configuration leaves only ours."""
    names = {entry.name for entry in path.iterdir()}
    if CONFIG not in names and names - {LOCK, _temporary(path / CONFIG).name}:
        raise InputError(f"{path}: is not empty and holds no run (it has no {CONFIG}); choose another directory")


def _acquire_lock(path: Path) -> int:
    lock = os.open(path / LOCK, os.O_RDWR | os.O_CREAT, 0o666)
    if fcntl is not None:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
            raise InputError(f"{path}: another process is writing to this run; choose another directory") from None
        except OSError:
            pass  # a file system without locks: the lock is a courtesy, the run is good without it
    return lock


def _settle_config(path: Path, config: Mapping[str, Any]) -> None:
    """Writes the configuration of a new run; refuses to resume a run that has another."""
    if not (path / CONFIG).exists():
        replace_file(path / CONFIG, _document(config))
        return
    refuse_other(path, "a run", read_config(path), config)


def refuse_other(path: Path, what: str, there: Mapping[str, Any], config: Mapping[str, Any]) -> None:
    """Refuses a directory that holds `what` with other settings; raises InputError, which names them."""
    given = json.loads(strict_json(config))  # as it would read from the file: tuples are lists
    if differences := config_differences(there, given):
        lines = [f"  {name}: {old} there, {new} now" for name, (old, new) in differences.items()]
        raise InputError("\n".join([f"{path}: holds {what} with other settings:", *lines, "Choose another directory."]))


def read_object(path: Path, missing: str = "") -> dict[str, Any]:
    """A JSON object in a file; `missing` is what to say where it cannot be read.

    Raises:
        InputError: it cannot be read, or is no JSON object.
    """
    try:
        value = json.loads(path.read_bytes())
    except OSError as error:
        raise InputError(missing or f"{path}: cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not a JSON file: {error}") from None
    if not isinstance(value, dict):
        raise InputError(f"{path}: a JSON object is expected, not {type(value).__name__}")
    return value


def _document(value: Mapping[str, Any]) -> bytes:
    return (strict_json(value, indent=2) + "\n").encode()


def _lines(records: Iterable[Record]) -> bytes:
    return b"".join(to_json(record).encode() + b"\n" for record in records)


def _named(ids: Iterable[str], at_most: int = 5) -> str:
    ids = sorted(ids)
    return ", ".join(ids[:at_most]) + (f" and {len(ids) - at_most} more" if len(ids) > at_most else "")


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.name}.tmp")


def replace_file(path: Path, content: bytes) -> None:
    """Writes a file so that at any moment either the old or the new content is there, whole.

    Raises:
        OSError: it cannot be written, and the old content is there.
    """
    temporary = _temporary(path)
    with held_back():
        try:
            with open(temporary, "wb", buffering=0) as file:
                _write(file, content)
            os.replace(temporary, path)
        except OSError:
            temporary.unlink(missing_ok=True)
            raise
        if hasattr(os, "O_DIRECTORY"):  # elsewhere a directory cannot be opened
            directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
            try:
                os.fsync(directory)
            finally:
                os.close(directory)


def _write(file: io.FileIO, content: bytes) -> None:
    """Writes all of it, to the disk; a full one takes a part, and then raises an error that does not name the file."""
    left = memoryview(content)
    try:
        while left:
            left = left[file.write(left) :]
        os.fsync(file.fileno())
    except OSError as error:
        error.filename = str(file.name)
        raise
