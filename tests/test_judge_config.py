"""`judge_config.json`: what a saved judge says of itself."""

import copy
import dataclasses
import json
import pickle
from importlib.metadata import version

import pytest
from tiny import PREFIX

from tract_trainer import JudgeConfig, RegressionAwareSFTConfig, ScoreScale
from tract_trainer.errors import InputError
from tract_trainer.judge_config import DEFAULT_TEMPLATE
from tract_trainer.training.config import HubToken

FULL = JudgeConfig(
    score_labels=["A", "B"],
    score_values=[0.0, 0.5],
    score_prefix="Gesamtnote für die Antwort: ",
    renormalize_scores=True,
    conversational=False,
    prompt_template="{{ response }}\n評価: ",
    chat_template_kwargs={"enable_thinking": False},
)


@pytest.mark.parametrize("config", [FULL, JudgeConfig(["1", "2"], [1.0, 2.0], PREFIX)])
def test_a_config_that_is_saved_is_loaded_unchanged(tmp_path, config):
    config.save(tmp_path / "new" / "folder")
    assert JudgeConfig.load(tmp_path / "new" / "folder") == config
    assert JudgeConfig.load(str(tmp_path / "new" / "folder")) == config


def test_a_calibration_is_saved_and_without_one_older_readers_find_no_new_key(tmp_path):
    FULL.save(tmp_path)
    assert "calibration" not in json.loads((tmp_path / "judge_config.json").read_text(encoding="utf-8"))
    mapped = dataclasses.replace(FULL, calibration={"scores": [0.0, 0.5], "calibrated": [0.1, 0.2]})
    mapped.save(tmp_path)
    assert JudgeConfig.load(tmp_path) == mapped and mapped.settings == FULL.settings


def test_the_file_is_readable_json_with_the_version_that_wrote_it(tmp_path):
    FULL.save(tmp_path)
    text = (tmp_path / "judge_config.json").read_text(encoding="utf-8")
    assert "für" in text and "評価" in text
    assert json.loads(text)["tract_trainer_version"] == version("tract-trainer")


def test_a_config_knows_its_scale():
    assert FULL.scale == ScoreScale(["A", "B"], [0.0, 0.5])


def test_training_arguments_make_the_config(tmp_path):
    args = RegressionAwareSFTConfig(
        str(tmp_path),
        score_labels=["A", "B"],
        score_values=[0, 1],
        score_prefix="S: ",
        renormalize_scores=True,
        use_cpu=True,
        bf16=False,
    )
    config = args.judge_config(conversational=False, chat_template_kwargs={"think": True})
    assert config == JudgeConfig(["A", "B"], [0.0, 1.0], "S: ", True, False, DEFAULT_TEMPLATE, {"think": True})
    args.prompt_template = "{{ response }}"
    assert args.judge_config(True).prompt_template == "{{ response }}"


def test_a_file_with_its_required_keys_gets_the_defaults_for_the_rest(tmp_path):
    minimal = {"score_labels": ["1", "2"], "score_prefix": PREFIX}
    (tmp_path / "judge_config.json").write_text(json.dumps(minimal))
    assert JudgeConfig.load(tmp_path) == JudgeConfig(["1", "2"], [1, 2], PREFIX)


def test_labels_that_are_numbers_are_their_values_as_in_training(tmp_path):
    args = RegressionAwareSFTConfig(str(tmp_path), score_labels=["1", "2.5"], use_cpu=True, bf16=False)
    config = JudgeConfig(["1", "2.5"])
    assert config.score_values == [1.0, 2.5] and config == args.judge_config(conversational=True)
    with pytest.raises(InputError, match=r"^The labels \['A', 'B'\] are not all numbers"):
        JudgeConfig(["A", "B"])


def test_a_folder_without_the_file_is_refused_with_how_to_write_it(tmp_path):
    with pytest.raises(FileNotFoundError) as raised:
        JudgeConfig.load(tmp_path)
    assert str(raised.value) == (
        f"{str(tmp_path)!r} holds no judge_config.json, so its scale and prefix are unknown. A judge is a model that "
        "`tract sft`, `run` or `grpo` has trained. To judge with an untrained model, give its scale: "
        "Judge.from_pretrained(..., scale=ScoreScale.integers(1, 5)), or --scale 1:5. To start reinforcement learning "
        'from one, save the file beside it: JudgeConfig(["1", "2", "3", "4", "5"]).save(folder).'
    )


