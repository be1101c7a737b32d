#!/bin/bash
# The tests that need what few machines have: every controller on cgroup v2, systemd as PID 1, a
# user session. They run in a virtual machine that is booted once with cgroup v2 and once with v1.
set -euo pipefail
cd "$(dirname "$0")/.."
target=x86_64-unknown-linux-musl
rustup target add "$target" >/dev/null 2>&1 || true
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
# The executables, by the names that cargo tells.
cargo test --no-run --target "$target" --test cgroups_kernel --test cgroups_systemd 2>&1 |
    tee /dev/stderr | sed -n 's/.*Executable.* (\(.*\))$/\1/p' | while read -r file; do
    name=$(basename "$file")
    strip -o "$work/${name%-*}" "$file"
done
cat >"$work/guest" <<'GUEST'
export RUST_BACKTRACE=0
status=0
run() { echo "== $*"; "$@" --test-threads=1 || status=1; }
run ./cgroups_kernel
run ./cgroups_systemd
for i in $(seq 150); do [ -S /run/user/1000/systemd/private ] && break; sleep 0.2; done
run runuser -u u1 -- env XDG_RUNTIME_DIR=/run/user/1000 ./cgroups_systemd
left=$(find /sys/fs/cgroup -name 'dhow-test-*' -o -name 'dhowtest*')
[ -z "$left" ] || { echo "left behind: $left"; status=1; }
exit $status
GUEST
status=0
for layout in 1 0; do
    echo "=== systemd.unified_cgroup_hierarchy=$layout"
    CMDLINE=systemd.unified_cgroup_hierarchy=$layout integration/vm.sh run \
        "$work/guest" "$work/cgroups_kernel" "$work/cgroups_systemd" || status=1
done
exit $status
