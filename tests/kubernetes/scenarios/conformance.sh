# The Gateway API's own conformance suite for meshes: HTTP and gRPC, core and extended; one check for each of its tests.
# needs nodes
need "definitions, images and a waypoint are there" "$top/tests/conformance/run" prepare
OUT=$WORK "$top/tests/conformance/run" > "$WORK/lines" 2> "$WORK/said"
tested() { grep -q "^PASS $1 " "$WORK/lines" || { grep -A12 -- "--- FAIL: TestConformance/$1" "$WORK/log"; return 1; }; }
for t in $(grep -v ' in all ' "$WORK/lines" | cut -d' ' -f2); do check "$t" tested "$t"; done
check "nothing was left out" grep -q '^PASS in all' "$WORK/lines"
restore() { k delete namespace conformance-waypoint --wait=false >/dev/null 2>&1; }
