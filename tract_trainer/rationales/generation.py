"""Generation of the stage-2 dataset: a stage-1 model's own rationales, each closed with the gold score.

Each rationale has a seed of its own, and is on disk when its batch is finished. A run that was killed resumes and ends
with the same dataset.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from datasets import Dataset
from rich.console import Console

from tract_trainer.data.datasets import described, unformatted
from tract_trainer.data.hashing import derive_seed
from tract_trainer.data.records import (
    Prompt,
    annotated_rationales,
    checked_prompt,
    completion_text,
    gold_score,
    unanswered,
)
from tract_trainer.data.rendering import prompt_ids
from tract_trainer.data.settings import begin
from tract_trainer.data.store import Shards, finish_rows, locked
from tract_trainer.engines.base import Rationale, Sampling, as_int
from tract_trainer.errors import InputError, numbered
from tract_trainer.judging.batching import in_pieces
from tract_trainer.judging.judge import Judge
from tract_trainer.rationales.dataset import RENDERED, Request, same_words, stage2_features, summary, write_stage2


def generate_cot_dataset(
    model: str | Path | Judge,
    dataset: Dataset,
    engine: str = "transformers",
    num_cots: int = 1,
    temperature: float = 1.0,
    top_p: float = 0.9,
    repetition_penalty: float = 1.03,
    max_new_tokens: int = 1024,
    seed: int = 42,
    output_dir: str | Path = "cots",
    *,
    batch_size: int | None = None,
    model_kwargs: Mapping[str, Any] | None = None,
    max_retries: int = 2,
    unfinished: str = "drop",
    progress: bool = True,
    overwrite: bool = False,
) -> Dataset:
    """
    Has a stage-1 model write its own rationale for every prompt, and attaches the gold score to it (Chiang, Lee and
    Lukasik, ACL 2025, section 4). The score that the model samples is thrown away.

    Args:
        model (`str` or [`Judge`]): folder or Hub repository of the stage-1 judge, or a judge in memory.
        dataset ([`~datasets.Dataset`]):
            Rows with `prompt` (text or messages) or `messages`, and `score`. Without a `score`, it is read from the end
            of the completion. Otherwise completions serve a count only: how many rationales repeat an annotated one
            word for word. `tools` and `chat_template_kwargs` render the prompts as in training, and are columns of the
            result.
        engine (`str`, *optional*, defaults to `"transformers"`): what runs the model.
        num_cots (`int`, *optional*, defaults to `1`): rationales per row.
        temperature, top_p, repetition_penalty, max_new_tokens: see [`~tract_trainer.engines.base.Sampling`].
        seed (`int`, *optional*, defaults to `42`): seed of all draws.
        output_dir (`str`, *optional*, defaults to `"cots"`):
            Folder of the result (`train.parquet`, `report.json`) and of the work in progress. A second call with the
            same settings generates what is missing; one with other settings is refused.
        batch_size (`int`, *optional*): rationales generated together; by default, as many as the engine does.
        model_kwargs (`dict`, *optional*): arguments of the engine, see [`Judge.from_pretrained`].
        max_retries (`int`, *optional*, defaults to `2`): further draws for a rationale without a score.
        unfinished (`str`, *optional*, defaults to `"drop"`):
            What to do with a rationale that has no score after all draws: `"drop"` it, or `"force"`: close it where it
            ends.
        progress (`bool`, *optional*, defaults to `True`): whether to show a progress bar.
        overwrite (`bool`, *optional*, defaults to `False`):
            Whether to start over, and to replace files in `output_dir` that this function did not write.

    Returns:
        [`~datasets.Dataset`] with `prompt`, `completion` and `score`, in the order of the rows: a dataset that the
        trainer takes as it is. Prompt and completion are messages where the judge is conversational or the prompt was;
        otherwise text. A fractional gold score keeps its value in `score` and writes the nearest label.

    Raises:
        ValueError: the dataset has no rows, prompts or scores; the settings differ from those of `output_dir`; or no
            rationale can be kept.
    """
    if unfinished not in ("drop", "force"):
        raise InputError(f"unfinished={unfinished!r} is not one of ['drop', 'force'].")
    num_cots, seed = as_int("num_cots", num_cots), as_int("seed", seed)
    if num_cots < 1 or max_retries < 0:
        raise InputError(f"Expected num_cots >= 1 and max_retries >= 0, got {num_cots} and {max_retries}.")
    if not isinstance(dataset, Dataset):
        raise InputError(
            f"Expected a datasets.Dataset, found {type(dataset).__name__}: rationales are written longest prompt "
            "first, so all rows must be at hand. Use Dataset.from_list(list(rows))."
        )
    if len(dataset) == 0:
        raise InputError("The dataset has no rows, so there is nothing to write rationales for.")
    if not isinstance(model, str | Path | Judge):
        raise InputError(
            f"Expected a folder, a Hub repository or a Judge as the model, found {type(model).__name__}. For a model "
            "in memory, give Judge.from_model(model, tokenizer, config), where config is trainer.judge_config."
        )
    sampling = Sampling(temperature, top_p, repetition_penalty, max_new_tokens)
    loading: dict[str, Any] = {"batch_size": batch_size, "model_kwargs": model_kwargs}
    judge = model if isinstance(model, Judge) else Judge.from_pretrained(model, engine, **loading)
    work = _Work(judge, unformatted(dataset), num_cots, sampling, seed, max_retries)
    settings = work.settings()  # reads what every row is rendered with: a bad one is refused now, not hours later
    folder = Path(output_dir)
    state = begin(folder / "settings.json", settings, folder / ".shards", folders=[folder], overwrite=overwrite)
    places, size = work.longest_first(), batch_size or judge.engine.batch_size
    keys, shown = [work.request(*place).key for place in places], progress and state.is_main_process

    def rows(numbers: Sequence[int]) -> Iterator[tuple[int, dict[str, Any]]]:
        due = [places[i] for i in numbers]
        made = in_pieces(work.write, due, size, judge.engine.calls, "Writing rationales", shown)
        return ((numbers[i], row) for i, row in made)

    with locked(folder / ".shards", state.process_index):
        finish_rows(folder / ".shards", keys, rows, state)
    if state.is_main_process:
        requests = (work.request(row, cot) for row in range(len(dataset)) for cot in range(num_cots))
        written = Shards(folder / ".shards")
        report = write_stage2(requests, work.features, written, folder, judge.config, unfinished, work.annotated)
        judge.config.save(folder)  # their scale and closing phrase
        if progress:
            Console().print(summary(report), f"Saved in {folder}.")
    state.wait_for_everyone()
    return described(Dataset.from_parquet(str(folder / "train.parquet")), folder)


class _Work:
    """The rationales to write, each named by the number of its row and its own number in the row."""

    def __init__(
        self, judge: Judge, dataset: Dataset, num_cots: int, sampling: Sampling, seed: int, max_retries: int
    ) -> None:
        if judge.engine.tokens is None:
            raise InputError(
                "Rationales for stage 2 need the judge's tokenizer, which logprobs='top' does without. Serve the judge "
                "with vllm serve, or use an engine in this process."
            )
        self.tokens = judge.engine.tokens
        self.judge, self.dataset, self.num_cots = judge, dataset, num_cots
        self.sampling, self.seed, self.max_retries = sampling, seed, max_retries
        self.annotated: set[str] = set()
        self.features = stage2_features(dataset.features, _prompt_column(dataset[0]), judge.config)

    def settings(self) -> dict[str, Any]:
        """Everything that the rationales depend on."""
        data = hashlib.sha256()
        for row in range(len(self.dataset)):
            with numbered("Row", row):
                request = self.request(row, 0)
                self.prompt_ids(request)  # what the chat template does not take is refused as well
            data.update(f"{request.key} {request.score} ".encode())
            texts = annotated_rationales(self.dataset[row], self.judge.config.score_prefix)
            self.annotated.update(same_words(request.prompt, text) for text in texts)
        return {
            "command": "tract generate",
            **asdict(self.sampling),
            "num_cots": self.num_cots,
            "seed": self.seed,
            "max_retries": self.max_retries,
            "judge": self.judge.identity,
            "rows": len(self.dataset),
            "data": data.hexdigest()[:32],
        }

    def longest_first(self) -> list[tuple[int, int]]:
        """All rationales, so that those of a batch have prompts of like length."""
        lengths = [len(str(_prompt(row))) for row in self.dataset]
        order = sorted(range(len(lengths)), key=lambda row: -lengths[row])
        return [(row, cot) for row in order for cot in range(self.num_cots)]

    def request(self, row: int, cot: int) -> Request:
        values = self.dataset[row]
        return Request(row, cot, _prompt(values), self._gold(values), self._rendered(values))

    def prompt_ids(self, request: Request) -> list[int]:
        """Tokens of the prompt, `(T,)`."""
        config, tokenizer = self.judge.config, self.tokens.tokenizer
        return prompt_ids(request.prompt, tokenizer, config.conversational, **request.template_kwargs)

    def _rendered(self, values: Mapping[str, Any]) -> dict[str, Any]:
        found = {"chat_template_kwargs": self.judge.config.chat_template_kwargs, **values}
        if not isinstance(found.get("tools"), str | None):
            found["tools"] = json.dumps(found["tools"])  # TRL reads that too, and Parquet holds no empty mappings
        return {name: found[name] for name in RENDERED if name in self.features}

    def _gold(self, values: Mapping[str, Any]) -> float:
        config = self.judge.config
        score = gold_score(values)
        if score is None and "score" not in values:
            tokens = self.tokens  # the rule that training finds it with
            found = tokens.find(tokens.tokenizer(completion_text(values), add_special_tokens=False)["input_ids"])
            score = None if found is None else config.scale.value(found.label)
        if score is None or not config.scale.covers(score):
            raise InputError(
                f"it has no gold score on the scale of {config.scale.low:g} to {config.scale.high:g}: its score is "
                f"{score}. Fill in the column `score`, or leave such rows out."
            )
        return float(score)

    def write(self, batch: Sequence[tuple[int, int]]) -> list[dict[str, Any]]:
        """The finished row of each rationale. One without a score is drawn again, a refusal is final."""
        requests = [self.request(*place) for place in batch]
        prompts = list(map(self.prompt_ids, requests))
        todo = [i for i, prompt in enumerate(prompts) if self.judge.fits(prompt)]
        drawn = dict.fromkeys(range(len(requests)), (Rationale("", None, None, 0), 0))
        attempts = self.max_retries + 1 if self.sampling.temperature > 0 else 1  # the likeliest text stays the same
        for attempt in range(1, attempts + 1):
            seeds = [derive_seed(self.seed, requests[i].key, attempt) for i in todo]
            rationales = self.judge.engine.generate([prompts[i] for i in todo], seeds, self.sampling)
            drawn |= {i: (rationale, attempt) for i, rationale in zip(todo, rationales, strict=True)}
            todo = [i for i in todo if drawn[i][0].label is None and not drawn[i][0].error]
            if not todo:
                break
        kept = ("text", "label", "num_tokens", "error")
        return [
            {**{name: getattr(rationale, name) for name in kept}, "attempts": attempt}
            for rationale, attempt in drawn.values()
        ]


def _prompt(row: Mapping[str, Any]) -> Prompt:
    column = _prompt_column(row)
    found = checked_prompt(row[column])
    return found if column == "prompt" else unanswered(found)


def _prompt_column(row: Mapping[str, Any]) -> str:
    for column in ("prompt", "messages"):
        if row.get(column):
            return column
    raise InputError(f"A row needs `prompt` or `messages` to write a rationale for; found the columns {sorted(row)}.")
