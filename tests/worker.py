"""Trains a tiny model for some steps and saves its parameters and its log: one process, or several under torchrun.

    torchrun --nproc_per_node 2 tests/worker.py OPTIONS.json

`tests/test_distributed.py` compares what different launches leave.
"""

import json
import os
import sys
from pathlib import Path

import torch
from accelerate import ParallelismConfig
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType
from datasets import Dataset
from peft import LoraConfig
from tiny import make_model, make_rows, make_tokenizer
from torch.distributed.device_mesh import init_device_mesh
from transformers import AutoModelForCausalLM

from tract_trainer import RegressionAwareSFTConfig, RegressionAwareSFTTrainer


def allow_fsdp_on_cpu():
    """Accelerate drops an FSDP plugin in silence where the processes are on CPUs; this puts it back."""
    own_init = AcceleratorState.__init__

    def init(self, *args, fsdp_plugin=None, **kwargs):
        own_init(self, *args, fsdp_plugin=fsdp_plugin, **kwargs)
        if fsdp_plugin is not None:
            self.distributed_type, self.fsdp_plugin = DistributedType.FSDP, fsdp_plugin
            PartialState._shared_state["distributed_type"] = DistributedType.FSDP  # each later state copies this

    AcceleratorState.__init__ = init


def tensor_parallel(model, folder, size):
    """`model` split over the processes, and the argument that says so, which Accelerate takes on GPUs only."""
    ParallelismConfig._validate_accelerator = lambda self, accelerator: None
    model.save_pretrained(folder / "whole")
    mesh = init_device_mesh("cpu", (size,), mesh_dim_names=("tp",))
    split = AutoModelForCausalLM.from_pretrained(folder / "whole", tp_plan="auto", device_mesh=mesh, dtype="float32")
    return split, {"parallelism_config": ParallelismConfig(tp_size=size)}


def rows(scored):
    """Sixteen rows; `scored` says which hold a score: `"all"`, `"one"` in eight, or `"none"`."""
    found = make_rows(16)
    for i, row in enumerate(found):
        if scored == "none" or (scored == "one" and i % 8):
            row["completion"], row["score"] = "No score here.", None
    return Dataset.from_list(found)


def full_parameters(trainer):
    """All parameters, whole, on every process."""
    if trainer.is_deepspeed_enabled:
        import deepspeed

        named = dict(trainer.model.named_parameters())
        with deepspeed.zero.GatheredParameters(list(named.values())):
            return {name: p.detach().clone().float() for name, p in named.items()}
    named = dict(trainer.accelerator.unwrap_model(trainer.model).named_parameters())
    return {name: (p.full_tensor() if hasattr(p, "full_tensor") else p).detach().clone() for name, p in named.items()}


def main():
    options = json.loads(Path(sys.argv[1]).read_text())
    if "fsdp" in options["args"]:
        allow_fsdp_on_cpu()
    tokenizer = make_tokenizer("qwen")
    # Before the arguments: from then on, under ZeRO-3, a new model's parameters are empty.
    model = make_model(options["model"], len(tokenizer), eos_token_id=tokenizer.eos_token_id, **options["sizes"])
    split = {}
    if tp_size := options["args"].pop("tp_size", None):
        model, split = tensor_parallel(model, Path(options["folder"]), tp_size)
    args = RegressionAwareSFTConfig(
        **split,
        **{
            "output_dir": options["folder"],
            "use_cpu": True,
            "bf16": False,
            "report_to": "none",
            "save_strategy": "no",
            "logging_steps": 1,
            "disable_tqdm": True,
            "learning_rate": 1e-3,
            "lr_scheduler_type": "constant",
            "gradient_checkpointing": False,
            "missing_score": "keep",
            **options["args"],
        },
    )
    trainer = RegressionAwareSFTTrainer(
        model=model,
        args=args,
        train_dataset=rows(options["scored"]),
        eval_dataset=rows("all").select(range(5)),
        processing_class=tokenizer,
        peft_config=LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False) if options["lora"] else None,
    )
    world = int(os.environ.get("WORLD_SIZE", "1"))
    assert trainer.accelerator.num_processes == world, "the processes form no group"
    trainer.train(resume_from_checkpoint=options.get("resume"))
    log = [entry for entry in trainer.state.log_history if "loss" in entry]
    evaluation = trainer.evaluate()
    parameters = full_parameters(trainer)
    if trainer.accelerator.is_main_process:
        result = {
            "parameters": parameters,
            "log": log,
            "evaluation": evaluation,
            "num_processes": trainer.accelerator.num_processes,
            "distributed_type": str(trainer.accelerator.distributed_type),
            "sharded": any(hasattr(p, "full_tensor") for p in trainer.model.parameters()),
        }
        torch.save(result, Path(options["folder"]) / "result.pt")
    trainer.accelerator.wait_for_everyone()


if __name__ == "__main__":
    main()
