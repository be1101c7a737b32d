#!/bin/sh
# Drives podman and buildah of the sid folder (integration/peers.sh engines) with dhow as their runtime,
# in mount and network namespaces of their own, and prints a line for each feature: "ok NAME" or "FAIL
# NAME exit code: what was said". Ends with 1 if one failed.
#
#   podman.sh
set -eu
cd "$(dirname "$0")"
. ./common.sh
enter podman.sh
mkdir -p /run/lock
make_image
doc_block podman.md toml 1 >containers.conf
# Its usual limits are higher than what a machine without CAP_SYS_RESOURCE may set.
cat >override.conf <<X
[engine]
cgroup_manager = "cgroupfs"
events_logger = "file"
[containers]
default_ulimits = ["nofile=1024:1024", "nproc=1024:1024"]
log_driver = "k8s-file"
X
printf '[storage]\ndriver = "vfs"\ngraphroot = "/mnt/root"\nrunroot = "/run/podman"\n' >storage.conf
export PODMAN_IGNORE_CGROUPSV1_WARNING=1 CONTAINERS_CONF=/mnt/containers.conf
export CONTAINERS_CONF_OVERRIDE=/mnt/override.conf CONTAINERS_STORAGE_CONF=/mnt/storage.conf
ENGINE=podman
t version '0:dhow' info --format '{{.Host.OCIRuntime.Name}}'
version=$(podman --version)
echo "engine Podman ${version##* }, Buildah $(buildah --version | cut -d' ' -f3)"
I=localhost/dhow-test:latest; N="--network none"
t load '0:*' load -q -i /mnt/image.tar
t run '0:hi' run --rm $N $I echo hi
t exitcode '7:*' run --rm $N $I sh -c 'exit 7'
t notfound '127:*' run --rm $N $I /no/such
t notexec '126:*' run --rm $N $I /etc
t run-d '0:*' run -d --name ca $N $I sh -c 'echo out; exec sleep 1000'
t exec '0:in' exec ca echo in
t exec-code '9:*' exec ca sh -c 'exit 9'
t exec-user '0:1000' exec -u 1000 ca sh -c 'id -u'
t top '0:*sleep*' top ca
t logs '0:out' logs ca
t stats '0:*' stats --no-stream ca
t pause '0:*' pause ca
t paused '0:paused' inspect -f '{{.State.Status}}' ca
t unpause '0:*' unpause ca
t update '0:*' update --memory 64m ca
t updated '0:67108864' exec ca cat /sys/fs/cgroup/memory/memory.limit_in_bytes
echo data >f
t cp '0:*' cp /mnt/f ca:/tmp/f
t cp-seen '0:data' exec ca cat /tmp/f
t commit '0:*' commit -q ca made
t stop '0:*' stop -t 1 ca
t exited '0:exited 137' inspect -f '{{.State.Status}} {{.State.ExitCode}}' ca
t restart '0:*' start ca
t kill '0:*' kill ca
t rm '0:*' rm -f -t 0 ca
t commit-run '0:data' run --rm $N made cat /tmp/f
t tmpfs '0:*tmpfs*' run --rm $N --tmpfs /tmp/x $I cat /proc/mounts
t read-only '1:*' run --rm $N --read-only $I sh -c 'echo x >/x'
t volume '0:data' run --rm $N -v /mnt/f:/etc/f:ro $I cat /etc/f
t named-volume '0:kept' run --rm $N -v vol:/v $I sh -c 'echo kept >/v/f; cat /v/f'
t user '0:5' run --rm $N -u 5 $I sh -c 'id -u'
t cap-drop '0:*0000000000000000*' run --rm $N --cap-drop all $I sh -c "$CAPS"
t seccomp '1:*' run --rm $N --security-opt seccomp=/mnt/deny.json $I mkdir /tmp/d
t limits '0:33554432*' run --rm $N -m 32m --cpus .5 --pids-limit 20 $I cat /sys/fs/cgroup/memory/memory.limit_in_bytes
t ulimit '0:77' run --rm $N --ulimit nofile=77 $I sh -c 'ulimit -n'
t device '0:*' run --rm $N --device /dev/zero:/dev/nothing $I ls -l /dev/nothing
t privileged '0:hi' run --rm $N --privileged $I echo hi
t oom '137:*' run --rm $N -m 16m --memory-swap 16m $I sh -c "$HOG"
t init '0:*init*' run --rm $N --init --init-path /usr/bin/docker-init $I cat /proc/1/cmdline
t health '0:*' run -d --name h $N --health-cmd 'test -e /up' --health-interval disable $I sleep 1000
t unhealthy '1:*' healthcheck run h
t exec-up '0:*' exec h touch /up
t healthy '0:*' healthcheck run h
t rm-health '0:*' rm -f -t 0 h
t restart-policy '0:*' run -d --name rr --restart on-failure:2 $N $I sh -c 'exit 4'
wait_for '2 4' inspect -f '{{.RestartCount}} {{.State.ExitCode}}' rr
t restarted '0:2 4' inspect -f '{{.RestartCount}} {{.State.ExitCode}}' rr
t rm-f '0:*' rm -f -t 0 rr
t host-net '0:hi' run --rm --network host $I echo hi
t userns '0:*100000*' run --rm $N --uidmap 0:100000:5000 --gidmap 0:100000:5000 $I cat /proc/self/uid_map
t exec-it '0:*/dev/pts/0*' run --rm -t $N $I sh -c 'ls -l /proc/self/fd/0'
t bridge '0:*' run -d --name net -p 8080:80 $I sh -c 'while :; do echo answer | nc -l -p 80; done'
t bridge-exec '0:*eth0*' exec net cat /proc/net/dev
t_own published 'answer' busybox nc 127.0.0.1 8080
t rm-bridge '0:*' rm -f -t 0 net
t pod '0:*' pod create --name pd --infra-command 'sleep 1000' --infra-image $I $N
t pod-run '0:hi' run --rm --pod pd $I echo hi
t pod-rm '0:*' pod rm -f -t 0 pd
if criu check >/dev/null 2>&1; then
    # The host's network: into one of its own, whose lo is up, criu sometimes finds "Address already assigned".
    # What sleeps is woken by it: criu ends a nanosleep(2) with EINTR.
    t run-cr '0:*' run -d --name cr --network host $I sh -c 'while :; do sleep 1; done'
    t checkpoint '0:*' container checkpoint cr
    t restore '0:*' container restore cr
    t restored '0:running' inspect -f '{{.State.Status}}' cr
    t rm-cr '0:*' rm -f -t 0 cr
