#!/usr/bin/env bash
# Trains on several hosts, a process each: tf.distribute.MultiWorkerMirroredStrategy. Start it on every host.
#
#   INDEX=0 launch/tensorflow/multi_worker.sh launch/train_sequence.py     on the first host
#   INDEX=1 launch/tensorflow/multi_worker.sh launch/train_sequence.py     on the second
#
# Edit, below or in the environment:
#   WORKERS    host:port of each worker, with spaces between, the same on every host
#   INDEX      which of them this is, from 0; number 0 writes the files
set -euo pipefail

WORKERS=${WORKERS:-host-a:12345 host-b:12345}
INDEX=${INDEX:?says which of the workers this is: 0, 1, ...}

# shellcheck disable=SC2086  # WORKERS are words
printf -v LIST '"%s",' $WORKERS
export TF_CONFIG="{\"cluster\": {\"worker\": [${LIST%,}]}, \"task\": {\"type\": \"worker\", \"index\": $INDEX}}"

exec python "${@:-launch/train_sequence.py}"
