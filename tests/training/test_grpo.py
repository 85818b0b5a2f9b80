"""Reinforcement learning on the error of the expected score: rewards, advantages, gradients, files."""

import copy
import math
import os
import pickle
import socket
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from naive import assert_same_gradients, label_log_probs, label_paths, step_gradients
from peft import LoraConfig, get_peft_model
from tiny import PREFIX, make_rows, make_tokenizer
from transformers import AutoModelForCausalLM, TrainerCallback
from trl import GRPOConfig, GRPOTrainer

from tract_trainer import (
    Judge,
    JudgeConfig,
    RegressionAwareGRPOConfig,
    RegressionAwareGRPOTrainer,
)

ROWS = [{"prompt": row["prompt"], "score": float(round(row["score"]))} for row in make_rows(4)]
CONFIG = JudgeConfig(["1", "2", "3", "4", "5"])
TEN = JudgeConfig([str(number) for number in range(1, 11)])
GROUP = 4


def settings(folder, **kwargs):
    return {
        "output_dir": str(folder),
        "num_generations": GROUP,
        "per_device_train_batch_size": 2 * GROUP,
        "max_completion_length": 24,
        "max_steps": 1,
        "learning_rate": 0.0,
        "max_grad_norm": 0.0,
        "lr_scheduler_type": "constant",
        "logging_steps": 1,
        "report_to": "none",
        "use_cpu": True,
        "bf16": False,
        "disable_tqdm": True,
        "save_strategy": "no",
        "gradient_checkpointing": False,
        "temperature": 1.0,
        **kwargs,
    }


def make_trainer(folder, model, tokenizer, config=CONFIG, rows=ROWS, **kwargs):
    taken = {name: kwargs.pop(name) for name in ("peft_config", "reward_funcs") if name in kwargs}
    args = RegressionAwareGRPOConfig(**settings(folder, **kwargs))
    return RegressionAwareGRPOTrainer(
        model,
        args=args,
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        judge_config=config,
        **taken,
    )


def recorded(trainer):
    """What `trainer` samples, as (prompt, completion) pairs of token ids, in the order of its rows."""
    samples, generate = [], trainer._generate

    def record(prompts):
        found = generate(prompts)
        samples.extend(zip(found[0], found[1], strict=True))
        return found

    trainer._generate = record
    return samples


def score_place(tokenizer, ids, labels):
    """The last place of `ids` where the prefix ends and a label begins, read from the text; `None` without one."""
    text = [tokenizer.decode(ids[:i], clean_up_tokenization_spaces=False) for i in range(len(ids) + 1)]
    places = [i for i in range(len(ids)) if text[i].endswith(PREFIX) and text[-1][len(text[i]) :].startswith(labels)]
    return places[-1] if places else None


