#!/usr/bin/env bash
# Train on GPUS GPUs of a Slurm partition, one process for each.
usage='usage: [GPUS=4 GPUS_PER_NODE=4 CPUS_PER_TASK=5 SRUN_ARGS=...] slurm_train.sh PARTITION JOB_NAME CONFIG [ARGUMENTS of train.py]'
. "$(dirname "$0")/launch.sh"
[ $# -ge 3 ] || fail "slurm_train.sh got $# arguments; a partition, a job name and a config were expected"
GPUS=${GPUS:-4}
number GPUS "$GPUS" 1
GPUS_PER_NODE=${GPUS_PER_NODE:-$((GPUS < 4 ? GPUS : 4))}
number GPUS_PER_NODE "$GPUS_PER_NODE" 1
number CPUS_PER_TASK "${CPUS_PER_TASK:-5}" 1
[ $((GPUS % GPUS_PER_NODE)) -eq 0 ] || fail "GPUS is $GPUS; a multiple of GPUS_PER_NODE, $GPUS_PER_NODE, was expected"
command -v srun >/dev/null || fail 'there is no srun on this machine: log in to a machine of the cluster, or use dist_train.sh'
folder=$(cd "$(dirname "$0")" && pwd)
export PYTHONPATH="$folder/..${PYTHONPATH:+:$PYTHONPATH}"
# shellcheck disable=SC2086
exec srun --partition="$1" --job-name="$2" --gres=gpu:"$GPUS_PER_NODE" --ntasks="$GPUS" \
    --ntasks-per-node="$GPUS_PER_NODE" --cpus-per-task="${CPUS_PER_TASK:-5}" --kill-on-bad-exit=1 $SRUN_ARGS \
    "${PYTHON:-python}" -u "$folder/train.py" "$3" "${@:4}" --launcher slurm
