"""What the score term costs: step time and peak memory of `RegressionAwareSFTTrainer` against `SFTTrainer` and against
the loss over full logits, on the same model and data.

    python benchmarks/train_step.py --lora
    python benchmarks/train_step.py --preset 7b      # one GPU
    python benchmarks/train_step.py --lora --trainers letters ten    # labels of two tokens against labels of one
    python benchmarks/train_step.py --lora --trainers grpo real --rows 8    # reinforcement learning, but for sampling

Time: all trainers live in one process, each in its own `train()`, and take their optimizer steps in turns, in a new
order each round, so that what else the machine does meets all. The ratio is that of the medians, with a 95 % interval
from resampled rounds. "SFTTrainer again" is a second one, and what stands below the ratio is the mean of the two: equal
trainers differ by where their memory lies, and how far these are from 1 is the error of the measurement. Where others
use the machine, take `--clock cpu --threads 1`, the processor time of the process.
Memory: each trainer in a process of its own, `--repeats` times; on a CPU the peak of the whole process, whose allocator
gives back at once what is freed, on a GPU the peak of PyTorch's.
"""

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

PRESETS: dict[str, dict[str, Any]] = {
    "small": {"vocab": 32_000, "hidden": 256, "layers": 4, "heads": 4, "tokens": 512, "rows": 4, "device": "cpu"},
    "7b": {"vocab": 32_000, "hidden": 4096, "layers": 32, "heads": 32, "tokens": 2048, "rows": 4, "device": "cuda",
           "lora": True},
}  # fmt: skip
NAMES = {
    "sft": "SFTTrainer",
    "again": "SFTTrainer again",
    "ours": "RegressionAwareSFTTrainer",
    "full_logits": "full logits, fp32",
    "letters": "ten letters",
    "ten": "1 to 10, of which 10 is two tokens",
    "hundred": "0 to 100, of one to three tokens",
    "grpo": "GRPOTrainer, a reward that costs nothing",
    "real": "RegressionAwareGRPOTrainer",
}
GROUP = 8
"""Rationales of a prompt, whose tokens are a quarter of a row."""
LABELS = {"letters": [*"ABCDEFGHIJ"], "ten": [*map(str, range(1, 11))], "hundred": [*map(str, range(101))]}
BASES = ("sft", "again"), ("letters",), ("grpo",)
"""What the others are compared with: the first of these that are measured."""
TIME_BAR, MEMORY_BAR, REINFORCE_BAR = 1.02, 1.01, 1.15
# glibc keeps freed tensors of up to 32 MB for later: peaks of equal runs then differ by some per cent.
GIVE_BACK = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536", "MALLOC_ARENA_MAX": "1"}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", choices=PRESETS, default="small", help="defaults of the flags of size")
    for name in ("vocab", "hidden", "layers", "heads", "tokens", "rows"):
        parser.add_argument(f"--{name}", type=int)
    parser.add_argument("--device", choices=["cpu", "cuda"])
    parser.add_argument("--lora", action=argparse.BooleanOptionalAction, help="LoRA of rank 8 on all linear layers")
    parser.add_argument("--trainers", nargs="+", choices=NAMES, default=["sft", "again", "ours", "full_logits"])
    parser.add_argument("--pairs", type=int, default=30, help="rounds that are timed")
    parser.add_argument("--warmup", type=int, default=3, help="rounds before them")
    parser.add_argument("--steps", type=int, default=4, help="optimizer steps of a memory run")
    parser.add_argument("--repeats", type=int, default=3, help="memory runs of each trainer; 0 for none")
    parser.add_argument("--clock", choices=["wall", "cpu"], default="wall")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--measure", choices=NAMES, help=argparse.SUPPRESS)  # a memory run, in its own process
    parser.set_defaults(**PRESETS[parser.parse_known_args()[0].preset])
    return parser.parse_args()


# What is compared


