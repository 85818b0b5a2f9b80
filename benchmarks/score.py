"""What a score costs beside its rationale: `Judge`'s engine on Transformers against generation alone, and against
generation and then the scoring of the released TRACT code: one row at a time, with a full forward pass.

    python benchmarks/score.py
    python benchmarks/score.py --preset 7b      # one GPU
    python benchmarks/score.py --engine vllm    # our engine on vLLM, against vLLM's own `generate`
    python benchmarks/score.py --labels         # 1 to 10, of which 10 is two tokens, against ten letters

All take turns in one process, in a new order each round; the ratio is that of the medians, its spread that of the
ratios within a round. Every rationale has `--new_tokens` tokens: the model has random weights and never ends by itself.
"generation alone" is `model.generate` with the same sampling settings; "our generation, nothing recorded" is the engine
without the log-probabilities of the scale. "forced" is the dearest case, in which every rationale is closed and scored
after it was generated.
"""

import argparse
import json
import random
import tempfile
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from measuring import CLOCKS, costs, interleaved
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel, set_seed

from tract_trainer.engines import transformers as engine_module
from tract_trainer.engines.base import Sampling
from tract_trainer.engines.transformers import ScoreRecorder, TransformersEngine
from tract_trainer.engines.trie import LabelTrie
from tract_trainer.scale import ScoreScale, ScoreTokens

PRESETS: dict[str, dict[str, Any]] = {
    "small": {"vocab": 32_000, "hidden": 256, "layers": 4, "heads": 4, "records": 2, "prompt_tokens": 1024,
              "new_tokens": 64, "device": "cpu"},
    "7b": {"vocab": 32_000, "hidden": 4096, "layers": 32, "heads": 32, "records": 32, "prompt_tokens": 1024,
           "new_tokens": 256, "device": "cuda"},
}  # fmt: skip
FIRST = 10  # token of the first label
GENERATION, UNSEEDED, BARE, OURS, FORCED, RELEASED = (
    "generation alone",
    "generation alone, no seeds",
    "our generation, nothing recorded",
    "rationale and score",
    "rationale and score, forced",
    "generation, released scoring",
)
LETTERS, TEN = "ten letters", "1 to 10"


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", choices=PRESETS, default="small", help="defaults of the flags of size")
    parser.add_argument("--engine", choices=["transformers", "vllm"], default="transformers")
    for name in ("vocab", "hidden", "layers", "heads", "records", "prompt_tokens", "new_tokens"):
        parser.add_argument(f"--{name}", type=int)
    parser.add_argument("--device", choices=["cpu", "cuda"])
    parser.add_argument("--labels", action="store_true", help="compare labels of several tokens with those of one")
    parser.add_argument("--num_cots", type=int, default=5, help="rationales a record")
    parser.add_argument("--rounds", type=int, default=7, help="rounds that are timed")
    parser.add_argument("--clock", choices=CLOCKS, default="wall", help="cpu: where others use the machine")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--seed", type=int, default=42)
    parser.set_defaults(**PRESETS[parser.parse_known_args()[0].preset])
    args = parser.parse_args()
    if args.labels and args.engine == "vllm":
        parser.error("--labels needs --engine transformers")
    return args


def scale_of(count: int, *longer: tuple[int, ...]) -> ScoreTokens:
    """A scale of `count` labels of one token and `longer` ones. It needs no tokenizer: these weights write no text."""
    paths = (*((FIRST + number,) for number in range(count)), *longer)
    return ScoreTokens(ScoreScale.integers(1, len(paths)), "Score: ", None, paths, window=0)  # type: ignore[arg-type]


def make_model(args: argparse.Namespace) -> PreTrainedModel:
    set_seed(args.seed)
    config = LlamaConfig(
        vocab_size=args.vocab,
        hidden_size=args.hidden,
        intermediate_size=4 * args.hidden,
        num_hidden_layers=args.layers,
        num_attention_heads=args.heads,
        num_key_value_heads=args.heads,
        max_position_embeddings=8192,
        eos_token_id=1,
    )
    dtype = torch.bfloat16 if args.device == "cuda" else torch.float32
    with torch.device(args.device):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    with torch.no_grad():  # as sure of the next token as a trained model is, and never done
        model.lm_head.weight.mul_(8 / model.lm_head.weight.float().std() / args.hidden**0.5)
        model.lm_head.weight[1] = 0
    return model.eval()


