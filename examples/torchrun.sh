#!/bin/bash
# Train on two machines with eight GPUs each and a shared folder. Run this script on each machine, and set ADDRESS to the name of
# the first machine. This script has never been run on a cluster.
export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1   # otherwise, a restart searches for the processes that died
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=600     # seconds to save a checkpoint after a signal, instead of 30
torchrun --nnodes 2 --nproc-per-node 8 --rdzv-backend c10d --rdzv-endpoint "$ADDRESS:29500" --rdzv-id mine \
    --max-restarts 3 -m grr_coca pretrain RECIPE.yaml --out /shared/runs/mine --resume
