#!/usr/bin/env bash
# Build the wheel, install it in a new environment outside of the tree, without extras, and use it there: help, and a
# caption of an image by the model that comes with the code.
# Usage: scripts/check_wheel.sh IMAGE
set -euo pipefail
cd "$(dirname "$0")/.."
image=$(realpath "$1")
constraints=$(realpath constraints.txt)
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
unset PYTHONPATH

"${PYTHON:-python3}" -m venv "$place/venv"
pip=("$place/venv/bin/pip" --quiet --disable-pip-version-check)
"${pip[@]}" wheel --no-deps --wheel-dir "$place" .
cd "$place"
"${pip[@]}" install -c "$constraints" grr_coca-*.whl
venv/bin/grr-coca --help
venv/bin/grr-coca caption --help > caption-help.txt
grep -q "usage: grr-coca caption" caption-help.txt
venv/bin/grr-coca caption "$image"
