"""What the paper (arXiv 2510.07841) reports, to stand beside a run of the same task and method."""

from collections.abc import Mapping
from typing import Any, NamedTuple

SFT_SAMPLES, TT_SI_SAMPLES = 13_000, 190  # on SealTool: 68 times fewer
MODEL = "Qwen2.5-1.5B-Instruct"


class Published(NamedTuple):
    """A figure of the paper: accuracy in percent (of what is unknown), and its gain over the base in points."""

    method: str
    accuracy: str
    gain: float | None


class Beside(NamedTuple):
    """The paper's figure for a run's task and method, and the settings in which the run is not the paper's."""

    published: Published
    differs: tuple[str, ...]


_FIGURES: Mapping[tuple[str, str], Published] = {
    ("sealtools", "base"): Published("direct", "66.4 to 66.7", None),
    ("sealtools", "tt-si"): Published("TT-SI", "72.43", 5.76),
    ("sealtools", "tt-si, all"): Published("adapt all", "73.47", None),
    ("sealtools", "tt-si, certain"): Published("certain only", "70.07", None),
    ("sealtools", "tt-si, tau 0.35"): Published("TT-SI, τ 0.35", "68.10", None),
    ("sealtools", "sft"): Published("SFT on 13k", "70.20", None),
    ("toolalpaca", "tt-si"): Published("TT-SI", "–", 5.84),
    ("nexusraven", "tt-si"): Published("TT-SI", "–", 6.05),
    ("apibank", "tt-si"): Published("TT-SI", "–", 4.26),
}
_INPUTS = {"sealtools": 294, "toolalpaca": 114, "nexusraven": 318}
_SETTINGS: Mapping[str, Any] = {  # of every adapted figure; a rate of None is the rule's own, which is AdamW's 1e-4
    "synthesis.k": (1,),
    "adapt.rule": ("adamw",),
    "adapt.loss": ("answer_cross_entropy",),
    "adapt.epochs": (5,),
    "adapt.lr": (None, 1e-4),
    "adapt.rank": (8,),
    "adapt.alpha": (16.0,),
    "adapt.scope": ("all",),
    "adapt.reset": ("example",),
    "adapt.start": (None,),
}


def beside(config: Mapping[str, Any], n_inputs: int) -> Beside | None:
    """The paper's figure for a run's task and method; None where it has none, or nobody here has read it."""
    task = str(config.get("task"))
    published = _FIGURES.get((task, _method(config)))
    if published is None:
        return None
    differs = []
    if str(config.get("model")).rpartition("/")[2].lower() != MODEL.lower():
        differs.append(f"model {config.get('model')}, there {MODEL}")
    if n_inputs != _INPUTS.get(task, n_inputs):
        differs.append(f"{n_inputs} inputs, there {_INPUTS[task]}")
    if str(config.get("method")).startswith("tt-"):
        for name, theirs in _SETTINGS.items():
            ours = _setting(config, name)
            if ours not in theirs:
                differs.append(f"{name} {ours}, there {theirs[-1]}")
    return Beside(published, tuple(differs))


def _method(config: Mapping[str, Any]) -> str:
    """The method with what the paper varies of its gate; one that the paper does not have is no key of `_FIGURES`."""
    method, select, tau = config.get("method"), _setting(config, "gate.select"), _setting(config, "gate.tau")
    if method != "tt-si":
        return str(method)
    if select in ("all", "certain"):
        return f"tt-si, {select}" if select == "all" or tau == 0.95 else "another"
    return "tt-si" if tau == 0.95 else f"tt-si, tau {tau}"


def _setting(config: Mapping[str, Any], name: str) -> Any:
    step, _, key = name.partition(".")
    settings = config.get(step)
    return settings.get(key) if isinstance(settings, dict) else None
