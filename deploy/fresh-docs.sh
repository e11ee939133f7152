#!/usr/bin/env bash
# The generated references in docs/ must be what the program generates now.
set -euo pipefail
cd "$(dirname "$0")/.."
make docs
git diff --exit-code -- docs || { echo "generated documents are stale: run make docs and commit"; exit 1; }