def make_trainer(kind: str, args: argparse.Namespace, steps: int) -> Any:
    """One of the trainers on a Llama with random weights and rows of random tokens that end with a score."""
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast
    from trl import SFTConfig, SFTTrainer

    from tract_trainer import RegressionAwareSFTConfig, RegressionAwareSFTTrainer

    class FullLogitsTrainer(RegressionAwareSFTTrainer):
        """The same loss, the plain way: float32 logits of every token."""

        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            logits = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).logits
            log_probs = logits[:, :-1].float().log_softmax(-1)  # (B, T - 1, V)
            labels, gold = inputs["labels"][:, 1:], inputs["score_labels"][:, 1:]
            token = log_probs.gather(-1, labels.clamp(min=0).unsqueeze(-1)).squeeze(-1)
            due = ~gold.isnan()
            scale = log_probs[due][:, list(self.score_tokens.ids)].exp()  # (N, K)
            squares = (scale @ self._values.to(scale.device) - gold[due]).square()
            return -token[labels != -100].sum() / num_items_in_batch + squares.sum() / self._scores_in_step

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate(["<pad>", "</s>", *letters])}
    bytewise = Tokenizer(models.BPE(vocabulary, []))
    bytewise.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bytewise.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bytewise, pad_token="<pad>", eos_token="</s>")

    draw, labels = random.Random(args.seed), LABELS.get(kind, [*"12345"])
    data = []
    for _ in range(args.rows * steps):
        label = labels[draw.randrange(len(labels))]
        end = [*tokenizer(f"So the overall score is {label}")["input_ids"], tokenizer.eos_token_id]
        ids = [draw.randrange(len(vocabulary), args.vocab) for _ in range(args.tokens - len(end))] + end
        half = args.tokens // 2
        data.append({"input_ids": ids, "labels": [-100] * half + ids[half:]})

    torch.manual_seed(args.seed)
    config = LlamaConfig(
        vocab_size=args.vocab,
        hidden_size=args.hidden,
        intermediate_size=11 * args.hidden // 4 // 8 * 8 if args.preset == "small" else 11008,
        num_hidden_layers=args.layers,
        num_attention_heads=args.heads,
        max_position_embeddings=args.tokens,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=None,
    )
    on_gpu = args.device == "cuda"
    with torch.device(args.device):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16 if on_gpu else torch.float32)
    lora = LoraConfig(r=8, lora_alpha=16, target_modules="all-linear") if args.lora else None
    if kind in ("grpo", "real"):
        return make_grpo_trainer(kind, args, steps, model, tokenizer, lora)
    kinds = {"full_logits": FullLogitsTrainer, **dict.fromkeys(("ours", *LABELS), RegressionAwareSFTTrainer)}
    scale = {"score_labels": labels, "score_values": [*range(len(labels))]} if kind in LABELS else {}
    return kinds.get(kind, SFTTrainer)(
        model=model,
        args=(RegressionAwareSFTConfig if scale else SFTConfig)(**training(args, steps), max_length=None, **scale),
        train_dataset=Dataset.from_list(data),
        processing_class=tokenizer,
        peft_config=lora,
    )


def training(args: argparse.Namespace, steps: int) -> dict[str, Any]:
    """Settings of all trainers."""
    return {
        "output_dir": f"{os.environ.get('TMPDIR', '/tmp')}/train_step",
        "max_steps": steps,
        "per_device_train_batch_size": args.rows,
        "bf16": args.device == "cuda",
        "use_cpu": args.device != "cuda",
        "report_to": "none",
        "save_strategy": "no",
        "disable_tqdm": True,
        "log_level": "error",
        "seed": args.seed,
    }


