"""Turns records into judgments."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import numpy as np
from accelerate import PartialState
from tqdm.auto import tqdm

from tract_trainer.engines import Engine, Rationale, Sampling
from tract_trainer.errors import InputError
from tract_trainer.hub import JudgeConfig
from tract_trainer.judgment import Judgment, judgment
from tract_trainer.records import Record, close, prompt_ids, prompt_of, row_ids
from tract_trainer.scale import ScoreTokens
from tract_trainer.seeds import derive_seed, digest

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class Judge:
    """
    A trained judge on an engine. Usually made with [`Judge.from_pretrained`].

    Args:
        engine ([`~tract_trainer.engines.Engine`]): what writes and scores rationales.
        config ([`~tract_trainer.hub.JudgeConfig`]): how the judge is asked and its score read.

    Example:
    ```python
    judge = Judge.from_pretrained("judge")
    judgment = judge.score({"instruction": "Name a prime.", "response": "7", "rubric": "Is the answer correct?"})
    ```
    """

    def __init__(self, engine: Engine, config: JudgeConfig) -> None:
        self.engine, self.config = engine, config

    @property
    def identity(self) -> str:
        """A fingerprint of the weights and of how they are asked."""
        config = {name: value for name, value in asdict(self.config).items() if name != "tract_trainer_version"}
        template = self.engine.tokens.tokenizer.chat_template
        return f"{self.engine.identity}-{digest(config, template)[:16]}"

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | Path,
        engine: str = "transformers",
        *,
        revision: str | None = None,
        batch_size: int = 16,
        model_kwargs: Mapping[str, Any] | None = None,
    ) -> "Judge":
        """
        Loads a judge saved by [`RegressionAwareSFTTrainer`], a full model or an adapter.

        Args:
            name_or_path (`str`): folder or Hub repository with a `judge_config.json`.
            engine (`str`, *optional*, defaults to `"transformers"`): what runs it.
            revision (`str`, *optional*): Hub revision.
            batch_size (`int`, *optional*, defaults to `16`): rows generated together.
            model_kwargs (`dict`, *optional*):
                Arguments of `AutoModelForCausalLM.from_pretrained`, e.g. `{"dtype": "bfloat16", "device_map": "auto"}`.

        Raises:
            FileNotFoundError: there is no `judge_config.json`.
            ValueError: the engine is not known.
        """
        if engine != "transformers":
            raise InputError(f"engine={engine!r} is not known; known is 'transformers'.")
        from transformers import AutoModelForCausalLM, AutoTokenizer

        config = JudgeConfig.load(name_or_path, revision)
        tokenizer = AutoTokenizer.from_pretrained(name_or_path, revision=revision)
        kwargs = {"dtype": "auto", **(model_kwargs or {})}
        model: Any = AutoModelForCausalLM.from_pretrained(name_or_path, revision=revision, **kwargs)
        if "device_map" not in kwargs:
            model.to(PartialState().device)  # under `accelerate launch`, the process's own
        return cls.from_model(model, tokenizer, config, batch_size=batch_size)

    @classmethod
    def from_model(
        cls,
        model: "PreTrainedModel",
        tokenizer: "PreTrainedTokenizerBase",
        config: JudgeConfig,
        *,
        batch_size: int = 16,
    ) -> "Judge":
        """A judge from a model in memory, on the transformers engine."""
        from tract_trainer.engines.transformers import TransformersEngine, stop_ids

        tokens = ScoreTokens.resolve(config.scale, config.score_prefix, tokenizer)
        return cls(TransformersEngine(model, tokens, stop_ids(model, tokens, config), batch_size), config)

    @overload
    def score(self, records: Record, num_cots: int = ..., **sampling: Any) -> Judgment: ...
    @overload
    def score(self, records: Sequence[Record], num_cots: int = ..., **sampling: Any) -> list[Judgment]: ...

    def score(
        self,
        records: Record | Sequence[Record],
        num_cots: int = 1,
        *,
        seed: int = 42,
        unfinished: str = "unscored",
        progress: bool | None = None,
        **sampling: Any,
    ) -> Judgment | list[Judgment]:
        """
        Judges one record or many.

        Args:
            records (`Mapping` or `Sequence[Mapping]`): `instruction`, `response`, `rubric`, or a ready `prompt`.
            num_cots (`int`, *optional*, defaults to `1`): rationales per record, whose scores are averaged.
            seed (`int`, *optional*, defaults to `42`):
                Seed. A record's rationales depend on its prompt and this number, not on the records beside it.
            unfinished (`str`, *optional*, defaults to `"unscored"`):
                What to do with a rationale that never comes to a score: leave it `"unscored"`, or `"force"` it: put
                the prefix where it ends and read the score there.
            progress (`bool`, *optional*): whether to show a progress bar; by default, for more than one batch.
            **sampling: fields of [`~tract_trainer.engines.Sampling`], e.g. `temperature=0`.

        Returns:
            [`Judgment`], or a list of them in the order of the records. A record whose rationales never came to a score
            is unscored: `score` is NaN and `reason` says why.
        """
        if isinstance(records, Mapping):
            return next(self.stream([records], num_cots, seed=seed, unfinished=unfinished, progress=False, **sampling))
        return list(self.stream(records, num_cots, seed=seed, unfinished=unfinished, progress=progress, **sampling))

    def stream(
        self,
        records: Sequence[Record],
        num_cots: int = 1,
        *,
        seed: int = 42,
        unfinished: str = "unscored",
        progress: bool | None = None,
        **sampling: Any,
    ) -> Iterator[Judgment]:
        """Like [`score`], one judgment after the other as they are ready, in the order of the records."""
        if num_cots < 1:
            raise InputError(f"num_cots must be at least 1, got {num_cots}.")
        if unfinished not in ("unscored", "force"):
            raise InputError(f"unfinished={unfinished!r} is not one of ['unscored', 'force'].")
        settings = Sampling(**sampling)
        chunk = max(1, 8 * self.engine.batch_size // num_cots)  # a few batches, so that sorting by length pays
        shown = len(records) > chunk if progress is None else progress
        with tqdm(total=len(records), desc="Judging", unit="record", disable=not shown) as bar:
            for start in range(0, len(records), chunk):
                rows = [self.prompt_ids(record) for record in records[start : start + chunk]]
                requests = [row for row in rows for _ in range(num_cots)]
                seeds = [derive_seed(seed, row, cot) for row in rows for cot in range(num_cots)]
                rationales = self.engine.generate(requests, seeds, settings)
                if unfinished == "force":
                    owners = [record for record in records[start : start + chunk] for _ in range(num_cots)]
                    rationales = self._forced(owners, rationales)
                for i in range(len(rows)):
                    yield self.judgment(rationales[i * num_cots : (i + 1) * num_cots], settings.max_new_tokens)
                    bar.update()

    def _forced(self, records: Sequence[Record], rationales: Sequence[Rationale]) -> list[Rationale]:
        """`rationales`, one per record, with a score read where those end that came to none."""
        open_ends = [i for i, rationale in enumerate(rationales) if rationale.log_probs is None]
        forced = self._read([records[i] for i in open_ends], [rationales[i].text for i in open_ends])
        read = {
            i: rationales[i]._replace(label=r.label, log_probs=r.log_probs, forced=True)
            for i, r in zip(open_ends, forced, strict=True)
        }
        return [read.get(i, rationale) for i, rationale in enumerate(rationales)]

    def _read(self, records: Sequence[Record], rationales: Sequence[str]) -> list[Rationale]:
        """Given rationales, one per record, with the log-probabilities of the scale and its most likely label."""
        rows = [self.scored_ids(*pair) for pair in zip(records, rationales, strict=True)]
        labels = self.config.score_labels
        return [
            Rationale(text, labels[int(np.argmax(row))], row, 0)
            for text, row in zip(rationales, self.engine.score(rows), strict=True)
        ]

    def rescore(self, records: Sequence[Record], rationales: Sequence[str]) -> list[Judgment]:
        """Scores given rationales, one per record, on the tokens that training would see. Draws nothing."""
        return [self.judgment([rationale]) for rationale in self._read(records, rationales)]

    def prompt_ids(self, record: Record) -> list[int]:
        """Tokens of the record's prompt, up to where the judge starts to write."""
        prompt = prompt_of(record, self.config.scale, self.config.score_prefix, self.config.prompt_template)
        return prompt_ids(
            prompt, self.engine.tokens.tokenizer, self.config.conversational, **self.config.chat_template_kwargs
        )

    def scored_ids(self, record: Record, rationale: str) -> list[int]:
        """Tokens of the record's prompt, the rationale and the prefix, up to where the score is due."""
        config = self.config
        row = row_ids(
            prompt_of(record, config.scale, config.score_prefix, config.prompt_template),
            close(rationale, config.score_prefix, config.score_labels[0]),
            self.engine.tokens.tokenizer,
            config.conversational,
            **config.chat_template_kwargs,
        )
        found = self.engine.tokens.find(row)
        if found is None:
            raise InputError(f"The chat template drops the closing phrase of a completion ending {rationale[-80:]!r}.")
        return row[: found.position]

    def judgment(self, rationales: Sequence[Rationale], max_new_tokens: int = 0) -> Judgment:
        """The judgment that the rationales of one record make together."""
        return judgment(rationales, self.config, max_new_tokens)
