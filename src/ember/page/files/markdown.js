// Markdown as elements. Text that a model wrote never becomes markup: HTML in it is shown as it is, images are links.
// A model may write anything, so each pattern reads a line in linear time: no two repetitions beside each other take the same
// characters, and what has to be read from the end is read by hand.

const DEPTH = 8; // of lists and quotes in each other
const FENCE = /^ {0,3}(`{3,}|~{3,})/;
const FENCE_END = /^ {0,3}(`{3,}|~{3,})[ \t]*$/;
const HEADING = /^ {0,3}(#{1,6})(?![^ \t])/;
const LINE_END = /[\r\u2028\u2029]/; // the ends of lines within a line: only "\n" divides lines here
const RULE = /^ {0,3}(?:(?:\*[ \t]*){3,}|(?:-[ \t]*){3,}|(?:_[ \t]*){3,})$/;
const ITEM = /^( *)([-*+]|\d{1,9}[.)])(?: +(?! )(.*))?$/;
const QUOTE = /^ {0,3}> ?/;
const DELIMITERS = /^ *(?:\| *)?:?-+:? *(?:\| *:?-+:? *)*(?:\| *)?$/;
const INDENT = "    ";

// The blocks of some lines: their kind, their lines from `from` to `to`, and what their kind needs.
function blocksOf(lines, depth = 0) {
  const blocks = [];
  let at = 0;
  while (at < lines.length) {
    if (!lines[at].trim()) {
      at += 1;
      continue;
    }
    const block = blockAt(lines, at, depth);
    blocks.push({ ...block, from: at });
    at = block.to;
  }
  return blocks;
}

function blockAt(lines, at, depth) {
  const line = lines[at];
  const fence = fenceOf(line);
  if (fence) return fenced(lines, at, fence);
  const heading = headingOf(line);
  if (heading) return { kind: "heading", ...heading, to: at + 1 };
  if (RULE.test(line)) return { kind: "rule", to: at + 1 };
  if (QUOTE.test(line) && depth < DEPTH) {
    let to = at;
    while (to < lines.length && QUOTE.test(lines[to])) to += 1;
    return { kind: "quote", lines: lines.slice(at, to).map((each) => each.replace(QUOTE, "")), to };
  }
  if (ITEM.test(line) && depth < DEPTH) return list(lines, at);
  if (isTable(lines, at)) {
    let to = at + 2;
    while (to < lines.length && lines[to].includes("|")) to += 1;
    return { kind: "table", lines: lines.slice(at, to), to };
  }
  if (line.startsWith(INDENT)) {
    let to = at;
    while (to < lines.length && (lines[to].startsWith(INDENT) || !lines[to].trim())) to += 1;
    while (!lines[to - 1].trim()) to -= 1;
    return { kind: "code", language: "", text: lines.slice(at, to).map((each) => each.slice(4)).join("\n"), to };
  }
  let to = at + 1;
  while (to < lines.length && !interrupts(lines, to, depth)) to += 1;
  return { kind: "paragraph", text: lines.slice(at, to).map((each) => each.trimStart()).join("\n"), to };
}

// Whether a line ends the paragraph before it.
function interrupts(lines, at, depth) {
  const line = lines[at];
  if (!line.trim() || fenceOf(line) || headingOf(line) || RULE.test(line)) return true;
  if (depth < DEPTH && (QUOTE.test(line) || /^ {0,3}(?:[-*+]|1[.)]) +\S/.test(line))) return true;
  return isTable(lines, at);
}

function isTable(lines, at) {
  const next = lines[at + 1];
  if (next === undefined || !lines[at].includes("|") || !next.includes("|") || !DELIMITERS.test(next)) return false;
  return cellsOf(lines[at]).length === cellsOf(next).length;
}

// What a line that opens a block of code says: { mark, info }; null for other lines.
function fenceOf(line) {
  const match = FENCE.exec(line);
  if (!match || line.includes("`", match[0].length)) return null;
  return { mark: match[1], info: line.slice(match[0].length) };
}

// What a line that is a heading says: { level, text } without the `#`s at its end; null for other lines.
function headingOf(line) {
  const match = HEADING.exec(line);
  if (!match || LINE_END.test(line)) return null;
  const whole = withoutEnd(line.slice(match[0].length), " \t");
  const open = withoutEnd(whole, "#");
  const text = withoutEnd(open, " \t");
  const isClosed = text !== "" && text !== open;
  return { level: match[1].length, text: (isClosed ? text : whole).replace(/^[ \t]+/, "") };
}