@pytest.mark.parametrize("name", ["no/such/folder/here", "nobody/no-such-judge", "../judge"])
def test_a_path_that_does_not_exist_is_refused_as_such(name, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(FileNotFoundError, match=rf"^There is no folder '{name}', and the Hub gave none: "):
        JudgeConfig.load(name)


def test_an_unknown_key_is_refused_with_the_known_ones(tmp_path):
    FULL.save(tmp_path)
    path = tmp_path / "judge_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "score_lables": ["1"]}))
    with pytest.raises(
        ValueError,
        match=r"judge_config\.json holds unknown keys \['score_lables'\]; known are \['calibration', "
        r".*'tract_trainer_version'\]\. Is tract-trainer older\?$",
    ):
        JudgeConfig.load(tmp_path)


@pytest.mark.parametrize("key", ["score_labels", "score_prefix"])
def test_a_missing_key_is_refused_by_name(tmp_path, key):
    FULL.save(tmp_path)
    path = tmp_path / "judge_config.json"
    found = json.loads(path.read_text())
    del found[key]
    path.write_text(json.dumps(found))
    with pytest.raises(
        ValueError,
        match=rf"judge_config\.json lacks \['{key}'\]\. Add them, or train the judge again to have the file written\.$",
    ):
        JudgeConfig.load(tmp_path)


def test_labels_written_as_numbers_are_read_as_text():
    config = JudgeConfig(score_labels=[1, 2], score_values=[1, 2], score_prefix="Score: ")
    assert config.score_labels == ["1", "2"] and config.scale.value(config.score_labels[1]) == 2.0


def test_a_token_is_text_that_no_pickle_takes_along(tmp_path):
    token = "hf_recognisableTokenOfNobody"
    settings = {"use_cpu": True, "bf16": False, "model_init_kwargs": {"token": token, "revision": "main"}}
    args = RegressionAwareSFTConfig(str(tmp_path), hub_token=token, **settings)
    assert args.hub_token == token and isinstance(args.hub_token, HubToken)
    for copied in (copy.copy(args), copy.deepcopy(args)):
        assert copied.hub_token == token and copied.model_init_kwargs["token"] == token
    written = pickle.dumps(args)
    assert token.encode() not in written
    found = pickle.loads(written)
    assert found.hub_token is None and found.model_init_kwargs == {"token": None, "revision": "main"}
    assert RegressionAwareSFTConfig(str(tmp_path), use_cpu=True, bf16=False).hub_token is None


def test_a_config_that_was_cut_off_is_named_and_none_is_left_half_written(tmp_path):
    FULL.save(tmp_path)
    (path,) = tmp_path.iterdir()
    path.write_text(path.read_text(encoding="utf-8")[:40], encoding="utf-8")
    with pytest.raises(InputError, match=r"judge_config\.json is no JSON: .*Train the judge again"):
        JudgeConfig.load(tmp_path)


def test_a_config_that_is_nested_too_deeply_is_named(tmp_path):
    (tmp_path / "judge_config.json").write_text('{"score_labels": ' + "[" * 100_000)
    with pytest.raises(InputError, match=r"judge_config\.json is no JSON: maximum recursion depth exceeded"):
        JudgeConfig.load(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (None, r"must hold a JSON object, found None"),
        ({"renormalize_scores": "no"}, r"renormalize_scores must be a bool, found 'no'"),
        ({"score_labels": 5}, r"score_labels must be a list, found 5"),
        ({"prompt_template": 3}, r"prompt_template must be a str, found 3"),
    ],
)
def test_a_config_of_other_types_is_refused(tmp_path, change, message):
    JudgeConfig(list("12345"), [1, 2, 3, 4, 5], PREFIX).save(tmp_path)
    path = tmp_path / "judge_config.json"
    path.write_text(json.dumps(change and {**json.loads(path.read_text()), **change}))
    with pytest.raises(InputError, match=message):
        JudgeConfig.load(tmp_path)
