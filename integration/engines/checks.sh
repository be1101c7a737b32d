# The features that are tried, one list for all engines. An engine's script says what it LACKS, and has
# these functions, which know its client's words:
#   once [OPTION…] -- WORD…         runs a container, which is gone afterwards
#   begin NAME [OPTION…] -- WORD…   begins one
#   inside NAME [OPTION…] -- WORD…  runs something in it
#   inside_words NAME               the client's words for a shell in it, on a terminal
#   state_of NAME                   "running", "paused", "exited CODE"
#   limits_of NAME                  a running container's limits of memory, CPU time and processes
#   words FEATURE                   the options that give a container a feature
#   does WHAT NAME                  load, logs, stats, top, pause, unpause, stop, start, kill, rm
# DIR is a folder that the engine's daemon sees as well.

# The image that make_image makes.
I=localhost/dhow-test:latest

# A container's life.
check_life() {
    t load '0:*' does load image.tar
    t run '0:hi' once -- echo hi
    t exitcode '7:*' once -- sh -c 'exit 7'
    t notfound "$NOT_FOUND" once -- /no/such
    t notexec '126:*' once -- /etc
    t run-d '0:*' begin ca -- sh -c 'echo out; exec sleep 1000'
    t exec '0:in' inside ca -- echo in
    t exec-code '9:*' inside ca -- sh -c 'exit 9'
    t exec-user '0:1000' inside ca $(words exec-user) -- sh -c 'id -u'
    t exec-it '5:*/dev/pts/0*' on_terminal "$(inside_words ca)"
    t top '0:*' does top ca
    t logs '0:out' does logs ca
    t stats '0:*' does stats ca
    t pause '0:*' does pause ca
    t paused '0:paused*' state_of ca
    t unpause '0:*' does unpause ca
    t update '0:*' client update --memory 64m --memory-swap 128m ca
    t updated '0:67108864*' limits_of ca
    echo data >f
    t cp '0:*' client cp $DIR/f ca:/tmp/f
    t cp-seen '0:data' inside ca -- cat /tmp/f
    t cp-out '0:*' client cp ca:/tmp/f $DIR/back
    t cp-out-seen '0:data' cat back
    t commit '0:*' client commit ca made
    if command -v restart_daemon >/dev/null; then
        restart_daemon
        t live-restore '0:running*' state_of ca
        t live-restored '0:again' inside ca -- echo again
    fi
    t stop '0:*' does stop ca
    t exited '0:exited 137' ended ca
    t restart '0:*' does start ca
    t kill '0:*' does kill ca
    t killed '0:exited 137' ended ca
    t rm '0:*' does rm ca
}

# The state of a container, once that is the end.
ended() {
    for attempt in $(seq 60); do
        case "$(state_of $1)" in exited*) break ;; esac
        sleep .2
    done
    state_of $1
}

# What a container can be given.
check_options() {
    t commit-run '0:data' client run --rm ${N-} made cat /tmp/f
    t tmpfs '0:*tmpfs*' once $(words tmpfs) -- cat /proc/mounts
    t read-only '1:*' once $(words read-only) -- sh -c 'echo x >/x'
    t volume '0:data' once $(words volume) -- cat /etc/f
    t named-volume '0:kept' once $(words named-volume) -- sh -c 'echo kept >/v/f; cat /v/f'
    t volume-again '0:kept' once $(words named-volume) -- cat /v/f
    t user '0:5' once $(words user) -- sh -c 'id -u'
    t cap-drop '0:0000000000000000' once $(words cap-drop) -- sh -c "$CAPS"
    t seccomp '1:*' once $(words seccomp) -- mkdir /tmp/d
    t limited '0:*' begin li $(words limits) -- sleep 1000
    t limits "$LIMITS" limits_of li
    t rm-limited '0:*' does rm li
    t ulimit '0:77' once $(words ulimit) -- sh -c 'ulimit -n'
    t device '0:c*' once $(words device) -- ls -l /dev/zero
    if [ "${SKIP_PRIVILEGED-}" ]; then
        skip privileged "$SKIP_PRIVILEGED"
    else
        t privileged '0:hi' once $(words privileged) -- echo hi
    fi
    t oom '137:*' once $(words oom) -- sh -c "$HOG"
    t init '0:*init*' once $(words init) -- cat /proc/1/cmdline
    t host-net "0:*$(readlink /proc/self/ns/net | tr -dc 0-9)*" once $(words host-net) -- ls -l /proc/self/ns/net
    t none-net '0:lo:*' once -- sh -c "$DEVICES"
    t run-t '0:*/dev/pts/0*' timeout 60 script -qec "$ENGINE $(terminal_words) tty" /dev/null
    t userns '0:*100000*' once $(words userns) -- cat /proc/self/uid_map
}

# What goes on by itself.
check_watch() {
    t health '0:*' begin hc $(words health) -- sleep 1000
    t unhealthy '0:unhealthy' health_of hc unhealthy
    t exec-up '0:*' inside hc -- touch /up
    t healthy '0:healthy' health_of hc healthy
    t rm-health '0:*' does rm hc
    t restart-policy '0:*' begin rr --restart on-failure:2 -- sh -c 'exit 4'
    t restarted '0:2 4' restarts_of rr
    t rm-f '0:*' does rm rr
}

