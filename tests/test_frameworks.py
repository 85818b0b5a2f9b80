"""The examples that use a judge in other libraries run with them, where they are installed."""

import json
import logging
import runpy
from pathlib import Path

import pytest
from tiny import make_rows

from tract_trainer import Judge

EXAMPLES = Path(__file__).parents[1] / "examples"
PROMPT = make_rows(1, conversational=True)[0]["prompt"][0]["content"]


@pytest.fixture(scope="module")
def folder(learned, tmp_path_factory):
    """The judge that all share, which asks with the instruction alone, as it was trained to."""
    folder = tmp_path_factory.mktemp("frameworks") / "judge"
    learned.save_model(str(folder))
    config = json.loads((folder / "judge_config.json").read_text())
    config["prompt_template"] = "{{ instruction }}{# {{ response }} #}"
    (folder / "judge_config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(scope="module")
def expected(folder):
    record = {"instruction": PROMPT, "response": "7", "rubric": "Is it right?"}
    found = Judge.from_pretrained(folder).score(record, max_new_tokens=512)
    assert not found.reason
    return found


@pytest.fixture
def questions(tmp_path):
    path = tmp_path / "questions.jsonl"
    path.write_text("".join(json.dumps({"input": PROMPT, "question": PROMPT}) + "\n" for _ in range(2)))
    return path


def example(name):
    return runpy.run_path(str(EXAMPLES / f"{name}.py"))


@pytest.fixture(autouse=True)
def quiet():
    """Puts back the handlers and levels of logging, which these libraries set."""
    root = logging.getLogger()
    before = root.handlers[:], root.level
    yield
    root.handlers[:], level = before
    root.setLevel(level)


def test_a_judge_scores_in_inspect_ai(folder, expected, questions, tmp_path, capsys):
    pytest.importorskip("inspect_ai")
    from inspect_ai.log import list_eval_logs, read_eval_log
    from inspect_ai.model import ModelAPI, ModelOutput, modelapi

    @modelapi(name="answering")
    class Answering(ModelAPI):
        async def generate(self, input, tools, tool_choice, config):
            return ModelOutput.from_content(self.model_name, "7")

    logs = tmp_path / "logs"
    argv = ["--model", "answering/seven", "--data", str(questions), "--judge", str(folder), "--log_dir", str(logs)]
    example("inspect_scorer")["main"](argv)
    assert f"'mean': {round(expected.score, 3)}" in capsys.readouterr().out
    (info,) = list_eval_logs(str(logs))
    for sample in read_eval_log(info).samples:
        (score,) = sample.scores.values()
        assert score.value == pytest.approx(expected.score, abs=1e-4) and score.explanation == expected.rationale


def test_a_judge_is_a_metric_of_deepeval(folder, expected, monkeypatch):
    pytest.importorskip("deepeval")
    from deepeval import assert_test
    from deepeval.test_case import LLMTestCase

    monkeypatch.setenv("DEEPEVAL_TELEMETRY_OPT_OUT", "1")
    share = (expected.score - 1) / 4
    case = LLMTestCase(input=PROMPT, actual_output="7")
    kind, judge = example("deepeval_metric")["TractMetric"], Judge.from_pretrained(folder)
    metric = kind(judge, "Is it right?", threshold=share - 0.1)
    assert metric.measure(case) == pytest.approx(share, abs=1e-4) and metric.is_successful()
    assert metric.reason == expected.rationale
    assert_test(case, [metric])
    with pytest.raises(AssertionError, match="tract judge"):
        assert_test(case, [kind(judge, "Is it right?", threshold=share + 0.1)])
    with pytest.raises(ValueError, match="None of 1 rationales"):
        kind(judge, "Is it right?", max_new_tokens=1).measure(case)


def test_a_judge_is_the_metric_of_an_lm_eval_task(folder, seed_folder, expected, questions, capsys):
    pytest.importorskip("lm_eval")
    argv = ["--model_args", f"pretrained={seed_folder},device=cpu", "--data", str(questions), "--judge", str(folder)]
    example("lm_eval_task")["main"]([*argv, "--max_gen_toks", "60"])
    said = capsys.readouterr().out
    assert f"judge_score {expected.score:.3f}" in said and "0 of 2 answers remain unscored" in said
