#!/usr/bin/env bash
# Both stages of TRACT on all GPUs of a machine.
#
#     examples/multi_gpu.sh Qwen/Qwen3-8B records.jsonl runs/judge [any setting of `tract sft`]
#
# TRAIN launches training: FSDP2 by default, or DeepSpeed with another file of examples/accelerate. GENERATE launches the
# generation of rationales, where each process loads the whole model and takes a share of the rows.
set -euo pipefail
model=$1 data=$2 output=$3
shift 3
processes=${PROCESSES:-$(nvidia-smi --list-gpus | wc -l)}
accelerate="accelerate launch --num_processes $processes"
TRAIN=${TRAIN:-$accelerate --config_file $(dirname "$0")/accelerate/fsdp2.yaml}
GENERATE=${GENERATE:-$accelerate --multi_gpu}

stage() { # data, folder, settings: the paper's, with eight rows a step if the number of GPUs divides eight
    $TRAIN -m tract_trainer sft --model_name_or_path "$model" --data "$1" --output_dir "$2" \
        --learning_rate 1e-5 --lr_scheduler_type cosine --warmup_steps 0.1 --num_train_epochs 2 --max_length 3000 \
        --per_device_train_batch_size 1 --gradient_accumulation_steps $((processes < 8 ? 8 / processes : 1)) \
        --use_peft --lora_r 8 --lora_alpha 16 --lora_target_modules all-linear "${@:3}"
}

stage "$data" "$output/stage1" "$@"
$GENERATE -m tract_trainer generate --model "$output/stage1" --data "$data" --output_dir "$output/cots"
stage "$output/cots" "$output/stage2" "$@"
