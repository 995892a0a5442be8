#!/usr/bin/env bash
# Build the sdist and the wheel of the last commit into dist/, and check them. They are built twice, in folders of other names
# and with other permissions, and must be equal byte for byte.
# Usage: scripts/build_dist.sh FOLDER_OF_PROGRAMS
set -euo pipefail
cd "$(dirname "$0")/.."
programs=$(realpath "$1")
max_bytes=14000000
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT

build() {
    umask "$1"
    mkdir -p "$place/$2"
    git archive HEAD | tar --extract --no-same-permissions --directory "$place/$2"
    (cd "$place/$2" && "$programs/python" -m build --no-isolation --outdir "$place/built-$2" . > "$place/log" 2>&1) ||
        { cat "$place/log" >&2; exit 1; }
}
(build 022 here)
(build 077 elsewhere)
for file in "$place"/built-here/*; do
    cmp "$file" "$place/built-elsewhere/$(basename "$file")"
done

"$programs/twine" check --strict "$place"/built-here/*
"$programs/check-wheel-contents" "$place"/built-here/*.whl
bytes=$(stat --format %s "$place"/built-here/*.whl)
if [ "$bytes" -gt "$max_bytes" ]; then
    echo "the wheel has $bytes bytes, more than $max_bytes" >&2
    exit 1
fi
rm -rf dist
mkdir dist
cp "$place"/built-here/* dist/
chmod 644 dist/*
(cd dist && sha256sum -- *)
