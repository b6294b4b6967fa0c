#!/usr/bin/env bash
# A node's life on real OpenZFS, with a real Kubo: what happens to pools and disks in years, in minutes. Runs in a guest, as root: `make test-zfs` does it, or
#   testbed/zfsvm run --mem 2048 --share "$PWD/bin:ro" -- bash testbed/tests/life.sh "$PWD/bin" [ONLY]
# Ends with a line of counts.
suite=life bin=$1 only=${2-}
. "$(dirname "$0")/checks.sh"
export IPFS_PATH=/srv/ipfs BASALT_BIN=$bin/basalt BASALT_AGENT_IDLE_EXIT_MS=1000
disks=/var/tmp/disks
mkdir -p $disks
ipfs() { "$bin/ipfs" "$@"; }
life() { "$bin/basalt" --node /srv/ipfs/basalt "$@"; }

# A pool, a node and a repo on it: repo MIB [mirror]
repo() {
  truncate -s "$1M" $disks/a $disks/b
  if [ "${2-}" = mirror ]; then set -- mirror $disks/a $disks/b; else set -- $disks/a; fi
  zpool create -f -O mountpoint=none tank "$@"
  { life init --zfs tank/life --repo /srv/ipfs --durability ordered ${declared-} && ipfs init --profile=test,basalt; } >/tmp/repo.log 2>&1 ||
    { cat /tmp/repo.log; return 1; }
}
# What a check has left.
gone() {
  for pid in $(pgrep -f "^$bin/ipfs daemon"); do kill -9 "$pid"; done
  [ ! -e /tmp/agent.pid ] || kill -9 "$(cat /tmp/agent.pid)" 2>/dev/null
  for pid in $(pgrep -f "^$bin/basalt agent"); do kill -9 "$pid"; done
  rm -f /tmp/agent.pid /tmp/agent.log
  for _ in 1 2 3 4 5; do
    for at in $(findmnt -rno TARGET | grep "^/srv/ipfs" | sort -r); do umount -l "$at"; done
    zpool destroy -f tank 2>/dev/null
    zpool list tank >/dev/null 2>&1 || break
    sleep 1
  done
  chattr -i -R /srv/ipfs 2>/dev/null
  rm -rf /srv/ipfs $disks/*
}
# An operator's agent, on which Kubo's commands work.
agent() {
  "$bin/basalt" --node /srv/ipfs/basalt agent --http-listen 127.0.0.1:9200 >>/tmp/agent.log 2>&1 &
  echo $! >/tmp/agent.pid
  until_true 60 life status --served || { cat /tmp/agent.log; return 1; }
}
stop() {
  kill "$(cat /tmp/agent.pid)"
  until_true 60 bash -c '! kill -0 $(cat /tmp/agent.pid)'
  rm /tmp/agent.pid
}
idle() { until_true 60 bash -c "! pgrep -f \"^$bin/basalt agent\""; }
logged() { until_true "$1" grep -q -- "$2" /tmp/agent.log || { tail -n 20 /tmp/agent.log; return 1; }; }
metrics() { exec 3<>/dev/tcp/127.0.0.1/9200; printf 'GET /metrics HTTP/1.0\r\n\r\n' >&3; cat <&3; }
# Files of random bytes, which no compression makes smaller: file NAME MIB
file() { head -c $(($2 << 20)) /dev/urandom >"/var/tmp/$1"; }
pins() { ipfs pin ls --type=recursive -q | sort; }
segment() { ls /srv/ipfs/basalt/shards/00/seg-*.log | head -n 1; }
# The first sector of a record of the first segment, below the pool.
sector() {
  zpool sync tank
  local at
  at=$(zdb -ddddd tank/life/shards/00 "$(stat -c %i "$(segment)")" |
    awk -v "at=$(printf %x $(($1 * 262144)))" '$1 == at && $2 == "L0" { split($3, dva, ":"); print dva[2]; exit }')
  [ -n "$at" ] || { echo "zdb does not say where record $1 is" >&2; return 1; }
  echo $(((0x$at + 0x400000) / 512))
}
# Writes over it, below the pool: hurt RECORD DISK
hurt() { dd if=/dev/urandom of="$2" bs=512 seek="$(sector "$1")" count=16 conv=notrunc status=none; }
# The same while the pool is away, so that memory has nothing of it afterwards.
hurt_cold() {
  local at
  at=$(sector "$1")
  zpool export tank
  dd if=/dev/urandom of="$2" bs=512 seek="$at" count=16 conv=notrunc status=none
  zpool import -N -d $disks tank
  life dataset apply --zfs tank/life
}

c 'a fresh pool: Kubo adds, a snapshot, rm -rf of the repo, a restore; repo verify is clean and the pins are the same' '
  repo 768
  file one 5; one=$(ipfs add -Q /var/tmp/one)
  file two 1; two=$(ipfs add -Q --pin-name=two /var/tmp/two)
  pins >/tmp/pins
  set=$(life snapshot take --json | sed -n "s/.*\"set\":\"\([^\"]*\)\".*/\1/p")
  file three 1; three=$(ipfs add -Q /var/tmp/three)
  idle
  rm -rf /srv/ipfs/* 2>/dev/null || true
  [ ! -e /srv/ipfs/config ] && [ ! -e /srv/ipfs/basalt/node.json ] && [ -z "$(ls /srv/ipfs/basalt/shards/00)" ]
  says "$set" life snapshot list
  life snapshot restore "$set" --yes
  says "all blocks validated" ipfs repo verify
  pins | cmp - /tmp/pins
  ipfs cat "$one" | cmp - /var/tmp/one; ipfs cat "$two" | cmp - /var/tmp/two
  fails "" timeout 20 "$bin/ipfs" cat --offline "$three"'
gone
c 'a mirror: sectors go bad on one disk; a scrub mends them, the agent sees it at once, no block is lost' '
  repo 512 mirror
  file one 5; one=$(ipfs add -Q /var/tmp/one)
  idle; agent
  hurt 4 $disks/a; hurt 9 $disks/b
  zpool scrub -w tank
  logged 10 "a scrub or resilver has ended"
  logged 20 "read back what the pool named as damaged.*damaged=0"
  says "pool-errors: pool tank counted" life status
  says "zpool clear tank" life status
  says " 0 damaged" life verify
  ipfs cat "$one" | cmp - /var/tmp/one
  metrics | grep -q "^basalt_pool_disk_checksum_errors{pool=\"tank\",vdev=\"$disks/a\"} [1-9]"
  metrics | grep "basalt_pool_named_records_total{outcome=\"whole\"} [1-9]"
  zpool clear tank; logged 40 "is over: pool tank counted"'
gone
c 'no mirror: sectors go bad; a scrub; their blocks are quarantined at once and named by CID; what is put again heals them' '
  repo 512
  file one 5; one=$(ipfs add -Q /var/tmp/one)
  idle
  hurt_cold 4 $disks/a
  agent
  zpool scrub -w tank
  logged 20 "a damaged block, found by the pool, is quarantined"
  cid=$(sed -n "s/.*is quarantined.* cid=\"*\([a-z0-9]*\).*/\1/p" /tmp/agent.log | head -n 1)
  echo "named: $cid"
  life verify --quarantined >/tmp/out || true
  grep -q "^$cid" /tmp/out
  life status >/tmp/out; cat /tmp/out
  grep -q "pool-scrub: the last scrub" /tmp/out; grep -q "pool-errors: pool tank has" /tmp/out; grep -A3 ^QUARANTINED /tmp/out | grep -q "$cid"
  metrics >/tmp/out; grep -q "basalt_quarantined_block{cid=\"$cid\"" /tmp/out; grep -q "basalt_pool_named_records_total{outcome=\"damaged\"} [1-9]" /tmp/out
  fails "" timeout 20 "$bin/ipfs" cat --offline "$one" >/tmp/none
  [ "$(ipfs add -Q /var/tmp/one)" = "$one" ]
  says "^0 quarantined" life verify --quarantined
  ipfs cat "$one" | cmp - /var/tmp/one'
gone
c 'no mirror: sectors go bad and memory still has them: they are written anew before it forgets' '
  repo 512
  file one 5; one=$(ipfs add -Q /var/tmp/one)
  idle; agent
  ipfs cat "$one" >/dev/null
  hurt 4 $disks/a
  zpool scrub -w tank
  logged 20 "read back what the pool named as damaged.*damaged=0 rescued=[1-9]"
  stop
  zpool export tank; zpool import -N -d $disks tank
  life dataset apply --zfs tank/life
  ipfs cat "$one" | cmp - /var/tmp/one'
gone
c 'no mirror: a read that finds the bad sectors first is never wrong bytes, and names the blocks' '
  repo 512
  file one 5; one=$(ipfs add -Q /var/tmp/one)
  idle
  hurt_cold 6 $disks/a
  agent
  fails "" timeout 30 "$bin/ipfs" cat --offline "$one" >/tmp/none
  logged 20 "is quarantined"
  fails "damaged" life verify --quarantined
  says "^critical: pool-errors" life status'
gone
c 'a scrub that finds a bad block in an old snapshot: the live one is the same, and is quarantined' '
  repo 768
  file one 3; one=$(ipfs add -Q /var/tmp/one)
  life snapshot take
  idle
  hurt_cold 3 $disks/a
  agent
  zpool scrub -w tank
  logged 20 "a damaged block, found by the pool, is quarantined"'
gone
c 'a pool is not exported under an agent; exported and imported without one, the node is found again' '
  repo 512
  file one 2; one=$(ipfs add -Q /var/tmp/one)
  idle; agent
  fails "busy" zpool export tank
  ipfs cat "$one" | cmp - /var/tmp/one
  says "state  *serving" life status
  stop
  zpool export tank
  fails "there is no" life agent --http-listen ""
  [ -z "$(ls -A /srv/ipfs 2>/dev/null)" ]
  zpool import -N -d $disks tank
  life dataset apply --zfs tank/life
  ipfs cat "$one" | cmp - /var/tmp/one
  says "all blocks validated" ipfs repo verify'
gone
c 'a disk is replaced while Kubo adds; that it was gone and is back is seen at once' '
  repo 512 mirror
  agent
  ( for n in $(seq 12); do file "load$n" 1; ipfs add -Q "/var/tmp/load$n" >"/tmp/cid$n" || exit 1; done ) &
  load=$!
  zpool offline tank $disks/b
  logged 10 "pool tank is degraded: it works with less redundancy"
  truncate -s 512M $disks/c
  zpool replace -f tank $disks/b $disks/c
  wait $load
  zpool wait -t resilver,replace tank
  logged 20 "is over: pool tank is degraded"
  says "^tank  *online" life status
  for n in $(seq 12); do ipfs cat "$(cat /tmp/cid$n)" | cmp - "/var/tmp/load$n"; done
  zpool scrub -w tank
  says " 0 damaged" life verify'
gone
c 'a pool that others fill: adds are refused, what is there is read, gc and adds work again' '
  # The reserve is put back once four times as much is free.
  repo 1024
  file one 3; one=$(ipfs add -Q /var/tmp/one)
  file two 3; two=$(ipfs add -Q /var/tmp/two)
  idle; agent
  # Without a daemon each command of Kubo makes a lock file in its repo, for which there is no room either.
  "$bin/ipfs" daemon --offline >/tmp/daemon.log 2>&1 &
  until_true 60 test -e $IPFS_PATH/api
  zfs create -o mountpoint=/mnt/others -o compression=off tank/others
  dd if=/dev/zero of=/mnt/others/filler bs=1M status=none || true
  zpool sync tank
  file big 40
  fails "space\|full" "$bin/ipfs" add -Q /var/tmp/big
  says "no-space: shard 0" life status
  ipfs cat "$one" | cmp - /var/tmp/one
  ipfs pin rm "$two"; ipfs repo gc >/dev/null
  rm /mnt/others/filler; zpool sync tank
  until_true 60 "$bin/ipfs" add -Q /var/tmp/two
  until_true 60 bash -c "[ \$(zfs get -Hpo value refreservation tank/life/reserve) = 134217728 ]"
  ipfs shutdown'
gone
c 'a quota with snapshots that hold the space: the error and status name them, and destroying one helps' '
  repo 768
  file one 20; one=$(ipfs add -Q /var/tmp/one)
  idle; agent
  zfs snapshot tank/life/shards/00@old
  ipfs pin rm "$one"; ipfs repo gc >/dev/null; life reclaim
  zpool sync tank
  zfs set quota=$(($(value used tank/life) + (20 << 20))) tank/life
  file two 60
  fails "space\|full\|quota" "$bin/ipfs" add -Q /var/tmp/two
  sleep 11; life status >/dev/null; sleep 1
  says "tank/life/shards/00@old" life status
  zfs destroy tank/life/shards/00@old; zfs set quota=none tank/life
  until_true 60 "$bin/ipfs" add -Q /var/tmp/two'
gone
c 'a key that is not loaded: nothing opens, nothing is written in the bare folders, and apply loads it' '
  head -c 32 /dev/urandom >/tmp/key
  declared="--encryption-key /tmp/key" repo 512
  file one 1; one=$(ipfs add -Q /var/tmp/one)
  idle
  for at in $(findmnt -rno TARGET | grep ^/srv/ipfs | sort -r); do umount "$at"; done
  zfs unload-key tank/life
  fails "" "$bin/ipfs" cat "$one"
  fails "" life agent --http-listen ""
  [ -z "$(ls -A /srv/ipfs 2>/dev/null)" ]
  mv /tmp/key /tmp/elsewhere
  fails "key" life dataset apply --zfs tank/life
  mv /tmp/elsewhere /tmp/key
  life dataset apply --zfs tank/life
  ipfs cat "$one" | cmp - /var/tmp/one'
gone
c 'a dataset that is read-only: the node does not open and says why, plan has what mends it; set back, all is as before' '
  repo 512
  file one 1; one=$(ipfs add -Q /var/tmp/one)
  idle
  zfs set readonly=on tank/life/shards/00
  fails "[Rr]ead-only" life agent --http-listen ""
  says "tank/life/shards/00 is read-only" life dataset plan
  zfs inherit readonly tank/life/shards/00
  agent
  ipfs cat "$one" | cmp - /var/tmp/one
  file two 1; two=$(ipfs add -Q /var/tmp/two)
  ipfs cat "$two" | cmp - /var/tmp/two'
gone
c 'an inherited sync=disabled: the node does not open, says which dataset, and opens when it is away' '
  repo 512
  file one 1; one=$(ipfs add -Q /var/tmp/one)
  idle
  zfs inherit sync tank/life; zfs set sync=disabled tank
  fails "sync" "$bin/ipfs" cat "$one"
  fails "sync" life agent --http-listen ""
  fails "tank/life has sync=disabled" life doctor
  life dataset apply
  ipfs cat "$one" | cmp - /var/tmp/one'
gone
c 'a dataset unmounted under the agent while Kubo adds: noticed, and never a byte in the bare folder' '
  repo 512
  file one 1; one=$(ipfs add -Q /var/tmp/one)
  idle; agent
  umount -l /srv/ipfs/basalt/shards/00
  says "critical: unmounted: /srv/ipfs/basalt/shards/00" life status
  for n in $(seq 6); do file "more$n" 2; timeout 60 "$bin/ipfs" add -Q "/var/tmp/more$n" >/dev/null 2>&1 || true; done
  [ -z "$(ls -A /srv/ipfs/basalt/shards/00)" ]
  stop || true
  [ -z "$(ls -A /srv/ipfs/basalt/shards/00)" ]
  fails "is not mounted" life agent --http-listen ""
  life dataset apply
  ipfs cat "$one" | cmp - /var/tmp/one
  says "all blocks validated" ipfs repo verify'
gone
counts
