// The front: any column against any other.

const axisColumns = page.columns.filter(({ name }) => !/_ci95(_db)?$/.test(name)).map(({ name }) => name);
const shownAxes = { x: page.axes.x, y: page.axes.y };
let shownRows = allRows;
let chosenRow = null;

/** The two axes as objectives; null if it is not known of one which values are better. */
function axisObjectives() {
  const objectives = [shownAxes.x, shownAxes.y].map((column) => ({
    column,
    direction: columnsByName.get(column).direction,
  }));
  return shownAxes.x !== shownAxes.y && objectives.every(({ direction }) => direction) ? objectives : null;
}

function point(row) {
  return [columnOf(shownAxes.x)(row), columnOf(shownAxes.y)(row)];
}

function hasPoint(row) {
  return point(row).every(Number.isFinite);
}

/** What a row is, in a few lines. */
function described(row) {
  const series = page.series.length > 1 ? `, ${page.series[page.rows.series[row]].name}` : "";
  const lines = [`candidate ${page.rows.candidate[row]}${series}`];
  for (const name of new Set([shownAxes.y, shownAxes.x, ...page.objectives.map(({ column }) => column)])) {
    lines.push(`${name}: ${withMargin(name, row)}`);
  }
  lines.push(configurationInShort(row), `proposed by: ${columnOf("strategy")(row)}`);
  return lines
    .filter((line) => line !== "")
    .map(plain)
    .join("<br>");
}

/** The widths of a row in short, and how much it leaves out. */
function configurationInShort(row) {
  if (page.sites.length === 0) return "";
  const counts = (weight) => {
    const found = new Map();
    page.sites.forEach((site, place) => {
      const bits = widthAt(row, place);
      if (site.weight === weight && bits > 0) found.set(bits, (found.get(bits) ?? 0) + 1);
    });
    const widths = [...found].sort(([a], [b]) => a - b);
    return widths.length === 1
      ? `all ${widths[0][0]} bits`
      : widths.map(([bits, count]) => `${count} × ${bits}`).join(", ");
  };
  const out = leftOut(row).length;
  return `weights: ${counts(true)}; activations: ${counts(false)}${out ? `; ${out} options not whole` : ""}`;
}

/** What a row does not keep whole, as texts. */
function leftOut(row) {
  const { kept } = configurationOf(row);
  return page.options.flatMap(({ name, whole }, place) => {
    if (kept[place] === whole) return [];
    return [
      kept[place] === 0 ? `${name.replace(/\.kept$/, "")} is left out` : `${name}: ${kept[place]} of ${whole} kept`,
    ];
  });
}

function scatter(rows, name, more) {
  return {
    type: "scatter",
    mode: "markers",
    name: plain(name),
    x: rows.map((row) => point(row)[0]),
    y: rows.map((row) => point(row)[1]),
    customdata: rows,
    hovertext: rows.map(described),
    hoverinfo: "text",
    ...more,
  };
}

function seriesTraces(rows, series, objectives) {
  const { name, style } = page.series[series];
  const own = rows.filter((row) => page.rows.series[row] === series);
  const marker = { symbol: SYMBOLS[style % SYMBOLS.length], color: seriesColour(style) };
  const last = series === page.series.length - 1 || page.comparison !== null;
  const traces = [
    scatter(own, `${name} (${own.length})`, { marker: { ...marker, size: 7, opacity: 0.45 }, legendgroup: name }),
  ];
  if (objectives !== null && own.length > 0) {
    const front = sorted(nonDominated(own, objectives), shownAxes.x, false);
    const margin = shownAxes.y === "si_snr_improvement_db" ? "drop_ci95_db" : marginOf(shownAxes.y);
    const bars = last && columnsByName.has(margin) ? front.map((row) => columnOf(margin)(row) || 0) : null;
    traces.push(
      scatter(front, `front: ${name}`, {
        mode: "lines+markers",
        legendgroup: name,
        line: {
          shape: objectives[0].direction === "maximize" ? "vh" : "hv",
          color: marker.color,
          width: last ? 2 : 1,
          dash: last ? "solid" : "dot",
        },
        marker: { ...marker, size: last ? 9 : 7 },
        error_y: bars === null ? {} : { type: "data", array: bars, thickness: 1, width: 3, color: marker.color },
      }),
    );
  }
  return traces;
}

/** Marks over the points: uniform widths, the candidate that the main job exports, and the one shown beside the figure. */
function markTraces(rows) {
  const traces = [];
  const uniform = rows.filter((row) => page.rows.uniform[row]);
  if (uniform.length > 0) {
    const outline = { color: colour("uniform"), width: 2 };
    traces.push(
      scatter(uniform, "uniform widths", {
        marker: { symbol: "diamond-open", size: 13, color: colour("uniform"), line: outline },
      }),
    );
  }
  const main = page.series.length - 1;
  const exported = rows.filter(
    (row) => page.comparison === null && page.rows.candidate[row] === page.chosen && page.rows.series[row] === main,
  );
  if (exported.length > 0) {
    const marker = { symbol: "star", size: 17, color: colour("exported"), line: { color: colour("text"), width: 1 } };
    traces.push(scatter(exported, `for export: candidate ${page.chosen}`, { marker }));
  }
  if (chosenRow !== null && hasPoint(chosenRow)) {
    const ring = {
      symbol: "circle-open",
      size: 22,
      color: colour("text"),
      line: { width: 2.5, color: colour("text") },
    };
    traces.push(scatter([chosenRow], `shown: candidate ${page.rows.candidate[chosenRow]}`, { marker: ring }));
  }
  return traces;
}

