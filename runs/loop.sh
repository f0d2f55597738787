#!/usr/bin/env bash
# The closed loop, from nothing, on one machine: a first model is trained on phantoms and served; a month of patients comes
# in, of whom the second half is exposed otherwise; simulated readers sign; the alarm goes; a better model is trained,
# gated, put into shadow, then canary, then into service; one that was trained on flipped labels is caught and taken
# back. Ends with a table of what happened.
#
#   runs/loop.sh [FOLDER]        LOOP_SIZE=small for some minutes, full for about an hour
#
# FOLDER (default build/loop) must be new. Needs Wetread with the `train` extra; WETREAD names the command.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
wetread=${WETREAD:-wetread} python=${PYTHON:-python3} size=${LOOP_SIZE:-full}
case $size in
  small) phantoms=900 month=160 batch=100 seconds=120 epochs=4 positives=14 limit=0.3 margin=0.1 ;;
  full) phantoms=5000 month=1200 batch=400 seconds=1200 epochs=8 positives=30 limit=0.2 margin=0.05 ;;
  *) echo "LOOP_SIZE=$size: use small or full" >&2; exit 2 ;;
esac
out=${1:-build/loop}
[ ! -e "$out" ] || { echo "$out: exists; name a new folder" >&2; exit 2; }
mkdir -p "$out" && cd "$out"
clinic=clinic
export COLUMNS=140  # of tables

say() { printf '\n== %s (%s s)\n' "$*" "$SECONDS"; }
# code FILE COMMAND: keep what it says, print its exit code; an alarm and a failing gate are part of the story.
code() { local file=$1 rc=0; shift; "$@" >"$file" || rc=$?; echo "$rc"; }
share() { "$python" -c "print($1)"; }

# The month is compressed; what the policies call days is real time. One reader is busy for about 85 % of it.
days=30 speed=$((days * 86400 / seconds))
minutes=$(share "0.85 * $seconds / $month * $speed / 60")
window=$(share "$seconds / 86400 * 7 / 30") reference=$(share "$seconds / 86400 * 14 / 30")
shift=$(share "$seconds / 60 / 30")
for file in "$here"/loop/*.toml; do
  sed -e "s/@WINDOW@/$window/; s/@REFERENCE@/$reference/; s/@SHIFT@/$shift/; s/@EPOCHS@/$epochs/" \
      -e "s/@LIMIT@/$limit/; s/@MARGIN@/$margin/; s/@POSITIVES@/$positives/" \
      -e "s/@LEAST@/$((month / 8))/; s/@REVIEWS@/$((month / 4))/; s/@STUDIES@/$((batch / 3))/" "$file" >"$(basename "$file")"
done

say "a first model, from $phantoms phantoms"
$wetread phantom phantoms "$phantoms" --seed 5 --size 128 --valid 0.15 --test 0.25 --laterals 0 --workers 2
$wetread pack phantom phantoms base --size 96 --task task.toml >pack.txt
$python "$here/loop/change.py" exposed phantoms exposed-phantoms
$wetread pack phantom exposed-phantoms exposed --size 96 --task task.toml >>pack.txt
$wetread train recipe.toml base first
$wetread package first base champion --recipe recipe.toml
first=$($python "$here/loop/change.py" id champion)

say "served"
export WETREAD_MODELS="$PWD/champion" WETREAD_POINT=balanced WETREAD_PRIORITY="$PWD/rule.toml" WETREAD_SAMPLE_SHARE=0.15 WETREAD_UNDO_SECONDS=0 WETREAD_CRITICAL_ACK_MINUTES=600
$wetread serve --data $clinic --port 0 >serve.log 2>&1 &
server=$!
trap 'kill $server 2>/dev/null || true; wait $server 2>/dev/null || true' EXIT
for _ in $(seq 900); do grep -q 'http://127' serve.log && break; kill -0 $server 2>/dev/null || break; sleep 0.1; done
url=$(grep -om1 'http://127[^/ ]*' serve.log) || { cat serve.log >&2; exit 1; }
export WETREAD_TOKEN=$($wetread token create loop --role administrator --data $clinic)

# patients NAME COUNT DAYS [OPTIONS]: they come and are read, until all of them are signed.
patients() {
  local name=$1 count=$2 over=$3; shift 3
  $wetread simulate arrivals --url "$url" --days "$over" --count "$count" --speed $speed --size 256 --laterals 0 \
    --prevalence 0.8 --hourly day --truth "$name.jsonl" "$@" >"$name-sent.json" &
  local sending=$!
  for _ in $(seq 600); do [ -s "$name.jsonl" ] && break; sleep 0.1; done
  $wetread simulate readers "$name.jsonl" --url "$url" --data $clinic --readers 1 --sensitivity 0.95 --specificity 0.98 \
    --anchoring 0.1 --minutes "$minutes" --no-look >"$name-read.json" &
  local reading=$!
  wait $sending
  ended=$(date -u +%FT%TZ)
  wait $reading
  $wetread simulate score "$name.jsonl" --url "$url" --out "$name-score.json" >"$name-score.txt"
}

say "a month of $month patients, exposed otherwise from the middle on, read in two orders"
$wetread experiment start experiment.toml --data $clinic
patients month "$month" $days --seed 11 --drift exposure --drift-at 0.5 --drift-size 1
$wetread experiment report --data $clinic --interim --json >experiment.json
$wetread experiment stop --reason "the month is over" --data $clinic || true

say "is anything else than it was?"
drift=$(code drift.txt $wetread drift check --policy drift.toml --until "$ended" --data $clinic); cat drift.txt

say "the champion on fixed test data, before"
$wetread evaluate champion base --quick --resamples 200 --out before-base --json >before-base.json
$wetread evaluate champion exposed --quick --resamples 200 --out before-exposed --json >before-exposed.json

say "trained anew"
retrain=$(code retrain.txt $wetread retrain retrain.toml --data $clinic); cat retrain.txt
new=$(echo $clinic/improve/retrain/*/package)
if [ "$retrain" != 0 ] || [ ! -d "$new" ]; then
  echo "no candidate came as far as shadow; $clinic/improve/retrain tells why" >&2
  exit 1
