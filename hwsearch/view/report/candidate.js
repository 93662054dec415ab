// Everything about the chosen candidate.

const TARGET_COLUMN = /^(.+)\[(.+)\]$/;
const frontRows = page.comparison === null ? sorted(frontsOf(allRows, page.objectives), page.axes.x, false) : [];
let shownTarget = 0;

function showCandidate(row) {
  chosenRow = row;
  const number = page.rows.candidate[row];
  const series = page.series[page.rows.series[row]].name;
  const notes = [`scored at '${series}'`, `proposed by ${columnOf("strategy")(row)}`];
  if (number === page.chosen) notes.unshift("what the main job exports");
  if (frontRows.includes(row)) notes.push("on the front");
  fill("candidate-name", `Candidate ${number}`);
  fill("depth-heading", `Candidate ${number} along its depth`);
  fill("candidate-notes", notes.join(", "));
  showMetrics(row);
  showStructure(row);
  document.getElementById("export-command").textContent = exportCommand(row);
  draw("bits", () => bitsFigure(row));
  fill("bits-table", bitsTable(row));
  showLayers(row);
  drawFront();
  markChosen();
}

function exportCommand(row) {
  const number = page.rows.candidate[row];
  const own = page.rows.series[row] === page.series.length - 1 ? "" : ` --fidelity ${columnOf("fidelity")(row)}`;
  return `hwsearch export ${page.folder} --candidate ${number} --output exported-${number}${own}`;
}

/** Metrics and sizes as one table, and the costs on the targets as another. */
function showMetrics(row) {
  const own = axisColumns.filter((name) => !TARGET_COLUMN.test(name) && Number.isFinite(columnOf(name)(row)));
  const reference = page.references[page.rows.series[row]] ?? {};
  const rows = own.map((name) => [
    name,
    withMargin(name, row),
    name in reference ? inFigures(name, reference[name]) : "",
  ]);
  const tables = [makeTable("Quality and size, with 95 % intervals", ["", "candidate", "full precision"], rows)];
  const costs = axisColumns.map((name) => TARGET_COLUMN.exec(name)).filter((found) => found !== null);
  const targets = [...new Set(costs.map(([, , target]) => target))];
  const metrics = [...new Set(costs.map(([, metric]) => metric))];
  const cell = (metric, target) => {
    const name = `${metric}[${target}]`;
    return columnOf(name) === undefined ? "" : inFigures(name, columnOf(name)(row));
  };
  if (targets.length > 0) {
    tables.push(
      makeTable(
        "Costs on the targets",
        ["", ...targets],
        metrics.map((metric) => [metric, ...targets.map((target) => cell(metric, target))]),
      ),
    );
  }
  fill("candidate-metrics", ...tables.map((table) => make("div", { class: "scrolls", tabindex: "0" }, table)));
}

function showStructure(row) {
  const lines = leftOut(row);
  const whole = page.options.length === 0 ? "This search keeps the whole network." : "It keeps the whole network.";
  fill(
    "candidate-structure",
    lines.length === 0 ? whole : make("ul", {}, ...lines.map((line) => make("li", {}, line))),
  );
}

/** Bars of bits along the depth of the network, weights above activations. What is left out has no bar but a cross. */
function bitsFigure(row) {
  const panel = (weight, suffix, name) => {
    const places = page.sites.map((_, place) => place).filter((place) => page.sites[place].weight === weight);
    const bits = places.map((place) => widthAt(row, place));
    const names = places.map((place) => plain(page.sites[place].name));
    const x = places.map((_, index) => index);
    const gone = x.filter((index) => bits[index] === 0);
    const more = { xaxis: `x${suffix}`, yaxis: `y${suffix}`, hoverinfo: "text" };
    const hovertext = bits.map((width, index) => `${names[index]}: ${width || "left out"}${width ? " bits" : ""}`);
    const bars = {
      type: "bar",
      name,
      x,
      y: bits,
      hovertext,
      marker: { color: colour(weight ? "weights" : "activations") },
      ...more,
    };
    const crosses = {
      type: "scatter",
      mode: "markers",
      name: "left out",
      x: gone,
      y: gone.map(() => 0.4),
      hovertext: gone.map((index) => hovertext[index]),
      marker: { symbol: "x", size: 8, color: colour("uniform") },
      ...more,
      showlegend: weight && gone.length > 0,
    };
    return {
      traces: [bars, crosses],
      names: namesAxis(
        "bits",
        places.map((place) => page.sites[place].short),
      ),
    };
  };
  const weights = panel(true, "", "bits of weights");
  const activations = panel(false, "2", "bits of activations");
  const layout = {
    grid: { rows: 2, columns: 1, pattern: "independent", ygap: 0.55 },
    xaxis: weights.names,
    yaxis: axis("weights, bits", { rangemode: "tozero", dtick: 2 }),
    xaxis2: activations.names,
    yaxis2: axis("activations, bits", { rangemode: "tozero", dtick: 4 }),
    bargap: 0.15,
  };
  return { traces: [...weights.traces, ...activations.traces], layout };
}