def make_grpo_trainer(kind: str, args: argparse.Namespace, steps: int, model: Any, tokenizer: Any, lora: Any) -> Any:
    """A trainer whose rationales are random tokens and a score: nothing is generated."""
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    from tract_trainer import JudgeConfig, RegressionAwareGRPOTrainer

    draw, length = random.Random(args.seed), args.tokens // 4

    def ids(count: int) -> list[int]:
        return [draw.randrange(len(tokenizer), args.vocab) for _ in range(count)]

    class Given(GRPOTrainer):
        def _tokenize_prompts(self, prompts):
            return [draws[int(prompt)] for prompt in prompts], None, {}

        def _generate_single_turn(self, prompt_ids, images, multimodal_fields, num_generations, has_tool_images=False):
            ends = [tokenizer(f"So the overall score is {draw.randint(1, 5)}")["input_ids"] for _ in prompt_ids]
            return [[*ids(length - len(end) - 1), *end, tokenizer.eos_token_id] for end in ends], None

    class GivenToJudge(RegressionAwareGRPOTrainer, Given):
        _tokenize_prompts = Given._tokenize_prompts

    draws = [ids(args.tokens - length) for _ in range(steps * args.rows // GROUP)]
    config = GRPOConfig(**training(args, steps), num_generations=GROUP)
    rows = Dataset.from_list([{"prompt": str(i), "score": 1.0 + i % 5} for i in range(len(draws))])
    common = {"train_dataset": rows, "processing_class": tokenizer, "peft_config": lora}
    if kind == "grpo":
        return Given(model, lambda prompts, **_: [float(i % 5) for i in range(len(prompts))], config, **common)
    return GivenToJudge(model, args=config, judge_config=JudgeConfig([*"12345"], conversational=False), **common)


# Memory


def peak_memory(device: str) -> int:
    """Bytes, of this process's life."""
    if device == "cuda":
        import torch

        return torch.cuda.max_memory_allocated()
    status = Path("/proc/self/status")
    if status.exists():  # unlike getrusage, it does not start from the peak of the parent process
        return int(status.read_text().split("VmHWM:")[1].split()[0]) * 1024
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def measure_memory(args: argparse.Namespace) -> dict[str, list[int]]:
    """Peaks of each trainer, in bytes."""
    peaks: dict[str, list[int]] = {kind: [] for kind in args.trainers if kind != "again"}
    for _ in range(args.repeats):
        for kind, found in peaks.items():
            command = [sys.executable, *sys.argv, "--measure", kind]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=os.environ | GIVE_BACK)
            found.append(int(done.stdout.strip().splitlines()[-1]))
    return peaks


# Time


def measure_time(args: argparse.Namespace) -> tuple[dict[str, list[float]], Any]:
    """Seconds of each trainer's steps, and one of the models."""
    import torch
    from transformers import TrainerCallback

    class Turns(TrainerCallback):
        """Stops its trainer after each step until it is told to go on."""

        def __init__(self) -> None:
            self.go, self.done, self.error = threading.Semaphore(0), threading.Semaphore(0), None

        def on_train_begin(self, *_: Any, **__: Any) -> None:
            self.done.release()
            self.go.acquire()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            if args.device == "cuda":
                torch.cuda.synchronize()
            self.on_train_begin()

        def run(self, trainer: Any) -> None:
            torch.set_num_threads(args.threads)
            try:
                trainer.train()
            except BaseException as error:
                self.error = error
            self.done.release()

        def turn(self) -> float:
            """Seconds of a step, with its batch, its optimizer and its log."""
            start = clock()
            self.go.release()
            self.done.acquire()
            if self.error is not None:
                raise self.error
            return clock() - start

    clock = time.perf_counter if args.clock == "wall" else time.process_time
    turns, seconds = {kind: Turns() for kind in args.trainers}, {kind: [] for kind in args.trainers}
    for kind, turn in turns.items():
        trainer = make_trainer(kind, args, args.warmup + args.pairs + 1)  # the last step is never taken
        trainer.add_callback(turn)
        threading.Thread(target=turn.run, args=(trainer,), daemon=True).start()
        turn.done.acquire()
    order, draw = list(turns), random.Random(args.seed)
    for taken in range(args.warmup + args.pairs):
        draw.shuffle(order)
        for kind in order:
            spent = turns[kind].turn()
            if taken >= args.warmup:
                seconds[kind].append(spent)
    return seconds, trainer.model


def utilisation(args: argparse.Namespace, model: Any, step: float) -> float:
    """Model FLOPs of a step (nothing recomputed) per second, as a share of what a large bf16 product reaches here."""
    import torch

    head = args.vocab * args.hidden
    body = sum(p.numel() for name, p in model.named_parameters() if "lora_" not in name) - 2 * head
    passes = 4 if args.lora else 6  # frozen weights need no gradient of their own
    attention = 6 * args.layers * args.tokens * args.hidden  # causal, forward and backward
    flops = args.rows * args.tokens * (passes * (body + head / 2) + attention)  # half of the tokens are supervised
    a = torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16)
    for _ in range(3):
        a @ a
    torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(20):
        a @ a
    torch.cuda.synchronize()
    return flops / step / (20 * 2 * 8192**3 / (time.perf_counter() - start))


