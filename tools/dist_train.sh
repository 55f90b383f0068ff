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
exec "${PYTHON:-python}" -m torch.distributed.run \
    --nnodes="${NNODES:-1}" --node_rank="${NODE_RANK:-0}" --nproc_per_node="$processes" \
    --master_addr="${MASTER_ADDR:-127.0.0.1}" --master_port="${PORT:-29500}" \
    --max_restarts="${MAX_RESTARTS:-0}" \
    "$(dirname "$0")/train.py" "$config" --launcher pytorch "$@"
