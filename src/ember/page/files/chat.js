// The chat: the conversation, its requests, and what is done with an answer.

const CHAT_ROUTE = "/v1/chat/completions";
const IDEAS = ["What is the capital of France?", "Explain in three sentences how a language model writes.", "Write a table of three planets with their moons."];

const chat = {
  turns: [], // { message, element } in order; an answer's message may be null
  running: null, // the AbortController of the request in flight
  follows: true, // whether the view stays at the end of the conversation

  start() {
    for (const idea of IDEAS) {
      $("ideas").append(make("li", {}, make("button", { type: "button", class: "idea", onclick: () => this.send(idea) }, idea)));
    }
    $("composer").addEventListener("submit", (event) => {
      event.preventDefault();
      this.send($("prompt").value);
    });
    $("prompt").addEventListener("keydown", (event) => {
      if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
      event.preventDefault();
      this.send($("prompt").value);
    });
    $("prompt").addEventListener("input", fitPrompt);
    $("stop").addEventListener("click", () => this.stop());
    document.addEventListener("keydown", (event) => {
      if (event.key === "Escape" && this.running && !document.querySelector("dialog:modal")) this.stop();
    });
    $("new-chat").addEventListener("click", () => this.clear());
    $("thread").addEventListener("scroll", () => {
      const { scrollHeight, scrollTop, clientHeight } = $("thread");
      this.follows = scrollHeight - scrollTop - clientHeight < 60;
      $("jump").hidden = this.follows;
    }, { passive: true });
    $("jump").addEventListener("click", () => this.toEnd(true));
  },

  toEnd(always = false) {
    if (always) this.follows = true;
    if (this.follows) $("thread").scrollTop = $("thread").scrollHeight;
  },

  stop() {
    this.running?.abort();
  },

  clear() {
    this.stop();
    for (const { element } of this.turns) element.remove();
    this.turns = [];
    $("turns").querySelectorAll(".error").forEach((each) => each.remove());
    $("welcome").hidden = false;
    $("prompt").focus();
    say("A new conversation");
  },

  send(text) {
    if (this.running || !text.trim()) return;
    const settings = this.settings();
    if (!settings) return;
    $("prompt").value = "";
    fitPrompt();
    this.addUser(text);
    this.run(settings);
  },

  addUser(text) {
    $("welcome").hidden = true;
    const bubble = make("div", { class: "bubble", dir: "auto" }, text);
    const turn = { message: { role: "user", content: text } };
    const edit = make("button", { type: "button", class: "quiet", onclick: () => this.edit(turn) }, "Edit");
    turn.element = make("article", { class: "turn user", "aria-label": "You" }, bubble, make("div", { class: "row" }, edit, copyButton(() => text)));
    $("turns").append(turn.element);
    this.turns.push(turn);
  },

  // Take a message of the user, and all after it, back into the field for the next.
  edit(turn) {
    if (this.running) return;
    const text = turn.message.content;
    this.cut(this.turns.indexOf(turn));
    $("prompt").value = text;
    fitPrompt();
    $("prompt").focus();
    if (!this.turns.length) $("welcome").hidden = false;
  },

  cut(from) {
    for (const { element } of this.turns.splice(from)) element.remove();
    $("turns").querySelectorAll(":scope > .error").forEach((each) => each.remove());
  },

  again() {
    const settings = this.running ? null : this.settings();
    if (!settings) return;
    while (this.turns.length && !["user", "tool"].includes(this.turns.at(-1).message?.role)) this.cut(this.turns.length - 1);
    this.cut(this.turns.length);
    this.run(settings);
  },

  // The settings; null where a field is at fault, which is told beside it.
  settings() {
    try {
      return settingsOf();
    } catch (error) {
      if (!(error instanceof FieldError)) throw error;
      showFault(error);
      return null;
    }
  },

  request(settings) {
    const system = $("set-system").value;
    const messages = this.turns.map(({ message }) => message).filter(Boolean);
    if (system.trim()) messages.unshift({ role: "system", content: system });
    return { model: models.chosen(), messages, ...settings, stream: true, stream_options: { include_usage: true } };
  },

  async run(settings) {
    const body = this.request(settings);
    const controller = new AbortController();
    this.running = controller;
    this.showRunning(true);
    const answer = new Answer($("turns"), body.response_format !== undefined);
    answer.onpaint = () => this.toEnd();
    this.toEnd(true);
    const turn = { message: null, element: answer.element };
    this.turns.push(turn);
    let note = "";
    let failed = null;
    try {
      await this.stream(body, answer, controller.signal);
      if (!answer.reason) note = "The answer ended early";
    } catch (error) {
      if (error.name === "AbortError") note = "Stopped";
      else {
        failed = error;
        note = answer.text || answer.reasoning ? "Incomplete" : "";
      }
    }
    if (failed && !note) {
      this.turns.splice(this.turns.indexOf(turn), 1);
      answer.isDone = true;
      answer.element.remove();
    } else {
      answer.finish(note);
      turn.message = answer.message();
      this.addActions(turn, answer, body);
    }
    if (failed) this.showError(failed);
    this.running = null;
    this.showRunning(false);
    this.toEnd();
  },

  // Read the answer. A server that is lost before the first token is asked once more when it is back.
  async stream(body, answer, signal) {
    for (let tries = 1; ; tries += 1) {
      try {
        const response = await ask(API + CHAT_ROUTE, { body, signal });
        for await (const data of eventsOf(response)) {
          if (data === "[DONE]") return;
          const chunk = JSON.parse(data);
          if (chunk.error) throw new ServerError(chunk.error.code ?? 0, chunk);
          answer.add(chunk);
        }
        return;
      } catch (error) {
        if (!(error instanceof LostError) || tries > 1 || answer.first !== null) throw error;
        say("The connection to the server was lost. The question is sent again when it is back.");
        await connection.back(signal);
      }
    }
  },

  addActions(turn, answer, body) {
    const actions = make("div", { class: "row" });
    if (answer.text) actions.append(copyButton(() => answer.text));
    actions.append(
      make("button", { type: "button", class: "quiet", onclick: () => showCode(API + CHAT_ROUTE, CHAT_ROUTE, body) }, "As code"),
      make("button", { type: "button", class: "quiet", onclick: () => this.cutAfter(turn) && this.again() }, "Ask again"),
    );
    answer.foot.append(actions);
    if (answer.calls.length) this.askForResults(turn, answer);
  },

  // Take away what came after a turn. Returns false where that cannot be done.
  cutAfter(turn) {
    const index = this.turns.indexOf(turn);
    if (index < 0 || this.running) return false;
    this.cut(index + 1);
    return true;
  },

  // A field for each tool call's result, and a button that sends them.
  askForResults(turn, answer) {
    const fields = answer.calls.map((call, index) => {
      const id = `result-${crypto.getRandomValues(new Uint32Array(1))[0]}-${index}`;
      const field = make("textarea", { id, class: "mono", rows: "2", dir: "auto", spellcheck: "false" });
      call.element.append(make("div", { class: "field" }, make("label", { for: id }, `Result of ${call.name}`), field));
      return field;
    });
    const send = make("button", { type: "button", class: "primary" }, fields.length > 1 ? "Send the results" : "Send the result");
    send.addEventListener("click", () => {
      const settings = this.running ? null : this.settings();
      if (!settings || !this.cutAfter(turn)) return;
      answer.calls.forEach((call, index) => {
        const content = fields[index].value;
        const label = make("p", { class: "call-head" }, "result of ", make("code", { translate: "no" }, call.name));
        const element = make("article", { class: "turn result", "aria-label": `Result of ${call.name}` }, label, make("pre", { dir: "auto" }, content));
        $("turns").append(element);
        this.turns.push({ message: { role: "tool", tool_call_id: call.id, content }, element });
      });
      this.run(settings);
    });
    answer.foot.before(make("div", { class: "row" }, send));
  },

  showError(error) {
    const again = make("button", { type: "button", class: "quiet", onclick: () => this.again() }, "Ask again");
    $("turns").append(errorCard(error, again));
  },

  showRunning(is) {
    // What had the focus may be gone, such as the button of an error. A phone's keyboard is not called up by it.
    const hadFocus = [$("send"), $("stop"), document.body].includes(document.activeElement);
    $("send").hidden = is;
    $("stop").hidden = !is;
    if (hadFocus) (is ? $("stop") : matchMedia("(pointer: fine)").matches ? $("prompt") : $("send")).focus();
  },
};

function fitPrompt() {
  const field = $("prompt");
  field.style.height = "auto";
  field.style.height = `${Math.min(field.scrollHeight + 2, innerHeight * 0.4)}px`;
}
