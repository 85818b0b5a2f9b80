"""Rationales and scores from vLLM in this process.

vLLM returns the log-probabilities of the scale at every token, before temperature and penalties, so a score needs no
second request where labels are one token. `K` is the number of labels of the scale.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from vllm import LLM, SamplingParams
from vllm.inputs import TokensPrompt
from vllm.lora.request import LoRARequest

from tract_trainer.data.hashing import digest
from tract_trainer.engines.base import Rationale, Sampling
from tract_trainer.engines.checkpoints import SavedJudge, lora_limit
from tract_trainer.engines.completions import NextTokenEngine, Written, lead, stop_ids
from tract_trainer.errors import InputError
from tract_trainer.judge_config import JudgeConfig
from tract_trainer.scale import ScoreTokens


class VLLMEngine(NextTokenEngine):
    """
    Args:
        llm (`vllm.LLM`): the judge's model.
        saved ([`~tract_trainer.engines.checkpoints.SavedJudge`]): the judge's files.
        tokens ([`~tract_trainer.scale.ScoreTokens`]): the scale as its tokenizer writes it.
        config ([`~tract_trainer.judge_config.JudgeConfig`]): how the judge is asked.
        batch_size (`int`, *optional*, defaults to `512`): number of rationales per call. vLLM batches them itself.
    """

    calls = 1

    def __init__(
        self, llm: LLM, saved: SavedJudge, tokens: ScoreTokens, config: JudgeConfig, batch_size: int | None = None
    ) -> None:
        self.llm, self.saved, self.tokens = llm, saved, tokens
        self.batch_size = 512 if batch_size is None else batch_size
        if self.batch_size < 1:
            raise InputError(f"batch_size must be at least 1, got {batch_size}.")
        self.max_length = int(llm.llm_engine.model_config.max_model_len) - tokens.depth
        self.stop_ids, self.lead = stop_ids(saved.generation_config, tokens, config), lead(tokens, config)
        self.adapter = None if saved.base is None else LoRARequest("judge", 1, str(saved.folder))

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | Path,
        tokens: ScoreTokens,
        config: JudgeConfig,
        *,
        revision: str | None = None,
        batch_size: int | None = None,
        **model_kwargs: Any,
    ) -> "VLLMEngine":
        """
        Loads the model with `vllm.LLM(..., **model_kwargs)`, e.g. `tensor_parallel_size=2`. A LoRA adapter is not
        merged into its base model.
        """
        saved = SavedJudge.find(name_or_path, revision)
        saved.check_base()
        settings: dict[str, Any] = {"trust_remote_code": False}
        if saved.base is not None:
            if saved.peft_type != "LORA":
                raise InputError(
                    f"{str(name_or_path)!r} is a {saved.peft_type} adapter, and vLLM runs LoRA adapters only. Use "
                    "engine='transformers', or merge it: model.merge_and_unload().save_pretrained(folder)."
                )
            settings |= {"enable_lora": True, "max_lora_rank": lora_limit(saved.rank), "revision": saved.base_revision}
        llm = LLM(saved.base or str(saved.folder), tokenizer=str(saved.folder), **(settings | model_kwargs))
        return cls(llm, saved, tokens, config, batch_size)

    @property
    def identity(self) -> str:
        config = self.llm.llm_engine.model_config
        return f"vllm-{self.saved.identity}-{digest(str(config.dtype), str(config.quantization), self.max_length)[:8]}"

    def generate(self, prompts: Sequence[list[int]], seeds: Sequence[int], sampling: Sampling) -> list[Rationale]:
        settings = [
            SamplingParams(
                temperature=sampling.temperature,
                top_p=sampling.top_p if sampling.temperature > 0 else 1.0,
                repetition_penalty=sampling.repetition_penalty,
                max_tokens=min(sampling.max_new_tokens, self.max_length - len(prompt)),
                seed=seed,
                stop_token_ids=self.stop_ids,
                logprob_token_ids=list(self.tokens.ids),
                detokenize=False,
            )
            for prompt, seed in zip(prompts, seeds, strict=True)
        ]
        outputs = self._run(prompts, settings)
        return self.rationales(prompts, [Written(output.token_ids, partial(self._read, output)) for output in outputs])

    def next_token(self, rows: Sequence[list[int]]) -> list[Mapping[int, float]]:
        ids = list(self.tokens.ids)
        settings = SamplingParams(temperature=0, max_tokens=1, logprob_token_ids=ids, detokenize=False)
        return [self._read(output, 0) for output in self._run(rows, [settings] * len(rows))]

    def _read(self, output: Any, place: int) -> dict[int, float]:
        return {token: output.logprobs[place][token].logprob for token in self.tokens.ids}

    def _run(self, rows: Sequence[list[int]], settings: list[SamplingParams]) -> list[Any]:
        requests = [TokensPrompt(prompt_token_ids=row) for row in rows]
        finished = self.llm.generate(requests, settings, use_tqdm=False, lora_request=self.adapter)
        return [request.outputs[0] for request in finished]
