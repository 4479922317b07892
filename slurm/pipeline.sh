#!/usr/bin/env bash
# The whole pipeline on a Slurm cluster:  slurm/pipeline.sh [SBATCH OPTIONS] RECIPE [KEY=VALUE …]
#
#   slurm/pipeline.sh --nodes=4 --gpus-per-node=8 --cpus-per-gpu=12 --time=24:00:00 1b
# Run on the login node: submits the chain of jobs, each waiting for the one before, prints their numbers and ends. The
# options are those of sbatch, as --name=value, for the jobs that train; site.sh says what the others ask for. Work that
# is done is skipped, so the same command continues after whatever ended a chain.
# `sbatch [SBATCH OPTIONS] slurm/pipeline.sh …` does the same in a job of a moment; time, partition,
# account, QOS, nodes, and tasks, CPUs and GPUs of each, are handed on.

#SBATCH --job-name=pipeline         # as squeue shows it
#SBATCH --output=slurm-%x-%j.log    # what it says: the numbers of the jobs; %x: its name, %j: its number

set -euo pipefail
script=$(realpath "$0")
if [ ! -e "$(dirname "$script")/submit.sh" ]; then # a job runs a copy of this file; the others lie where it came from
    script=$(realpath "$(scontrol show job "$SLURM_JOB_ID" |
        awk '!n && sub(/^ *Command=/, "") {sub(/\.sh( .*)?$/, ".sh"); print; n = 1}')")
fi
# shellcheck source=slurm/submit.sh
source "$(dirname "$script")/submit.sh" "$@"

submit_preparation
if has pretrain; then submit pretrain.sh "${words[@]}" -- "${options[@]}"; fi
if has finetune; then submit finetune.sh "${words[@]}" -- "${options[@]}"; fi
submit evaluate.sh "${words[@]}" -- "${one_node[@]}"
submit stage.sh run "${words[@]}" -- --job-name=close "${one_node[@]}" # all is done: the report, the registry, the sum
say_what_next
