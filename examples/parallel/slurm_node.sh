#!/usr/bin/env bash
# What slurm.sh runs on each machine.
set -euo pipefail

NODE_RANK=$SLURM_NODEID swift sft examples/parallel/fsdp.yaml --output_dir output/slurm
