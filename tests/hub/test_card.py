"""Model cards: what they state, what survives a rewriting, and that none of it needs a network."""

import json
import os
import re
import socket
import subprocess
import sys

import pytest
import torch
import yaml
from datasets import Dataset
from peft import LoraConfig
from tiny import PREFIX, check_learned, make_dataset, make_model, make_rows, make_tokenizer, train_judge

from tract_trainer import Judge, RegressionAwareSFTConfig, RegressionAwareSFTTrainer, ScoreScale, generate_cot_dataset
from tract_trainer.data.records import training_examples
from tract_trainer.errors import InputError
from tract_trainer.hub.card import END, START, add_results, read_card, write_card
from tract_trainer.hub.pushing import write_dataset_card
from tract_trainer.judge_config import JudgeConfig
from tract_trainer.training.saving import RECORD

FEW = {"steps": 2}
OTHERS = {
    "task": {"type": "z"}, "dataset": {"name": "y", "type": "y"}, "metrics": [{"type": "f1", "value": 0.5}]
}  # fmt: skip


def result(name="flask", digest="d1", num_cots=1, pearson=0.61):
    """The result of an evaluation, as far as a card reads it."""
    figures = {"n": 90, "unscored": 10, "pearson": pearson, "pearson_ci": [0.5, 0.7], "pearson_worst": 0.4, "mass": 0.9}
    return {
        "judge": {"name": "judge"},
        "benchmark": {"name": name, "digest": digest},
        "settings": {"num_cots": num_cots},
        "methods": {"decoded": figures, "RAIL": figures},
    }


@pytest.fixture
def saved(tmp_path):
    trainer = train_judge(tmp_path / "judge", **FEW)
    trainer.save_model()
    return trainer, tmp_path / "judge"


def lines(folder):
    return (folder / "README.md").read_text(encoding="utf-8").splitlines()


# What it states


def test_a_saved_judge_has_a_card_that_states_how_it_was_made(tmp_path):
    rows = make_rows(8, conversational=True)
    rows += [{**rows[0], "completion": [{"role": "assistant", "content": f"No score {i}."}]} for i in range(3)]
    rows += [{**rows[0], "score": None}]
    settings = {"missing_score": "drop", "logging_steps": 1, "score_loss_weight": 0.5, "seed": 7}
    dataset = make_dataset(8).from_list(rows)
    train_judge(tmp_path / "judge", steps=25, dataset=dataset, **settings).save_model()
    text = lines(tmp_path / "judge")
    for line in (
        "# judge",
        "| Scale | `1` = 1, `2` = 2, `3` = 3, `4` = 4, `5` = 5 |",
        "| Closing phrase | `'So the overall score is '` right before the label |",
        "| Asked | in a user turn of the chat template |",
        "| Seed | 7 |",
        "| Progress | 25 steps, 25.00 epochs |",
        "| given | 12 |",
        "| dropped: hold no score | 3 |",
        "| dropped: have an empty `score` | 1 |",
        "| used | 8 |",
        "| score_loss_weight | 0.5 |",
        "| max_steps | 25 |",
        "| per_device_train_batch_size | 8 |",
        "No evaluation of these weights has been added yet.",
    ):
        assert text.count(line) == 1, line
    (row,) = [line.strip("| ").split(" | ") for line in text if line.startswith("| training | 25 |")]
    assert all(float(cell) > 0 for cell in row[2:4]) and row[4:] == ["-"] * 3


def test_held_out_figures_stand_beside_the_losses(tmp_path):
    args = RegressionAwareSFTConfig(
        str(tmp_path), max_steps=2, eval_strategy="steps", eval_steps=1, report_to="none", use_cpu=True, bf16=False,
        gradient_checkpointing=False, max_length=None, per_device_train_batch_size=8, save_strategy="no",
    )  # fmt: skip
    tokenizer = make_tokenizer()
    trainer = RegressionAwareSFTTrainer(
        make_model("llama", len(tokenizer)),
        args,
        train_dataset=make_dataset(8),
        eval_dataset={"mine": make_dataset(8)},
        processing_class=tokenizer,
    )
    trainer.train()
    trainer.save_model()
    found = trainer.state.log_history[-2]
    (row,) = [line for line in lines(tmp_path) if line.startswith("| mine | 2 |")]
    assert row.split(" | ")[2:4] == [f"{found['eval_mine_ce_loss']:.4g}", f"{found['eval_mine_score_loss']:.4g}"]


