#!/usr/bin/env bash
# A node on datasets, on real OpenZFS: made, killed half way, unmounted under its agent, exported, with sync and dedup as they must not be. Runs in a
# guest, as root: `make test-zfs` does it, or
#   testbed/zfsvm run --share "$PWD/bin:ro" -- bash testbed/tests/datasets.sh "$PWD/bin" [ONLY]
# Ends with a line of counts.
suite=datasets bin=$1 only=${2-}
. "$(dirname "$0")/checks.sh"
b() { "$bin/basalt" --node /srv/basalt "$@"; }
start() {
  "$bin/basalt" --node /srv/basalt agent --http-listen '' "$@" >/tmp/agent.log 2>&1 &
  echo $! >/tmp/agent.pid
  until_true 60 b status --served || { cat /tmp/agent.log; return 1; }
}
stop() {
  kill "$(cat /tmp/agent.pid)"
  until_true 60 bash -c '! kill -0 $(cat /tmp/agent.pid)'
}

truncate -s 3G /tmp/disk
zpool create -f -O mountpoint=none tank /tmp/disk || exit 1

c 'a plan is shown, and nothing is made' '
  b init --zfs tank/basalt --shards 2 --dry-run | tee /tmp/out
  grep -q "create tank/basalt/shards/01" /tmp/out && grep -q "recordsize=262144" /tmp/out
  ! zfs list tank/basalt'
c 'init makes datasets, mounts them and a node on them' '
  b init --zfs tank/basalt --shards 2 --durability strict --property shards.compression=zstd
  [ $(zfs list -Hro name tank/basalt | wc -l) = 6 ]
  [ $(value refreservation tank/basalt/reserve) = 134217728 ]
  [ $(value recordsize tank/basalt/shards/01) = 262144 ] && [ $(value compression tank/basalt/shards/00) = zstd ]
  [ $(value mounted tank/basalt/shards) = no ]
  mountpoint /srv/basalt/shards/00 && mountpoint /srv/basalt/keyspace
  b dataset drift
  says "as declared" b dataset apply
  [ "$(value basalt:applying tank/basalt)" = - ]
  b doctor' always
c 'a second init of the same is refused' 'fails "is a Basalt node already" b init --zfs tank/basalt'
c 'another node cannot have the datasets' 'fails "in the way" "$bin/basalt" --node /srv/other init --zfs tank/basalt --node-id 0123456789abcdef0123456789abcdef'
c 'the agent serves it, and status shows what it uses' '
  start
  head -c 40000000 /dev/urandom >/tmp/random
  b status --json | grep -q "\"compressratio\""
  b status | tee /tmp/out; grep -q "tank/basalt/shards/01" /tmp/out
  b dataset list'
c 'a dataset that is unmounted under the agent is noticed, and nothing goes into the bare folder' '
  umount -l /srv/basalt/shards/01
  b status | tee /tmp/out; grep -q "critical: unmounted: /srv/basalt/shards/01" /tmp/out
  [ -z "$(ls -A /srv/basalt/shards/01)" ]
  ! touch /srv/basalt/shards/01/x
  b flush || true
  stop
  [ -z "$(ls -A /srv/basalt/shards/01)" ]'
c 'an agent does not open a bare folder' '
  fails "is not mounted" b agent --http-listen ""
  [ -z "$(ls -A /srv/basalt/shards/01)" ]
  fails "1 differences" b dataset drift'
c 'apply mounts it again, and the agent opens' 'b dataset apply; start; b status; stop'
c 'a dataset that is mounted in the wrong place is not opened' '
  zfs unmount tank/basalt/shards/00; zfs unmount tank/basalt/shards/01
  mount -t zfs -o zfsutil tank/basalt/shards/01 /srv/basalt/shards/00
  mount -t zfs -o zfsutil tank/basalt/shards/00 /srv/basalt/shards/01
  fails "is the node.s shards/01, not its shards/00" b agent --http-listen ""
  umount /srv/basalt/shards/00; umount /srv/basalt/shards/01
  b dataset apply'