restarts_of() {
    set -- inspect -f '{{.RestartCount}} {{.State.ExitCode}}' $1
    wait_for '2 4' client "$@"
    client "$@"
}

# Networks: docker's and podman's clients have the same words.
check_networks() {
    t bridge '0:*' client run -d --name net -p 8080:80 $I sh -c 'while :; do echo answer | nc -l -p 80; done'
    t bridge-exec '0:*eth0*' inside net -- cat /proc/net/dev
    t_own published answer timeout 3 busybox nc 127.0.0.1 8080
    t network '0:*' client network create mine
    t network-dns '0:*Address:*[0-9].[0-9]*' client run --rm --network mine --name net2 $I nslookup net2
    t container-net '0:*eth0*' client run --rm --network container:net $I cat /proc/net/dev
    t rm-bridge '0:*' does rm net
    t rm-network '0:*' client network rm mine
}

# Images.
check_images() {
    mkdir -p ctx
    printf 'FROM %s\nRUN echo built > /b\n' $I >ctx/Dockerfile
    t build '0:*' build -q ${N-} -t b $DIR/ctx
    t built '0:built' client run --rm ${N-} b cat /b
    t tag '0:*' does tag busybox
    t docs '0:*' doc_run "$PAGE"
    t save '0:*' does save $DIR/s.tar
    t load-again '0:*' does load $DIR/s.tar
    t left-containers '0:' does list
}

# check_checkpoint: what sleeps would be woken by it: criu ends a nanosleep(2) with EINTR.
check_checkpoint() {
    { [ "$(command -v criu)" ] && criu check >/dev/null 2>&1; } || return 0
    t run-cr '0:*' begin cr $(words host-net) -- sh -c 'while :; do sleep 1; done'
    t checkpoint '0:*' does checkpoint cr
    t restore '0:*' does restore cr
    t restored '0:running*' state_of cr
    t rm-cr '0:*' does rm cr
}

# left NAME PATTERN: no processes of such words stay.
left() {
    for attempt in $(seq 40); do
        said=$(for file in /proc/[0-9]*/cmdline; do tr '\0' ' ' <$file; echo; done 2>/dev/null | grep -c "$2" || true) code=0
        [ "$said" = 0 ] && break
        sleep .25
    done
    judge "$1" 0:0
}

# docker's and podman's words.
docker_words() {
    case $1 in
    exec-user) echo -u 1000 ;;
    tmpfs) echo --tmpfs /tmp/x ;;
    read-only) echo --read-only ;;
    volume) echo -v $DIR/f:/etc/f:ro ;;
    named-volume) echo -v vol:/v ;;
    user) echo -u 5 ;;
    cap-drop) echo --cap-drop all ;;
    seccomp) echo --security-opt seccomp=$DIR/deny.json ;;
    limits) echo -m 32m --cpus .5 --pids-limit 20 ;;
    ulimit) echo --ulimit nofile=77 ;;
    device) echo --device /dev/zero ;;
    privileged) echo --privileged ;;
    oom) echo -m 16m --memory-swap 16m ;;
    init) echo --init ;;
    host-net) echo --network host ;;
    esac
}
LIMITS='0:33554432 50000*20'

docker_once() {
    options=
    while [ "$1" != -- ]; do options="$options $1"; shift; done
    shift
    client run --rm $(network $options) $options $I "$@"
}

# Without a network, unless the options say so.
network() { case "$*" in *--network*) ;; *) echo $N ;; esac; }

docker_begin() {
    container=$1 options=
    shift
    while [ "$1" != -- ]; do options="$options $1"; shift; done
    shift
    client run -d --name $container $(network $options) $options $I "$@"
}

docker_inside() {
    container=$1 options=
    shift
    while [ "$1" != -- ]; do options="$options $1"; shift; done
    shift
    client exec $options $container "$@"
}

docker_state_of() {
    state=$(client inspect -f '{{.State.Status}} {{.State.ExitCode}}' $1)
    case $state in exited*) echo "$state" ;; *) echo "${state% *}" ;; esac
}

docker_limits_of() {
    client exec $1 sh -c 'cd /sys/fs/cgroup; echo $(cat memory/memory.limit_in_bytes memory.max cpu/cpu.cfs_quota_us cpu.max pids/pids.max pids.max 2>/dev/null)'
}

# FORCE is what makes the client's stop and rm quick.
docker_does() {
    what=$1
    shift
    case $what in
    load) client load -q -i "$1" ;;
    stats) client stats --no-stream "$@" ;;
    stop) client stop -t 1 "$@" ;;
    rm) client rm -f $FORCE "$@" ;;
    tag) client tag $I "$@" ;;
    save) client save -o "$1" b ;;
    list) client ps -aq ;;
    *) client $what "$@" ;;
    esac
}
