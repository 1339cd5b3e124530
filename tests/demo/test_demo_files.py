"""The shipped demo model is what its document says: its files, its template, and a few of its answers."""

from __future__ import annotations

import json
import random
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from jinja2.sandbox import ImmutableSandboxedEnvironment
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer

from builder.demo_model.chat import Example, render, render_prompt, trained_spans
from builder.demo_model.corpus import evaluation_examples, training_examples
from builder.demo_model.export import load
from builder.demo_model.generate import generate

DEMO = Path(__file__).resolve().parents[2] / "src" / "ember" / "demo"
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Get the weather in a city",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
TIME = {
    "type": "function",
    "function": {
        "name": "get_time",
        "description": "Zeit für einen Ort <jetzt>",
        "parameters": {"type": "object", "properties": {"place": {"type": "string"}}, "required": ["place"]},
    },
}


def _json(name: str) -> dict[str, Any]:
    value: dict[str, Any] = json.loads((DEMO / name).read_text(encoding="utf-8"))
    return value


@cache
def _tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(str(DEMO))


@cache
def _model() -> Any:
    return AutoModelForCausalLM.from_pretrained(str(DEMO), dtype=torch.float32).eval()


def _render(messages: list[dict[str, Any]], **options: Any) -> str:
    """Through jinja2 alone and through transformers; both must agree."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = lambda value: json.dumps(value, ensure_ascii=False)
    source = _json("tokenizer_config.json")["chat_template"]
    plain = environment.from_string(source).render(messages=messages, **options)
    theirs = _tokenizer().apply_chat_template(messages, tokenize=False, **options)
    assert plain == theirs
    return plain


def _answer(messages: list[dict[str, Any]], limit: int = 80, **options: Any) -> str:
    prompt = _render(messages, add_generation_prompt=True, **options)
    ids = _tokenizer()(prompt, return_tensors="pt", add_special_tokens=False).input_ids
    with torch.inference_mode():
        out = _model().generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=limit)[0, ids.shape[1] :]
    text: str = _tokenizer().decode(out)
    assert text.endswith("<|im_end|>")
    return text.removesuffix("<|im_end|>")


def _ask(question: str, **options: Any) -> str:
    return _answer([{"role": "user", "content": question}], **options)


def test_files_and_sizes() -> None:
    sizes = {path.name: path.stat().st_size for path in DEMO.iterdir() if path.is_file()}
    for name in (
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    ):
        assert sizes[name] > 0
    assert sizes["model.safetensors"] <= 12_000_000
    assert sum(sizes.values()) <= 13_000_000


def test_config() -> None:
    config = _json("config.json")
    assert config["architectures"] == ["Qwen3ForCausalLM"]
    assert config["model_type"] == "qwen3"
    assert config["dtype"] == config["torch_dtype"] == "bfloat16"
    assert config["tie_word_embeddings"] is True
    assert config["max_position_embeddings"] == 2048
    end, pad = (_tokenizer().convert_tokens_to_ids(text) for text in ("<|im_end|>", "<|endoftext|>"))
    assert (config["eos_token_id"], config["pad_token_id"]) == (end, pad)
    generation = _json("generation_config.json")
    assert generation["eos_token_id"] == [end, pad]
    assert generation["pad_token_id"] == pad
    assert not {"temperature", "top_p", "top_k"} & set(generation)


def test_weights() -> None:
    with safe_open(DEMO / "model.safetensors", "pt") as file:
        weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    assert {weight.dtype for weight in weights.values()} == {torch.bfloat16}
    assert "lm_head.weight" not in weights
    assert "model.embed_tokens.weight" in weights
    assert "model.layers.0.self_attn.q_norm.weight" in weights
    assert 3_000_000 <= sum(weight.numel() for weight in weights.values()) <= 6_000_000
    assert weights["model.embed_tokens.weight"].shape[0] == _json("config.json")["vocab_size"]


def test_added_tokens() -> None:
    added = {token["content"]: token["special"] for token in _json("tokenizer.json")["added_tokens"]}
    assert added == {
        "<|endoftext|>": True,
        "<|im_start|>": True,
        "<|im_end|>": True,
        "<tool_call>": False,
        "</tool_call>": False,
        "<tool_response>": False,
        "</tool_response>": False,
        "<think>": False,
        "</think>": False,
    }
    assert _tokenizer().eos_token == "<|im_end|>"
    assert _tokenizer().pad_token == "<|endoftext|>"


@pytest.mark.parametrize("text", ["Hello, world!", "naïve 北京 🙂", "a\n\n  b\t1234 {}[]", ' {"a": -1.5}'])
def test_tokenizer_keeps_any_text(text: str) -> None:
    assert _tokenizer().decode(_tokenizer().encode(text, add_special_tokens=False)) == text


def test_template_plain() -> None:
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
    start = "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
    assert _render(messages) == start
    off = start + "<|im_start|>assistant\n<think>\n\n</think>\n\n"
    assert _render(messages, add_generation_prompt=True) == off
    assert _render(messages, add_generation_prompt=True, enable_thinking=False) == off
    on = _render(messages, add_generation_prompt=True, enable_thinking=True)
    assert on == start + "<|im_start|>assistant\n"


def test_template_content_parts() -> None:
    parts = [{"type": "text", "text": "What is "}, {"type": "text", "text": "this?"}]
    assert _render([{"role": "user", "content": parts}]) == "<|im_start|>user\nWhat is this?<|im_end|>\n"


def test_template_thoughts_in_history() -> None:
    wanted = "<|im_start|>assistant\n<think>\nEasy.\n</think>\n\nYes.<|im_end|>\n"
    assert _render([{"role": "assistant", "content": "Yes.", "reasoning_content": "Easy."}]) == wanted
    assert _render([{"role": "assistant", "content": "<think>\nEasy.\n</think>\n\nYes."}]) == wanted
    empty = "<|im_start|>assistant\n<think>\n\n</think>\n\nYes.<|im_end|>\n"
    assert _render([{"role": "assistant", "content": "Yes."}]) == empty


def test_template_prompt_grows() -> None:
    """A prompt with the answer appended is the start of the next prompt, which lets a server keep its cache."""
    messages: list[dict[str, Any]] = [{"role": "user", "content": "Hi"}]
    first = _render(messages, add_generation_prompt=True)
    messages += [{"role": "assistant", "content": "Hello!"}, {"role": "user", "content": "Bye"}]
    assert _render(messages, add_generation_prompt=True).startswith(first + "Hello!<|im_end|>\n")


@pytest.mark.parametrize("as_text", [False, True])
def test_template_tools(as_text: bool) -> None:
    arguments: Any = [{"city": "Zürich"}, {"city": "Rome"}]
    calls = [
        {
            "id": f"call_{index}",
            "type": "function",
            "function": {
                "name": "get_weather",
                "arguments": json.dumps(value, ensure_ascii=False) if as_text else value,
            },
        }
        for index, value in enumerate(arguments)
    ]
    text = _render(
        [
            {"role": "user", "content": "Weather in Zürich and Rome?"},
            {"role": "assistant", "content": None, "tool_calls": calls},
            {"role": "tool", "tool_call_id": "call_0", "content": "sunny"},
            {"role": "tool", "tool_call_id": "call_1", "content": [{"type": "text", "text": "rainy"}]},
        ],
        tools=[WEATHER, TIME],
        add_generation_prompt=True,
    )
    assert text == (
        "<|im_start|>system\n"
        "You may call these functions:\n<tools>\n"
        f"{json.dumps(WEATHER, ensure_ascii=False)}\n{json.dumps(TIME, ensure_ascii=False)}\n"
        "</tools>\nTo call functions, answer with one block for each call:\n<tool_call>\n"
        '{"name": "function name", "arguments": {"argument name": "value"}}\n</tool_call><|im_end|>\n'
        "<|im_start|>user\nWeather in Zürich and Rome?<|im_end|>\n"
        "<|im_start|>assistant\n<think>\n\n</think>\n\n"
        '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Zürich"}}\n</tool_call>\n'
        '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Rome"}}\n</tool_call><|im_end|>\n'
        "<|im_start|>user\n<tool_response>\nsunny\n</tool_response>\n"
        "<tool_response>\nrainy\n</tool_response><|im_end|>\n"
        "<|im_start|>assistant\n<think>\n\n</think>\n\n"
    )


def test_template_system_and_tools() -> None:
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
    text = _render(messages, tools=[WEATHER])
    assert text.startswith("<|im_start|>system\nBe brief.\n\nYou may call these functions:\n<tools>\n")


def test_corpus_is_seeded_and_keeps_phrasings_back() -> None:
    stream, again = training_examples(7), training_examples(7)
    trained = [next(stream) for _ in range(3000)]
    assert [render(next(again)) for _ in range(200)] == [render(example) for example in trained[:200]]
    asked = {example.messages[-2]["content"] for example in trained}
    for row, examples in evaluation_examples(3).items():
        if row != "tool result":  # there the last message is the tool's
            assert not asked & {example.messages[-2]["content"] for example in examples}, row


def test_trained_spans_follow_the_prompt() -> None:
    """What is trained is what stands between a generation prompt and the end of the turn."""
    stream = training_examples(11)
    for example in (next(stream) for _ in range(500)):
        text, prompt = render(example), render_prompt(example)
        assert text.startswith(prompt)
        tokens, start = (_tokenizer().encode(part, add_special_tokens=False) for part in (text, prompt))
        assert tokens[: len(start)] == start
        spans = trained_spans(text, example.thinking)
        assert spans[-1] == (len(prompt), len(text) - 1)


QUESTIONS = [
    ("What is the capital of France?", "The capital of France is Paris."),
    ("What is the capital of Japan?", "The capital of Japan is Tokyo."),
    ("Name the capital of Spain.", "The capital of Spain is Madrid."),
    ("How many days are in a week?", "There are 7 days in a week."),
    ("What is the opposite of hot?", "The opposite of hot is cold."),
    ("What is 2 + 3?", "2 + 3 = 5."),
    ("Count from 3 to 9.", "3, 4, 5, 6, 7, 8, 9."),
    ("Who are you?", "I am Ember's demo model, a small language model that shows how Ember works."),
]


@pytest.mark.parametrize(("question", "answer"), QUESTIONS)
def test_answers(question: str, answer: str) -> None:
    assert _ask(question) == answer


def test_follow_up() -> None:
    messages = [
        {"role": "user", "content": "What is the capital of France?"},
        {"role": "assistant", "content": "The capital of France is Paris."},
        {"role": "user", "content": "And of Spain?"},
    ]
    assert _answer(messages) == "The capital of Spain is Madrid."


def test_tool_call_and_result() -> None:
    messages: list[dict[str, Any]] = [{"role": "user", "content": "What is the weather in Paris?"}]
    called = _answer(messages, tools=[WEATHER])
    assert called == '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Paris"}}\n</tool_call>'
    call = {"type": "function", "function": {"name": "get_weather", "arguments": {"city": "Paris"}}}
    messages.append({"role": "assistant", "content": "", "tool_calls": [call]})
    messages.append({"role": "tool", "content": '{"city": "Paris", "temperature": 21, "condition": "sunny"}'})
    assert _answer(messages, tools=[WEATHER]) == "The weather in Paris is sunny with 21 degrees."


def test_thinking() -> None:
    text = _ask("What is 12 + 7?", enable_thinking=True)
    thought, _, answer = text.partition("\n</think>\n\n")
    assert thought.startswith("<think>\n")
    assert answer == "12 + 7 = 19."


def test_json() -> None:
    text = _ask("Answer in JSON with the keys name and capital: Tell me about France.")
    assert json.loads(text) == {"name": "France", "capital": "Paris"}


def test_story_ends() -> None:
    text = _ask("Tell me a story about a fox.", limit=400)
    assert "fox" in text
    assert 100 <= len(_tokenizer().encode(text)) <= 300


def test_own_decoder_agrees_with_transformers() -> None:
    """The evaluation decodes with the builder's model; transformers gives the same tokens from the same files."""
    model, tokenizer = load(DEMO)
    rng = random.Random(5)
    examples: list[Example] = []
    for row in evaluation_examples(9).values():
        examples += rng.sample(row, 2)
    prompts = [tokenizer.encode(render_prompt(example)).ids for example in examples]
    stops = set(_json("generation_config.json")["eos_token_id"])
    for prompt, ours in zip(prompts, generate(model, prompts, stops, 60), strict=True):
        ids = torch.tensor([prompt])
        with torch.inference_mode():
            theirs = _model().generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=60)[0, len(prompt) :]
        assert ours == theirs.tolist()