def naive_gradients(model, tokenizer, samples, *, scale, beta, likelihood, trained):
    """
    The gradient of the loss as the formula has it, with full logits, row by row:

        1 / tokens * sum over rationales of (-A * sum of log p(token) + beta * (error^2 - likelihood * log p(gold)))

    `trained` are the completions of this step, of all `samples`. Advantages are over the other rationales' mean. With
    it, the reward of each sample, and whether it has a score.
    """
    paths, values, share = label_paths(tokenizer, scale.labels), torch.tensor(scale.values), len(trained) / len(samples)
    gold = gold_of(tokenizer, samples)
    left = Counter(map(tuple, trained))
    labels, rewards, parts = tuple(f"{value:g}" for value in values.tolist()), [], []
    for (prompt, ids), score in zip(samples, gold, strict=True):
        place = score_place(tokenizer, ids, labels)
        log_probs = model(torch.tensor([[*prompt, *ids]])).logits[0].float().log_softmax(-1)
        written = ids if place is None else ids[:place]
        policy = sum((log_probs[len(prompt) - 1 + i, token] for i, token in enumerate(written)), start=torch.zeros(()))
        low, high = values.min(), values.max()
        reward = -((max(score - low, high - score) * 4 / (high - low)) ** 2)
        if place is not None:
            scale = label_log_probs(model, [*prompt, *ids[:place]], paths)
            two_hot = scale[values.tolist().index(score)] if score in values.tolist() else None
            assert two_hot is not None or not likelihood
            error = ((scale.exp() * values).sum() - score) * 4 / (high - low)
            reward = -(error**2)
            reward = reward + likelihood * two_hot if likelihood else reward
        rewards.append(reward)
        parts.append((policy, len(written), place is not None))
    total = torch.zeros(())
    for number, (policy, _, scored) in enumerate(parts):
        first, written = number - number % GROUP, tuple(samples[number][1])
        peers = [r.item() for r in rewards[first : first + GROUP]]
        if left[written] == 0:
            continue
        left[written] -= 1
        own = rewards[number].item()
        spread = math.sqrt(sum((r - sum(peers) / GROUP) ** 2 for r in peers) / (GROUP - 1))
        others = (sum(peers) - own) / (GROUP - 1)
        total = total - max(-1.0, min(1.0, (own - others) / (spread + 1e-4))) * policy
        if scored:
            total = total - beta * rewards[number]
    model.zero_grad()
    (total / sum(length for _, length, _ in parts) / share).backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return gradients, [(reward.item(), scored) for reward, (*_, scored) in zip(rewards, parts, strict=True)]


@pytest.fixture
def soft(learned):
    """Two copies of the judge that has learned its rows, less sure of itself: rewards differ within a prompt."""
    model = copy.deepcopy(learned.model)
    model.forward = type(model).forward.__get__(model)
    model.lm_head.weight.data.mul_(0.5)
    return model, copy.deepcopy(model)


SOFT = {"top_p": 0.5}  # what it then writes is still one of its rows, mostly


@pytest.mark.parametrize(
    ("beta", "likelihood", "kwargs"),
    [
        (0.0, 0.0, {}),
        (0.0, 1.0, {}),
        (1.0, 0.0, {}),
        (1.0, 1.0, {}),
        (1.0, 1.0, {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2}),
        (1.0, 0.0, {"per_device_train_batch_size": 4, "steps_per_generation": 2}),
        (1.0, 1.0, {"gradient_checkpointing": True}),
    ],
    ids=str,
)
@pytest.mark.parametrize("config", [CONFIG, TEN], ids=["1 to 5", "1 to 10"])
def test_the_gradient_of_a_step_is_that_of_the_formula(tmp_path, soft, beta, likelihood, kwargs, config):
    model, naive = soft
    weights = {"score_loss_weight": beta, "score_likelihood_weight": likelihood}
    trainer = make_trainer(tmp_path, model, make_tokenizer("qwen"), config, **SOFT, **weights, **kwargs)
    assert_naive_step(trainer, naive, config.scale, beta, likelihood)


def taken_step(trainer):
    """One step of `trainer`: what it logs, its gradients, all it sampled and the completions that it trained on."""
    samples, trained, compute_loss = recorded(trainer), [], trainer._compute_loss

    def record(model, inputs):
        trained.extend(ids[ids != trainer.processing_class.pad_token_id].tolist() for ids in inputs["completion_ids"])
        return compute_loss(model, inputs)

    trainer._compute_loss = record
    return *step_gradients(trainer), samples, trained


def assert_naive_step(trainer, naive, scale, beta, likelihood):
    """One step of `trainer` has the gradient that the formula has for what it sampled; returns the rewards."""
    log, gradients, samples, trained = taken_step(trainer)
    given = {"scale": scale, "beta": beta, "likelihood": likelihood, "trained": trained}
    expected, rewards = naive_gradients(naive, trainer.processing_class, samples, **given)
    assert_same_gradients(gradients, expected)
    assert log["reward"] == pytest.approx(sum(reward for reward, _ in rewards) / len(rewards), rel=1e-5)
    assert log["unscored"] == pytest.approx(sum(not scored for _, scored in rewards) / len(rewards))
    return rewards


