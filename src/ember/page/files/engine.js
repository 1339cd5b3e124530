// The live engine: what runs and waits, the pages of its cache and its speed, from /metrics; and the boot.

const LIVE_SECONDS = 2;
const KEPT = 60; // readings in a curve

// The samples of a Prometheus page that matter here: from a name to the sum over its labels, and the labels of the last.
function metricsOf(text) {
  const sums = new Map();
  const labels = new Map();
  for (const line of text.split("\n")) {
    const match = /^([a-zA-Z_:][\w:]*)(?:\{(.*)\})? (\S+)/.exec(line);
    if (!match || line.startsWith("#")) continue;
    const [, name, inner = "", value] = match;
    sums.set(name, (sums.get(name) ?? 0) + Number(value));
    labels.set(name, Object.fromEntries([...inner.matchAll(/(\w+)="((?:[^"\\]|\\.)*)"/g)].map((each) => [each[1], each[2]])));
  }
  return { value: (name) => sums.get(name), labels: (name) => labels.get(name) ?? {} };
}

class Tile {
  constructor(parent, label, hasCurve = false) {
    this.value = make("dd", {}, "–");
    this.note = make("dd", { class: "note" });
    this.element = make("dl", { class: "tile" }, make("dt", {}, label), this.value, this.note);
    this.readings = [];
    if (hasCurve) {
      this.line = draw("path", { class: "curve" });
      this.area = draw("path", { class: "curve-area" });
      this.element.append(draw("svg", { viewBox: `0 0 ${KEPT - 1} 24`, preserveAspectRatio: "none", "aria-hidden": "true" }, this.area, this.line));
    }
    parent.append(this.element);
  }

  show(text, note = "", reading = undefined, top = 0) {
    this.value.textContent = text;
    this.note.textContent = note;
    if (!this.line || reading === undefined) return;
    this.readings.push(reading);
    if (this.readings.length > KEPT) this.readings.shift();
    const most = Math.max(top, ...this.readings) || 1;
    const first = KEPT - this.readings.length;
    const points = this.readings.map((each, i) => `${first + i} ${(23 - (each / most) * 21).toFixed(2)}`);
    this.line.setAttribute("d", `M${points.join("L")}`);
    this.area.setAttribute("d", `M${first} 24L${points.join("L")}L${KEPT - 1} 24Z`);
  }
}

const engine = {
  timer: null,
  last: null, // the counters of the reading before
  hasBoot: false,

  start() {
    const tiles = $("tiles");
    this.running = new Tile(tiles, "Running", true);
    this.waiting = new Tile(tiles, "Waiting", true);
    this.pages = new Tile(tiles, "Pages in use", true);
    this.speed = new Tile(tiles, "Tokens/s", true);
    this.prompt = new Tile(tiles, "Prompt tokens/s", true);
    this.prefix = new Tile(tiles, "Prefix cache");
    $("engine-note").textContent = IS_PLATFORM ? "Each look is a job that a worker answers." : `Read every ${LIVE_SECONDS} seconds while it is shown.`;
    $("engine-ask").hidden = !IS_PLATFORM;
    $("engine-refresh").addEventListener("click", async () => {
      $("engine-refresh").disabled = true;
      this.hasBoot = false;
      await this.look();
      $("engine-refresh").disabled = false;
    });
  },

  show() {
    if (!IS_PLATFORM) this.look();
  },

  hide() {
    clearTimeout(this.timer);
    this.timer = null;
    this.last = null;
  },

  get isShown() {
    return !$("view-engine").hidden;
  },

  async look() {
    clearTimeout(this.timer);
    if (!document.hidden && connection.state === "ready") {
      try {
        const url = `${API}/metrics`;
        const own = { isOwn: !IS_PLATFORM };
        this.read(metricsOf(IS_PLATFORM ? String(await askJson(url, own)) : await (await ask(url, own)).text()));
        if (!this.hasBoot) {
          $("boot").replaceChildren(bootView(await askJson(`${API}/boot`, own)));
          this.hasBoot = true;
        }
      } catch (error) {
        if (!(error instanceof LostError)) $("boot").replaceChildren(errorCard(error));
        this.last = null;
      }
    }
    if (!IS_PLATFORM && this.isShown) this.timer = setTimeout(() => this.look(), LIVE_SECONDS * 1000);
  },

  read(metrics) {
    const now = { at: performance.now() / 1000, generated: metrics.value("vllm:generation_tokens_total"), prompt: metrics.value("vllm:prompt_tokens_total") };
    if (now.generated === undefined) {
      for (const tile of [this.running, this.waiting, this.pages, this.speed, this.prompt, this.prefix]) tile.show("–", "the engine is not up");
      this.last = null;
      return;
    }
    const running = metrics.value("vllm:num_requests_running");
    const waiting = metrics.value("vllm:num_requests_waiting");
    this.running.show(asNumber(running), "in the batch", running, 4);
    this.waiting.show(asNumber(waiting), "for the batch", waiting, 4);
    const share = metrics.value("vllm:kv_cache_usage_perc") ?? 0;
    const config = metrics.labels("vllm:cache_config_info");
    const count = Number(config.num_gpu_blocks);
    const note = count ? `${asNumber(Math.round(share * count))} of ${asNumber(count)}, ${config.block_size} tokens each` : "nothing is cached";
    this.pages.show(`${(share * 100).toFixed(share > 0 && share < 0.1 ? 1 : 0)} %`, note, share, 1);
    const seconds = this.last ? now.at - this.last.at : 0;
    const rate = (name) => (seconds > 0 ? Math.max(0, now[name] - this.last[name]) / seconds : undefined);
    const speed = rate("generated");
    this.speed.show(speed === undefined ? "–" : asNumber(speed), `${asNumber(now.generated)} since the start`, speed, 10);
    const prompt = rate("prompt");
    this.prompt.show(prompt === undefined ? "–" : asNumber(prompt), `${asNumber(now.prompt)} since the start`, prompt, 10);
    const asked = metrics.value("vllm:prefix_cache_queries_total") ?? 0;
    const hits = metrics.value("vllm:prefix_cache_hits_total") ?? 0;
    this.prefix.show(asked ? `${Math.round((hits / asked) * 100)} %` : "–", "of prompt tokens were there");
    this.last = now;
  },
};
