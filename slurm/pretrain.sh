#!/usr/bin/env bash
# Pretrain on a Slurm cluster:  sbatch [SBATCH OPTIONS] slurm/pretrain.sh RECIPE [KEY=VALUE …]
#
# Options given to sbatch win over the ones below:
#   sbatch --nodes=4 --gpus-per-node=8 --ntasks-per-node=8 --cpus-per-task=12 slurm/pretrain.sh 7b
# The text must have been prepared (stages shard, tokenizer, tokenize): slurm/pipeline.sh does that too.

#SBATCH --job-name=headwater        # as squeue shows it
#SBATCH --nodes=1                   # machines
#SBATCH --ntasks-per-node=1         # ranks a machine: one a GPU (or a group of cores)
#SBATCH --output=slurm-%x-%j.log    # what the job says; %x: its name, %j: its number
#SBATCH --open-mode=append          # a requeued job goes on in the same file
#SBATCH --requeue                   # after preemption or a dead node the job is started again, and continues
#SBATCH --signal=TERM@120           # two minutes before the time limit the ranks are told to save and stop

set -euo pipefail
[ $# -gt 0 ] || { echo "usage: sbatch slurm/pretrain.sh RECIPE [KEY=VALUE …]" >&2; exit 2; }

cd "${SLURM_SUBMIT_DIR:-.}" # paths in recipes are relative to the folder where sbatch was called
python=${HEADWATER_PYTHON:-$PWD/.venv/bin/python}

# Ranks meet on the first node; the port follows from the job's number, so that two jobs on a node do not collide.
MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
MASTER_PORT=$((20000 + SLURM_JOB_ID % 10000))
OMP_NUM_THREADS=${SLURM_CPUS_PER_TASK:-1} # threads a rank: the cores that Slurm gives it
export MASTER_ADDR MASTER_PORT OMP_NUM_THREADS

echo "job $SLURM_JOB_ID, start $((${SLURM_RESTART_COUNT:-0} + 1)): $SLURM_NTASKS ranks on $SLURM_JOB_NODELIST," \
    "$OMP_NUM_THREADS threads each; $("$python" --version), $("$python" -m pipeline --version)"

# One task a rank. --kill-on-bad-exit: when a rank dies the step ends, nothing waits for it for ever.
# exec: Slurm's signals go to srun, which passes them to every rank.
exec srun --kill-on-bad-exit=1 "$python" -m pipeline pretrain "$@"