/** A range around values, with some room; of an axis with a direction, outliers on the bad side are left out. */
function rangeOf(values, important, direction) {
  const wanted = direction === "maximize" && important.length > 1 ? important : values;
  const low = Math.min(...wanted);
  const high = Math.max(...values);
  const room = 0.06 * (high - low) || Math.abs(high) * 0.05 || 1;
  return [low - room, high + room];
}

/** Shaded bands where a limit of the experiment is exceeded, and their labels. */
function limitBands(ranges) {
  const shapes = [];
  const annotations = [];
  for (const [which, other] of [
    ["x", "y"],
    ["y", "x"],
  ]) {
    const limit = page.limits[shownAxes[which]];
    if (limit === undefined) continue;
    const far = Math.max(ranges[which][1], limit);
    const band = { type: "rect", layer: "below", fillcolor: colour("limit"), line: { width: 0 }, opacity: 0.35 };
    shapes.push({
      ...band,
      [`${which}ref`]: which,
      [`${other}ref`]: "paper",
      [`${which}0`]: limit,
      [`${which}1`]: far,
      [`${other}0`]: 0,
      [`${other}1`]: 1,
    });
    const label = {
      text: plain(`limit ${inFigures(shownAxes[which], limit)}`),
      showarrow: false,
      font: { color: colour("muted") },
    };
    const place =
      which === "x"
        ? { x: limit, y: 0.02, yref: "paper", xanchor: "left", yanchor: "bottom" }
        : { y: limit, x: 0.01, xref: "paper", xanchor: "left", yanchor: "bottom" };
    annotations.push({ ...label, ...place });
  }
  return { shapes, annotations };
}

/** Full precision as a dashed line at its value of the vertical axis. */
function referenceLine() {
  const reference = page.references[page.references.length - 1]?.[shownAxes.y];
  return page.comparison === null && Number.isFinite(reference) ? reference : null;
}

function frontFigure() {
  const rows = shownRows.filter(hasPoint);
  const objectives = axisObjectives();
  const traces = page.series.flatMap((_, series) => seriesTraces(rows, series, objectives));
  const reference = referenceLine();
  const vital = rows
    .filter((row) => page.rows.uniform[row])
    .concat(objectives === null ? [] : frontsOf(rows, objectives));
  const beside = reference === null || !rows.length ? [] : [reference];
  const of = (which, list) => list.map((row) => columnOf(shownAxes[which])(row));
  const ranges = {
    x: rangeOf(of("x", rows), of("x", vital), columnsByName.get(shownAxes.x).direction),
    y: rangeOf([...of("y", rows), ...beside], [...of("y", vital), ...beside], columnsByName.get(shownAxes.y).direction),
  };
  const { shapes, annotations } = limitBands(ranges);
  if (beside.length > 0) {
    shapes.push({
      type: "line",
      xref: "paper",
      x0: 0,
      x1: 1,
      y0: reference,
      y1: reference,
      line: { dash: "dash", width: 1, color: colour("muted") },
    });
    const text = plain(`full precision ${inFigures(shownAxes.y, reference)}`);
    annotations.push({
      text,
      xref: "paper",
      x: 1,
      y: reference,
      xanchor: "right",
      yanchor: "bottom",
      showarrow: false,
      font: { color: colour("muted") },
    });
  }
  const layout = {
    xaxis: axis(shownAxes.x, { range: ranges.x, hoverformat: ",.4~g", tickformat: isCount(shownAxes.x) ? "~s" : "" }),
    yaxis: axis(shownAxes.y, { range: ranges.y, tickformat: isCount(shownAxes.y) ? "~s" : "" }),
    shapes,
    annotations,
    uirevision: `${shownAxes.x} ${shownAxes.y}`,
  };
  const outside = rows.filter((row) => point(row)[1] < ranges.y[0] || point(row)[0] < ranges.x[0]).length;
  return { traces: [...traces, ...markTraces(rows)], layout, outside, count: rows.length, front: objectives };
}

function drawFront() {
  const figure = draw("front", frontFigure);
  const line =
    figure.front === null
      ? "No front is drawn: of one axis it is not known which values are better."
      : "Lines join the front of these two axes.";
  const below = figure.outside ? ` ${figure.outside} lie outside; a double click shows all.` : "";
  fill("front-caption", `${figure.count} points of ${shownAxes.y} against ${shownAxes.x}. ${line}${below}`);
}

function startFront(choose) {
  for (const which of ["x", "y"]) {
    fillSelect(`axis-${which}`, axisColumns, axisColumns.indexOf(shownAxes[which]), (place) => {
      shownAxes[which] = axisColumns[place];
      drawFront();
    });
  }
  drawFront();
  document.getElementById("front").on("plotly_click", ({ points }) => choose(points[0].customdata));
}
