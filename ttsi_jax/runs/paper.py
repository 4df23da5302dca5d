"""What the paper (arXiv 2510.07841) reports, to stand beside a run of the same task and method."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from ttsi_jax.quality.presets import PRESETS
from ttsi_jax.runs.directory import ABSENT, config_differences, setting

SFT_SAMPLES, TT_SI_SAMPLES = 13_000, 190  # on SealTool: 68 times fewer
SMALL, LARGE = "Qwen2.5-1.5B-Instruct", "Qwen2.5-7B-Instruct"


class Published(NamedTuple):
    """A figure of the paper: accuracy in percent (of what is unknown), its gain over the base in points, the model."""

    method: str
    accuracy: str
    gain: float | None
    model: str = SMALL


class Beside(NamedTuple):
    """The paper's figure for a run's task and method; `differs` maps in what the run is not the paper's to its value in
    the run and there."""

    published: Published
    differs: dict[str, tuple[str, str]]


_FIGURES: Mapping[tuple[str, str], Published] = {
    ("sealtools", "base"): Published("direct", "66.4 to 66.7", None),
    ("sealtools", "tt-si"): Published("TT-SI", "72.43", 5.76),
    ("sealtools", "tt-si, all"): Published("adapt all", "73.47", None),
    ("sealtools", "tt-si, certain"): Published("certain only", "70.07", None),
    ("sealtools", "tt-si, uncertain below 0.35"): Published("TT-SI, τ 0.35", "68.10", None),
    ("sealtools", "sft"): Published("SFT on 13k", "70.20", None),
    ("sealtools", "upper bound"): Published("trained on the test set", "78.89", None),
    ("toolalpaca", "tt-si"): Published("TT-SI", "–", 5.84),
    ("nexusraven", "tt-si"): Published("TT-SI", "–", 6.05),
    ("apibank", "tt-si"): Published("TT-SI", "–", 4.26),
}
_OF_LARGE = {("sealtools", "tt-si"): Published("TT-SI, 7B", "–", 3.02, LARGE)}
_MEANS = {
    "base": Published("direct", "54.66", None),
    "tt-si": Published("TT-SI", "60.14", 5.48),
    "tt-d": Published("TT-D", "–", 6.42),
    "tt-si, vote": Published("TT-SI, vote", "–", 3.85),
    "tt-d, vote": Published("TT-D, vote", "–", 5.53),
}
_TEACHER = "gpt-5-mini"
BENCHMARKS = frozenset({"sealtools", "apibank", "toolalpaca", "nexusraven"})  # that the means are over
_INPUTS = {"sealtools": 294, "toolalpaca": 114, "nexusraven": 318}

_PRESET = PRESETS["paper"]
# What None and `auto` come to there.
_COMES_TO = {"adapt.lr": "0.0001", "synthesis.source": '"self"', "synthesis.form": '"pair"'}
_OF_ANSWERS = ("answer", "unmatchable", "gate.score")
_OF_ADAPTERS = ("adapt.scope", "adapt.rank", "adapt.alpha", "adapt.scaling", "adapt.targets", "adapt.layers")
_OF_ALL = ("answer", "unmatchable", "gate", "synthesis", "adapt")
# The figure tells them, they make no difference, or (how many answers vote) nobody here has read them.
_NEVER = (
    "gate.select", "gate.tau", "adapt.memory", "adapt.save", "adapt.measure", "answer.vote", "answer.samples"
)  # fmt: skip


def beside(config: Mapping[str, Any], n_inputs: int, n_seen: int = 0) -> Beside | None:
    """The paper's figure for a run's task and method; None where it has none, or nobody here has read it.

    What the paper does not say of its settings is taken to be as in `--preset paper`, and what an older run does not
    say of its own, too.

    Args:
        config: the run's `config.json`; any JSON values.
        n_inputs: how many inputs it has.
        n_seen: those whose labels the model was trained on before the run.
    """
    task, kind = str(config.get("task")), _kind(config, n_inputs, n_seen)
    own_size = _OF_LARGE if _model(config) == LARGE.lower() else {}
    published = own_size.get((task, kind)) or _FIGURES.get((task, kind))
    return published and Beside(published, _apart(published, config, n_inputs, n_seen))


def beside_mean(runs: Sequence[tuple[Mapping[str, Any], int, int]]) -> Beside | None:
    """The paper's mean over its four benchmarks, for one run of each; None where they are others, or it has none.

    Args:
        runs: of each what `beside` takes.
    """
    kinds, tasks = {_kind(*run) for run in runs}, [str(config.get("task")) for config, *_ in runs]
    published = _MEANS.get(kinds.pop()) if len(kinds) == 1 else None
    if published is None or sorted(tasks) != sorted(BENCHMARKS):
        return None
    differs = {}
    for task, run in zip(tasks, runs, strict=True):
        for name, values in _apart(published, *run).items():
            differs[f"{name} of {task}" if name == "inputs" else name] = values
    return Beside(published, differs)


def _apart(published: Published, config: Mapping[str, Any], n_inputs: int, n_seen: int) -> dict[str, tuple[str, str]]:
    """In what a run is not the one that a figure is of."""
    differs, kind, task = {}, _kind(config, n_inputs, n_seen), str(config.get("task"))
    if _model(config) != published.model.lower():
        differs["model"] = str(config.get("model")), published.model
    if "int8" in str(config.get("dtype")):
        differs["dtype"] = str(config["dtype"]), "a float"
    if n_inputs != _INPUTS.get(task, n_inputs):
        differs["inputs"] = str(n_inputs), str(_INPUTS[task])
    settings = _OF_ALL if kind.startswith(("tt-si", "tt-d")) else _OF_ANSWERS
    if kind.startswith("tt-d") and _TEACHER not in (teacher := str(setting(config, "teacher.model"))):
        differs["teacher.model"] = teacher, _TEACHER
    if kind in ("sft", "upper bound"):
        differs |= _training_apart(config, n_inputs, n_seen, kind)
        settings = (*_OF_ANSWERS, *_OF_ADAPTERS)
    elif n_seen:
        differs["labels seen"] = str(n_seen), "0"
    return differs | _settings_apart(config, settings)


def _model(config: Mapping[str, Any]) -> str:
    """The model's name, without whose it is."""
    return str(config.get("model")).rpartition("/")[2].lower()


