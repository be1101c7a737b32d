#!/bin/bash
# Runs runc's own integration suite (bats) against dhow, or against any runtime with runc's
# command line, and compares the outcome with what is expected.
#
#   conformance.sh [--runtime PATH] [--expected LIST] [--prepare | --fast | FILE.bats…]
#
# With files, only those are run; --fast is for CI: all but what needs criu or waits for events;
# --prepare only sees to it that the suite is there. The suite is Debian's source package of runc, unpacked and
# built in the sid folder of peers.sh; nothing of it is kept here. One line per test is
# printed, then a summary. The exit status is 0 when every test that does not pass is in the
# list (integration/conformance.expected: result, file, name, reason, with tabs between) and
# every test in the list still does not pass.
#
# The suite runs in mount, net, ipc and cgroup namespaces of its own, with pivot_root into the
# folder: in a plain chroot the kernel refuses user namespaces. Its cgroups are children that
# are removed at the end, so that nothing is left for the next run to trip over.
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
peers=$here/peers.sh
sid=$("$peers" path)
work=$sid/conformance
runtime=$here/../bin/dhow
expected=$here/conformance.expected
limit=${DHOW_CONFORMANCE_TIMEOUT:-1500}

say() { printf '[conformance] %s\n' "$*" >&2; }
die() { say "$*"; exit 1; }

# What must be there once: the source, its helper programs, the images.
prepare() {
    "$peers" conformance
    mkdir -p "$work"
    exec 8>"$work/lock"
    flock 8
    [ -e "$work/.source" ] || fetch
    [ -e "$work/.helpers" ] || build_helpers
    [ -e "$work/.images" ] || make_images
    exec 8>&-
}

fetch() {
    say "source of runc"
    rm -rf "$work"/runc*
    "$peers" run sh -c 'cd /conformance && apt-get -qq -o APT::Sandbox::User=root source runc' \
        >"$work/fetch.log" 2>&1 </dev/null || { tail "$work/fetch.log" >&2; die "no source"; }
    ln -s "$(cd "$work" && echo runc-*/)" "$work/runc"
    touch "$work/.source"
}

# Debian's libraries are a GOPATH; the source has to stand in one too.
build_helpers() {
    say "the suite's helper programs"
    "$peers" run bash -eu -c '
        cd /conformance
        mkdir -p go/src/github.com/opencontainers
        ln -sfn /conformance/runc go/src/github.com/opencontainers/runc
        cd go/src/github.com/opencontainers/runc
        export GO111MODULE=off GOPATH=/conformance/go:/usr/share/gocode GOFLAGS=-buildvcs=false
        export GOCACHE=/conformance/cache HOME=/root
        mkdir -p tests/cmd/_bin
        for helper in tests/cmd/*/; do
            case $helper in */_bin/) continue ;; esac
            go build -p 2 -tags seccomp -o tests/cmd/_bin/ "./$helper"
        done' >"$work/helpers.log" 2>&1 </dev/null ||
        { tail "$work/helpers.log" >&2; die "the helpers do not build"; }
    touch "$work/.helpers"
}

# The suite downloads its two images when they are not in testdata.
make_images() {
    say "the suite's images"
    "$peers" run bash -eu -c '
        data=/conformance/runc/tests/integration/testdata
        cd /conformance
        rm -rf busybox
        mkdir -p busybox/{bin,dev,etc,home,root,tmp,usr/bin,usr/sbin,var}
        chmod 1777 busybox/tmp
        cp /bin/busybox busybox/bin/busybox
        for applet in $(busybox --list); do
            [ "$applet" = busybox ] || ln busybox/bin/busybox "busybox/bin/$applet"
        done
        printf "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/home:/bin/false\n" \
            >busybox/etc/passwd
        printf "root:x:0:\ndaemon:x:1:\nnogroup:x:65534:\n" >busybox/etc/group
        arch=$(go env GOARCH)
        tar -C busybox -cf - . | xz -0 >"$data/busybox-$arch.tar.xz"
        xz -0 -T2 <&3 >"$data/debian-$arch.tar.xz"
        rm -rf busybox' >"$work/images.log" 2>&1 </dev/null 3<"$sid.base.tar" ||
        { tail "$work/images.log" >&2; die "no images"; }
    touch "$work/.images"
}

