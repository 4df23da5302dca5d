"""Adapters to and from the directory format of PEFT (adapter_config.json, adapter_model.safetensors)."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import save_file

from ttsi_jax.checkpoints.files import read_json
from ttsi_jax.checkpoints.names import HF_LAYER, HF_PROJECTIONS, refuse_if_any
from ttsi_jax.checkpoints.safetensors import SafetensorsFiles
from ttsi_jax.errors import InputError, ModelFileError
from ttsi_jax.model.config import DecoderConfig
from ttsi_jax.model.lora import TARGETS, Adapter, LoraConfig, LowRank, projection_shapes

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
CHANGES_ARITHMETIC = (  # settings under which PEFT computes something else than x @ W + (x @ a) @ b * alpha / rank
    "use_dora",
    "fan_in_fan_out",
    "rank_pattern",
    "alpha_pattern",
    "modules_to_save",
    "lora_bias",
    "trainable_token_indices",
    "target_parameters",
    "layer_replication",
    "alora_invocation_tokens",
    "use_bdlora",
    "use_qalora",
    "velora_config",
    "monteclora_config",
    "arrow_config",
    "kasa_config",
)
KEEPS_BASE = (None, True, False, "gaussian", "eva", "orthogonal")  # init_lora_weights; others change the base on load


def _weight(layer: int, name: str, factor: str) -> str:
    return f"base_model.model.{HF_LAYER.format(layer)}{HF_PROJECTIONS[name]}.lora_{factor}.weight"


def save_peft(
    path: str | Path, adapter: Adapter, config: DecoderConfig, *, rank: int, alpha: float, base: str | None = None
) -> None:
    """Writes one adapter as a directory that PEFT loads.

    Args:
        path: the directory, made if need be.
        adapter: factors a [in, rank] and b [rank, out] per layer and projection, without a leading axis.
        config: the decoder the adapter belongs to.
        rank: the factors' inner size.
        alpha: the update's strength, alpha / rank.
        base: the hub name or directory of the base model, for PEFT's own use.

    Raises:
        ModelFileError: when the adapter does not fit `config` and `rank`.
        OSError: when it cannot be written, as on a full disk.
    """
    tensors, problems = {}, []
    shapes = projection_shapes(config)
    for layer, projections in adapter.items():
        for name, factors in projections.items():
            n_in, n_out = shapes[name]
            expected = (n_in, rank), (rank, n_out)
            if (factors.a.shape, factors.b.shape) != expected or not 0 <= layer < config.n_layers:
                problems.append(f"layer {layer} {name} has factors {factors.a.shape} {factors.b.shape}, not {expected}")
            for letter, factor in (("A", factors.a), ("B", factors.b)):
                tensors[_weight(layer, name, letter)] = np.ascontiguousarray(np.asarray(factor, np.float32).T)
    refuse_if_any(problems, "adapter", f"rank {rank}, {config.n_layers} layers")

    targets = {name for projections in adapter.values() for name in projections}
    some_layers = {"layers_to_transform": sorted(adapter)} if len(adapter) < config.n_layers else {}
    settings = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": rank,
        "lora_alpha": alpha,
        "lora_dropout": 0.0,
        "bias": "none",
        "inference_mode": True,
        "target_modules": sorted(HF_PROJECTIONS[name].rpartition(".")[2] for name in targets),
        **some_layers,
    }
    directory = Path(path)
    directory.mkdir(parents=True, exist_ok=True)
    try:
        save_file(tensors, directory / WEIGHTS, metadata={"format": "pt"})
    except SafetensorError as error:
        raise OSError(None, str(error), str(directory / WEIGHTS)) from None
    (directory / CONFIG).write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def load_peft(path: str | Path, config: DecoderConfig) -> tuple[Adapter, int, float]:
    """Reads a LoRA adapter that PEFT or `save_peft` wrote.

    Args:
        path: the directory.
        config: the decoder it is for.

    Returns:
        The adapter in float32, its rank, and the alpha with which alpha / rank is the scale that PEFT uses: for an
        rsLoRA adapter that is not the one in its file.

    Raises:
        ModelFileError: when a file is missing or damaged, the tensors do not fit `config`, or it is not plain LoRA.
    """
    directory = Path(path)
    rank, alpha = _read_settings(directory / CONFIG)
    file = SafetensorsFiles([directory / WEIGHTS])
    shapes = projection_shapes(config)
    slots = {
        _weight(layer, name, letter): (layer, name, letter, shape)
        for layer in range(config.n_layers)
        for name, (n_in, n_out) in shapes.items()
        for letter, shape in (("A", (rank, n_in)), ("B", (n_out, rank)))
    }
    problems = list(file.problems)
    for name, shape in file.shapes.items():
        if name not in slots:
            problems.append(f"unknown tensor {name}")
        elif shape != slots[name][3]:
            problems.append(f"tensor {name} has shape {list(shape)}, expected {list(slots[name][3])}")
        elif name.replace("lora_A", "lora_B") not in file.shapes or name.replace("lora_B", "lora_A") not in file.shapes:
            problems.append(f"tensor {name} has no counterpart")
    refuse_if_any(problems, directory / WEIGHTS, f"rank {rank}, {config.family} with {config.n_layers} layers")

    def factor(layer: int, name: str, letter: str) -> jnp.ndarray:
        stored = _weight(layer, name, letter)
        values = np.concatenate([block.astype(np.float32) for block in file.blocks(stored)]).T
        if not np.isfinite(values).all():
            raise ModelFileError(f"{directory / WEIGHTS}: tensor {stored} has values that are not finite")
        return jnp.array(values)

    adapter: Adapter = {}
    for layer, name in sorted({slots[stored][:2] for stored in file.shapes}):
        adapter.setdefault(layer, {})[name] = LowRank(factor(layer, name, "A"), factor(layer, name, "B"))
    return adapter, rank, alpha


def load_start(path: str | Path, lora: LoraConfig, config: DecoderConfig) -> Adapter:
    """A PEFT adapter that a run starts from.

    Raises:
        ModelFileError: see `load_peft`.
        InputError: it has another shape or scale than the run's adapters; the message says which settings to give.
    """
    adapter, rank, alpha = load_peft(path, config)
    targets = tuple(name for name in TARGETS if any(name in own for own in adapter.values()))
    layers = () if len(adapter) == config.n_layers else tuple(sorted(adapter))
    if any(set(own) != set(targets) for own in adapter.values()):
        raise InputError(f"--adapt.start {path}: its layers have adapters on different projections")
    found = LoraConfig(rank, alpha, targets, layers)
    same = (rank, set(targets), sorted(adapter)) == (lora.rank, set(lora.targets), list(lora.chosen(config)))
    if not same or not math.isclose(found.scale, lora.scale, rel_tol=1e-6):
        some = f" --adapt.layers {' '.join(map(str, layers))}" if layers else ""
        raise InputError(
            f"--adapt.start {path}: the run's adapters must have its shape and scale: add "
            f"--adapt.rank {rank} --adapt.alpha {alpha:g} --adapt.targets {' '.join(targets)}{some}"
        )
    return adapter


def _read_settings(path: Path) -> tuple[int, float]:
    settings: Mapping[str, object] = read_json(path)
    if settings.get("peft_type") != "LORA":
        raise ModelFileError(f"{path}: peft_type is {settings.get('peft_type')!r}; only LORA is supported")
    for name in CHANGES_ARITHMETIC:
        if settings.get(name):
            raise ModelFileError(f"{path}: {name} = {settings[name]!r} is not supported")
    if (initialised := settings.get("init_lora_weights")) not in KEEPS_BASE:
        raise ModelFileError(f"{path}: init_lora_weights = {initialised!r} is not supported: it changes the base")
    if settings.get("bias", "none") != "none":
        raise ModelFileError(f"{path}: bias = {settings['bias']!r} is not supported")
    rank, alpha = settings.get("r"), settings.get("lora_alpha")
    if (
        bool in (type(rank), type(alpha))
        or not isinstance(rank, int)
        or not isinstance(alpha, int | float)
        or not (rank >= 1 and 0 < alpha < math.inf)
    ):
        raise ModelFileError(f"{path}: r = {rank!r} and lora_alpha = {alpha!r} are not a rank and a number above 0")
    return rank, alpha * rank**0.5 if settings.get("use_rslora") else float(alpha)
