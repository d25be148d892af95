#!/usr/bin/env bash
# Rules a compiler does not check: no large files, no build output, no absolute paths of a developer's machine, no registry host names.
set -euo pipefail
cd "$(dirname "$0")/.."
fail=0
say() { echo "repository rule: $1"; fail=1; }

while IFS= read -r -d '' file; do
  [ -f "$file" ] || continue
  size=$(stat -c %s "$file")
  [ "$size" -le 10000000 ] || say "$file has $size bytes; the limit is 10 MB"
done < <(git ls-files -z)

assets=$(git ls-files -z assets | xargs -0 -r stat -c %s | awk '{s += $1} END {print s + 0}')
[ "$assets" -lt 10000000 ] || say "assets/ has $assets bytes; the limit is 10 MB"

hosts='crates\.io/|pypi\.org|registry\.npmjs|deb\.debian\.org|static\.rust-lang\.org'
if git grep -nIE "$hosts" -- . ':!Cargo.lock' ':!xtask/check-repository.sh'; then say "names a package registry's host"; fi
if git grep -nIE '/(root|home/[a-z]+|work)/[a-z.]' -- . ':!xtask/check-repository.sh' ':!deploy'; then say "holds an absolute path of a developer's machine"; fi
if git ls-files | grep -E '(^|/)(target|node_modules|__pycache__)/'; then say "build output is committed"; fi
[ "$fail" -eq 0 ] && echo "repository rules: ok"
exit "$fail"
