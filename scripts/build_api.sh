#!/usr/bin/env bash
# The API reference, from the docstrings, as HTML in build/api. Needs the extra `docs`: pip install -e ".[docs]"
set -euo pipefail
cd "$(dirname "$0")/.."
exec python -m pdoc --docformat google --output-directory build/api ttsi_jax '!ttsi_jax.cli' "$@"
