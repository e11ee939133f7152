#!/usr/bin/env bash
# Profiles as text, in benchmarks/profiles: where each nanosecond and each
# instruction of the hot path goes; and with "whole" the same of the whole
# process on backlog A, which starts servers and takes a minute or two (STATE
# names a folder that keeps the backlog).
set -euo pipefail
cd "$(dirname "$0")/.."
out=benchmarks/profiles
tmp=$(mktemp -d); trap 'rm -rf "$tmp"' EXIT
mkdir -p "$out"
title() { echo "# Made by $1: $2"; echo "# $(go version | cut -d' ' -f3-), $(sed -n 's/^model name[^:]*: //p' /proc/cpuinfo | sort -u), $(nproc) cores."; echo; }
top() { go tool pprof -top -nodecount "$1" "${@:2}" 2>/dev/null | grep -vE '^(File|Build ID|Time|Type|Dropped|Showing top)' | sed "s|github.com/tallywire/tallywire/||; s| *$||"; }

hotpath() {
  go build -o "$tmp/hotpath" ./benchmarks/hotpath
  for op in insert update delete; do
    "$tmp/hotpath" -cpuprofile "$tmp/prof" -op $op >"$tmp/said"
    { title "make profile" "CPU time of the whole path of one goroutine, from pgoutput's octets to records for the Kafka client. $(cat "$tmp/said")."
      top 40 "$tmp/hotpath" "$tmp/prof"; } >"$out/hotpath-$op.txt"
    echo "$out/hotpath-$op.txt: $(cat "$tmp/said")"
  done
}

# A count is the same on every machine and every day, to a thousandth: what a
# change of the code costs shows in it when a clock shows noise alone. (perf
# counts instructions, too, where the machine lets it.) The runtime has to tell
# valgrind of its stacks: -tags valgrind.
instructions() {
  command -v valgrind >/dev/null || { echo "no valgrind: instructions are not counted"; return; }
  go build -trimpath -tags valgrind -o "$tmp/hotpath-vg" ./benchmarks/hotpath
  for op in insert update delete; do
    GOMAXPROCS=1 GOGC=off GODEBUG=asyncpreemptoff=1 valgrind --tool=callgrind --toggle-collect='main.(?hot).counted' \
      --callgrind-out-file="$tmp/cg" "$tmp/hotpath-vg" -batches 10 -op $op >/dev/null 2>&1
    { title "make profile" "instructions of one $op, counted by callgrind over 10,000: those of the whole path, and of each function by itself."
      callgrind_annotate --auto=no --threshold=99 "$tmp/cg" | sed -nE 's/^ *([0-9,]+) \(([ 0-9.]+)%\) +(.*)$/\1\t\2\t\3/p' | tr -d , | sed 's| *\[/.*||; s|github.com/tallywire/tallywire/||g; s|/usr/local/go/src/||; s|github.com/tallywire/tallywire@*[^/]*/||g' |
        awk -F'\t' '{ printf "%8.1f %6.2f%%  %s\n", $1/10000, $2, $3 }'; } >"$out/instructions-$op.txt"
    echo "$out/instructions-$op.txt: $(awk '/PROGRAM TOTALS/ { print $1 }' "$out/instructions-$op.txt") instructions"
  done
}

# part NAME FOCUS [IGNORE]: the time of the stacks that FOCUS matches.
part() {
  local s
  s=$(go tool pprof -top -unit=us -nodefraction=0 -edgefraction=0 -nodecount=1000000 -focus="$2" ${3:+-ignore="$3"} "$tmp/tallywire" "$prof" 2>/dev/null | sed -nE 's/^Showing nodes accounting for ([0-9.]+)us.*/\1/p')
  awk -v name="$1" -v us="${s:-0}" -v rows="$rows" 'BEGIN { printf "%-34s %6.3f\n", name, us / rows }'
}

whole() {
  rows=2000000
  go build -o "$tmp/tallywire" ./cmd/tallywire
  printf '#!/bin/sh\nexec "%s" "$@" --cpuprofile "%s/$$.prof"\n' "$tmp/tallywire" "$tmp" >"$tmp/run"
  chmod +x "$tmp/run"
  go run ./benchmarks/peers -binary "$tmp/run" -only a -contenders tallywire -runs 1 ${STATE:+-state "$STATE"} | tee "$tmp/said"
  prof=$(ls -S "$tmp"/*.prof | sed -n 1p) # the other one is of the warm-up
  local gc='runtime\.(gcBgMarkWorker|gcAssistAlloc|bgsweep|bgscavenge|gcStart|gcMarkDone|gcMarkTermination)'
  { title "make profile-whole" "CPU time of the whole process draining backlog A: $rows inserts in transactions of 1,000, exactly once, one partition."
    sed -nE 's/^ *[0-9.]+s +(a .*CPU.*)/\1/p' "$tmp/said"; echo
    echo "microseconds of CPU per row"
    part "read the socket" 'wire\.\(\*Socket\)\.(read|turn)' "$gc"
    part "frame" 'postgres\.\(\*stream\)\.run' "$gc|pipeline\\.\\(\\*session\\)\\.Send"
    part "hand over, budget" 'pipeline\.\(\*session\)\.Send' "$gc"
    part "decode" 'change\.\(\*Batch\)\.Decode' "$gc"
    part "encode, partition, headers" 'pipeline\.\(\*Outputs\)\.Encode' "$gc"
    part "hand records to the client" 'kgo\.\(\*Client\)\.Produce' "$gc"
    part "sequence and commit, the rest" 'pipeline\.\(\*session\)\.sequence' "$gc|kgo\\.\\(\\*Client\\)\\.Produce"
    part "build Kafka batches" 'kgo\.seqRecBatch\.appendTo' "$gc|kgo\\.\\(\\*compressor\\)"
    part "compress" 'kgo\.\(\*compressor\)' "$gc"
    part "promises" 'kgo\.\(\*producer\)\.finishPromises' "$gc"
    part "talk to Kafka" 'kgo\.\(\*(broker|brokerCxn|sink|Client)\)' "$gc|kgo\\.seqRecBatch\\.appendTo|kgo\\.\\(\\*Client\\)\\.Produce|pipeline\\.\\(\\*session\\)\\.sequence"
    part "garbage collection" "$gc"
    part "all" '.'
    echo; top 50 "$tmp/tallywire" "$prof"; } >"$out/whole-a.txt"
  echo "$out/whole-a.txt"
}

case ${1:-} in
  "") hotpath; instructions ;;
  whole) whole ;;
  *) echo "usage: $0 [whole]"; exit 2 ;;
esac
