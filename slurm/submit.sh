# shellcheck shell=bash
# What submits chains of jobs, on the login node: source submit.sh "$@". Sets `options` (of sbatch, for jobs that
# train) and `words` (RECIPE KEY=VALUE …), and defines `submit`.

set -euo pipefail
slurm_folder=$(dirname "$(realpath "${BASH_SOURCE[0]}")")
options=()
while [[ "${1:-}" = -* ]]; do
    options+=("$1")
    shift
done
words=("$@")
# shellcheck source=slurm/words.sh
source "$slurm_folder/words.sh" "$@"
command -v sbatch >/dev/null || fail "no sbatch here; this is for the login node of a cluster (or tools/slurm_cluster exec …)"

if [ -n "${SLURM_JOB_ID:-}" ]; then # `sbatch slurm/pipeline.sh`: what sbatch was given is meant for the jobs that train
    options+=(--nodes="$SLURM_JOB_NUM_NODES" --time="$(squeue --noheader --jobs="$SLURM_JOB_ID" --format=%l)")
    for pair in ntasks-per-node:SLURM_NTASKS_PER_NODE cpus-per-task:SLURM_CPUS_PER_TASK \
        gpus-per-node:SLURM_GPUS_PER_NODE cpus-per-gpu:SLURM_CPUS_PER_GPU \
        partition:SLURM_JOB_PARTITION account:SLURM_JOB_ACCOUNT qos:SLURM_JOB_QOS; do
        variable=${pair#*:}
        [ -z "${!variable:-}" ] || options+=("--${pair%%:*}=${!variable}")
    done
    for variable in "${!SLURM_@}"; do # a job inside of this one must not take this one's shape for its own
        [[ $variable = SLURM_CONF || $variable = SLURM_SUBMIT_DIR ]] || unset "$variable"
    done
    cd "$SLURM_SUBMIT_DIR"
fi

# A wrong recipe is told here, before a chain of jobs waits for its first to fail.
find_python
workdir=$("${pipeline[@]}" where "${words[@]}") ||
    fail "nothing was submitted; $usage; options of sbatch are written --name=value"
workdir=$(realpath -ms "$workdir")
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
    # kill-on-invalid-dep: when one fails, those that wait for it do not wait for ever. comment: by it `pipeline status`
    # knows them while they wait.
    last=$(sbatch --parsable --comment="$workdir" ${last:+--dependency=afterok:$last} --kill-on-invalid-dep=yes "$@" \
        "$slurm_folder/$script" "${arguments[@]}")
    last=${last%%;*} # a cluster's name may follow
    printf '%-10s %s %s\n' "$last" "$script" "${arguments[*]}"
}

submit_preparation() { # text tars, tokenizer, token tars: the pieces as job arrays, one job between them
    local array=(--array="0-$((array_tasks - 1))" --output=slurm-%x-%A_%a.log)
    submit stage.sh shard --task=array "${words[@]}" -- --job-name=shard-read "${one_node[@]}" "${array[@]}"
    submit stage.sh shard --decide "${words[@]}" -- --job-name=shard-decide "${one_node[@]}"
    local kind
    for kind in $("${pipeline[@]}" where --comparisons "${words[@]}"); do # near-duplicates, repeated lines
        submit stage.sh shard --task=array "${words[@]}" -- --job-name="shard-$kind" "${one_node[@]}" "${array[@]}"
        submit stage.sh shard --decide "${words[@]}" -- --job-name=shard-decide "${one_node[@]}"
    done
    submit stage.sh shard --task=array "${words[@]}" -- --job-name=shard-write "${one_node[@]}" "${array[@]}"
    submit stage.sh shard "${words[@]}" -- --job-name=shard "${one_node[@]}"
    submit stage.sh tokenizer "${words[@]}" -- --job-name=tokenizer "${one_node[@]}"
    for kind in $("${pipeline[@]}" where --token-passes "${words[@]}"); do # encode, and shuffle where the recipe does
        submit stage.sh tokenize --task=array "${words[@]}" -- --job-name="tokenize-$kind" "${one_node[@]}" "${array[@]}"
    done
    submit stage.sh tokenize "${words[@]}" -- --job-name=tokenize "${one_node[@]}"
}

say_what_next() {
    echo "Logs: slurm-NAME-NUMBER.log in $PWD. How far it is:"
    printf '  %q' "$python" && printf ' %q' -m pipeline status "${words[@]}" && echo
}
