#!/usr/bin/env bash
# Run a command beside a Milvus server, in a network that nobody else sees: the server listens on all interfaces.
# Usage: scripts/with_milvus.sh PATH/TO/milvus-server [NAME=VALUE…] COMMAND…
# The command finds the address of the server in GRR_COCA_TEST_MILVUS.
set -euo pipefail
if [ -z "${IN_OWN_NETWORK:-}" ]; then
    exec "$(dirname "$0")/own_network.sh" IN_OWN_NETWORK=1 "$0" "$@"
fi
server=$1
shift
place=$(mktemp -d)
setsid "$server" --data "$place" > "$place/log" 2>&1 &
group=$!
disown  # so that the shell does not report its end
# Its child outlives it, so both are ended by their group.
trap 'kill -KILL -- "-$group" 2>/dev/null; rm -rf "$place"' EXIT
answers() { (exec 3<> /dev/tcp/127.0.0.1/19530) 2>/dev/null; }
for _ in $(seq 240); do
    ! answers || break
    sleep 0.5
done
if ! answers; then
    echo "the Milvus server did not come up; the end of its log:" >&2
    tail "$place/log" >&2
    exit 1
fi
export GRR_COCA_TEST_MILVUS=http://127.0.0.1:19530
env "$@"  # it may begin with variables
