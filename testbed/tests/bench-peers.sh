#!/usr/bin/env bash
# The stores side by side on real OpenZFS: written bytes, flushes and space are exact, times are the emulator's. In a guest with one disk, as root:
#   testbed/zfsvm run --disks 1:6G --share "$PWD:ro" --share OUT -- bash testbed/tests/bench-peers.sh PROGRAMS OUT [ARGUMENTS OF basalt-peers]
set -euo pipefail
programs=$1 out=$2
shift 2
sfdisk -q /dev/vda <<<",,"
# The defaults of a pool as people make them, and Kubo's usual place: one dataset, recordsize 128K.
zpool create -f -o ashift=12 -O mountpoint=none -O compression=lz4 -O atime=off tank /dev/vda1
zfs create -o mountpoint=/srv/bench tank/bench
export BASALT_BIN=$programs/basalt
"$programs/basalt-peers" -dir /srv/bench -out "$out" -device vda -heap 16 -rounds 1 -drop-caches=false -raw=false "$@"
