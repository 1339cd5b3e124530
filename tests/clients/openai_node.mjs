// What OpenAI's own SDK for Node does with a server: node --input-type=module - BASE_URL < openai_node.mjs, in the
// directory whose node_modules has the packages. Run by test_adapters.py.
import assert from "node:assert/strict";
import OpenAI from "openai";
import { zodFunction, zodResponseFormat } from "openai/helpers/zod";
import { z } from "zod";

const client = new OpenAI({ baseURL: process.argv[2], apiKey: "none", maxRetries: 0 });
const isQueue = process.argv[2].includes("/v2/");
const chat = client.chat.completions;
const question = [{ role: "user", content: "What is the capital of France?" }];
const base = { model: "demo", temperature: 0 };
const Place = z.object({ city: z.string().max(20), size: z.enum(["small", "large"]) });
const tools = [["get_weather", "Get the weather in a city"], ["get_time", "Get the time in a city"]].map(
  ([name, description]) => ({
    type: "function",
    function: {
      name,
      description,
      parameters: { type: "object", properties: { city: { type: "string" } }, required: ["city"] },
    },
  }),
);

async function wholeAndStreamed() {
  assert.equal((await client.models.list()).data[0].id, "demo");
  const whole = await chat.create({ ...base, messages: question, logprobs: true, top_logprobs: 2 });
  const text = whole.choices[0].message.content;
  assert.ok(text && whole.usage.total_tokens);
  assert.equal(whole.choices[0].logprobs.content[0].top_logprobs.length, 2);
  let streamed = "";
  let usage;
  const options = { stream: true, stream_options: { include_usage: true } };
  for await (const chunk of await chat.create({ ...base, messages: question, ...options })) {
    streamed += chunk.choices[0]?.delta.content ?? "";
    usage = chunk.usage ?? usage;
  }
  assert.equal(streamed, text);
  for (const count of ["prompt_tokens", "completion_tokens", "total_tokens"]) {
    assert.equal(usage[count], whole.usage[count]);
  }
  const many = await Promise.all(
    Array.from({ length: 8 }, () => chat.stream({ ...base, messages: question }).finalContent()),
  );
  assert.deepEqual(new Set(many), new Set([text]));
  const pieces = [];
  for await (const chunk of await client.completions.create({ ...base, prompt: "Hello", max_tokens: 5, stream: true })) {
    pieces.push(chunk.choices[0].text);
  }
  const completion = await client.completions.create({ ...base, prompt: "Hello", max_tokens: 5 });
  assert.equal(pieces.join(""), completion.choices[0].text);
}

// Each turn is a question, a call, its result and the answer; the history grows. Every second turn is streamed.
async function toolLoop() {
  const messages = [];
  for (const [city, streams] of [["Paris", false], ["Rome", true], ["Oslo", false]]) {
    messages.push({ role: "user", content: `What is the weather in ${city}?` });
    const body = { ...base, messages, tools };
    const answer = streams ? await chat.stream(body).finalChatCompletion() : await chat.create(body);
    const { message, finish_reason } = answer.choices[0];
    assert.equal(finish_reason, "tool_calls");
    assert.equal(message.tool_calls.length, 1);
    const [call] = message.tool_calls;
    assert.deepEqual([call.function.name, JSON.parse(call.function.arguments)], ["get_weather", { city }]);
    messages.push(message, { role: "tool", tool_call_id: call.id, content: `21 degrees and clear in ${city}` });
    const told = (await chat.create({ ...base, messages, tools })).choices[0].message;
    assert.ok(told.content && !told.tool_calls?.length, JSON.stringify(told));
    messages.push(told);
  }
  const forced = await chat.create({
    ...base, messages: question, tools, tool_choice: { type: "function", function: { name: "get_time" } },
  });
  assert.equal(forced.choices[0].message.tool_calls[0].function.name, "get_time");
}

