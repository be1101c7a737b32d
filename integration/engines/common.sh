# What the scripts with engines share. They set ENGINE, the words of its client.
W=$(cd ../.. && pwd)
P=${DHOW_PEERS:-/var/tmp/dhow-peers}
S=$P/sid
failed=0
# The effective capabilities, with the applets that the image has.
CAPS='while read name value; do case $name in CapEff:) echo $value;; esac; done </proc/self/status'
# Takes memory until there is none.
HOG='a=xxxxxxxx; while :; do a=$a$a; done'

# An image of busybox alone, as image.tar; a seccomp profile without mkdir.
make_image() {
    mkdir -p r/bin r/etc r/proc r/sys r/dev r/tmp
    cp "$(command -v busybox)" r/bin/busybox
    for applet in sh true cat sleep echo id ps ls nc touch test mkdir nslookup tty; do ln -s busybox r/bin/$applet; done
    # What health checks ask.
    printf '#!/bin/sh\ntest -e /up\n' >r/bin/up
    chmod 755 r/bin/up
    tar -C r -cf layer.tar .
    layer=$(sha256sum layer.tar | cut -d' ' -f1)
    echo '{"architecture":"amd64","os":"linux","config":{"Env":["PATH=/bin"],"Cmd":["/bin/sh"]},"rootfs":{"type":"layers","diff_ids":["sha256:'$layer'"]},"history":[]}' >config.json
    echo '[{"Config":"config.json","RepoTags":["localhost/dhow-test:latest"],"Layers":["layer.tar"]}]' >manifest.json
    tar -cf image.tar manifest.json config.json layer.tar
    echo '{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["mkdir","mkdirat"],"action":"SCMP_ACT_ERRNO"}]}' >deny.json
}

# The machine's cgroup layout.
layout() { grep -q ' - cgroup ' /proc/self/mountinfo && echo v1 || echo v2; }

# Begins SCRIPT anew in namespaces of its own, with the folder S as the root, where W is /srv and D is
# /mnt: from a plain chroot nobody makes user namespaces, and criu is lost.
enter() {
    case ${DHOW_INSIDE-} in
    folder) W=/srv D=/mnt; cd $D ;;
    host)
        ip link set lo up
        mount --bind "$S" "$S"
        for dir in proc sys dev; do mount --rbind /$dir "$S/$dir"; done
        for dir in run mnt tmp usr/local/bin; do mount -t tmpfs tmpfs "$S/$dir"; done
        cp "$W"/bin/* "$S/usr/local/bin"
        mount --bind "$W" "$S/srv"
        cp "$(command -v busybox)" "$S/run"
        PATH=$PATH:/run
        cd "$S"
        pivot_root . media
        DHOW_INSIDE=folder exec /usr/sbin/chroot . sh -c 'umount -l /media; exec "/srv/integration/engines/$0" "$@"' "$@"
        ;;
    *)
        # Engines make stray directories where the hierarchies are mounted: these mounts are their own.
        script=$1
        shift
        DHOW_INSIDE=host exec ../layout.sh $(layout) unshare --mount --net --propagation private "$PWD/$script" "$@"
        ;;
    esac
}

# doc_block PAGE LANGUAGE NUMBER: a block of a page in docs/.
doc_block() {
    awk -v language="$2" -v wanted="$3" '
        /^```/ { is_in = !is_in && $0 == "```" language; found += is_in; next }
        is_in && found == wanted { print }' "$W/docs/$1"
}

# doc_run PAGE: its command lines, those of the blocks "sh engine".
doc_run() {
    awk '/^```/ { is_in = $0 == "```sh engine"; next } is_in && NF' "$W/docs/$1" >lines
    code=0 said=
    while read -r line; do
        said=$(timeout 60 sh -ec "$line" </dev/null 2>&1) || { code=$?; said="$line: $said"; break; }
    done <lines
    [ -s lines ] || { code=1; said="$1 has no lines"; }
    echo "$said"
    return $code
}

# skip NAME WHY
skip() { echo "skip $1 $2"; }

# Whether this machine's root lacks CAP_SYS_RESOURCE.
lacks_capabilities() {
    bounding=$(sed -n 's/^CapBnd:\t*//p' /proc/self/status)
    [ $((0x$bounding >> 24 & 1)) = 0 ]
}

# judge NAME PATTERN: the pattern is of $code, a colon and $said.
judge() {
    case "$code:$said" in
    $2) echo "ok   $1" ;;
    *) echo "FAIL $1 $code: $(echo "$said" | tail -n 3)"; failed=1 ;;
    esac
}

# t NAME PATTERN COMMAND…: what a command says and ends with, unless the feature NAME is one of those that
# the engine LACKS.
t() {
    case " ${LACKS-} " in *" $1 "*) return 0 ;; esac
    name=$1 pattern=$2
    shift 2
    said=$("$@" </dev/null 2>&1) && code=0 || code=$?
    judge "$name" "$pattern"
}

# t_own NAME TEXT COMMAND…: a command says the text, in half a minute.
t_own() {
    case " ${LACKS-} " in *" $1 "*) return 0 ;; esac
    name=$1 text=$2
    shift 2
    for attempt in $(seq 60); do
        said=$("$@" </dev/null 2>&1) && code=0 || code=$?
        case "$said" in *"$text"*) break ;; esac
        sleep .5
    done
    judge "$name" "*:*$text*"
}

# wait_for TEXT COMMAND…: until it says just that, half a minute at most.
wait_for() {
    text=$1
    shift
    for attempt in $(seq 60); do
        [ "$("$@" </dev/null 2>&1)" = "$text" ] && return
        sleep .5
    done
}

# The engine's client.
client() { timeout 60 $ENGINE "$@"; }

# The client on a terminal, into which a shell's words are typed until it has ended: whoever sets the
# terminal up may swallow what came before.
on_terminal() {
    for attempt in $(seq 40); do sleep .25; echo 'tty; exit 5'; done 2>/dev/null |
        timeout 60 script -qec "$ENGINE $*" /dev/null
}

# The network devices.
DEVICES='while read name rest; do case $name in *:) echo $name;; esac; done </proc/net/dev'

. ./checks.sh