// A text without those of the characters that are at its end.
function withoutEnd(text, characters) {
  let end = text.length;
  while (end > 0 && characters.includes(text[end - 1])) end -= 1;
  return text.slice(0, end);
}

function fenced(lines, at, { mark, info }) {
  const closes = (end) => end !== undefined && end[0] === mark[0] && end.length >= mark.length;
  let to = at + 1;
  while (to < lines.length && !closes(FENCE_END.exec(lines[to])?.[1])) to += 1;
  const text = lines.slice(at + 1, to).join("\n");
  return { kind: "code", language: info.trim().split(/\s/)[0], text, to: Math.min(to + 1, lines.length) };
}

function list(lines, at) {
  const first = ITEM.exec(lines[at]);
  const isOrdered = /\d/.test(first[2]);
  const items = [];
  let to = at;
  while (to < lines.length) {
    const item = ITEM.exec(lines[to]);
    if (!item || item[1].length > first[1].length + 3 || item[2].at(-1) !== first[2].at(-1) || RULE.test(lines[to])) break;
    const indent = item[1].length + item[2].length + 1;
    const inset = " ".repeat(indent);
    const own = [item[3] ?? ""];
    to += 1;
    while (to < lines.length) {
      const line = lines[to];
      if (!line.trim()) {
        const next = filledLine(lines, to + 1);
        if (next < 0 || !lines[next].startsWith(" ".repeat(Math.min(indent, 2)))) break;
        for (; to < next; to += 1) own.push("");
        continue;
      }
      if (line.startsWith(inset)) own.push(line.slice(indent));
      else if (/^ {2,}/.test(line) && ITEM.test(line) && line.search(/\S/) > item[1].length) own.push(line.trimStart());
      else if (ITEM.test(line) || !own.at(-1) || fenceOf(line) || headingOf(line) || QUOTE.test(line)) break;
      else own.push(line.trimStart());
      to += 1;
    }
    items.push(own);
    const next = filledLine(lines, to);
    if (next < 0 || !ITEM.test(lines[next])) break;
    to = next;
  }
  return { kind: "list", isOrdered, start: isOrdered ? parseInt(first[2], 10) : 1, items, to };
}

// The place of the next line from `at` on that is not blank; -1 where there is none.
function filledLine(lines, at) {
  while (at < lines.length && !lines[at].trim()) at += 1;
  return at < lines.length ? at : -1;
}

function cellsOf(line) {
  const cells = line.trim().replace(/^\|/, "").replace(/\|$/, "").split(/(?<!\\)\|/);
  return cells.map((cell) => cell.trim().replaceAll("\\|", "|"));
}

// The element of a block. A direction is found for each block at the top; what is in a list, a quote or a table has that of
// the whole, since an element with a direction of its own does not count for the one around it.
function blockElement(block, depth = 0) {
  const element = plainElement(block, depth);
  const text = block.kind === "table" ? element.firstChild : ["rule", "code"].includes(block.kind) ? null : element;
  if (depth === 0) text?.setAttribute("dir", "auto"); // last: a browser looks for the direction at each change after it
  return element;
}

function plainElement(block, depth) {
  switch (block.kind) {
    case "heading":
      return inline(make(`h${Math.min(block.level + 1, 6)}`, { class: `h-${block.level}` }), block.text);
    case "rule":
      return make("hr");
    case "code":
      return codeBlock(block.text, block.language).figure;
    case "quote":
      return make("blockquote", {}, ...blocksOf(block.lines, depth + 1).map((each) => blockElement(each, depth + 1)));
    case "list": {
      const element = make(block.isOrdered ? "ol" : "ul", { start: block.start === 1 ? null : block.start });
      for (const lines of block.items) {
        const item = make("li");
        blocksOf(lines, depth + 1).forEach((each, index) => {
          if (each.kind === "paragraph" && index === 0) inline(item, each.text);
          else item.append(blockElement(each, depth + 1));
        });
        element.append(item);
      }
      return element;
    }
    case "table": {
      const [head, marks, ...rows] = block.lines.map(cellsOf);
      const sides = marks.map((mark) => (/:$/.test(mark) ? (mark.startsWith(":") ? "center" : "end") : "start"));
      const row = (cells, tag) =>
        make("tr", {}, ...cells.slice(0, head.length).map((cell, i) => inline(make(tag, { class: `to-${sides[i]}` }), cell)));
      const body = make("tbody");
      for (const cells of rows) body.append(row(cells, "td")); // one by one: a call has room for so many arguments
      const table = make("table", {}, make("thead", {}, row(head, "th")), body);
      return make("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Table" }, table);
    }
    default:
      return inline(make("p"), block.text);
  }
}

