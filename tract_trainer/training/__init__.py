"""Token ids become `score_labels`, a loss and a trained model.

Takes a model and a dataset as `SFTTrainer` does; gives a saved judge. Users and `cli` call it.
"""

PRIVATE = {
    "trl.SFTTrainer._prepare_dataset": (
        "self dataset processing_class args packing formatting_func dataset_name",
        "scores are found on its whole rows, before it cuts or packs them",
    ),
    "trl.SFTTrainer._set_signature_columns_if_needed": ("self", "names the columns that reach the collator"),
    "trl.SFTTrainer._save_checkpoint": ("self model trial", "calls create_model_card at every checkpoint"),
    "trl.GRPOTrainer._get_train_sampler": ("self dataset", "is told the epoch that a resumed run begins with"),
    "trl.GRPOTrainer._tokenize_prompts": ("self prompts", "asks as a judge is asked"),
    "trl.GRPOTrainer._generate": ("self prompts", "samples rationales, whose scores are masked and read"),
    "trl.GRPOTrainer._generate_and_score_completions": ("self inputs", "gives the advantages, which are clipped"),
    "trl.GRPOTrainer._compute_loss": ("self model inputs", "runs the forward that the score loss is read from"),
    "transformers.Trainer._inner_training_loop": (
        "self batch_size args resume_from_checkpoint trial ignore_keys_for_eval",
        "is run again after a batch that was too large, where sums begin anew",
    ),
    "transformers.Trainer._prepare_inputs": ("self inputs", "moves a batch to the device; DeepSpeed casts floats"),
    "transformers.Trainer._save": ("self output_dir state_dict", "writes the weights, beside the judge's files"),
    "transformers.Trainer._push_from_checkpoint": ("self checkpoint_folder", "uploads a checkpoint during training"),
    "transformers.Trainer._move_model_to_device": ("self model device", "is left out where rows are only inspected"),
    "trl.trainer.sft_trainer.DataCollatorForLanguageModeling.torch_call": ("self examples", "pads a batch"),
}
"""What this room uses of libraries' insides, with the parameters that it relies on, and why. A test reads the list."""