fi
printf 'FROM localhost/dhow-test:latest\nRUN echo built > /b\n' >Dockerfile
t build '0:*' build -q --network none -t b /mnt
t built '0:built' run --rm $N b cat /b
t tag '0:*' tag $I busybox
doc_run podman.md
t save '0:*' save -q -o /mnt/s.tar b
t left-containers '0:' ps -aq
ENGINE=buildah
isolation="--isolation oci --runtime /usr/local/bin/dhow"
t buildah-from '0:*' from --name w localhost/dhow-test:latest
t buildah-run '0:hi' run $isolation $N w echo hi
t buildah-run-code '3:*' run $isolation $N w sh -c 'exit 3'
t buildah-volume '0:data' run $isolation $N -v /mnt/f:/etc/f:ro w cat /etc/f
t buildah-user '0:5' run $isolation $N --user 5 w id -u
t buildah-copy '0:*' copy w /mnt/f /f
t buildah-build '0:*' bud -q $isolation $N -t c /mnt
t buildah-commit '0:*' commit -q w d
t buildah-rm '0:*' rm w
left=$(ls /run/dhow 2>/dev/null) || true
if [ -z "$left" ]; then echo "ok   left-state"; else echo "FAIL left-state $left"; failed=1; fi
find /sys/fs/cgroup -depth -type d \( -path '*/libpod_parent*' -o -path '*/buildah*' \) -exec rmdir {} + 2>/dev/null || true
exit $failed
