#!/usr/bin/env bash
# Installs, on Debian and its kin, the packages that no Python requirement brings: a browser, for what shows the UI.
# Does nothing if it is there. Asks nothing; needs root, or sudo.
set -euo pipefail

if [[ ${1:-} == --help ]]; then
	echo "usage: scripts/debian-packages.sh  (installs chromium with apt-get, if no Chromium is on the PATH)"
	exit 0
fi

for name in chromium chromium-browser google-chrome; do
	if found=$(command -v "$name"); then
		echo "debian-packages: $found is there; nothing to do"
		exit 0
	fi
done

if ! command -v apt-get >/dev/null; then
	echo "debian-packages: there is no apt-get here: install Chromium with this system's package manager" >&2
	exit 1
fi

as_root=()
if [[ $(id -u) -ne 0 ]]; then
	if ! command -v sudo >/dev/null; then
		echo "debian-packages: installing chromium needs root, and there is no sudo: run as root: apt-get install chromium" >&2
		exit 1
	fi
	as_root=(sudo --)
fi

echo "debian-packages: installing chromium with apt-get (some 300 MB on the disk, a minute or two) …"
"${as_root[@]}" apt-get update -qq
"${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends chromium
echo "debian-packages: $(command -v chromium)"
