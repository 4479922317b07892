# shellcheck shell=bash
# What all jobs share; each script sources it with its own words: source job.sh "$@".
#
# A job is started again and again (time limit, preemption, dead node, dead rank) until its work is done: every command
# below continues where the last start ended, and leaves with 75 when the same command would continue once more.

set -euo pipefail
slurm_folder=$(dirname "$(realpath "${BASH_SOURCE[0]}")")
# shellcheck source=slurm/words.sh
source "$slurm_folder/words.sh" "$@"
start=${SLURM_RESTART_COUNT:-0}
job=$SLURM_JOB_ID # as squeue shows it, and as scontrol is told: an element of an array may bear the whole array's number
[ -z "${SLURM_ARRAY_JOB_ID:-}" ] || job=${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID
export SLURM_EXPORT_ENV=ALL # what set_up has set reaches all tasks, whatever sbatch was told to leave out (--export)
trap 'echo "the job was asked to end"' TERM # the shell outlives the step: it looks at how that ended

set_up
cd "$SLURM_SUBMIT_DIR" # paths in recipes are relative to the folder where sbatch was called
find_python

# Ranks of a node: what HEADWATER_RANKS_PER_NODE says, else --ntasks-per-node, else one a GPU, else one. The cores are
# divided among them. A number that this job did not ask for comes from a session in which sbatch was called.
nodes=$SLURM_JOB_NUM_NODES
asked=${SLURM_NTASKS_PER_NODE:-} given=${SLURM_TASKS_PER_NODE:-}
[ "${given%%[(,]*}" = "$asked" ] || asked=
per_node=${HEADWATER_RANKS_PER_NODE:-${asked:-${SLURM_GPUS_ON_NODE:-1}}}
threads=${SLURM_CPUS_PER_TASK:-$((SLURM_CPUS_ON_NODE > per_node ? SLURM_CPUS_ON_NODE / per_node : 1))}

# Ranks meet on the first node; the port follows from the job's number, so that two jobs on a node do not collide.
MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | sed -n 1p)
MASTER_PORT=$((20000 + SLURM_JOB_ID % 10000))
export MASTER_ADDR MASTER_PORT

if scontrol show config | grep '^TaskPlugin .*affinity' >/dev/null; then
    srun_options+=(--cpu-bind=cores) # a rank stays on its cores, and its memory near them
fi

workdir=$("${pipeline[@]}" where "$@") # the run's folder; leaves with 2 when the recipe is wrong
mkdir -p "$workdir/logs" || fail "$(hostname) cannot write to $workdir; set workdir=… to a folder that all nodes share"
ended=$workdir/logs/slurm-$SLURM_JOB_ID-$start # how ranks of this start ended, see rank.sh
starts=$workdir/logs/slurm-$SLURM_JOB_ID.starts

say() { printf '%s  job %s: %s\n' "$(date '+%F %T')" "$job" "$*"; }

