#!/bin/bash
# Fine-tune on GPUs under Slurm, one process for each:
#     sbatch --nodes 2 --gpus-per-node 8 --ntasks-per-node 8 docs/pods/slurm.sh [options of train]
# Everything must be on a file system that all nodes see; submit from the folder of the project.
#SBATCH --job-name=qwen
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=12
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=TERM@600
# TERM@600: ten minutes before the end of the time the run saves and stops, and goes on requeued

set -euo pipefail
: "${MODEL:=qwen-7b-chat}" "${DATA:=chats.json}" "${OUT:=runs/first}" "${VENV:=.venv}"

# shellcheck source=/dev/null
source "$VENV/bin/activate"
srun --kill-on-bad-exit=1 python -m train \
    --model "$MODEL" --data "$DATA" --method lora --out "$OUT" \
    --mesh-data "$SLURM_JOB_NUM_NODES" \
    --max-length 2048 --batch-size 64 --micro-batch 1 --remat none "$@"

# a run that was stopped has saved, and ends without an error too
if [[ ! -d "$OUT/adapter" && ! -d "$OUT/model" ]]; then
    scontrol requeue "$SLURM_JOB_ID"
fi
