// The settings of a chat request: what the fields say, as fields of the request's body.

const NUMBERS = ["temperature", "top_p", "top_k", "max_tokens", "seed"];
const WHOLE = new Set(["top_k", "max_tokens", "seed"]);

// A field that cannot be read. The page says so beside the field; what can be read is the server's to judge.
class FieldError extends Error {
  constructor(id, message) {
    super(message);
    this.field = id;
  }
}

function settingsOf() {
  for (const each of document.querySelectorAll("#settings [aria-invalid]")) clearFault(each);
  const body = {};
  for (const name of NUMBERS) {
    const text = $(`set-${name}`).value.trim();
    if (text === "") continue;
    const number = Number(text);
    if (!Number.isFinite(number)) throw new FieldError(`set-${name}`, `It must be a number, not ${text.slice(0, 40)}.`);
    if (WHOLE.has(name) && !Number.isInteger(number)) throw new FieldError(`set-${name}`, "It must be a whole number.");
    body[name] = number;
  }
  const stop = $("set-stop").value.split("\n").filter((line) => line !== "");
  if (stop.length) body.stop = stop;
  const format = $("set-format").value;
  if (format === "json_object") body.response_format = { type: "json_object" };
  if (format === "json_schema") {
    const schema = jsonOf("set-schema", "object") ?? {};
    body.response_format = { type: "json_schema", json_schema: { name: "answer", schema } };
  }
  const tools = jsonOf("set-tools", "list");
  if (tools) body.tools = tools;
  return { ...body, ...jsonOf("set-more", "object") };
}

function jsonOf(id, kind) {
  const text = $(id).value.trim();
  if (text === "") return undefined;
  let value;
  try {
    value = JSON.parse(text);
  } catch (error) {
    throw new FieldError(id, `It is not valid JSON: ${error.message}`);
  }
  const found = Array.isArray(value) ? "list" : value === null ? "null" : typeof value;
  if (found !== kind) throw new FieldError(id, `It must be a JSON ${kind === "list" ? "list" : "object"}.`);
  return value;
}

function showFault(error) {
  const field = $(error.field);
  if (!isWide.matches && !$("settings").open) openSettings();
  clearFault(field);
  const note = make("p", { class: "fault", id: `${error.field}-fault` }, error.message);
  field.setAttribute("aria-invalid", "true");
  field.setAttribute("aria-describedby", note.id);
  field.after(note);
  field.focus();
}

function clearFault(field) {
  field.removeAttribute("aria-invalid");
  field.removeAttribute("aria-describedby");
  $(`${field.id}-fault`)?.remove();
}

// On a wide window the settings are a column; on a narrow one they are a dialog over the page.
const isWide = matchMedia("(min-width: 900px)");

function placeSettings() {
  const dialog = $("settings");
  if (dialog.open) dialog.close();
  const focused = document.activeElement;
  if (isWide.matches) {
    dialog.show(); // takes the focus, which stays where it was
    focused?.focus();
  }
}

function openSettings() {
  const dialog = $("settings");
  if (dialog.open) dialog.close();
  dialog.showModal();
}

function startSettings() {
  isWide.addEventListener("change", placeSettings);
  placeSettings();
  $("open-settings").addEventListener("click", openSettings);
  $("close-settings").addEventListener("click", () => $("settings").close());
  $("set-format").addEventListener("change", showSchema);
  $("settings-form").addEventListener("input", (event) => clearFault(event.target));
  $("settings-form").addEventListener("submit", (event) => event.preventDefault());
  $("settings").addEventListener("cancel", (event) => isWide.matches && event.preventDefault());
  $("reset-settings").addEventListener("click", () => {
    for (const each of document.querySelectorAll("#settings [aria-invalid]")) clearFault(each);
    $("settings-form").reset();
    showSchema();
    say("The settings are the server's defaults");
  });
}

function showSchema() {
  $("schema-field").hidden = $("set-format").value !== "json_schema";
}
