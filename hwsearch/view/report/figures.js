// What all figures share: colours of the page, drawing, and drawing again when the colours change.

const drawn = new Map();
const NAME_PIXELS = 11;
const SYMBOLS = ["circle", "square", "diamond", "triangle-up", "star", "cross", "hexagon"];

function colour(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
}

function seriesColour(style) {
  return colour(`series-${style % SYMBOLS.length}`);
}

/** Text for Plotly, which takes some HTML. */
function plain(text) {
  return String(text).replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
}

function axis(title, more = {}) {
  return {
    title: { text: plain(title), standoff: 8 },
    gridcolor: colour("grid"),
    linecolor: colour("grid"),
    zerolinecolor: colour("grid"),
    automargin: true,
    ...more,
  };
}

/** An axis of names at 0, 1, 2 ..., of which as many are written as have room in a figure. */
function namesAxis(id, names) {
  const every = Math.ceil((names.length * NAME_PIXELS) / Math.max(document.getElementById(id).clientWidth - 90, 100));
  const places = names.map((_, place) => place).filter((place) => place % every === 0);
  const ticktext = places.map((place) => plain(names[place]));
  return axis("", {
    tickmode: "array",
    tickvals: places,
    ticktext,
    tickangle: -90,
    tickfont: { size: 9 },
    showgrid: false,
  });
}

/** Draw a figure, and again whenever the colours change. `figure` returns at least traces and layout; they are returned. */
function draw(id, figure) {
  drawn.set(id, figure);
  const element = document.getElementById(id);
  const made = figure();
  const { traces, layout } = made;
  const common = {
    paper_bgcolor: "rgba(0,0,0,0)",
    plot_bgcolor: "rgba(0,0,0,0)",
    font: { color: colour("text"), family: "system-ui, sans-serif", size: 12 },
    margin: { l: 56, r: 12, t: 12, b: 44 },
    hoverlabel: {
      bgcolor: colour("card"),
      bordercolor: colour("line"),
      font: { color: colour("text") },
      align: "left",
    },
    legend: { orientation: "h", yanchor: "bottom", y: 1.01, x: 0 },
    hovermode: "closest",
    dragmode: matchMedia("(pointer: coarse)").matches ? false : "zoom",
  };
  const config = { responsive: true, displayModeBar: false, showTips: false };
  Plotly.react(element, traces, { ...common, ...layout }, config);
  return made;
}

matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () =>
  drawn.forEach((figure, id) => draw(id, figure)),
);

/** Make an element with properties and children. Text is never read as HTML. */
function make(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name in element && typeof value !== "string") element[name] = value;
    else element.setAttribute(name, value);
  }
  element.append(...children);
  return element;
}

/** A table of texts: the first cell of each row is its heading. */
function makeTable(caption, headings, rows) {
  const head = make("tr", {}, ...headings.map((text) => make("th", { scope: "col" }, text)));
  const body = rows.map(([first, ...others]) =>
    make("tr", {}, make("th", { scope: "row" }, first), ...others.map((text) => make("td", {}, text))),
  );
  return make("table", {}, make("caption", {}, caption), make("thead", {}, head), make("tbody", {}, ...body));
}

function fill(id, ...children) {
  document.getElementById(id).replaceChildren(...children);
}

/** Fill a `<select>` with texts. The value of an option is its place. */
function fillSelect(id, texts, chosen, changed) {
  const select = document.getElementById(id);
  select.replaceChildren(
    ...texts.map((text, place) => make("option", { value: String(place), selected: place === chosen }, text)),
  );
  select.onchange = () => changed(Number(select.value));
}
