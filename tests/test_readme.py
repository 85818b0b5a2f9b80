"""The README's Python blocks and its example run as printed, with a tiny model in place of the one they name."""

import json
import re
import shlex
from pathlib import Path

import pytest
from datasets import Dataset
from tiny import PREFIX, train_judge

from tract_trainer import ScoreScale
from tract_trainer.cli.main import main
from tract_trainer.data.records import training_examples

README = Path(__file__).parents[1] / "README.md"


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README.read_text(), flags=re.DOTALL)


@pytest.fixture
def rows():
    """The row that the README shows, and one with another score."""
    (shown,) = (json.loads(text) for text in blocks("json"))
    other = [{"role": "assistant", "content": "It is right. So the overall score is 5"}]
    return [shown, {**shown, "prompt": [{"role": "user", "content": "Rate 7."}], "completion": other, "score": 5.0}]


def test_the_blocks_run(rows, tmp_path, monkeypatch, capsys):
    train, judge = blocks("python")
    monkeypatch.chdir(tmp_path)
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    # Ends with a score by itself, as a large model would.
    train_judge(tmp_path / "seed", dataset=Dataset.from_list(rows), score_loss_weight=0.0).save_model()
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    assert "Qwen/Qwen3-8B" in train and "max_length=3000" in train
    train = train.replace("Qwen/Qwen3-8B", str(tmp_path / "seed"))
    for block in (train.replace("max_length=3000", "use_cpu=True, report_to='none'"), judge):
        exec(compile(block, str(README), "exec"), {})
    assert (tmp_path / "judge" / "judge_config.json").is_file()
    assert "'pearson'" in capsys.readouterr().out


def test_the_example_without_rationales_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (template,) = blocks("jinja")
    Path("ask.jinja").write_text(template)
    Path("rubric.txt").write_text("Is it right?\n")
    records = [{"instruction": "Name a prime.", "response": f"{n}", "score": n} for n in range(1, 11)]
    for name in ("train", "held_out", "new"):
        Path(f"{name}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    section = README.read_text().partition("\n### 300 records")[2].partition("\n## ")[0].replace("\\\n", "")
    sft, evaluate, judge = (shlex.split(line) for line in re.findall(r"^    tract (.*)$", section, flags=re.M))

    scale = ScoreScale.parse(sft[sft.index("--scale") + 1])
    rows = training_examples(
        [{**record, "rubric": "Is it right?"} for record in records], scale, PREFIX, template, conversational=True
    )
    settings = {"score_labels": scale.labels, "score_loss_weight": 0.0}
    train_judge(tmp_path / "seed", dataset=Dataset.from_list(list(rows)), **settings).save_model()
    sft[sft.index("Qwen/Qwen3-8B")] = str(tmp_path / "seed")
    on_cpu = ["--use_cpu", "true", "--bf16", "false", "--report_to", "none", "--max_steps", "1"]
    assert main([*sft, *on_cpu]) == 0
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    assert main(evaluate) == 0 and main(judge) == 0
    assert json.loads(Path("evaluation/held_out.json").read_text())["methods"]["RAIL"]["unscored"] == 0
    judged = [json.loads(line) for line in Path("judged.jsonl").read_text().splitlines()]
    assert len(judged) == 10 and all(1 <= row["score"] <= 10 and not row["rationale"] for row in judged)


def test_ten_lines_train_and_ten_judge():
    for block in blocks("python"):
        lines = [line for line in block.splitlines() if line and not line.startswith(("from ", "import "))]
        assert len(lines) <= 10, block


def test_the_tree_names_every_file():
    package = README.parent / "tract_trainer"
    text = README.read_text()
    missing = [path.name for path in package.glob("*.py") if path.name not in text and not path.name.startswith("__")]
    assert not missing
