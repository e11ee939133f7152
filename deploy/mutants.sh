#!/usr/bin/env bash
# Takes each guarantee out and sees that its test notices. A mutant is a patch
# testdata/mutants/NAME.patch whose first lines say, as "# package:" and
# "# test:", what must go red. Each is applied to a copy of the tree.
set -uo pipefail
top=$(git rev-parse --show-toplevel); cd "$top"
only=${1:-}
tmp=$(mktemp -d); trap 'rm -rf "$tmp"' EXIT
failed=0; n=0
for p in testdata/mutants/*.patch; do
  name=$(basename "$p" .patch)
  [ -z "$only" ] || [ "$only" = "$name" ] || continue
  pkg=$(sed -n 's/^# package: *//p' "$p"); test=$(sed -n 's/^# test: *//p' "$p")
  rm -rf "$tmp/tree"; mkdir "$tmp/tree"
  git ls-files -z | xargs -0 cp --parents -t "$tmp/tree"
  if ! (cd "$tmp/tree" && patch -s -p1 <"$top/$p"); then
    echo "FAIL $name: the patch no longer applies"; failed=1; continue
  fi
  n=$((n + 1))
  if ! (cd "$tmp/tree" && go vet "$pkg") >"$tmp/out" 2>&1; then
    echo "FAIL $name: the mutant does not build"; cat "$tmp/out"; failed=1; continue
  fi
  (cd "$tmp/tree" && go test -count=1 -timeout 5m -run "$test" "$pkg") >"$tmp/out" 2>&1
  code=$?
  if [ $code -eq 0 ]; then
    echo "FAIL $name: survived $test in $pkg"; failed=1
  elif ! grep -qE '^(--- FAIL|    --- FAIL|panic: |FAIL)' "$tmp/out"; then
    echo "FAIL $name: $test did not run"; tail -n 20 "$tmp/out"; failed=1
  else
    echo "ok   $name: $(grep -m1 -oE -e '--- FAIL: [^ ]+' "$tmp/out" || echo 'test went red')"
  fi
done
[ -n "$only" ] || [ "$n" -ge 8 ] || { echo "FAIL: only $n mutants ran"; failed=1; }
exit $failed
