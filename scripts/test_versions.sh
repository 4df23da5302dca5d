#!/usr/bin/env bash
# The tests on an old and on a new Python: 3.11 with the locked versions (jax 0.10.2), then 3.12 or newer with the newest
# jax and flax. Other arguments go to pytest.
#   --fast      on the new one alone, the part that compiles little; CI does that after scripts/test.sh
#   --optional  an interpreter that is not there is told and skipped; without it, that ends with 2
# OLD_PYTHON and NEW_PYTHON name the interpreters, where they are not on the path or under pyenv.
set -euo pipefail
source "$(dirname "$0")/environment.sh"
FAST=(tests/tasks tests/runs tests/checkpoints tests/batching/test_waves.py tests/test_uncertainty.py
    tests/synthesis tests/test_run_config.py tests/reliability/test_bad_inputs.py
    tests/test_cli.py::test_a_run_that_is_done)

interpreter() { # the first of these versions that can be started
    local version candidate
    for version in "$@"; do
        for candidate in "python$version" "${PYENV_ROOT:-$HOME/.pyenv}/versions/$version".*/bin/python; do
            if "$candidate" -c "import sys; sys.exit('%d.%d' % sys.version_info[:2] != '$version')" 2>/dev/null; then
                echo "$candidate"
                return
            fi
        done
    done
}

tests_on() { # environment, interpreter, pytest's arguments
    local name="$1"
    PYTHON="$2" environment "$name" -e ".[dev]"
    shift 2
    "$python" -c 'import sys, jax, flax; print("Python", sys.version.split()[0], "jax", jax.__version__, "flax", flax.__version__)'
    "$python" -m pytest -m "not torch" --numprocesses 2 --dist loadfile "$@"
}

missing() { # what, the variable that names it
    echo "no $1 here, on the path or under pyenv: name one in $2" >&2
    [ -n "$optional" ] || exit 2
    echo "skipped: the tests on $1"
}

fast="" optional=""
while [[ "${1:-}" == --fast || "${1:-}" == --optional ]]; do
    [ "$1" = --fast ] && fast=yes || optional=yes
    shift
done
old="${OLD_PYTHON:-$(interpreter 3.11)}"
new="${NEW_PYTHON:-$(interpreter 3.13 3.12)}"
if [ -z "$fast" ]; then
    if [ -n "$old" ]; then tests_on test "$old" "$@"; else missing "Python 3.11" OLD_PYTHON; fi
fi
if [ -z "$new" ]; then
    missing "Python 3.12 or 3.13" NEW_PYTHON
elif [ -n "$fast" ]; then
    tests_on new "$new" "${FAST[@]}" "$@"
else
    tests_on new "$new" "$@"
fi
