#!/usr/bin/env bash
# Formatter, linter and type checker, then all tests that need no PyTorch, in two processes. Arguments go to pytest.
set -euo pipefail
source "$(dirname "$0")/environment.sh"
environment test -e ".[dev]"
"$python" -m ruff format --check .
"$python" -m ruff check .
"$python" -m pyright --pythonpath "$python"
"$python" -m pytest -m "not torch" --numprocesses 2 --dist loadfile "$@"
