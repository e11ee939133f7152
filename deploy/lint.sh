#!/usr/bin/env bash
# gofumpt, go vet and golangci-lint, at versions that are named here.
set -euo pipefail
gofumpt_version=v0.12.0
golangci_version=v2.15.0
bin=$(go env GOPATH)/bin
[ -x "$bin/gofumpt" ] || go install "mvdan.cc/gofumpt@$gofumpt_version"
[ -x "$bin/golangci-lint" ] || go install "github.com/golangci/golangci-lint/v2/cmd/golangci-lint@$golangci_version"
bad=$(git ls-files '*.go' | xargs "$bin/gofumpt" -l)
if [ -n "$bad" ]; then
  echo "gofumpt would change:"; echo "$bad"; exit 1
fi
go vet ./...
"$bin/golangci-lint" run ./...