def make_rows(args: argparse.Namespace) -> list[list[int]]:
    """The prompts, each once per rationale."""
    draw = random.Random(args.seed)
    prompts = [[draw.randrange(20, args.vocab) for _ in range(args.prompt_tokens)] for _ in range(args.records)]
    return [prompt for prompt in prompts for _ in range(args.num_cots)]


class OnTransformers:
    """The ways to rationales and scores, each a function of nothing that returns the scores, `(rows, K)`, or none."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args, self.sampling, self.rows = args, Sampling(max_new_tokens=args.new_tokens), make_rows(args)
        self.model: Any = make_model(args)
        self.engine = self.engine_of(scale_of(5))

    def engine_of(self, tokens: ScoreTokens) -> TransformersEngine:
        engine = object.__new__(TransformersEngine)  # its checks ask for a tokenizer
        engine.model, engine.tokens, engine.stop_ids = self.model, tokens, [1]
        engine.trie = LabelTrie(tokens) if tokens.depth else None
        engine.lead, engine.batch_size, engine.max_length = "", self.args.records * self.args.num_cots, None
        return engine

    def ways(self) -> dict[str, Callable[[], Any]]:
        if self.args.labels:
            return {
                f"{way}, {name}": partial(run, self.engine_of(tokens))
                for way, run in ((OURS, self.written), (FORCED, self.forced))
                for name, tokens in ((LETTERS, scale_of(10)), (TEN, scale_of(9, (FIRST, FIRST + 9))))
            }
        return {
            GENERATION: self.generation,
            BARE: self.bare,
            OURS: partial(self.written, self.engine),
            FORCED: partial(self.forced, self.engine),
            RELEASED: self.released,
        }

    def generation(self) -> torch.Tensor:
        rows = torch.tensor(self.rows, device=self.args.device)
        drawn = {"temperature": 1.0, "top_p": 0.9, "top_k": 0, "repetition_penalty": 1.03}
        with torch.inference_mode():
            return self.model.generate(  # type: ignore[no-any-return]
                rows,
                attention_mask=torch.ones_like(rows),
                do_sample=True,
                max_new_tokens=self.args.new_tokens,
                pad_token_id=1,
                **drawn,
            )

    def written(self, engine: TransformersEngine) -> list[list[int]]:
        """Rationales whose last token is read as the label."""

        def read(
            _tokens: Any, _prompt: Any, ids: list[int], _stop: Any, log_probs: Callable[[int], Any], _lead: Any
        ) -> list[int]:
            log_probs(len(ids) - 1)
            return ids

        own, engine_module.read_written = engine_module.read_written, read  # type: ignore[assignment]
        try:
            return engine.generate(self.rows, range(len(self.rows)), self.sampling)  # type: ignore[return-value]
        finally:
            engine_module.read_written = own

    def bare(self) -> None:
        call = ScoreRecorder.__call__
        nothing = torch.zeros(len(self.rows), len(self.engine.tokens.ids))

        def pass_on(recorder: ScoreRecorder, _ids: Any, scores: torch.Tensor) -> torch.Tensor:
            recorder.steps.append(nothing)
            return scores.float()

        ScoreRecorder.__call__ = pass_on  # type: ignore[method-assign]
        try:
            self.written(self.engine)
        finally:
            ScoreRecorder.__call__ = call  # type: ignore[method-assign]

    def forced(self, engine: TransformersEngine) -> None:
        engine.score([prompt + ids for prompt, ids in zip(self.rows, self.written(engine), strict=True)])

    def released(self) -> None:
        values = torch.arange(1.0, 6.0, device=self.args.device)
        for row in self.generation():
            with torch.inference_mode():
                logits = self.model(row[None]).logits  # (1, T, V)
            (logits[0, -1].float().softmax(-1)[list(self.engine.tokens.ids)] * values).sum().item()


class OnVLLM:
    """The same on one `vllm.LLM`: its own `generate` with the engine's sampling settings, and the engine."""

    def __init__(self, args: argparse.Namespace) -> None:
        from vllm import LLM

        from tract_trainer.engines import vllm as engine_module
        from tract_trainer.engines.vllm import VLLMEngine

        self.args, self.sampling, self.rows = args, Sampling(max_new_tokens=args.new_tokens), make_rows(args)
        engine_module.read_written = lambda _tokens, _prompt, ids, _stop, log_probs, _lead: log_probs(len(ids) - 1)  # type: ignore[assignment]
        with tempfile.TemporaryDirectory() as folder:
            make_model(args).save_pretrained(folder)
            length = args.prompt_tokens + args.new_tokens + 8
            self.llm = LLM(folder, skip_tokenizer_init=True, max_model_len=length, seed=args.seed)
        self.engine = object.__new__(VLLMEngine)  # its checks ask for a tokenizer
        self.engine.llm, self.engine.tokens, self.engine.stop_ids = self.llm, scale_of(5), [1]
        self.engine.lead, self.engine.adapter, self.engine.max_length = "", None, length

    def ways(self) -> dict[str, Callable[[], Any]]:
        return {GENERATION: self.generation, UNSEEDED: self.unseeded, OURS: self.ours, FORCED: self.forced}

    def generation(self, seeded: bool = True) -> list[list[int]]:
        from vllm import SamplingParams
        from vllm.inputs import TokensPrompt

        settings = [
            SamplingParams(
                temperature=self.sampling.temperature,
                top_p=self.sampling.top_p,
                repetition_penalty=self.sampling.repetition_penalty,
                max_tokens=self.args.new_tokens,
                seed=seed if seeded else None,
                stop_token_ids=[1],
                detokenize=False,
            )
            for seed in range(len(self.rows))
        ]
        done = self.llm.generate([TokensPrompt(prompt_token_ids=row) for row in self.rows], settings, use_tqdm=False)
        return [list(request.outputs[0].token_ids) for request in done]

    def unseeded(self) -> None:
        self.generation(seeded=False)

    def ours(self) -> None:
        self.engine.generate(self.rows, range(len(self.rows)), self.sampling)

    def forced(self) -> None:
        self.ours()
        self.engine.score([row + [5] * self.args.new_tokens for row in self.rows])


