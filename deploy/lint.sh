#!/usr/bin/env bash
# lint.sh [FOLDER…]: gofumpt, go vet and golangci-lint, at versions that are
# named here, over the whole module or over the packages in some folders.
set -euo pipefail
gofumpt_version=v0.12.0
golangci_version=v2.15.0
bin=$(go env GOPATH)/bin
installed() { [ -x "$bin/$1" ] && go version -m "$bin/$1" | grep -qE "^\s+mod\s.*\s$2\s"; }
installed gofumpt $gofumpt_version || go install "mvdan.cc/gofumpt@$gofumpt_version"
installed golangci-lint $golangci_version || go install "github.com/golangci/golangci-lint/v2/cmd/golangci-lint@$golangci_version"
if [ $# -eq 0 ]; then
  mapfile -t files < <(git ls-files --cached --others --exclude-standard '*.go'); what=(./...)
else
  files=(); what=()
  for dir in "$@"; do files+=("$dir"/*.go); what+=("./$dir"); done
fi
bad=$(for f in "${files[@]}"; do [ ! -f "$f" ] || echo "$f"; done | xargs "$bin/gofumpt" -l)
if [ -n "$bad" ]; then
  echo "gofumpt would change:"; echo "$bad"; exit 1
fi
go vet "${what[@]}"
"$bin/golangci-lint" run "${what[@]}"
