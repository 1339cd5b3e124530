// One answer of the model as it comes: reasoning folded, text as Markdown or JSON, tool calls as cards, its figures.

class Answer {
  constructor(turns, isJson) {
    this.text = "";
    this.reasoning = "";
    this.calls = [];
    this.count = 1; // choices of the answer, of which the first is shown
    this.isJson = isJson;
    this.began = performance.now();
    this.first = null; // when the first token came
    this.thought = null; // when the reasoning ended
    this.wasPainted = 0;
    this.paintTook = 0;
    this.isWaiting = false;
    this.body = make("div", { class: "body" });
    this.parts = make("div", { class: "parts" });
    this.foot = make("div", { class: "foot" });
    this.element = make("article", { class: "turn answer", "aria-label": "Answer", "aria-busy": "true" }, this.parts, this.body, this.foot);
    this.waiting = make("p", { class: "waiting" }, make("span", { class: "hidden-text" }, "Waiting for the first token"), make("i"), make("i"), make("i"));
    this.body.append(this.waiting);
    this.markdown = new GrowingMarkdown(this.body, say);
    turns.append(this.element);
  }

  // Take in a chunk of the stream.
  add(chunk) {
    if (chunk.usage) this.usage = chunk.usage;
    const choice = chunk.choices?.find((each) => !each.index);
    this.count = Math.max(this.count, ...(chunk.choices ?? []).map((each) => each.index + 1));
    if (!choice) return;
    const delta = choice.delta ?? choice.message ?? {};
    const reasoning = delta.reasoning ?? delta.reasoning_content ?? "";
    if (this.first === null && (delta.content || reasoning || delta.tool_calls?.length)) this.first = performance.now();
    if (delta.content || delta.tool_calls?.length) this.thought ??= performance.now();
    this.reasoning += reasoning;
    this.text += delta.content ?? "";
    for (const call of delta.tool_calls ?? []) this.addCall(call);
    if (choice.finish_reason) this.reason = choice.finish_reason;
    this.schedule();
  }

  addCall({ index = this.calls.length, id, function: called = {} }) {
    const call = (this.calls[index] ??= { id: "", name: "", arguments: "" });
    if (id) call.id = id;
    if (called.name) call.name = called.name;
    call.arguments += called.arguments ?? "";
  }

  // Paint soon: once a frame, and less often when painting is slow.
  schedule() {
    if (this.isWaiting) return;
    this.isWaiting = true;
    const pause = Math.min(1000, this.paintTook * 3);
    const left = this.wasPainted + pause - performance.now();
    const paint = () => {
      this.isWaiting = false;
      if (!this.isDone) this.paint();
    };
    if (left > 16) setTimeout(paint, left);
    else if (document.hidden) setTimeout(paint, 200); // a hidden page has no frames
    else requestAnimationFrame(paint);
  }

  paint() {
    const begin = performance.now();
    if (this.text || this.calls.length) this.waiting.remove();
    if (this.reasoning) this.paintReasoning();
    if (this.text && this.isJson) this.paintJson();
    else if (this.text) this.markdown.update(this.text, this.isDone);
    this.paintCalls();
    this.wasPainted = performance.now();
    this.paintTook = this.wasPainted - begin;
    this.onpaint?.();
  }

  paintReasoning() {
    if (!this.fold) {
      this.foldTitle = make("span", {}, "Reasoning");
      this.foldText = make("div", { class: "fold-text", dir: "auto" });
      this.foldText.append("");
      this.fold = make("details", { class: "fold" }, make("summary", {}, this.foldTitle), this.foldText);
      this.parts.prepend(this.fold);
    }
    const node = this.foldText.firstChild;
    node.appendData(this.reasoning.slice(node.length));
    const isOver = this.thought !== null || this.isDone;
    const end = this.thought ?? performance.now();
    const took = asSeconds((end - (this.first ?? end)) / 1000);
    this.foldTitle.textContent = isOver ? `Reasoning, ${took}` : "Reasoning …";
  }

  paintJson() {
    if (!this.json) {
      this.json = codeBlock("", "json");
      this.body.append(this.json.figure);
    }
    let text = this.text;
    if (this.isDone) {
      try {
        text = JSON.stringify(JSON.parse(text), null, 2);
      } catch {
        // it ended early, and is shown as it came
      }
    }
    this.json.code.textContent = text;
  }

  paintCalls() {
    this.calls.forEach((call, index) => {
      if (!call.view) {
        const block = codeBlock("", "json");
        const name = make("code", { class: "call-name", translate: "no" });
        call.view = { name, code: block.code };
        call.element = make("section", { class: "call", "aria-label": "Tool call" }, make("p", { class: "call-head" }, make("span", {}, "calls "), name), block.figure);
        this.foot.before(call.element);
      }
      call.view.name.textContent = call.name;
      let text = call.arguments;
      if (this.isDone || index < this.calls.length - 1) {
        try {
          text = JSON.stringify(JSON.parse(text), null, 2);
        } catch {
          // shown as it came
        }
      }
      call.view.code.textContent = text;
    });
  }

  // The answer is over: `note` says how, where it did not end by itself.
  finish(note = "") {
    this.isDone = true;
    this.ended = performance.now();
    this.waiting.remove();
    this.paint();
    this.element.setAttribute("aria-busy", "false");
    const figures = this.figures();
    if (note) figures.unshift(note);
    this.foot.prepend(make("p", { class: "figures" }, figures.join(" · ")));
    say(note || `The answer is complete. ${figures[0] ?? ""}`);
  }

  figures() {
    const figures = [];
    const tokens = this.usage?.completion_tokens;
    if (tokens !== undefined) figures.push(`${asNumber(tokens)} ${tokens === 1 ? "token" : "tokens"}`);
    if (this.first !== null) figures.push(`first after ${asSeconds((this.first - this.began) / 1000)}`);
    const seconds = (this.ended - (this.first ?? this.began)) / 1000;
    if (tokens > 1 && seconds > 0.05) figures.push(`${asNumber((tokens - 1) / seconds)} tokens/s`);
    if (this.usage?.prompt_tokens !== undefined) figures.push(`prompt ${asNumber(this.usage.prompt_tokens)}`);
    if (this.reason && !["stop", "tool_calls"].includes(this.reason)) figures.push(this.reason === "length" ? "cut at the limit of tokens" : this.reason);
    if (this.count > 1) figures.push(`the first of ${this.count} choices`);
    return figures;
  }

  // The message for the next request; null if there is nothing in it.
  message() {
    if (!this.text && !this.calls.length) return null;
    const message = { role: "assistant", content: this.text || null };
    if (this.calls.length) {
      message.tool_calls = this.calls.map((call) => ({ id: call.id, type: "function", function: { name: call.name, arguments: call.arguments } }));
      if (this.reasoning) message.reasoning_content = this.reasoning;
    }
    return message;
  }
}

// An error as the server said it.
function errorCard(error, ...actions) {
  const head = error instanceof ServerError ? `Error ${error.status || ""}`.trim() : error instanceof LostError ? "Connection lost" : "The page failed";
  const kind = error.kind ? make("p", { class: "help" }, error.kind) : null;
  return make(
    "div",
    { class: "error", role: "alert" },
    make("p", { class: "error-head" }, head),
    make("p", { class: "error-text", dir: "auto" }, error.message),
    kind,
    actions.length ? make("div", { class: "row" }, ...actions) : null,
  );
}
