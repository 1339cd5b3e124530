// The server behind the page: requests with a key, its errors, its streams, and whether it is there.

const IS_PLATFORM = document.documentElement.dataset.server === "platform";
const ROOT = location.pathname.replace(/(?<!\/)\/+$/, ""); // where a proxy shows the server
const ENDPOINT = IS_PLATFORM ? `${ROOT}/v2/LOCAL` : ROOT;
const API = IS_PLATFORM ? `${ENDPOINT}/openai` : ROOT;

const HEALTH_SECONDS = 8; // a server that takes longer to say how it is counts as lost

let apiKey = null; // in memory only
let askingForKey = null;
let isKeyRefused = false; // the person closed the question; only what they do themselves asks again

// An error that the server answered, as it said it.
class ServerError extends Error {
  constructor(status, body) {
    const error = body?.error ?? body;
    const text = typeof error === "string" ? error : (error?.message ?? body?.message);
    super(text ? String(text) : `The server answered with status ${status}.`);
    this.status = status;
    this.kind = typeof error === "object" ? [error?.type, error?.param].filter(Boolean).join(", ") : "";
  }
}

// The server cannot be reached, or the connection broke.
class LostError extends Error {
  constructor() {
    super("The connection to the server was lost.");
  }
}

// A request. `body` is sent as JSON; `seconds` is how long the server may take; `isOwn` is a request that the page makes
// by itself. Returns the Response of a success. Raises ServerError, LostError, and the AbortError or TimeoutError of fetch.
async function ask(url, { method, body, signal, seconds, isOwn = false } = {}) {
  for (;;) {
    const headers = {};
    if (body !== undefined) headers["Content-Type"] = "application/json";
    if (apiKey !== null) headers.Authorization = `Bearer ${apiKey}`;
    const used = apiKey;
    let response;
    try {
      response = await fetch(url, {
        method: method ?? (body === undefined ? "GET" : "POST"),
        headers,
        body: body === undefined ? undefined : JSON.stringify(body),
        signal: seconds ? AbortSignal.timeout(seconds * 1000) : signal,
        cache: "no-store",
        credentials: "omit",
        redirect: "error",
      });
    } catch (error) {
      if (["AbortError", "TimeoutError"].includes(error.name)) throw error;
      connection.lose();
      throw new LostError();
    }
    connection.heard = new Date();
    if (response.ok) return response;
    if (response.status === 401 && !(isOwn && isKeyRefused)) {
      if (used !== apiKey || (await askForKey(used !== null))) continue;
    }
    throw await failure(response);
  }
}

async function failure(response) {
  const text = await response.text().catch(() => "");
  try {
    return new ServerError(response.status, JSON.parse(text));
  } catch {
    return new ServerError(response.status, text.slice(0, 2000));
  }
}

async function askJson(url, options) {
  const response = await ask(url, options);
  try {
    return await response.json();
  } catch (error) {
    if (["AbortError", "TimeoutError"].includes(error.name)) throw error;
    throw new LostError();
  }
}

// Ask the person for a key. Returns whether there is one now. Several requests share one question.
function askForKey(wasWrong) {
  askingForKey ??= new Promise((resolve) => {
    const dialog = $("key-dialog");
    $("key-text").textContent = wasWrong
      ? "The server does not accept this key."
      : "This server asks for a key. The page keeps it in memory until it is closed.";
    $("key").value = "";
    dialog.returnValue = "";
    dialog.addEventListener(
      "close",
      () => {
        const given = dialog.returnValue === "use" ? $("key").value.trim() : "";
        $("key").value = "";
        if (given) apiKey = given;
        isKeyRefused = !given;
        $("enter-key").hidden = !isKeyRefused;
        askingForKey = null;
        resolve(given !== "");
      },
      { once: true },
    );
    dialog.showModal();
    $("key").focus();
  });
  return askingForKey;
}