const LINK = /(!?)\[((?:[^[\]\\]|\\.){0,500})\]\(\s*<?((?:[^\s<>()\\]|\([^\s<>()]{0,500}\)){1,2000})>?(?:\s+"[^"]{0,500}")?\s*\)/y;
const ANGLE = /<((?:https?:\/\/|mailto:)[^\s<>]{1,2000})>/y;
const BARE = /https?:\/\/[^\s<>"`\]]{1,2000}/y;
const SPECIAL = /[\\`*_~[!<\nh]/g;

// Add text with its emphasis, code and links to an element. Returns the element.
function inline(element, text, isLink = false) {
  const nodes = []; // strings and elements
  const openers = []; // { char, count, place in nodes }
  let runs = null; // of backticks, once there is one
  // Text is put beside text, since elements with many pieces of text are slow. The place of an opener stays its own.
  const put = (piece) => {
    const last = nodes.length - 1;
    if (typeof nodes[last] === "string" && openers.at(-1)?.place !== last) nodes[last] += piece;
    else nodes.push(piece);
  };
  let at = 0;
  while (at < text.length) {
    SPECIAL.lastIndex = at;
    const found = SPECIAL.exec(text)?.index ?? text.length;
    if (found > at) put(text.slice(at, found));
    at = found;
    if (at === text.length) break;
    const char = text[at];
    if (char === "\\" && /[!-/:-@[-`{-~]/.test(text[at + 1] ?? "")) {
      put(text[at + 1]);
      at += 2;
    } else if (char === "`") {
      const marks = /`+/y;
      marks.lastIndex = at;
      const mark = marks.exec(text)[0];
      runs ??= backticks(text);
      const end = closing(runs, at + mark.length, mark.length);
      if (end < 0) {
        put(mark);
        at += mark.length;
      } else {
        const inner = text.slice(at + mark.length, end).replaceAll("\n", " ");
        const isPadded = inner.startsWith(" ") && inner.endsWith(" ") && inner.trim() && !LINE_END.test(inner);
        nodes.push(make("code", { dir: "ltr" }, isPadded ? inner.slice(1, -1) : inner));
        at = end + mark.length;
      }
    } else if (char === "*" || char === "_" || char === "~") {
      at = emphasis(text, at, nodes, openers, put);
    } else if (char === "\n") {
      nodes.push(make("br"));
      at += 1;
    } else {
      const link = isLink ? null : linkAt(text, at, char);
      if (link && typeof link.node !== "string") nodes.push(link.node);
      else put(link?.node ?? char);
      at += link ? link.length : 1;
    }
  }
  for (const opener of openers) nodes[opener.place] = opener.char.repeat(opener.count);
  return filledWith(element, nodes);
}

// Add elements and text, of which pieces that stand together become one.
function filledWith(element, nodes) {
  let text = "";
  for (const node of nodes) {
    if (typeof node === "string") {
      text += node;
      continue;
    }
    if (text) element.append(text);
    text = "";
    element.append(node);
  }
  if (text) element.append(text);
  return element;
}

// The places of the runs of backticks, the last first, by their length.
function backticks(text) {
  const runs = new Map();
  for (const { 0: run, index } of text.matchAll(/`+/g)) {
    if (!runs.has(run.length)) runs.set(run.length, []);
    runs.get(run.length).push(index);
  }
  for (const places of runs.values()) places.reverse();
  return runs;
}

// The place of the next run of that length; -1 where there is none. Runs before `from` are forgotten.
function closing(runs, from, length) {
  const places = runs.get(length) ?? [];
  while (places.length && places.at(-1) < from) places.pop();
  return places.at(-1) ?? -1;
}

