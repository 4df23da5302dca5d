/** One input from request to answer; `functions` is undefined where they were not kept. */
function inputView(record, run, functions) {
  return [
    h("header", {}, h("h3", {}, record.id), badges(record.tags)),
    part("Error", record.error && h("p", { class: "bad" }, record.error)),
    part("Why it ended so", record.reason && h("p", {}, record.reason)),
    part("Request", request(record.query)),
    part("Functions", functions && described(functions)),
    part("Answer", answers(record)),
    part("Answers beside it", others(record)),
    part("Candidates", candidates(record)),
    part("Margin", margin(record, run.tau)),
    part("Examples", synthetic(record.synthetic)),
    part("Training loss", losses(record.losses)),
    part("Measured without a label", evidence(record.evidence)),
    part("Seconds", seconds(record)),
  ];
}

function part(heading, content) {
  return content ? h("section", {}, h("h4", {}, heading), content) : null;
}

function badges(tags) {
  return h("span", { class: "badges" }, tags.map((tag) => h("span", { class: `badge ${tag}` }, tag)));
}

function request(query) {
  if (typeof query === "string") return h("p", { class: "said" }, query);
  return query.map((turn) => h("div", { class: "turn" }, h("b", {}, text(turn.role)), h("p", { class: "said" }, text(turn.content))));
}

/** What the user said last. */
function lastRequest(query) {
  return typeof query === "string" ? query : text(query.filter((turn) => turn.role === "user").at(-1)?.content);
}

/** Functions as the model was shown them, folded. */
function described(functions) {
  const all = functions.map(({ name, description, parameters }) => h("div", { class: "turn" },
    h("b", {}, text(name)), h("p", { class: "said" }, text(description)), h("pre", {}, text(parameters))));
  return h("details", {}, h("summary", {}, functions.length === 1 ? "1 function" : `${functions.length} functions`), all);
}

function text(value) {
  return typeof value === "string" ? value : value === undefined ? "" : JSON.stringify(value, null, 1);
}

function candidates(record) {
  if (!record.candidates.length) return null;
  const right = new Set((record.gold || []).map((call) => call.name));
  const rows = record.candidates.map((name, i) => {
    const probability = record.probabilities[i] ?? null;
    const marks = [name === record.pick_base && "before", name === record.pick && "after"].filter(Boolean).join(", ");
    return h("tr", {},
      h("th", { scope: "row" }, name, right.has(name) ? h("span", { class: "good", title: "the right function" }, " ✓") : null),
      h("td", {}, bar(probability ?? 0)),
      h("td", {}, number(probability)), h("td", { class: "soft" }, marks && `picked ${marks}`));
  });
  return h("div", { class: "wide" }, h("table", { class: "candidates" }, h("tbody", {}, rows)));
}

function bar(share) {
  return s("svg", { viewBox: "0 0 140 8", class: "bar", "aria-hidden": "true" },
    s("rect", { class: "scale", width: 140, height: 8, rx: 2 }),
    s("rect", { class: "share", width: 140 * Math.min(Math.max(share, 0), 1), height: 8, rx: 2 }));
}

/** Where the margin lies between 0 and 1, and where the threshold. */
function margin(record, tau) {
  const own = record.uncertainty;
  if (own === undefined) return null;
  const at = (value) => 4 + 592 * Math.min(Math.max(value, 0), 1);
  const verdict = record.uncertain === undefined ? "" : record.uncertain ? ": uncertain" : ": certain";
  const sign = tau === null ? "" : own < tau ? ` < τ ${number(tau)}` : ` ≥ τ ${number(tau)}`;
  return h("div", { class: "margin" },
    s("svg", { viewBox: "0 0 600 26", role: "img", "aria-label": "margin on a scale from 0 to 1" },
      s("line", { class: "scale", x1: 4, x2: 596, y1: 13, y2: 13 }),
      tau === null ? null : s("line", { class: "tau", x1: at(tau), x2: at(tau), y1: 2, y2: 24 }),
      s("circle", { class: record.uncertain ? "uncertain" : "certain", cx: at(own), cy: 13, r: 6 })),
    h("p", {}, `${number(own)}${sign}${verdict}`));
}

function synthetic(pairs) {
  if (!pairs.length) return null;
  return h("ol", { class: "pairs" }, pairs.map((pair) => h("li", { class: pair.accepted ? "accepted" : "rejected" },
    h("p", { class: "said" }, pair.query || "(no request)"), h("pre", {}, callsText(pair.calls)),
    h("p", { class: pair.accepted ? "good" : "bad" }, pair.accepted ? "✓ kept" : `✗ dropped${pair.check ? ` by ${pair.check}` : ""}${pair.reason ? `: ${pair.reason}` : ""}`),
    (pair.samples || []).map((sample) => h("pre", { class: "soft" }, `${number(sample.reward)}  ${sample.text}`)))));
}

function losses(values) {
  const points = values.map((loss, step) => [step + 1, loss]).filter(([, loss]) => loss !== null);
  if (!points.length) return null;
  const whole = { format: (value) => (Number.isInteger(value) ? String(value) : "") };
  return chart({ title: "", x: { ...whole, label: "step" }, y: { format: (value) => number(value) }, height: 170,
    lines: [{ points, style: "series-call", dots: points.map(([step, loss]) => `step ${step}: ${number(loss, 4)}`) }] });
}

function evidence(found) {
  const known = Object.entries(found || {}).filter(([, value]) => value !== null);
  if (!known.length) return null;
  const said = (value) => (typeof value === "number" ? number(value) : value ? "yes" : "no");
  const rows = known.map(([name, value]) => h("tr", {}, h("th", { scope: "row" }, name.replaceAll("_", " ")), h("td", {}, said(value))));
  return h("table", { class: "candidates" }, h("tbody", {}, rows));
}

