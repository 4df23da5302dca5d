const data = JSON.parse(document.getElementById("data").textContent);

function settings(config) {
  return h("details", {}, h("summary", {}, "Settings"), h("pre", {}, JSON.stringify(config, null, 1)));
}

document.getElementById("names").textContent = data.runs.map(({ name, finished }) => name + (finished ? "" : " (unfinished)")).join(" · ");
const notes = document.getElementById("notes");
notes.append(...data.notes.map((note) => h("li", {}, note)));
notes.hidden = !data.notes.length;
const [legend, ...tables] = data.tables.map(table); // the plot goes by its numbers
document.getElementById("summary").append(legend, forest(data.differences), ...tables);
document.getElementById("gate").append(...data.gates.map((gate) => [h("h3", { class: "run" }, gate.name), gateCharts(gate)]).flat());
document.getElementById("gate").hidden = !data.gates.length;
document.getElementById("runs").append(...data.runs.map((run) =>
  h("details", { open: data.runs.length === 1 }, h("summary", {}, run.name), run.tables.map(table), settings(run.config))));
const browser = new Browser(data.runs, data.functions);
