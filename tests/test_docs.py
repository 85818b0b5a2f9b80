"""The documentation's Python runs, its made pages are up to date, its links lead somewhere."""

import ast
import importlib.util
import re
import shutil
from pathlib import Path

import pytest
import yaml
from tiny import train_judge

import tract_trainer
from tract_trainer.cli import commands

ROOT = Path(__file__).parents[1]
PAGES = sorted((ROOT / "docs").rglob("*.md"))
MODELS = ("Qwen/Qwen3-8B", "Qwen/Qwen3-0.6B")


@pytest.fixture(scope="module")
def generate():
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "generate.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def blocks(page):
    return re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), flags=re.DOTALL)


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page)], ids=lambda page: page.stem)
def test_the_blocks_of_a_page_run_in_order(page, judge_folder, tmp_path, monkeypatch):
    """The model that a page names is one that ends with a score by itself, as a large one would."""
    seed = judge_folder
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    names: dict = {}
    if page.stem == "index":  # trains a judge of its own, from one that has learned its rows
        exec(blocks(page)[0].split("\n\n\ndef train")[0], names)
        train_judge(tmp_path / "seed", dataset=names["annotated"], score_loss_weight=0.0).save_model()
        seed = tmp_path / "seed"
    else:
        shutil.copytree(seed, tmp_path / "judge")
    for block in blocks(page):
        for model in MODELS:
            block = block.replace(model, str(seed))
        on_cpu = "use_cpu=True, bf16=False, report_to='none'"
        block = block.replace("max_length=3000", on_cpu).replace("max_steps=2,", f"max_steps=2, {on_cpu},")
        exec(compile(block.replace("max_new_tokens=256", "max_new_tokens=20"), str(page), "exec"), names)


def test_the_page_of_the_commands_is_up_to_date(generate):
    text = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    assert text == generate.command_line(), "run python docs/generate.py"


def test_the_page_of_the_errors_is_up_to_date(generate):
    text = (ROOT / "docs" / "errors.md").read_text(encoding="utf-8")
    assert text == generate.error_messages(), "run python docs/generate.py"


def test_every_error_that_is_raised_has_its_message_on_the_page(generate):
    """A message that the page cannot show is one made by other code: an error passed on, or sentences joined."""
    silent = set()
    for path in Path(tract_trainer.__file__).parent.rglob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            call = node.exc if isinstance(node, ast.Raise) else None
            if isinstance(call, ast.Call) and getattr(call.func, "id", "") in generate.RAISED and call.args:
                text = generate._plain(generate._text(call.args[0], tree))
                silent |= set() if text else {ast.unparse(call.args[0])}
    joined = ["sentences", "[f'No row of the {name} dataset is left to use.', *sentences]"]
    assert silent <= {"str(error)", *(f"'\\n'.join({sentences})" for sentences in joined)}


@pytest.mark.parametrize("page", [*PAGES, ROOT / "README.md"], ids=lambda page: page.stem)
def test_relative_links_lead_to_files(page):
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if "://" not in link and not link.startswith("#"):
            assert (page.parent / link.partition("#")[0]).exists(), link


def test_no_placeholder_was_left():
    for page in PAGES:
        assert not re.search(r"^[A-Z_]{5,}$", page.read_text(), re.M), page.name


def test_every_page_is_in_the_navigation():
    text = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    assert [
        str(page.relative_to(ROOT / "docs")) for page in PAGES if str(page.relative_to(ROOT / "docs")) not in text
    ] == []


@pytest.mark.parametrize("name", ["paper_mistral", "paper_llama"])
def test_the_configs_of_the_paper_hold_settings_of_tract_run(name, monkeypatch):
    seen = {}
    monkeypatch.setattr("tract_trainer.cli.run.run_pipeline", lambda *args: seen.update(args=args) or ({}, Path("x")))
    monkeypatch.setattr(commands, "show", lambda *args: None)
    monkeypatch.setattr(commands, "_rows", lambda data: [])
    path = ROOT / "examples" / f"{name}.yaml"
    commands.run(["--config", str(path), "--data", "x.json", "--bf16", "false", "--use_cpu", "true"])
    args, model = seen["args"][2:4]
    assert (args.learning_rate, args.num_train_epochs, args.max_length, args.warmup_steps) == (1e-5, 2, 3000, 0.1)
    assert (model.lora_r, model.lora_alpha, model.use_peft) == (8, 16, True)
    assert args.gradient_accumulation_steps * args.per_device_train_batch_size == 8
    assert yaml.safe_load(path.read_text())["top_p"] == 0.9
