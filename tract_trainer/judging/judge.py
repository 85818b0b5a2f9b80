"""Turns records into judgments."""

import asyncio
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import numpy as np

from tract_trainer.data.hashing import derive_seed, digest
from tract_trainer.data.records import Record, check_prompts, default_separator
from tract_trainer.data.rendering import NO_PREFILL, MessageRows, RecordRows, pin_dates
from tract_trainer.data.settings import differences
from tract_trainer.data.templates import template_text
from tract_trainer.engines import base
from tract_trainer.engines.base import Engine, Rationale, Sampling, as_int, checked
from tract_trainer.errors import InputError, numbered
from tract_trainer.judge_config import DEFAULT_PREFIX, JudgeConfig
from tract_trainer.judging.batching import in_order, in_pieces
from tract_trainer.judging.judgment import Comparison, Judgment, comparison, is_wide, judgment
from tract_trainer.judging.reward import reward_func
from tract_trainer.scale import ScoreScale, ScoreTokens

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from tract_trainer.engines.checkpoints import SavedJudge

logger = logging.getLogger(__name__)


class Judge:
    """
    A trained judge on an engine. Usually made with [`Judge.from_pretrained`].

    Args:
        engine ([`~tract_trainer.engines.base.Engine`]): what writes and scores rationales.
        config ([`~tract_trainer.judge_config.JudgeConfig`]): how the judge is asked and its score read.

    Example:
    ```python
    judge = Judge.from_pretrained("judge")
    judgment = judge.score({"instruction": "Name a prime.", "response": "7", "rubric": "Is the answer correct?"})
    ```
    """

    def __init__(self, engine: Engine, config: JudgeConfig) -> None:
        self.engine, self.config = engine, config
        tokens = engine.tokens
        self.rows: RecordRows | MessageRows = MessageRows(config) if tokens is None else RecordRows(tokens, config)
        self.saved: SavedJudge | None = None

    @property
    def identity(self) -> str:
        """A fingerprint of the weights and of how they are asked."""
        tokens = self.engine.tokens
        template = None if tokens is None else tokens.tokenizer.chat_template
        return f"{self.engine.identity}-{digest(self.config.settings, template)[:16]}"

    @property
    def weights(self) -> str | None:
        """A fingerprint of the files of the weights, the same on every engine; `None` if they are not known."""
        return None if self.saved is None else self.saved.identity

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | Path,
        engine: str = "transformers",
        *,
        revision: str | None = None,
        batch_size: int | None = None,
        model_kwargs: Mapping[str, Any] | None = None,
        scale: ScoreScale | None = None,
        score_prefix: str | None = None,
        prompt_template: str | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
    ) -> "Judge":
        """
        Loads a judge saved by [`RegressionAwareSFTTrainer`], a full model or an adapter; or makes a judge of an
        untrained instruct model, with `scale`.

        Args:
            name_or_path (`str`): folder or Hub repository of the judge or model.
            engine (`str`, *optional*, defaults to `"transformers"`): what runs it. `"vllm"` runs in this process,
                `"server"` asks a running `vllm serve`, or what speaks its protocol; with `logprobs="top"` in
                `model_kwargs`, any server that returns `top_logprobs`.
            revision (`str`, *optional*): Hub revision.
            batch_size (`int`, *optional*): rationales generated together; by default 16, and 512 with vLLM.
            model_kwargs (`dict`, *optional*):
                Arguments of the model's `from_pretrained` (an adapter's base model's), of `vllm.LLM`, or of
                [`~tract_trainer.engines.server.ServerEngine.from_pretrained`]. With `logprobs="top"`, of
                [`~tract_trainer.engines.top_logprobs.TopLogprobsEngine.from_pretrained`].
            scale ([`ScoreScale`], *optional*): scale of a model without a `judge_config.json`, as are the next three.
            score_prefix (`str`, *optional*): the text right before the score.
            prompt_template (`str`, *optional*): Jinja template that renders a record, or its file.
            chat_template_kwargs (`dict`, *optional*): further arguments of the chat template.

        Raises:
            FileNotFoundError: there is no `judge_config.json`, and no `scale` is given.
            InputError: the engine is not known or not installed; or `scale` is given for a model that has the file.
        """
        from tract_trainer.engines.checkpoints import SavedJudge, load_tokenizer

        kwargs = dict(model_kwargs or {})
        logprobs = kwargs.pop("logprobs", None)
        kind = base.engine_class(engine, logprobs)
        trust = kwargs.get("trust_remote_code", False)
        given = {
            "score_prefix": score_prefix,
            "prompt_template": prompt_template and template_text(prompt_template),
            "chat_template_kwargs": None if chat_template_kwargs is None else dict(chat_template_kwargs),
        }
        config = _config(name_or_path, revision, scale, {name: v for name, v in given.items() if v is not None})
        tokens = None
        if logprobs is None:
            tokenizer = load_tokenizer(name_or_path, revision, trust)
            if scale is not None:
                config = replace(config, conversational=tokenizer.chat_template is not None)
                if warning := pin_dates(tokenizer):  # of a trained judge, training has pinned it
                    logger.warning(warning)
            tokens = ScoreTokens.resolve(config.scale, config.score_prefix, tokenizer)
        with base.refusing_unknown(kwargs, engine):
            found = kind.from_pretrained(
                name_or_path, tokens, config, revision=revision, batch_size=batch_size, **kwargs
            )
        judge = cls(found, config)
        if logprobs is None:  # otherwise the model may be known by its served name alone
            judge.saved = SavedJudge.find(name_or_path, revision, weights=False)
        return judge

    @classmethod
    def from_model(
        cls,
        model: "PreTrainedModel",
        tokenizer: "PreTrainedTokenizerBase",
        config: JudgeConfig,
        *,
        batch_size: int | None = None,
    ) -> "Judge":
        """A judge from a model in memory, on the transformers engine."""
        from tract_trainer.engines.transformers import TransformersEngine

        tokens = ScoreTokens.resolve(config.scale, config.score_prefix, tokenizer)
        return cls(TransformersEngine(model, tokens, config, batch_size), config)

    @overload
    def score(self, records: Record, num_cots: int = ..., **sampling: Any) -> Judgment: ...
    @overload
    def score(self, records: "Iterable[Record] | Dataset", num_cots: int = ..., **sampling: Any) -> list[Judgment]: ...

    def score(
        self,
        records: "Record | Iterable[Record] | Dataset",
        num_cots: int = 1,
        *,
        seed: int = 42,
        unfinished: str = "unscored",
        calibrated: bool = False,
        progress: bool | None = None,
        **sampling: Any,
    ) -> Judgment | list[Judgment]:
        """
        Judges one record or many.

        Args:
            records (`Mapping`, `Iterable[Mapping]` or [`~datasets.Dataset`]):
                `instruction`, `response`, `rubric`, or a ready `prompt`.
            num_cots (`int`, *optional*, defaults to `1`):
                Rationales per record, whose scores are averaged; 0 reads the score right after the prompt.
            seed (`int`, *optional*, defaults to `42`):
                Seed. A record's rationales depend on its prompt and this number, not on the records beside it.
            unfinished (`str`, *optional*, defaults to `"unscored"`):
                What to do with a rationale that never comes to a score: leave it `"unscored"`, or `"force"` it: put
                the prefix where it ends and read the score there.
            calibrated (`bool`, *optional*, defaults to `False`):
                Map each score as `tract calibrate` has fitted it. The other attributes of a judgment stay as they are.
            progress (`bool`, *optional*): whether to show a progress bar; by default, for more than one batch.
            **sampling: fields of [`~tract_trainer.engines.base.Sampling`], e.g. `temperature=0`.

        Returns:
            [`Judgment`], or a list of them in the order of the records. A record whose rationales never came to a score
            is unscored: `score` is NaN and `reason` says why.

        Raises:
            InputError: a record cannot be asked, and is named before any record is judged; or `calibrated` is asked for
                and the judge has no calibration, or one of other weights, another scale or another `num_cots`.
        """
        settings = {"seed": seed, "unfinished": unfinished, "calibrated": calibrated, **sampling}
        if isinstance(records, Mapping):
            return next(self.as_finished([records], num_cots, progress=False, **settings))[1]
        return list(self.stream(records, num_cots, progress=progress, **settings))

    @overload
    async def ascore(self, records: Record, num_cots: int = ..., **settings: Any) -> Judgment: ...
    @overload
    async def ascore(
        self, records: "Iterable[Record] | Dataset", num_cots: int = ..., **settings: Any
    ) -> list[Judgment]: ...

    async def ascore(self, records: Any, num_cots: int = 1, **settings: Any) -> Judgment | list[Judgment]:
        """
        [`score`] in a thread, so that the caller's event loop goes on. Several calls at once share a server; an engine
        in this process takes one after the other. A call that is cancelled goes on in its thread.
        """
        loop, call = asyncio.get_running_loop(), partial(self.score, records, num_cots, **settings)
        return await loop.run_in_executor(self._threads, call)

    @cached_property
    def _threads(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(self.engine.calls, thread_name_prefix="tract-trainer-judge")

    def stream(self, records: "Iterable[Record] | Dataset", num_cots: int = 1, **settings: Any) -> Iterator[Judgment]:
        """Like [`score`], one judgment after the other as they are ready, in the order of the records."""
        records = _listed(records)
        check_prompts(records, self.rows.prompt_ids)
        return in_order(self.as_finished(records, num_cots, **settings))

    def as_finished(
        self,
        records: "Iterable[Record] | Dataset",
        num_cots: int = 1,
        *,
        seed: int = 42,
        unfinished: str = "unscored",
        calibrated: bool = False,
        progress: bool | None = None,
        numbers: Sequence[int] | None = None,
        **sampling: Any,
    ) -> Iterator[tuple[int, Judgment]]:
        """
        Like [`stream`], but each with the number of its record, in the order in which they come from a server. With
        `numbers`, only these records are judged.
        """
        num_cots, seed = as_int("num_cots", num_cots), as_int("seed", seed)
        settings, force = checked(num_cots, unfinished, sampling), unfinished == "force"
        asked, order = _listed(records), numbers
        if order is not None:
            asked = [asked[i] for i in order]
        if self.engine.tokens is None and (force or num_cots == 0):
            raise InputError(NO_PREFILL)
        size = base.at_once(self.engine, max(1, num_cots))
        judged: Any = partial(self._judged, num_cots=num_cots, seed=seed, sampling=settings, force=force)
        if num_cots == 0:
            judged = self._without_rationales
        shown = len(asked) > size if progress is None else progress
        found = in_pieces(judged, asked, size, self.engine.calls, "Judging", shown)
        if calibrated:
            points = self.calibration(num_cots)
            found = ((i, _mapped(one, points)) for i, one in found)
        return _reported(found if order is None else ((order[i], one) for i, one in found), self.config.scale)

    def _judged(
        self, records: Sequence[Record], num_cots: int, seed: int, sampling: Sampling, force: bool
    ) -> list[Judgment]:
        rows = [self.rows.prompt_ids(record) for record in records]
        fitting = [i for i, row in enumerate(rows) if self.fits(row)]
        requests = [(i, cot) for i in fitting for cot in range(num_cots)]
        seeds = [derive_seed(seed, rows[i], cot) for i, cot in requests]
        rationales = self.engine.generate([rows[i] for i, _ in requests], seeds, sampling)
        if force:
            rationales = self._forced([records[i] for i, _ in requests], rationales)
        of_record = {i: rationales[n * num_cots : (n + 1) * num_cots] for n, i in enumerate(fitting)}
        return [self.judgment(of_record.get(i, []), sampling.max_new_tokens, len(row)) for i, row in enumerate(rows)]

    def _without_rationales(self, records: Sequence[Record]) -> list[Judgment]:
        return self._scored([self.rows.scored_ids(record, "") for record in records], [""] * len(records))

    def calibration(self, num_cots: int) -> tuple[list[float], list[float]]:
        """Expected scores and what the judge's calibration maps them to; an InputError if it cannot be used."""
        found = self.config.calibration
        if found is None:
            raise InputError("The judge has no calibration. Fit one: tract calibrate RESULT.json --model FOLDER.")
        now = {"weights": self.weights, "score_values": self.config.score_values, "num_cots": num_cots}
        if changed := differences({name: found.get(name) for name in now}, now):
            raise InputError(
                "The calibration in judge_config.json was fitted on other judgments than these:\n  "
                + "\n  ".join(changed)
                + "\nJudge with the same num_cots, or run tract calibrate on a result of this judge."
            )
        return found["scores"], found["calibrated"]

    def fits(self, row: Sequence[int]) -> bool:
        """Whether the model has room to write after the tokens of `row`."""
        return self.engine.max_length is None or len(row) < self.engine.max_length

    def _forced(self, records: Sequence[Record], rationales: Sequence[Rationale]) -> list[Rationale]:
        """`rationales`, one per record, with a score read where those end that came to none."""
        rationales, rows = list(rationales), {}
        for i, rationale in enumerate(rationales):
            if rationale.log_probs is None and not rationale.error:
                try:
                    rows[i] = self.rows.scored_ids(records[i], rationale.text)
                except InputError as error:  # the chat template drops a part of the text
                    rationales[i] = rationale._replace(error=str(error))
        rows = {i: row for i, row in rows.items() if self.fits(row)}
        read = dict(zip(rows, self._read(list(rows.values())), strict=True))
        return [
            rationale._replace(label=read[i][0], log_probs=read[i][1], forced=True) if i in read else rationale
            for i, rationale in enumerate(rationales)
        ]

    def _read(self, rows: Sequence[list[int]]) -> list[tuple[str, tuple[float, ...]]]:
        """The most likely label after each row of tokens, and the log-probabilities of the scale there."""
        labels = self.config.score_labels
        return [(labels[int(np.argmax(found))], found) for found in self.engine.score(rows)]

    def rescore(self, records: Sequence[Record], rationales: Sequence[str]) -> list[Judgment]:
        """Scores given rationales, one per record, on the tokens that training would see. Draws nothing."""
        if len(records) != len(rationales):
            raise InputError(f"Expected a rationale for each of {len(records)} records, got {len(rationales)}.")
        rows = []
        for number, pair in enumerate(zip(records, rationales, strict=True)):
            with numbered("Record", number):
                rows.append(self.rows.scored_ids(*pair))
        return self._scored(rows, rationales)

    def _scored(self, rows: Sequence[list[int]], rationales: Sequence[str]) -> list[Judgment]:
        """The judgment of each rationale, which `rows` hold with its prompt and the prefix."""
        read = iter(self._read([row for row in rows if self.fits(row)]))
        return [
            self.judgment([Rationale(text, *next(read), 0)] if self.fits(row) else [], 0, len(row))
            for text, row in zip(rationales, rows, strict=True)
        ]

    def compare(
        self, a: Record, b: Record, num_cots: int = 1, *, tie_width: float = 0.0, **settings: Any
    ) -> Comparison:
        """
        Judges two records, such as two responses to one instruction, and weighs the judgments against each other.

        Args:
            num_cots (`int`, *optional*, defaults to `1`): rationales per record.
            tie_width (`float`, *optional*, defaults to `0.0`): scores no further apart, in units of the scale, tie.
            **settings: as in [`score`].
        """
        first, second = self.score([a, b], num_cots, **settings)
        return comparison(first, second, self.config, tie_width)

    def as_reward_func(
        self, rubric: Any = None, num_cots: int = 1, *, name: str = "judge_score", **settings: Any
    ) -> Callable[..., list[float | None]]:
        """
        A function for `reward_funcs` of TRL's GRPO trainer. The reward is the expected score, in units of the scale.

        Args:
            rubric (`str` or `dict`, *optional*):
                What to judge by; by default, the column `rubric`. Where that is empty, the reward is `None`.
            num_cots (`int`, *optional*, defaults to `1`): rationales per completion.
            name (`str`, *optional*, defaults to `"judge_score"`): what TRL logs the reward as. Two need two.
            **settings: as in [`score`], but `unfinished` is `"force"`, so a reward is NaN only where the model has no
                room for the prompt, or after the rationale for the prefix, or where the chat template drops a part of
                the rationale.
        """
        base.check_score_settings(num_cots, **settings)
        settings = {"num_cots": num_cots, "unfinished": "force", "progress": False, **settings}
        return reward_func(lambda records: self.score(records, **settings), rubric, name)

    def judgment(self, rationales: Sequence[Rationale], max_new_tokens: int = 0, prompt_length: int = 0) -> Judgment:
        """The judgment that the rationales of one record make together."""
        return judgment(rationales, self.config, max_new_tokens, prompt_length, self.engine.max_length)


def _config(
    name_or_path: str | Path, revision: str | None, scale: ScoreScale | None, given: Mapping[str, Any]
) -> JudgeConfig:
    """The saved config of a judge, or that of a model without one, from a scale and what else is `given`."""
    if scale is None and not given:
        return JudgeConfig.load(name_or_path, revision)
    try:
        JudgeConfig.load(name_or_path, revision)
    except FileNotFoundError:
        if scale is None:
            raise
    else:
        raise InputError(
            f"{str(name_or_path)!r} has a judge_config.json, which says how it was trained to be asked. Leave out "
            f"{', '.join(['scale'] * (scale is not None) + list(given))}."
        )
    prefix = given.get("score_prefix", DEFAULT_PREFIX)
    asked = {"score_prefix": prefix, "score_separator": default_separator(prefix), **given}
    return JudgeConfig(list(scale.labels), list(scale.values), **asked)


def _mapped(judged: Judgment, points: Sequence[Any]) -> Judgment:
    """`judged` with its score, and the interval of it, on the map of `points`."""
    low, high = judged.score_interval or (judged.score, judged.score)
    score, low, high = (float(np.interp(value, *points)) for value in (judged.score, low, high))
    return replace(judged, score=score, score_interval=None if judged.score_interval is None else (low, high))


def _reported(found: Iterator[tuple[int, Judgment]], scale: ScoreScale) -> Iterator[tuple[int, Judgment]]:
    """
    `found`, with a warning that names the first record for which the engine generated nothing, and the first one whose
    score is uncertain.
    """
    level = wide = logging.WARNING
    for number, judged in found:
        if judged.reason and any(rationale.error for rationale in judged.rationales):
            logger.log(level, "Record %d remains unscored: %s", number, judged.reason)
            level = logging.INFO
        if judged.score_interval is not None and is_wide(judged.score_interval, scale):
            text = "The score of record %d lies between %.3g and %.3g: the server returned too few log-probabilities."
            logger.log(wide, text, number, *judged.score_interval)
            wide = logging.INFO
        yield number, judged


def _listed(records: Any) -> Any:
    """Records that can be counted and taken by number."""
    if hasattr(records, "to_dict") and hasattr(records, "columns"):  # a pandas DataFrame
        return records.to_dict("records")
    return records if isinstance(records, Sized) and hasattr(records, "__getitem__") else list(records)
