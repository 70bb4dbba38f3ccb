#!/usr/bin/env bash
# Trains on all GPUs of one host, in one process: tf.distribute.MirroredStrategy.
#
#   launch/tensorflow/mirrored.sh launch/train_sequence.py --units 256
#
# Edit: CUDA_VISIBLE_DEVICES, in the environment, for some of the GPUs.
set -euo pipefail

export DQAT_ENGINE=tf

exec python "${@:-launch/train_sequence.py}"
