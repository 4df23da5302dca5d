"""Files to params: hub names, safetensors, GGUF; adapters to and from PEFT's format."""

import os

# Only transformers' tokenizers are used here, so that PyTorch is missing is no news.
os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")

from ttsi_jax.checkpoints.hub import ModelDescription, describe_models  # noqa: E402
from ttsi_jax.checkpoints.load import LanguageModel, load_model  # noqa: E402
from ttsi_jax.checkpoints.peft import load_peft, save_peft  # noqa: E402

__all__ = ["LanguageModel", "ModelDescription", "describe_models", "load_model", "load_peft", "save_peft"]