def test_adapters_have_the_gradient_of_the_formula(tmp_path, soft):
    model, naive = soft
    lora = LoraConfig(r=4, lora_alpha=0.1, target_modules="all-linear", init_lora_weights=False)
    trainer = make_trainer(tmp_path, model, make_tokenizer("qwen"), peft_config=lora, **SOFT)
    naive = get_peft_model(naive, lora)
    naive.load_state_dict(trainer.model.state_dict())
    assert_naive_step(trainer, naive, CONFIG.scale, 1.0, 0.0)


def test_rewards_are_the_judges_without_dropout(tmp_path, soft):
    model, naive = soft
    lora = LoraConfig(r=4, lora_alpha=0.1, target_modules="all-linear", init_lora_weights=False, lora_dropout=0.9)
    trainer = make_trainer(tmp_path, model, make_tokenizer("qwen"), peft_config=lora, **SOFT)
    naive = get_peft_model(naive, lora).eval()
    naive.load_state_dict(trainer.model.state_dict())
    samples = recorded(trainer)
    trainer.train()
    paths, found = label_paths(trainer.processing_class, "12345"), []
    for (prompt, ids), gold in zip(samples, gold_of(trainer.processing_class, samples), strict=True):
        place = score_place(trainer.processing_class, ids, tuple("12345"))
        found.append(-(max(gold - 1, 5 - gold) ** 2))
        if place is not None:
            probs = label_log_probs(naive, [*prompt, *ids[:place]], paths).exp()
            found[-1] = -((probs @ torch.tensor(CONFIG.score_values) - gold).item() ** 2)
    assert trainer.state.log_history[0]["reward"] == pytest.approx(sum(found) / len(found), rel=1e-5)
    assert trainer.model.training


def test_a_prompt_without_any_score_has_no_advantage(tmp_path, soft):
    model, naive = soft
    trainer = make_trainer(tmp_path, model, make_tokenizer("qwen"), max_completion_length=11, **SOFT)
    rewards = assert_naive_step(trainer, naive, CONFIG.scale, 1.0, 0.0)
    assert any(not any(scored for _, scored in rewards[i : i + GROUP]) for i in (0, GROUP))


def test_a_rationale_without_a_score_is_as_bad_as_the_worst_score(tmp_path, soft):
    model, naive = soft
    trainer = make_trainer(tmp_path, model, make_tokenizer("qwen"), max_completion_length=14, **SOFT)
    rewards = assert_naive_step(trainer, naive, CONFIG.scale, 1.0, 0.0)
    kinds = {scored for _, scored in rewards}
    assert kinds == {True, False}


@pytest.mark.parametrize(
    ("loss", "worst"),
    [("squared_error", 9), ("absolute_error", 3), ("huber", 2.5), ("crps", 3), ("wasserstein", 3), ("soft_ce", 16)],
)
def test_the_worst_score_has_a_finite_reward(tmp_path, soft, loss, worst):
    # On 1 to 5, the label farthest from a gold score of 2 is 5. Its log-loss is infinite.
    trainer = make_trainer(
        tmp_path, soft[0], make_tokenizer("qwen"), score_loss_type=loss, max_completion_length=2,
        rows=[{**row, "score": 2.0} for row in ROWS],
    )  # fmt: skip
    trainer.train()
    log = trainer.state.log_history[0]
    assert log["unscored"] == 1 and log["reward"] == pytest.approx(-worst)


