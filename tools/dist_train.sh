#!/usr/bin/env bash
# Data-parallel training on one or more machines, with mmdet's arguments:
#   tools/dist_train.sh CONFIG GPUS [arguments of tools/train.py]
#   NNODES=2 NODE_RANK=0 MASTER_ADDR=10.0.0.1 PORT=29500 tools/dist_train.sh CONFIG 8 --resume
#   MAX_RESTARTS=3 tools/dist_train.sh CONFIG 8 --resume    starts all anew when one dies, up to three times
# On a machine without GPUs it starts that many CPU processes.
set -euo pipefail
[ $# -ge 2 ] || { sed -n 's/^# \?//; 2,6p' "$0" >&2; exit 2; }
config=$1 processes=$2
shift 2
address=${MASTER_ADDR:-127.0.0.1} port=${PORT:-29500}
if [ "${MAX_RESTARTS:-0}" = 0 ]; then
    meeting=(--node_rank="${NODE_RANK:-0}" --master_addr="$address" --master_port="$port")
else
    # the plain meeting would hand the addresses of the dead processes to those of the next start
    meeting=(--rdzv_backend=c10d --rdzv_endpoint="$address:$port" --rdzv_id=hgd_det
             --max_restarts="$MAX_RESTARTS")
fi
exec "${PYTHON:-python}" -m torch.distributed.run \
    --nnodes="${NNODES:-1}" --nproc_per_node="$processes" "${meeting[@]}" \
    "$(dirname "$0")/train.py" "$config" --launcher pytorch "$@"
