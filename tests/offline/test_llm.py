"""`ember.LLM`: its results are those of the routes, it works in loops and threads, and its process ends with it."""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ember import (
    LLM,
    BeamSearchParams,
    PoolingParams,
    PromptError,
    SamplingParams,
    StructuredOutputsParams,
    TextPrompt,
    TokensPrompt,
)
from ember.front.api.exchange import Request
from ember.front.api.routes import ROUTER
from ember.front.loop import EngineLoop
from ember.front.offline.session import Session
from tests.api.test_pooling_models import DOCUMENTS, QUERY, served
from tests.support.processes import ROOT, Process

text: Any = "text"
wrong: Any = 5
text_only: Any = {text: 1}
GREEDY = SamplingParams(temperature=0.0, max_tokens=12)
WEATHER = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}


@pytest.fixture(scope="module")
def llm() -> Iterator[LLM]:
    with LLM("demo", max_model_len=256, max_num_seqs=8) as llm:
        yield llm


def route(llm: LLM, path: str, body: dict[str, Any]) -> Any:
    answer = llm._session._wait(ROUTER.dispatch(llm._services, Request("POST", path, body)))
    return answer.body


def test_outputs_are_those_of_the_route_in_the_order_of_the_prompts(llm: LLM) -> None:
    texts = [f"Tell me of number {number}" for number in range(20)]
    params = SamplingParams(temperature=0.0, max_tokens=6, n=1, logprobs=2, prompt_logprobs=1)
    body = {"prompt": texts, "temperature": 0, "max_tokens": 6, "logprobs": 2, "return_token_ids": True}
    expected = route(llm, "/v1/completions", body)["choices"]
    outputs = llm.generate(texts, params, use_tqdm=False)
    assert [output.prompt for output in outputs] == texts
    for output, choice in zip(outputs, expected, strict=True):
        (found,) = output.outputs
        assert (found.text, found.token_ids, found.finish_reason) == (
            choice["text"],
            choice["token_ids"],
            choice["finish_reason"],
        )
        assert found.logprobs is not None and output.prompt_logprobs is not None
        sampled = [entry[token_id] for entry, token_id in zip(found.logprobs, found.token_ids, strict=True)]
        assert [each.logprob for each in sampled] == pytest.approx(choice["logprobs"]["token_logprobs"], abs=1e-3)
        assert found.cumulative_logprob == pytest.approx(sum(each.logprob for each in sampled))
        assert all(each.rank == 1 for each in sampled) and all(len(entry) == 2 for entry in found.logprobs)
        assert output.prompt_logprobs[0] is None and len(output.prompt_logprobs) == len(output.prompt_token_ids)


def test_prompts_have_several_forms_and_each_its_own_options(llm: LLM) -> None:
    (plain,) = llm.generate("The sky", GREEDY)
    ids = plain.prompt_token_ids
    both = {"prompt": "shown", "prompt_token_ids": ids}
    forms: list[Any] = [{"prompt": "The sky"}, {"prompt_token_ids": ids}, both, ids]
    outputs = llm.generate(forms, [GREEDY] * 3 + [SamplingParams(temperature=0.0, max_tokens=2, detokenize=False)])
    assert [output.prompt for output in outputs] == ["The sky", None, "shown", None]
    assert all(output.outputs[0].text == plain.outputs[0].text for output in outputs[:3])
    bare = SamplingParams(max_tokens=2, ignore_eos=True, detokenize=False, logprobs=3, prompt_logprobs=3)
    (output,) = llm.generate("The sky", bare)
    positions: Any = [*(output.prompt_logprobs or [])[1:], *(output.outputs[0].logprobs or [])]
    assert len(positions) == len(output.prompt_token_ids) + 1 and output.outputs[0].text == ""
    assert all(each.decoded_token is None for position in positions for each in position.values())
    assert outputs[3].outputs[0].token_ids == plain.outputs[0].token_ids[:2] and outputs[3].outputs[0].text == ""
    assert llm.generate(ids, GREEDY)[0].outputs[0].text == plain.outputs[0].text
    arrays: list[Any] = [np.array(ids), torch.tensor(ids), [np.int64(each) for each in ids], tuple(ids)]
    for given in (*arrays, *({"prompt_token_ids": each} for each in arrays)):
        assert llm.generate(given, SamplingParams(max_tokens=1))[0].prompt_token_ids == ids
    unlimited = llm.generate([7] * 240, SamplingParams(max_tokens=None, ignore_eos=True))[0]
    assert len(unlimited.outputs[0].token_ids) == 256 - 240
    several = llm.generate("A", SamplingParams(n=3, max_tokens=2, seed=1))[0].outputs
    assert [each.index for each in several] == [0, 1, 2]
    assert llm.generate([]) == []
    assert [len(llm.generate(["A", "B"], priority=each)) for each in (1, [2, 1])] == [2, 2]
    with pytest.raises(ValueError, match="priority must have one entry"):
        llm.generate(["A", "B"], priority=[])
    assert len(llm.generate("The sky")[0].outputs[0].token_ids) <= 16


