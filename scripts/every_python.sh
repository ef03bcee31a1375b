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
    python=$(command -v "python3.$minor" || ls "${PYENV_ROOT:-$HOME/.pyenv}"/versions/3."$minor".*/bin/python3 2>/dev/null | tail -1 || true)
    [ -n "$python" ] || continue
    echo "== $("$python" --version)"
    "$python" -m venv "$folder/$minor"
    "$folder/$minor/bin/python" -m pip install --disable-pip-version-check --quiet -e ".[test]"
    "$folder/$minor/bin/python" -m pytest -q -p no:cacheprovider "$@" || status=$?
    rm -rf "${folder:?}/$minor"
done
exit $status
