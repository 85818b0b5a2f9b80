"""Turns a trained model into a judge that anyone can load: what lies beside the weights, and its upload."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from peft import PeftModel
from transformers import PreTrainedModel
from transformers.trainer_utils import HubStrategy
from trl import SFTTrainer
from trl.data_utils import is_conversational

from tract_trainer.card import Card, read_card, renewed, write_card
from tract_trainer.card_facts import TEMPLATE, judge_card
from tract_trainer.config import RegressionAwareSFTConfig
from tract_trainer.hub import JudgeConfig
from tract_trainer.pushing import saying_how_to_go_on


class RowCounts(NamedTuple):
    """Rows of a dataset that were given, those without a usable score by what is wrong with them, and those used."""

    given: int
    lost: dict[str, int]
    used: int


class JudgeSavingTrainer(SFTTrainer):  # type: ignore[misc]
    """
    [`~trl.SFTTrainer`] that saves judges.

    Overridden are `_save` (adds the model card and `judge_config.json`), `create_model_card` (writes ours, at every
    checkpoint), `_push_from_checkpoint` (what is pushed in training can be loaded too) and `push_to_hub` (a failure
    says how to go on).
    """

    args: RegressionAwareSFTConfig
    model: PreTrainedModel | PeftModel
    row_counts: dict[str, RowCounts]
    _sample: dict[str, Any]
    _dataset_name: str | None = None

    @property
    def judge_config(self) -> JudgeConfig:
        """What [`Judge`] needs to know of this model, saved with it as `judge_config.json`."""
        if "input_ids" in self._sample:  # nothing tells how its text was made
            conversational = self._tokenizer.chat_template is not None
        else:
            messages = is_conversational(self._sample) or "conversations" in self._sample
            conversational = messages and self._formatting_func is None
        template_kwargs = self._sample.get("chat_template_kwargs") or {}
        return JudgeConfig.of(self.args, conversational, chat_template_kwargs=template_kwargs)

    def create_model_card(  # type: ignore[override]  # TRL's arguments
        self, model_name: str | None = None, dataset_name: str | None = None, tags: str | list[str] | None = None
    ) -> None:
        """
        Writes the model card, `README.md` in `args.output_dir`. What was written there by hand stays, see
        [`tract_trainer.card`].

        Args:
            model_name (`str`, *optional*): title of a new card; by default, the name of the repository or folder.
            dataset_name (`str`, *optional*): Hub repository of the training data.
            tags (`str` or `list[str]`, *optional*): further tags.
        """
        if self.is_world_process_zero():
            folder = Path(str(self.args.output_dir))
            folder.mkdir(parents=True, exist_ok=True)
            self._dataset_name = dataset_name or self._dataset_name  # the next save knows it too
            self._write_card(folder, read_card(folder), model_name, [tags] if isinstance(tags, str) else tags or [])

    def push_to_hub(self, *args: Any, **kwargs: Any) -> Any:
        """
        Saves and uploads the judge: weights or adapter, tokenizer, `judge_config.json` and model card. The arguments
        are those of [`~transformers.Trainer.push_to_hub`], and of `create_model_card`.

        Raises:
            OSError: the upload failed. Everything is in `args.output_dir`, and the message says how to go on.
        """
        folder = Path(str(self.args.output_dir))
        name = self.hub_model_id or self.args.hub_model_id or folder.resolve().name
        revision = kwargs.get("revision") or self.args.hub_revision
        with saying_how_to_go_on(
            folder, name, private=kwargs.get("private", self.args.hub_private_repo), revision=revision
        ):
            try:
                return super().push_to_hub(*args, **kwargs)
            except Exception:
                if self.hub_model_id is None:  # there is no repository, and the model has not been saved yet
                    self.save_model(_internal_call=True)
                raise

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        if self.is_world_process_zero() and self.args.hub_strategy != HubStrategy.END:
            self.judge_config.save(str(self.args.output_dir))
        super()._push_from_checkpoint(checkpoint_folder)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        folder = Path(str(output_dir or self.args.output_dir))
        before = read_card(folder)  # PEFT writes a card of its own over it
        loaded_with = self.args.model_init_kwargs
        if isinstance(self.model, PeftModel) and isinstance(loaded_with, dict) and loaded_with.get("revision"):
            self.model.active_peft_config.revision = loaded_with["revision"]  # of the base model
        super()._save(output_dir, state_dict)
        if self.args.should_save:
            self._write_card(folder, before)
            self.judge_config.save(folder)  # last: where it is, the judge is whole

    def _write_card(
        self, folder: Path, before: Card | None, model_name: str | None = None, tags: Sequence[str] = ()
    ) -> None:
        if before is not None:
            facts, metadata = judge_card(self, folder, self._dataset_name, tags)
            title = {"title": model_name} if model_name else {}
            write_card(folder, renewed(before, folder, TEMPLATE, {**facts, **title}, metadata))
