#!/usr/bin/env bash
# bash tests/page/install.sh PYTHON: what tests/page/ needs, on Debian or Ubuntu: node, a browser, and for
# the Python given the packages that drive it and check accessibility. Without them these tests are skipped.
set -euo pipefail
python=${1:-python3}
sudo=$([ "$(id -u)" = 0 ] || echo sudo)
need=()
command -v node >/dev/null || need+=(nodejs)
command -v chromium >/dev/null || need+=(chromium)
if [ ${#need[@]} -gt 0 ]; then
    $sudo apt-get update -qq
    DEBIAN_FRONTEND=noninteractive $sudo apt-get install -y -qq --no-install-recommends "${need[@]}" \
        fonts-dejavu-core >/dev/null
fi
"$python" -m pip install --quiet --disable-pip-version-check "playwright>=1.40" "axe-playwright-python>=0.1.4"
