#!/usr/bin/env bash
#SBATCH --job-name=swift
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
# One launcher on each machine; each starts a process for every GPU, and they meet at the first machine.
set -euo pipefail

export NNODES=$SLURM_NNODES NPROC_PER_NODE=8 MASTER_PORT=29500
MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export MASTER_ADDR

srun bash examples/parallel/slurm_node.sh