# A child in every hierarchy, so that the cgroup namespace starts there.
enter_cgroups() {
    local mount
    while read -r mount; do
        mkdir -p "$mount/$group"
        case $mount in */cpuset)
            cat "$mount/cpuset.cpus" >"$mount/$group/cpuset.cpus"
            cat "$mount/cpuset.mems" >"$mount/$group/cpuset.mems" ;;
        esac
        echo $BASHPID >"$mount/$group/cgroup.procs"
    done < <(hierarchies)
}

hierarchies() { awk '$(NF-2) ~ /^cgroup2?$/ && $5 ~ "^/sys/fs/cgroup" { print $5 }' /proc/self/mountinfo; }

leave_cgroups() {
    local mount try pid
    while read -r mount; do
        for try in 1 2 3; do
            while read -r pid; do kill -KILL "$pid" 2>/dev/null || true; done \
                < <(find "$mount/$group" -name cgroup.procs -exec cat {} + 2>/dev/null)
            find "$mount/$group" -depth -type d -exec rmdir {} + 2>/dev/null || true
            [ -d "$mount/$group" ] || break
            sleep 0.3
        done
    done < <(hierarchies)
}

# Runs inside the namespaces: makes the folder the root, and starts bats under a terminal.
inside() {
    local name options
    mount --rbind "$sid" "$sid"
    cd "$sid"
    mount --rbind /dev dev
    mount -t proc proc proc
    mount -t sysfs sysfs sys
    mount -t tmpfs tmpfs run
    mount -t tmpfs tmpfs tmp
    mkdir -p run/lock tmp/bats
    # The hierarchies again, as this cgroup namespace sees them.
    if [ "$layout" = v2 ]; then
        mount -t cgroup2 cgroup2 sys/fs/cgroup
    else
        mount -t tmpfs -o mode=755 tmpfs sys/fs/cgroup
        awk '$(NF-2) == "cgroup" && $5 ~ "^/sys/fs/cgroup/" {
            o = $NF; gsub(/(^|,)r[wo](,|$)/, "", o); n = split($5, p, "/"); print p[n], o }' \
            /proc/self/mountinfo | while read -r name options; do
            mkdir "sys/fs/cgroup/$name"
            mount -t cgroup -o "$options" cgroup "sys/fs/cgroup/$name"
        done
        mkdir sys/fs/cgroup/unified
        mount -t cgroup2 cgroup2 sys/fs/cgroup/unified
    fi
    ip link set lo up
    mkdir -p run/runtime .old
    cp "$runtime" "run/runtime/$(basename "$runtime")"
    pivot_root . .old
    # shellcheck disable=SC2093 # the shell of the host must not go on
    exec /bin/bash -c '
        cd /
        umount -l /.old && rmdir /.old
        export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root
        export LC_ALL=C.UTF-8 TMPDIR=/tmp RUNC=/run/runtime/$1
        unset XDG_RUNTIME_DIR
        cd /conformance/runc/tests/integration
        shift
        # A test of a failed restore waits for the end of a pipe that a container holds open.
        while sleep 10; do
            ps -C cat -o pid=,etimes=,ppid= | while read -r pid age parent; do
                if [ "$age" -gt 30 ] && grep -qs bats-exec-test "/proc/$parent/cmdline"; then kill "$pid"; fi
            done
        done &
        # A terminal that never ends: script(1) types a character into one that does.
        mkfifo /run/keyboard
        exec 3<>/run/keyboard
        for file in "$@"; do
            echo "# file $file"
            # One limit for a file: with BATS_TEST_TIMEOUT, bats waits for that long after each.
            script -qefc "timeout 180 bats --formatter tap --timing $file" /dev/null <&3 3>&- || true
        done' \
        bash "$(basename "$runtime")" "${files[@]}"
}

