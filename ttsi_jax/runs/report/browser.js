const ROW = 54; // pixels, as in the style sheet
const TAGS = ["fixed", "broken", "reverted", "error", "adapted", "uncertain"];

/** The list of inputs with its filters and search; only the rows in sight are in the page. */
class Browser {
  constructor(runs, functions) {
    this.runs = runs;
    this.functions = functions; // the distinct lists that inputs have
    this.tag = "";
    this.texts = new Map(); // what the inputs of each run that was opened are searched by
    this.list = document.getElementById("list");
    this.rows = document.getElementById("rows");
    this.search = document.getElementById("search");
    this.picker = document.getElementById("run");
    this.view = document.getElementById("input");
    this.picker.append(...runs.map(({ name }, i) => h("option", { value: i }, name)));
    this.picker.hidden = runs.length < 2;
    this.picker.addEventListener("change", () => this.openRun(Number(this.picker.value)));
    this.search.addEventListener("input", () => this.filter());
    this.list.addEventListener("scroll", () => this.draw(), { passive: true });
    this.list.addEventListener("click", (event) => {
      const row = event.target.closest("[data-position]");
      if (row) this.select(Number(row.dataset.position));
    });
    document.addEventListener("keydown", (event) => this.key(event));
    new ResizeObserver(() => this.draw()).observe(this.list);
    const adapting = runs.findIndex(({ records }) => records.some((record) => record.adapted));
    this.picker.value = String(Math.max(adapting, 0));
    this.openRun(Math.max(adapting, 0));
  }

  openRun(number) {
    this.run = this.runs[number];
    if (!this.texts.has(this.run)) this.texts.set(this.run, this.run.records.map(searchable));
    const count = (tag) => this.run.records.filter((record) => !tag || record.tags.includes(tag)).length;
    const button = (tag) => {
      const made = h("button", { type: "button", class: tag, "data-tag": tag }, tag || "all", h("span", {}, String(count(tag))));
      made.addEventListener("click", () => { this.tag = tag; this.filter(); });
      return made;
    };
    document.getElementById("filters").replaceChildren(...["", ...TAGS].map(button));
    this.filter();
  }

  filter() {
    const { records } = this.run, texts = this.texts.get(this.run);
    const wanted = this.search.value.trim().toLowerCase();
    const chosen = this.found?.[this.position];
    this.found = [];
    records.forEach((record, i) => {
      if ((!this.tag || record.tags.includes(this.tag)) && texts[i].includes(wanted)) this.found.push(i);
    });
    for (const button of document.querySelectorAll("#filters button")) {
      button.setAttribute("aria-pressed", String(button.dataset.tag === this.tag));
    }
    document.getElementById("shown").textContent = `${this.found.length} of ${records.length}`;
    this.rows.style.height = `${this.found.length * ROW}px`;
    this.select(Math.max(0, this.found.indexOf(chosen)));
  }

  select(position) {
    this.position = Math.min(Math.max(position, 0), this.found.length - 1);
    const record = this.run.records[this.found[this.position]];
    const nothing = h("p", { class: "soft" }, "No input is left by this filter and search.");
    this.view.replaceChildren(...(record ? inputView(record, this.run, this.functions[record.functions]).filter(Boolean) : [nothing]));
    this.view.scrollTop = 0;
    const top = this.position * ROW;
    if (top < this.list.scrollTop) this.list.scrollTop = top;
    else if (top + ROW > this.list.scrollTop + this.list.clientHeight) this.list.scrollTop = top + ROW - this.list.clientHeight;
    this.draw();
  }

  draw() {
    const first = Math.max(0, Math.floor(this.list.scrollTop / ROW) - 4);
    const last = Math.min(this.found.length, first + Math.ceil(this.list.clientHeight / ROW) + 9);
    const rows = [];
    for (let position = first; position < last; position++) rows.push(this.row(position));
    this.rows.replaceChildren(...rows);
    this.list.setAttribute("aria-activedescendant", this.found.length ? `row-${this.position}` : "");
  }

  row(position) {
    const record = this.run.records[this.found[position]];
    const row = h("div", {
      role: "option", id: `row-${position}`, class: "row", "data-position": position,
      "aria-selected": String(position === this.position), "aria-posinset": position + 1, "aria-setsize": this.found.length,
    },
    h("div", { class: "id" }, h("span", {}, record.id), badges(record.tags.slice(0, 1))),
    h("div", { class: "query" }, lastRequest(record.query)));
    row.style.top = `${position * ROW}px`;
    return row;
  }

  key(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const typing = event.target.closest("input, select"), inside = event.target.closest("#inputs");
    const steps = { ...(!typing && { j: 1, k: -1 }), ...(inside && event.target !== this.picker && { ArrowDown: 1, ArrowUp: -1 }) };
    const page = Math.floor(this.list.clientHeight / ROW), end = this.found.length;
    const jumps = event.target === this.list ? { PageDown: page, PageUp: -page, Home: -end, End: end } : {};
    const step = steps[event.key] ?? jumps[event.key];
    if (step) {
      this.select(this.position + step);
      if (!inside) this.list.scrollIntoView({ block: "nearest" });
    } else if (event.key === "/" && !typing) {
      this.search.focus();
      this.search.select();
    } else if (event.key === "Escape" && inside) {
      this.search.value = "";
      this.tag = "";
      this.filter();
      this.list.focus();
    } else return;
    event.preventDefault();
  }
}