# What came out


def base(trainers: dict[str, Any]) -> list[str]:
    """The trainers that the others are compared with."""
    return next(found for kinds in BASES if (found := [kind for kind in kinds if kind in trainers]))


def time_ratios(seconds: dict[str, list[float]]) -> dict[str, tuple[float, float, float]]:
    """
    Each trainer's median step over that of the base, of which there may be two, with its 95 % interval from resampled
    rounds.
    """
    import numpy as np
    from scipy import stats

    plain = np.mean([seconds[kind] for kind in base(seconds)], axis=0)  # (rounds,)

    def ratio(mine: Any, base: Any, axis: int = -1) -> Any:
        return np.median(mine, axis) / np.median(base, axis)

    found = {}
    for kind, spent in seconds.items():
        drawn = stats.bootstrap((spent, plain), ratio, paired=True, vectorized=True, method="percentile", rng=0)
        found[kind] = (float(ratio(spent, plain)), *map(float, drawn.confidence_interval))
    return found


def report(args: argparse.Namespace, seconds: dict[str, list[float]], peaks: dict[str, list[int]], model: Any) -> None:
    from rich.console import Console
    from rich.table import Table

    result: dict[str, Any] = {"settings": {k: v for k, v in vars(args).items() if k != "measure"}, "trainers": {}}
    table = Table("trainer", "s/step", "ratio", "its 95 % interval", "peak MB", "ratio", "runs", "MFU")
    ratios = time_ratios(seconds)
    for kind, spent in seconds.items():
        ratio, low, high = ratios[kind]
        memory = peaks.get(kind, [])
        row = {
            "seconds": statistics.median(spent),
            "time_ratio": ratio,
            "time_ratio_interval": [low, high],
            "peak_bytes": memory,
            "memory_ratio": statistics.median(memory) / statistics.median(peaks[base(peaks)[0]]) if memory else None,
            "mfu": utilisation(args, model, statistics.median(spent)) if args.device == "cuda" else None,
        }
        result["trainers"][kind] = row
        table.add_row(
            NAMES[kind],
            f"{row['seconds']:.3f}",
            f"{row['time_ratio']:.3f}",
            f"{low:.3f} {high:.3f}",
            f"{statistics.median(memory) / 1e6:,.0f}" if memory else "",
            f"{row['memory_ratio']:.3f}" if memory else "",
            " ".join(f"{peak / 1e6:,.0f}" for peak in memory),
            f"{row['mfu']:.1%}" if row["mfu"] else "",
        )
    console = Console(width=140)
    console.print(table)
    bars = f"time {REINFORCE_BAR}" if "real" in args.trainers else f"time {TIME_BAR}, memory {MEMORY_BAR}"
    allowance = (
        ""
        if args.lora or "real" in args.trainers
        else f", and one head-shaped gradient more: {args.vocab * args.hidden * 4 / 1e6:.0f} MB"
    )
    console.print(
        f"{args.rows} rows of {args.tokens} tokens, vocabulary {args.vocab:,}, {args.layers} layers of {args.hidden}, "
        f"{'LoRA' if args.lora else 'full training'}, gradient checkpointing as by default, {args.device}, "
        f"{args.threads} threads, {args.clock} time, {args.pairs} rounds. "
        f"Bars for ours: {bars}{allowance}."
    )
    print(json.dumps(result))


def main() -> None:
    args = arguments()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    if args.measure:
        import torch

        torch.set_num_threads(args.threads)
        make_trainer(args.measure, args, args.steps).train()
        print(peak_memory(args.device))
        return
    peaks = measure_memory(args)  # first, while this process holds no memory of a device
    seconds, model = measure_time(args)
    report(args, seconds, peaks, model)


if __name__ == "__main__":
    main()
