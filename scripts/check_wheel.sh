#!/usr/bin/env bash
# Build the wheel, install it in a new environment outside of the tree, without extras and so without PyTorch, and use it
# there: every command that needs no more, Python, and the messages of those that do.
# Usage: scripts/check_wheel.sh FOLDER_OF_IMAGES [WHEEL]
set -euo pipefail
cd "$(dirname "$0")/.."
images=$(realpath "$1")
constraints=$(realpath constraints.txt)
wheel=${2:+$(realpath "$2")}
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
unset PYTHONPATH

"${PYTHON:-python3}" -m venv "$place/venv"
pip=("$place/venv/bin/pip" --quiet --disable-pip-version-check)
if [ -n "$wheel" ]; then
    cp "$wheel" "$place"
else
    "${pip[@]}" wheel --no-deps --wheel-dir "$place" .
fi
cd "$place"
"${pip[@]}" install --no-compile -c "$constraints" grr_coca-*.whl
if venv/bin/python -c "import torch" 2> /dev/null; then
    echo "the wheel brings PyTorch, which inference does without" >&2
    exit 1
fi
megabytes() { echo $(($(du -sk "$1" | cut -f 1) / 1024)); }
echo "installed: $(megabytes venv) MB with pip; the wheel: $(megabytes grr_coca-*.whl) MB"
[ "$(megabytes venv)" -le 260 ]
[ "$(megabytes grr_coca-*.whl)" -le 13 ]

grr-coca() { "$place/venv/bin/grr-coca" "$@"; }
first=$(find "$images" -name "*.webp" | sort | head -n 1)
grr-coca --help
grr-coca caption --help > caption-help.txt
grep -q "usage: grr-coca caption" caption-help.txt
grr-coca caption "$images"
grr-coca embed "$images" --out vectors.npy
grr-coca classify "$images" --labels guitar,airplane
grr-coca index "$images" --out index
grr-coca search index "a guitar"
grr-coca search index --image "$first"
grr-coca duplicates index
grr-coca models
venv/bin/python -c 'import sys, grr_coca; print(grr_coca.load("icons").caption(sys.argv[1]))' "$first"

# One line that names the missing packages, and exit code 2.
refused() {
    package=$1
    shift
    code=0
    grr-coca "$@" 2> message.txt || code=$?
    cat message.txt
    [ "$code" -eq 2 ]
    [ "$(wc -l < message.txt)" -eq 1 ]
    grep -q "pip install .*\b$package\b" message.txt
}
refused torch explain "$first"
refused torch evaluate icons --data "$images"
refused torch caption "$first" --engine torch
refused uvicorn serve index
