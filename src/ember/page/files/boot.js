// The boot as a waterfall: one row for each phase on a common axis, drawn from the report of /boot.

const MARK_NAMES = { ready: "ready", first_token: "first token" };

function bootView(report) {
  const phases = report.phases ?? [];
  const marks = Object.entries(report.marks ?? {});
  if (!phases.length) return make("p", { class: "help" }, "The report has no phases.");
  const ready = report.marks?.ready;
  // Work that was put off until after the boot is listed, but the axis is the boot's.
  const ends = phases.filter((phase) => ready === undefined || phase.start <= ready).map((phase) => Math.min(phase.end, ready ?? phase.end));
  const total = Math.max(...ends, ready ?? 0, 0.001) * 1.04;
  const place = (at) => `${Math.max(0, Math.min(1, at / total)) * 100}%`;
  const rows = phases.map((phase) => {
    const took = phase.end - phase.start;
    const fill = make("i", { class: `of-${phase.process === "engine" ? "engine" : "front"}` });
    fill.style.insetInlineStart = place(phase.start);
    fill.style.width = `max(2px, ${(Math.max(0, Math.min(total, phase.end) - Math.min(total, phase.start)) / total) * 100}%)`;
    const isLate = ready !== undefined && phase.start > ready;
    const track = make("td", { class: "track", "aria-hidden": "true" }, ...(ready === undefined || isLate ? [] : [line(place(ready))]), isLate ? make("span", { class: "late" }, "later") : fill);
    const detail = Object.entries(phase.detail ?? {}).map(([name, value]) => `${name.replaceAll("_", " ")} ${asDetail(name, value)}`).join(", ");
    return make(
      "tr",
      { class: isLate ? "is-late" : null },
      make("th", { scope: "row" }, make("span", { class: `process of-${phase.process === "engine" ? "engine" : "front"}` }, phase.process), " ", make("span", { class: "phase", translate: "no" }, phase.name)),
      track,
      make("td", { class: "number at" }, asSeconds(phase.start)),
      make("td", { class: "number" }, asSeconds(took)),
      make("td", { class: "detail", title: detail, translate: "no" }, detail),
    );
  });
  const head = make("tr", {}, ...[["Phase", null], ["", "track"], ["Start", "number at"], ["Took", "number"], ["Details", "detail"]].map(([text, kind]) => (text ? make("th", { scope: "col", class: kind }, text) : make("td", { class: kind, "aria-hidden": "true" }, ...ticks(total, place)))));
  const table = make("table", { class: "boot" }, make("caption", { class: "hidden-text" }, "Phases of the boot"), make("thead", {}, head), make("tbody", {}, ...rows));
  const summary = marks.map(([name, at]) => make("li", {}, make("b", {}, asSeconds(at)), ` ${MARK_NAMES[name] ?? name.replaceAll("_", " ")}`));
  const legend = make("p", { class: "legend" }, make("span", { class: "process of-front" }, "front"), make("span", { class: "process of-engine" }, "engine"));
  return make("div", {}, make("ul", { class: "marks", "aria-label": "Since the start of the process" }, ...summary), legend, make("div", { class: "scroll", tabindex: "0", role: "region", "aria-labelledby": "boot-title" }, table));
}

function asDetail(name, value) {
  if (typeof value === "object") return JSON.stringify(value);
  return /bytes$/.test(name) && value >= 1e6 ? `${asNumber(value / 1e6)} MB` : value;
}

function line(at) {
  const element = make("span", { class: "ready-line" });
  element.style.insetInlineStart = at;
  return element;
}

function ticks(total, place) {
  const rough = total / 4;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((each) => each * power).find((each) => each >= rough);
  const marks = [];
  for (let at = 0; at < total * 0.97; at += step) {
    const tick = make("span", { class: "tick" }, `${Number(at.toFixed(3))} s`);
    tick.style.insetInlineStart = place(at);
    marks.push(tick);
  }
  return marks;
}
