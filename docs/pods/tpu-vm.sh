#!/bin/bash
# Fine-tune on a slice of TPU VMs, from your own machine:
#     docs/pods/tpu-vm.sh create     # ask for the slice and wait
#     docs/pods/tpu-vm.sh setup      # mount the bucket and install from it, on every host
#     docs/pods/tpu-vm.sh train [options of train]
#     docs/pods/tpu-vm.sh log        # of the first host
#     docs/pods/tpu-vm.sh stop       # save, and stop; `train` goes on from there
#     docs/pods/tpu-vm.sh delete
# A spot slice that was taken away: delete, create, setup, train.

set -euo pipefail
: "${NAME:=qwen}" "${ZONE:=us-west4-a}" "${BUCKET:?the bucket that holds wheel, model and data}"
: "${TYPE:=v5litepod-16}" "${RUNTIME:=v2-alpha-tpuv5-lite}" # v5e 4x4; 4x4x4: v5p-128, v2-alpha-tpuv5
# inside the bucket; the wheel is what `pip wheel --no-deps .` makes
: "${WHEEL:=qwen_jax-0.1.0-py3-none-any.whl}"
: "${MODEL:=qwen-7b-chat}" "${DATA:=chats.json}" "${OUT:=runs/first}"
slice=(--zone "$ZONE" --quiet)

everywhere() { gcloud compute tpus tpu-vm ssh "$NAME" "${slice[@]}" --worker=all --command "$1"; }

create() {
    gcloud compute tpus queued-resources create "$NAME" "${slice[@]}" --node-id "$NAME" \
        --accelerator-type "$TYPE" --runtime-version "$RUNTIME" --spot
    until [[ $(state) == ACTIVE ]]; do
        [[ $(state) != FAILED ]]
        sleep 30
    done
}

state() {
    gcloud compute tpus queued-resources describe "$NAME" "${slice[@]}" --format 'value(state.state)'
}

setup() {
    everywhere "
        set -e
        if ! command -v gcsfuse > /dev/null; then
            key=/usr/share/keyrings/cloud.google.asc
            curl --silent --fail https://packages.cloud.google.com/apt/doc/apt-key.gpg | sudo tee \$key > /dev/null
            echo \"deb [signed-by=\$key] https://packages.cloud.google.com/apt gcsfuse-\$(lsb_release -cs) main\" |
                sudo tee /etc/apt/sources.list.d/gcsfuse.list > /dev/null
            sudo apt-get -qq update
            sudo apt-get -qq install --yes gcsfuse
        fi
        mkdir -p ~/bucket
        mountpoint -q ~/bucket || gcsfuse --implicit-dirs '$BUCKET' ~/bucket
        curl --silent --show-error --fail --location https://astral.sh/uv/install.sh | sh
        ~/.local/bin/uv venv --quiet --clear --python 3.12 ~/venv
        ~/.local/bin/uv pip install --quiet --python ~/venv/bin/python ~/bucket/'$WHEEL'[tpu,train]"
}

train() {
    local options
    options=$(printf ' %q' --model "$MODEL" --data "$DATA" --method lora --out "$OUT" \
        --max-length 2048 --batch-size 32 --micro-batch 2 "$@")
    # a unit outlives the connection; its end is a SIGTERM, after which the run saves
    everywhere "sudo systemd-run --unit train --collect --uid \$USER --setenv HOME=\$HOME \
        --property WorkingDirectory=\$HOME/bucket --property TimeoutStopSec=600 \
        ~/venv/bin/python -m train$options"
}

log() {
    gcloud compute tpus tpu-vm ssh "$NAME" "${slice[@]}" --worker=0 \
        --command "sudo journalctl --unit train --follow --output cat"
}

stop() { everywhere "sudo systemctl stop train"; }

delete() { gcloud compute tpus queued-resources delete "$NAME" "${slice[@]}" --force; }

case "${1:-}" in
    create | setup | train | log | stop | delete) "$@" ;;
    *)
        echo "usage: $0 create|setup|train|log|stop|delete" >&2
        exit 2
        ;;
esac
