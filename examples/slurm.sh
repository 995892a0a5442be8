#!/bin/bash
# Train on two machines with eight GPUs each and a shared folder. Ten minutes before the time limit, the run saves a checkpoint
# and exits with code 138, and the job queues itself again. This script has never been run on a cluster.
#SBATCH --nodes=2 --ntasks-per-node=8 --gpus-per-node=8 --cpus-per-task=8
#SBATCH --time=24:00:00 --signal=USR1@600 --requeue --open-mode=append

export MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1) MASTER_PORT=29500
srun --cpus-per-task="$SLURM_CPUS_PER_TASK" --kill-on-bad-exit=1 bash -c '
    export RANK=$SLURM_PROCID WORLD_SIZE=$SLURM_NTASKS LOCAL_RANK=$SLURM_LOCALID
    exec grr-coca pretrain RECIPE.yaml --out /shared/runs/mine --resume'
code=$?
if [ $code -eq 138 ]; then scontrol requeue "$SLURM_JOB_ID"; fi
exit $code
