"""Prompts become rationales, each with the log-probabilities of the scale.

Takes token ids and sampling settings; gives a `Rationale` per prompt. `judging` and `rationales` call it. Transformers
and vLLM run in this process, `server` asks a running `vllm serve`.
"""
