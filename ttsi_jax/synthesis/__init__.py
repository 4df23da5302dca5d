# pyright: strict, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportUnknownLambdaType=false
"""G: training examples for an input that the model is unsure of (paper, Algorithm 1, step 2).

The input's label is never seen. The model writes them itself (`written`), a teacher does (`teacher`), they were written
before (`recorded`), or they are labelled examples (`training`). Every pair is checked (`ttsi_jax.quality.checks`)
before it is learned from, and what was dropped is kept with its reason.
"""

from os import PathLike
from pathlib import Path

from ttsi_jax.errors import InputError
from ttsi_jax.synthesis.pairs import Collection, PairSource, SynthesisConfig, Synthesizer, Synthetic
from ttsi_jax.synthesis.recorded import read_pairs, recorded
from ttsi_jax.synthesis.teacher import Teacher, TeacherConfig, check_key, check_url
from ttsi_jax.synthesis.training import from_training
from ttsi_jax.synthesis.written import REQUEST, SYNTHESIZERS, read_pair, read_request
from ttsi_jax.tasks import load_task

__all__ = [
    "REQUEST",
    "SYNTHESIZERS",
    "Collection",
    "PairSource",
    "SynthesisConfig",
    "Synthesizer",
    "Synthetic",
    "Teacher",
    "TeacherConfig",
    "check_key",
    "check_sources",
    "check_url",
    "find_source",
    "read_pair",
    "read_pairs",
    "read_request",
    "recorded",
]


SOURCES = {"tt-si": ("self", "recorded", "training"), "tt-d": ("teacher", "recorded"), "icl": ("training",)}


def check_sources(method: str, source: str, config: SynthesisConfig) -> None:
    """Refuses a source that a method cannot have, or that lacks its file; `find_source` sees to what is in them.

    Raises:
        InputError: naming the option.
    """
    if method == "base":
        return
    if source not in (allowed := SOURCES.get(method, (source,))):
        raise InputError(f"--synthesis.source is {source}; with --method {method} it must be {' or '.join(allowed)}")
    if (config.file is None) == (source in ("recorded", "training")):
        what = "needs" if config.file is None else "takes no"
        raise InputError(f"--synthesis.source {source} {what} --synthesis.file")


def find_source(
    source: str, config: SynthesisConfig, teacher: TeacherConfig, seed: int, data: str | PathLike[str] | None = None
) -> PairSource:
    """Who writes pairs where it is not the model: `teacher`, `recorded` or `training`; `data` as in `load_task`.

    Raises:
        InputError: a file or an address that cannot be used.
    """
    if source == "teacher":
        return Teacher(teacher)
    file = config.file or ""
    if source == "recorded":
        return read_pairs(Path(file))
    return from_training(load_task(file, data_dir=data), config.choose, seed)
