"""What the library never does: run what it reads, write elsewhere, keep a secret."""

import ast
import json
from pathlib import Path

import jinja2.sandbox
import pytest
import transformers.utils.chat_template_utils as templates

import ttsi_jax
from checkpoints.tiny_models import hf_settings, hf_tensors, write_hf
from tiny_runs import EXAMPLES, settings, task_of, tiny_model
from ttsi_jax.checkpoints import load_model
from ttsi_jax.errors import ModelFileError
from ttsi_jax.loop import run

SOURCES = sorted(Path(ttsi_jax.__file__).parent.rglob("*.py"))
FORBIDDEN_CALLS = {"eval", "exec", "compile", "__import__", "system", "popen"}
FORBIDDEN_MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "marshal", "shelve", "joblib", "torch", "yaml"}


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.stem)
def test_no_pickle_no_eval_no_remote_code(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            assert not {alias.name.partition(".")[0] for alias in node.names} & FORBIDDEN_MODULES
        elif isinstance(node, ast.ImportFrom):
            assert (node.module or "").partition(".")[0] not in FORBIDDEN_MODULES
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id not in FORBIDDEN_CALLS
        elif isinstance(node, ast.keyword):
            assert node.arg not in ("trust_remote_code", "shell", "allow_pickle", "weights_only")


def test_subprocesses_are_git_and_the_command_itself():
    users = {path.name: path.read_text(encoding="utf-8") for path in SOURCES}
    users = {name: text for name, text in users.items() if "subprocess" in text}
    assert users.keys() == {"environment.py", "watched.py"}
    assert "[sys.executable, " in users["watched.py"] and not any("shell=" in text for text in users.values())


def test_templates_are_rendered_in_the_immutable_sandbox(monkeypatch):
    made = []
    make = jinja2.sandbox.ImmutableSandboxedEnvironment.__init__

    def noted(self, *args, **kwargs):
        made.append(type(self))
        make(self, *args, **kwargs)

    monkeypatch.setattr(jinja2.sandbox.ImmutableSandboxedEnvironment, "__init__", noted)
    templates._compile_jinja_template.cache_clear()
    tiny_model().tokenizer.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False)
    assert made and all(issubclass(kind, jinja2.sandbox.ImmutableSandboxedEnvironment) for kind in made)


ESCAPES = (
    "{{ ''.__class__ }}",
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ messages.__class__.__init__.__globals__ }}",
    "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
    "{{ lipsum.__globals__['os'].environ }}",
    "{{ self.__init__.__globals__.__builtins__.open('/etc/passwd').read() }}",
    "{{ raise_exception.__globals__ }}",
    "{% include '/etc/passwd' %}",
    "{% import 'os' as os %}{{ os.environ }}",
    "{{ ('%s' | attr('__class__')) }}",
    "{{ '{0.__class__.__mro__}'.format(1) }}",
)


@pytest.mark.parametrize("escape", ESCAPES)
def test_templates_cannot_leave_the_sandbox(tmp_path, monkeypatch, escape):
    """What they ask for is refused, or comes out empty."""
    monkeypatch.setenv("SECRET", "s3cr3t")
    chosen = hf_settings("llama")
    path = write_hf(tmp_path / "model", chosen, hf_tensors(chosen))
    settings_file = path / "tokenizer_config.json"
    kept = json.loads(settings_file.read_text())
    settings_file.write_text(json.dumps(kept | {"chat_template": escape + kept["chat_template"]}))
    try:
        model = load_model(path)
    except ModelFileError as error:
        said = str(error)
    else:
        said = model.tokenizer.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False)
    assert not any(
        word in said for word in ("s3cr3t", "root:", "<class 'object'>", "<class 'str'>", "builtin_function")
    )


def test_code_that_a_model_names_is_not_looked_up(tmp_path):
    chosen = hf_settings("llama", auto_map={"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"})
    path = write_hf(tmp_path / "model", chosen, hf_tensors(chosen))
    (path / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    settings_file = path / "tokenizer_config.json"
    changes = {"auto_map": {"AutoTokenizer": ["evil.Tokenizer", "evil.Tokenizer"]}, "tokenizer_class": "Evil"}
    settings_file.write_text(json.dumps(json.loads(settings_file.read_text()) | changes))
    load_model(path)
    assert not (tmp_path / "ran").exists()


def test_keys_are_not_kept(tmp_path, monkeypatch):
    for name in ("HF_TOKEN", "OPENAI_API_KEY", "AWS_SECRET_ACCESS_KEY", "SOME_PASSWORD"):
        monkeypatch.setenv(name, "s3cr3t")
    run(tiny_model(), task_of(*EXAMPLES[:2]), settings(method="base"), out=tmp_path / "run")
    for path in (tmp_path / "run").iterdir():
        assert b"s3cr3t" not in path.read_bytes()
