#!/usr/bin/env bash
# The whole pipeline on a Slurm cluster:  sbatch [SBATCH OPTIONS] slurm/pipeline.sh RECIPE [KEY=VALUE …]
#
#   sbatch --nodes=2 --gpus-per-node=8 --ntasks-per-node=8 --cpus-per-task=12 slurm/pipeline.sh 1b
# Stages that are done are skipped, so the same command continues after whatever ended it.

#SBATCH --job-name=headwater        # as squeue shows it
#SBATCH --nodes=1                   # machines
#SBATCH --ntasks-per-node=1         # ranks a machine: one a GPU (or a group of cores)
#SBATCH --output=slurm-%x-%j.log    # what the job says; %x: its name, %j: its number
#SBATCH --open-mode=append          # a requeued job goes on in the same file
#SBATCH --requeue                   # after preemption or a dead node the job is started again, and continues
#SBATCH --signal=TERM@120           # two minutes before the time limit the ranks are told to save and stop

set -euo pipefail
[ $# -gt 0 ] || { echo "usage: sbatch slurm/pipeline.sh RECIPE [KEY=VALUE …]" >&2; exit 2; }

cd "${SLURM_SUBMIT_DIR:-.}" # paths in recipes are relative to the folder where sbatch was called
python=${HEADWATER_PYTHON:-$PWD/.venv/bin/python}

MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
MASTER_PORT=$((20000 + SLURM_JOB_ID % 10000))
export MASTER_ADDR MASTER_PORT
threads=${SLURM_CPUS_PER_TASK:-1}

echo "job $SLURM_JOB_ID, start $((${SLURM_RESTART_COUNT:-0} + 1)): $SLURM_NTASKS ranks on $SLURM_JOB_NODELIST," \
    "$threads threads each; $("$python" --version), $("$python" -m pipeline --version)"

on_one() { # a stage in one process, which uses all cores that the job has on the first node
    srun --nodes=1 --ntasks=1 --ntasks-per-node=1 --cpus-per-task="${SLURM_CPUS_ON_NODE:-1}" "$python" -m pipeline "$@"
}
on_all() { # a stage that trains, on every rank
    OMP_NUM_THREADS=$threads srun --kill-on-bad-exit=1 "$python" -m pipeline "$@"
}

on_one shard "$@"
on_one tokenizer "$@"
on_one tokenize "$@"
on_all pretrain "$@"
on_one export "$@"
for task in $("$python" -m pipeline finetune "$@" --list-tasks); do
    on_all finetune "$@" --task "$task"
done
on_one evaluate "$@"
on_one run "$@" # finds all of it done: the report, the models in the registry, the closing lines
