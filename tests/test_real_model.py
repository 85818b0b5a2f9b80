"""The comparison on a pretrained model, with a made-up model and made-up records in the format of the data."""

import json
import sys
from pathlib import Path

import pytest
from test_real_text import prometheus_row
from tiny import make_model, make_tokenizer

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))
import real_model
import real_tables


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with a model, and a file with six instructions of two responses each."""
    folder, tokenizer = tmp_path_factory.mktemp("real_model"), make_tokenizer("qwen")
    for part in (make_model("llama", len(tokenizer), max_position_embeddings=2048), tokenizer):
        part.save_pretrained(folder / "model")
    rows = [prometheus_row(i // 2, "word " * (1 + i % 5), [1 + i % 5, 1 + i % 5, 1 + (i + 1) % 5]) for i in range(12)]
    (folder / "mt_bench_eval.json").write_text(json.dumps(rows))
    return folder


def run(monkeypatch, made, folder, *more):
    argv = ["real_model.py", str(made / "model"), str(made / "mt_bench_eval.json"), "--preset", "tiny"]
    monkeypatch.setattr(sys, "argv", [*argv, "--device", "cpu", "--output_dir", str(folder), *more])
    real_model.main()


@pytest.mark.slow
def test_every_arm_runs_is_not_done_again_and_stands_in_the_tables(made, tmp_path, monkeypatch, capsys):
    run(monkeypatch, made, tmp_path)
    files = {path: path.stat().st_mtime_ns for path in tmp_path.glob("seed-*/*.json")}
    arms = [arm for wave in real_model.WAVES for arm in wave]
    assert sorted(path.stem for path in files) == sorted([*arms, real_tables.TRIVIAL] * 2)  # the last is not reported
    run(monkeypatch, made, tmp_path)
    assert {path: path.stat().st_mtime_ns for path in files} == files
    capsys.readouterr()
    run(monkeypatch, made, tmp_path, "--summary")
    page = capsys.readouterr().out
    assert all(f"\n| {arm} |" in page for arm in arms)
    assert "8 held-out records of 4 instructions, in 2 folds." in page
