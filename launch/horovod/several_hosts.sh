#!/usr/bin/env bash
# Trains on several hosts with Horovod. Start it on one of them, which reaches the others by ssh without a
# password; dqat, the script and the data lie under the same paths on all, and every host finds its own name.
#
#   launch/horovod/several_hosts.sh launch/train_sequence.py --units 256
#
# Edit, below or in the environment:
#   HOSTS      name:processes of each host, with commas between
#   TIMEOUT    seconds without an answer after which a rank gives up with an error
#   INTERFACE  the network interface between the hosts; found out where it is empty
set -euo pipefail

HOSTS=${HOSTS:-host-a:1,host-b:1}
TIMEOUT=${TIMEOUT:-30}
INTERFACE=${INTERFACE:-}

PROCESSES=0
for host in ${HOSTS//,/ }; do
  PROCESSES=$((PROCESSES + ${host##*:}))
done

exec horovodrun -np "$PROCESSES" -H "$HOSTS" --gloo-timeout-seconds "$TIMEOUT" \
  ${INTERFACE:+--network-interface "$INTERFACE"} python "${@:-launch/train_sequence.py}"
