"""What a comparison of sides found: whether they agree, their seconds per input, and the ratios between them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarking import Line, Options, Seconds, console, figure, show, write_json
from ttsi_jax.errors import InputError
from ttsi_jax.runs.directory import read_object
from workload import Found

_BEFORE = ("score", "synthesize")
STAGES = {  # names of the ratios: our stages; ours train and read the prompt with what was learned in one program
    "end_to_end_all": (*_BEFORE, "train all", "decode all"),
    "end_to_end_suffix": (*_BEFORE, "train suffix", "decode suffix"),
    "score": ("score",),
    "synthesize": ("synthesize",),
    "train": ("train all",),
    "train_suffix": ("train suffix",),
    "decode": ("decode all",),
    "decode_suffix": ("decode suffix",),
}
TORCH_STAGES = {"train suffix": ("train all", "read all"), "decode suffix": ("decode all",)}  # all tokens adapt
TORCH_STAGES["train all"] = TORCH_STAGES["train suffix"]
GOALS = {"end_to_end_all": 1.5, "end_to_end_suffix": 6.0, "shared_prefix": 20.0, "shared_prefix_cached": 2.0}

Runs = dict[str, list[dict[str, float]]]  # side -> of each measurement, seconds per input by stage


def compare(found: Mapping[str, Found]) -> dict[str, Any]:
    """Largest differences between ours and each PyTorch side, and the share of greedy tokens before they part."""
    if "jax" not in found:
        return {}
    ours = found["jax"]

    def distance(a: Sequence[float], b: Sequence[float]) -> float:
        return float(np.abs(np.subtract(a, b)).max())

    return {
        name: {
            "scores": distance(ours.scores, theirs.scores),
            "losses": distance(ours.losses, theirs.losses),
            "adapted_scores": distance(ours.adapted_scores, theirs.adapted_scores),
            "synthesis": _same(ours.synthesis, theirs.synthesis),
            "answer": _same(ours.answer, theirs.answer),
        }
        for name, theirs in found.items()
        if name != "jax"
    }


def _same(a: Sequence[int], b: Sequence[int]) -> float:
    """The share of tokens up to the first that differs."""
    n_same = next((index for index, (x, y) in enumerate(zip(a, b, strict=True)) if x != y), len(a))
    return n_same / len(a)


def refuse_unequal(agreement: Mapping[str, Any], dtype: str) -> None:
    """Shows how well the sides agree.

    Raises:
        InputError: in float32 they differ by more than rounding: then their speed is not to be compared.
    """
    for name, own in agreement.items():
        console.print(
            f"{name} against ours: log-likelihoods differ by {own['scores']:.1e} nats ({own['adapted_scores']:.1e} "
            f"adapted), losses by {own['losses']:.1e}; equal greedy tokens: {own['synthesis']:.0%} of the synthesis, "
            f"{own['answer']:.0%} of the answer"
        )
        differ = max(own["scores"], own["losses"], own["adapted_scores"]) > 1e-2
        if dtype == "float32" and (differ or min(own["synthesis"], own["answer"]) < 1):
            raise InputError("the two sides do not compute the same, so their speed is not to be compared")


# Results


def per_input(runs: Sequence[Mapping[str, float]], stages: Sequence[str]) -> Seconds | None:
    """Seconds of several stages together, over those measurements that have all of them."""
    sums = [sum(run[stage] for stage in stages) for run in runs if all(stage in run for stage in stages)]
    return Seconds.of(sums) if sums else None


def summarise(runs: Runs) -> tuple[dict[str, dict[str, Seconds]], dict[str, float]]:
    """Seconds per input by side and ratio name, and PyTorch's seconds divided by ours.

    The ratios are to the fastest PyTorch side; those to each of the others have its name in front.
    """
    names = {
        name: (stages, tuple(theirs for own in stages for theirs in TORCH_STAGES.get(own, (own,))))
        for name, stages in STAGES.items()
    }
    names["shared_prefix"] = ("shared prefix",), ("shared prefix",)
    names["shared_prefix_cached"] = ("shared prefix",), ("shared prefix cached",)
    seconds: dict[str, dict[str, Seconds]] = {}
    for side, own in runs.items():
        for name, (ours, theirs) in names.items():
            if found := per_input(own, ours if side == "jax" else theirs):
                seconds.setdefault(side, {})[name] = found
    trainer, plain = (per_input(runs.get(side, []), ["train all"]) for side in ("hf trainer", "pytorch"))
    if trainer and plain:  # the rest of the loop is the same
        for name in ("train", "end_to_end_all", "end_to_end_suffix"):
            whole = seconds["pytorch"][name].median - plain.median + trainer.median
            seconds.setdefault("hf trainer", {})[name] = Seconds(whole, whole, whole, trainer.n)
    ratios: dict[str, float] = {}
    for name, ours in seconds.get("jax", {}).items():
        others = {side: own[name].median for side, own in seconds.items() if side != "jax" and name in own}
        strongest = min(others.values(), default=None)
        if strongest is not None:
            ratios[name] = strongest / ours.median
        ratios |= {f"{side}: {name}": value / ours.median for side, value in others.items() if value != strongest}
    return seconds, ratios


def report(results: Mapping[str, Any], options: Options) -> None:
    seconds, ratios, limits = results["seconds"], results["ratios"], results.get("bounds", {})
    sides = list(seconds)
    lines = []
    for name in dict.fromkeys(name for side in sides for name in seconds[side]):
        figures = [str(seconds[side][name]) if name in seconds[side] else "–" for side in sides]
        ratio = f"{ratios[name]:.2f} ×" if name in ratios else "–"
        goal = f"≥ {GOALS[name]:g} ×" if name in GOALS else ""
        lines.append(Line(name, (*figures, ratio, goal), f"{limits[name]:.3f}" if name in limits else ""))
    show("seconds per input, median (lowest–highest)", ("stage", *sides, "ratio", "goal"), lines)
    console.print("bound: our side's useful work at the machine's rates; `suffix` is less work than PyTorch does")
    if options.json:
        write_json(options.json, results)
    if options.plot:
        draw(options.plot, seconds)


def draw(path: Path, seconds: Mapping[str, Mapping[str, Seconds]]) -> None:
    """Where an input's time goes, a bar per side and scope."""
    stages = ("score", "synthesize", "train", "decode")
    with figure(path, figsize=(8, 3.5)) as axes:
        bars = [(side, "") for side in seconds if "decode" in seconds[side]]
        bars += [("jax", "_suffix")] if ("jax", "") in bars else []
        for row, (side, scope) in enumerate(bars):
            left = 0.0
            for index, stage in enumerate(stages):
                own = seconds[side].get(stage + scope, seconds[side].get(stage))
                width = own.median if own else 0.0
                axes.barh(row, width, left=left, color=f"C{index}", label=stage if row == 0 else None)
                left += width
        axes.set_yticks(range(len(bars)), [side + (" (suffix)" if scope else "") for side, scope in bars])
        axes.set_xlabel("seconds per uncertain input")
        axes.legend()


def merge(paths: Sequence[Path]) -> dict[str, Any]:
    """The results of two files, of one side each, as one."""
    both = [read_object(path) for path in paths]
    for path, one in zip(paths, both, strict=True):
        if lacking := [name for name in ("work", "runs", "found", "environment") if name not in one]:
            raise InputError(f"{path}: has no {' and no '.join(lacking)}, as --side with --json writes it")
    works = [one["work"] for one in both]
    if works[0] != works[1]:
        raise InputError(f"{paths[0]} and {paths[1]} measured different work: {works[0]} and {works[1]}")
    runs: Runs = {}
    found: dict[str, Found] = {}
    for one in both:
        runs |= one["runs"]
        found |= {side: Found(**own) for side, own in one["found"].items()}
    seconds, ratios = summarise(runs)
    return {
        "ratios": ratios, "seconds": seconds, "agreement": compare(found), "work": works[0], "runs": runs,
        "bounds": next((one["bounds"] for one in both if "jax" in one["runs"]), {}),
        "environment": {str(path): one["environment"] for path, one in zip(paths, both, strict=True)},
    }  # fmt: skip
