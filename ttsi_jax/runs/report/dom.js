"use strict";

const SVG = "http://www.w3.org/2000/svg";

/** An element; attributes that are null or false are left out, and children that are no elements become text. */
function h(tag, attributes = {}, ...children) {
  return filled(document.createElement(tag), attributes, children);
}

function s(tag, attributes = {}, ...children) {
  return filled(document.createElementNS(SVG, tag), attributes, children);
}

function filled(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== null && value !== undefined && value !== false) element.setAttribute(name, value);
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== ""));
  return element;
}

/** A table from {title, headings, rows, note}; every column but the first is of figures. */
function table({ title, headings, rows, note }) {
  const head = h("tr", {}, headings.map((text) => h("th", { scope: "col" }, text)));
  const body = rows.map((row) => h("tr", {}, row.map((text, column) => h(column ? "td" : "th", column ? {} : { scope: "row" }, text))));
  return h("figure", { class: "table" },
    title ? h("h3", {}, title) : null,
    h("div", { class: "wide" }, h("table", {}, h("thead", {}, head), h("tbody", {}, body))),
    note ? h("figcaption", {}, note) : null);
}

function number(value, digits = 3) {
  return value === null || value === undefined ? "–" : String(Number(value.toPrecision(digits)));
}

function percent(value) {
  return `${number(100 * value)} %`;
}
