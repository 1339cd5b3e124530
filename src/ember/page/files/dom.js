// Elements, made without markup: text from a model or a server is only ever text.

const $ = (id) => document.getElementById(id);

// An element. Attributes that begin with "on" are listeners; true and false are attributes that are there or not.
function make(tag, attributes = {}, ...children) {
  return filled(document.createElement(tag), attributes, children);
}

function draw(tag, attributes = {}, ...children) {
  return filled(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);
}

function filled(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (typeof value === "boolean") element.toggleAttribute(name, value);
    else if (value !== undefined && value !== null) element.setAttribute(name, value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

const LONGEST_SAID = 1000; // characters: a long block of code is rather read where it is

// Tell a screen reader, when it is done with what it says now. Nothing of it is seen.
function say(text) {
  const said = $("said");
  said.append(make("p", {}, text.length > LONGEST_SAID ? `${text.slice(0, LONGEST_SAID)} …` : text));
  while (said.childElementCount > 20) said.firstElementChild.remove();
}

async function copy(text) {
  if (navigator.clipboard) {
    await navigator.clipboard.writeText(text);
    return;
  }
  const area = make("textarea", { class: "hidden-text" }); // a page that came over plain HTTP has no clipboard
  area.value = text;
  (document.querySelector("dialog:modal") ?? document.body).append(area);
  area.select();
  const done = document.execCommand("copy");
  area.remove();
  if (!done) throw new Error("the browser does not allow it");
}

// `read` returns the text that is copied.
function copyButton(read, label = "Copy") {
  const button = make("button", { type: "button", class: "quiet" }, label);
  button.addEventListener("click", async () => {
    const focused = document.activeElement;
    let said = "Copied";
    try {
      await copy(read());
    } catch (error) {
      said = `Not copied: ${error.message}`;
    }
    focused?.focus();
    button.textContent = said;
    say(said);
    setTimeout(() => (button.textContent = label), 1500);
  });
  return button;
}

function codeBlock(text, language = "") {
  const code = make("code", {}, text);
  const name = language || "text";
  const figure = make(
    "figure",
    { class: "code" },
    make("figcaption", {}, make("span", { translate: "no" }, name), copyButton(() => code.textContent)),
    make("pre", { dir: "ltr", tabindex: "0", role: "region", "aria-label": `Code, ${name}`, translate: "no" }, code),
  );
  return { figure, code };
}

// Buttons of which one is chosen. Returns a function that chooses one by its value.
function choices(group, entries, onchoose) {
  const buttons = entries.map(([value, label]) =>
    make("button", { type: "button", "aria-pressed": "false", "data-value": value, onclick: () => choose(value) }, label),
  );
  group.replaceChildren(...buttons);
  function choose(value) {
    for (const button of buttons) button.setAttribute("aria-pressed", String(button.dataset.value === value));
    onchoose(value);
  }
  return choose;
}

function asSeconds(seconds) {
  if (seconds === undefined || seconds === null || Number.isNaN(seconds)) return "–";
  if (seconds < 1) return `${Math.round(seconds * 1000)} ms`;
  return seconds < 100 ? `${seconds.toFixed(seconds < 10 ? 2 : 1)} s` : `${Math.floor(seconds / 60)} min ${Math.round(seconds % 60)} s`;
}

function asNumber(number) {
  return Number.isFinite(number) ? number.toLocaleString("en", { maximumFractionDigits: number < 100 ? 1 : 0 }) : "–";
}