def is_upper_bound(n_inputs: int, n_seen: int) -> bool:
    """Whether a run's model was trained on the labels of its inputs, and not only of some that leaked."""
    return 2 * n_seen > n_inputs


def _kind(config: Mapping[str, Any], n_inputs: int, n_seen: int) -> str:
    """The method with what the paper varies of it; one that it does not have is no key of its figures."""
    greedy = _greedy_kind(config, n_inputs, n_seen)
    return f"{greedy}, vote" if setting(config, "answer.vote") else greedy


def _greedy_kind(config: Mapping[str, Any], n_inputs: int, n_seen: int) -> str:
    method, select, tau = config.get("method"), setting(config, "gate.select"), setting(config, "gate.tau")
    if setting(config, "adapt.start") is not None:
        trained = "upper bound" if is_upper_bound(n_inputs, n_seen) else "sft"
        return trained if method == "base" else f"{method} after {trained}"
    if method not in ("tt-si", "tt-d"):
        return str(method)
    if select == "all":  # whatever tau
        return f"{method}, all"
    if tau != _PRESET.gate.tau:
        return f"{method}, {select} below {tau}"
    return method if select == _PRESET.gate.select else f"{method}, {select}"


def _training_apart(config: Mapping[str, Any], n_inputs: int, n_seen: int, kind: str) -> dict[str, tuple[str, str]]:
    """What SFT saw before the run; the paper's number of examples is known in thousands."""
    found, n = {}, config.get("trained_on")
    if kind == "sft" and not (isinstance(n, int) and round(n, -3) == SFT_SAMPLES):
        found["trained on"] = "unknown" if n is None else str(n), "13k"
    n_theirs = n_inputs if kind == "upper bound" else 0
    if n_seen != n_theirs:
        found["labels seen"] = str(n_seen), str(n_theirs)
    return found


def _settings_apart(config: Mapping[str, Any], names: tuple[str, ...]) -> dict[str, tuple[str, str]]:
    """The settings under these names that are not those of the preset `paper`."""
    paper = _PRESET.to_dict()
    source = {"synthesis.source": '"teacher"'} if config.get("method") == "tt-d" else {}
    apart = config_differences(paper, {name: config[name] for name in paper if name in config})
    found = {}
    for name, (default, ours) in apart.items():
        theirs = (_COMES_TO | source).get(name, default)
        if ours not in (theirs, ABSENT) and _within(name, names) and not _within(name, _NEVER):
            found[name] = ours, theirs
    return found


def _within(name: str, steps: tuple[str, ...]) -> bool:
    """Whether a dotted name is one of these, or lies under one."""
    return any(f"{name}.".startswith(f"{step}.") for step in steps)
