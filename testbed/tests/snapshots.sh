#!/bin/bash
# A node's life with snapshots, in a guest with real OpenZFS, root and a real Kubo: taken while `ipfs add` runs, listed, compared, served as a second node, restored after
# `rm -rf`, undone, confirmed, pruned. Over one pool and over two.
#
#   testbed/tests/snapshots.sh FOLDER [ONLY]      FOLDER has the programs; ONLY: words of the names of parts (--short: what make test has)
#
# Says a line for each thing it has looked at, and ends with a line of counts; no count, or a failed one, is a failure.
set -u
# In braces, so that it is read whole before it begins: an edit doesn't reach a run.
{
bin=$1 only=${2-}
short=
[ "$only" = --short ] && short=1 only=damage
# part NAME: begins a part, if it is to run.
part() {
	local word
	for word in $only; do [[ $1 = *"$word"* ]] && break; done
	[ -z "$only" ] || [[ $1 = *"${word-}"* ]] || return 1
	echo "== $1"
}
# Programs of the guest's own: started from the share, each page of them is waited for, by all, since there is one processor.
mkdir -p /tmp/bin
for program in basalt basalt-zfs-helper ipfs snapshot_pause; do [ ! -e "$bin/$program" ] || cp "$bin/$program" /tmp/bin/; done
cat /tmp/bin/* >/dev/null
export PATH=/tmp/bin:$PATH BASALT_HTTP_LISTEN=
passed=0 failed=0
ok() { passed=$((passed + 1)); echo "ok $*"; }
bad() { failed=$((failed + 1)); echo "FAILED $*"; }
# holds WHAT COMMAND...: counts whether the command succeeds.
holds() {
	local what=$1 out
	shift
	if out=$("$@" 2>&1); then ok "$what"; else bad "$what: $* said: $out"; fi
}
said() { grep -qF -- "$1" <<<"$2" && ok "$3" || bad "$3: wanted $1 in: $2"; }
# The value of a key of JSON that was printed on one line.
field() { sed -n "s/.*\"$1\":\"\{0,1\}\([^,\"}]*\).*/\1/p" <<<"$2" | head -1; }
until_ok() { for _ in $(seq 600); do "$@" >/dev/null 2>&1 && return 0; sleep 0.2; done; return 1; }

# Waits until the agent that Kubo started has let go of the node by itself; whoever asks keeps it.
let_go() { for _ in $(seq 30); do sleep 2.5; basalt status --served --node $node >/dev/null 2>&1 || return 0; done; }
export BASALT_AGENT_IDLE_EXIT_MS=1500

mkdir -p /var/tmp/disks
for pool in fast bulk; do
	truncate -s 1G /var/tmp/disks/$pool
	zpool create -f -O compression=lz4 -O mountpoint=none $pool /var/tmp/disks/$pool || exit 1
done

echo "== one pool, with Kubo"
zfs create -o mountpoint=/srv/repo fast/repo
zfs create fast/repo/basalt
export IPFS_PATH=/srv/repo
node=/srv/repo/basalt
ipfs init --profile=basalt >/var/tmp/init.log 2>&1 || { cat /var/tmp/init.log; exit 1; }
snapshot() { basalt snapshot --node $node "$@"; }

head -c 3000000 /dev/urandom >/var/tmp/first
first=$(ipfs add -Q /var/tmp/first)
( for n in $(seq 40); do [ -e /var/tmp/enough ] && exit; head -c 300000 /dev/urandom | ipfs add -Q >/dev/null 2>&1 || exit; done ) &
adding=$!
sleep 2
out=$(snapshot take --json) || bad "take: $out"
one=$(field set "$out")
[ -n "$one" ] && ok "a set is taken while ipfs add runs: $one" || bad "no set: $out"
said '"lacks":[]' "$out" "the repo is in it"
touch /var/tmp/enough; wait $adding
head -c 2000000 /dev/urandom >/var/tmp/second
second=$(ipfs add -Q /var/tmp/second)
out=$(snapshot take --json); two=$(field set "$out")
said "$one" "$(snapshot list)" "list has it"
said "2 of 2" "$(zfs list -H -o name -t snapshot | grep -c "$one") of 2" "both datasets have it"

out=$(snapshot diff "$one" "$two" 2>&1)
said "+ pin $second" "$out" "diff has the pin that came"
said "+ block" "$out" "diff has the blocks that came"
grep -q "pin $first" <<<"$out" && bad "diff has the first pin, which both have" || ok "what both have is not in the diff"

if part "mount"; then
basalt snapshot --node $node mount "$one" /var/tmp/look >/var/tmp/mount.log 2>&1 &
mounted=$!
until_ok grep -q "read from it" /var/tmp/mount.log || cat /var/tmp/mount.log
# The first file is 12 blocks; the index was never flushed, so the tail is what was written until then and no more.
replayed=$(sed -n 's/.*; \([0-9]*\) records of its log were replayed.*/\1/p' /var/tmp/mount.log)
[ -n "$replayed" ] && [ "$replayed" -le 65536 ] && ok "opening the set replayed $replayed records" || bad "replayed $replayed: $(cat /var/tmp/mount.log)"
IPFS_PATH=/var/tmp/look/repo ipfs cat "$first" >/var/tmp/first.out 2>/var/tmp/cat.log
cmp -s /var/tmp/first /var/tmp/first.out && ok "ipfs cat reads the set" || bad "ipfs cat of the set: $(cat /var/tmp/cat.log)"
IPFS_PATH=/var/tmp/look/repo timeout 20 ipfs cat --offline "$second" >/var/tmp/second.out 2>/dev/null && bad "the set has what came later" || ok "what came later is not in it"
said "lease of basalt snapshot mount" "$(snapshot list)" "the mounted set is kept"
zfs destroy fast/repo@"$one" 2>/dev/null && bad "a mounted set was destroyed" || ok "zfs doesn't destroy a mounted set"
kill $mounted; wait $mounted
said 0 "$(snapshot list 2>&1 | grep -c 'lease of')" "the lease ends with the mount"
[ -z "$(ls /var/tmp/look)" ] && ok "nothing is left of the mount" || bad "left: $(ls -R /var/tmp/look | head)"
basalt snapshot --node $node mount "$one" /var/tmp/look2 >/var/tmp/mount.log 2>&1 &
mounted=$!
until_ok grep -q "read from it" /var/tmp/mount.log
kill -9 $mounted; wait $mounted 2>/dev/null
said "is gone, and so is its lease" "$(snapshot list 2>&1)" "a killed mount is noticed and its hold released"

fi

if part "damage and restore"; then
out=$(snapshot restore "$one" 2>&1)
said "nothing was done" "$out" "a restore is shown first"
let_go
( exec 9<$node/node.json; exec sleep 600 ) & holder=$!
out=$(snapshot restore "$one" --yes 2>&1) && bad "restored under an open file" || said "as it was" "$out" "a node in use is not restored"
kill $holder; wait $holder 2>/dev/null
# The agent that Kubo started lets go of the node by itself.
let_go
rm -rf /srv/repo/* /srv/repo/.[a-z]* 2>/dev/null
ls /srv/repo/config 2>/dev/null && bad "rm left the config" || ok "the repo is gone"
sleep 1
out=$(snapshot restore "$one" --yes --json 2>&1) || bad "restore: $out"
id=$(field id "$out")
[ -n "$id" ] && ok "restored" || bad "restore said: $out"
holds "the config is back" test -s /srv/repo/config
ipfs cat "$first" >/var/tmp/first.out 2>/var/tmp/cat.log; cmp -s /var/tmp/first /var/tmp/first.out && ok "the first file is back" || bad "$(cat /var/tmp/cat.log)"
out=$(ipfs repo verify 2>&1 | tail -1); said "verify complete, all blocks validated" "$out" "ipfs repo verify is clean"
said "$first" "$(ipfs pin ls --type recursive -q)" "its pin is back"
ipfs pin ls --type recursive -q | grep -q "$second" && bad "a later pin is there" || ok "the later pin is not"
ipfs add -Q /var/tmp/second >/dev/null && ok "the restored node takes writes" || bad "no writes after the restore"
said "restore $id of $one waits" "$(snapshot list)" "the restore waits to be confirmed"
let_go
if [ -z "$short" ]; then
out=$(snapshot restore --undo "$id" --yes 2>&1) && ok "undone" || bad "undo: $out"
ls /srv/repo/config 2>/dev/null && bad "undone, and the config is there" || ok "undone: the damage is back"
out=$(snapshot restore --undo "$id" --yes 2>&1) && ok "undone again" || bad "undo again: $out"
holds "the config is back again" test -s /srv/repo/config
fi
out=$(snapshot restore --confirm "$id" --yes 2>&1) && ok "confirmed" || bad "confirm: $out"
[ "$(zfs list -H -o name -r fast | grep -cE 'before|restore|undone')" = 0 ] && ok "nothing stands aside" || bad "$(zfs list -r fast)"

fi

if part "restores that are killed"; then
for tenths in 5 12 20 30; do
	basalt snapshot --node $node restore "$one" --yes --no-diff >/var/tmp/killed.log 2>&1 &
	killed=$!
	sleep $((tenths / 10)).$((tenths % 10)); kill -9 $killed 2>/dev/null; wait $killed 2>/dev/null
	# A command that the killed one had started may still be at work.
	sleep 1
	out=$(snapshot list 2>&1) || out="$out, then $(snapshot list 2>&1)"
	echo "note killed after $tenths tenths of a second: $(grep -m1 ^basalt: <<<"$out" || echo "nothing was left half done")"
	ipfs cat "$first" 2>&1 | cmp -s /var/tmp/first - && ok "the node is whole, as it was or as restored" || bad "no node after the kill: $out; $(zfs list)"
	let_go
	id=$(snapshot list --json | sed -n 's/.*"restores":\[{"datasets":\[[^]]*\],"id":"\([0-9a-f]*\)".*/\1/p')
	[ -z "$id" ] || snapshot restore --confirm "$id" --yes >/dev/null || bad "no confirmation of $id"
	[ "$(zfs list -H -o name -r fast | grep -cE 'before|restore|undone')" = 0 ] && ok "and nothing stands aside" || bad "$(zfs list -r fast)"
done

fi

if part "takes and prunes that are killed"; then
printf '\n[snapshots]\nkeep = ["last:2"]\nmin_age_s = 0\n' >>$node/basalt.toml
for tenths in 4 8 11 15; do
	for what in take "prune --yes"; do
		basalt snapshot --node $node $what >/var/tmp/killed.log 2>&1 &
		killed=$!
		sleep $((tenths / 10)).$((tenths % 10)); kill -9 $killed 2>/dev/null; wait $killed 2>/dev/null
		sleep 1
		# The agent settles it when it starts, and says so.
		basalt agent --node $node >/var/tmp/agent.log 2>&1 &
		agent=$!
		until_ok basalt status --served --node $node
		was=$(grep -m1 -oE "was taken whole|Nothing of basalt.*was taken|A prune that was cut short.*" /var/tmp/agent.log || echo "nothing was left half done")
		echo "note $what killed after $tenths tenths of a second: $was"
		out=$(basalt status --node $node --json 2>&1)
		grep -q '"half_done":true' <<<"$out" && bad "half done after the start: $(cat /var/tmp/agent.log)" || ok "nothing is half done after a killed ${what%% *}"
		grep -q '"incomplete":0' <<<"$out" && ok "no set is broken" || bad "$(snapshot list)"
		kill $agent; wait $agent
	done
done
sed -i '/^\[snapshots\]$/,$d' $node/basalt.toml
fi

if part "prune, hold, policy"; then
printf '\n[snapshots]\nkeep = ["last:1"]\nmin_age_s = 0\nschedule = "* * * * *"\njitter_s = 0\n' >>$node/basalt.toml
three=$(field set "$(snapshot take --json)")
four=$(field set "$(snapshot take --json)")
snapshot hold "$one" >/dev/null && ok "held"
out=$(snapshot prune --explain)
said "destroy  $three  no rule keeps it" "$out" "prune explains what goes"
said "keep     $four  the youngest whole set; last 1 of 1" "$out" "and what stays"
said "keep     $one  hold \"keep\" on" "$out" "and who keeps it"
out=$(snapshot prune --yes); said "destroyed (2 snapshots)" "$out" "pruned"
snapshot hold --release "$one" >/dev/null && ok "released"
said "next in" "$(snapshot policy)" "policy says when the next one is"
said "sets, the youngest" "$(basalt status --node $node)" "status has the snapshots"
basalt agent --node $node >/var/tmp/agent.log 2>&1 &
agent=$!
until_ok grep -q "pruned snapshots" /var/tmp/agent.log && ok "the agent takes and prunes by its schedule" || bad "$(tail -5 /var/tmp/agent.log)"
out=$(snapshot take 2>&1) && ok "a set is taken while an agent serves: $(head -1 <<<"$out")" || bad "$out"
kill $agent; wait $agent

fi

if part "the pause"; then
# All snapshots of one call are of one transaction; what we add to it is to be no more than the same again.
basalt agent --node $node >/var/tmp/agent.log 2>&1 &
agent=$!
until_ok basalt status --served --node $node
rm -f /var/tmp/enough
( while [ ! -e /var/tmp/enough ]; do head -c 3000000 /dev/urandom | ipfs add -Q >/dev/null 2>&1 || exit; done ) &
adding=$!
snapshot_pause $node 9 2 fast/repo fast/repo/basalt 2>&1 | tee /var/tmp/pause.log
[ "${PIPESTATUS[0]}" = 0 ] && ok "the pause of writes is at most twice that of zfs snapshot, while ipfs add runs" || bad "the pause: $(tail -1 /var/tmp/pause.log)"
touch /var/tmp/enough; wait $adding
kill $agent; wait $agent

fi

if part "restore without root"; then
export BASALT_ZFS_HELPER=/usr/lib/basalt/basalt-zfs-helper
useradd -m tester
chmod 666 /dev/zfs
zfs create -o mountpoint=none fast/own
( unset IPFS_PATH; basalt --node /srv/own init --zfs fast/own/node ) >/var/tmp/own.log 2>&1 || bad "$(cat /var/tmp/own.log)"
echo mine >/srv/own/mine
chown -R tester /srv/own
install -d /etc/basalt /usr/lib/basalt
printf '[[allow]]\ndataset = "fast/own"\nfolders = ["/srv/own"]\nowner = "tester"\n' >/etc/basalt/zfs-helper.toml
# Stands for a line of sudoers.
install -m 4755 /tmp/bin/basalt-zfs-helper $BASALT_ZFS_HELPER
own() { su tester -s /bin/bash -c "unset IPFS_PATH; basalt --node /srv/own $*"; }
grants=$(basalt --node /srv/own doctor 2>&1 | sed -n 's/.*as root: \(zfs allow .*\) [^ ]*$/\1/p' | head -1)
said "zfs allow" "$grants" "doctor names the grants"
$grants fast/own
out=$(own snapshot take --json 2>&1); set=$(field set "$out")
[ -n "$set" ] && ok "a set is taken without root" || bad "$out"
rm -f /srv/own/mine
out=$(own snapshot restore "$set" --yes 2>&1) && ok "restored without root" || bad "$out; $(zfs list -r -o name,mounted fast/own)"
holds "what was removed is back" test -s /srv/own/mine
said "tester" "$(stat -c %U /srv/own/keyspace)" "and is that user's"
holds "all is mounted" mountpoint /srv/own/shards/00
out=$(own snapshot restore --undo latest --yes 2>&1) && [ ! -e /srv/own/mine ] && ok "undone without root" || bad "$out"
out=$(own snapshot restore --confirm latest --yes 2>&1) && ok "confirmed without root" || bad "$out"
said "0 of 0" "$(zfs list -H -o name -r fast/own | grep -cE 'before|restore|undone') of 0" "nothing of it stands aside"
fi

if part "two pools"; then
unset IPFS_PATH
zfs create -o mountpoint=/srv/two fast/two
zfs create -o mountpoint=/srv/shard bulk/shard
basalt init /srv/two --path /srv/shard >/dev/null || bad "init over two pools"
basalt agent --node /srv/two >/var/tmp/two.log 2>&1 &
agent=$!
until_ok basalt status --served --node /srv/two
out=$(basalt snapshot --node /srv/two take --json 2>&1)
said '"deletes_held_ms":' "$out" "a set over two pools"
grep -q '"deletes_held_ms":null' <<<"$out" && bad "deletes were not held" || ok "deletes were held: $(field deletes_held_ms "$out") ms"
said "deletes are held" "$(cat /var/tmp/two.log)" "the node knows"
said "Kubo's repo folder" "$out" "what a restore would lack is said"
said "a restore would lack Kubo's repo folder" "$(basalt status --node /srv/two)" "status says it too"
kill $agent; wait $agent
set=$(field set "$out")
printf '\n[snapshots]\nkeep = ["last:1"]\nkeep_metadata = ["last:9"]\nmin_age_s = 0\n' >>/srv/two/basalt.toml
basalt snapshot --node /srv/two take --json >/dev/null
said "would be thinned" "$(basalt snapshot --node /srv/two prune)" "a class that is kept for longer"
basalt snapshot --node /srv/two prune --yes >/dev/null
said "only metadata" "$(basalt snapshot --node /srv/two list)" "blocks went, metadata stays"
said "metadata is left" "$(basalt snapshot --node /srv/two restore "$set" --yes 2>&1)" "what was thinned is not restored"
said "0 pins more" "$(basalt snapshot --node /srv/two diff "$set" latest 2>&1)" "its pins are compared"
set=$(field set "$(basalt snapshot --node /srv/two take --json)")
out=$(basalt snapshot --node /srv/two restore "$set" --yes --json 2>&1)
said '"done":true' "$out" "restored over two pools"
holds "it opens" basalt verify --node /srv/two
out=$(basalt snapshot --node /srv/two restore --confirm "$(field id "$out")" --yes 2>&1) && ok "confirmed over two pools" || bad "$out"
set=$(field set "$(basalt snapshot --node /srv/two take --json)")
zfs rollback bulk/shard@"$set" || bad "no rollback"
basalt agent --node /srv/two >/var/tmp/two.log 2>&1 &
agent=$!
until_ok basalt status --served --node /srv/two
said "/srv/shard is not as this host left it" "$(cat /var/tmp/two.log)" "a shard that was rolled back behind the node's back is found"
lineage=$(basalt status --json --node /srv/two | sed -n 's/.*"lineage":"\([0-9a-f]*\)".*/\1/p')
said "$lineage" "$(grep "new lineage" /var/tmp/two.log)" "and the node has a new lineage"
kill $agent; wait $agent

fi
echo "snapshots: $passed passed; $failed failed"
[ $failed = 0 ] && [ $passed -gt 0 ]
exit
}
