#!/usr/bin/env bash
# Trains on one host with Horovod: a process a GPU, or a few on CPUs.
#
#   launch/horovod/one_host.sh launch/train_sequence.py --units 256
#
# Edit: PROCESSES, below or in the environment.
set -euo pipefail

PROCESSES=${PROCESSES:-2}

exec horovodrun -np "$PROCESSES" python "${@:-launch/train_sequence.py}"
