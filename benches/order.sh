#!/bin/sh
# Makes .ci/order.txt anew: the functions that the common commands run, in the order of their first use.
# A build with symbols is stepped through, once with each cgroup layout; some minutes.
set -eu
cd "$(dirname "$0")/.."
if [ $# = 0 ]; then
    work=$(mktemp -d)
    trap 'rm -rf "$work"' EXIT
    CARGO_PROFILE_RELEASE_STRIP=none DHOW_TARGET=x86_64-unknown-linux-musl \
        .ci/cargo build --locked --release --package dhow --bin dhow --target-dir target/order
    ${CC:-cc} -O2 -o "$work/step" benches/step.c
    program=$PWD/target/order/x86_64-unknown-linux-musl/release/dhow
    mkdir -p "$work/b/rootfs/bin" "$work/b/rootfs/proc" "$work/b/rootfs/sys" "$work/b/rootfs/dev" "$work/volume"
    cp "$(command -v busybox)" "$work/b/rootfs/bin/sh"
    ln "$work/b/rootfs/bin/sh" "$work/b/rootfs/bin/sleep"
    "$program" spec --bundle "$work/b"
    python3 - "$work" <<'PY'
import json, sys
path = sys.argv[1] + "/b/config.json"
config = json.load(open(path))
config["process"].update(terminal=False, args=["/bin/sleep", "100"])
config["mounts"].append({"destination": "/data", "type": "bind", "source": sys.argv[1] + "/volume",
                         "options": ["rbind", "rprivate"]})
device = {"allow": True, "type": "c", "major": 1, "minor": 3, "access": "rwm"}
config["linux"]["resources"] = {
    "devices": [{"allow": False, "access": "rwm"}, device], "memory": {"limit": 1 << 28},
    "pids": {"limit": 100}, "cpu": {"shares": 512, "quota": 100000, "period": 100000}}
calls = {"names": ["acct", "bpf", "mount", "reboot"], "action": "SCMP_ACT_ERRNO"}
config["linux"]["seccomp"] = {"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [calls]}
json.dump(config, open(sys.argv[1] + "/limited.json", "w"))
# For a cgroup2 mount without these controllers.
for limit in ["memory", "pids", "cpu"]:
    del config["linux"]["resources"][limit]
json.dump(config, open(sys.argv[1] + "/unlimited.json", "w"))
PY
    for layout in v1 v2; do integration/layout.sh $layout "$0" "$work" "$program"; done
    python3 - "$work/addresses" "$program" .ci/order.txt <<'PY'
import bisect, re, subprocess, sys
table = subprocess.run(["nm", "-n", "--defined-only", sys.argv[2]], capture_output=True, text=True, check=True).stdout
symbols = [line.split() for line in table.splitlines() if re.search(r" [tTwW] ", line)]
starts = [int(symbol[0], 16) for symbol in symbols]

def plain(name):
    """As .ci/cc has it."""
    crate = re.search(r"Cs[0-9A-Za-z]+_(\d+)([a-z_0-9]+)$", name)
    if crate and len(crate[2]) == int(crate[1]):
        name = name[:crate.start()]
    return re.sub(r"Cs[0-9A-Za-z]+_", "C", name)

names = {}
for line in open(sys.argv[1]):
    at = bisect.bisect_right(starts, int(line, 16)) - 1
    if at >= 0:
        names.setdefault(plain(symbols[at][2]))
open(sys.argv[3], "w").write("\n".join(names) + "\n")
print(len(names), "functions")
PY
    exit
fi
work=$1 program=$2
config=limited controllers=/sys/fs/cgroup/cgroup.controllers
if [ -e $controllers ] && ! grep -q memory $controllers; then config=unlimited; fi
cp "$work/$config.json" "$work/b/config.json"
# On one processor: each step is a switch to the tracer and back.
dhow() { timeout 600 taskset -c 0 "$work/step" "$work/addresses" "$program" --root "$work/state" "$@" >/dev/null 2>&1 </dev/null; }
# The tracer of a create stays until the init has become the payload.
dhow create --bundle "$work/b" a &
created=$!
until "$program" --root "$work/state" state a 2>/dev/null | grep -q '"status": "created"'; do
    kill -0 $created
    sleep 0.2
done
dhow start a
wait $created
dhow state a
dhow exec a /bin/sh -c true
dhow list
dhow pause a
dhow resume a
dhow kill a KILL
sleep 1
dhow delete a
dhow run --detach --bundle "$work/b" b
dhow delete --force b
sed -i 's/"100"/"0.1"/' "$work/b/config.json"
dhow run --bundle "$work/b" c
