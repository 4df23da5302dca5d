"""Where a run was made: what a reader needs to judge its speed, and nothing about who made it."""

import importlib.metadata
import os
import platform
import subprocess
from collections import Counter
from pathlib import Path
from typing import Any

PACKAGES = ("ttsi_jax", "jax", "jaxlib", "flax", "optax", "numpy", "transformers", "tokenizers", "gguf", "llguidance")


def environment() -> dict[str, Any]:
    """Interpreter, machine, package versions, accelerators and the package's git revision; None for what is not found.

    It asks JAX for its devices, so it belongs after the platform has been chosen.
    """
    import jax

    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu": {"model": _cpu_model(), "count": os.cpu_count(), "memory_bytes": _memory_bytes()},
        "versions": {name: _version(name) for name in PACKAGES},
        "jax": {
            "backend": jax.default_backend(),
            "devices": dict(Counter(device.device_kind for device in jax.devices())),
            "processes": jax.process_count(),
        },
        "revision": _revision(Path(__file__)),
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _cpu_model() -> str | None:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, None) or platform.processor() or None


def _memory_bytes() -> int | None:
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return None


def _revision(file: Path) -> str | None:
    """The commit of the checkout that tracks a file, with `-dirty` where files were changed since."""
    try:
        # An installed package may lie inside somebody else's repository, whose revision would say nothing.
        _git(file.parent, "ls-files", "--error-unmatch", file.name)
        return _git(file.parent, "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")
    except (OSError, subprocess.SubprocessError):
        return None


def _git(directory: Path, *arguments: str) -> str:
    command = ["git", "-C", str(directory), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
