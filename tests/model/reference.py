"""The same arithmetic in PyTorch: transformers' models and PEFT's adapters."""

from __future__ import annotations

import warnings
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from checkpoints.tiny_models import write_tokenizer
from model.tiny import VARIANTS
from ttsi_jax.model.lora import Adapter, LoraConfig

PROJECTIONS = {"q": "self_attn.q_proj", "k": "self_attn.k_proj", "v": "self_attn.v_proj", "o": "self_attn.o_proj"}
PROJECTIONS |= {name: f"mlp.{name}_proj" for name in ("gate", "up", "down")}


def pytorch_model(variant: str, directory: Path) -> Any:
    """A random model, saved to `directory` by transformers itself, with a tokenizer that has a chat template."""
    torch = pytest.importorskip("torch")
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    settings = AutoConfig.for_model(**VARIANTS[variant])
    model = AutoModelForCausalLM.from_config(settings, attn_implementation="eager", dtype=torch.float32).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith("norm.weight"):
                weight += 0.5 * torch.rand_like(weight)
            else:
                weight.normal_(0, 0.25)
    model.save_pretrained(directory)
    write_tokenizer(directory)
    return model


def with_peft(model: Any, adapter: Adapter, lora: LoraConfig) -> Any:
    """A copy of the model with PEFT's layers, holding the adapter's values."""
    torch, peft = pytest.importorskip("torch"), pytest.importorskip("peft")

    settings = peft.LoraConfig(
        r=lora.rank, lora_alpha=lora.alpha, target_modules="all-linear", lora_dropout=0.0, task_type="CAUSAL_LM"
    )
    with warnings.catch_warnings():  # PEFT reads a property that transformers 5.23 renamed
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
        adapted = peft.get_peft_model(deepcopy(model), settings)
    with torch.no_grad():
        for layer, name, module in peft_modules(adapted):
            module.lora_A["default"].weight.copy_(torch.tensor(np.asarray(adapter[layer][name].a).T))
            module.lora_B["default"].weight.copy_(torch.tensor(np.asarray(adapter[layer][name].b).T))
    trained = sum(weight.requires_grad for weight in adapted.parameters())
    assert trained == 2 * sum(len(own) for own in adapter.values())
    return adapted


def peft_modules(adapted: Any) -> list[tuple[int, str, Any]]:
    """(layer, our name of the projection, PEFT's module)."""
    layers = adapted.base_model.model.model.layers
    return [
        (index, name, layer.get_submodule(path))
        for index, layer in enumerate(layers)
        for name, path in PROJECTIONS.items()
    ]
