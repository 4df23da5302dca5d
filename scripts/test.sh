#!/usr/bin/env bash
# All tests that need no PyTorch, then formatter, linter and type checker. Arguments go to pytest.
set -euo pipefail
source "$(dirname "$0")/environment.sh"
environment test -e ".[dev]"
"$python" -m pytest -m "not torch" "$@"
"$python" -m ruff format --check .
"$python" -m ruff check .
"$python" -m pyright --pythonpath "$python"
