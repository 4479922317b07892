# shellcheck shell=bash disable=SC2154
# What submits chains of jobs, on the login node or in a job of its own: source submit.sh "$@", with the path of the
# script that people know in `script`. Sets `options` (of sbatch, for jobs that train), `after` (what the chain waits
# for) and `words` (RECIPE KEY=VALUE …), and defines `submit`.

set -euo pipefail
slurm_folder=$(dirname "$(realpath "${BASH_SOURCE[0]}")")
options=()
after=()
while [[ "${1:-}" = -* ]]; do
    if [[ $1 = --dependency=* ]]; then after=("$1"); else options+=("$1"); fi
    shift
done
words=("$@")
# shellcheck source=slurm/words.sh
source "$slurm_folder/words.sh" "$@"
command -v sbatch >/dev/null || fail "no sbatch here; this is for the login node of a cluster (or tools/slurm_cluster exec …)"

if [ "$script" != "$(realpath "$0")" ]; then # a copy, by `sbatch slurm/pipeline.sh`: what sbatch was given is meant for the jobs that train
    : "${SLURM_GPUS_PER_NODE:=${SLURM_GPUS_ON_NODE:-}}" # of --gres and --gpus only this is known
    options+=(--nodes="$SLURM_JOB_NUM_NODES" --time="$(squeue --noheader --jobs="$SLURM_JOB_ID" --format=%l)")
    for pair in ntasks-per-node:SLURM_NTASKS_PER_NODE cpus-per-task:SLURM_CPUS_PER_TASK \
        gpus-per-node:SLURM_GPUS_PER_NODE cpus-per-gpu:SLURM_CPUS_PER_GPU \
        partition:SLURM_JOB_PARTITION account:SLURM_JOB_ACCOUNT qos:SLURM_JOB_QOS; do
        variable=${pair#*:}
        [ -z "${!variable:-}" ] || options+=("--${pair%%:*}=${!variable}")
    done
    cd "$SLURM_SUBMIT_DIR"
fi
if [ -n "${SLURM_JOB_ID:-}" ]; then # jobs submitted in a job, or in a session, must not take its shape for their own
    for variable in "${!SLURM_@}"; do
        [[ $variable = SLURM_CONF || $variable = SLURM_CLUSTERS ]] || unset "$variable"
    done
fi

# A wrong recipe is told here, before a chain of jobs waits for its first to fail.
find_python
workdir=$("${pipeline[@]}" where "${words[@]}") ||
    fail "nothing was submitted; $usage; options of sbatch are written --name=value"
workdir=$(realpath -m "$workdir")
stages=" $("${pipeline[@]}" where --stages "${words[@]}" | tr '\n' ' ')"
has() { [[ $stages = *" $1 "* ]]; } # has STAGE: a recipe may begin with tokens, or with others' models
[ -w . ] || fail "the jobs could not write their logs here, in $PWD; submit from a folder that all nodes share"

last= # the job that the next one waits for
submit() { # submit SCRIPT WORDS… -- SBATCH OPTIONS…: after the last job; prints what it is
    local script=$1 arguments=()
    shift
    while [ "$1" != -- ]; do
        arguments+=("$1")
        shift
    done
    shift
    [ -z "$last" ] || after=(--dependency="afterok:$last")
    # kill-on-invalid-dep: when one fails, those that wait for it do not wait for ever. comment: by it `pipeline status`
    # knows them while they wait.
    last=$(sbatch --parsable --comment="$workdir" "${after[@]}" --kill-on-invalid-dep=yes "$@" \
        "$slurm_folder/$script" "${arguments[@]}")
    last=${last%%;*} # a cluster's name may follow
    printf '%-10s %s %s\n' "$last" "$script" "${arguments[*]}"
}

array=(--array="0-$((array_tasks - 1))" --output=slurm-%x-%A_%a.log) # options of sbatch for pieces

submit_preparation() { # text tars, tokenizer, token tars: the pieces as job arrays, one job between them
    local kind
    if has shard; then submit_shard; fi
    if has tokenizer; then submit stage.sh tokenizer "${words[@]}" -- --job-name=tokenizer "${one_node[@]}"; fi
    has tokenize || return 0
    for kind in $("${pipeline[@]}" where --token-passes "${words[@]}"); do # encode, and shuffle where the recipe does
        submit stage.sh tokenize --task=array "${words[@]}" -- --job-name="tokenize-$kind" "${one_node[@]}" "${array[@]}"
    done
    submit stage.sh tokenize "${words[@]}" -- --job-name=tokenize "${one_node[@]}"
}

submit_shard() { # read, compare as often as the recipe asks for, write; each piece by piece, then settled
    local kind
    submit stage.sh shard --task=array "${words[@]}" -- --job-name=shard-read "${one_node[@]}" "${array[@]}"
    submit stage.sh shard --decide "${words[@]}" -- --job-name=shard-decide "${one_node[@]}"
    for kind in $("${pipeline[@]}" where --comparisons "${words[@]}"); do # near-duplicates, repeated lines
        submit stage.sh shard --task=array "${words[@]}" -- --job-name="shard-$kind" "${one_node[@]}" "${array[@]}"
        submit stage.sh shard --decide "${words[@]}" -- --job-name=shard-decide "${one_node[@]}"
    done
    submit stage.sh shard --task=array "${words[@]}" -- --job-name=shard-write "${one_node[@]}" "${array[@]}"
    submit stage.sh shard "${words[@]}" -- --job-name=shard "${one_node[@]}"
}

say_what_next() {
    echo "Logs: slurm-NAME-NUMBER.log in $PWD. How far it is:"
    printf '  %q' "$python" && printf ' %q' -m pipeline status "${words[@]}" && echo
}
