"""Files to params: hub names, safetensors, GGUF; adapters to and from PEFT's format."""

from ttsi_jax.checkpoints.hub import ModelDescription, describe_models
from ttsi_jax.checkpoints.load import LanguageModel, load_model
from ttsi_jax.checkpoints.peft import load_peft, save_peft

__all__ = ["LanguageModel", "ModelDescription", "describe_models", "load_model", "load_peft", "save_peft"]
