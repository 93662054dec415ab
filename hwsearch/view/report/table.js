// The table of candidates, with conditions and sorting as in `hwsearch pareto`.

const ROWS_AT_FIRST = 100;
const everyColumn = ["candidate", "fidelity", ...page.columns.map(({ name }) => name), "uniform", "strategy"];
const asked = new Set(page.shownColumns);
const order = { column: page.axes.x, descending: false };
let conditions = [];
let allShown = false;

/** The rows that the table shows, in its order. */
function answer() {
  const found = filtered(allRows, conditions);
  const kept = document.getElementById("only-front").checked ? frontsOf(found, page.objectives) : found;
  return sorted(kept, order.column, order.descending);
}

function tableColumns() {
  const named = conditions.map(({ column }) => column).filter((name) => !asked.has(name));
  return [...everyColumn.filter((name) => asked.has(name)), ...new Set(named)];
}

function showTable() {
  const rows = answer();
  const shown = allShown ? rows : rows.slice(0, ROWS_AT_FIRST);
  const columns = tableColumns();
  fill("candidates-head", make("tr", {}, ...columns.map(headingCell)));
  fill("candidates-body", ...shown.map((row) => tableRow(row, columns)));
  const cut = shown.length < rows.length ? `, the first ${shown.length} of them shown` : "";
  fill("candidates-count", `${rows.length} of ${allRows.length} rows${cut}`);
  document.getElementById("show-all").hidden = shown.length === rows.length;
  markChosen();
}

function headingCell(name) {
  const here = order.column === name;
  const sort = make(
    "button",
    { type: "button", class: "sort" },
    name,
    make("span", { "aria-hidden": "true" }, here ? (order.descending ? " ↓" : " ↑") : ""),
  );
  sort.onclick = () => {
    order.descending = here && !order.descending;
    order.column = name;
    showTable();
    [...document.querySelectorAll("#candidates-head .sort")].find((button) => button.firstChild.data === name)?.focus();
  };
  const words = TEXTS.includes(name) ? { class: "words" } : {};
  return make(
    "th",
    { scope: "col", "aria-sort": here ? (order.descending ? "descending" : "ascending") : "none", ...words },
    sort,
  );
}

function tableRow(row, columns) {
  const cells = columns.map((name) => {
    const text = name === "candidate" ? "" : withMargin(name, row);
    if (name !== "candidate") return make("td", TEXTS.includes(name) ? { class: "words" } : {}, text);
    const choose = make("button", { type: "button", class: "choose" }, String(page.rows.candidate[row]));
    return make("th", { scope: "row" }, choose);
  });
  const line = make("tr", { "data-row": String(row) }, ...cells);
  line.onclick = () => showCandidate(row);
  return line;
}

function markChosen() {
  for (const line of document.querySelectorAll("#candidates-body tr")) {
    line.setAttribute("aria-selected", String(Number(line.dataset.row) === chosenRow));
  }
}

function filterChanged() {
  const input = document.getElementById("where");
  const problem = document.getElementById("where-problem");
  try {
    conditions = parseWhere(input.value);
  } catch (error) {
    problem.textContent = error.message;
    input.setAttribute("aria-invalid", "true");
    return;
  }
  problem.textContent = "";
  input.removeAttribute("aria-invalid");
  shownRows = filtered(allRows, conditions);
  showTable();
  drawFront();
}

function startTable() {
  const input = document.getElementById("where");
  input.oninput = filterChanged;
  document.getElementById("only-front").onchange = showTable;
  document.getElementById("show-all").onclick = () => {
    allShown = true;
    showTable();
  };
  const boxes = everyColumn.map((name) => {
    const box = make("input", { type: "checkbox", checked: asked.has(name) });
    box.onchange = () => {
      box.checked ? asked.add(name) : asked.delete(name);
      showTable();
    };
    return make("label", {}, box, ` ${name}`);
  });
  fill("columns", ...boxes);
  filterChanged();
}
