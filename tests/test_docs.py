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
OTHER_PAGES = ("README.md", "CONTRIBUTING.md", "examples/README.md")
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
        block = re.sub("(max_new_tokens|max_completion_length)=[0-9]+", r"\1=20", block)
        exec(compile(block, str(page), "exec"), names)


def test_the_page_of_the_commands_is_up_to_date(generate):
    text = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    assert text == generate.command_line(), "run python docs/generate.py"


def test_the_page_shows_what_its_memory_estimate_prints(capsys):
    page = (ROOT / "docs" / "performance.md").read_text(encoding="utf-8")
    exec(blocks(ROOT / "docs" / "performance.md")[0], {})
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == 4 and all(line in page.splitlines() for line in printed)


def sentences(path):
    """The texts in a module, with `...` for what is not constant in them."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.JoinedStr):
            yield "".join(str(part.value) if isinstance(part, ast.Constant) else "..." for part in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


def test_the_messages_of_the_troubleshooting_page_are_those_of_the_package():
    page = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    shown = re.findall(r"^\| `([^`]+)` \|", page, flags=re.M)
    assert len(shown) == 10
    known = [
        text.replace("`", "") for path in Path(tract_trainer.__file__).parent.rglob("*.py") for text in sentences(path)
    ]
    for message in shown:
        for part in filter(None, (part.strip() for part in message.split("..."))):
            assert any(part in text for text in known), f"{message}: {part!r} is in no message"


def settings_given(page):
    """Each `tract` command that a page prints, and the names of the settings that it gives."""
    text = page.read_text(encoding="utf-8").replace("\\\n", " ")
    for command, given in re.findall(r"(?:\btract|-m tract_trainer) ([a-z]+)\b([^`\n]*)", text):
        yield command, re.findall(r"--(\w+)", given)


@pytest.mark.parametrize("page", [*PAGES, *(ROOT / name for name in OTHER_PAGES)], ids=lambda page: page.stem)
def test_the_commands_of_a_page_have_the_settings_that_it_gives(page, generate):
    for command, given in settings_given(page):
        if command in generate.COMMANDS:
            known = {field.name for kind in generate._kinds(command) for field in generate.fields(kind)}
            known |= {"scale"} if "score_labels" in known else set()  # which is short for them
            assert not set(given) - known - {"config", "help"}, f"tract {command}"


def anchors(page):
    heads = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), flags=re.M)
    return {re.sub(r"[^\w -]", "", head.lower()).strip().replace(" ", "-") for head in heads}


@pytest.mark.parametrize("page", [*PAGES, *(ROOT / name for name in OTHER_PAGES)], ids=lambda page: page.stem)
def test_relative_links_lead_to_files_and_headings(page):
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if "://" not in link:
            name, _, anchor = link.partition("#")
            target = page.parent / name if name else page
            assert target.exists(), link
            assert not anchor or anchor in anchors(target), link


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
    monkeypatch.setattr(commands, "run_pipeline", lambda *args: seen.update(args=args) or {Path("x"): {}})
    monkeypatch.setattr(commands, "_show", lambda *args: None)
    path = ROOT / "examples" / f"{name}.yaml"
    commands.run(["--config", str(path), "--data", "x.json", "--bf16", "false", "--use_cpu", "true"])
    args, model = seen["args"][1:3]
    assert (args.learning_rate, args.num_train_epochs, args.max_length, args.warmup_steps) == (1e-5, 2, 3000, 0.1)
    assert (model.lora_r, model.lora_alpha, model.use_peft) == (8, 16, True)
    assert args.gradient_accumulation_steps * args.per_device_train_batch_size == 8
    assert yaml.safe_load(path.read_text())["top_p"] == 0.9
