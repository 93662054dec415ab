// The candidates as rows: one for each candidate at each fidelity, or in each run. A missing value is NaN.

const page = JSON.parse(document.getElementById("data").textContent);
const allRows = page.rows.candidate.map((_, row) => row);
const columnsByName = new Map(page.columns.map((column) => [column.name, column]));

const TEXTS = ["strategy", "fidelity"];
const WIDTH_BASE = 36; // a bit-width is one digit of this base

const knownColumns = new Map([
  ["candidate", (row) => page.rows.candidate[row]],
  ["strategy", (row) => page.strategies[page.rows.strategy[row]]],
  ["fidelity", (row) => page.fidelities[page.rows.fidelity[row]]],
  ["uniform", (row) => page.rows.uniform[row]],
]);
page.columns.forEach(({ name }) => knownColumns.set(name, (row) => page.values[name][row] ?? NaN));
page.sites.forEach(({ name }, place) => knownColumns.set(`bits[${name}]`, (row) => widthAt(row, place)));
page.options.forEach(({ name }, place) => knownColumns.set(`kept[${name}]`, (row) => configurationOf(row).kept[place]));

/** The function from a row to its value in a column; undefined if there is no such column. */
function columnOf(name) {
  return knownColumns.get(name);
}

function configurationOf(row) {
  return page.configurations[page.configuration[row]];
}

/** The bit-width of a site in a row; 0 where the site is left out. */
function widthAt(row, place) {
  return parseInt(configurationOf(row).bits[place], WIDTH_BASE);
}

/** Whether a column holds whole numbers. */
function isCount(name) {
  return columnsByName.get(name)?.count ?? name === "candidate";
}

/** A value of a column for people. */
function inFigures(name, value) {
  if (typeof value === "string") return value;
  if (!Number.isFinite(value)) return "";
  if (name === "candidate") return String(value);
  if (name === "uniform") return value ? "yes" : "";
  if (name.startsWith("fits[")) return value ? "yes" : "no";
  if (isCount(name)) return Math.round(value).toLocaleString("en");
  if (/_(db|bits)$/.test(name)) return value.toFixed(3);
  return significant(value);
}

function significant(value, digits = 4) {
  if (value === 0) return "0";
  const decimals = digits - 1 - Math.floor(Math.log10(Math.abs(value)));
  const shown = Math.min(Math.max(decimals, 0), 12);
  return value.toLocaleString("en", { minimumFractionDigits: shown, maximumFractionDigits: shown });
}

/** The column with half the width of the 95 % interval of a column, if there is one. */
function marginOf(name) {
  const margin = name.endsWith("_db") ? `${name.slice(0, -3)}_ci95_db` : `${name}_ci95`;
  return columnsByName.has(margin) ? margin : null;
}

function withMargin(name, row) {
  const value = inFigures(name, columnOf(name)(row));
  const margin = marginOf(name);
  const half = margin === null ? NaN : columnOf(margin)(row);
  return value && Number.isFinite(half) ? `${value} ± ${inFigures(name, half)}` : value;
}
