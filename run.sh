#!/usr/bin/env bash
# bash run.sh            from nothing to routed answers: .venv, requirements, every missing training, a table, three answers
# bash run.sh test       the same set-up, then the tests
# bash run.sh [--seed N] [--out DIR] [--device auto|cuda|mps|cpu]    another run: every script gets these
set -euo pipefail
cd "$(dirname "$0")"

check() {  # before minutes are spent: what not every script takes is for one of them alone
    while [ $# -gt 0 ]; do
        case "$1" in
            --help | -h) sed -n 's/^# //p' run.sh; exit ;;
            --seed=* | --out=* | --device=*) shift ;;
            --seed | --out | --device)
                [ $# -gt 1 ] || { echo "error: $1 needs a value" >&2; exit 2; }
                shift 2 ;;
            *) echo "error: run.sh does not take $1, only --seed N, --out DIR, --device D, or test first" >&2; exit 2 ;;
        esac
    done
}
[ "${1:-}" = test ] || check "$@"

if [ ! -x .venv/bin/pip ]; then  # pip comes last: a half-made .venv is made again
    echo "making .venv"
    "${PYTHON:-python3}" -m venv .venv
fi
python=.venv/bin/python
if ! cmp -s requirements.txt .venv/installed.txt; then
    echo "installing requirements.txt into .venv"
    $python -m pip install --quiet --disable-pip-version-check -r requirements.txt
    cp requirements.txt .venv/installed.txt
fi

if [ "${1:-}" = test ]; then
    shift
    exec $python -m pytest "$@"
fi
$python train_sft.py "$@"
$python train_cdpo.py "$@"
$python -m toy_experts.evaluate "$@"
echo
printf '%s\n' "Zoe has 12 cakes. She buys 5 more. Then she doubles the number. How many cakes are there now?" \
    "Define a function pick(xs) that returns the largest of the odd numbers in xs, each plus 3, or 0 if there are none." \
    "Write green, lamp and river in double quotes. Finish with the word done." | $python decode.py "$@"
echo
echo "from start to end: $SECONDS seconds. Now ask your own: $python decode.py$([ $# -eq 0 ] || printf ' %q' "$@")"
