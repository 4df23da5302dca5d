const WIDTH = 380, HEIGHT = 250, LEFT = 46, RIGHT = 22, TOP = 10, BOTTOM = 38;

/** Round numbers from below `low` to above `high`, some four steps apart. */
function ticks(low, high) {
  const rough = (high - low || 1) / 4;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 2.5, 5, 10].map((factor) => factor * power).find((size) => size >= rough * 0.999);
  const first = Math.floor(low / step + 1e-9), last = Math.max(Math.ceil(high / step - 1e-9), first + 1);
  return Array.from({ length: last - first + 1 }, (_, i) => Number(((first + i) * step).toPrecision(6)));
}

/**
 * A line chart. `lines`: [{name, points: [[x, y]], style, dots}]; `style` is a class of the style sheet.
 * `x` and `y`: {label, format, range}; a range that is not given comes from the points.
 */
function chart({ title, x, y, lines, verticals = [], height = HEIGHT }) {
  const points = lines.flatMap((line) => line.points);
  if (!points.length) return h("figure", { class: "chart" }, h("h3", {}, title), h("p", { class: "soft" }, "nothing to show"));
  const scale = (axis, column, from, to) => {
    const values = points.map((point) => point[column]);
    const marks = ticks(...(axis.range || [Math.min(...values), Math.max(...values)]));
    const [low, high] = [marks[0], marks.at(-1)];
    return { marks, at: (value) => from + ((value - low) / (high - low)) * (to - from) };
  };
  const across = scale(x, 0, LEFT, WIDTH - RIGHT), up = scale(y, 1, height - BOTTOM, TOP);
  const place = ([a, b]) => `${across.at(a).toFixed(1)},${up.at(b).toFixed(1)}`;
  const svg = s("svg", { viewBox: `0 0 ${WIDTH} ${height}`, role: "img", "aria-label": title },
    up.marks.map((mark) => [
      s("line", { class: "grid", x1: LEFT, x2: WIDTH - RIGHT, y1: up.at(mark), y2: up.at(mark) }),
      s("text", { class: "tick", x: LEFT - 7, y: up.at(mark) + 3.5, "text-anchor": "end" }, y.format(mark)),
    ]).flat(),
    across.marks.map((mark) =>
      s("text", { class: "tick", x: across.at(mark), y: height - BOTTOM + 16, "text-anchor": "middle" }, x.format(mark))),
    s("text", { class: "axis", x: (LEFT + WIDTH - RIGHT) / 2, y: height - 4, "text-anchor": "middle" }, x.label),
    verticals.map(({ at, name }) => [
      s("line", { class: "vertical", x1: across.at(at), x2: across.at(at), y1: TOP, y2: height - BOTTOM }),
      s("text", { class: "tick", x: across.at(at) + (at > 0.7 ? -4 : 4), y: height - BOTTOM - 6, "text-anchor": at > 0.7 ? "end" : "start" }, name),
    ]).flat(),
    lines.map((line) => s("polyline", { class: `line ${line.style}`, points: line.points.map(place).join(" ") })),
    lines.filter((line) => line.dots).map((line) => line.points.map((point, i) =>
      s("circle", { class: `dot ${line.style}`, cx: across.at(point[0]), cy: up.at(point[1]), r: 3.5 },
        s("title", {}, line.dots[i] || `${y.format(point[1])}`)))).flat());
  const legend = lines.filter((line) => line.name).map((line) =>
    h("li", {}, s("svg", { viewBox: "0 0 24 8", class: "key" }, s("line", { class: `line ${line.style}`, x1: 1, x2: 23, y1: 4, y2: 4 })), line.name));
  return h("figure", { class: "chart" }, h("h3", {}, title), y.label ? h("p", { class: "soft" }, y.label) : null, svg,
    legend.length > 1 ? h("ul", { class: "legend" }, legend) : null);
}

const SHARE = { range: [0, 1], format: (value) => `${Math.round(100 * value)} %` };
const FREE_SHARE = { format: (value) => `${number(100 * value)} %` };

/** The three plots of a gate: risk over coverage, calibration, and accuracy over the share that adapts. */
function gateCharts(gate) {
  const found = [chart({
    title: "Risk and coverage",
    x: { ...SHARE, label: "coverage: share answered, the most certain first" },
    y: { ...FREE_SHARE, label: "wrong among the answered" },
    lines: Object.entries(gate.risk).map(([name, points]) => ({ name, points, style: `series-${name}` })),
  })];
  if (gate.bins) {
    const { confidence, accuracy, size } = gate.bins;
    found.push(chart({
      title: "Calibration",
      x: { ...SHARE, label: "highest probability" },
      y: { ...SHARE, label: "its function is right; bins of equal mass" },
      lines: [
        { name: "calibrated", points: [[0, 0], [1, 1]], style: "reference" },
        {
          name: "measured", points: confidence.map((x, i) => [x, accuracy[i]]), style: "series-call",
          dots: size.map((n, i) => `${n} records, ${percent(accuracy[i])} right`),
        },
      ],
    }));
  }
  if (gate.gain) {
    const { gate: own, oracle, random, uncertain } = gate.gain;
    found.push(chart({
      title: "What adapting more inputs gives",
      x: { ...SHARE, label: "share that adapts" },
      y: { ...FREE_SHARE, label: "call accuracy" },
      lines: [
        { name: "oracle", points: oracle, style: "oracle" },
        { name: "random gate", points: random, style: "reference" },
        { name: "this gate", points: own, style: "series-call" },
      ],
      verticals: [{ at: uncertain, name: "τ" }],
    }));
  }
  return h("div", { class: "charts" }, found);
}

/** Differences with their intervals, one per line, about zero. */
function forest(differences) {
  const rows = differences.filter(({ low }) => low !== null), row = 26, left = 300, width = 760;
  if (!rows.length) return "";
  const bounds = ticks(Math.min(0, ...rows.map(({ low }) => 100 * low)), Math.max(0, ...rows.map(({ high }) => 100 * high)));
  const at = (value) => left + ((value - bounds[0]) / (bounds.at(-1) - bounds[0])) * (width - left - 16);
  const height = rows.length * row + 34;
  const svg = s("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": "Differences in points" },
    bounds.map((mark) => [
      s("line", { class: mark === 0 ? "zero" : "grid", x1: at(mark), x2: at(mark), y1: 4, y2: height - 28 }),
      s("text", { class: "tick", x: at(mark), y: height - 12, "text-anchor": "middle" }, mark > 0 ? `+${mark}` : String(mark).replace("-", "−")),
    ]).flat(),
    rows.map(({ name, value, low, high }, i) => {
      const y = i * row + 18, sign = low > 0 ? "good" : high < 0 ? "bad" : "even";
      const text = name.length > 48 ? `${name.slice(0, 20)}…${name.slice(-27)}` : name;
      return [
        s("text", { class: "name", x: left - 14, y: y + 4, "text-anchor": "end" }, text, s("title", {}, name)),
        s("line", { class: `range ${sign}`, x1: at(100 * low), x2: at(100 * high), y1: y, y2: y }),
        s("circle", { class: `point ${sign}`, cx: at(100 * value), cy: y, r: 4.5 }),
      ];
    }).flat());
  return h("figure", { class: "forest" }, h("h3", {}, "Difference in accuracy, points"), svg);
}
