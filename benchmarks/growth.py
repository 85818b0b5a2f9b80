"""How the costs grow: `train_step.py` over tokens and vocabulary, `score.py` over vocabulary, prompt and rationales.

    python benchmarks/growth.py train --lora --rows 1 --clock cpu --threads 1
    python benchmarks/growth.py score --clock cpu --threads 1
    python benchmarks/growth.py train --preset 7b        # one GPU

Arguments it does not know go to the script. Each size is a run of its own, kept in the folder: what was measured is not
measured again, unless the package, the script or a library has changed.
"""

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from measuring import digest_of_code

VOCABULARIES = (32_000, 128_256, 256_000)
TRAIN = [
    {"vocab": vocab, "tokens": tokens, "pairs": pairs}  # more rounds where a step is short
    for vocab, tokens, pairs in (
        (32_000, 512, 48),
        (128_256, 512, 24),
        (256_000, 512, 16),
        (32_000, 2048, 24),
        (32_000, 8192, 8),
        (128_256, 4096, 8),
    )
]
SCORE = [
    *({"vocab": vocab, "prompt_tokens": 1024, "num_cots": 5} for vocab in VOCABULARIES),
    *({"vocab": 32_000, "prompt_tokens": 1024, "num_cots": cots} for cots in (1, 10)),
    {"vocab": 32_000, "prompt_tokens": 4096, "num_cots": 5},
]


def measured(script: str, size: dict[str, int], passed: list[str], folder: Path) -> Any:
    """What the script's last line says of a size; kept under all of its flags and what it measures."""
    flags = [*(text for name, value in size.items() for text in (f"--{name}", str(value))), *passed]
    path = Path(__file__).with_name(f"{script}.py")
    kept = folder / digest_of_code(path) / f"{script} {' '.join(flags).replace('/', '_')}.json"
    if not kept.is_file():
        command = [sys.executable, str(path), *flags]
        print(" ".join(command), file=sys.stderr, flush=True)
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        kept.parent.mkdir(parents=True, exist_ok=True)
        part = kept.with_suffix(".part")
        part.write_text(done.stdout.strip().splitlines()[-1])
        part.replace(kept)
    return json.loads(kept.read_text())


def train_row(size: dict[str, int], found: Any) -> list[str]:
    trainers = found["trainers"]
    cells = [f"{size['vocab']:,}", f"{size['tokens']:,}", str(size["pairs"]), f"{trainers['sft']['seconds']:.2f}"]
    for row in map(trainers.get, ("again", "ours", "full_logits")):
        low, high = row["time_ratio_interval"] if row else (0, 0)
        cells.append(f"{row['time_ratio']:.3f} ({low:.3f} {high:.3f})" if row else "")
    peaks = trainers["sft"]["peak_bytes"]
    cells.append(f"{statistics.median(peaks) / 1e6:,.0f}" if peaks else "")
    memory = [(trainers.get(kind) or {}).get("memory_ratio") for kind in ("ours", "full_logits")]
    return [*cells, *(f"{ratio:.3f}" if ratio else "" for ratio in memory)]


def score_row(size: dict[str, int], found: Any) -> list[str]:
    alone, ours, forced, released = (
        found[name]
        for name in (
            "generation alone",
            "rationale and score",
            "rationale and score, forced",
            "generation, released scoring",
        )
    )
    return [
        f"{size['vocab']:,}",
        f"{size['prompt_tokens']:,}",
        str(size["num_cots"]),
        f"{alone['seconds']:.2f}",
        f"{ours['ratio']:.3f} ({ours['low']:.3f} {ours['high']:.3f})",
        f"{forced['ratio']:.3f} ({forced['low']:.3f} {forced['high']:.3f})",
        f"{released['seconds'] / ours['seconds']:.2f}",
    ]


TABLES: dict[str, tuple[str, list[dict[str, int]], list[str], Any]] = {
    "train": (
        "train_step",
        TRAIN,
        ["vocabulary", "tokens", "rounds", "SFTTrainer, s/step", "SFTTrainer again", "ours", "full logits",
         "SFTTrainer, MB", "ours", "full logits"],
        train_row,
    ),
    "score": (
        "score",
        SCORE,
        ["vocabulary", "prompt", "rationales", "generation alone, s", "ours", "ours, forced",
         "with the released scoring / ours"],
        score_row,
    ),
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=TABLES)
    parser.add_argument("--output_dir", type=Path, default=Path("runs/growth"))
    args, passed = parser.parse_known_args()
    script, sizes, heads, row = TABLES[args.what]
    print(f"| {' | '.join(heads)} |\n|{'---|' * len(heads)}")
    for size in sizes:
        print(f"| {' | '.join(row(size, measured(script, size, passed, args.output_dir)))} |", flush=True)


if __name__ == "__main__":
    main()