fi
challenger=$($python "$here/loop/change.py" id "$new")

# stage NAME: patients come until the verdict is another than "hold", three times at most; its exit code is in $verdict.
seed=20
stage() {
  for try in 1 2 3; do
    seed=$((seed + 1))
    say "$1: $batch patients, $try"
    patients "$1-$try" "$batch" $((days * batch / month)) --seed $seed --drift exposure --drift-at 0 --drift-size 1
    verdict=$(code "$1.txt" $wetread rollout verdict --apply --policy rollout.toml --data $clinic); cat "$1.txt"
    [ "$verdict" = 3 ] || break
  done
}
stage shadow; shadow=$verdict
canary=
[ "$shadow" != 0 ] || { stage canary; canary=$verdict; }
[ "$verdict" != 3 ] || $wetread rollout rollback --reason "not promoted" --data $clinic
$wetread rollout status --data $clinic

say "the new champion on fixed test data"
$wetread evaluate "$new" base --quick --resamples 200 --out after-base --json >after-base.json
$wetread evaluate "$new" exposed --quick --resamples 200 --out after-exposed --json >after-exposed.json

say "a candidate whose labels of one finding were flipped"
$python "$here/loop/change.py" flipped base sabotaged Cardiomegaly
$wetread train recipe.toml sabotaged bad
$wetread package bad sabotaged sabotage --recipe recipe.toml --name sabotage
gate=$(code gate.txt $wetread gate sabotage base --gates gates.toml --champion "$new"); tail -25 gate.txt
say "put beside the champion all the same"
$wetread rollout stage sabotage --policy rollout.toml --data $clinic
$wetread rollout shadow sabotage --reason "to see whether it is caught" --data $clinic
stage sabotaged; caught=$verdict
$wetread rollout status --json --data $clinic >status.json

say "what happened"
$python "$here/loop/table.py" --first "$first" --challenger "$challenger" --drift "$drift" --retrain "$retrain" \
  --shadow "$shadow" --canary "$canary" --gate "$gate" --caught "$caught" --seconds "$seconds" | tee table.md
