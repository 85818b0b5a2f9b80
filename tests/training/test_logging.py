"""The figures of training and evaluation reach the loggers that `report_to` names, with nothing set up for them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

TRAIN = f"""
import json, sys
sys.path.insert(0, {str(Path(__file__).parents[1])!r})
from tiny import make_model, make_rows, make_tokenizer
from datasets import Dataset
from tract_trainer import RegressionAwareSFTConfig, RegressionAwareSFTTrainer

tokenizer = make_tokenizer("qwen")
args = RegressionAwareSFTConfig(
    sys.argv[2], report_to=sys.argv[1], project="judges", run_name="first", use_cpu=True, bf16=False, max_steps=2,
    logging_steps=1, eval_strategy="steps", eval_steps=1, max_length=None, save_strategy="no",
)
rows = Dataset.from_list(make_rows())
trainer = RegressionAwareSFTTrainer(
    make_model(vocab_size=len(tokenizer)), args, train_dataset=rows, eval_dataset=rows, processing_class=tokenizer
)
trainer.train()
print("SAID", json.dumps(trainer.state.log_history), flush=True)
"""

READ = {
    "tensorboard": """
import pathlib
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
log = EventAccumulator(str(next(pathlib.Path(sys.argv[2]).rglob("events.out*")).parent))
log.Reload()
found = {tag: [event.value for event in log.Scalars(tag)] for tag in log.Tags()["scalars"]}
""",
    "wandb": """
import wandb
found = {name: [value] for name, value in dict(wandb.run.summary).items() if isinstance(value, (int, float))}
wandb.finish()
""",
    "trackio": """
from trackio.sqlite_storage import SQLiteStorage
found = {}
for row in SQLiteStorage.get_logs("judges", "first"):
    for name, value in row.items():
        found.setdefault(name, []).append(value)
""",
}


@pytest.mark.parametrize("logger", READ)
def test_a_logger_gets_every_figure_with_nothing_extra(logger, tmp_path):
    pytest.importorskip(logger)
    script = tmp_path / "script.py"
    script.write_text(TRAIN + READ[logger] + "\nprint('SAID', json.dumps(found))\n")
    environment = {"WANDB_MODE": "offline", "WANDB_DIR": str(tmp_path), "TRACKIO_DIR": str(tmp_path / "trackio")}
    done = subprocess.run(
        [sys.executable, script, logger, tmp_path / "out"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, **environment},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    history, found = (json.loads(line.removeprefix("SAID ")) for line in done.stdout.splitlines() if "SAID " in line)
    for prefix, where in (("", "train/"), ("eval_", "eval/")):
        last = [entry for entry in history if f"{prefix}score_loss" in entry][-1]
        figures = {name.removeprefix(prefix): value for name, value in last.items() if name not in ("epoch", "step")}
        assert {"score_loss", "score_mae", "score_mass"} <= set(figures)
        for name, value in figures.items():
            assert found[where + name][-1] == pytest.approx(value, rel=1e-5), name
