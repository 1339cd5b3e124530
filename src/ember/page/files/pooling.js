// The form for models that answer with vectors, classes or scores: similarities, classes of texts, and ranks.

const POOLING = {
  embed: { label: "Similarity", route: "/v1/embeddings", texts: "Texts, one a line", example: "The cat sat on the mat.\nA kitten rests on a rug.\nInterest rates rose in March." },
  classify: { label: "Classes", route: "/classify", texts: "Texts, one a line", example: "I loved every minute of it.\nThe delivery never came." },
  tokens: { label: "Tokens", route: "/pooling", texts: "Texts, one a line", example: "The cat sat on the mat." },
  rank: { label: "Ranking", route: "/rerank", texts: "Documents, one a line", query: "How do plants make sugar?", example: "Photosynthesis turns light, water and carbon dioxide into sugar.\nThe Eiffel Tower is in Paris.\nLeaves are green." },
};

const pooling = {
  task: null,
  tokenTask: null, // token_embed or token_classify, where the model does one of them

  start() {
    $("pooling-form").addEventListener("submit", (event) => {
      event.preventDefault();
      this.run();
    });
  },

  offer(tasks) {
    const names = [tasks.includes("embed") && "embed", tasks.includes("classify") && "classify", (tasks.includes("score") || tasks.includes("embed")) && "rank", tasks.some((task) => task.startsWith("token_")) && "tokens"].filter(Boolean);
    this.tokenTask = tasks.find((task) => task.startsWith("token_"));
    const choose = choices($("pooling-tasks"), names.map((name) => [name, POOLING[name].label]), (name) => this.choose(name));
    choose(names[0]);
  },

  choose(name) {
    this.task = name;
    const form = POOLING[name];
    $("pooling-texts-label").textContent = form.texts;
    $("query-field").hidden = form.query === undefined;
    $("pooling-query").value = form.query ?? "";
    $("pooling-texts").value = form.example;
    $("pooling-result").replaceChildren();
  },

  body(texts) {
    const model = models.chosen();
    if (this.task === "embed") return { model, input: texts, encoding_format: "float" };
    if (this.task === "classify") return { model, input: texts };
    if (this.task === "tokens") return { model, input: texts, task: this.tokenTask };
    return { model, query: $("pooling-query").value, documents: texts };
  },

  async run() {
    const task = this.task;
    const { route } = POOLING[task];
    const texts = $("pooling-texts").value.split("\n").filter((line) => line.trim());
    const body = this.body(texts);
    const result = $("pooling-result");
    $("pooling-send").disabled = true;
    try {
      const began = performance.now();
      const answer = await askJson(API + route, { body });
      const took = asSeconds((performance.now() - began) / 1000);
      const view = { embed: similarities, classify: classes, rank: ranks, tokens: tokenRows }[task](texts, answer);
      const tokens = answer.usage?.prompt_tokens ?? answer.usage?.total_tokens;
      const figures = [`${texts.length} ${texts.length === 1 ? "text" : "texts"}`, tokens !== undefined ? `${asNumber(tokens)} tokens` : null, took];
      if (task === "embed") figures.splice(1, 0, `${answer.data[0]?.embedding.length ?? 0} dimensions`);
      const code = make("button", { type: "button", class: "quiet", onclick: () => showCode(API + route, route, body) }, "As code");
      result.replaceChildren(view, make("p", { class: "figures" }, figures.filter(Boolean).join(" · ")), make("div", { class: "row" }, code));
    } catch (error) {
      result.replaceChildren(errorCard(error));
    } finally {
      $("pooling-send").disabled = false;
    }
  },
};

// A share of the whole; values beyond 1, which a model without an activation gives, are shares of the largest.
function bar(share) {
  const fill = make("i");
  fill.style.width = `${Math.max(0, Math.min(1, share)) * 100}%`;
  return make("span", { class: "bar", "aria-hidden": "true" }, fill);
}

// The cosines of all pairs, as a table whose cells are the stronger the more alike two texts are.
function similarities(texts, answer) {
  const vectors = answer.data.map(({ embedding }) => {
    const length = Math.hypot(...embedding) || 1;
    return embedding.map((value) => value / length);
  });
  const head = make("tr", {}, make("td"), ...texts.map((_, i) => make("th", { scope: "col" }, String(i + 1))));
  const rows = vectors.map((left, i) => {
    const cells = vectors.map((right) => {
      const cosine = left.reduce((sum, value, k) => sum + value * right[k], 0);
      const cell = make("td", { class: "heat" }, cosine.toFixed(2));
      cell.style.setProperty("--heat", `${Math.round(Math.max(0, Math.min(1, cosine)) * 45)}%`);
      return cell;
    });
    return make("tr", {}, make("th", { scope: "row", class: "text", dir: "auto" }, `${i + 1} ${texts[i]}`), ...cells);
  });
  const table = make("table", { class: "matrix" }, make("caption", {}, "Cosine similarity"), make("thead", {}, head), make("tbody", {}, ...rows));
  return make("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Similarities" }, table);
}

function classes(texts, answer) {
  const cards = answer.data.map(({ index, label, probs }) => {
    const order = probs.map((share, place) => ({ share, place })).sort((a, b) => b.share - a.share);
    const most = Math.max(1, order[0]?.share ?? 0);
    const rows = order.slice(0, 5).map(({ share, place }, rank) =>
      make("li", {}, make("span", { class: "bar-label", dir: "auto" }, rank === 0 && label ? String(label) : `class ${place}`), bar(share / most), make("span", { class: "bar-value" }, share.toFixed(3))),
    );
    const more = order.length > 5 ? make("p", { class: "help" }, `and ${order.length - 5} more`) : null;
    return make("li", { class: "card" }, make("p", { dir: "auto" }, texts[index]), make("ol", { class: "bars" }, ...rows), more);
  });
  return make("ol", { class: "plain", "aria-label": "Classes" }, ...cards);
}

function ranks(texts, answer) {
  const most = Math.max(1, ...answer.results.map((each) => each.relevance_score));
  const rows = answer.results.map(({ index, relevance_score: score }) =>
    make("li", {}, make("span", { class: "bar-label wide", dir: "auto" }, texts[index]), bar(score / most), make("span", { class: "bar-value" }, score.toFixed(3))),
  );
  return make("div", { class: "card" }, make("ol", { class: "bars", "aria-label": "Documents by relevance" }, ...rows));
}

// A row of values for each token of each text.
function tokenRows(texts, answer) {
  const cards = answer.data.map(({ index, data }) => {
    const rows = data.map((row) => `[${row.slice(0, 8).map((value) => value.toFixed(4)).join(", ")}${row.length > 8 ? ", …" : ""}]`);
    const title = make("p", {}, `${asNumber(data.length)} tokens, ${asNumber(data[0]?.length ?? 0)} values each: `, make("span", { dir: "auto" }, texts[index]));
    return make("li", { class: "card" }, title, codeBlock(rows.slice(0, 50).join("\n"), "json").figure);
  });
  return make("ol", { class: "plain", "aria-label": "Tokens" }, ...cards);
}