c 'after export and import without mounts, apply finds the node by its dataset' '
  zpool export tank; zpool import -N -d /tmp tank
  fails "name it" b dataset apply
  b dataset apply --zfs tank/basalt
  b dataset drift
  start; b status; stop' always
c 'an inherited sync=disabled does not open as strict; apply mends it' '
  zfs inherit sync tank/basalt; zfs set sync=disabled tank
  fails "sync" b agent --http-listen ""
  fails "has sync=disabled" b doctor
  says "set sync=standard on tank/basalt" b dataset plan
  b dataset apply
  start; stop
  zfs inherit sync tank'
c 'doctor warns of dedup, and drift of what was set by hand' '
  zfs set dedup=on tank/basalt/keyspace; zfs set quota=1G tank/basalt/shards/00
  says "tank/basalt/keyspace has dedup on" b doctor
  ! b dataset drift | tee /tmp/out
  grep -q "inherit dedup on tank/basalt/keyspace" /tmp/out && grep -q "has quota=1073741824, set by hand" /tmp/out
  b dataset apply
  [ $(value dedup tank/basalt/keyspace) = off ] && [ $(value quota tank/basalt/shards/00) = 1073741824 ]
  zfs set quota=none tank/basalt/shards/00'
c 'an init that is killed anywhere is finished by the next' '
  for seconds in 0.2 0.4 0.7 1.0 1.4 1.9 2.5; do
    timeout -s KILL $seconds "$bin/basalt" --node /srv/killed init --zfs tank/killed --shards 2 >/dev/null || true
    [ ! -e /srv/killed/node.json ] || break
  done
  [ "$(value basalt:applying tank/killed)" != - ] || echo "no kill came in the middle"
  [ -e /srv/killed/node.json ] || "$bin/basalt" --node /srv/killed init --zfs tank/killed --shards 2 | tee /tmp/out
  "$bin/basalt" --node /srv/killed dataset drift
  "$bin/basalt" --node /srv/killed status
  [ "$(value basalt:applying tank/killed)" = - ]
  umount /srv/killed/shards/0? /srv/killed/keyspace; zfs unmount tank/killed; zfs destroy -r tank/killed; chattr -i /srv/killed; rmdir /srv/killed'
c 'an agent that starts finishes an apply that was killed' '
  zfs set basalt:applying="2 steps" tank/basalt; zfs set atime=on tank/basalt
  start; stop
  grep -q "it is finished" /tmp/agent.log
  [ $(value atime tank/basalt) = off ] && [ "$(value basalt:applying tank/basalt)" = - ]'
c 'an encrypted node gets its key when it is mounted' '
  head -c 32 /dev/urandom >/tmp/key
  "$bin/basalt" --node /srv/secret init --zfs tank/secret --encryption-key /tmp/key
  [ $(value keystatus tank/secret/shards/00) = available ] && [ $(value encryptionroot tank/secret/keyspace) = tank/secret ]
  zfs unmount tank/secret; zfs unload-key tank/secret
  "$bin/basalt" --node /srv/secret dataset apply --zfs tank/secret
  "$bin/basalt" --node /srv/secret status
  zfs unmount tank/secret; zfs destroy -r tank/secret'
c 'the life of a repo on datasets: Kubo adds, status counts, all is there after export and import, and not without sync' '
  export IPFS_PATH=/srv/ipfs BASALT_BIN=$bin/basalt BASALT_AGENT_IDLE_EXIT_MS=1000
  life() { "$bin/basalt" --node /srv/ipfs/basalt "$@"; }
  idle() { until_true 60 bash -c "! pgrep -f \"^$bin/basalt agent\""; }
  life init --zfs tank/life --repo /srv/ipfs --durability ordered
  mountpoint /srv/ipfs && mountpoint /srv/ipfs/basalt
  "$bin/ipfs" init --profile=test,basalt
  head -c 6000000 /dev/urandom >/tmp/file; seq 400000 >>/tmp/file
  cid=$("$bin/ipfs" add -Q /tmp/file)
  says "$cid" "$bin/ipfs" pin ls --type=recursive
  idle
  life status --json >/tmp/out
  grep -q "\"dataset\":\"tank/life/repo\"" /tmp/out
  zpool sync tank
  [ $(value used tank/life/shards/00) -gt 6000000 ]
  life status | tee /tmp/out; life dataset drift
  zpool export tank; zpool import -N -d /tmp tank
  fails "no IPFS repo found" "$bin/ipfs" cat "$cid"
  life dataset apply --zfs tank/life
  "$bin/ipfs" cat "$cid" | cmp - /tmp/file
  idle
  zfs inherit sync tank/life; zfs set sync=disabled tank
  fails "sync" "$bin/ipfs" cat "$cid"
  life dataset apply
  "$bin/ipfs" cat "$cid" | cmp - /tmp/file
  idle
  zfs inherit sync tank
  b dataset apply --zfs tank/basalt'