// The SDK's own loop calls the functions and asks again until there is an answer.
async function runTools() {
  for (const stream of [false, true]) {
    const asked = [];
    const runner = chat.runTools({
      ...base,
      stream,
      messages: [{ role: "user", content: "What is the weather in Paris?" }],
      tools: [
        {
          type: "function",
          function: {
            name: "get_weather",
            description: "Get the weather in a city",
            parse: JSON.parse,
            parameters: { type: "object", properties: { city: { type: "string" } }, required: ["city"] },
            function: ({ city }) => {
              asked.push(city);
              return `21 degrees and clear in ${city}`;
            },
          },
        },
      ],
    });
    const answer = await runner.finalContent();
    assert.ok(answer);
    assert.deepEqual(asked, ["Paris"]);
    assert.deepEqual(runner.messages.map((message) => message.role), ["user", "assistant", "tool", "assistant"]);
  }
}

async function structured() {
  const response_format = zodResponseFormat(Place, "place");
  const body = { model: "demo", messages: question, response_format, temperature: 1 };
  const { parsed } = (await chat.parse(body)).choices[0].message;
  assert.deepEqual(Place.parse(parsed), parsed);
  const stream = chat.stream(body);
  let deltas = "";
  stream.on("content.delta", ({ delta }) => (deltas += delta));
  const final = await stream.finalChatCompletion();
  Place.parse(final.choices[0].message.parsed);
  assert.equal(deltas, final.choices[0].message.content);

  const tool = zodFunction({ name: "save_place", description: "Save a place", parameters: Place });
  const choices = { tools: [tool], tool_choice: "required" };
  const saved = await chat.parse({ model: "demo", messages: question, temperature: 1, ...choices });
  Place.parse(saved.choices[0].message.tool_calls[0].function.parsed_arguments);

  const object = await chat.create({
    model: "demo", messages: question, response_format: { type: "json_object" }, max_tokens: 300,
  });
  if (object.choices[0].finish_reason === "stop") JSON.parse(object.choices[0].message.content);
  const chosen = await chat.create({
    model: "demo", messages: question, temperature: 1, structured_outputs: { choice: ["yes", "no"] },
  });
  assert.ok(["yes", "no"].includes(chosen.choices[0].message.content));
}

// Over HTTP an error has its own status; through a queue every failed job is a 500 with the same body.
async function errors() {
  for (const [status, type, fields, says] of [
    [400, OpenAI.BadRequestError, { temperature: -1 }, /temperature/],
    [400, OpenAI.BadRequestError, { messages: [] }, /messages/],
    [400, OpenAI.BadRequestError, { response_format: { type: "nonsense" } }, /response_format/],
    [404, OpenAI.NotFoundError, { model: "another" }, /another/],
  ]) {
    await assert.rejects(chat.create({ ...base, messages: question, ...fields }), (error) => {
      assert.ok(error instanceof (isQueue ? OpenAI.InternalServerError : type), String(error));
      assert.equal(error.status, isQueue ? 500 : status);
      assert.match(error.message, says);
      assert.equal(error.code, status);
      return true;
    });
    // A stream that is refused is an error too, before its first chunk.
    await assert.rejects(async () => {
      for await (const chunk of await chat.create({ ...base, messages: question, stream: true, ...fields })) {
        assert.ok(!chunk, "a refused stream has no chunk");
      }
    }, says);
  }
}

async function aborts() {
  const endless = { ...base, messages: question, max_tokens: 1500, ignore_eos: true };
  const stream = await chat.create({ ...endless, stream: true });
  let seen = 0;
  for await (const chunk of stream) {
    assert.ok(chunk.id);
    if (++seen === 3) stream.controller.abort();
  }
  assert.ok(seen >= 3 && seen < 1500);
  await assert.rejects(chat.create(endless, { timeout: 200 }), OpenAI.APIConnectionTimeoutError);
  const controller = new AbortController();
  setTimeout(() => controller.abort(), 100);
  await assert.rejects(chat.create(endless, { signal: controller.signal }), OpenAI.APIUserAbortError);
  assert.ok((await chat.create({ ...base, messages: question })).choices[0].message.content);
}

for (const session of [wholeAndStreamed, toolLoop, runTools, structured, errors, aborts]) {
  console.log(session.name);
  await session();
}
console.log("ok");
