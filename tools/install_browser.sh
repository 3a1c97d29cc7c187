#!/usr/bin/env bash
# The tests of the web pages drive a real Chromium. Debian and Ubuntu have it as packages; does nothing where it is already there.
set -euo pipefail

if command -v chromedriver >/dev/null && { command -v chromium >/dev/null || command -v google-chrome >/dev/null; }; then
  exit 0
fi
if ! command -v apt-get >/dev/null; then
  echo "error: the tests of the web pages need chromium and chromedriver; install them with your system's package manager" >&2
  exit 1
fi
as_root=()
if [ "$(id -u)" -ne 0 ]; then
  as_root=(sudo)
fi
echo "installing chromium and chromium-driver for the tests of the web pages"
"${as_root[@]}" apt-get update -qq
DEBIAN_FRONTEND=noninteractive "${as_root[@]}" apt-get install -y -qq --no-install-recommends chromium chromium-driver >/dev/null
