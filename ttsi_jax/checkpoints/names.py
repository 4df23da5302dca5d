"""Names of tensors in files, and where each goes in the params pytree: one strict table per format.

The tables are complete: what they do not name is refused, and all they name must be there.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from ttsi_jax.errors import ModelFileError
from ttsi_jax.model.config import DecoderConfig

ParamPath = tuple[str | int, ...]  # ("layers", 0, "q", "kernel")
Shape = tuple[int, ...]
LISTED_PROBLEMS = 20
ROPE_DIVISORS = "rope_freqs.weight"  # GGUF's tensor with Llama 3's slowed-down frequencies; part of the config here


class Slot(NamedTuple):
    """Where one tensor of a file goes, and what happens to it on the way.

    Attributes:
        path: its place in the params pytree.
        transposed: the file holds [out, in], the params [in, out].
        offset: added to every value (Hugging Face stores Gemma's norm factors less 1).
        interleaved_heads: heads whose rows the file has in the order x0 y0 x1 y1 .. instead of x0 x1 .. y0 y1 .., the
            two halves that rotary embedding pairs (GGUF files of the Llama architecture); 0 for rows in plain order.
    """

    path: ParamPath
    transposed: bool = False
    offset: float = 0.0
    interleaved_heads: int = 0

    def file_shape(self, shape: Shape) -> Shape:
        """The shape in the file of a parameter of the given shape."""
        return shape[::-1] if self.transposed else shape

    def row_order(self, n_rows: int) -> np.ndarray:
        """For each row of the file, the row (or kernel column) of the parameter it belongs to."""
        rows = np.arange(n_rows)
        if not self.interleaved_heads:
            return rows
        return rows.reshape(self.interleaved_heads, 2, -1).swapaxes(1, 2).ravel()


class _Format(NamedTuple):
    embed: str
    final_norm: str
    head: str
    layer: str
    projections: dict[str, str]
    norms: dict[str, str]


HF_PROJECTIONS = {
    "q": "self_attn.q_proj",
    "k": "self_attn.k_proj",
    "v": "self_attn.v_proj",
    "o": "self_attn.o_proj",
    "gate": "mlp.gate_proj",
    "up": "mlp.up_proj",
    "down": "mlp.down_proj",
}
HF_LAYER = "model.layers.{}."

_HF = _Format(
    embed="model.embed_tokens",
    final_norm="model.norm",
    head="lm_head",
    layer=HF_LAYER,
    projections=HF_PROJECTIONS,
    norms={
        "attention_norm": "input_layernorm",
        "q_norm": "self_attn.q_norm",
        "k_norm": "self_attn.k_norm",
        "mlp_norm": "post_attention_layernorm",
    },
)
_HF_SANDWICH = _HF._replace(
    norms=_HF.norms
    | {
        "post_attention_norm": "post_attention_layernorm",
        "mlp_norm": "pre_feedforward_layernorm",
        "post_mlp_norm": "post_feedforward_layernorm",
    }
)
_GGUF = _Format(
    embed="token_embd",
    final_norm="output_norm",
    head="output",
    layer="blk.{}.",
    projections={
        "q": "attn_q",
        "k": "attn_k",
        "v": "attn_v",
        "o": "attn_output",
        "gate": "ffn_gate",
        "up": "ffn_up",
        "down": "ffn_down",
    },
    norms={
        "attention_norm": "attn_norm",
        "q_norm": "attn_q_norm",
        "k_norm": "attn_k_norm",
        "post_attention_norm": "post_attention_norm",
        "mlp_norm": "ffn_norm",
        "post_mlp_norm": "post_ffw_norm",
    },
)


def hf_slots(config: DecoderConfig) -> dict[str, Slot]:
    """Hugging Face's tensor name -> slot, for every parameter of this model."""
    return _slots(
        config,
        _HF_SANDWICH if config.sandwich_norms else _HF,
        norm_offset=1.0 if config.family == "gemma3" else 0.0,
        interleaved=False,
    )


def gguf_slots(config: DecoderConfig) -> dict[str, Slot]:
    """GGUF's tensor name -> slot, for every parameter of this model."""
    return _slots(config, _GGUF, norm_offset=0.0, interleaved=config.family == "llama")


def _slots(config: DecoderConfig, names: _Format, *, norm_offset: float, interleaved: bool) -> dict[str, Slot]:
    norms = ["attention_norm", "mlp_norm"]
    if config.qk_norm:
        norms += ["q_norm", "k_norm"]
    if config.sandwich_norms:
        norms += ["post_attention_norm", "post_mlp_norm"]
    heads = {"q": config.n_heads, "k": config.n_kv_heads} if interleaved else {}

    slots = {
        f"{names.embed}.weight": Slot(("embed",)),
        f"{names.final_norm}.weight": Slot(("final_norm", "scale"), offset=norm_offset),
    }
    if not config.tied_head:
        slots[f"{names.head}.weight"] = Slot(("head", "kernel"), transposed=True)
    for layer in range(config.n_layers):
        prefix = names.layer.format(layer)
        for norm in norms:
            slots[f"{prefix}{names.norms[norm]}.weight"] = Slot(("layers", layer, norm, "scale"), offset=norm_offset)
        for name, stored in names.projections.items():
            kernel = Slot(("layers", layer, name, "kernel"), transposed=True, interleaved_heads=heads.get(name, 0))
            slots[f"{prefix}{stored}.weight"] = kernel
            if config.qkv_bias and name in ("q", "k", "v"):
                slots[f"{prefix}{stored}.bias"] = Slot(("layers", layer, name, "bias"))
    return slots


def hf_plain_name(name: str, config: DecoderConfig) -> str | None:
    """The name a tensor would have in a text-only checkpoint; None for one that the decoder has no use for."""
    if config.family == "gemma3":
        name = name.removeprefix("language_model.").replace("model.language_model.", "model.", 1)
        if name.removeprefix("model.").startswith(("vision_tower.", "multi_modal_projector.")):
            return None
    tied_copy = config.tied_head and name == "lm_head.weight"
    return None if tied_copy or name.endswith("rotary_emb.inv_freq") else name


def gguf_plain_name(name: str) -> str | None:
    """`name`, or None for a tensor that is no parameter."""
    return None if name == ROPE_DIVISORS else name


def find_problems(
    slots: Mapping[str, Slot], found: Mapping[str, Shape], targets: Mapping[ParamPath, jax.ShapeDtypeStruct]
) -> list[str]:
    """What keeps the tensors of a file from filling the parameters: unknown, missing and wrongly shaped ones.

    Args:
        slots: the names that must be there.
        found: the names that are there -> shape in the file.
        targets: parameter path -> shape and dtype.
    """
    problems = [f"unknown tensor {name}" for name in found if name not in slots]
    for name, slot in slots.items():
        expected = slot.file_shape(targets[slot.path].shape)
        if name not in found:
            problems.append(f"missing tensor {name} {list(expected)}")
        elif tuple(found[name]) != expected:
            problems.append(f"tensor {name} has shape {list(found[name])}, expected {list(expected)}")
    return problems


def refuse_if_any(problems: list[str], where: Any, advice: str) -> None:
    """Raises one `ModelFileError` that lists the first problems and counts the rest."""
    if not problems:
        return
    listed = [f"  - {problem}" for problem in problems[:LISTED_PROBLEMS]]
    if len(problems) > LISTED_PROBLEMS:
        listed.append(f"  - and {len(problems) - LISTED_PROBLEMS} more")
    raise ModelFileError("\n".join([f"{where} cannot be loaded ({advice}):", *listed]))
