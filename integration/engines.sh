#!/bin/sh
# Tries every engine on bin/dhow and prints the table engine x feature; with --write, also into
# docs/engines.md. Ends with 1 if something failed. The engines come with `integration/peers.sh engines`
# and `docker`; one that is not there has no column.
set -eu
cd "$(dirname "$0")"
P=${DHOW_PEERS:-/var/tmp/dhow-peers}
D=$(mktemp -d /tmp/dhow-engines.XXXXXX)
trap 'rm -rf "$D"' EXIT
failed=0
# try COLUMN SUFFIX PROGRAM SCRIPT WORDS…
try() {
    column=$1 suffix=$2 program=$3
    shift 3
    [ -x "$program" ] || { echo "there is no $program" >&2; return 0; }
    echo "== engines/$*" >&2
    engines/"$@" </dev/null >"$D/$column" 2>&1 || { failed=1; echo "engines/$* has failed" >&2; }
    sed -n "s/^engine \(.*\)/\1$suffix/p" "$D/$column" >"$D/$column.name"
    grep '^FAIL\|^skip' "$D/$column" >&2 || true
}
sid=$P/sid/usr
try 1 "" $sid/sbin/dockerd docker.sh sid path
try 2 " by the shim" $sid/sbin/dockerd docker.sh sid shim
try 3 "" $P/docker-stable/usr/sbin/dockerd docker.sh stable path
try 4 "" $sid/bin/podman podman.sh sid
try 5 "" "$(command -v podman || true)" podman.sh stable
try 6 " by the shim" "$(command -v containerd || true)" containerd.sh stable shim
try 7 " by the shim" $P/trixie/usr/bin/containerd containerd.sh trixie shim
try 8 " by the shim" $sid/bin/containerd containerd.sh sid shim
try 9 "" "$(command -v containerd || true)" containerd.sh stable path
try 10 "" $P/trixie/usr/bin/containerd containerd.sh trixie path
try 11 "" $sid/bin/containerd containerd.sh sid path
# One column for each, one row for each feature, in the order in which they came.
columns=$(cd "$D" && ls *.name | sort -n | sed 's/\.name//')
{
    printf '| feature |'; for c in $columns; do printf ' %s |' "$(cat "$D/$c.name")"; done; echo
    printf '|---|'; for c in $columns; do printf -- '---|'; done; echo
    (cd "$D" && awk '
        $1 == "ok" || $1 == "FAIL" || $1 == "skip" {
            if (!($2 in known)) { known[$2] = 1; names[++count] = $2 }
            said[$2, FILENAME] = $1 == "ok" ? "yes" : $1 == "FAIL" ? "NO" : "skipped"
        }
        END {
            for (n = 1; n <= count; n++) {
                line = "| " names[n] " |"
                for (f = 1; f < ARGC; f++) line = line " " ((names[n], ARGV[f]) in said ? said[names[n], ARGV[f]] : "") " |"
                print line
            }
        }' $columns)
} >"$D/table"
cat "$D/table"
if [ "${1-}" = --write ]; then
    awk -v table="$D/table" '
        /<!-- the end of the table/ { skips = 0 }
        !skips { print }
        /<!-- the table/ { skips = 1; while ((getline line < table) > 0) print line }' ../docs/engines.md >"$D/page"
    cp "$D/page" ../docs/engines.md
fi
exit $failed
