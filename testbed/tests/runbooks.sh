#!/bin/bash
# Every command of the runbooks and of the worked example of snapshots, in a guest with real OpenZFS, root and a real Kubo. For each page a node is made and broken as the
# page says, then its blocks are run in their order, in one shell.
#
#   testbed/tests/runbooks.sh BIN DOCS [ONLY]      BIN has the programs, DOCS is the folder docs/; ONLY: words of a page's name
#
# A page has three kinds of blocks: `sh` is run and succeeds, `sh fails` is run and fails, `text` has lines that the commands above it have said ("..." for anything). A
# block of another kind is a failure. `systemctl` stands for the units that a host has: it starts and stops the agent.
set -u
{
bin=$1 docs=$2 only=${3-}
export LC_ALL=C BASALT_HTTP_LISTEN= BASALT_AGENT_IDLE_EXIT_MS=1500
passed=0 failed=0
mkdir -p /tmp/bin /var/tmp/disks /var/tmp/page
for program in basalt basalt-zfs-helper ipfs snapshot_pause; do [ ! -e "$bin/$program" ] || cp "$bin/$program" /tmp/bin/; done
cat >/tmp/bin/systemctl <<'UNIT'
#!/bin/bash
verb=$1
shift
for unit; do
	[ "$unit" = basalt ] || continue
	case $verb in
	stop)
		[ -e /run/agent.pid ] && kill "$(cat /run/agent.pid)" 2>/dev/null
		for _ in $(seq 300); do basalt status --served >/dev/null 2>&1 || break; sleep 0.2; done
		rm -f /run/agent.pid
		;;
	start)
		setsid basalt agent >>/var/tmp/agent.log 2>&1 </dev/null &
		echo $! >/run/agent.pid
		for _ in $(seq 300); do basalt status --served >/dev/null 2>&1 && exit 0; sleep 0.2; done
		cat /var/tmp/agent.log
		exit 1
		;;
	esac
done
UNIT
chmod +x /tmp/bin/systemctl
export PATH=/tmp/bin:$PATH

