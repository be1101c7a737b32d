#!/bin/sh
# Shows an image's way to a container, and a container's whole life. Each command is shown before it
# runs.
#
#   demo.sh [DHOW]
set -eu
# What fails on purpose says so on stderr: one stream keeps the order.
exec 2>&1

dhow=$(realpath "${1:-bin/dhow}")
id=dhow-demo-$$
work=$(mktemp -d /tmp/dhow-demo.XXXXXX)
chmod 755 "$work"
bundle=$work/bundle

clean_up() {
    "$dhow" --root "$work/state" delete --force "$id" 2>/dev/null || true
    rm -rf --one-file-system "$work"
}
trap clean_up EXIT

if [ -t 1 ]; then bold=$(printf '\033[1m') dim=$(printf '\033[2m') plain=$(printf '\033[0m'); else bold= dim= plain=; fi

title() { printf '\n%s%s%s\n' "$bold" "$*" "$plain"; }
# Shows the command as one would type it, then runs it.
show() {
    printf '%s$ %s%s\n' "$dim" "$*" "$plain"
    "$@"
}
# The same for dhow, with the demo's own state directory left out of what is shown.
run() {
    printf '%s$ dhow %s%s\n' "$dim" "$*" "$plain"
    "$dhow" --root "$work/state" "$@" </dev/null
}
# For commands that must fail.
refused() {
    if run "$@"; then echo "demo: this should have been refused" >&2; exit 1; fi
}
# Waits until the container has this status.
until_it_is() {
    tries=0
    until "$dhow" --root "$work/state" state "$id" | grep -q "\"status\": *\"$1\""; do
        tries=$((tries + 1))
        [ "$tries" -lt 100 ] || { echo "demo: the container never became $1" >&2; exit 1; }
        sleep 0.1
    done
}

title "1. An image of three layers, as docker save writes it; the last takes a file of the second away"
layers=$work/layers
mkdir -p "$layers/1/bin" "$layers/1/etc" "$layers/2/etc" "$layers/3/etc"
cp "$(command -v busybox)" "$layers/1/bin/busybox"
"$layers/1/bin/busybox" --list | while read -r applet; do
    [ "$applet" = busybox ] || ln -s busybox "$layers/1/bin/$applet"
done
echo "root:x:0:0:root:/root:/bin/sh" >"$layers/1/etc/passwd"
echo "hello from the second layer" >"$layers/2/etc/greeting"
echo "a secret that should not have been here" >"$layers/2/etc/secret"
: >"$layers/3/etc/.wh.secret"
echo "hello from the third layer" >"$layers/3/etc/greeting"
diffs= names=
for number in 1 2 3; do
    tar -C "$layers/$number" --sort=name --owner=0 --group=0 --numeric-owner -cf "$layers/$number.tar" .
    sum=$(sha256sum "$layers/$number.tar")
    diffs="$diffs${diffs:+,}\"sha256:${sum%% *}\"" names="$names${names:+,}\"$number.tar\""
done
cat >"$layers/config.json" <<JSON
{ "architecture": "$(uname -m | sed 's/x86_64/amd64/; s/aarch64/arm64/')", "os": "linux",
  "config": { "Env": ["PATH=/bin"], "Cmd": ["cat", "/etc/greeting"], "WorkingDir": "/work" },
  "rootfs": { "type": "layers", "diff_ids": [$diffs] },
  "history": [ { "created_by": "busybox" }, { "created_by": "a greeting and a secret" },
               { "created_by": "another greeting, no secret" } ] }
JSON
echo "[{\"Config\":\"config.json\",\"RepoTags\":[\"demo:1\"],\"Layers\":[$names]}]" >"$layers/manifest.json"
tar -C "$layers" -cf "$work/demo.tar" manifest.json config.json 1.tar 2.tar 3.tar
show tar tf "$work/demo.tar"

title "2. Imported: every digest is checked, and each layer is unpacked once"
run image import "$work/demo.tar"
run image ls
run image history demo:1

title "3. Run: the layers and a writable one on top, with no engine"
run run --image demo:1
run run --image demo:1 --memory 64m --hostname box -- sh -c 'echo "$(hostname), $(pwd), $(id -un)"; ls /etc'

title "4. A file is changed: what the container has done to its image"
run run --keep --image demo:1 "$id" -- sh -c 'echo "hello from a commit" >/etc/greeting; rm /bin/vi; mkdir /new'
run diff "$id"

