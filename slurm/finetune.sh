#!/usr/bin/env bash
# Fine-tune:  sbatch [SBATCH OPTIONS] slurm/finetune.sh [--task NAME] RECIPE [KEY=VALUE …]
#
# All tasks of the recipe, one after the other, or one; in a job array each element does a share of them, the
# combinations of grids singly. Options given to sbatch win over the ones below:
#   sbatch --gpus-per-node=8 --cpus-per-gpu=12 slurm/finetune.sh --task summarize 1b
#   sbatch --array=0-3 slurm/finetune.sh 1b
# The model directory must be there: slurm/pretrain.sh makes it, unless the task names another base.

#SBATCH --job-name=finetune         # as squeue shows it
#SBATCH --nodes=1                   # machines
#SBATCH --output=slurm-%x-%j.log    # what the job says; %x: its name, %j: its number
#SBATCH --open-mode=append          # a requeued job goes on in the same file
#SBATCH --requeue                   # after preemption or a dead node the job is started again, and continues
#SBATCH --signal=USR1@180           # three minutes before the time limit all ranks are told to save and stop

set -euo pipefail
tasks=()
share=()
case ${1:-} in
    --task) tasks=("${2:-}") && shift $(($# > 1 ? 2 : 1)) ;;
    --task=*) tasks=("${1#*=}") && shift ;;
esac
# sbatch runs a copy of this file; the others lie where it came from.
script=$(scontrol show job "${SLURM_JOB_ID:?is not set; this is a job script: sbatch $0 …}" |
    awk '!n && sub(/^ *Command=/, "") {sub(/\.sh( .*)?$/, ".sh"); print; n = 1}')
# shellcheck source=slurm/job.sh
source "$(dirname "$(realpath "$script")")/job.sh" "$@"

if [ ${#tasks[@]} -eq 0 ]; then
    [ -z "${SLURM_ARRAY_TASK_ID:-}" ] || share=(--task array)
    listed=$("${pipeline[@]}" finetune "$@" --list-tasks "${share[@]}")
    mapfile -t tasks <<<"$listed"
    [ -n "$listed" ] || tasks=()
fi
look_at_nodes "$@"
for task in "${tasks[@]}"; do
    work on_all finetune "$@" --task "$task"
done
[ ${#share[@]} -eq 0 ] || work alone finetune "$@" "${share[@]}" # the last element chooses the best of a grid
done_with_it
