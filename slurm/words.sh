# shellcheck shell=bash disable=SC2034,SC2154
# What was typed and what a site has set, for jobs and for what submits them: source words.sh "$@", with the path of the
# script that people know in `script` and that of this folder in `slurm_folder`.

fail() {
    printf 'error: %s\n' "$*" >&2
    exit 2
}

usage=$(sed -n '/\[SBATCH OPTIONS\]/{s/^#\(.*:\)\{0,1\}  */usage: /p;q}' "$script") # the head of each script says it
[ $# -gt 0 ] || { echo "$usage" >&2 && exit 2; }
for word in "$@"; do
    [[ $word != -* ]] || fail "$word: options of sbatch stand in front, as --name=value; $usage"
done

site=${HEADWATER_SITE:-$slurm_folder/site.sh}
[ -r "$site" ] || fail "HEADWATER_SITE=$site: no such file; it is a copy of slurm/site.sh, changed for your site"
# shellcheck source=slurm/site.sh
source "$site"

export PYTHONSAFEPATH=1 # a tokenize.py where sbatch was called is not Python's own (from Python 3.11 on)

find_python() { # sets `python` and `pipeline`, the command
    python=${HEADWATER_PYTHON:-${site_python:-$(dirname "$slurm_folder")/.venv/bin/python}}
    pipeline=("${container[@]}" "$python" -m pipeline)
    [ ${#container[@]} -gt 0 ] || command -v "$python" >/dev/null ||
        fail "no Python at $python on $(hostname); tools/quickstart makes .venv, site_python in $site names another"
}
