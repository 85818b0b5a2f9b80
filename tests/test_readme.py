"""The README's Python blocks run as printed, with a tiny model in the place of the one they name."""

import re
from pathlib import Path

from tiny import train_judge

README = Path(__file__).parents[1] / "README.md"


def test_the_blocks_run(tmp_path, monkeypatch, capsys):
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(), flags=re.DOTALL)
    assert len(blocks) == 2
    monkeypatch.chdir(tmp_path)
    seed = tmp_path / "seed"
    example: dict = {}
    exec(blocks[0].split("\n\n\ndef train")[0], example)
    # Ends with a score by itself, as a large model would.
    train_judge(seed, dataset=example["dataset"], score_loss_weight=0.0).save_model()
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    assert "Qwen/Qwen3-8B" in blocks[0]
    for block in blocks:
        block = block.replace("Qwen/Qwen3-8B", str(seed)).replace("max_length=3000", "use_cpu=True, report_to='none'")
        exec(compile(block, str(README), "exec"), {})
    assert (tmp_path / "judge" / "judge_config.json").is_file()
    assert "'pearson'" in capsys.readouterr().out


def test_the_tree_names_every_file():
    package = README.parent / "tract_trainer"
    text = README.read_text()
    missing = [path.name for path in package.glob("*.py") if path.name not in text and not path.name.startswith("__")]
    assert not missing
