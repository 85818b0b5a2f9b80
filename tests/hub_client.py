"""What a user does with the Hub, step by step, in a process of its own: `HF_ENDPOINT` is read when a library is loaded.

    python hub_client.py FOLDER TOKEN

Works in FOLDER and leaves what it saw in `FOLDER/seen.json`, which tests/test_pushing.py looks at.
"""

import contextlib
import io
import json
import os
import re
import shlex
import subprocess
import sys
import traceback
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import torch
from datasets import Dataset
from huggingface_hub import HfApi, hf_hub_download
from peft import LoraConfig
from tiny import LEARNING, PREFIX, UntilLearned, check_learned, train_judge

sys.path.insert(0, str(Path(__file__).parent / "engines"))
from test_server import serving

from tract_trainer import (
    Judge,
    RegressionAwareGRPOConfig,
    RegressionAwareGRPOTrainer,
    RegressionAwareSFTConfig,
    RegressionAwareSFTTrainer,
    ScoreScale,
    generate_cot_dataset,
    push_dataset,
)
from tract_trainer.cli.main import main
from tract_trainer.data.records import training_examples
from tract_trainer.hub.pushing import push_judge
from tract_trainer.training.saving import RECORD

SEEN: dict[str, Any] = {}
FOLDER, TOKEN = Path(sys.argv[1]), sys.argv[2]
RESPONSES = [(RECORD["response"], 5, "It is right."), ("8", 1, "No, 8 is even."), ("7", 4, "Yes.")]
RECORDS = [{**RECORD, "response": r, "score": s, "rationale": t} for r, s, t in RESPONSES]
SCALE = ScoreScale(list("12345"))
DATA = Dataset.from_list(list(training_examples(RECORDS, SCALE, PREFIX, conversational=True)))
MILDER = [{**record, "score": {5: 4, 4: 3, 1: 2}[record["score"]]} for record in RECORDS]
MILDER_DATA = Dataset.from_list(list(training_examples(MILDER, SCALE, PREFIX, conversational=True)))
COMMON = {
    "report_to": "none",
    "use_cpu": True,
    "bf16": False,
    "disable_tqdm": True,
    "max_length": None,
    "gradient_checkpointing": False,
    "logging_steps": 1,
    "per_device_train_batch_size": 4,
}


def scores(judge: Judge) -> list[float]:
    return [found.score for found in judge.rescore(RECORDS, [record["rationale"] for record in RECORDS])]


def trained(name: str, peft_config: Any = None, **settings: Any) -> RegressionAwareSFTTrainer:
    """A trainer of the seed model that has learned the milder scores: each prompt has one rationale, so 0.9 will do."""
    settings = {**COMMON, **LEARNING, "score_loss_weight": 0.0, **settings}
    args = RegressionAwareSFTConfig(str(FOLDER / name), max_steps=300, hub_token=TOKEN, **settings)
    trainer = RegressionAwareSFTTrainer("tester/seed", args, train_dataset=MILDER_DATA, peft_config=peft_config)
    trainer.add_callback(UntilLearned(trainer, 0.9))
    trainer.train()
    check_learned(trainer, 0.9)
    return trainer


def blocks(repo: str, kind: str = "model") -> list[str]:
    """The Python blocks of a pushed card."""
    card = Path(hf_hub_download(repo, "README.md", repo_type=kind)).read_text(encoding="utf-8")
    return re.findall(r"```python\n(.*?)```", card, flags=re.DOTALL)


def run(code: str) -> tuple[dict[str, Any], str]:
    """The names that the code left, and what it printed."""
    names: dict[str, Any] = {}
    with contextlib.redirect_stdout(io.StringIO()) as out:
        exec(compile(code, "README.md", "exec"), names)
    return names, out.getvalue()


def seed() -> None:
    train_judge(FOLDER / "seed", dataset=DATA).save_model()
    push_judge(FOLDER / "seed", "seed", token=TOKEN)


def full() -> dict[str, Any]:
    saving = {"save_steps": 10, "save_strategy": "steps", "hub_always_push": True}
    trainer = trained("full", push_to_hub=True, hub_model_id="tester/full", **saving)
    trainer.push_to_hub(dataset_name="tester/data")
    here = Judge.from_model(trainer.model, trainer.processing_class, trainer.judge_config)
    there = Judge.from_pretrained("tester/full")
    same = there.config == trainer.judge_config
    return {"here": scores(here), "there": scores(there), "config": same}


def adapter() -> dict[str, Any]:
    lora = LoraConfig(r=4, target_modules="all-linear")
    trainer = trained("adapter", lora, hub_model_id="tester/adapter", save_strategy="no")
    trainer.push_to_hub()
    here = Judge.from_model(trainer.model, trainer.processing_class, trainer.judge_config)
    there = Judge.from_pretrained("tester/adapter")
    seed = scores(Judge.from_pretrained("tester/seed"))
    return {"here": scores(here), "there": scores(there), "seed": seed}


def reinforced() -> dict[str, Any]:
    """A judge that starts from the pushed adapter, and is pushed."""
    settings = {**COMMON, "learning_rate": 1e-2, "max_steps": 1, "num_generations": 4, "max_completion_length": 24}
    del settings["max_length"]
    args = RegressionAwareGRPOConfig(
        str(FOLDER / "reinforced"), hub_token=TOKEN, hub_model_id="tester/reinforced", save_strategy="no", **settings
    )
    trainer = RegressionAwareGRPOTrainer("tester/adapter", args=args, train_dataset=DATA)
    trainer.train()
    trainer.push_to_hub()
    here = Judge.from_model(trainer.model, trainer.processing_class, trainer.judge_config)
    there = Judge.from_pretrained("tester/reinforced")
    start = scores(Judge.from_pretrained("tester/adapter"))
    return {"here": scores(here), "there": scores(there), "start": start, "config": there.config == here.config}


