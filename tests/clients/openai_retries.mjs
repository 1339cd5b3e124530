// OpenAI's SDK for Node and Vercel's AI SDK at a server that is too busy: node --input-type=module - BASE_URL <
// openai_retries.mjs, in the directory whose node_modules has the packages. It says how many requests were refused.
import assert from "node:assert/strict";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { generateText, RetryError } from "ai";
import OpenAI from "openai";

const baseURL = process.argv[2];
const AT_ONCE = 5;
let refused = 0;
const counting = async (...given) => {
  const response = await fetch(...given);
  if (response.status === 503) refused += 1;
  return response;
};
const together = (one) => Promise.all(Array.from({ length: AT_ONCE }, one));
const body = {
  model: "demo",
  messages: [{ role: "user", content: "What is the capital of France?" }],
  max_tokens: 60,
  ignore_eos: true,
};

const client = new OpenAI({ baseURL, apiKey: "none", maxRetries: 60, fetch: counting });
const outcomes = await Promise.allSettled(
  Array.from({ length: AT_ONCE }, () => client.chat.completions.create(body, { maxRetries: 0 })),
);
const failures = outcomes.filter(({ status }) => status === "rejected").map(({ reason }) => reason);
assert.equal(failures.length, refused);
for (const failure of failures) {
  assert.ok(failure instanceof OpenAI.InternalServerError && failure.status === 503, String(failure));
  assert.match(failure.message, /MAX_NUM_QUEUED_REQS/);
  assert.ok(Number(failure.headers.get("retry-after")) > 0);
}
for (const answer of await together(() => client.chat.completions.create(body))) {
  assert.equal(answer.usage.completion_tokens, 60);
}
const reasons = await together(async () => {
  let last;
  for await (const chunk of await client.chat.completions.create({ ...body, stream: true })) {
    last = chunk.choices[0]?.finish_reason ?? last;
  }
  return last;
});
assert.deepEqual(new Set(reasons), new Set(["length"]));

const model = createOpenAICompatible({ name: "ember", baseURL, apiKey: "none", fetch: counting })("demo");
const options = { model, prompt: "Tell me a story about a fox.", temperature: 0, maxOutputTokens: 60 };
const texts = (await together(() => generateText({ ...options, maxRetries: 60 }))).map(({ text }) => text);
assert.ok(texts[0] && new Set(texts).size === 1);
const tried = await Promise.allSettled(Array.from({ length: AT_ONCE }, () => generateText({ ...options, maxRetries: 0 })));
for (const { status, reason } of tried) {
  if (status === "rejected") assert.ok(!RetryError.isInstance(reason) && reason.statusCode === 503, String(reason));
}
console.log(`${refused} refused`);
