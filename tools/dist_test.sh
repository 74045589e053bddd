#!/usr/bin/env bash
# Score a checkpoint on the GPUs of one machine, or of NNODES machines, on each of which this command runs with its NODE_RANK.
usage='usage: [NNODES=1 NODE_RANK=0 MASTER_ADDR=HOST PORT=29500] dist_test.sh CONFIG CHECKPOINT GPUS [ARGUMENTS of test.py]'
. "$(dirname "$0")/launch.sh"
[ $# -ge 3 ] || fail "dist_test.sh got $# arguments; a config, a checkpoint and the GPUs of each machine were expected"
launch test.py "$3" "$1" "$2" "${@:4}"