title "5. The change becomes an image, and runs"
run commit -m "another greeting" -c 'ENV FROM=commit' "$id" demo:2
run delete "$id"
run image history demo:2
run run --image demo:2

title "6. A bundle: a root file system with busybox in it, and config.json"
mkdir -p "$bundle/rootfs/bin"
cp "$(command -v busybox)" "$bundle/rootfs/bin/busybox"
"$bundle/rootfs/bin/busybox" --list | while read -r applet; do
    [ "$applet" = busybox ] || ln -s busybox "$bundle/rootfs/bin/$applet"
done
cat >"$bundle/config.json" <<JSON
{
  "ociVersion": "1.2.0",
  "process": {
    "user": { "uid": 0, "gid": 0 },
    "args": ["sh", "-c", "echo \"in the container: pid \$\$ on \$(hostname)\"; trap 'echo bye; exit 3' TERM; while :; do sleep 0.1; done"],
    "env": ["PATH=/bin", "HOME=/"],
    "cwd": "/",
    "capabilities": { "bounding": ["CAP_KILL"], "effective": ["CAP_KILL"], "permitted": ["CAP_KILL"] },
    "noNewPrivileges": true
  },
  "root": { "path": "rootfs", "readonly": true },
  "hostname": "demo",
  "mounts": [
    { "destination": "/proc", "type": "proc", "source": "proc" },
    { "destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755", "size=64k"] },
    { "destination": "/dev/pts", "type": "devpts", "source": "devpts", "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666"] },
    { "destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["nosuid", "noexec", "nodev", "ro"] },
    { "destination": "/tmp", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "nodev", "size=1m"] }
  ],
  "linux": {
    "cgroupsPath": "/$id",
    "resources": { "memory": { "limit": 67108864 }, "pids": { "limit": 50 } },
    "namespaces": [
      { "type": "pid" }, { "type": "network" }, { "type": "ipc" },
      { "type": "uts" }, { "type": "mount" }, { "type": "cgroup" }
    ],
    "maskedPaths": ["/proc/kcore", "/proc/keys", "/sys/firmware"],
    "readonlyPaths": ["/proc/sys", "/proc/irq"]
  }
}
JSON
show ls "$bundle" "$bundle/rootfs/bin/busybox"

title "7. create: namespaces, mounts and limits are made; the command waits"
printf '%s$ dhow create --bundle %s %s >output%s\n' "$dim" "$bundle" "$id" "$plain"
"$dhow" --root "$work/state" create --bundle "$bundle" "$id" >"$work/output" 2>&1 </dev/null ||
    { cat "$work/output"; exit 1; }
run state "$id"

title "8. start: now the command runs"
run start "$id"
run list
# What it prints goes into the file that create was given as stdout, as under an engine.
until [ -s "$work/output" ]; do sleep 0.05; done
show cat "$work/output"

title "9. exec: another process in the same container"
run exec "$id" ps
run exec --env GREETING=hello --cwd /tmp "$id" sh -c 'echo "$GREETING from $(pwd)"'
refused exec "$id" touch /nothing-may-be-written-here

title "10. pause and resume: frozen, then going on"
run pause "$id"
run state "$id"
run resume "$id"

title "11. a running container is not deleted by mistake"
refused delete "$id"

title "12. kill: the command gets SIGTERM, and says bye"
run kill "$id" TERM
until_it_is stopped
run state "$id"
show cat "$work/output"

title "13. delete: nothing is left"
run delete "$id"
refused state "$id"

title "14. run: all of it in one command, with the payload's exit status"
sed 's/"args": .*/"args": ["sh", "-c", "echo hello from pid $$; exit 7"],/' "$bundle/config.json" >"$work/config.json"
mv "$work/config.json" "$bundle/config.json"
status=0
run run --bundle "$bundle" "$id" || status=$?
printf 'exit status: %s\n' "$status"
[ "$status" = 7 ]

left=$(find /sys/fs/cgroup -maxdepth 3 -name "$id" 2>/dev/null; grep "$work" /proc/self/mountinfo || true)
[ -z "$left" ] || { printf 'demo: left behind:\n%s\n' "$left" >&2; exit 1; }
title "Done: no process, no mount and no cgroup is left."
