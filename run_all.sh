#!/usr/bin/env bash
# Makes the environment if there is none (.venv, or the active conda one), then hands its arguments to longtail.command.reproduce.
#   ./run_all.sh [profile or file.yaml] [NN ...] [-p name value]... [--dry-run] [--plain]     see --help
#   ./run_all.sh --test [pytest arguments]      the tests, lint among them
#   ./run_all.sh --no-setup ...                 with the python3 that is there, for bare GPU nodes
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
venv=$root/.venv
unset PYTHONDONTWRITEBYTECODE                   # else every kernel compiles torch and pandas again
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}    # numbers repeat only for one count of threads

fail() { echo "run_all.sh: $*" >&2; exit 1; }
suits() { "$1" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))' 2>/dev/null; }
stamp() { (echo "$root"; cat "$root"/{env.yml,constraints.txt,pyproject.toml}) | (sha256sum 2>/dev/null || shasum -a 256); }
requirements() { sed -n '/^ *- pip:/,$p' "$root/env.yml" | sed -nE 's/^ {6}- ([^#]*[^# ]) *(#.*)?$/\1/p' | grep -v '^-'; }

install() {     # uv takes seconds where pip takes minutes, but it does not read pip's settings
    if "$venv/bin/python" -m pip install -q uv==0.13.9; then
        [ -z "${PIP_FIND_LINKS:-}" ] || export UV_FIND_LINKS=${UV_FIND_LINKS:-$PIP_FIND_LINKS}
        [ -z "${PIP_INDEX_URL:-}" ] || export UV_DEFAULT_INDEX=${UV_DEFAULT_INDEX:-$PIP_INDEX_URL}
        [ -z "${PIP_EXTRA_INDEX_URL:-}" ] || export UV_INDEX=${UV_INDEX:-$PIP_EXTRA_INDEX_URL} UV_INDEX_STRATEGY=unsafe-best-match
        "$venv/bin/uv" pip install -q --python "$venv/bin/python" "$@" && return
    fi
    echo "uv could not; trying pip, which takes a few minutes" >&2
    "$venv/bin/python" -m pip install -q "$@"
}

setup() {
    local base="" candidate
    for candidate in python3 python3.11 python3.12; do
        if suits "$candidate"; then base=$candidate; break; fi
    done
    [ -n "$base" ] || fail "needs Python 3.11 or 3.12 on the PATH; python3 is $(python3 -V 2>&1 || true)"
    echo "first run: installing the packages of env.yml into .venv (about a minute; several with CUDA)"
    "$base" -m venv "$venv" || fail "cannot make .venv; on Debian install python3-venv"
    suits "$venv/bin/python" || fail ".venv has another Python than 3.11 or 3.12; delete it and start again"
    requirements > "$venv/requirements.txt"
    install -r "$venv/requirements.txt" -c "$root/constraints.txt" || fail "the packages of env.yml could not be installed; see above"
    install --no-deps -e "$root" || fail "the package longtail could not be installed; see above"
    stamp > "$venv/.stamp"
}

only_looks() {  # --help, --schema and --dry-run need two small packages; images of one's own are looked at with all
    local word looks=1
    for word; do
        case $word in
            -h | --help | --schema | --dry-run) looks=0 ;;
            *.yaml | *.yml) return 1 ;;
        esac
    done
    return $looks
}

look() {
    for python in "$venv/bin/python" python3 python3.11 python3.12; do
        if suits "$python" && "$python" -c 'import yaml, pydantic' 2>/dev/null; then return; fi
    done
    for python in python3 python3.11 python3.12; do
        if suits "$python"; then break; fi
    done
    "$python" -m venv "$venv" && python=$venv/bin/python || fail "cannot make .venv; on Debian install python3-venv"
    "$python" -m pip install -q -c "$root/constraints.txt" pyyaml pydantic || fail "pyyaml and pydantic could not be installed; see above"
}

if [ "${1:-}" = --no-setup ]; then
    shift
    python=python3
    suits python3 || fail "needs Python 3.11 or 3.12; python3 is $(python3 -V 2>&1)"
    python3 -c 'import yaml, pydantic' 2>/dev/null || fail "python3 lacks the packages of env.yml; install them, or leave --no-setup out"
elif [ -n "${CONDA_PREFIX:-}" ] && "$CONDA_PREFIX/bin/python" -c 'import torch' 2>/dev/null; then
    python=$CONDA_PREFIX/bin/python
else
    python=$venv/bin/python
    exec 9<"$root"                              # two terminals: the second waits for the first one's installation
    ! command -v flock >/dev/null || flock 9
    if [ "$(cat "$venv/.stamp" 2>/dev/null)" != "$(stamp)" ]; then
        if only_looks "$@"; then look; else setup; fi
    fi
    exec 9<&-
fi
export PYTHONPATH=$root/src${PYTHONPATH:+:$PYTHONPATH}

if [ "${1:-}" = --test ]; then
    shift
    cd "$root"
    [ $# -gt 0 ] || set -- --numprocesses 2 --dist loadfile --no-loadscope-reorder
    exec "$python" -m pytest "$@"
fi
exec "$python" -m longtail.command.reproduce "$@"