function callsText(calls) {
  if (calls === undefined || calls === null) return "(not readable as calls)";
  if (!calls.length) return "(no call)";
  return calls.map(({ name, arguments: given }) => {
    const values = Object.entries(given || {}).map(([key, value]) => `  ${key} = ${JSON.stringify(value)}`);
    return values.length ? `${name}(\n${values.join(",\n")}\n)` : `${name}()`;
  }).join("\n");
}

function answers(record) {
  if (record.base_calls === undefined && record.text_base === undefined && record.calls === undefined) return null;
  const before = callsText(record.base_calls);
  const sides = [];
  if (record.adapted) {
    const after = callsText(record.adapted_calls), [removed, added] = difference(before, after);
    const dropped = record.reverted ? { tool: undefined, call: undefined } : { tool: record.tool_correct, call: record.call_correct };
    sides.push(answer("Before", removed, record.text_base, { tool: record.tool_correct_base, call: record.call_correct_base }));
    sides.push(answer(record.reverted ? "Adapted, then reverted" : "After", added, record.text_adapted, dropped));
  } else {
    sides.push(answer("Base, which is final", [before], record.text_base, { tool: record.tool_correct, call: record.call_correct }));
  }
  if (record.gold) sides.push(answer("Right", [callsText(record.gold)], undefined, {}));
  return h("div", { class: "answers" }, sides);
}

function answer(heading, content, raw, correct) {
  const marks = Object.entries(correct).filter(([, value]) => value !== undefined).map(([name, value]) =>
    h("span", { class: value ? "good" : "bad" }, `${value ? "✓" : "✗"} ${name}`));
  return h("div", { class: "answer" }, h("h5", {}, heading, h("span", { class: "marks" }, marks)), h("pre", {}, content),
    raw === undefined ? null : h("details", {}, h("summary", {}, "as it was said"), h("pre", {}, raw)));
}

/** Sampled answers, those under other orders of the functions and those of each adapter, equal ones together. */
function others(record) {
  const kinds = { "sampled, before": record.samples_base, "sampled, after": record.samples_adapted,
    "functions in other orders, before": record.orders_base, "functions in other orders, after": record.orders_adapted,
    "of each adapter": record.adapters };
  const found = Object.entries(kinds).filter(([, said]) => said?.length);
  return found.length ? found.map(([kind, said]) => h("details", {}, h("summary", {}, `${kind}: ${said.length}`), counted(said))) : null;
}

function counted(said) {
  const counts = new Map();
  for (const one of said) counts.set(one, (counts.get(one) || 0) + 1);
  return [...counts].sort((a, b) => b[1] - a[1]).map(([one, n]) => h("pre", { class: "soft" }, `${n} ×  ${one ?? "(nothing)"}`));
}

function seconds(record) {
  const stages = Object.entries(record.seconds);
  const tokens = Object.entries(record.tokens).map(([stage, count]) => `${stage.replace("_", " ")} ${count} tokens`);
  const taken = stages.map(([stage, value]) => `${stage.replace("_", " ")} ${number(value)}`);
  return stages.length ? h("p", {}, [...taken, ...tokens].join(" · ")) : null;
}

/** All that one may search an input for. */
function searchable(record) {
  const said = [record.id, typeof record.query === "string" ? record.query : record.query.map(({ content }) => text(content)).join("\n"),
    ...record.candidates, record.text_base, record.text_adapted, record.reason, record.error];
  const calls = [record.base_calls, record.adapted_calls, record.calls, record.gold].filter(Boolean).map(callsText);
  const written = record.synthetic.flatMap((pair) => [pair.query, callsText(pair.calls), pair.reason]);
  return [...said, ...calls, ...written].filter(Boolean).join("\n").toLowerCase();
}

/** Both texts as nodes, with what only one of them has marked; by words, a longest common subsequence. */
function difference(before, after) {
  const [a, b] = [before, after].map((said) => said.match(/\w+|\s+|[^\w\s]/gu) || []);
  let start = 0, end = 0;
  while (start < Math.min(a.length, b.length) && a[start] === b[start]) start++;
  while (end < Math.min(a.length, b.length) - start && a.at(-1 - end) === b.at(-1 - end)) end++;
  const [x, y] = [a, b].map((words) => words.slice(start, words.length - end));
  const [left, right] = x.length * y.length > 4e6 ? [x.map(() => true), y.map(() => true)] : changed(x, y);
  return [marked(a, start, left, "del"), marked(b, start, right, "ins")];
}

/** Which words of each are not in a longest common subsequence of both. */
function changed(x, y) {
  const width = y.length + 1, best = new Uint32Array((x.length + 1) * width);
  for (let i = x.length - 1; i >= 0; i--) {
    for (let j = y.length - 1; j >= 0; j--) {
      best[i * width + j] = x[i] === y[j] ? 1 + best[(i + 1) * width + j + 1] : Math.max(best[(i + 1) * width + j], best[i * width + j + 1]);
    }
  }
  const left = x.map(() => true), right = y.map(() => true);
  for (let i = 0, j = 0; i < x.length && j < y.length;) {
    if (x[i] === y[j]) left[i++] = right[j++] = false;
    else if (best[(i + 1) * width + j] >= best[i * width + j + 1]) i++;
    else j++;
  }
  return [left, right];
}

function marked(words, start, flags, tag) {
  const nodes = [];
  words.forEach((word, i) => {
    const flag = Boolean(flags[i - start]);
    if (nodes.length && nodes.at(-1).flag === flag) nodes.at(-1).text += word;
    else nodes.push({ flag, text: word });
  });
  return nodes.map(({ flag, text: said }) => (flag ? h(tag, {}, said) : said));
}
