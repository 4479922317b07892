#!/usr/bin/env bash
# Corpora to token tars on many nodes:  slurm/prepare.sh [SBATCH OPTIONS] RECIPE [KEY=VALUE …]
#
# Run on the login node: submits the jobs, each waiting for the one before, prints their numbers and ends. Reading,
# writing and tokenizing are job arrays; how many pieces, and what a job without GPUs asks for, stands in site.sh.
# Options given here go to all of them. `sbatch slurm/prepare.sh …` does the same in a job of a moment.

#SBATCH --job-name=prepare          # as squeue shows it
#SBATCH --output=slurm-%x-%j.log    # what it says: the numbers of the jobs; %x: its name, %j: its number

set -euo pipefail
script=$(realpath "$0")
if [ ! -e "$(dirname "$script")/submit.sh" ]; then # a job runs a copy of this file; the others lie where it came from
    script=$(realpath "$(scontrol show job "$SLURM_JOB_ID" |
        awk '!n && sub(/^ *Command=/, "") {sub(/\.sh( .*)?$/, ".sh"); print; n = 1}')")
fi
# shellcheck source=slurm/submit.sh
source "$(dirname "$script")/submit.sh" "$@"

one_node+=("${options[@]}")
submit_preparation
[ -n "$last" ] || fail "there is nothing to prepare for this recipe; slurm/pipeline.sh does the rest"
say_what_next
