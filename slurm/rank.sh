#!/usr/bin/env bash
# One task of a step: rank.sh ENDED COMMAND…. A stop in order (75), bad nodes (4) and bad input (2) are left as files
# ENDED.75 and so on, and a task that stopped in order or has found bad nodes ends well: srun's own status is the highest
# of all tasks', those that it killed among them, and --kill-on-bad-exit would not let rank 0 finish what the others have
# finished already.
set -euo pipefail

main() { # a function, read as a whole: the file may be edited while a job is at work
    local ended=$1 status=0 asked=no
    shift
    # Slurm's signals go to every process of a step; the command answers them, this shell waits. One that came before the
    # command is there is answered here: without it this rank would wait for others that have stopped already.
    trap 'asked=yes' TERM USR1 INT
    if [ "$asked" = yes ]; then status=75; else "$@" || status=$?; fi
    case $status in
        2) : >"$ended.2" || true ;;
        75) if : >"$ended.75"; then exit 0; fi ;;
        4) # a bad node may not see the folder; rank 0, on the node of job.sh, says the same
            if : >"$ended.4" || [ "${SLURM_PROCID:-0}" != 0 ]; then exit 0; fi ;;
    esac
    exit "$status"
}

main "$@"