def test_rows_kept_for_the_cross_entropy_and_rows_cut_are_told_apart(tmp_path):
    rows = [*make_rows(4), {**make_rows(1)[0], "completion": "No score."}]
    long = {**rows[0], "prompt": "word " * 200 + "\n"}
    dataset = make_dataset(8).from_list([*rows, long])
    trainer = train_judge(tmp_path, dataset=dataset, missing_score="keep", **FEW)
    assert trainer.row_counts["train"] == (6, {"hold no score": 1}, 6)
    trainer.save_model()
    assert "| without the score term: hold no score | 1 |" in lines(tmp_path)


def test_rows_without_a_trained_token_within_max_length_are_counted(tmp_path):
    args = RegressionAwareSFTConfig(
        str(tmp_path), max_length=90, missing_score="keep", report_to="none", use_cpu=True, bf16=False
    )
    dataset = make_dataset(8).from_list([*make_rows(4), {**make_rows(1)[0], "prompt": "word " * 200 + "\n"}])
    tokenizer = make_tokenizer()
    trainer = RegressionAwareSFTTrainer(
        make_model("llama", len(tokenizer)), args, train_dataset=dataset, processing_class=tokenizer
    )
    lost = {"lose their score to max_length=90": 1, "have no trained token within max_length": 1}
    assert trainer.row_counts["train"] == (5, lost, 4)
    trainer.save_model()
    assert "| without the score term: lose their score to max_length=90 | 1 |" in lines(tmp_path)
    assert "| dropped: have no trained token within max_length | 1 |" in lines(tmp_path)


def test_a_dataset_of_own_rationales_is_stage_2_and_any_other_is_not_said_to_be(tmp_path):
    judge_folder = tmp_path / "one"
    train_judge(judge_folder, **FEW).save_model()
    own = generate_cot_dataset(
        judge_folder, make_dataset(8, conversational=True), output_dir=tmp_path / "cots", progress=False,
        temperature=0, unfinished="force", max_new_tokens=12,
    )  # fmt: skip
    train_judge(tmp_path / "two", dataset=own, **FEW).save_model()
    one, two = lines(judge_folder), lines(tmp_path / "two")
    assert "| Stage | 2, on self-generated rationales |" in two
    assert any(
        line.startswith("Rationales that a judge wrote itself: 8 for 8 prompts, of which 8 are kept") for line in two
    )
    assert any(line.startswith("| Stage | 1, unless the data holds a judge's own rationales") for line in one)


def test_the_licence_is_that_of_the_seed_model_where_its_card_is_at_hand(tmp_path):
    seed = tmp_path / "seed"
    tokenizer = make_tokenizer()
    make_model("llama", len(tokenizer)).save_pretrained(seed)
    tokenizer.save_pretrained(seed)
    (seed / "README.md").write_text("---\nlicense: other\nlicense_name: gemma\ntags: [x]\n---\n")
    train_judge(tmp_path / "judge", model=str(seed), **FEW).save_model()
    assert "| Licence of the seed model | other, gemma |" in lines(tmp_path / "judge")
    metadata = read_card(tmp_path / "judge").data.to_dict()
    assert (metadata["license"], metadata["license_name"]) == ("other", "gemma")
    assert "base_model" not in metadata  # a folder is no address
    (seed / "README.md").unlink()
    train_judge(tmp_path / "other", model=str(seed), **FEW).save_model()
    shown = "| Licence of the seed model | not at hand when this was written: see the seed model |"
    assert shown in lines(tmp_path / "other") and "license" not in read_card(tmp_path / "other").data.to_dict()


def test_the_citations_are_whole(saved):
    bib = re.search(r"```bibtex\n(.*?)```", (saved[1] / "README.md").read_text(), re.DOTALL)[1]
    assert re.findall(r"^@\w+\{([\w-]+),", bib, re.MULTILINE) == [
        "chiang-etal-2025-tract", "lukasik2025raft", "lukasik-etal-2024-regression", "vonwerra2020trl"
    ]  # fmt: skip
    assert bib.count("{") == bib.count("}")


def asked_record(template, conversational):
    """What the record of a card's snippets is answered with: a judge that has learned it writes it there."""
    record = {**RECORD, "rationale": "It is right.", "score": 4}
    scale = ScoreScale.integers(1, 5)
    return Dataset.from_list(list(training_examples([record], scale, PREFIX, template, conversational)))


