# Sourced by tools/quickstart, tools/test and tools/check: makes .venv/ what pyproject.toml and constraints.txt ask for.
#
#   set_up          what the pipeline needs
#   set_up dev      and what its tests need
#
# It does nothing when that is there already, begins again after a kill, and ends with one line when it cannot go on.
# Settings, from the environment:
#   PYTHON                  the interpreter to use (3.10 to 3.13)
#   HEADWATER_TORCH_INDEX   package index to take PyTorch from, such as that of its CPU builds (pytorch.org, "Get Started")

cd -- "$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")/.."
root=$PWD
right_version='import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))'
torch="torch==2.13.0" # exactly, and first: a range may take a newer build, with gigabytes of CUDA
need_gib=6            # disk: 2 GiB of packages on a CPU, their downloads, and a run of the demo
need_gib_cuda=16

fail() {
    printf 'error: %s\n' "$*" >&2
    exit 2
}

find_python() { # sets python: the first interpreter that is right and can make an environment
    local candidate lacking=""
    for candidate in ${PYTHON:+"$PYTHON"} python3 python3.13 python3.12 python3.11 python3.10; do
        command -v -- "$candidate" >/dev/null || continue
        "$candidate" -c "$right_version" 2>/dev/null || continue
        if "$candidate" -c 'import ensurepip, venv' 2>/dev/null; then
            python=$candidate
            return
        fi
        lacking=${lacking:-$candidate}
    done
    [ -z "$lacking" ] || fail "$lacking cannot make environments; install its venv module" \
        "(Debian, Ubuntu: apt-get install python3-venv) and give the same command again"
    fail "no Python 3.10 to 3.13 found; install one (Debian, Ubuntu: apt-get install python3 python3-venv)" \
        "or set PYTHON=/path/to/python3, and give the same command again"
}

check_disk() { # check_disk GIB
    local free
    free=$(df -Pk . | awk 'NR == 2 {print int($4 / 1048576)}')
    [ "$free" -ge "$1" ] || fail "$root: $free GiB of disk are free, $1 are needed; free some space," \
        "or clone the project to a larger disk"
}

pip_install() { # pip_install WHAT ARGUMENTS…: one line of what is done, all of pip's words in .venv/install.log
    local what=$1
    shift
    printf 'installing %s …\n' "$what" >&2
    .venv/bin/python -m pip install --disable-pip-version-check --no-input --progress-bar off \
        -c tools/constraints.txt "$@" >>.venv/install.log 2>&1 || {
        rm -f .venv/unfinished # pip undid what it had begun
        fail "$what could not be installed: $(grep -i '^error' .venv/install.log | tail -n 1)" \
            "(all of it: .venv/install.log); check the network and give the same command again"
    }
}

is_ready() { # is_ready WANTED STAMP…: one of the stamps says that what is wanted is there
    local wanted=$1 stamp
    shift
    for stamp in "$@"; do
        [ -x .venv/bin/python ] && [ "$(cat ".venv/$stamp" 2>/dev/null)" = "$wanted" ] && return 0
    done
    return 1
}

make_environment() { # leaves .venv/ with a working pip; .venv/unfinished until the set-up is through
    local made
    made=$(cat .venv/made-for 2>/dev/null) || made=""
    # Ours, but killed while it was made, or moved here from another folder: begin again.
    if [ -f .venv/unfinished ] || [ "${made:-$root}" != "$root" ]; then rm -rf .venv; fi
    if .venv/bin/python -m pip --version >/dev/null 2>&1; then
        .venv/bin/python -c "$right_version" ||
            fail ".venv holds $(.venv/bin/python --version), not 3.10 to 3.13; delete .venv and give the command again"
        touch .venv/unfinished
    else
        rmdir .venv 2>/dev/null || [ ! -e .venv ] ||
            fail ".venv is there, but its Python or pip does not work; delete .venv and give the same command again"
        find_python
        check_disk "$1"
        printf 'making .venv with %s\n' "$("$python" --version)" >&2
        mkdir .venv && touch .venv/unfinished
        "$python" -m venv .venv >.venv/install.log 2>&1 ||
            fail "$python could not make .venv: $(tail -n 1 .venv/install.log)"
    fi
    printf '%s' "$root" >.venv/made-for
}

set_up() { # set_up [dev]
    local extra=${1:-} wanted gpu need=$need_gib
    wanted=$({ cat pyproject.toml tools/constraints.txt; echo "$root ${HEADWATER_TORCH_INDEX:-}"; } | sha256sum)
    if is_ready "$wanted" "ready-$extra" ready-dev; then return 0; fi # what serves the tests serves the pipeline too
    exec 9<tools/setup.sh
    if command -v flock >/dev/null; then flock 9; fi # two set-ups at once: the second finds the work done
    if is_ready "$wanted" "ready-$extra" ready-dev; then return 0; fi

    gpu=$(nvidia-smi --query-gpu=name --format=csv,noheader 2>/dev/null | head -n 1) || gpu=""
    if [ -n "$gpu" ]; then need=$need_gib_cuda; fi
    make_environment "$need"
    if [ -n "$gpu" ]; then
        printf 'NVIDIA GPU found (%s): PyTorch with CUDA\n' "$gpu" >&2
    else
        printf 'no NVIDIA GPU: PyTorch for the processor is enough\n' >&2
    fi
    pip_install "PyTorch${HEADWATER_TORCH_INDEX:+ from $HEADWATER_TORCH_INDEX}" \
        ${HEADWATER_TORCH_INDEX:+--index-url "$HEADWATER_TORCH_INDEX"} "$torch"
    pip_install "the rest (a few minutes the first time)" -e ".${extra:+[$extra]}"
    printf 'installed: PyTorch %s\n' \
        "$(.venv/bin/python -c 'from importlib.metadata import version; print(version("torch"))')" >&2
    printf '%s' "$wanted" >".venv/ready-$extra"
    rm -f .venv/unfinished
    exec 9<&-
}
