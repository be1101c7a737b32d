#!/bin/bash
# The tests that need what few machines have: AppArmor, SELinux, an older kernel (6.1) that nothing but Debian has chosen,
# every controller on cgroup v2, systemd as PID 1 with mounts that are shared, a user session. They run
# in a virtual machine that is booted once with cgroup v2 and once with v1. Beside the tests of cgroups
# these are the integration tests, but for those that need engines or take long.
set -euo pipefail
cd "$(dirname "$0")/.."
target=x86_64-unknown-linux-musl
rustup target add "$target" >/dev/null 2>&1 || true
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
# The executables, by the names that cargo tells.
executables() {
    cargo test --locked --no-run --target "$target" "$@" 2>&1 | tee /dev/stderr |
        sed -n 's/.*Executable.* (\(.*\))$/\1/p'
}
executables --test cgroups_kernel --test cgroups_systemd | while read -r file; do
    name=$(basename "$file")
    strip -o "$work/${name%-*}" "$file"
done
# The integration tests find the programs, and the pages that they hold to their word, where they were built.
tree=$work/tree$PWD
mkdir -p "$tree/target/$target/debug/deps" "$tree/integration"
executables --package dhow-integration | while read -r file; do
    case ${file##*/} in
    crash-* | crowd-* | engines-* | shim* | cri-* | pull-* | readme-* | library-*) ;;
    payload-*) ;;
    *) strip -o "$tree/$file" "$file" ;;
    esac
done
strip -o "$tree/target/$target/debug/payload" "target/$target/debug/payload"
cp -r bin docs README.md man "$tree/"
tar -C "$work/tree" -cf "$work/tree.tar" .
# /tmp is a disk there: tmpfs has neither idmapped mounts nor the users' own attributes before 6.6.
truncate -s 1G "$work/disk" && mkfs.ext4 -q -O ^has_journal "$work/disk" && gzip -1 "$work/disk"
cat >"$work/guest" <<GUEST
export RUST_BACKTRACE=0 DHOW_SLOWER=5
status=0
run() { echo "== \$*"; "\$@" || status=1; }
run ./cgroups_kernel --test-threads=1
run ./cgroups_systemd --test-threads=1
for i in \$(seq 150); do [ -S /run/user/1000/systemd/private ] && break; sleep 0.2; done
run runuser -u u1 -- env XDG_RUNTIME_DIR=/run/user/1000 ./cgroups_systemd --test-threads=1
mkdir /disk && mount -t tmpfs -o size=4g tmpfs /disk && zcat disk.gz | dd of=/disk/disk bs=64k conv=sparse status=none
mount -o loop /disk/disk /tmp && chmod 1777 /tmp || status=1
tar -C / -xf tree.tar && cd "$PWD/integration" || exit 1
mounts() { cut -d' ' -f5 /proc/self/mountinfo | sort; }
before=\$(mounts)
for test in "$PWD/target/$target"/debug/deps/*; do
    run timeout 900 "\$test" --test-threads=2
    [ "\$before" = "\$(mounts)" ] || { echo "\$test changed the mounts of the host"; mounts; exit 1; }
done
left=\$(find /sys/fs/cgroup -name 'dhow-test-*' -o -name 'dhowtest*')
[ -z "\$left" ] || { echo "left behind: \$left"; status=1; }
exit \$status
GUEST
status=0
# Debian's kernel has AppArmor unless another module is chosen.
for layout in ${LAYOUTS:-1 0}; do
    module=
    [ "$layout" = 1 ] || module="security=selinux selinux=1"
    echo "=== systemd.unified_cgroup_hierarchy=$layout"
    MEM=6144 LIMIT=5400 CMDLINE="systemd.unified_cgroup_hierarchy=$layout $module" integration/vm.sh run \
        "$work/guest" "$work/cgroups_kernel" "$work/cgroups_systemd" "$work/tree.tar" "$work/disk.gz" || status=1
done
exit $status
