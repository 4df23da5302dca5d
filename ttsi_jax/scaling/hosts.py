# pyright: strict, reportUnknownMemberType=false, reportUnknownVariableType=false
"""Several processes, each with devices of its own, that do one run together: a base may span them.

All of them run the same program on the same inputs, and decide by the same values: what a program of all devices gave
(`Layout.read`), or what the first process says (`told`). It alone writes the run and asks whoever is not on the mesh.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils

from ttsi_jax.errors import InputError
from ttsi_jax.runs import directory
from ttsi_jax.runs.directory import RunDirectory, config_differences
from ttsi_jax.runs.record import Record, from_json, strict_json, to_json
from ttsi_jax.synthesis import Synthetic
from ttsi_jax.tasks import Call, Tool

HEARTBEAT = 30  # seconds without a sign of life after which a process counts as lost
SMALLEST = 1 << 10  # bytes of what is told, in buckets, or each length would be a program of its own


class Hosts(NamedTuple):
    """The processes of a job; `address` is None where the cluster says all of this."""

    address: str | None = None  # host:port of the first one
    number: int = 0  # of this one, from 1
    of: int = 0


def parse_hosts(text: str) -> Hosts:
    """What `auto` or `ADDRESS:PORT,i/n` means.

    Raises:
        InputError: the text is neither.
    """
    if text == "auto":
        return Hosts()
    found = re.fullmatch(r"([^,\s]+:\d{1,5}),(\d{1,6})/(\d{1,6})", text)
    hosts = Hosts(found[1], int(found[2]), int(found[3])) if found else Hosts()
    if not 1 <= hosts.number <= hosts.of:
        raise InputError(
            f"--hosts is '{text}'; it must be auto, or ADDRESS:PORT,i/n with the first host's address and i from 1 to "
            f"n, such as 10.0.0.1:8476,2/4"
        )
    return hosts


def join(text: str) -> None:
    """Waits for the other processes of a job, up to five minutes; from then on `jax.devices()` are those of all.

    To be called before anything else of JAX. On CPUs the processes communicate by gloo. If the others do not come, or
    one of them is lost later, JAX ends this process with SIGABRT.

    Args:
        text: see `parse_hosts`. `auto` leaves it to JAX, which knows Slurm, Open MPI and TPU pods.

    Raises:
        InputError: the text means nothing, no cluster is found, or this process cannot listen.
    """
    hosts = parse_hosts(text)
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.config.update("jax_enable_preemption_service", False)  # it would take SIGTERM, which is ours
    known: dict[str, Any] = {"cluster_detection_method": "deactivate"} if hosts.address else {}
    known |= {"num_processes": hosts.of, "process_id": hosts.number - 1} if hosts.address else {}
    try:
        jax.distributed.initialize(
            hosts.address, heartbeat_timeout_seconds=HEARTBEAT, shutdown_timeout_seconds=2 * HEARTBEAT, **known
        )
    except (ValueError, RuntimeError) as error:
        why = str(error).splitlines()[0]
        hint = "" if hosts.address else "; where JAX finds no cluster, write --hosts ADDRESS:PORT,i/n"
        raise InputError(f"--hosts {text}: the hosts of this job could not be joined: {why}{hint}") from None


def several() -> bool:
    """Whether this process is one of a job of several."""
    return jax.process_count() > 1


def is_first() -> bool:
    """Whether this process is the one that writes."""
    return jax.process_index() == 0


def told(make: Callable[[], Any]) -> Any:
    """What `make()`, which only the first process calls, gives there: JSON values, or an InputError that all raise."""
    if not several():
        return make()
    said: dict[str, Any] = {}
    if is_first():
        try:
            said = {"value": make()}
        except InputError as error:
            said = {"error": str(error)}
    data = np.frombuffer(strict_json(said).encode(), np.uint8)
    size = int(multihost_utils.broadcast_one_to_all(np.int32(data.size)))
    padded = np.zeros(max(SMALLEST, 1 << (size - 1).bit_length()), np.uint8)
    if is_first():
        padded[:size] = data
    said = json.loads(multihost_utils.broadcast_one_to_all(padded)[:size].tobytes())
    if "error" in said:
        raise InputError(said["error"])
    return said["value"]


def check_job(config: Mapping[str, Any], mesh: Mapping[str, int] | None) -> None:
    """Refuses a job of several processes that cannot be, in all of them.

    Args:
        config: what decides the results, as JSON values.
        mesh: the sizes of the mesh that the model lies on.

    Raises:
        InputError: one of them has other values than the first, or something only works in one process.
    """
    if not several():
        return
    if mesh is None:
        raise InputError("a run of several hosts needs a model on a mesh of all their devices, see --mesh")
    if config["adapt"]["reset"] == "never":
        raise InputError("--adapt.reset never goes on from adapters in files: it takes one host, without --hosts")
    config = {**config, "mesh": mesh}
    own = json.loads(strict_json(config))
    differences = config_differences(told(lambda: own), own)
    differ = multihost_utils.process_allgather(np.bool_(bool(differences)))
    if differences:
        lines = [f"  {name}: {there} there, {here} here" for name, (there, here) in differences.items()]
        raise InputError("\n".join(["this host has other settings or files than the first:", *lines]))
    if differ.any():
        numbers = ", ".join(str(index + 1) for index in np.flatnonzero(differ))
        raise InputError(f"other settings or files than the first host's: host {numbers} (which says what differs)")


def told_pairs(make: Callable[[], Sequence[Synthetic]]) -> Sequence[Synthetic]:
    """`told`, of pairs that `make()` gives."""
    if not several():
        return make()
    found = told(lambda: [pair._asdict() | _plain(pair) for pair in make()])
    return [_as_before(pair) for pair in found]


def _as_before(pair: dict[str, Any]) -> Synthetic:
    calls, tools = (tuple(kind(**own) for own in pair[name]) for name, kind in (("calls", Call), ("tools", Tool)))
    changed: dict[str, Any] = {"calls": calls, "tools": tools, "skipped": tuple(pair["skipped"])}
    return Synthetic(**pair | changed)


def _plain(pair: Synthetic) -> dict[str, Any]:
    """What of a pair is no JSON value, as one."""
    usage = None if pair.usage is None else dict(pair.usage)
    return {"calls": [*map(asdict, pair.calls)], "tools": [*map(asdict, pair.tools)], "usage": usage}


def by_the_first(act: Callable[..., None]) -> Callable[..., None]:
    """What only the first process does; to the others it is nothing."""
    return act if is_first() else lambda *arguments, **options: None


class Onlooker(RunDirectory):
    """The same run in another process than the first: the same records, and nothing is written."""

    def __init__(self, path: Path, records: Mapping[str, Record], summary: dict[str, Any] | None):
        super().__init__(path, records, lock=-1)
        self._summary = summary

    def append(self, records: Iterable[Record]) -> None:
        self.note(records)

    def complete(self, order: Sequence[str], summary: Mapping[str, Any]) -> None:
        self.ordered(order)

    def write(self, name: str, value: Mapping[str, Any]) -> None:
        pass

    def write_once(self, name: str, values: Iterable[Mapping[str, Any]]) -> None:
        pass

    def summary(self) -> dict[str, Any] | None:
        return self._summary


def open_run(path: str | os.PathLike[str], config: Mapping[str, Any]) -> RunDirectory:
    """`ttsi_jax.runs.directory.open_run` by the first process; the others look on."""
    if not several():
        return directory.open_run(path, config)
    opened: list[RunDirectory] = []

    def open_first() -> dict[str, Any]:
        opened.append(directory.open_run(path, config))
        records = [*opened[0].finished.values(), *opened[0].failed.values()]
        return {"records": [to_json(record) for record in records], "summary": opened[0].summary()}

    said = told(open_first)
    if opened:
        return opened[0]
    return Onlooker(Path(path), {one.id: one for one in map(from_json, said["records"])}, said["summary"])