def test_chats_are_those_of_the_route_with_the_text_as_the_model_wrote_it(llm: LLM) -> None:
    chats = [[{"role": "user", "content": f"What is {number} plus 5?"}] for number in range(3)]
    outputs = llm.chat(chats, SamplingParams(temperature=0.0, max_tokens=30))
    for chat, output in zip(chats, outputs, strict=True):
        answer = route(
            llm,
            "/v1/chat/completions",
            {"messages": chat, "temperature": 0, "max_tokens": 30, "return_prompt_text": True},
        )
        assert output.prompt == answer["prompt_text"]
        assert output.outputs[0].text == answer["choices"][0]["message"]["content"]
    thinking = llm.chat(chats[0], GREEDY, chat_template_kwargs={"enable_thinking": True}, tools=[WEATHER])[0]
    assert thinking.prompt is not None and "weather" in thinking.prompt
    template = "{% for message in messages %}[{{ message.content }}]{% endfor %}"
    assert llm.chat(chats[0], GREEDY, chat_template=template)[0].prompt == "[What is 0 plus 5?]"
    begun = [*chats[0], {"role": "assistant", "content": "It is"}]
    continued = llm.chat(begun, GREEDY, add_generation_prompt=False, continue_final_message=True)[0]
    assert continued.prompt is not None and continued.prompt.endswith("It is")
    form = StructuredOutputsParams(choice=["north", "south"])
    budget = SamplingParams(structured_outputs=form, thinking_token_budget=4, max_tokens=40)
    (chosen,) = llm.chat(chats[0], budget, chat_template_kwargs={"enable_thinking": True})
    assert chosen.outputs[0].text.endswith(("north", "south"))
    (guided,) = llm.generate("Go", SamplingParams(guided_decoding={"regex": "[ab]{3}"}))
    assert set(guided.outputs[0].text) <= {"a", "b"} and len(guided.outputs[0].text) == 3


def test_the_tokenizer_makes_the_prompts_of_chats(llm: LLM) -> None:
    tokenizer: Any = llm.get_tokenizer()
    chat = [{"role": "user", "content": "What is 2 plus 5?"}]
    (answer,) = llm.chat(chat, SamplingParams(max_tokens=1))
    written = tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
    ids = tokenizer.apply_chat_template(chat, add_generation_prompt=True)
    assert (written, ids) == (answer.prompt, answer.prompt_token_ids) and tokenizer.decode(np.array(ids)) == written
    assert tokenizer.apply_chat_template(chat, chat_template="[{{ messages[0].content }}]", tokenize=False) == (
        "[What is 2 plus 5?]"
    )
    assert "weather" in str(tokenizer.apply_chat_template(chat, tools=[WEATHER], tokenize=False))
    assert tokenizer.decode(ids[0]) + tokenizer.decode(ids[1:], skip_special_tokens=True) != written
    (output,) = llm.generate(TokensPrompt(prompt_token_ids=tokenizer.encode("The sky")), GREEDY)
    assert output.outputs[0] == llm.generate(TextPrompt(prompt="The sky"), GREEDY)[0].outputs[0]
    long = [7] * 200
    assert [llm.generate(long, GREEDY)[0].num_cached_tokens > 0 for _ in range(2)][1] and llm.reset_prefix_cache()
    assert llm.generate(long, GREEDY)[0].num_cached_tokens == 0
    salted = [TokensPrompt(prompt_token_ids=long, cache_salt=each) for each in ("a", "b", "a")]
    assert [llm.generate(each, GREEDY)[0].num_cached_tokens > 0 for each in salted] == [False, False, True]
    wrong_calls: list[tuple[Any, type[Exception]]] = [
        (lambda: tokenizer.encode(wrong), TypeError),
        (lambda: tokenizer.decode([10**9]), ValueError),
        (lambda: tokenizer.decode(text), TypeError),
        (lambda: tokenizer.apply_chat_template(wrong), PromptError),
    ]
    for call, kind in wrong_calls:
        with pytest.raises(kind, match="text|token_ids|messages"):
            call()