# node DISK...: a pool of these disks with a repo on it, a file of 2 MB that is pinned, and a set that has it.
node() {
	zpool create -f -O compression=lz4 -O mountpoint=none tank "$@" || return 1
	basalt --node /srv/ipfs/basalt init --zfs tank/basalt --repo /srv/ipfs --durability ordered >/dev/null || return 1
	ipfs init --profile=basalt >/var/tmp/init.log 2>&1 || { cat /var/tmp/init.log; return 1; }
	printf '\n[snapshots]\nkeep = ["last:1"]\nmin_age_s = 0\n' >>/srv/ipfs/basalt/basalt.toml
	head -c 2000000 /dev/urandom >/var/tmp/file
	ipfs add -Q /var/tmp/file >/var/tmp/cid && basalt snapshot take >/dev/null 2>&1
}
gone() {
	systemctl stop basalt
	for _ in $(seq 60); do basalt status --served >/dev/null 2>&1 || break; sleep 0.5; done
	for _ in $(seq 60); do
		zpool list tank >/dev/null 2>&1 || break
		zpool destroy -f tank && break
		sleep 1
	done
	rm -rf /var/tmp/disks/* /var/lib/basalt
	chattr -R -i /srv/ipfs 2>/dev/null
	rm -rf /srv/ipfs
}

before_disk-failed() {
	truncate -s 512M /var/tmp/disks/{a,b,c}
	node mirror /var/tmp/disks/a /var/tmp/disks/b && systemctl start basalt && zpool offline -f tank /var/tmp/disks/b
	export BAD=/var/tmp/disks/b NEW=/var/tmp/disks/c
}
before_pool-full() {
	truncate -s 1G /var/tmp/disks/a
	node /var/tmp/disks/a && systemctl start basalt || return 1
	head -c 30000000 /dev/urandom >/var/tmp/big
	ipfs pin rm "$(ipfs add -Q /var/tmp/big)" >/dev/null
	basalt snapshot take >/dev/null 2>&1
	ipfs repo gc --quiet >/dev/null
	basalt snapshot take >/dev/null 2>&1
	zfs create -o mountpoint=/srv/other -o compression=off tank/other
	# Without compression zeros take space. The last bytes of a pool take for ever.
	dd if=/dev/zero of=/srv/other/full bs=1M count=$((($(zfs get -Hpo value available tank/other) >> 20) - 40)) 2>/dev/null
	sync
}
before_scrub-errors() {
	truncate -s 512M /var/tmp/disks/a
	node /var/tmp/disks/a || return 1
	export FILE=/var/tmp/file
	# The agent that Kubo started lets go of the pool once it has closed.
	for _ in $(seq 60); do zpool export tank && break; sleep 0.5; done
	zpool list tank && return 1
	# Sixteen bytes of the middle of the file, which no compression touches, and one sector around them.
	local at
	at=$(perl -e '
		open F, "<", "/var/tmp/file"; binmode F; seek F, 1000000, 0; read F, $want, 16;
		open D, "+<", "/var/tmp/disks/a"; binmode D; my ($o, $b) = (0, "");
		while (read D, my $c, 1 << 20) { my $i = index $b . $c, $want; if ($i >= 0) { print $o - length($b) + $i; exit } $o += length $c; $b = substr $c, -16 }')
	[ -n "$at" ] || { echo "the block was not found on the disk"; return 1; }
	dd if=/dev/zero of=/var/tmp/disks/a bs=512 seek=$((at / 512)) count=1 conv=notrunc 2>/dev/null
	zpool import -d /var/tmp/disks tank && { zfs mount -a || true; } && systemctl start basalt && zpool scrub -w tank || return 1
	# The agent follows the pool's events.
	for _ in $(seq 120); do basalt verify --quarantined 2>/dev/null | grep -q '^b' && return 0; sleep 0.5; done
	basalt verify --quarantined
	zpool status -v tank
	tail -5 /var/tmp/agent.log
	return 1
}
before_restore() {
	truncate -s 512M /var/tmp/disks/a
	node /var/tmp/disks/a && systemctl start basalt || return 1
	echo later | ipfs add -Q >/dev/null
	rm -rf /srv/ipfs/* 2>/dev/null
	[ ! -e /srv/ipfs/config ] || { echo "the config is still there"; return 1; }
}
before_snapshots() {
	truncate -s 512M /var/tmp/disks/a
	zpool create -f -O compression=lz4 -O mountpoint=none tank /var/tmp/disks/a
	cd /var/tmp && echo first >first && echo second >second
}

# Splits a page into numbered files of its blocks, NN.KIND.
blocks() {
	awk -v dir="$2" '
		/^```/ && open { open = 0; close(file); next }
		/^```/ { open = 1; n++; kind = substr($0, 4); gsub(/ /, "-", kind); if (kind == "") kind = "none"; file = sprintf("%s/%02d.%s", dir, n, kind); printf "" >file; next }
		open { print >file }' "$1"
}

for page in "$docs"/runbooks/{disk-failed,pool-full,scrub-errors,restore}.md "$docs/snapshots.md"; do
	name=$(basename "$page" .md)
	wanted=${only:+no}
	for word in $only; do [[ $name = *"$word"* ]] && wanted=; done
	[ -z "$wanted" ] || continue
	echo "== $name"
	unset IPFS_PATH BASALT_NODE
	[ "$name" = snapshots ] || export IPFS_PATH=/srv/ipfs
	: >/var/tmp/agent.log
	before_"$name" >/var/tmp/before.log 2>&1 || { failed=$((failed + 1)); echo "FAILED $name: it could not be broken: $(tail -9 /var/tmp/before.log)"; gone >/dev/null 2>&1; continue; }
	rm -rf /var/tmp/page/*
	blocks "$page" /var/tmp/page
	run='' bad=0
	if grep -q '^    [^ -]' "$page" && [ "$name" != snapshots ]; then bad=1; echo "FAILED $name: an indented block, which would not be run: $(grep -m1 '^    [^ -]' "$page")"; fi
	# One shell for the whole page, so that what a block exports is there in the next.
	coproc SHELL_OF_PAGE { exec bash 2>&1; }
	page_pid=$SHELL_OF_PAGE_PID
	for block in /var/tmp/page/*; do
		at=$(basename "$block")
		case ${at#*.} in
		sh | sh-fails)
			printf 'status=0; while IFS= read -r -u 9 line; do echo "\$ $line"; eval "$line" 9<&- </dev/null || status=1; done 9<%q; echo "ended with $status"\n' "$block" >&"${SHELL_OF_PAGE[1]}"
			run=''
			while IFS= read -r -t 240 line <&"${SHELL_OF_PAGE[0]}"; do
				[[ $line = "ended with "* ]] && break
				run+=$line$'\n'
			done
			want=0
			[ "${at#*.}" = sh-fails ] && want=1
			if [ "$line" = "ended with $want" ]; then passed=$((passed + 1)); echo "ok $name $at"; else bad=1; failed=$((failed + 1)); echo "FAILED $name $at: $line; it said:"; sed 's/^/  | /' <<<"$run" | tail -30; fi
			;;
		text)
			while IFS= read -r line; do
				[ -n "$line" ] || continue
				pattern=$(sed -e 's/[][\.*^$+?(){}|]/\\&/g' -e 's/\\\.\\\.\\\./.*/g' <<<"$line")
				if grep -qE -- "$pattern" <<<"$run"; then passed=$((passed + 1)); else bad=1; failed=$((failed + 1)); echo "FAILED $name $at: nothing says: $line; it said:"; sed 's/^/  | /' <<<"$run" | tail -30; fi
			done <"$block"
			;;
		toml)
			cp "$block" /var/tmp/block.toml
			if out=$(basalt config check /var/tmp/block.toml 2>&1); then passed=$((passed + 1)); else failed=$((failed + 1)); echo "FAILED $name $at: $out"; fi
			;;
		*) failed=$((failed + 1)) bad=1; echo "FAILED $name: a block of a kind that is not known: ${at#*.}" ;;
		esac
	done
	[ $bad = 0 ] || { echo "--- agent:"; tail -5 /var/tmp/agent.log; zpool status -v tank; zfs list -r tank; }
	echo exit >&"${SHELL_OF_PAGE[1]}"
	wait $page_pid 2>/dev/null
	gone >/var/tmp/gone.log 2>&1
done
echo "runbooks: $passed passed; $failed failed"
[ $failed = 0 ] && [ $passed -gt 0 ]
exit
}