def test_with_weights_of_0_it_is_grpo_with_that_reward(tmp_path, soft):
    model, other = soft
    common = {"learning_rate": 1e-3, "max_steps": 3, "scale_rewards": "none", "max_grad_norm": 1.0, **SOFT}
    trainer = make_trainer(
        tmp_path / "ours", model, make_tokenizer("qwen"), score_loss_weight=0.0, advantage_clip=None, **common
    )
    samples, places, rewards = recorded(trainer), [], []
    calculate = trainer._calculate_rewards

    def keep(*args):
        found = calculate(*args)
        places.extend(trainer._sampled[2].get(i) for i in range(2 * GROUP))
        rewards.extend(found[:, 0].tolist())
        return found

    trainer._calculate_rewards = keep
    trainer.train()
    given = iter(list(zip(samples, places, rewards, strict=True)))

    def replay(prompts, _):
        batch = [next(given) for _ in prompts]
        replay.rewards = [reward for _, _, reward in batch]
        return {
            "prompt_ids": [prompt for (prompt, _), _, _ in batch],
            "completion_ids": [ids for (_, ids), _, _ in batch],
            "logprobs": [[0.0] * len(ids) for (_, ids), _, _ in batch],
            "env_mask": [[int(place is None or i < place) for i in range(len(ids))] for (_, ids), place, _ in batch],
        }

    def reward(completions, **_):
        return [r * GROUP / (GROUP - 1) for r in replay.rewards]

    plain = GRPOTrainer(
        other, reward, GRPOConfig(**settings(tmp_path / "theirs", **common)), Dataset.from_list(ROWS),
        processing_class=make_tokenizer("qwen"), rollout_func=replay,
    )  # fmt: skip
    plain.train()
    for (name, ours), theirs in zip(trainer.model.named_parameters(), plain.model.parameters(), strict=True):
        assert (ours - theirs).abs().max() < 1e-5, name
    losses = [[entry["loss"] for entry in each.state.log_history if "loss" in entry] for each in (trainer, plain)]
    assert losses[0] == pytest.approx(losses[1], abs=1e-6)
    assert any(losses[0])


@pytest.mark.parametrize(("config", "expected"), [(CONFIG, [False, False, True]), (TEN, [False, True])])
def test_a_step_reads_its_rationales_once_for_the_rewards_and_once_to_train(tmp_path, soft, config, expected):
    trainer = make_trainer(tmp_path, soft[0], make_tokenizer("qwen"), config, **SOFT)
    forwards, generate = [], trainer._generate

    def quiet(prompts):
        before = len(forwards)
        found = generate(prompts)
        del forwards[before:]
        return found

    trainer._generate = quiet
    trainer.model.base_model.register_forward_pre_hook(
        lambda _, args, kwargs: forwards.append((torch.is_grad_enabled(), kwargs["input_ids"].shape)), with_kwargs=True
    )
    trainer.train()
    assert [learns for learns, _ in forwards] == expected
    if config is CONFIG:  # each of the two prompts is read once
        (_, prompts), (_, rationales), (_, rows) = forwards
        assert prompts[0] == 2 and rationales[0] == rows[0] == 2 * GROUP
        assert prompts[1] + rationales[1] <= rows[1]


def test_own_rewards_are_added(tmp_path, soft):
    seen = []

    def length(completion_ids, **columns):
        seen.append(columns["score"])
        return [float(len(ids)) for ids in completion_ids]

    trainer = make_trainer(
        tmp_path, soft[0], make_tokenizer("qwen"), reward_funcs=length, reward_weights=[1.0, 0.5],
        max_completion_length=14, **SOFT,
    )  # fmt: skip
    trainer.train()
    scored = trainer.state.log_history[0]
    assert 0 < scored["unscored"] < 1
    own, ours = (torch.tensor(list(trainer._logs["rewards"][name])) for name in ("length", "score_reward"))
    assert scored["reward"] == pytest.approx(float((ours + 0.5 * own).mean()), rel=1e-5)
    assert len(seen[0]) == 2 * GROUP


def test_it_starts_from_a_judges_folder_and_saves_a_judge(tmp_path, judge_folder):
    args = RegressionAwareGRPOConfig(**settings(tmp_path / "out", learning_rate=1e-4))
    trainer = RegressionAwareGRPOTrainer(str(judge_folder), args=args, train_dataset=Dataset.from_list(ROWS))
    trainer.train()
    trainer.save_model()
    before, after = (Judge.from_pretrained(folder) for folder in (judge_folder, tmp_path / "out"))
    assert after.config == before.config
    scores = [judge.rescore(ROWS[:1], ["It is correct."])[0].score for judge in (before, after)]
    assert scores[0] != scores[1]
    card = (tmp_path / "out" / "README.md").read_text()
    assert "REAL" in card and "reinforcement" in card


