#!/usr/bin/env bash
# bash run.sh          install into .venv, answer three prompts, train everything, show the table, answer again
# bash run.sh test     install, then run the tests
# bash run.sh [--seed N] [--out DIR] [--device auto|cuda|mps|cpu]      another run: every script gets these flags
# OMP_NUM_THREADS=2 bash run.sh      two threads, for idle cores; the experts, side by side, keep one each
set -euo pipefail
cd "$(dirname "$(readlink -f "$0" || echo "$0")")"

check() {  # wrong flags are refused before minutes are spent
    while [ $# -gt 0 ]; do
        case "$1" in
            --help | -h) sed -n '2,5s/^# //p' run.sh; exit ;;
            --seed=* | --out=* | --device=*) shift ;;
            --seed | --out | --device)
                [ $# -gt 1 ] || { echo "error: $1 needs a value" >&2; exit 2; }
                shift 2 ;;
            *) echo "error: run.sh does not take $1, only --seed N, --out DIR, --device D, or test first" >&2; exit 2 ;;
        esac
    done
}
[ "${1:-}" = test ] || check "$@"

case "$OSTYPE" in
    msys* | cygwin*) python=.venv/Scripts/python.exe ;;  # Git Bash on Windows
    *) python=.venv/bin/python ;;
esac
usable() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 10))' >/dev/null 2>&1; }
if ! usable $python; then  # none yet; or its Python is gone, too old, or of another system
    bases=("${PYTHON:-python3}")
    [ -n "${PYTHON:-}" ] || bases+=(python py)
    for base in "${bases[@]}"; do
        usable "$base" && break
    done
    usable "$base" || { echo "error: found no Python 3.10 or later (tried ${bases[*]}); say PYTHON=/path/to/python bash run.sh" >&2; exit 2; }
    echo "making .venv"
    rm -rf .venv
    "$base" -m venv .venv
fi
$python -m pip --version >/dev/null 2>&1 || $python -m ensurepip >/dev/null  # half made, or made by uv
# Scripts that are run by their path, as toy_experts/evaluate.py, find the others through this.
$python -c 'import os, sysconfig; open(sysconfig.get_path("purelib") + "/fusionroute.pth", "w").write(os.getcwd())'
if ! cmp -s requirements.txt .venv/installed.txt; then
    echo "installing requirements.txt into .venv"
    $python -m pip install --quiet --disable-pip-version-check -r requirements.txt
    cp requirements.txt .venv/installed.txt
fi

if [ "${1:-}" = test ]; then
    shift
    exec $python -m pytest "$@"
fi

ask() {
    printf '%s\n' "Tom has 21 eggs. He loses 3 of them. Then he gives 7 away. How many eggs are there now? Finish with the word done." \
        "Define a function run(nums) that returns the first two of the numbers below 2 in nums." \
        "What is 17 mod 5? Put the answer in double quotes." | $python decode.py "$@"
    echo "(coloured or in []: the experts disagree; underlined or in «»: the router changed it)"
    echo '(right answers: 11, and done on a new line; [x for x in nums if x < 2][:2]; "2")'
    echo "(a trained run gets about two of three such mixed prompts right)"
}

installed=$SECONDS
[ $# -gt 0 ] || { ask; echo "(after $SECONDS seconds, $installed of them for the installation)"; echo; }
$python train_sft.py "$@"
$python train_cdpo.py "$@"
$python -m toy_experts.evaluate "$@"
echo
ask "$@"
echo
echo "from start to end: $SECONDS seconds. Now ask your own: $python decode.py$([ $# -eq 0 ] || printf ' %q' "$@")"
