#!/bin/sh
# Runs a command with another cgroup layout than the machine's.
#
#   layout.sh v1 CMD…       only the v1 hierarchies
#   layout.sh v2 CMD…       only cgroup2, at /sys/fs/cgroup
#   layout.sh hybrid CMD…   the v1 hierarchies, and cgroup2 at /sys/fs/cgroup/unified
#
# The hierarchies themselves are the machine's (a controller that v1 holds is not in v2);
# only what is mounted changes, in a mount namespace that ends with the command.
set -eu

layout=${1:?v1, v2 or hybrid}
shift
[ "${DHOW_LAYOUT_INSIDE-}" = yes ] ||
    DHOW_LAYOUT_INSIDE=yes exec unshare --mount --propagation private "$0" "$layout" "$@"
unset DHOW_LAYOUT_INSIDE

# Before the mounts go: which v1 hierarchies there are, as "mount point's name" and "options".
hierarchies=$(awk '$(NF-2) == "cgroup" && $5 ~ "^/sys/fs/cgroup/" {
    options = $NF; gsub(/(^|,)r[wo](,|$)/, "", options); n = split($5, p, "/"); print p[n], options }' /proc/self/mountinfo)

umount -R /sys/fs/cgroup
if [ "$layout" = v2 ]; then
    mount -t cgroup2 -o nosuid,nodev,noexec cgroup2 /sys/fs/cgroup
    export DHOW_LAYOUT=v2
    exec "$@"
fi
[ -n "$hierarchies" ] || { echo "layout.sh: this machine has no v1 hierarchy" >&2; exit 1; }
mount -t tmpfs -o mode=755 tmpfs /sys/fs/cgroup
printf '%s\n' "$hierarchies" | while read -r name options; do
    mkdir "/sys/fs/cgroup/$name"
    mount -t cgroup -o "$options" cgroup "/sys/fs/cgroup/$name"
done
if [ "$layout" = hybrid ]; then
    mkdir /sys/fs/cgroup/unified
    mount -t cgroup2 cgroup2 /sys/fs/cgroup/unified
fi
export DHOW_LAYOUT="$layout"
exec "$@"
