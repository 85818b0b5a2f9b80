"""Prompts become rationales, each with the log-probabilities of the scale.

An engine takes token ids and sampling settings and returns a `Rationale` for each prompt. `judging` and `rationales`
call it. Transformers and vLLM run in this process; `server` sends requests to a running `vllm serve`;
`top_logprobs` to any server that returns the most likely tokens.
"""

PRIVATE = {
    "transformers: DynamicLayer": "`RoomyLayer` replaces its `update`, and `shared_cache` selects rows of its keys and "
    "values. So a prompt is processed once for several rationales, and no step copies all keys and values.",
    "transformers: generation_config": "`generate` merges the model's own one into the one that it is given. So the "
    "own one is replaced meanwhile: none of its settings may change a score.",
    "transformers: position_ids": "`generate` passes them to `forward` by name. They are clamped, since a row that has "
    "reached the model's maximum length remains in its batch.",
    "transformers: stopping_criteria": "The logger that warns of a batch longer than the model reads. No row is.",
    "transformers: rope_deltas": "Qwen's models with images keep those of the last batch, whose size may differ.",
    "transformers: masks": "A model takes a mask that says which token sees which; one for each kind of layer if its "
    "config has `layer_types`. So the places where long labels go on are read behind their row, out of its sight. "
    "`_supports_attention_backend`, `_is_stateful` and `_attn_implementation` tell which models do.",
    "peft: missing keys": "The beginning of the warning that an adapter has no weights for some layers: an error here.",
    "peft: saved embeddings": "Names under which an adapter holds an embedding or head. Their number of rows is needed "
    "to resize the base model before the adapter is loaded.",
    "vllm: model_config": "`LLM.llm_engine.model_config` tells the maximum length and the type of the weights.",
}
"""What the engines use of their libraries beyond the documented interface, and why. tests/engines/test_internals.py has
a check of each, which fails when a library changes it."""
