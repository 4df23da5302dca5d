#!/usr/bin/env bash
# Test-time self-improvement on a real model and real inputs, from nothing: about five minutes and 6 GiB on two cores.
#
# SmolLM2-135M-Instruct is too small to write JSON, so answers have the form `keys` (argument names are written for it,
# on both sides of the comparison), and adapters act after the tool list only (scope `suffix`). Starting it again
# resumes or shows the same run. Arguments are passed on: bash scripts/demo.sh --limit 8 --out runs/short
set -euo pipefail
source "$(dirname "$0")/environment.sh"
environment demo -e .
exec "$python" -m ttsi_jax.cli run --model smollm2-135m-instruct --task bfcl:multiple --limit 24 \
    --answer.form keys --adapt.scope suffix --wave 8 --out runs/demo "$@"