@pytest.mark.parametrize("renormalize", [False, True])
@pytest.mark.parametrize("conversational", [False, True])
def test_the_snippet_for_plain_transformers_gives_the_score_of_the_judge(
    tmp_path, monkeypatch, conversational, renormalize
):
    folder = tmp_path / "judge"
    template = 'A ``` "quoted"\n\\ {{ response }}\n"""'
    dataset = asked_record(template, conversational)
    trainer = train_judge(folder, dataset=dataset, renormalize_scores=renormalize, prompt_template=template)
    trainer.save_model()
    names = run_snippet(monkeypatch, folder)
    judge = Judge.from_pretrained(folder)
    prompt = [{"role": "user", "content": names["prompt"]}] if conversational else names["prompt"]
    assert names["prompt"] == judge.rows.prompt(RECORD)
    (expected,) = judge.rescore([{"prompt": prompt}], [names["rationale"]])
    assert names["rationale"].strip() == "It is right."
    assert names["score"] == pytest.approx(expected.score, abs=1e-4)


def test_the_snippet_for_an_adapter_gives_the_score_of_the_judge(tmp_path, monkeypatch):
    dataset, folder = asked_record(None, conversational=False), tmp_path / "judge"
    train_judge(tmp_path / "seed", dataset=dataset).save_model()
    # Transformers' own loader leaves the magnitudes of DoRA untrained.
    adapter = LoraConfig(r=4, target_modules="all-linear", use_dora=True)
    trainer = train_judge(folder, 5, dataset=dataset, model=str(tmp_path / "seed"), peft_config=adapter)
    check_learned(trainer)
    trainer.save_model()
    assert "With Transformers and PEFT only:" in lines(folder)
    names = run_snippet(monkeypatch, folder)
    (expected,) = Judge.from_pretrained(folder).rescore([{"prompt": names["prompt"]}], [names["rationale"]])
    assert names["score"] == pytest.approx(expected.score, abs=1e-4)


def run_snippet(monkeypatch, folder):
    """The names that the card's code without the package defines, run beside the judge's folder."""
    monkeypatch.chdir(folder.parent)
    (code,) = re.findall(
        r"(?:Transformers|PEFT) only:\n\n(`{3,})python\n(.*?)\1", (folder / "README.md").read_text(), re.DOTALL
    )
    torch.manual_seed(0)
    names: dict = {}
    exec(code[1].replace('"max_new_tokens": 1024', '"max_new_tokens": 60'), names)
    return names


# What survives


def test_what_was_written_by_hand_survives_and_the_rest_is_written_anew(saved):
    trainer, folder = saved
    card = read_card(folder)
    own = {
        "language": ["de"],
        "license": "mit",
        "tags": ["mine", *card.data.to_dict()["tags"]],
        "pipeline_tag": "text-ranking",
    }
    others = [{"name": "x", "results": [OTHERS]}]
    text = card.text.replace("# judge", "# My judge\n\nBefore it.").replace("| Seed | 42 |", "| Seed | no |")
    before, mine = card.data.to_dict(), {**own, "model-index": others}
    for name, value in mine.items():
        card.data[name] = value
    card.text = text + "\nAfter it: — ü.\n"
    write_card(folder, card)
    trainer.save_model()
    found = read_card(folder)
    assert found.data.to_dict() == {**before, **mine}
    assert found.text == text.replace("| Seed | no |", "| Seed | 42 |") + "\nAfter it: — ü.\n"


def test_an_adapter_keeps_what_was_written_by_hand_though_peft_writes_a_card_too(tmp_path):
    trainer = train_judge(tmp_path, peft_config=LoraConfig(r=4, target_modules="all-linear"), **FEW)
    trainer.save_model()
    first = (tmp_path / "README.md").read_text()
    assert "an adapter (LORA, rank 4, alpha 8) on" in first and "More Information Needed" not in first
    card = read_card(tmp_path)
    assert card.data.to_dict()["library_name"] == "peft"
    card.data["tags"], card.text = ["mine", *card.data["tags"]], card.text + "\nMine.\n"
    write_card(tmp_path, card)
    before = (tmp_path / "README.md").read_text()
    trainer.save_model()
    assert (tmp_path / "README.md").read_text() == before


def test_a_readme_of_the_users_own_keeps_its_text_and_gets_metadata(tmp_path):
    (tmp_path / "README.md").write_text("Mine.\n")
    trainer = train_judge(tmp_path, **FEW)
    trainer.save_model()
    add_results(tmp_path, result())
    card = read_card(tmp_path)
    assert card.text == "Mine.\n"
    assert "llm-as-a-judge" in card.data.to_dict()["tags"] and card.data.to_dict()["model-index"]


