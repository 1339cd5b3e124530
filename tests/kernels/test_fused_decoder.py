"""The engine with its forward pass in kernels says what transformers says, as the one on torch operators does."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from ember.wire import Generate
from tests.engine_core.inline import greedy, make_engine, run, tokens
from tests.engine_models.tiny import VOCAB_SIZE, make_tiny

NUM_OUTPUT = 3
LENGTHS = [1, 5, 17, 30]
VARIANTS = ["llama3", "qwen2_window", "qwen3", "opt"]


@pytest.mark.parametrize("family", VARIANTS)
def test_greedy_equals_transformers(family, tmp_path):
    directory = make_tiny(family, tmp_path, num_hidden_layers=2)
    prompts = [[(7 * i + 3 * j) % (VOCAB_SIZE - 10) + 6 for j in range(length)] for i, length in enumerate(LENGTHS)]
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    expected = []
    for prompt in prompts:
        ids = torch.tensor([prompt])
        options = {"max_new_tokens": NUM_OUTPUT, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
        with torch.inference_mode():
            generated = model.generate(ids, attention_mask=torch.ones_like(ids), **options)
        expected.append(generated[0, len(prompt) :].tolist())
    device = "cuda" if torch.cuda.is_available() else "cpu"
    engine = make_engine(directory, device=device, max_num_batched_tokens=20)  # chunks and decodes in one step
    assert engine.runner.model.use_kernels()
    for _ in range(2):  # the second time with a cached prefix
        outputs = run(engine, [Generate(i, prompt, greedy(NUM_OUTPUT)) for i, prompt in enumerate(prompts)])
        assert [tokens(outputs[i, 0]) for i in range(len(prompts))] == expected


def test_a_form_that_the_kernels_do_not_know_stays_on_torch_operators(tmp_path):
    engine = make_engine(make_tiny("opt_post_norm", tmp_path, num_hidden_layers=1))
    assert not engine.runner.model.use_kernels()
    assert len(tokens(run(engine, [Generate(1, [5, 6], greedy(2))])[1, 0])) == 2
