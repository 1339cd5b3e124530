// A request as code: curl, and Python with the OpenAI SDK where it has the route.

const FOR_SDK = {
  "/v1/chat/completions": ["chat.completions.create", new Set(["model", "messages", "temperature", "top_p", "max_tokens", "stop", "seed", "response_format", "tools", "tool_choice", "stream", "stream_options", "n", "logprobs", "top_logprobs", "presence_penalty", "frequency_penalty", "logit_bias", "parallel_tool_calls", "reasoning_effort", "user"])],
  "/v1/embeddings": ["embeddings.create", new Set(["model", "input", "encoding_format", "dimensions", "user"])],
};

function asCurl(url, body) {
  const lines = [`curl ${body?.stream ? "-N " : ""}${quoted(url)}`];
  if (apiKey !== null) lines.push('-H "Authorization: Bearer $API_KEY"');
  if (body !== undefined) lines.push("-H 'Content-Type: application/json'", `-d ${quoted(JSON.stringify(body, null, 2))}`);
  return lines.join(" \\\n  ");
}

function quoted(text) {
  return `'${text.replaceAll("'", "'\\''")}'`;
}

function asPython(url, route, body) {
  const [name, fields] = FOR_SDK[route] ?? [];
  const key = apiKey === null ? '"none"' : 'os.environ["API_KEY"]';
  const imports = apiKey === null ? [] : ["import os", ""];
  if (!name) {
    const headers = apiKey === null ? [] : ["    headers={\"Authorization\": f\"Bearer {os.environ['API_KEY']}\"},"];
    return [
      ...imports,
      "import httpx",
      "",
      "answer = httpx.post(",
      `    ${literal(url)},`,
      ...headers,
      `    json=${literal(body, 1)},`,
      "    timeout=None,",
      ")",
      "print(answer.json())",
    ].join("\n");
  }
  const own = Object.entries(body).filter(([field]) => fields.has(field) && field !== "stream_options");
  const extra = Object.fromEntries(Object.entries(body).filter(([field]) => !fields.has(field)));
  const base = url.slice(0, -route.length + "/v1".length);
  const lines = [...imports, "from openai import OpenAI", "", `client = OpenAI(base_url=${literal(base)}, api_key=${key})`];
  lines.push(`${body.stream ? "stream" : "answer"} = client.${name}(`);
  for (const [field, value] of own) lines.push(`    ${field}=${literal(value, 1)},`);
  if (Object.keys(extra).length) lines.push(`    extra_body=${literal(extra, 1)},`);
  lines.push(")");
  if (body.stream) {
    lines.push("for chunk in stream:", "    if chunk.choices:", '        print(chunk.choices[0].delta.content or "", end="", flush=True)');
  } else if (route === "/v1/embeddings") lines.push("for item in answer.data:", "    print(item.index, item.embedding[:8])");
  else lines.push("print(answer.choices[0].message)");
  return lines.join("\n");
}

// A value of JSON as Python writes it, in several lines where it is long.
function literal(value, depth = 0) {
  if (value === null || value === undefined) return "None";
  if (value === true) return "True";
  if (value === false) return "False";
  if (typeof value !== "object") return JSON.stringify(value);
  const isList = Array.isArray(value);
  const parts = isList
    ? value.map((each) => literal(each, depth + 1))
    : Object.entries(value).map(([name, each]) => `${JSON.stringify(name)}: ${literal(each, depth + 1)}`);
  const [open, close] = isList ? "[]" : "{}";
  const short = open + parts.join(", ") + close;
  if (short.length < 80 && !short.includes("\n")) return short;
  const indent = "    ".repeat(depth + 1);
  return `${open}\n${parts.map((part) => `${indent}${part},`).join("\n")}\n${"    ".repeat(depth)}${close}`;
}

// Show a request as code in a dialog. `route` is that of the OpenAI API, or null for others.
function showCode(url, route, body) {
  const full = new URL(url, location.href).href;
  const texts = { curl: asCurl(full, body), python: asPython(full, route, body) };
  const languages = [["curl", "curl"], ["python", FOR_SDK[route] ? "Python, OpenAI SDK" : "Python"]];
  const choose = choices($("code-languages"), languages, (value) => {
    $("code-text").replaceChildren(codeBlock(texts[value], value === "curl" ? "shell" : value).figure);
  });
  choose("curl");
  $("code-dialog").showModal();
}
