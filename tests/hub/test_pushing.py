"""Judges and rationales go to a Hub on loopback and come back by name; failed uploads; tokens."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from loopback_hub import loopback_hub

TOKEN = "hf_recognisableTokenOfNobody"
JUDGE_FILES = {"README.md", "judge_config.json", "tokenizer.json", "tokenizer_config.json"}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """The Hub after a user's day, the user's folder, what the user saw by step, and all that was printed."""
    folder = tmp_path_factory.mktemp("user")
    with loopback_hub() as hub:
        repaired = []

        def fail(method, path):
            if path == "/repair":
                repaired.append(True)
                return 204
            if method == "POST" and path == "/api/repos/create" and b'"refused"' in hub.body:
                return 401
            if "/commit/" in path and "/broken/" in path and not repaired:
                return 500
            if "/commit/" in path and "/hung-up/" in path:
                return 0
            return None

        hub.fail = fail
        environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith(("HF_", "TRANSFORMERS_"))},
            "HF_ENDPOINT": hub.url,
            "HF_HOME": str(folder / ".home"),
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "NO_PROXY": "127.0.0.1",
            "OMP_NUM_THREADS": "1",
        }
        client = [sys.executable, str(Path(__file__).parents[1] / "hub_client.py"), str(folder), TOKEN]
        done = subprocess.run(client, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-3000:]
        yield hub, folder, json.loads((folder / "seen.json").read_text()), done.stdout + done.stderr


def seen(world, step):
    found = world[2][step]
    assert not isinstance(found, dict) or "error" not in found, found["error"]
    return found


def card_of(hub, repo, kind="models"):
    text = hub.files(repo, kind)["README.md"].decode()
    return yaml.safe_load(text.split("---\n")[1]), text


def test_a_pushed_model_is_loaded_by_name_and_scores_the_same(world):
    found = seen(world, "full")
    assert found["there"] == pytest.approx(found["here"], abs=1e-6)
    assert found["config"]
    files = set(world[0].files("tester/full"))
    assert files >= JUDGE_FILES | {"model.safetensors", "config.json"}
    assert not any(name.startswith("checkpoint-") for name in files)


def test_what_is_pushed_in_training_is_a_judge_too(world):
    hub = world[0]
    commits = list(hub.repositories["models/tester/full"].commits.values())
    assert len(commits) >= 3
    assert all(set(files) >= JUDGE_FILES | {"model.safetensors"} for files in commits[1:])


def test_a_pushed_adapter_is_loaded_by_name_on_its_base_and_scores_the_same(world):
    found = seen(world, "adapter")
    assert found["there"] == pytest.approx(found["here"], abs=1e-6)
    assert found["there"] != pytest.approx(found["seed"], abs=1e-2)
    files = set(world[0].files("tester/adapter"))
    assert files >= JUDGE_FILES | {"adapter_model.safetensors", "adapter_config.json"}
    assert "model.safetensors" not in files
    metadata, text = card_of(world[0], "tester/adapter")
    assert metadata["base_model"] == "tester/seed" and metadata["library_name"] == "peft"
    assert "--lora-modules judge=tester/adapter" in text and "vllm serve tester/seed" in text


def test_a_pushed_judge_is_reinforced_by_name_and_pushed(world):
    found = seen(world, "reinforced")
    assert found["there"] == pytest.approx(found["here"], abs=1e-6) and found["config"]
    assert found["there"] != pytest.approx(found["start"], abs=1e-4)
    metadata, text = card_of(world[0], "tester/reinforced")
    assert metadata["base_model"] == "tester/seed" and "grpo" in metadata["tags"]
    assert "reinforcement learning on the error of the expected score (REAL)" in text and "zhang2026real" in text
    assert "zhang2026real" not in card_of(world[0], "tester/adapter")[1]


def test_a_revision_is_loaded_by_its_name(world):
    found = seen(world, "revision")
    assert found["first"] == pytest.approx(found["seed"], abs=1e-6)
    assert found["None"] != pytest.approx(found["seed"], abs=1e-2)
    assert found["tagged adapter"] == pytest.approx(seen(world, "adapter")["there"], abs=1e-6)


@pytest.mark.parametrize("repo", ["tester/full", "tester/adapter"])
def test_the_snippets_of_a_pushed_card_run_as_printed(world, repo):
    found = seen(world, "snippets")[repo]
    assert 1 <= found["score"] <= 5 and str(found["score"]) in found["printed"]
    assert found["prompt"] == found["asked"] or found["prompt"][0]["content"] == found["asked"]
    score, rationale = found["plain"]
    assert rationale and score == pytest.approx(found["rail"], abs=1e-4)
    assert 1 <= float(found["server"]) <= 5


def test_plain_transformers_takes_eight_lines(world):
    block = re.findall(r"```python\n(.*?)```", card_of(world[0], "tester/full")[1], flags=re.DOTALL)[1]
    assert len(block.split("\n\n")[-1].strip().splitlines()) == 8 + 1  # and the print


def test_the_pushed_card_names_what_it_was_made_from(world):
    metadata, text = card_of(world[0], "tester/full")
    assert metadata["base_model"] == "tester/seed"
    assert metadata["datasets"] == ["tester/data"]
    assert "Judge.from_pretrained('tester/full')" in text
    assert text.count("| used | 3 |") == 1


@pytest.mark.parametrize(("name", "reason"), [("refused", "401"), ("broken", "500"), ("hung-up", "")])
def test_a_failed_upload_leaves_everything_on_disk_and_says_how_to_go_on(world, name, reason):
    folder, found = world[1], seen(world, "failures")[name]
    place = folder / name
    failed, kept, command = found["message"].split("\n")
    assert failed.startswith(f"The upload of {place} to tester/{name} failed: ") and reason in failed
    assert kept == f"Nothing is lost, everything is in {place}. When the cause is gone, go on with"
    excluded = "--exclude '_*' --exclude 'checkpoint-*' --exclude '.*'"
    assert command.strip() == f"hf upload tester/{name} {place} . --private {excluded}"
    assert found["cause"] != "None"
    assert set(found["files"]) >= JUDGE_FILES | {"model.safetensors"}


def test_the_command_goes_on_where_the_upload_failed(world):
    found = seen(world, "failures")
    assert found["gone on"]["rc"] == 0, found["gone on"]["output"]
    assert found["loaded"] == pytest.approx(found["here"])
    assert not any("checkpoint" in name for name in world[0].files("tester/broken"))


def test_pushed_rationales_are_loaded_by_name_and_trained_on(world):
    found = seen(world, "dataset")
    assert found["loaded"] == found["rows"] and len(found["rows"]) > 0
    metadata, text = card_of(world[0], "tester/rationales", "datasets")
    assert metadata["configs"] == [
        {"config_name": "default", "data_files": [{"split": "train", "path": "train.parquet"}]}
    ]
    assert "[tester/full](https://huggingface.co/tester/full)" in text and "| Rationales asked for | 3 |" in text
    assert set(world[0].files("tester/rationales", "datasets")) == {
        ".gitattributes", "README.md", "train.parquet", "report.json", "settings.json", "judge_config.json"
    }  # fmt: skip
    assert "tester/seed" in found["trained"]


def test_tract_sft_pushes_a_judge(world):
    assert seen(world, "commands")["sft"] == 0
    metadata, text = card_of(world[0], "tester/by-sft")
    assert set(world[0].files("tester/by-sft")) >= JUDGE_FILES | {"model.safetensors"}
    assert "`records.jsonl`." in text and "datasets" not in metadata


def test_tract_run_pushes_the_second_stage_with_its_evaluation(world):
    hub, folder, *_ = world
    assert seen(world, "commands")["run"] == 0
    assert {name for name in hub.repositories if "by-run" in name or "stage" in name} == {"models/tester/by-run"}
    metadata, text = card_of(hub, "tester/by-run")
    commits = list(hub.repositories["models/tester/by-run"].commits.values())[1:]
    assert all(b"2, on self-generated rationales" in files["README.md"] for files in commits)  # never stage 1
    assert "2, on self-generated rationales" in text and "Rationales that a judge wrote itself: " in text
    assert metadata["model-index"][0]["results"][0]["dataset"]["name"] == "held-out records"
    assert "| held-out records |" in text and "No evaluation" not in text
    assert "`records.jsonl`" in (folder / "by-run" / "stage1" / "README.md").read_text()


def test_no_token_is_written_anywhere(world):
    hub, folder, _, printed = world
    assert TOKEN in hub.tokens  # it was used
    assert TOKEN not in printed
    written = [path for path in folder.rglob("*") if path.is_file()]
    assert any(path.name == "training_args.bin" for path in written)
    assert any(path.name == "settings.json" for path in written)
    assert [str(path) for path in written if TOKEN.encode() in path.read_bytes()] == []
    for name, repository in hub.repositories.items():
        for files in repository.commits.values():
            assert not [f"{name}/{file}" for file, data in files.items() if TOKEN.encode() in data]