c 'the life of a repo: a profile of Kubo makes its node on datasets where that is asked for' '
  export IPFS_PATH=/srv/plain BASALT_BIN=$bin/basalt BASALT_AGENT_IDLE_EXIT_MS=1000
  BASALT_INIT_ZFS=tank/plain "$bin/ipfs" init --profile=test,basalt-blocks
  [ $(value mounted tank/plain/shards/00) = yes ] && mountpoint /srv/plain/basalt
  cid=$(echo on datasets | "$bin/ipfs" add -Q)
  says "on datasets" "$bin/ipfs" cat "$cid"
  until_true 60 bash -c "! pgrep -f \"^$bin/basalt agent\""
  zfs unmount tank/plain; zfs destroy -r tank/plain'
c 'a user who is not root is told which grants are missing, and the command that gives them' '
  id tester >/dev/null 2>&1 || useradd -m tester
  chmod 666 /dev/zfs; chmod 755 /srv
  chown -R tester /srv/basalt
  run() { su tester -s /bin/bash -c "$bin/basalt --node /srv/basalt $*"; }
  b doctor | tee /tmp/out || true
  grep -q "tester may not do all" /tmp/out
  command=$(sed -n "s/.*as root: \(zfs allow .*\)/\1/p" /tmp/out | head -n 1)
  $command
  b doctor >/tmp/out
  ! grep -q "may not do all" /tmp/out
  su tester -s /bin/bash -c "zfs snapshot tank/basalt/shards/00@of-tester && zfs destroy tank/basalt/shards/00@of-tester"
  run dataset drift' always
c 'the helper mounts for that user what root has allowed, and nothing else' '
  install -d /etc/basalt /usr/lib/basalt
  printf "[[allow]]\ndataset = \"tank/basalt\"\nfolders = [\"/srv/basalt\"]\nowner = \"tester\"\n" >/etc/basalt/zfs-helper.toml
  # Stands for a line of sudoers.
  install -m 4755 "$bin/basalt-zfs-helper" /usr/lib/basalt/basalt-zfs-helper
  run() { su tester -s /bin/bash -c "BASALT_ZFS_HELPER=/usr/lib/basalt/basalt-zfs-helper $bin/basalt --node /srv/basalt $*"; }
  zfs unmount tank/basalt/shards/00
  fails "is not mounted" run agent --http-listen "\"\""
  run dataset apply
  mountpoint /srv/basalt/shards/00
  fails "in no ..allow.." su tester -s /bin/bash -c "/usr/lib/basalt/basalt-zfs-helper mount tank"
  zfs create -o mountpoint=/srv/basalt/../../etc/x -o setuid=off -o devices=off tank/basalt/evil || zfs create -o mountpoint=/opt/x -u -o setuid=off -o devices=off tank/basalt/evil
  zfs unmount tank/basalt/evil 2>/dev/null || true
  fails "lies in none" su tester -s /bin/bash -c "/usr/lib/basalt/basalt-zfs-helper mount tank/basalt/evil"
  fails "there is no verb" su tester -s /bin/bash -c "/usr/lib/basalt/basalt-zfs-helper destroy tank/basalt/evil"
  zfs destroy tank/basalt/evil'

counts