// The data of server-sent events. Raises LostError if the connection breaks.
async function* eventsOf(response) {
  const reader = response.body.getReader();
  const decoder = new TextDecoder();
  let rest = "";
  let data = [];
  try {
    for (;;) {
      let piece;
      try {
        piece = await reader.read();
      } catch (error) {
        if (error.name === "AbortError") throw error;
        connection.lose();
        throw new LostError();
      }
      rest += piece.done ? decoder.decode() : decoder.decode(piece.value, { stream: true });
      const lines = rest.split(/\r\n|\n|\r(?!$)/);
      rest = piece.done ? "" : lines.pop();
      for (const line of lines) {
        if (line === "") {
          if (data.length) yield data.join("\n");
          data = [];
        } else if (line.startsWith("data:")) {
          data.push(line.slice(line[5] === " " ? 6 : 5));
        }
      }
      if (piece.done) {
        if (data.length) yield data.join("\n");
        return;
      }
    }
  } finally {
    reader.cancel().catch(() => {}); // a reader that leaves ends the request
  }
}

// Whether the server is there: "connecting", "loading", "ready", "dead" or "lost". Listeners get each change.
const connection = {
  state: "connecting",
  listeners: [],
  failures: 0,
  timer: null,
  health: null, // of a platform
  heard: new Date(), // when the server answered last

  set(state) {
    if (state === this.state) return;
    const before = this.state;
    this.state = state;
    for (const listener of this.listeners) listener(state, before);
  },

  lose() {
    if (this.state === "lost") return;
    this.failures = 0;
    this.set("lost");
    this.later();
  },

  later() {
    clearTimeout(this.timer);
    const lost = Math.min(10, 1.5 ** this.failures);
    const seconds = this.state === "lost" ? lost : this.state === "ready" ? 5 : 1;
    if (this.state === "lost") showLost(this.heard, seconds);
    this.timer = setTimeout(() => this.look(), seconds * 1000);
  },

  async look() {
    clearTimeout(this.timer);
    if (document.hidden && this.state === "ready") {
      this.later();
      return;
    }
    try {
      this.set(await this.found());
      this.heard = new Date();
      this.failures = 0;
    } catch {
      if (this.state !== "lost") this.lose();
      this.failures += 1;
    }
    this.later();
  },

  async found() {
    const options = { cache: "no-store", credentials: "omit", redirect: "error", signal: AbortSignal.timeout(HEALTH_SECONDS * 1000) };
    if (IS_PLATFORM) {
      try {
        this.health = await askJson(`${ENDPOINT}/health`, { isOwn: true, seconds: HEALTH_SECONDS });
        return "ready";
      } catch (error) {
        if (error instanceof ServerError) return error.status === 401 ? "locked" : "dead";
        throw error;
      }
    }
    const health = await fetch(`${ROOT}/health`, options);
    if (health.ok) return "ready";
    const ping = await fetch(`${ROOT}/ping`, options);
    return ping.status === 204 ? "loading" : "dead";
  },

  // Wait until the server is there again. Raises AbortError.
  back(signal) {
    if (this.state === "ready") return Promise.resolve();
    return new Promise((resolve, reject) => {
      const listener = (state) => {
        if (state !== "ready") return;
        done();
        resolve();
      };
      const stop = () => {
        done();
        reject(new DOMException("stopped", "AbortError"));
      };
      const done = () => {
        this.listeners.splice(this.listeners.indexOf(listener), 1);
        signal.removeEventListener("abort", stop);
      };
      this.listeners.push(listener);
      signal.addEventListener("abort", stop);
    });
  },
};

function showLost(since, seconds) {
  const wait = seconds < 1.5 ? "in a second" : `in ${Math.round(seconds)} seconds`;
  const text = `No answer from ${location.host} since ${since.toLocaleTimeString()}. The page tries again ${wait}.`;
  const shown = $("lost").querySelector("span");
  if (shown && !$("lost").hidden) {
    shown.textContent = text;
    return;
  }
  $("lost").replaceChildren(
    make("span", { "aria-live": "off" }, text),
    make("button", { type: "button", class: "quiet", onclick: () => connection.look() }, "Try now"),
  );
  $("lost").hidden = false;
}
