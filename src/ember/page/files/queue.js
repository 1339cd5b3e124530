// The platform's queue: the endpoint's health, its jobs, and submitting one.

const QUEUE_SECONDS = 2;
const FINAL = new Set(["COMPLETED", "FAILED", "CANCELLED", "TIMED_OUT"]);
const STATUS_NAMES = { IN_QUEUE: "in the queue", IN_PROGRESS: "in progress", COMPLETED: "completed", FAILED: "failed", CANCELLED: "cancelled", TIMED_OUT: "timed out" };

const queue = {
  timer: null,
  rows: new Map(), // from a job's id to its row

  start() {
    const tiles = $("queue-tiles");
    this.tiles = {
      inQueue: new Tile(tiles, "In the queue", true),
      inProgress: new Tile(tiles, "In progress", true),
      completed: new Tile(tiles, "Completed"),
      failed: new Tile(tiles, "Failed"),
      workers: new Tile(tiles, "Workers"),
    };
    $("submit-input").value = JSON.stringify({ input: { messages: [{ role: "user", content: "Hello" }], sampling_params: { max_tokens: 32 } } }, null, 2);
    $("submit-form").addEventListener("submit", (event) => {
      event.preventDefault();
      this.submit();
    });
    $("submit-code").addEventListener("click", () => {
      const body = this.body();
      if (body !== undefined) showCode(`${ENDPOINT}/run`, null, body);
    });
    $("purge").addEventListener("click", () => this.act(`${ENDPOINT}/purge-queue`));
  },

  show() {
    this.look();
  },

  hide() {
    clearTimeout(this.timer);
  },

  async look() {
    clearTimeout(this.timer);
    if (!document.hidden && connection.state === "ready") {
      try {
        const [health, { jobs }] = await Promise.all([askJson(`${ENDPOINT}/health`, { isOwn: true }), askJson(`${ENDPOINT}/jobs`, { isOwn: true })]);
        connection.health = health;
        this.read(health, jobs);
      } catch (error) {
        if (!(error instanceof LostError)) $("queue-hint").replaceChildren(errorCard(error));
      }
    }
    if (!$("view-queue").hidden) this.timer = setTimeout(() => this.look(), QUEUE_SECONDS * 1000);
  },

  read(health, jobs) {
    for (const [name, count] of Object.entries(health.jobs)) this.tiles[name]?.show(asNumber(count), "", count, 4);
    const { ready, running, unhealthy } = health.workers;
    this.tiles.workers.show(asNumber(ready), [`${running} running`, unhealthy ? `${unhealthy} unhealthy` : null].filter(Boolean).join(", "));
    $("queue-hint").replaceChildren(...(ready ? [] : [noWorkers()]));
    $("no-jobs").hidden = jobs.length > 0;
    const known = new Set(jobs.map((job) => job.id));
    for (const [id, row] of this.rows) {
      if (!known.has(id)) {
        row.element.remove();
        this.rows.delete(id);
      }
    }
    const body = $("jobs");
    jobs.forEach((job, index) => {
      const row = this.rows.get(job.id) ?? this.addRow(job);
      if (body.children[index] !== row.element) body.insertBefore(row.element, body.children[index] ?? null);
      row.update(job);
    });
  },

  addRow(job) {
    const status = make("span", { class: "status" });
    const cells = { waited: make("td", { class: "number" }), ran: make("td", { class: "number" }), worker: make("td", { class: "worker", translate: "no" }) };
    const cancel = make("button", { type: "button", class: "quiet", "aria-label": `Cancel ${job.id}`, onclick: () => this.act(`${ENDPOINT}/cancel/${encodeURIComponent(job.id)}`) }, "Cancel");
    const retry = make("button", { type: "button", class: "quiet", "aria-label": `Retry ${job.id}`, onclick: () => this.act(`${ENDPOINT}/retry/${encodeURIComponent(job.id)}`) }, "Retry");
    const open = make("button", { type: "button", class: "job-id", translate: "no", title: job.id, onclick: () => this.open(job.id) }, job.id.slice(0, 13));
    const route = job.route ? make("span", { class: "route", translate: "no" }, job.route) : null;
    const element = make("tr", {}, make("th", { scope: "row" }, open, route), make("td", {}, status), cells.waited, cells.ran, cells.worker, make("td", {}, cancel, retry));
    const row = {
      element,
      update(now) {
        status.textContent = STATUS_NAMES[now.status] ?? now.status;
        status.dataset.status = now.status;
        const age = Date.now() / 1000 - now.created;
        cells.waited.textContent = asSeconds(now.delayTime !== undefined ? now.delayTime / 1000 : FINAL.has(now.status) ? null : age);
        cells.ran.textContent = asSeconds(now.executionTime !== undefined ? now.executionTime / 1000 : now.status === "IN_PROGRESS" ? age - now.delayTime / 1000 : null);
        cells.worker.textContent = now.workerId ?? "";
        cancel.hidden = FINAL.has(now.status);
        retry.hidden = !["FAILED", "TIMED_OUT"].includes(now.status);
      },
    };
    this.rows.set(job.id, row);
    return row;
  },

  async act(url) {
    try {
      await ask(url, { method: "POST" });
      $("queue-hint").replaceChildren();
    } catch (error) {
      $("queue-hint").replaceChildren(errorCard(error));
      return;
    }
    this.look();
  },

  async open(id) {
    let text;
    try {
      text = JSON.stringify(await askJson(`${ENDPOINT}/status/${encodeURIComponent(id)}`), null, 2);
    } catch (error) {
      $("job-text").replaceChildren(errorCard(error));
    }
    if (text !== undefined) $("job-text").replaceChildren(codeBlock(text, "json").figure);
    if (!$("job-dialog").open) $("job-dialog").showModal();
  },

  body() {
    const field = $("submit-input");
    clearFault(field);
    try {
      return JSON.parse(field.value);
    } catch (error) {
      showFault(new FieldError("submit-input", `It is not valid JSON: ${error.message}`));
      return undefined;
    }
  },

  async submit() {
    const body = this.body();
    $("submit-result").replaceChildren();
    if (body === undefined) return;
    try {
      const job = await askJson(`${ENDPOINT}/run`, { body });
      const open = make("button", { type: "button", class: "quiet", onclick: () => this.open(job.id) }, "Look at it");
      $("submit-result").replaceChildren(make("p", {}, "Submitted as ", make("code", { translate: "no" }, job.id), " "), open);
      this.look();
    } catch (error) {
      $("submit-result").replaceChildren(errorCard(error));
    }
  },
};

function noWorkers() {
  const command = `ember worker --model demo --platform ${location.origin}${ROOT}`;
  return make("div", { class: "card" }, make("p", {}, "No worker takes jobs now. Start one:"), codeBlock(command, "shell").figure);
}