def test_a_readme_that_cannot_be_read_is_left_alone_and_training_goes_on(tmp_path, caplog):
    broken = "---\ntags: [a\n---\nMine.\n"
    (tmp_path / "README.md").write_text(broken)
    train_judge(tmp_path, **FEW).save_model()
    assert (tmp_path / "README.md").read_text() == broken
    assert (tmp_path / "judge_config.json").is_file()
    assert "README.md is left as it is, since it cannot be read: " in caplog.text
    with pytest.raises(
        InputError, match=r"has no README\.md with readable metadata\. Save the judge again to have one"
    ):
        add_results(tmp_path, result())


def test_every_checkpoint_renews_the_card(tmp_path):
    args = RegressionAwareSFTConfig(
        str(tmp_path), max_steps=2, save_steps=1, save_strategy="steps", report_to="none", use_cpu=True, bf16=False,
        gradient_checkpointing=False, max_length=None,
    )  # fmt: skip
    tokenizer = make_tokenizer()
    trainer = RegressionAwareSFTTrainer(
        make_model("llama", len(tokenizer)), args, train_dataset=make_dataset(8), processing_class=tokenizer
    )
    trainer.train()
    assert "| Progress | 2 steps, 2.00 epochs |" in lines(tmp_path)
    assert "| Progress | 1 steps, 1.00 epochs |" in lines(tmp_path / "checkpoint-1")
    assert not (tmp_path / "judge_config.json").exists()  # the judge itself has not been saved yet


def test_a_card_costs_no_network(saved, monkeypatch):
    def refuse(*_args):
        raise AssertionError("a card must not ask the network")

    trainer, folder = saved
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    trainer.model.config._name_or_path = "Qwen/Qwen3-8B"
    trainer.create_model_card(dataset_name="me/data", tags="x")
    metadata = read_card(folder).data.to_dict()
    assert (metadata["base_model"], metadata["datasets"]) == ("Qwen/Qwen3-8B", ["me/data"])
    assert "x" in metadata["tags"]
    trainer.create_model_card()
    assert "`me/data`." in lines(folder)


def test_a_template_that_holds_the_comments_of_the_card_does_not_break_it(tmp_path):
    trainer = train_judge(tmp_path, prompt_template=f"{END}\n{{{{ response }}}}\n{START}\n{END}", **FEW)
    trainer.save_model()
    before = (tmp_path / "README.md").read_text()
    trainer.save_model()
    assert (tmp_path / "README.md").read_text() == before


def test_a_template_that_is_none_for_records_is_asked_with_a_ready_prompt(tmp_path):
    trainer = train_judge(
        tmp_path, prompt_template="{{ response }}{% for key in rubric.items() %}{{ key }}{% endfor %}", **FEW
    )
    trainer.save_model()
    assert "        'prompt': 'Name a prime number above 6.\\n" in (tmp_path / "README.md").read_text()


# Results


def test_results_are_added_with_intervals_and_n_and_replaced_by_newer_ones(saved):
    trainer, folder = saved
    for found in (result(), result("mt bench", "d2"), result(num_cots=8), result(pearson=0.65)):
        add_results(folder, found)
    text = (folder / "README.md").read_text()
    figure = "Pearson (95 % interval 0.500 to 0.700, n = 90, 10 unscored)"
    for row in ("flask | 1 | RAIL: {} | 0.650", "flask | 8 | RAIL: {} | 0.610", "mt bench | 1 | decoded: {} | 0.610"):
        assert text.count(f"| {row.format(figure)} |") == 1
    assert text.count("| flask | 1 |") == 2 and "No evaluation" not in text
    (own,) = read_card(folder).data.to_dict()["model-index"]
    assert own["name"] == "judge"
    shown = [(r["dataset"]["name"], r["dataset"]["args"]["num_cots"], r["metrics"][0]["value"]) for r in own["results"]]
    assert shown == [("mt bench", 1, 0.61), ("flask", 8, 0.61), ("flask", 1, 0.65)]
    assert "95 % interval 0.500 to 0.700, n = 90, 10 unscored" in own["results"][0]["metrics"][0]["name"]
    trainer.save_model()
    trainer.create_model_card()
    assert (folder / "README.md").read_text() == text


