"""The comparison in miniature: what its tables say of scores that are made up, and one seed of it, small."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from fake import fake_judge, sure

from tract_trainer.cli.demo_task import make_records
from tract_trainer.data.store import locked
from tract_trainer.errors import InputError

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))
import contrasts  # noqa: E402
import findings  # noqa: E402
import miniature  # noqa: E402

DECODED_BY_CE = "TRACT above cross-entropy with rationales, decoded"


def write_runs(folder: Path, errors: dict[str, float], seeds: int = 10, unscored: int = 0) -> None:
    """Scores of every arm of every task: gold plus noise of a standard deviation that `errors` has by the arm, or 1."""
    for task, seed in ((task, seed) for task in miniature.TASKS for seed in range(seeds)):
        draw = np.random.default_rng(seed)
        gold = draw.integers(1, 6, 300).astype(float)
        where = folder / task / f"seed-{seed:02d}"
        where.mkdir(parents=True)
        for name, arm in {contrasts.BEST: miniature.Arm("", tasks=tuple(miniature.TASKS)), **miniature.ARMS}.items():
            if task in arm.tasks:
                noisy = gold + errors.get(name, 1.0) * draw.standard_normal(300)
                scores = [None] * unscored + noisy[unscored:].tolist()
                own = {str(count): dict.fromkeys(findings.SHOWN, scores) for count in findings.COUNTS}
                run = {"gold": gold.tolist(), "own": own, "annotated": gold.tolist()}
                (where / f"{name}.json").write_text(json.dumps(run))
        shares = {"stage 1": 0.25} | ({} if task == miniature.KNOWN else {"CE": 0.5})
        (where / f"{findings.BY_HEART}.json").write_text(json.dumps(shares))


def tables(folder: Path, seeds: int = 10) -> dict[str, list[str]]:
    """The cells of each row of all tables, by its first."""
    text = findings.write_findings(folder, [contrasts.BEST, *miniature.ARMS], list(miniature.TASKS), seeds)
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("|")]
    return {row[0]: row[1:] for row in rows}


def test_a_finding_holds_or_not_by_its_differences_over_seeds(tmp_path):
    write_runs(tmp_path / "better", {"TRACT": 0.5})
    write_runs(tmp_path / "worse", {"TRACT": 2.0})
    assert tables(tmp_path / "better")[DECODED_BY_CE][-1] == findings.HOLDS
    assert tables(tmp_path / "worse")[DECODED_BY_CE][-1] == findings.FAILS
    assert tables(tmp_path / "better")[DECODED_BY_CE][0] == "0.650 - 0.557"
    assert tables(tmp_path / "better", seeds=1)[DECODED_BY_CE][-1] == findings.OPEN  # one seed says nothing


def test_no_difference_is_told_from_one_that_is_not_resolved():
    finding = contrasts.Finding("", contrasts.above(contrasts.TRACT, contrasts.CE), paper=(0.65, 0.55))
    wide, narrow = np.array([-0.2, 0.2, 0.3, -0.3]), np.array([-0.02, 0.02, 0.03, -0.03])
    assert findings.verdict(finding, [wide], findings.chance(wide)) == findings.OPEN  # +- .44 holds the paper's .1
    assert findings.verdict(finding, [narrow], findings.chance(narrow)) == findings.SMALLER  # +- .044 does not
    assert findings.verdict(finding._replace(paper=None), [narrow], findings.chance(narrow)) == findings.OPEN


def test_the_verdicts_of_a_table_are_tested_together():
    """A difference that would be found alone (p = .036) is none beside nine that are not there."""
    draw = np.random.default_rng(0)
    gold = draw.normal(size=400)
    errors = [draw.normal(size=(2, 400)) for _ in range(10)]
    runs = {
        name: [{"gold": gold, "own": {"1": {"RAIL": gold + better * error[side]}}} for error in errors]
        for name, better, side in (("a", 0.94, 0), ("b", 1, 1))
    }
    finding = contrasts.Finding("a above b", contrasts.above(contrasts.Side("a"), contrasts.Side("b")))
    assert 0.01 < findings.chance(finding.contrast.values(runs)) < 0.05
    nothing = contrasts.Finding("a above a", contrasts.above(contrasts.Side("a"), contrasts.Side("a")))
    assert findings.findings_table(runs, [finding]).endswith(f"| {findings.HOLDS} |")
    assert findings.HOLDS not in findings.findings_table(runs, [finding] + 9 * [nothing])


def test_a_difference_must_be_there_on_the_shared_records_and_on_all():
    more, none, less = np.array([0.1, 0.11, 0.12]), np.array([-0.2, 0.0, 0.3]), np.array([-0.1, -0.11, -0.12])
    assert findings.chance(more, more) < 0.01
    assert findings.chance(more, none) == findings.chance(none) > 0.5
    assert findings.chance(more, less) == 1


def test_beside_the_shared_records_stand_all_where_an_unscored_one_counts_as_the_mean():
    gold, scores = [1.0, 2.0, 3.0, 4.0, 5.0, 3.0], [1.0, 2.0, 3.0, 4.0, None, 5.0]
    runs = {
        "TRACT": [{"gold": gold, "own": {"1": {"RAIL": gold}}}],
        "CE": [{"gold": gold, "own": {"1": {"RAIL": scores}}}],
    }
    gap = contrasts.above(contrasts.TRACT, contrasts.CE)
    r = [np.corrcoef(gold[:4] + gold[5:], scores[:4] + scores[5:])[0, 1], np.corrcoef(gold, [1, 2, 3, 4, 3, 5])[0, 1]]
    assert [gap.values(runs)[0], gap.values(runs, filled=True)[0]] == pytest.approx([1 - r[0], 1 - r[1]])


def test_the_figures_are_means_over_seeds_with_t_intervals(tmp_path):
    write_runs(tmp_path, {}, seeds=2, unscored=30)
    runs = [json.loads((tmp_path / miniature.MAIN / f"seed-0{seed}" / "CE.json").read_text()) for seed in range(2)]
    scores = [np.array([run["own"]["1"]["RAIL"][30:], run["gold"][30:]]) for run in runs]
    a, b = (np.corrcoef(pair)[0, 1] for pair in scores)
    half = 12.7062 * abs(a - b) / 2  # t of one degree of freedom, times the standard error of two values
    text = findings.arms_table(findings.read(tmp_path / miniature.MAIN, list(miniature.ARMS), 2))
    cells = next(line for line in text.splitlines() if line.startswith("| CE |")).strip("| ").split(" | ")
    assert cells[1] == f"{(a + b) / 2:.3f} ± {half:.3f}"
    assert cells[-1] == "10.0%"  # unscored: left out of the figures, and told


def test_a_judge_that_scored_less_than_half_has_no_figure(tmp_path):
    write_runs(tmp_path, {}, seeds=2, unscored=151)
    text = findings.arms_table(findings.read(tmp_path / miniature.MAIN, list(miniature.ARMS), 2))
    cells = next(line for line in text.splitlines() if line.startswith("| CE |")).strip("|").split("|")
    assert not "".join(cells[1:-1]).strip() and cells[-1].strip() == "50.3%"


def test_a_difference_is_taken_on_the_records_that_both_judges_scored():
    """The other judge says the same, but leaves the first 50 records unscored: less to agree on, not less agreement."""
    draw = np.random.default_rng(0)
    gold = draw.integers(1, 6, 300).astype(float)
    scores = (gold + np.where(np.arange(300) < 50, 0, 1) * draw.standard_normal(300)).tolist()

    def run(scores):
        return {"gold": gold.tolist(), "own": {"1": {"RAIL": scores}}, "annotated": scores}

    runs = {"TRACT": [run(scores)], "CE": [run([None] * 50 + scores[50:])]}
    tract, ce = (contrasts.Contrast([contrasts.Side(arm)]).values(runs)[0] for arm in runs)
    assert tract > ce + 0.01
    gap = contrasts.above(contrasts.TRACT, contrasts.CE)
    assert gap.values(runs)[0] == 0 and gap.shares(runs)[0] == 250 / 300
    assert contrasts.above(contrasts.TRACT, contrasts.CE, contrasts.rmse).values(runs)[0] == 0


def test_work_of_another_size_or_arm_is_not_mixed(tmp_path, monkeypatch):
    miniature.check_work(tmp_path, miniature.SMALL)
    work = tmp_path / miniature.MAIN / "seed-00"
    work.mkdir(parents=True)
    (work / "TRACT.json").write_text("{}")
    miniature.check_work(tmp_path, miniature.SMALL)
    with pytest.raises(InputError, match="records: 200 there, 1000 now"):
        miniature.check_work(tmp_path, miniature.DemoSize())
    monkeypatch.setitem(miniature.ARMS, "one more", miniature.Arm("half"))
    miniature.check_work(tmp_path, miniature.SMALL)
    monkeypatch.setitem(miniature.ARMS, "TRACT", miniature.Arm("half"))
    with pytest.raises(InputError, match=r"'rows': 'stage 1'.* there, .*'rows': 'half'.* now"):
        miniature.check_work(tmp_path, miniature.SMALL)


@pytest.mark.parametrize("left", ["TRACT.json", "judges/TRACT/config.json", "judges/TRACT, huber/config.json"])
def test_what_an_arm_left_is_not_gone_on_with_when_the_arm_or_one_before_it_changes(tmp_path, monkeypatch, left):
    miniature.check_work(tmp_path, miniature.SMALL)
    path = tmp_path / miniature.MAIN / "seed-00" / left
    path.parent.mkdir(parents=True)
    path.write_text("{}")
    monkeypatch.setitem(miniature.ARMS, "CE", miniature.Arm("annotated", settings={"score_loss_weight": 0.5}))
    miniature.check_work(tmp_path, miniature.SMALL)  # TRACT is not made of it
    monkeypatch.setitem(miniature.ARMS, "stage 1", miniature.Arm("annotated", settings={"score_loss_weight": 0.5}))
    with pytest.raises(InputError, match=r"'score_loss_weight': 0.5.* now"):
        miniature.check_work(tmp_path, miniature.SMALL)


def test_work_of_other_code_is_not_gone_on_with(tmp_path, monkeypatch):
    miniature.check_work(tmp_path, miniature.SMALL)
    (tmp_path / miniature.MAIN / "seed-00").mkdir(parents=True)
    monkeypatch.setattr(miniature, "digest_of_code", lambda: "another")
    with pytest.raises(InputError, match=r"code: '[0-9a-f]{12}' there, 'another' now"):
        miniature.check_work(tmp_path, miniature.SMALL)


def test_work_that_nothing_tells_the_settings_of_is_not_adopted(tmp_path):
    work = tmp_path / miniature.MAIN / "seed-00"
    work.mkdir(parents=True)
    with pytest.raises(InputError, match=r"its settings, .*settings\.json, are gone"):
        miniature.check_work(tmp_path, miniature.SMALL)
    work.rmdir()
    work.parent.rmdir()
    miniature.check_work(tmp_path, miniature.SMALL)
    work.mkdir(parents=True)
    (work / "TRACT.json").write_text("{}")
    (tmp_path / "arms" / "TRACT.json").unlink()
    with pytest.raises(InputError, match=r"its settings, .*TRACT\.json, are gone"):
        miniature.check_work(tmp_path, miniature.SMALL)


def test_a_score_that_is_asked_for_at_once_is_drawn_as_others_are():
    # The nucleus of .9 of .5 .3 .15 .05 is the first three, with shares .526 .316 .158.
    judge = fake_judge(lambda prompt: [("1", [0.5, 0.3, 0.15, 0.05, 0.0])])
    judgments = judge.rescore([{"prompt": "Rate."}] * 2000, [""] * 2000)
    drawn = [judgment.rationales[0].label for judgment in miniature.with_drawn_labels(judgments, judge, seed=0)]
    shares = [drawn.count(label) / 2000 for label in "12345"]
    assert shares == pytest.approx([0.526, 0.316, 0.158, 0, 0], abs=0.045)  # four deviations of a share of .5
    assert {judgment.rationales[0].label for judgment in judgments} == {"1"}
    again = miniature.with_drawn_labels(judgments, judge, seed=0)
    assert [judgment.rationales[0].label for judgment in again] == drawn


def test_one_rationale_is_the_first_and_not_the_first_that_came_to_a_score():
    judge = fake_judge(lambda prompt: [None, sure(4)])
    judgments = judge.score([{"prompt": "Rate."}], num_cots=2)
    assert miniature.methods(judge, judgments, 1)["RAIL"] == [None]
    assert miniature.methods(judge, judgments, 2)["RAIL"] == [4.0]


def test_a_seed_that_another_run_is_at_is_left_alone(tmp_path, monkeypatch):
    for module, setting in (
        (miniature.torch, "set_num_threads"),
        (miniature.datasets, "disable_progress_bars"),
        (miniature.transformers_logging, "disable_progress_bar"),
        (miniature.transformers_logging, "set_verbosity_error"),
    ):
        monkeypatch.setattr(module, setting, lambda *_: None)  # of this process, and there are tests after this one
    with locked(tmp_path, 0), pytest.raises(InputError, match="Another run is writing to"):
        miniature.run_seed(miniature.MAIN, 0, tmp_path, miniature.SMALL)
    assert [path.suffix for path in tmp_path.iterdir()] in ([], [".lock"])


def test_the_tasks_stand_side_by_side_with_what_is_known_by_heart(tmp_path):
    write_runs(tmp_path, {"TRACT": 0.5})
    rows = tables(tmp_path)
    pearson = {arm: cells[0] for arm, cells in rows.items() if arm in ("TRACT", "stage 1")}
    assert float(pearson["TRACT"][:5]) > float(pearson["stage 1"][:5])
    assert rows["CE in both stages"][miniature.EVERY.index(miniature.KNOWN)] == ""  # not trained on that task
    assert rows[f"share of the rationales of stage 1 {findings.BY_HEART}"] == ["0.250 ± 0.000"] * len(miniature.EVERY)
    by_heart = rows[f"share of the rationales of CE {findings.BY_HEART}"]
    assert by_heart == ["0.500 ± 0.000" if task != miniature.KNOWN else "" for task in miniature.EVERY]
    gaps = rows["TRACT minus stage 1"]
    assert len(gaps) == len(miniature.EVERY) and all(float(gap.split(" ± ")[0]) > 0.1 for gap in gaps)


def test_a_judge_without_a_single_score_has_no_figure_and_stops_nothing(tmp_path):
    write_runs(tmp_path, {}, seeds=2, unscored=300)
    assert tables(tmp_path, seeds=2)[DECODED_BY_CE][-1] == findings.OPEN


@pytest.mark.parametrize("rationale_known", [False, True])
def test_gold_scores_are_distributed_as_one_who_knows_the_task_says(rationale_known):
    """Where a label has a chance of .1 to .2, and so on, it is the score as often: 20,000 records, 4 errors."""
    records = make_records(20_000, seed=1)
    known = np.array([miniature.chances_of_scores(record, rationale_known) for record in records])
    assert np.allclose(known.sum(1), 1)
    came = np.array([record["score"] for record in records])[:, None] == np.arange(1, 6)
    for low in np.arange(0, 1, 0.1):
        there = (known > low) & (known <= low + 0.1)
        if there.sum() > 100:
            chance = known[there].mean()
            assert abs(came[there].mean() - chance) < 4 * np.sqrt(chance * (1 - chance) / there.sum())


def test_the_best_possible_judge_is_read_like_the_others():
    records = make_records(2000, seed=1)
    run = miniature.judged_best(records, seed=0)
    gold, own = np.array(run["gold"]), {name: np.array(row) for name, row in run["own"]["1"].items()}
    error = {name: np.mean((row - gold) ** 2) for name, row in own.items()}
    assert error["RAIL"] < min(error["greedy"], error["decoded"])
    assert np.mean((np.array(run["annotated"]) - gold) ** 2) < error["RAIL"] / 2
    # By hand: "sound" three times of four in the rationale, so 3 and 5 in .075 each and 4 in .85.
    record = {**records[0], "rationale": "one looks weak , two looks sound , three looks sound , four looks sound ."}
    record["prompt"] = "Of four claims one cites Keane , two cites Adler , three cites Abbot , four cites Brown ."
    assert miniature.chances_of_scores(record, True) == pytest.approx([0, 0, 0.075, 0.85, 0.075])


@pytest.mark.slow
def test_one_seed_small_trains_judges_and_resumes(tmp_path):
    """Every arm of every task is trained, on data and models of its own seed; the second call finds all of it done."""
    command = [sys.executable, BENCHMARKS / "miniature.py", "--seeds", "1", "--small", "--output_dir", tmp_path]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    trained = sum(len(arm.tasks) for arm in miniature.ARMS.values())
    assert done.stdout.count("seed 0: ") == trained
    assert (tmp_path / "results.png").stat().st_size > 10_000
    again = subprocess.run(command, capture_output=True, text=True)
    assert again.returncode == 0 and "seed 0: " not in again.stdout
    assert again.stdout.strip() == (tmp_path / "results.md").read_text().strip()
