#!/usr/bin/env bash
# Pretrain, then make the model directory:
#   sbatch [SBATCH OPTIONS] slurm/pretrain.sh [--exclude-bad] RECIPE [KEY=VALUE …]
#
# Options given to sbatch win over the ones below:
#   sbatch --nodes=4 --gpus-per-node=8 --cpus-per-gpu=12 --time=24:00:00 slurm/pretrain.sh 7b
# --nodes=2-4 takes what there is, and a requeue goes on with what there is then. Say so without --ntasks-per-node, which
# ties the job to its first number of nodes (Slurm 22.05): ranks follow from the GPUs; without GPUs set
# HEADWATER_RANKS_PER_NODE and --mincpus.
# On several nodes `pipeline preflight` looks at each of them first; a bad one is named, and the job fails. With
# --exclude-bad it goes back to the queue, to be started without them.
# The text must have been prepared: slurm/prepare.sh does that, slurm/pipeline.sh all of it.

#SBATCH --job-name=pretrain         # as squeue shows it
#SBATCH --nodes=1                   # machines
#SBATCH --output=slurm-%x-%j.log    # what the job says; %x: its name, %j: its number
#SBATCH --open-mode=append          # a requeued job goes on in the same file
#SBATCH --requeue                   # after preemption or a dead node the job is started again, and continues
#SBATCH --signal=USR1@180           # three minutes before the time limit all ranks are told to save and stop

set -euo pipefail
exclude_bad=no
if [ "${1:-}" = --exclude-bad ]; then
    exclude_bad=yes
    shift
fi
# sbatch runs a copy of this file; the others lie where it came from.
script=$(scontrol show job "${SLURM_JOB_ID:?is not set; this is a job script: sbatch $0 …}" |
    awk '!n && sub(/^ *Command=/, "") {sub(/\.sh( .*)?$/, ".sh"); print; n = 1}')
# shellcheck source=slurm/job.sh
source "$(dirname "$(realpath "$script")")/job.sh" "$@"

look_at_nodes "$@"
work on_all pretrain "$@"
work alone export "$@"
done_with_it