# What bats says, as "result<TAB>file<TAB>name".
results() {
    tr -d '\r' <"$1" | awk '
        # A file that ran into its limit has told of fewer tests than it has.
        function lost() { if (file != "" && told != planned) print "lost\t" file "\t" (planned - told) " of its tests" }
        /^# file / { lost(); file = $3; planned = told = 0 }
        /^1\.\.[0-9]+$/ { planned = substr($0, 4) }
        END { lost() }
        /^(ok|not ok) [0-9]+ / {
            told++
            result = /^ok/ ? "pass" : "fail"
            line = $0
            sub(/^(not )?ok [0-9]+ /, "", line)
            if (match(line, / # skip/)) { result = "skip"; line = substr(line, 1, RSTART - 1) }
            sub(/ # timeout after .*$/, "", line)
            sub(/ in [0-9]+(ms|sec)$/, "", line)
            print result "\t" file "\t" line
        }'
}

compare() {
    local list=$1
    awk -F '\t' -v expected="$expected" -v partial="$partial" -v fast="$fast" '
        BEGIN {
            while ((getline line < expected) > 0) {
                if (line ~ /^#/ || line == "") continue
                split(line, f, "\t"); want[f[2] "\t" f[3]] = f[1]; why[f[2] "\t" f[3]] = f[4]
            }
        }
        {
            key = $2 "\t" $3; n[$1]++; seen[key] = 1
            # That one passes which did not before is no reason for CI to fail.
            if ($1 != (key in want ? want[key] : "pass") && !(fast && $1 == "pass")) {
                news[++count] = $1 "\t" key (key in want ? "\t(expected: " want[key] ")" : "")
            }
        }
        END {
            printf "\n%d tests: %d pass, %d fail, %d skipped\n", NR, n["pass"], n["fail"], n["skip"]
            if (!partial) for (key in want) if (!(key in seen)) news[++count] = "gone\t" key
            for (i = 1; i <= count; i++) print "unexpected: " news[i]
            if (!NR || count) exit 1
            print "as expected"
        }' "$list"
}

partial='' fast='' only_prepare='' files=()
while [ $# -gt 0 ]; do
    case $1 in
    --runtime) runtime=$(realpath "$2"); shift 2 ;;
    --expected) expected=$2; shift 2 ;;
    --fast) fast=yes; partial=yes; shift ;;
    --prepare) only_prepare=yes; shift ;;
    -*) sed -n '2,15s/^# \{0,1\}//p' "$0" >&2; exit 2 ;;
    *) files+=("$1"); partial=yes; shift ;;
    esac
done
[ "$(id -u)" = 0 ] || die "needs root"
[ -x "$runtime" ] || die "$runtime is not there"
prepare
[ -z "$only_prepare" ] || exit 0
[ -z "$fast" ] || mapfile -t files < <(cd "$work/runc/tests/integration" && printf '%s\n' *.bats |
    grep -vxF -e checkpoint.bats -e events.bats)
[ ${#files[@]} -gt 0 ] || mapfile -t files < <(cd "$work/runc/tests/integration" && printf '%s\n' *.bats)

group=dhow-conformance-$$
layout=v1
[ "$(stat -f -c %T /sys/fs/cgroup)" = cgroup2fs ] && layout=v2
tap=$(mktemp) list=$(mktemp)
trap 'leave_cgroups; rm -f "$tap" "$list"' EXIT

export group layout sid runtime
(
    enter_cgroups
    export -f inside
    # shellcheck disable=SC2016
    exec timeout --kill-after=10 "$limit" unshare --mount --net --ipc --cgroup --pid --fork --kill-child \
        --propagation private bash -euo pipefail -c 'files=("$@"); inside' bash "${files[@]}"
) >"$tap" 2>&1 </dev/null || true
[ -z "${DHOW_CONFORMANCE_TAP-}" ] || cp "$tap" "$DHOW_CONFORMANCE_TAP"

results "$tap" >"$list"
[ -s "$list" ] || { tail -n 20 "$tap" >&2; die "the suite did not run"; }
cat "$list"
compare "$list"
