#!/usr/bin/env bash
# Trains with elastic Horovod: workers may die and join, training goes on from the last commit.
#
#   python launch/train_elastic.py prepare     once, on one process: the float model
#   launch/horovod/elastic.sh
#
# Edit, below or in the environment:
#   DQAT_HOSTS         the file that discover_hosts.sh prints: host:slots a line; it may change while the job runs
#   LEAST, MOST        fewest and most workers to train with
#   INTERFACE          the network interface between the hosts; "lo" where all workers are on this one
#   COOLDOWN           seconds, least and most, that a host with a failure is left out; without it, for ever
set -euo pipefail

HERE=$(dirname "$0")
export DQAT_HOSTS=${DQAT_HOSTS:-$HERE/hosts.txt}
LEAST=${LEAST:-1}
MOST=${MOST:-2}
INTERFACE=${INTERFACE:-lo}
COOLDOWN=${COOLDOWN:-10 60}

# shellcheck disable=SC2086  # COOLDOWN is two words
exec horovodrun --gloo --network-interface "$INTERFACE" -np "$LEAST" --min-np "$LEAST" --max-np "$MOST" \
  --host-discovery-script "$HERE/discover_hosts.sh" --blacklist-cooldown-range $COOLDOWN \
  python "${@:-launch/train_elastic.py}"
