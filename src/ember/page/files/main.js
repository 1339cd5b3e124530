// The page: its views, the state of the server, and the models that it has.

const STATES = { connecting: "Connecting", loading: "Loading the model", ready: "Ready", dead: "The engine is down", lost: "No connection", locked: "Needs a key" };

const models = {
  names: [],
  tasks: null,
  isAsking: false,

  chosen() {
    return $("set-model").value || this.names[0];
  },

  // Ask for the models, once. On the platform a worker answers that as a job, so one must be there.
  async look() {
    if (this.tasks || this.isAsking || connection.state !== "ready") return;
    if (IS_PLATFORM && !connection.health?.workers.ready) return;
    this.isAsking = true;
    try {
      const { data } = await askJson(`${API}/v1/models`, { seconds: 60, isOwn: true });
      this.names = data.map(({ id }) => id);
      this.tasks = data[0]?.tasks ?? ["generate"];
      $("set-model").replaceChildren(...this.names.map((name) => make("option", { value: name }, name)));
      $("model-field").hidden = this.names.length < 2;
      $("model-name").textContent = this.names[0] ?? "";
      $("welcome-model").textContent = this.names[0] ?? "the model";
      document.title = this.names[0] ? `${this.names[0]} – Ember` : "Ember";
      if (!this.tasks.includes("generate")) pooling.offer(this.tasks);
      $("nav-try").textContent = this.tasks.includes("generate") ? "Chat" : "Try it";
      route();
    } catch {
      // it is asked again with the next look at the server
    } finally {
      this.isAsking = false;
    }
  },
};

const VIEWS = { engine: ["view-engine", () => engine], queue: ["view-queue", () => queue] };

function route() {
  const hash = location.hash.slice(1);
  const name = VIEWS[hash] && !(hash === "queue" && !IS_PLATFORM) ? hash : "try";
  const isChat = !models.tasks || models.tasks.includes("generate");
  const id = name === "try" ? (isChat ? "view-chat" : "view-pooling") : VIEWS[name][0];
  const wasHidden = $(id).hidden;
  for (const view of document.querySelectorAll("main > .view")) view.hidden = view.id !== id;
  for (const each of ["try", "engine", "queue"]) {
    if (each === name) $(`nav-${each}`).setAttribute("aria-current", "page");
    else $(`nav-${each}`).removeAttribute("aria-current");
  }
  for (const [each, [, of]] of Object.entries(VIEWS)) {
    if (each !== name) of().hide();
    else if (wasHidden) of().show();
  }
  return id;
}

function showState(state, before) {
  $("state").dataset.state = state;
  $("state-text").textContent = STATES[state];
  if (state !== "lost" && !$("lost").hidden) {
    $("lost").hidden = true;
    say("The server answers again");
  }
  if (before === "lost") {
    models.tasks = null; // it may be another server now
    engine.hasBoot = false;
  }
  models.look();
}

function start() {
  $("nav-queue").hidden = !IS_PLATFORM;
  startSettings();
  for (const part of [chat, pooling, engine, queue]) part.start();
  for (const button of document.querySelectorAll("dialog [data-close]")) button.addEventListener("click", () => button.closest("dialog").close());
  $("key-form").addEventListener("submit", (event) => {
    event.preventDefault();
    $("key-dialog").close("use");
  });
  $("key-cancel").addEventListener("click", () => $("key-dialog").close("cancel"));
  $("enter-key").addEventListener("click", async () => (await askForKey(false)) && connection.look());
  $("skip").addEventListener("click", (event) => {
    event.preventDefault();
    $("main").focus();
  });
  addEventListener("hashchange", () => document.querySelector(`#${route()} h1`)?.focus());
  document.addEventListener("visibilitychange", () => {
    if (document.hidden) return;
    connection.look();
  });
  connection.listeners.push(showState);
  const look = connection.look.bind(connection);
  connection.look = async () => {
    await look();
    models.look();
  };
  route();
  connection.look();
  if ($("view-chat").hidden === false && isWide.matches) $("prompt").focus();
}

start();
