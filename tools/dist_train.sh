#!/usr/bin/env bash
# Train on the GPUs of one machine, or of NNODES machines, on each of which this command runs with its NODE_RANK.
usage='usage: [NNODES=1 NODE_RANK=0 MASTER_ADDR=HOST PORT=29500] dist_train.sh CONFIG GPUS [ARGUMENTS of train.py]'
. "$(dirname "$0")/launch.sh"
[ $# -ge 2 ] || fail "dist_train.sh got $# arguments; a config and the GPUs of each machine were expected"
launch train.py "$2" "$1" "${@:3}"