def revision() -> dict[str, Any]:
    push_judge(FOLDER / "seed", "versions", token=TOKEN)
    HfApi().create_tag("tester/versions", tag="first", token=TOKEN)
    push_judge(FOLDER / "full", "versions", token=TOKEN)
    found = {str(name): scores(Judge.from_pretrained("tester/versions", revision=name)) for name in ("first", None)}
    HfApi().create_tag("tester/adapter", tag="first", token=TOKEN)  # its base model has no such tag
    tagged = scores(Judge.from_pretrained("tester/adapter", revision="first"))
    return {**found, "seed": scores(Judge.from_pretrained(FOLDER / "seed")), "tagged adapter": tagged}


def snippets() -> dict[str, Any]:
    seen = {}
    for repo in ("tester/full", "tester/adapter"):
        asked, plain, served = blocks(repo)
        names, printed = run(asked)
        torch.manual_seed(0)
        alone, _ = run(plain)
        record = {"prompt": [{"role": "user", "content": alone["prompt"]}]}
        (rail,) = names["judge"].rescore([record], [alone["rationale"].removesuffix(" ")])
        with serving(names["judge"]) as server:
            _, by_server = run(served.replace("http://localhost:8000/v1", server.url))
        seen[repo] = {
            "printed": printed,
            "score": names["judgment"].score,
            "asked": names["judge"].rows.prompt(RECORD),
            "prompt": record["prompt"],
            "plain": [alone["score"], alone["rationale"]],
            "rail": rail.score,
            "server": by_server,
        }
    return seen


def failures() -> dict[str, Any]:
    seen, trainer = {}, trained("failing", save_strategy="no", hub_private_repo=True)
    for name in ("refused", "broken", "hung-up"):
        trainer.args.output_dir = str(FOLDER / name)
        trainer.args.hub_model_id, trainer.hub_model_id = f"tester/{name}", None
        try:
            trainer.push_to_hub()
        except OSError as error:
            message = str(error)
            files = sorted(path.name for path in (FOLDER / name).iterdir())
            seen[name] = {"message": message, "cause": repr(error.__cause__), "files": files}
    command = shlex.split(seen["broken"]["message"].rpartition("\n")[2])
    (FOLDER / "broken" / "checkpoint-3").mkdir()
    (FOLDER / "broken" / "checkpoint-3" / "optimizer.pt").write_text("large")
    urlopen(f"{os.environ['HF_ENDPOINT']}/repair").close()
    environment = {**os.environ, "HF_TOKEN": TOKEN, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    seen["gone on"] = {"rc": done.returncode, "output": done.stdout + done.stderr}
    seen["loaded"] = scores(Judge.from_pretrained("tester/broken"))
    seen["here"] = scores(Judge.from_pretrained(FOLDER / "broken"))
    return seen


def dataset() -> dict[str, Any]:
    judge = Judge.from_pretrained("tester/full")
    rows = generate_cot_dataset(
        judge, DATA, temperature=0, max_new_tokens=60, output_dir=FOLDER / "cots", progress=False
    )
    push_dataset(FOLDER / "cots", "rationales", judge="tester/full", token=TOKEN)
    (code,) = blocks("tester/rationales", "dataset")
    settings = "use_cpu=True, bf16=False, report_to='none', max_steps=1, gradient_checkpointing=False,\n)\ndataset"
    os.chdir(FOLDER)
    names, _ = run(code.replace("SEED_MODEL", "tester/seed").replace(")\ndataset", settings))
    return {
        "rows": rows.to_list(),
        "loaded": names["dataset"].to_list(),
        "trained": Path("judge/README.md").read_text(),
    }


def commands() -> dict[str, Any]:
    records, out = FOLDER / "records.jsonl", {}
    records.write_text("".join(json.dumps(record) + "\n" for record in RECORDS * 4))
    settings = ["--report_to", "none", "--use_cpu", "true", "--bf16", "false", "--gradient_checkpointing", "false"]
    settings += ["--data", str(records), "--model_name_or_path", "tester/seed", "--dtype", "float32"]
    settings += ["--max_steps", "2", "--learning_rate", "1e-4", "--push_to_hub", "true", "--hub_token", TOKEN]
    settings += ["--model_init_kwargs", json.dumps({"token": TOKEN})]
    out["sft"] = main(["sft", *settings, "--output_dir", str(FOLDER / "by-sft")])
    draw = ["--max_new_tokens", "60", "--temperature", "0"]
    out["run"] = main(["run", *settings, *draw, "--output_dir", str(FOLDER / "by-run"), "--unfinished", "force"])
    return out


if __name__ == "__main__":
    os.environ["ACCELERATE_USE_CPU"] = "true"
    for step in (seed, full, adapter, reinforced, revision, snippets, failures, dataset, commands):
        try:
            SEEN[step.__name__] = step()
        except Exception:
            SEEN[step.__name__] = {"error": traceback.format_exc()}
        (FOLDER / "seen.json").write_text(json.dumps(SEEN))