def test_beams(llm: LLM) -> None:
    (found,) = llm.beam_search(["The sky"], BeamSearchParams(beam_width=3, max_tokens=4))
    body = {"prompt": "The sky", "use_beam_search": True, "n": 3, "max_tokens": 4}
    assert [sequence.text.removeprefix("The sky") for sequence in found.sequences] == [
        choice["text"] for choice in route(llm, "/v1/completions", body)["choices"]
    ]
    scores = [sequence.cum_logprob for sequence in found.sequences]
    assert scores == sorted(scores, reverse=True)


def test_a_bad_prompt_is_named_and_others_are_not_lost(llm: LLM) -> None:
    with pytest.raises(PromptError, match="longer|maximum context") as caught:
        llm.generate(["one"] * 40 + ["word " * 2000], SamplingParams(max_tokens=1))
    assert caught.value.index == 40 and sum(output is not None for output in caught.value.outputs) > 20
    forms: list[tuple[Any, str]] = [
        (["fine", 7.5], "not float"),
        ([{"prompt": "x", "multi_modal_data": {"image": 1}}], "multi_modal"),
        ({"prompt_token_ids": "abc"}, "`prompt_token_ids` must be a list of token ids, not str"),
        ([{"prompt_token_ids": ["x", "yy"]}], "`prompt_token_ids` .*its entry 0 is 'x', of type str"),
        ([{"prompt_token_ids": [[1], [2]]}], "entry 0 .*of type list"),
        ([{"prompt_token_ids": np.array([1.5])}], "entry 0 is 1.5, of type float"),
        ([b"abc"], "not bytes"),
        ([{"prompt": ["x"]}], "`prompt` must be a text, not list"),
        ([{}], "none of the two fields"),
        ([{"prompt": "x", "cache_salt": 5}], "`cache_salt` must be a text, not int"),
        ([{"prompt": "x", "cache_salt": ""}], "cache_salt must be a string of 1 to 128 characters"),
    ]
    for wrong, message in forms:
        with pytest.raises(PromptError, match=message) as caught:
            llm.generate(wrong, GREEDY)
        assert caught.value.index == (len(wrong) - 1 if isinstance(wrong, list) else 0)
    untyped: Any = llm
    calls: list[tuple[Any, str]] = [
        (lambda: untyped.generate(b"abc"), "prompts .*not bytes"),
        (lambda: untyped.generate("a", text), "sampling_params must be SamplingParams .*not str"),
        (lambda: untyped.generate(["a"], [{}]), "each of sampling_params .*not dict"),
        (lambda: untyped.generate("a", priority="high"), "each of priority .*not str"),
        (lambda: untyped.generate("a", priority=1.5), "priority .*not float"),
        (lambda: untyped.generate("a", use_tqdm=5), "use_tqdm .*not int"),
        (lambda: untyped.beam_search("a", None), "params must be BeamSearchParams, not NoneType"),
        (lambda: untyped.chat(5), "messages .*not int"),
        (lambda: untyped.chat({"role": "user"}), "messages .*not dict"),
        (lambda: untyped.score("a", 5), "data_2 .*not int"),
        (lambda: untyped.embed("a", pooling_params=5), "pooling_params .*not int"),
    ]
    for call, message in calls:
        with pytest.raises(TypeError, match=message):
            call()
    with pytest.raises(PromptError, match="messages"):
        llm.chat([{"content": "no role"}], GREEDY)
    with pytest.raises(ValueError, match="sampling_params must have one entry for each of the 2 prompts"):
        llm.generate(["a", "b"], [GREEDY])
    with pytest.raises(PromptError, match="generate"):
        llm.embed("text")
    assert llm.generate("The sky", GREEDY)[0].finished


