#!/usr/bin/env bash
# Install a wheel from its file by pip, by pipx and by uv, one after another, and caption images by each. Then check the types of
# the README's code against the installed package, by mypy and by pyright.
# Usage: scripts/try_installers.sh FOLDER_OF_PROGRAMS WHEEL FOLDER_OF_IMAGES
set -euo pipefail
programs=$(realpath "$1")
wheel=$(realpath "$2")
images=$(realpath "$3")
readme=$(realpath "$(dirname "$0")/../README.md")
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
cd "$place"
unset PYTHONPATH VIRTUAL_ENV
# Everything of pipx and uv goes into this folder.
export PIPX_HOME="$place/pipx" PIPX_BIN_DIR="$place/bin" UV_TOOL_DIR="$place/uv" UV_TOOL_BIN_DIR="$place/bin" UV_NO_CONFIG=1
python=$("$programs/python" -c 'import sys; print(sys.executable)')

try() {
    echo "installed by $1:"
    "$2" caption "$images"
}
"$programs/pipx" install --quiet --python "$python" "$wheel"
try pipx bin/grr-coca
rm -rf pipx bin

"$programs/uv" tool install --quiet --no-python-downloads --python "$python" "$wheel"
try uv bin/grr-coca
rm -rf uv bin

"$python" -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check "$wheel"
try pip venv/bin/grr-coca

sed -n '/^```python$/,/^```$/{/^```/!p}' "$readme" > readme.py
[ -s readme.py ]
"$programs/mypy" --strict --python-executable venv/bin/python readme.py
"$programs/pyright" --pythonpath venv/bin/python readme.py
