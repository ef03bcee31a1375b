#!/usr/bin/env bash
# The tests on every Python from 3.10 up that is found here: bash scripts/every_python.sh [what pytest is given; by default tests/unit]
# Each gets a fresh virtual environment, in a temporary folder that is removed at the end.
set -euo pipefail
cd "$(dirname "$0")/.."
[ $# -gt 0 ] || set -- tests/unit
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
status=0
for minor in $(seq 10 20); do
    python=
    # pyenv puts a python3.10 on the path that may run nothing.
    for one in "python3.$minor" "${PYENV_ROOT:-$HOME/.pyenv}"/versions/3."$minor".*/bin/python3; do
        "$one" --version >/dev/null 2>&1 && python=$one
    done
    [ -n "$python" ] || continue
    echo "== $("$python" --version)"
    "$python" -m venv "$folder/$minor"
    "$folder/$minor/bin/python" -m pip install --disable-pip-version-check --quiet -e ".[test]"
    "$folder/$minor/bin/python" -m pytest -q -p no:cacheprovider "$@" || status=$?
    rm -rf "${folder:?}/$minor"
done
exit $status
