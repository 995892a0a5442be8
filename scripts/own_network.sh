#!/usr/bin/env bash
# Run a command in a network of its own, which has a loopback and nothing else: for servers that listen on all interfaces.
# Usage: scripts/own_network.sh [NAME=VALUE…] COMMAND…; without arguments it only tries whether that can be had.
set -euo pipefail
own=--net
if ! unshare --net ip link set lo up 2>/dev/null; then
    own="--net --map-root-user"
    # shellcheck disable=SC2086
    if ! unshare $own ip link set lo up; then
        echo "no network of its own can be made: that takes root, or user namespaces, and the programs unshare and ip" >&2
        exit 1
    fi
fi
[ $# -gt 0 ] || exit 0
# shellcheck disable=SC2086
exec unshare $own bash -c 'ip link set lo up && exec env "$@"' own_network "$@"
