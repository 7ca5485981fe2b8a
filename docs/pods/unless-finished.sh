#!/bin/bash
# python -m train, with an error if it stopped before its end: a run that got a SIGTERM has saved
# and ends without one, and whoever started it would take it for finished.

out=""
for option in "$@"; do
    [[ $option == --out=* ]] && out=${option#--out=}
done
: "${out:?give --out=FOLDER}"

trap 'kill -TERM $! || exit' TERM # where there is none yet, none starts
python -m train "$@" &
wait $! # a signal ends this one
wait $!
code=$?
((code == 0)) || exit "$code"
[[ -d $out/adapter || -d $out/model ]]
