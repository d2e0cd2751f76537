#!/usr/bin/env bash
# Installs, on Debian and its derivatives, the programs that tests use and that no Python requirement installs: a browser for
# the pages, and Prometheus for the alert rules. Installs only what is missing, and asks nothing. Needs root, or sudo.
#
# Debian's package of Prometheus starts a service on port 9090. This script prevents that: tests start their own.
set -euo pipefail

if [[ ${1:-} == --help ]]; then
	echo "usage: scripts/debian-packages.sh  (installs chromium and prometheus with apt-get, unless they are on the PATH)"
	exit 0
fi
if (($#)); then
	echo "debian-packages: there are no arguments, got: $*; see --help" >&2
	exit 2
fi

first_of() { # the path of the first of these programs that is on the PATH
	local name
	for name in "$@"; do
		command -v "$name" && return
	done
	return 1
}

missing=()
if found=$(first_of chromium chromium-browser google-chrome); then
	echo "debian-packages: $found is installed"
else
	missing+=(chromium)
fi
if first_of prometheus >/dev/null && found=$(first_of promtool); then
	echo "debian-packages: $(command -v prometheus) and $found are installed"
else
	missing+=(prometheus)
fi
if ((${#missing[@]} == 0)); then
	exit 0
fi

if ! command -v apt-get >/dev/null; then
	echo "debian-packages: there is no apt-get: install ${missing[*]} with this system's package manager" >&2
	exit 1
fi

as_root=()
if [[ $(id -u) -ne 0 ]]; then
	if ! command -v sudo >/dev/null; then
		echo "debian-packages: there is no sudo: run as root: apt-get install --no-install-recommends ${missing[*]}" >&2
		exit 1
	fi
	as_root=(sudo --)
fi

# Debian asks policy-rc.d whether a package may start its service. A file that the machine has already stays as it is.
policy=/usr/sbin/policy-rc.d
if [[ " ${missing[*]} " == *" prometheus "* && ! -e $policy ]]; then
	printf '#!/bin/sh\nexit 101\n' | "${as_root[@]}" tee "$policy" >/dev/null # 101: the action is not allowed
	"${as_root[@]}" chmod 755 "$policy"
	trap '"${as_root[@]}" rm -f "$policy"' EXIT
fi

echo "debian-packages: installing ${missing[*]} with apt-get (chromium takes 300 MB on the disk, prometheus 200 MB; a minute or two) …"
"${as_root[@]}" apt-get update -qq
"${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends "${missing[@]}"
if [[ " ${missing[*]} " == *" prometheus "* && -d /run/systemd/system ]]; then
	"${as_root[@]}" systemctl disable --now prometheus.service # nor after the next boot
fi
for package in "${missing[@]}"; do
	echo "debian-packages: $(command -v "$package")"
done