// Read a run of marks: close what it closes, and keep it as an opener otherwise. Returns the place behind it.
function emphasis(text, at, nodes, openers, put) {
  const char = text[at];
  let end = at;
  while (text[end] === char) end += 1;
  const before = text[at - 1] ?? " ";
  const after = text[end] ?? " ";
  const isWord = (each) => /[\p{L}\p{N}]/u.test(each);
  const opens = !/\s/.test(after) && (char !== "_" || !isWord(before));
  const closes = !/\s/.test(before) && (char !== "_" || !isWord(after));
  let count = end - at;
  if (count > 3 || (char === "~" && count !== 2)) {
    put(text.slice(at, end));
    return end;
  }
  while (closes && count > 0) {
    const index = openers.findLastIndex((opener) => opener.char === char);
    if (index < 0) break;
    for (const opener of openers.splice(index + 1)) nodes[opener.place] = opener.char.repeat(opener.count);
    const opener = openers[index];
    const used = Math.min(opener.count, count) >= 2 ? 2 : 1;
    if (char === "~" && used !== 2) break;
    const inner = nodes.splice(opener.place + 1);
    nodes.push(filledWith(make(char === "~" ? "s" : used === 2 ? "strong" : "em"), inner));
    opener.count -= used;
    count -= used;
    if (opener.count === 0) {
      nodes[opener.place] = "";
      openers.splice(index, 1);
    }
  }
  if (count > 0 && opens && openers.length < 50) {
    openers.push({ char, count, place: nodes.length });
    nodes.push("");
  } else if (count > 0) put(char.repeat(count));
  return end;
}

function linkAt(text, at, char) {
  if (char === "[" || char === "!") {
    LINK.lastIndex = at;
    const match = LINK.exec(text);
    if (!match) return null;
    const node = anchor(match[3]);
    if (!node) return { node: match[0], length: match[0].length };
    inline(node, (match[1] ? "image: " : "") + (match[2] || match[3]), true);
    return { node, length: match[0].length };
  }
  const isBare = char === "h" && !/\w/.test(text[at - 1] ?? "");
  if (char !== "<" && !isBare) return null;
  const pattern = char === "<" ? ANGLE : BARE;
  pattern.lastIndex = at;
  const match = pattern.exec(text);
  if (!match) return null;
  let address = match[1] ?? match[0];
  if (isBare) {
    address = withoutEnd(address, ".,;:!?*_~'\"");
    if (address.endsWith(")") && !address.includes("(")) address = address.slice(0, -1);
  }
  const node = anchor(address);
  if (!node) return null;
  node.append(address);
  return { node, length: isBare ? address.length : match[0].length };
}

// A link to another site, for addresses of the web and of mail alone.
function anchor(address) {
  let url;
  try {
    url = new URL(address);
  } catch {
    return null;
  }
  if (!["http:", "https:", "mailto:"].includes(url.protocol)) return null;
  return make("a", { href: url.href, target: "_blank", rel: "noopener noreferrer nofollow" });
}

// Markdown that grows. What is complete is never touched again, so that long answers stay fast.
class GrowingMarkdown {
  constructor(element, onblock = () => {}) {
    this.element = element;
    this.onblock = onblock; // gets the text of each block that is complete
    this.start = 0; // in the text, of the blocks that may still change
    this.open = []; // their elements
    this.code = null; // of the last block, if it is code: { text, node }
  }

  update(text, isComplete = false) {
    if (this.code && !isComplete && this.grow(text)) return;
    const lines = text.slice(this.start).split("\n");
    const blocks = blocksOf(lines);
    // The last line may still become another kind of line, and with it the end of the block before it.
    const isSettled = (index) => isComplete || (index + 1 < blocks.length && blocks[index + 1].from < lines.length - 1);
    for (const element of this.open) element.remove();
    this.open = [];
    this.code = null;
    let settled = 0;
    blocks.forEach((block, index) => {
      const element = blockElement(block);
      this.element.append(element);
      if (settled === index && isSettled(index)) {
        settled += 1;
        this.onblock(block.kind === "code" ? `Code: ${block.text}` : element.textContent);
      } else this.open.push(element);
    });
    const next = blocks[settled];
    this.start += lines.slice(0, next ? next.from : isComplete ? lines.length : 0).reduce((sum, line) => sum + line.length + 1, 0);
    this.start = Math.min(this.start, text.length);
    const last = blocks.at(-1);
    if (!isComplete && last?.kind === "code" && this.open.length === 1) {
      const node = this.open[0].querySelector("code").firstChild;
      const fence = fenceOf(lines[last.from]);
      if (node && fence && last.to === lines.length && text.endsWith(last.text)) {
        this.code = { length: text.length, node, mark: fence.mark };
      }
    }
  }

  // Add to an open block of code. Returns false when it may have been closed.
  grow(text) {
    const added = text.slice(this.code.length);
    const line = text.slice(text.lastIndexOf("\n", this.code.length - 1) + 1);
    if (line.includes(this.code.mark[0].repeat(3)) || text.length < this.code.length) {
      return false;
    }
    this.code.node.appendData(added);
    this.code.length = text.length;
    return true;
  }
}