def main() -> None:
    args = arguments()
    torch.set_num_threads(args.threads)
    contestants = OnVLLM(args) if args.engine == "vllm" else OnTransformers(args)
    report(args, interleaved(contestants.ways(), args.rounds, args.clock))


def report(args: argparse.Namespace, seconds: Mapping[str, list[float]]) -> None:
    tokens = args.records * args.num_cots * args.new_tokens
    device = torch.cuda.get_device_name() if args.device == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    print(
        f"{args.engine} on {device}; {args.records} records of {args.prompt_tokens} tokens, {args.num_cots} rationales "
        f"of {args.new_tokens} tokens each, {args.rounds} rounds, {args.clock} time"
    )
    base = LETTERS if args.labels else GENERATION
    print(f"| | s (median) | tokens/s | against {base} | quartiles | released scoring takes |")
    print("|---|---|---|---|---|---|")
    found = costs(seconds)
    for way in (OURS, FORCED) if args.labels else ():  # forced scores are compared with forced ones
        names = f"{way}, {LETTERS}", f"{way}, {TEN}"
        found |= costs({name: seconds[name] for name in names})
    for name, cost in found.items():
        times = f"{found[RELEASED].seconds / cost.seconds:.2f} times as long" if RELEASED in found else ""
        print(f"| {name} | {cost.seconds:.2f} | {tokens / cost.seconds:,.0f} | {cost.ratio:.3f} | {cost.low:.3f} "
              f"{cost.high:.3f} | {times} |")  # fmt: skip
    print(json.dumps({name: cost._asdict() for name, cost in found.items()}))


if __name__ == "__main__":
    main()
