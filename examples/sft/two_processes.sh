#!/usr/bin/env bash
# The same run on two processes of one machine; on GPUs, one process for each GPU.
set -euo pipefail

NPROC_PER_NODE=2 swift sft examples/sft/lora.yaml --ddp_backend gloo --use_cpu
