# Sourced by the tests that run in a guest: named checks, and a line of counts at the end (`counts`). The one that sources it has set `suite`, `bin` and
# `only`.
export LC_ALL=C PATH=/usr/sbin:/usr/bin:/sbin:/bin
passed=0 failed=0
# Nothing of it is wanted: then nothing is made.
if ! grep "^c '" "$0" | grep -qE -- "$only"; then
  echo "$suite: 0 passed; 0 failed"
  exit 0
fi
# c 'what must hold' 'commands' [always]: all of them succeed.
c() {
  [[ $1 =~ $only ]] || [ "${3-}" = always ] || return 0
  local began out status
  began=$(date +%s%N)
  out=$(set -euo pipefail; eval "$2" 2>&1)
  status=$?
  if [ $status = 0 ]; then
    passed=$((passed + 1))
    echo "ok   $suite: $1 ($((($(date +%s%N) - began) / 1000000)) ms)"
  else
    failed=$((failed + 1))
    echo "FAIL $suite: $1 (exit status $status)"
    sed 's/^/     | /' <<<"$out" | tail -n 40
  fi
}
counts() {
  echo "$suite: $passed passed; $failed failed"
  [ $failed = 0 ] && [ $passed -gt 0 ]
}
# A command that must fail, and what it says.
fails() { # WORDS COMMAND...
  local words=$1 said
  shift
  if said=$("$@" 2>&1); then
    echo "it should have failed: $*; it said: $said"
    return 1
  fi
  grep -q -- "$words" <<<"$said" || { echo "it failed otherwise than by '$words': $said"; return 1; }
}
# A command that must succeed, and words that it says.
says() { # WORDS COMMAND...
  local words=$1 said
  shift
  said=$("$@" 2>&1) || { echo "failed: $*: $said"; return 1; }
  grep -q -- "$words" <<<"$said" || { echo "it does not say '$words': $said"; return 1; }
}
until_true() { # SECONDS COMMAND...
  local end=$((SECONDS + $1))
  shift
  until "$@" >/dev/null 2>&1; do
    [ $SECONDS -lt $end ] || { echo "not within its time: $*"; return 1; }
    sleep 0.1
  done
}
value() { zfs get -Hpo value "$@"; }
