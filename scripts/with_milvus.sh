#!/usr/bin/env bash
# Run a command beside a Milvus server, in a network that nobody else sees: the server listens on all interfaces.
# Usage: scripts/with_milvus.sh PATH/TO/milvus-server COMMAND…
# The command finds the address of the server in GRR_COCA_TEST_MILVUS.
set -euo pipefail
if [ -z "${IN_OWN_NETWORK:-}" ]; then
    own=--net
    unshare --net true 2>/dev/null || own="--net --map-root-user"
    # shellcheck disable=SC2086
    IN_OWN_NETWORK=1 exec unshare $own "$0" "$@"
fi
server=$1
shift
ip link set lo up
place=$(mktemp -d)
setsid "$server" --data "$place" > "$place/log" 2>&1 &
group=$!
# Its child outlives it, so both are ended by their group.
trap 'kill -KILL -- "-$group" 2>/dev/null; rm -rf "$place"' EXIT
for _ in $(seq 120); do
    if (exec 3<> /dev/tcp/127.0.0.1/19530) 2>/dev/null; then break; fi
    sleep 0.5
done
export GRR_COCA_TEST_MILVUS=http://127.0.0.1:19530
"$@"
