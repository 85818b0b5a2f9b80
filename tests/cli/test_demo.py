import json
import random

import pytest
import torch

from tract_trainer.cli.demo import run_demo
from tract_trainer.cli.demo_task import SOUND, UNKNOWN, WEAK, DemoSize, make_records, make_tokenizer, training_example
from tract_trainer.errors import InputError
from tract_trainer.evaluation.evaluate import load_result
from tract_trainer.evaluation.page import training_logs, write_page
from tract_trainer.judging.judge import Judge
from tract_trainer.scale import ScoreScale, ScoreTokens
from tract_trainer.training.config import DEFAULT_PREFIX

TINY = DemoSize(facts=640, facts_epochs=2, records=160, epochs=12, held_out=24)


def verdict_of_each_source(record):
    words = record["prompt"].split()
    sources = [words[i + 1] for i, word in enumerate(words) if word == "cites"]
    verdicts = [word for word in record["rationale"].split() if word in ("sound", "weak")]
    return list(zip(sources, verdicts, strict=True))


def test_known_sources_have_one_reputation_and_unknown_ones_have_both():
    seen = {}
    for record in make_records(500, seed=1):
        for source, verdict in verdict_of_each_source(record):
            seen.setdefault(source, set()).add(verdict)
    assert all(seen[source] == {"sound"} for source in SOUND)
    assert all(seen[source] == {"weak"} for source in WEAK)
    assert all(seen[source] == {"sound", "weak"} for source in UNKNOWN)


def test_the_score_counts_sound_claims_and_is_off_by_one_in_some_records():
    records = make_records(2000, seed=2)
    off = [record["score"] - 1 - [v for _, v in verdict_of_each_source(record)].count("sound") for record in records]
    # 15 % are moved by one; of those, a score moved beyond 1 or 5 stays: half of the moves at either end.
    assert set(off) == {-1.0, 0.0, 1.0}
    assert 0.10 < sum(map(abs, off)) / 2000 < 0.16


def test_records_depend_on_their_seed_alone():
    random.seed(3)
    before = make_records(5, seed=4)
    random.random()
    assert make_records(5, seed=4) == before
    assert make_records(5, seed=5) != before


def test_the_tokenizer_writes_every_completion_back_and_has_a_token_for_each_score():
    tokenizer = make_tokenizer()
    for record in make_records(50, seed=6):
        example = training_example(record)
        ids = tokenizer(example["prompt"] + example["completion"])["input_ids"]
        assert tokenizer.unk_token_id not in ids
        assert tokenizer.decode(ids) == " ".join((example["prompt"] + example["completion"]).split())
    tokens = ScoreTokens.resolve(ScoreScale.integers(1, 5), DEFAULT_PREFIX, tokenizer)
    assert tokenizer.convert_ids_to_tokens(list(tokens.ids)) == ["1", "2", "3", "4", "5"]


def test_a_verdict_stands_at_a_constant_distance_from_its_source():
    for record in make_records(20, seed=7):
        words = (record["prompt"] + record["rationale"]).split()
        verdicts = [i for i, word in enumerate(words) if word == "looks"]
        sources = [i for i, word in enumerate(words) if word == "cites"]
        assert len({v - s for v, s in zip(verdicts, sources, strict=True)}) == 1


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo") / "out"
    return folder, run_demo(folder, seed=1, size=TINY)


@pytest.mark.slow
def test_the_demo_leaves_three_judges_a_picture_and_their_results(demo):
    folder, rows = demo
    for name in ("cross_entropy", "stage1", "tract"):
        assert (folder / name / "judge_config.json").is_file()
        assert json.loads((folder / f"{name}.json").read_text())["methods"]["RAIL"]["n"] == 24
    for name in ("predictions.png", "cots/train.parquet", "seed/model.safetensors"):
        assert (folder / name).stat().st_size > 1000
    judges = ("Cross-entropy", "Stage 1", "TRACT")
    assert list(rows) == [f"{judge}, {method}" for judge in judges for method in ("decoded", "RAIL")]


@pytest.mark.slow
def test_a_report_shows_the_judges_and_their_training(demo):
    folder, rows = demo
    assert load_result(folder / "tract.json")["methods"]["RAIL"] == rows["TRACT, RAIL"]
    assert set(training_logs(folder)) == {"cross_entropy", "seed", "stage1", "tract"}
    page = write_page(folder).read_text()
    assert "Self-generated rationales" in page
    assert 'alt="training curves"' in page and page.count('alt="predictions">') == 3
    assert "<bdi>TRACT</bdi> on <bdi>held-out records</bdi>" in page


@pytest.mark.slow
def test_the_three_judges_differ_and_none_is_the_seed_model(demo):
    from safetensors.torch import load_file

    weights = [load_file(demo[0] / n / "model.safetensors") for n in ("seed", "cross_entropy", "stage1", "tract")]
    heads = [w["model.embed_tokens.weight"] for w in weights]
    assert not any(torch.equal(heads[i], heads[j]) for i in range(4) for j in range(i))


@pytest.mark.slow
def test_the_saved_record_is_judged_by_the_saved_judge(demo):
    record = json.loads((demo[0] / "record.json").read_text())
    judgment = Judge.from_pretrained(demo[0] / "stage1").score(record, max_new_tokens=32, unfinished="force")
    assert judgment.rationales[0].text
    assert 0 < judgment.score <= 5  # below 1 where probability is off the scale


@pytest.mark.slow
def test_a_second_demo_replaces_the_first_and_finds_the_same(demo):
    folder, rows = demo
    (folder / "notes.txt").write_text("mine")
    again = run_demo(folder, seed=1, size=TINY)
    assert (folder / "notes.txt").read_text() == "mine"
    assert json.dumps(again) == json.dumps(rows)  # as text, where NaN equals NaN


def test_a_folder_with_files_of_others_is_refused_and_left_alone(tmp_path):
    (tmp_path / "tract").mkdir()
    (tmp_path / "tract" / "thesis.txt").write_text("mine")
    with pytest.raises(InputError, match=r"holds files that tract did not write, such as 'tract'\. Give another place"):
        run_demo(tmp_path)
    assert (tmp_path / "tract" / "thesis.txt").read_text() == "mine"


def test_a_file_in_the_place_of_the_folder_is_refused(tmp_path):
    (tmp_path / "demo").write_text("")
    with pytest.raises(InputError, match=r"demo is a file, and a folder is to be written there\."):
        run_demo(tmp_path / "demo")