function bitsTable(row) {
  const rows = page.sites.map((site, place) => [
    site.name,
    String(widthAt(row, place) || "left out"),
    site.fixed ? "fixed" : "",
  ]);
  return makeTable("Bit-width of every site", ["site", "bits", ""], rows);
}

/** Time and energy of a candidate's layers on a target; null where a layer is left out, undefined if nothing is known. */
function layersOf(target, row) {
  const found = page.layers[target]?.candidates[page.rows.candidate[row]];
  return found?.map((place, layer) => (place === null ? null : page.layers[target].values[layer][place]));
}

function showLayers(row) {
  const section = document.getElementById("layers-section");
  section.hidden = page.layers.length === 0;
  if (section.hidden) return;
  const targets = page.layers.map(({ target }) => target);
  fillSelect("layers-target", targets, shownTarget, (place) => {
    shownTarget = place;
    showLayers(row);
  });
  const { target, layers } = page.layers[shownTarget];
  const costs = layersOf(shownTarget, row);
  const known = costs?.some((pair) => pair !== null) ?? false;
  document.getElementById("layers").hidden = !known;
  document.getElementById("layers-details").hidden = !known;
  if (!known) {
    const refused =
      costs === undefined
        ? "The report holds no costs of this candidate's layers"
        : `${target} does not run this candidate`;
    fill(
      "layers-caption",
      `${refused}: see hwsearch cost ${target} --run ${page.folder} --candidate ${page.rows.candidate[row]}`,
    );
    return;
  }
  const energy = costs.some((pair) => pair !== null && pair[1] !== null);
  const time = costs.reduce((sum, pair) => sum + (pair?.[0] ?? 0), 0);
  const total = page.layers[shownTarget].atOnce
    ? "all layers work at once"
    : `layers take ${significant(time)} ms in all`;
  fill(
    "layers-caption",
    `Time${energy ? " and energy" : ""} by layer on ${target}: ${total}.${energy ? "" : " The target states no energy by layer."}`,
  );
  draw("layers", () => layersFigure(layers, costs, energy));
  const rows = layers.map((layer, place) => [
    layer,
    ...[0, 1].map((which) => (Number.isFinite(costs[place]?.[which]) ? significant(costs[place][which]) : "")),
  ]);
  fill("layers-table", makeTable(`Layers on ${target}`, ["layer", "ms", "µJ"], rows));
}

function layersFigure(layers, costs, energy) {
  const x = layers.map((_, place) => place);
  const bars = (which, name, unit, suffix, tint) => ({
    type: "bar",
    name,
    x,
    y: costs.map((pair) => pair?.[which] ?? 0),
    hovertext: layers.map((layer, place) =>
      plain(`${layer}: ${costs[place] === null ? "left out" : `${significant(costs[place][which] ?? 0)} ${unit}`}`),
    ),
    hoverinfo: "text",
    marker: { color: colour(tint) },
    xaxis: "x",
    yaxis: `y${suffix}`,
  });
  const traces = [bars(0, "time", "ms", "", "weights")];
  const layout = {
    xaxis: namesAxis("layers", layers),
    yaxis: axis("ms", { domain: energy ? [0.54, 1] : [0, 1] }),
    bargap: 0.15,
    showlegend: false,
  };
  if (energy) {
    traces.push(bars(1, "energy", "µJ", "2", "activations"));
    layout.yaxis2 = axis("µJ", { domain: [0, 0.46] });
    layout.xaxis.anchor = "y2";
  }
  return { traces, layout };
}

/** Choose the neighbour of the chosen candidate on the front. */
function stepAlongFront(by) {
  const at = frontRows.indexOf(chosenRow);
  showCandidate(frontRows[at < 0 ? 0 : (at + by + frontRows.length) % frontRows.length]);
}

function startCandidate() {
  document.getElementById("previous").onclick = () => stepAlongFront(-1);
  document.getElementById("next").onclick = () => stepAlongFront(1);
  for (const id of ["previous", "next"]) document.getElementById(id).disabled = frontRows.length === 0;
  const copy = document.getElementById("copy");
  copy.onclick = async () => {
    const command = document.getElementById("export-command");
    try {
      await navigator.clipboard.writeText(command.textContent);
      copy.textContent = "copied";
    } catch {
      getSelection().selectAllChildren(command);
      copy.textContent = "selected; press Ctrl-C";
    }
    setTimeout(() => (copy.textContent = "copy"), 2000);
  };
  const last = page.series.length - 1;
  const exported = allRows.find((row) => page.rows.candidate[row] === page.chosen && page.rows.series[row] === last);
  showCandidate(exported ?? frontRows[frontRows.length - 1] ?? 0);
}
