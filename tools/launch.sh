# Shared by dist_train.sh and dist_test.sh. Variables: PORT, NNODES, NODE_RANK, MASTER_ADDR, PYTHON.

# fail SENTENCE: print it with the usage as one error and end.
fail() {
    echo "error: $1: $usage" >&2
    exit 2
}

# number NAME VALUE MINIMUM: fail unless the value is an integer of at least the minimum.
number() {
    case $2 in '' | *[!0-9]*) fail "$1 is '$2'; a number was expected" ;; esac
    [ "$2" -ge "$3" ] || fail "$1 is $2; at least $3 was expected"
}

# launch TOOL GPUS ARGUMENTS: run a tool in as many processes on each machine.
launch() {
    folder=$(cd "$(dirname "$0")" && pwd)
    tool=$folder/$1 gpus=$2
    shift 2
    number GPUS "$gpus" 1
    number NNODES "${NNODES:-1}" 1
    number NODE_RANK "${NODE_RANK:-0}" 0
    number PORT "${PORT:-29500}" 1
    [ "${NODE_RANK:-0}" -lt "${NNODES:-1}" ] || fail "NODE_RANK is $NODE_RANK; 0 to NNODES - 1 was expected"
    if [ "${NNODES:-1}" -gt 1 ]; then
        [ -n "$MASTER_ADDR" ] || fail "NNODES is $NNODES, but MASTER_ADDR, the address of machine 0, is not set"
        where="--nnodes=$NNODES --node-rank=${NODE_RANK:-0} --master-addr=$MASTER_ADDR --master-port=${PORT:-29500}"
    elif [ -n "$PORT" ]; then
        where="--master-addr=${MASTER_ADDR:-127.0.0.1} --master-port=$PORT"
    else
        where=--standalone # a free port
    fi
    export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}" PYTHONPATH="$folder/..${PYTHONPATH:+:$PYTHONPATH}"
    # shellcheck disable=SC2086
    exec "${PYTHON:-python}" -m torch.distributed.run $where --nproc-per-node="$gpus" "$tool" "$@" --launcher pytorch
}