def test_an_adapter_is_trained_on(tmp_path, seed_folder):
    tokenizer = make_tokenizer("qwen")
    lora = LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False)
    first = get_peft_model(AutoModelForCausalLM.from_pretrained(seed_folder), lora)
    first.save_pretrained(tmp_path / "judge")
    tokenizer.save_pretrained(tmp_path / "judge")
    CONFIG.save(tmp_path / "judge")
    args = RegressionAwareGRPOConfig(
        **settings(tmp_path / "out", learning_rate=1e-2, max_completion_length=4, beta=0.1)
    )
    trainer = RegressionAwareGRPOTrainer(str(tmp_path / "judge"), args=args, train_dataset=Dataset.from_list(ROWS))
    trained = {name for name, weight in trainer.model.named_parameters() if weight.requires_grad}
    assert trained and all("lora" in name for name in trained)
    for name, weight in first.named_parameters():
        assert weight.equal(trainer.model.get_parameter(name)), name
    trainer.train()
    trainer.save_model()
    assert Judge.from_pretrained(tmp_path / "out").config == CONFIG


@pytest.mark.parametrize(
    ("rows", "kwargs", "complaint"),
    [
        ([{"prompt": "Q"}], {}, r"lacks \['score'\]"),
        ([{"prompt": "Q", "score": 9.0}, {"prompt": "Q", "score": 2.0}], {}, "1 of 2 train rows .* row 0, with 9.0"),
        ([{"prompt": "Q", "score": None}], {}, "1 of 1 train rows"),
        ([{"prompt": "Q", "score": 2.0, "tools": "[]"}], {}, r"has \['tools'\]"),
        (ROWS, {"loss_type": "grpo"}, "loss_type='grpo' does not divide by the number of tokens"),
        (ROWS, {"advantage_clip": 0.0}, "advantage_clip must be above 0"),
        (ROWS, {"score_loss_type": "mse"}, "score_loss_type='mse' is not one of"),
    ],
)
def test_what_cannot_be_trained_is_refused(tmp_path, judge_folder, rows, kwargs, complaint):
    with pytest.raises(ValueError, match=complaint):
        RegressionAwareGRPOTrainer(
            str(judge_folder),
            args=RegressionAwareGRPOConfig(**settings(tmp_path, **kwargs)),
            train_dataset=Dataset.from_list(rows),
        )


