#!/usr/bin/env bash
# One command in one process:  sbatch [SBATCH OPTIONS] slurm/stage.sh COMMAND [--OPTION=VALUE …] RECIPE [KEY=VALUE …]
#
#   sbatch --cpus-per-task=32 slurm/stage.sh tokenizer 1b
#   sbatch --cpus-per-task=32 --array=0-15 slurm/stage.sh shard --task=array 1b
# prepare.sh and pipeline.sh submit these; COMMAND is one of shard, tokenizer, tokenize, export, run.

#SBATCH --job-name=stage            # as squeue shows it
#SBATCH --nodes=1                   # one machine: it is one process
#SBATCH --output=slurm-%x-%j.log    # what the job says; %x: its name, %j: its number
#SBATCH --open-mode=append          # a requeued job goes on in the same file
#SBATCH --requeue                   # after preemption or a dead node the job is started again, and continues
#SBATCH --signal=TERM@120           # two minutes before the time limit it is told to stop; what is made is kept

set -euo pipefail
command=${1:-}
[ $# -eq 0 ] || shift
options=()
while [[ "${1:-}" = --* ]]; do
    options+=("$1")
    shift
done
# sbatch runs a copy of this file; the others lie where it came from.
script=$(scontrol show job "${SLURM_JOB_ID:?is not set; this is a job script: sbatch $0 …}" |
    awk '!n && sub(/^ *Command=/, "") {sub(/\.sh( .*)?$/, ".sh"); print; n = 1}')
# shellcheck source=slurm/job.sh
source "$(dirname "$(realpath "$script")")/job.sh" "$@"

work alone "$command" "${options[@]}" "$@"
done_with_it