count_starts() { # give up on a job that comes back for ever and gets nowhere
    local before=none count=0 here
    here=$({ # changes with each checkpoint, each finished stage, each finished piece of preparation
        cd "$workdir"
        cat checkpoints/latest finetune/*/checkpoints/latest ./*/manifest.json finetune/*/manifest.json
        find text signals tokens evaluation -type f ! -name '*.tmp*'
    } 2>/dev/null | cksum) || true
    [ ! -e "$starts" ] || IFS=: read -r before count <"$starts"
    [ "$here" = "$before" ] || count=0
    echo "$here:$((count + 1))" >"$starts"
    if [ "$count" -ge "$most_starts" ]; then
        say "stops: $count starts in a row got nowhere; the cause stands above (or the time limit is as short as the warning" \
            "before it, --signal). Once it is mended, the same command continues. most_starts in site.sh sets how many"
        rm -f "$starts"
        exit 1
    fi
}

alone() { # alone COMMAND…: a stage in one process on the first node, with all of its cores
    # With --gpus=N the step would ask one node for the GPUs of all.
    srun --nodes=1 --ntasks=1 --ntasks-per-node=1 --cpus-per-task="$SLURM_CPUS_ON_NODE" \
        ${SLURM_GPUS:+--gpus="$SLURM_GPUS_ON_NODE"} "${srun_options[@]}" \
        bash "$slurm_folder/rank.sh" "$ended" "${pipeline[@]}" "$@"
}

on_all() { # on_all COMMAND…: one process a rank
    # --kill-on-bad-exit: when a rank dies the step ends at once, nothing waits for it for ever.
    OMP_NUM_THREADS=$threads srun --nodes="$nodes" --ntasks=$((nodes * per_node)) --ntasks-per-node="$per_node" \
        --cpus-per-task="$threads" --kill-on-bad-exit=1 "${srun_options[@]}" \
        bash "$slurm_folder/rank.sh" "$ended" "${pipeline[@]}" "$@"
}

attempt() { # attempt alone|on_all COMMAND…: sets `status`
    status=0
    rm -f "$ended".*
    "$@" || status=$?
    for said in 75 4 2; do # what a rank said counts, whatever became of the others
        [ ! -e "$ended.$said" ] || status=$said
    done
    rm -f "$ended".*
}

work() { # work alone|on_all COMMAND…: returns when it is done; else the job fails, or is started again
    attempt "$@"
    [ "$status" = 0 ] || not_done
}

not_done() { # what follows from `status`
    case $status in
        2) say "fails: the error stands above; once it is mended the same command continues" && exit 2 ;;
        75) say "stopped in order, work is left" ;;
        *) say "a process ended with status $status" ;;
    esac
    start_again
}

look_at_nodes() { # look_at_nodes RECIPE …: before ranks on several nodes begin; seconds. exclude_bad: go on without bad
    local report=$ended-preflight.txt bad
    [ "$preflight" = yes ] && [ "$nodes" -gt 1 ] || return 0
    attempt on_all preflight --exclude-bad "$@" >"$report"
    cat "$report"
    bad=$(sed -n 's/^exclude=//p' "$report")
    rm -f "$report"
    case $status in
        0) return ;;
        4) ;;
        *) not_done ;;
    esac
    if [ "${exclude_bad:-no}" = no ] || [ -z "$bad" ]; then
        say "fails: preflight found bad nodes; sbatch --exclude=${bad:-NODES}${exclude_bad+, or slurm/pretrain.sh --exclude-bad}"
        exit 4
    fi
    say "goes to the queue to be started again without $bad"
    before=$(insist scontrol --oneliner show job "$job" | sed -n 's/.* ExcNodeList=\([^ ]*\).*/\1/p')
    [ "$before" = "(null)" ] || bad+=,$before
    # Nodes can be excluded from a waiting job only.
    { unasked scontrol requeuehold "$job" || true; } &&
        insist scontrol update JobId="$job" ExcNodeList="$bad" &&
        insist scontrol release "$job" ||
        say "is held in the queue: scontrol update JobId=$job ExcNodeList=$bad; scontrol release $job"
    exit 75
}

unasked() { (trap '' TERM && "$@"); } # a requeue sends SIGTERM to all that this job runs, the command that asks for it too

insist() { # for a minute: the controller may be busy, or just be started anew
    local pause
    for pause in 0.5 2 7 20 30; do
        if unasked "$@"; then return; fi
        sleep "$pause"
    done
    unasked "$@"
}

start_again() { # to the queue, unless the job was cancelled or Slurm has requeued it already
    local shown
    shown=$(insist scontrol --oneliner show job "$job") || {
        say "the controller does not answer, so that the job cannot be requeued; sbatch of the same command continues"
        exit "$status"
    }
    case "$shown " in
        *" Restarts=$start "*" JobState=RUNNING "* | *" JobState=RUNNING "*" Restarts=$start "*)
            say "goes to the queue to be started again"
            insist scontrol requeue "$job" || say "cannot be requeued; sbatch of the same command continues"
            ;;
        *) say "ends: cancelled, preempted or requeued ($(grep -o 'JobState=[^ ]* Reason=[^ ]*' <<<"$shown"))" ;;
    esac
    exit "$status"
}

done_with_it() { rm -f "$starts" && say "done"; }

what=$SLURM_JOB_NAME
[ "$what" != stage ] || what="stage ${command:-}"
say "$what $*: start $((start + 1)), $nodes × $per_node ranks on $SLURM_JOB_NODELIST," \
    "$threads threads each, meeting at $MASTER_ADDR:$MASTER_PORT"
say "$("${container[@]}" "$python" - <<'VERSIONS'
import platform
from importlib.metadata import version
print(f"Python {platform.python_version()},", ", ".join(f"{n} {version(n)}" for n in ("headwater", "torch", "deepspeed")))
VERSIONS
), from $python, into $workdir"
count_starts