def test_a_model_that_is_no_judge_is_refused(tmp_path, seed_folder):
    args = RegressionAwareGRPOConfig(**settings(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"holds no judge_config\.json"):
        RegressionAwareGRPOTrainer(str(seed_folder), args=args, train_dataset=Dataset.from_list(ROWS))


def test_a_plain_config_gets_the_defaults_of_ours(tmp_path, judge_folder):
    plain = GRPOConfig(**settings(tmp_path, steps_per_generation=2, hub_token="hf_secret"))
    trainer = RegressionAwareGRPOTrainer(str(judge_folder), args=plain, train_dataset=Dataset.from_list(ROWS))
    args = trainer.args
    assert (args.score_loss_weight, args.advantage_clip, args.steps_per_generation) == (1.0, 1.0, 2)
    assert args.generation_batch_size == plain.generation_batch_size and args.max_completion_length == 24
    assert b"hf_secret" not in pickle.dumps(args)


def test_a_calibration_is_not_passed_on_to_other_weights(tmp_path, judge_folder):
    config = JudgeConfig.load(judge_folder)
    trainer = RegressionAwareGRPOTrainer(
        str(judge_folder),
        args=RegressionAwareGRPOConfig(**settings(tmp_path)),
        train_dataset=Dataset.from_list(ROWS),
        judge_config=replace(config, calibration={"scores": [1, 5], "calibrated": [2, 4]}),
    )
    assert trainer.judge_config == config


def test_evaluation_logs_the_same_figures(tmp_path, soft):
    trainer = make_trainer(tmp_path, soft[0], make_tokenizer("qwen"), per_device_eval_batch_size=2 * GROUP, **SOFT)
    found = trainer.evaluate(Dataset.from_list(ROWS))
    assert {"eval_reward", "eval_score_mae", "eval_score_mass", "eval_unscored"} <= found.keys()


def gold_of(tokenizer, samples):
    """The gold score of each sample, by its prompt."""
    asked = {}
    for row in ROWS:
        text = tokenizer.apply_chat_template(
            [{"role": "user", "content": row["prompt"]}], add_generation_prompt=True, tokenize=False
        )
        asked[tuple(tokenizer(text, add_special_tokens=False)["input_ids"])] = row["score"]
    return [asked[tuple(prompt)] for prompt, _ in samples]


@pytest.mark.parametrize("prompts", [4, 8], ids=["after an epoch", "within an epoch"])
def test_a_run_that_was_stopped_ends_with_the_same_weights(tmp_path, judge_folder, prompts):
    rows = [{"prompt": f"{row['prompt']} {i}", "score": row["score"]} for i, row in enumerate(ROWS * 2)][:prompts]

    def train(folder, **kwargs):
        given = {"learning_rate": 1e-3, "max_steps": 4, "save_strategy": "steps", "save_steps": 2, **SOFT, **kwargs}
        args = RegressionAwareGRPOConfig(**settings(folder, **given))
        return RegressionAwareGRPOTrainer(str(judge_folder), args=args, train_dataset=Dataset.from_list(rows))

    whole = train(tmp_path / "whole")
    whole.train()
    stopped = train(tmp_path / "stopped")
    stopped.add_callback(StopAfter(3))
    stopped.train()
    resumed = train(tmp_path / "stopped")
    resumed.train(resume_from_checkpoint=str(tmp_path / "stopped" / "checkpoint-2"))
    assert resumed.state.global_step == 4
    for (name, weight), other in zip(whole.model.named_parameters(), resumed.model.parameters(), strict=True):
        assert weight.equal(other), name


class StopAfter(TrainerCallback):
    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop = state.global_step == self.step


@pytest.mark.slow
def test_two_processes_have_the_gradient_of_the_formula(tmp_path, soft):
    model, naive = soft
    model.save_pretrained(tmp_path / "judge")
    torchrun = ["-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", str(free_port())]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = str(Path(__file__).parents[1])
    subprocess.run([sys.executable, *torchrun, __file__, str(tmp_path)], check=True, env=environment, timeout=600)
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    assert first["gradients"].keys() == second["gradients"].keys()
    samples, trained = first["samples"] + second["samples"], first["trained"] + second["trained"]
    given = {"scale": TEN.scale, "beta": 1.0, "likelihood": 1.0, "trained": trained}
    expected, _ = naive_gradients(naive, make_tokenizer("qwen"), samples, **given)
    for of_process in (first, second):
        assert_same_gradients(of_process["gradients"], expected)


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def one_of_two(folder):
    """What each process of the test above does: of three prompts, the second one's rationales are in both."""
    model = AutoModelForCausalLM.from_pretrained(folder / "judge", dtype=torch.float32)
    weights = {"score_likelihood_weight": 1.0, "per_device_train_batch_size": 6}
    trainer = make_trainer(folder, model, make_tokenizer("qwen"), TEN, **SOFT, **weights)
    _, gradients, samples, trained = taken_step(trainer)
    found = {"gradients": gradients, "samples": samples, "trained": trained}
    torch.save(found, folder / f"{trainer.accelerator.process_index}.pt")


if __name__ == "__main__":
    one_of_two(Path(sys.argv[1]))