@pytest.mark.parametrize(
    ("make", "kind", "message"),
    [
        (lambda: SamplingParams(temperature=-1), ValueError, "temperature must be in"),
        (lambda: SamplingParams(top_p=text), ValueError, "top_p must be float, got 'text'"),
        (lambda: SamplingParams(temperature=True), ValueError, "temperature must be float"),
        (lambda: SamplingParams(max_tokens=text), ValueError, "max_tokens must be int | None"),
        (lambda: SamplingParams(logit_bias=wrong), ValueError, "logit_bias must be"),
        (lambda: SamplingParams(stop=wrong), ValueError, "stop must be"),
        (lambda: SamplingParams(stop_token_ids=[text]), ValueError, "stop_token_ids must be"),
        (lambda: SamplingParams(stop=["a", ""]), ValueError, "stop cannot contain an empty string"),
        (lambda: SamplingParams(stop=""), ValueError, "stop cannot contain an empty string"),
        (lambda: SamplingParams(bad_words=[""]), ValueError, "bad_words cannot contain an empty string"),
        (lambda: SamplingParams(min_tokens=-1), ValueError, "min_tokens must be at least 0 and at most max_tokens=16"),
        (lambda: SamplingParams(min_tokens=5, max_tokens=3), ValueError, "at most max_tokens=3, got 5"),
        (lambda: SamplingParams(min_tokens=-1, max_tokens=None), ValueError, "min_tokens must be at least 0, got -1"),
        (lambda: SamplingParams(logprobs=-2), ValueError, "logprobs must be at least 0, or -1"),
        (lambda: SamplingParams(prompt_logprobs=-2), ValueError, "prompt_logprobs must be at least 0, or -1"),
        (lambda: SamplingParams(thinking_token_budget=-2), ValueError, "thinking_token_budget must be at least 0"),
        (lambda: SamplingParams(seed=2**63), ValueError, "seed must be a number of 64 bits"),
        (lambda: BeamSearchParams(0, 2), ValueError, "beam_width must be at least 1"),
        (lambda: StructuredOutputsParams(regex="a", choice=["b"]), ValueError, "there is regex, choice"),
        (lambda: LLM(), TypeError, "MODEL_NAME"),
        (lambda: SamplingParams(logits_processors=[print]), ValueError, "logits_processors is not supported"),
        (lambda: SamplingParams(**text_only), TypeError, "argument 'text'"),
        (lambda: BeamSearchParams(2, 2, temperature=0.5), ValueError, "temperature"),
        (lambda: LLM("demo", max_modellen=5), TypeError, "max_modellen"),
        (lambda: LLM("demo", max_model_len="many"), ValueError, "MAX_MODEL_LEN=many"),
        (lambda: LLM("/nowhere/at/all"), RuntimeError, "/nowhere/at/all"),
    ],
)
def test_wrong_options_are_refused_by_name(make: Any, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        make()


def test_options_are_kept_in_one_form() -> None:
    params = SamplingParams(stop="END", thinking_token_budget=-1, min_tokens=2, seed=-1)
    assert (params.stop, params.stop_token_ids, params.bad_words) == (["END"], [], [])
    assert params.thinking_token_budget is None and SamplingParams(stop=["a", "b"]).stop == ["a", "b"]


def test_an_option_of_chats_is_not_ignored_for_a_prompt(llm: LLM) -> None:
    with pytest.raises(ValueError, match="thinking_token_budget is for chats"):
        llm.generate("The sky", SamplingParams(thinking_token_budget=5))


def test_the_model_is_a_path_and_the_dtype_one_of_torch() -> None:
    with LLM(ROOT / "src" / "ember" / "demo", dtype=torch.float32, max_model_len=64) as llm:
        assert llm._services.settings.dtype == "float32" and llm.generate("A", GREEDY)[0].finished


def test_few_prompts_are_under_way_at_a_time(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(llm._session), "window", 3)
    most = 0
    engine: Any = llm._services.engine
    generate = engine.generate

    def counted(*arguments: Any, **options: Any) -> Any:
        nonlocal most
        most = max(most, len(engine.in_flight.handles) + 1)
        return generate(*arguments, **options)

    monkeypatch.setattr(engine, "generate", counted)
    lengths = [1 + number % 4 for number in range(30)]
    outputs = llm.generate(["Go"] * 30, [SamplingParams(max_tokens=length, ignore_eos=True) for length in lengths])
    assert [len(output.outputs[0].token_ids) for output in outputs] == lengths and most == 3


def test_it_is_called_inside_a_running_loop_and_from_threads(llm: LLM) -> None:
    async def notebook() -> list[Any]:
        return llm.generate(["The sky"], GREEDY, use_tqdm=False)

    expected = asyncio.run(notebook())[0].outputs[0].text
    found: list[str] = []
    threads = [
        threading.Thread(target=lambda: found.append(llm.generate("The sky", GREEDY)[0].outputs[0].text))
        for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert found == [expected] * 3


def test_an_interruption_ends_the_call_and_not_the_engine(llm: LLM) -> None:
    timer = threading.Timer(0.5, lambda: signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT))
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        llm.generate(["Go"] * 5000, SamplingParams(max_tokens=400, ignore_eos=True))
    assert llm.generate("The sky", GREEDY)[0].finished
    deadline = time.monotonic() + 20
    while llm._session._worker.engine.is_busy and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not llm._session._worker.engine.is_busy


def test_a_crash_of_the_engine_fails_its_call_alone(llm: LLM) -> None:
    engine = llm._session._worker.engine
    timer = threading.Timer(0.3, lambda: os.kill(engine._engine.process.pid, signal.SIGKILL))
    timer.start()
    with pytest.raises(RuntimeError, match="The engine failed while this request was running"):
        llm.generate(["Go"] * 5000, SamplingParams(max_tokens=200, ignore_eos=True))
    assert llm.generate("The sky", GREEDY)[0].finished  # it waits for the restart


def test_progress_is_told_to_a_class_of_the_caller_and_to_no_pipe(llm: LLM, capfd: pytest.CaptureFixture[str]) -> None:
    told: list[Any] = []

    class Bar:
        def __init__(self, **options: Any) -> None:
            told.append(options["total"])

        def update(self, count: int) -> None:
            told.append(count)

        def close(self) -> None:
            told.append("closed")

    llm.generate(["a", "b"], SamplingParams(max_tokens=1), use_tqdm=Bar)
    assert told[0] == 2 and told[-1] == "closed" and sum(told[1:-1]) == 2
    capfd.readouterr()
    llm.generate(["a", "b"], SamplingParams(max_tokens=1), use_tqdm=True)
    assert capfd.readouterr().err == ""


SCRIPT = """
import os, sys, time
assert not any(name in sys.modules for name in ("pydantic", "asyncio", "torch"))
from ember import LLM, SamplingParams
llm = LLM("demo")
llm.generate("Hello", SamplingParams(max_tokens=1))
assert "torch" not in sys.modules
if sys.argv[1] == "kill":
    if os.fork() == 0:
        time.sleep(60)  # a child that outlives its parent, with copies of its file descriptors
        os._exit(0)
    print(llm._session._worker.engine._engine.process.pid, flush=True)
    time.sleep(60)
if os.fork() == 0:
    try:
        llm.generate("Hello")
    except RuntimeError as error:
        sys.exit("forked" not in str(error))  # at the end of this process the engine is left alone
    os._exit(2)
assert os.wait()[1] == 0 and llm.generate("Hello", SamplingParams(max_tokens=1))
print(llm._session._worker.engine._engine.process.pid, flush=True)
raise KeyError("of the script's own")
"""


@pytest.mark.parametrize("end", ["kill", "raise"])
def test_no_engine_outlives_its_program(end: str) -> None:
    with Process("-c", SCRIPT, end) as program:
        assert program.popen.stdout is not None
        engine = Path(f"/proc/{int(program.popen.stdout.readline())}")
        if end == "kill":
            child = next(pid for pid in program.wait_children() if pid != int(engine.name))
            program.popen.kill()
        else:
            assert program.wait() == 1 and "of the script's own" in program.log()
        deadline = time.monotonic() + 20
        while engine.exists() and "State:\tZ" not in (engine / "status").read_text() and time.monotonic() < deadline:
            time.sleep(0.02)
        assert not engine.exists() or "State:\tZ" in (engine / "status").read_text()
        if end == "kill":
            os.kill(child, signal.SIGKILL)


def pooling_llm(directory: Path, name: str) -> tuple[LLM, Any, Any]:
    """An `LLM` over a tiny encoder whose engine is in this process, transformers' model and its tokenizer."""
    deployment, model, tokenizer = served(directory, name)
    session = Session.__new__(Session)
    session._loop = EngineLoop()
    session._loop.start()
    session.services, session.is_closed = deployment.services, False
    llm = LLM.__new__(LLM)
    llm._session, llm._numbers = session, itertools.count()
    return llm, model, tokenizer


def test_embeddings_and_scores_are_those_of_the_model(tmp_path: Path) -> None:
    llm, model, tokenizer = pooling_llm(tmp_path, "BertModel")
    texts = [DOCUMENTS[number % 3] for number in range(70)]  # more than one call's
    found = llm.embed([*texts, tokenizer(QUERY)["input_ids"]])
    with torch.no_grad():
        rows = model(**tokenizer(DOCUMENTS[0], return_tensors="pt")).last_hidden_state[0]
    assert len(found) == 71 and found[0].outputs.hidden_size == 64 and found[0].outputs == found[3].outputs
    tokens = llm.encode(DOCUMENTS[0], PoolingParams(use_activation=False), pooling_task="token_embed")[0].outputs.data
    assert torch.allclose(torch.tensor(tokens), rows, atol=1e-4)
    every = [PoolingParams(use_activation=number % 3 != 0) for number in range(9)]
    (plain,), (normal,) = (
        llm.embed(DOCUMENTS[0], pooling_params=PoolingParams(use_activation=each)) for each in (False, True)
    )
    mixed = llm.embed([DOCUMENTS[0]] * 9, pooling_params=every)
    for each, expected in zip(mixed, [plain, normal, normal] * 3, strict=True):
        assert each.outputs.embedding == pytest.approx(expected.outputs.embedding, abs=1e-4)
    assert plain.outputs.embedding != pytest.approx(normal.outputs.embedding, abs=1e-2)
    names = [int(each.request_id) for each in mixed]
    assert names == sorted(names)
    second = llm.encode(DOCUMENTS, every[:3], pooling_task="embed")[1].outputs.data
    assert second == pytest.approx(found[1].outputs.embedding, abs=1e-4)
    for call, message in (
        (lambda: llm.encode(DOCUMENTS, every[:2], pooling_task="embed"), "one entry for each of the 3 prompts, got 2"),
        (lambda: llm.encode(DOCUMENTS, PoolingParams(task="embed"), pooling_task="token_embed"), "task .*is 'embed'"),
        (lambda: llm.embed(DOCUMENTS, pooling_params=PoolingParams(task="token_embed")), "task .*is 'token_embed'"),
        (lambda: llm.score("a", "b", pooling_params=PoolingParams(task="embed")), "this call is for 'score'"),
    ):
        with pytest.raises(ValueError, match=message):
            call()
    with pytest.raises(PromptError, match=r"maximum context length .*value=502\) \(of prompt 68\)") as caught:
        llm.embed([*texts[:68], "fox " * 500, *texts])
    assert caught.value.index == 68
    for each, expected in zip(caught.value.outputs[64:68], found[64:68], strict=True):
        assert each.outputs.embedding == pytest.approx(expected.outputs.embedding, abs=1e-4)
    with pytest.raises(PromptError, match=r"\(of prompt 66\)") as caught:
        llm.score(QUERY, [*texts[:66], "fox " * 500])
    assert caught.value.index == 66
    scores = llm.score(QUERY, texts)
    query, document = (torch.tensor(each.outputs.embedding) for each in (found[70], found[1]))
    assert scores[1].outputs.score == pytest.approx(torch.cosine_similarity(query, document, dim=0).item(), abs=1e-4)
    assert len(scores) == 70 and scores[1].prompt_token_ids == tokenizer(DOCUMENTS[1])["input_ids"]
    with pytest.raises(ValueError, match="3 and 2 texts"):
        llm.score(DOCUMENTS, DOCUMENTS[:2])
    llm._session._loop.stop()


def test_classes_and_pairs_are_those_of_the_model(tmp_path: Path) -> None:
    llm, model, tokenizer = pooling_llm(tmp_path, "BertForSequenceClassification")
    with torch.no_grad():
        single = torch.sigmoid(model(**tokenizer(DOCUMENTS[0], return_tensors="pt")).logits)[0]
        pair = torch.sigmoid(model(**tokenizer([QUERY], [DOCUMENTS[0]], return_tensors="pt")).logits)[0]
    assert llm.classify(DOCUMENTS)[0].outputs.probs == pytest.approx(single.tolist(), abs=1e-4)
    (scored,) = llm.score([QUERY], [DOCUMENTS[0]])
    assert scored.outputs.score == pytest.approx(pair.item(), abs=1e-4)
    assert scored.prompt_token_ids == tokenizer(QUERY, DOCUMENTS[0])["input_ids"]
    llm._session._loop.stop()


def test_a_model_that_makes_no_scores_is_named(tmp_path: Path) -> None:
    llm, _, _ = pooling_llm(tmp_path, "BertForTokenClassification")
    with pytest.raises(PromptError, match="does token_classify, and not 'score'"):
        llm.score(QUERY, DOCUMENTS)
    llm._session._loop.stop()
