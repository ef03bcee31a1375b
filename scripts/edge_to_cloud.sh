#!/usr/bin/env bash
# Photographs to attributes: protect on the edge, serve in the cloud, and a relay between them that keeps every byte. Ends with
# an error if a picture or an unprotected feature went over the wire.
#   bash scripts/edge_to_cloud.sh CHECKPOINT PHOTOS OUT [options of protect]     attributes go to OUT/attributes.json
# Run again after an interruption, protect goes on where it stopped.
set -euo pipefail
[ $# -ge 3 ] || { sed -n '2,4p' "$0" >&2; exit 2; }
checkpoint=$1 photos=$2 out=$3
shift 3
mkdir -p "$out"
python -m crafter_pl protect "$photos" --out "$out/store" --checkpoint "$checkpoint" "$@"
: > "$out/serve.log"
python -m crafter_pl serve --checkpoint "$checkpoint" --port 0 >> "$out/serve.log" 2>&1 &
server=$!
trap 'kill $server 2> /dev/null || true' EXIT
until grep -q "answers at http" "$out/serve.log"; do
  kill -0 $server 2> /dev/null || { cat "$out/serve.log" >&2; exit 2; }
  sleep 0.2
done
url=$(grep -o 'http://[^,]*/classify' "$out/serve.log")
here=$(dirname "$0")
python "$here/wire.py" ask "$url" "$out/store" --wire "$out/wire.bin" --out "$out/attributes.json"
python "$here/wire.py" check "$out/wire.bin" "$out/store" "$checkpoint"