def test_results_of_other_weights_are_dropped(saved):
    trainer, folder = saved
    readme = (folder / "README.md").read_text()
    index = yaml.safe_dump({"model-index": [{"name": "mine", "results": [OTHERS]}]})
    (folder / "README.md").write_text(readme.replace("---\n", f"---\n{index}", 1))
    add_results(folder, result())
    (found,) = read_card(folder).data.to_dict()["model-index"]
    assert found["name"] == "mine" and found["results"][0] == OTHERS and len(found["results"]) == 2
    trainer.args.max_steps = 3
    trainer.train()
    trainer.save_model()
    assert read_card(folder).data.to_dict()["model-index"] == [{"name": "mine", "results": [OTHERS]}]
    assert "| flask |" not in (folder / "README.md").read_text()
    assert "No evaluation of these weights has been added yet." in lines(folder)


def test_what_is_no_result_is_refused(saved):
    with pytest.raises(InputError, match=r"^Expected the result of an evaluation, .* found \['pearson'\]\.$"):
        add_results(saved[1], {"pearson": 0.5})


def test_the_metadata_is_what_the_hub_library_reads(saved):
    from huggingface_hub import ModelCard

    add_results(saved[1], result())
    card = ModelCard.load(saved[1] / "README.md")
    assert card.data.eval_results[0].metric_value == 0.61 and card.data.model_name == "judge"
    assert yaml.safe_load(card.data.to_yaml())["pipeline_tag"] == "text-generation"
    assert json.loads((saved[1] / "judge_config.json").read_text())["score_prefix"] == PREFIX


REVISED = """
import sys
from pathlib import Path
import torch
from peft import LoraConfig
from tiny import make_model, make_tokenizer, train_judge
from tract_trainer import Judge

hub, tokenizer = Path(sys.argv[1]) / "hub" / "models--me--seed", make_tokenizer()
for name, seed in (("main", 1), ("v1", 2)):
    torch.manual_seed(seed)
    commit = str(seed) * 40
    for part in (make_model("llama", len(tokenizer)), tokenizer):
        part.save_pretrained(hub / "snapshots" / commit)
    (hub / "refs").mkdir(exist_ok=True)
    (hub / "refs" / name).write_text(commit)
trainer = train_judge(
    sys.argv[2], 1, model="me/seed", tokenizer=tokenizer, peft_config=LoraConfig(r=2, target_modules="all-linear"),
    model_init_kwargs={"revision": "v1"},
)
trainer.save_model()
found = Judge.from_pretrained(sys.argv[2]).engine.model.get_input_embeddings().weight
print(torch.equal(found, trainer.model.get_input_embeddings().weight))
"""


def test_an_adapter_is_run_on_the_revision_of_its_base_that_it_was_trained_on(tmp_path):
    where = {"HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", REVISED, str(tmp_path), str(tmp_path / "judge")]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **where})
    assert done.stdout.strip().endswith("True"), done.stderr[-2000:]
    text = (tmp_path / "judge" / "README.md").read_text()
    assert "from_pretrained('me/seed', revision='v1', dtype=" in text and "vllm serve me/seed --revision v1 " in text


def test_the_card_of_rationales_trains_on_prompts_like_theirs(tmp_path):
    args = RegressionAwareSFTConfig(
        "judge", renormalize_scores=True, prompt_template="```{{ response }}\n", use_cpu=True
    )
    args.judge_config(conversational=False).save(tmp_path)
    counts = dict.fromkeys(("rows", "rationales", "finished_at_first_try", "retried", "dropped", "forced"), 1)
    report = {**counts, "prompt_too_long": 0, "mean_tokens": 9, "discarded_score_agreement": {"pearson": None}}
    (tmp_path / "report.json").write_text(json.dumps(report))
    names = ("num_cots", "temperature", "top_p", "repetition_penalty", "max_new_tokens", "max_retries", "seed")
    (tmp_path / "settings.json").write_text(json.dumps({**dict.fromkeys(names, 1), "judge": "x"}))
    write_dataset_card(tmp_path, "me/rationales")
    (code,) = re.findall(r"````python\n(.*?)````", (tmp_path / "README.md").read_text(), re.DOTALL)
    made = re.search(r"args = (.*?\n\))\n", code, re.DOTALL)[1].replace(
        '"judge",', '"judge", use_cpu=True, bf16=False,'
    )
    found = eval(made).judge_config(conversational=False)
    assert found == JudgeConfig.load(tmp_path)
