#!/bin/sh
# A real Debian image, unpacked by dhow and by tools that have nothing to do with it: the trees
# must be the same in modes, owners, dates, links, extended attributes and content.
#
#   test-images.sh     as root, with bin/dhow built; downloads packages the first time
set -eu

here=$(cd "$(dirname "$0")" && pwd)
dhow=$here/../bin/dhow
image=${DHOW_IMAGE:-/var/tmp/dhow-bench-image}
"$here/peers.sh" images
"$here/../benches/image.sh" "$image"
sid=$("$here/peers.sh" path)

# Everything below happens in a mount namespace of its own, and below one directory.
if [ -z "${DHOW_INSIDE-}" ]; then
    work=$(mktemp -d /var/tmp/dhow-test-images.XXXXXX)
    status=0
    DHOW_INSIDE=$work unshare --mount --propagation private "$0" || status=$?
    rm -rf --one-file-system "$work" "$work.disk"
    exit "$status"
fi
work=$DHOW_INSIDE
mount -t tmpfs -o size=80%,mode=755 tmpfs "$work"
# The kernel does not mount EROFS out of files of a tmpfs.
mkdir "$work.disk" "$work/erofs"
mount --bind "$work.disk" "$work/erofs"
mount --bind "$sid" "$sid"
for dir in proc sys dev; do mount --rbind "/$dir" "$sid/$dir"; done
mount --rbind "$work" "$sid/mnt"
mount --bind "$image" "$sid/media"
mount -t tmpfs tmpfs "$sid/var/tmp"

step() { printf '\n== %s\n' "$*"; }
inside() { chroot "$sid" "$@"; }

# describe TREE OUTPUT: by mtree and getfattr, both below /mnt inside. The size of a directory and
# how many links it has are the filesystem's own affair.
describe() {
    # Comments have the date, and whiteouts have none of their own.
    inside mtree -c -p "/mnt/$1" -k type,uid,gid,mode,link,size,time,sha256 >"$work/$2.raw"
    sed '/^ *#/d; /type=dir/s/ size=[0-9]*//; /type=char/s/ time=[0-9.]*//' "$work/$2.raw" >"$work/$2.mtree"
    # Which names are one file.
    (cd "$sid/mnt/$1" && find . ! -type d -links +1 -printf '%i %p\n') | sort -k 2 |
        awk '{ inode = $1; $1 = ""; if (!(inode in first)) first[inode] = $0; print first[inode], "=", $0 }' \
            >"$work/$2.links"
    inside sh -c 'cd "/mnt/$1" && getfattr -R -h -d -m - -e hex --absolute-names . 2>/dev/null |
        grep -v "^trusted.overlay\|^user.umoci"' sh "$1" |
        awk 'BEGIN { RS = ""; FS = "\n" } NF > 1' | sort >"$work/$2.xattrs" || true
}

# same ONE OTHER ENTRIES: what describe found of two trees, at least so many entries
same() {
    [ "$(wc -l <"$work/$1.mtree")" -ge "$3" ] || { echo "mtree found too little" >&2; exit 1; }
    for part in mtree links xattrs; do
        cmp "$work/$1.$part" "$work/$2.$part" || { diff "$work/$1.$part" "$work/$2.$part" | head -n 20; exit 1; }
        printf '%s: %s lines, the same\n' "$part" "$(wc -l <"$work/$1.$part")"
    done
}

lowers() { "$dhow" --root "$work/$1" image inspect debian | sed -n 's|^ *"\(/.*/layers/.*\)",\{0,1\}$|\1|p'; }

step "dhow, layers as directories, and umoci"
"$dhow" --root "$work/dir" image import --name debian "$image/gzip"
inside umoci unpack --image /media/gzip:latest /mnt/umoci
mkdir "$work/merged"
mount -t overlay overlay -o "lowerdir=$(lowers dir | tac | paste -s -d :)" "$sid/mnt/merged"
describe merged dhow
describe umoci/rootfs umoci
same umoci dhow 40000
[ "$(wc -l <"$work/dhow.xattrs")" -ge 3 ] || { echo "no extended attributes were compared" >&2; exit 1; }

step "EROFS, read by erofs-utils, layer by layer"
"$dhow" --root "$work/erofs" image import --backing erofs --name debian "$image/zstd"
number=0
for layer in $(lowers erofs); do
    number=$((number + 1))
    directory=$(lowers dir | sed -n "${number}p")
    inside fsck.erofs --extract=/mnt/extracted --overwrite --preserve --xattrs \
        --device="$(dirname "/mnt/${layer#"$work"/}")/layer.tar" "/mnt/${layer#"$work"/}" >"$work/fsck.log" 2>&1 ||
        { tail -n 5 "$work/fsck.log"; exit 1; }
    describe extracted extracted
    describe "${directory#"$work"/}" directory
    same directory extracted 5
    rm -rf --one-file-system "$work/extracted"
done
[ "$number" = 6 ]

step "save, read back by skopeo and umoci, byte for byte"
"$dhow" --root "$work/dir" image save -o "$work/saved.tar" debian
blobs() { (cd "$1/blobs/sha256" && sha256sum *) | sort; }
inside skopeo --insecure-policy copy -q --all oci-archive:/mnt/saved.tar oci:/mnt/again:latest
blobs "$image/gzip" >"$work/before"
blobs "$work/again" >"$work/after"
cmp "$work/before" "$work/after" && printf '%s blobs, the same\n' "$(wc -l <"$work/after")"
inside skopeo --insecure-policy copy -q docker-archive:/mnt/saved.tar dir:/mnt/docker
inside umoci stat --image /mnt/again:latest >/dev/null

step "all is as it should be"
