#!/usr/bin/env bash
# Evaluate what was trained, and write the report:  sbatch [SBATCH OPTIONS] slurm/evaluate.sh RECIPE [KEY=VALUE …]

#SBATCH --job-name=evaluate         # as squeue shows it
#SBATCH --nodes=1                   # one machine: it is one process
#SBATCH --output=slurm-%x-%j.log    # what the job says; %x: its name, %j: its number
#SBATCH --open-mode=append          # a requeued job goes on in the same file
#SBATCH --requeue                   # after preemption or a dead node the job is started again, and continues
#SBATCH --signal=TERM@120           # two minutes before the time limit it is told to stop; what is made is kept

set -euo pipefail
# sbatch runs a copy of this file; the others lie where it came from.
script=$(scontrol show job "${SLURM_JOB_ID:?is not set; this is a job script: sbatch $0 …}" |
    awk '!n && sub(/^ *Command=/, "") {sub(/\.sh( .*)?$/, ".sh"); print; n = 1}')
# shellcheck source=slurm/job.sh
source "$(dirname "$(realpath "$script")")/job.sh" "$@"

work alone evaluate "$@"
work alone report "$@"
done_with_it
