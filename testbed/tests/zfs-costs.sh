#!/usr/bin/env bash
# What some properties cost, counted in bytes at the disk: the figures of docs/zfs-tuning.md and docs/decisions/dedup.md. Bytes, not seconds: the guest's
# processor is emulated. Runs in a guest with one disk, as root:
#   testbed/zfsvm run --cpus 1 --mem 2048 --disks 1:6G -- bash testbed/tests/zfs-costs.sh
set -euo pipefail
export LC_ALL=C PATH=/usr/sbin:/usr/bin:/sbin:/bin
disk=vda
sfdisk -q /dev/$disk <<<',,' >/dev/null
mib=256
dd if=/dev/urandom of=/tmp/random bs=1M count=$mib status=none

fresh() { # ZPOOL CREATE OPTIONS...
  zpool destroy tank 2>/dev/null || true
  zpool create -f -o ashift=12 -O atime=off -O xattr=sa -O mountpoint=/tank "$@" tank /dev/${disk}1
}
settled() { zpool sync tank; sleep 1; zpool sync tank; }
# Bytes read and written at the disk so far.
counted() { awk '{ printf "%d %d\n", $3 * 512, $7 * 512 }' /sys/block/$disk/stat; }
forget() { zpool export tank; zpool import -d /dev tank; }
ratio() { awk -v a="$1" -v b="$2" 'BEGIN { printf "%.2f", a / b }'; }

echo "## Reading 256 KiB at random places, with nothing in memory: bytes read at the disk for a byte asked for"
for record in 128K 256K 1M; do
  fresh -O compression=lz4 -O recordsize=$record
  cp /tmp/random /tank/log; settled; forget
  blocks=$((mib * 4))
  read -r before _ < <(counted)
  # Every 13th block of 256 KiB, so that no read finds the record of the one before, and none is sequential.
  asked=0
  for ((i = 7; asked < 60; i = (i + 397) % blocks)); do
    dd if=/tank/log of=/dev/null bs=256K skip=$i count=1 iflag=direct status=none 2>/dev/null || dd if=/tank/log of=/dev/null bs=256K skip=$i count=1 status=none
    asked=$((asked + 1))
  done
  read -r after _ < <(counted)
  echo "recordsize=$record: $(ratio $((after - before)) $((asked * 256 * 1024)))"
done

echo "## Appending blocks of 256 KiB and 14 bytes, each with an fdatasync: bytes written at the disk for a byte of payload"
for record in 128K 256K 1M; do
  fresh -O compression=lz4 -O recordsize=$record
  settled
  read -r _ before < <(counted)
  for ((i = 0; i < 128; i++)); do
    dd if=/tmp/random of=/tank/log bs=262158 skip=$i seek=$i count=1 conv=notrunc,fdatasync status=none
  done
  settled
  read -r _ after < <(counted)
  echo "recordsize=$record: $(ratio $((after - before)) $((128 * 262158)))"
done

echo "## Compression: bytes used for a byte of payload"
seq 1 4000000 | head -c 32M >/tmp/text
for compression in off lz4 zstd-3; do
  for file in random text; do
    fresh -O recordsize=256K -O compression=$compression
    head -c 32M /tmp/$file >/tank/log; settled
    echo "compression=$compression, $file: $(ratio "$(zfs get -Hpo value referenced tank)" "$(stat -c %s /tank/log)")"
  done
done

echo "## Deduplication, all blocks unlike, as under Basalt: $mib MiB in records of 256K, then 64 MiB in records of 4K for the size of the table"
for dedup in off on; do
  fresh -O compression=lz4 -O recordsize=256K -O dedup=$dedup
  settled
  read -r read_before before < <(counted)
  for ((i = 0; i < mib; i++)); do dd if=/tmp/random of=/tank/log bs=1M skip=$i seek=$i count=1 conv=notrunc,fdatasync status=none; done
  settled
  read -r read_after after < <(counted)
  echo "dedup=$dedup, recordsize=256K: written $(ratio $((after - before)) $((mib << 20))), read $((read_after - read_before)) bytes"
done
zpool status -D tank | grep -A3 -i 'dedup\|DDT' || true
fresh -O compression=lz4 -O recordsize=4K -O dedup=on
head -c 64M /tmp/random >/tank/log; settled
zpool status -D tank | grep -i 'DDT entries' || true
forget
read -r before _ < <(counted)
rm /tank/log; settled
read -r after _ < <(counted)
echo "removing 64 MiB in records of 4K with nothing in memory read $((after - before)) bytes with dedup"
fresh -O compression=lz4 -O recordsize=4K
head -c 64M /tmp/random >/tank/log; settled; forget
read -r before _ < <(counted)
rm /tank/log; settled
read -r after _ < <(counted)
echo "and $((after - before)) without"
zfs version | head -n 1
