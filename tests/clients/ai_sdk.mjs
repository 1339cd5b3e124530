// What Vercel's AI SDK does with a server, through its adapter for OpenAI-compatible servers and through OpenAI's own:
// node --input-type=module - BASE_URL < ai_sdk.mjs, in the directory whose node_modules has the packages.
import assert from "node:assert/strict";
import { createAnthropic } from "@ai-sdk/anthropic";
import { createOpenAI } from "@ai-sdk/openai";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { APICallError, generateObject, generateText, Output, stepCountIs, streamObject, streamText, tool } from "ai";
import { z } from "zod";

const baseURL = process.argv[2];
const compatible = { name: "ember", baseURL, apiKey: "none", includeUsage: true };
const model = createOpenAICompatible({ ...compatible, supportsStructuredOutputs: true })("demo");
const describing = createOpenAICompatible(compatible)("demo"); // json_object, with the schema in the prompt
const openai = createOpenAI({ baseURL, apiKey: "none" }).chat("demo");
const responses = createOpenAI({ baseURL, apiKey: "none" }).responses("demo");
const anthropic = createAnthropic({ baseURL, apiKey: "none" })("demo");
const prompt = "What is the capital of France?";
const Place = z.object({ city: z.string().max(20), size: z.enum(["small", "large"]) });
const settled = { temperature: 0, maxRetries: 0, maxOutputTokens: 200 };
// Jobs keep no responses, so nothing can refer to one.
if (baseURL.includes("/v2/")) settled.providerOptions = { openai: { store: false } };
const failsWith = (error) => assert.fail(String(error.error?.responseBody ?? error.error ?? error));

async function wholeAndStreamed(model) {
  const whole = await generateText({ model, prompt, ...settled });
  const streamed = streamText({ model, prompt, ...settled, onError: failsWith });
  let text = "";
  for await (const piece of streamed.textStream) text += piece;
  assert.ok(text);
  assert.equal(text, whole.text);
  assert.equal(await streamed.finishReason, whole.finishReason);
  assert.equal((await streamed.usage).outputTokens, whole.usage.outputTokens);
}

async function toolLoop(model) {
  const asked = [];
  const weather = tool({
    description: "Get the weather in a city",
    inputSchema: z.object({ city: z.string() }),
    execute: async ({ city }) => {
      asked.push(city);
      return `21 degrees and clear in ${city}`;
    },
  });
  const options = { model, tools: { get_weather: weather }, stopWhen: stepCountIs(4), ...settled };
  const messages = [];
  for (const [city, streams] of [["Paris", false], ["Rome", true], ["Oslo", false]]) {
    messages.push({ role: "user", content: `What is the weather in ${city}?` });
    const result = streams
      ? streamText({ ...options, messages, onError: failsWith })
      : await generateText({ ...options, messages });
    if (streams) {
      const kinds = new Set();
      for await (const part of result.fullStream) kinds.add(part.type);
      for (const kind of ["tool-input-start", "tool-input-delta", "tool-call", "tool-result", "text-delta"]) {
        assert.ok(kinds.has(kind), `no ${kind}`);
      }
    }
    assert.equal((await result.steps).length, 2);
    assert.equal(asked.at(-1), city);
    assert.ok(await result.text);
    messages.push(...(await result.response).messages);
  }
  assert.deepEqual(asked, ["Paris", "Rome", "Oslo"]);
  const forced = await generateText({
    model, prompt, ...settled, tools: { get_weather: tool({ inputSchema: z.object({ city: z.string().max(20) }) }) },
    toolChoice: { type: "tool", toolName: "get_weather" },
  });
  assert.equal(forced.toolCalls[0].toolName, "get_weather");
}

async function structured(model) {
  const free = { model, prompt, temperature: 1, maxRetries: 0 };
  Place.parse((await generateObject({ ...free, schema: Place })).object);
  const streamed = streamObject({ ...free, schema: Place, onError: failsWith });
  let partials = 0;
  for await (const partial of streamed.partialObjectStream) partials += partial ? 1 : 0;
  assert.ok(partials);
  Place.parse(await streamed.object);
  const list = await generateObject({ ...free, output: "enum", enum: ["sunny", "rainy"] });
  assert.ok(["sunny", "rainy"].includes(list.object));
  Place.parse((await generateText({ ...free, output: Output.object({ schema: Place }) })).output);
  const text = streamText({ ...free, output: Output.object({ schema: Place }), onError: failsWith });
  for await (const partial of text.partialOutputStream) assert.equal(typeof partial, "object");
  Place.parse(await text.output);
}

async function reasoning() {
  const options = { model, prompt, ...settled };
  options.providerOptions = { ember: { chat_template_kwargs: { enable_thinking: true } } };
  const whole = await generateText(options);
  assert.ok(whole.reasoningText && whole.text);
  const streamed = streamText({ ...options, onError: failsWith });
  assert.equal(await streamed.text, whole.text);
  assert.equal(await streamed.reasoningText, whole.reasoningText);
}

// Over HTTP an error has its own status; through a queue every failed job is a 500 with the same body.
async function errors(model) {
  for (const fields of [{ topP: 3 }, { maxOutputTokens: 100000 }]) {
    await assert.rejects(generateText({ model, prompt, ...settled, ...fields }), (error) => {
      assert.ok(APICallError.isInstance(error), String(error));
      assert.ok(error.statusCode === (baseURL.includes("/v2/") ? 500 : 400));
      assert.match(error.message, /top_p|max_tokens|max_completion_tokens/);
      assert.equal(JSON.parse(error.responseBody).error.code, 400);
      return true;
    });
    let told;
    const streamed = streamText({ model, prompt, ...settled, ...fields, onError: ({ error }) => (told = error) });
    await streamed.consumeStream();
    assert.match(JSON.stringify(told) + String(told), /top_p|max_tokens|max_completion_tokens/);
  }
}

async function aborts(model) {
  const controller = new AbortController();
  const long = { model, prompt: "Tell me a story about a fox.", ...settled, abortSignal: controller.signal };
  const streamed = streamText({ ...long, onError: failsWith });
  let seen = 0;
  for await (const part of streamed.fullStream) {
    if (part.type === "text-delta" && ++seen === 3) controller.abort();
  }
  assert.ok(seen >= 3);
  await assert.rejects(generateText({ ...long, abortSignal: AbortSignal.timeout(30) }), { name: "TimeoutError" });
  assert.ok((await generateText({ model, prompt, ...settled })).text);
}

for (const one of [model, openai]) {
  for (const session of [wholeAndStreamed, toolLoop, structured, errors, aborts]) {
    console.log(one.provider, session.name);
    await session(one);
  }
}
for (const one of [responses, anthropic]) {
  for (const session of [wholeAndStreamed, toolLoop, structured, aborts]) {
    console.log(one.provider, session.name);
    await session(one);
  }
}
await reasoning();
// Without a schema in the request the demo model's JSON is whatever it is, and has to parse.
const loose = { model: describing, prompt, temperature: 0, maxRetries: 0, maxOutputTokens: 300 };
const { object } = await generateObject({ ...loose, output: "no-schema" });
assert.equal(typeof object, "object");
console.log("ok");
