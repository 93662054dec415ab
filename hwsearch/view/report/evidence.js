// Sensitivities, progress, and results by angle.

const DECADES = 6; // values further below the largest have the last colour and matter to no allocation
let shownSensitivity = 0;
let overTime = false;
let shownFigure = 0;

function sensitivityFigure() {
  const { sites, widths, value, unit } = page.sensitivities[shownSensitivity];
  const above = value.flat().filter((number) => number !== null && number > 0);
  const top = Math.log10(above.length ? Math.max(...above) : 1);
  const bottom = Math.max(Math.log10(above.length ? Math.min(...above) : 1), top - DECADES);
  const cells = (of) => widths.map((_, column) => sites.map((_, row) => of(value[row][column])));
  const hovertext = widths.map((bits, column) =>
    sites.map((site, row) =>
      plain(`${site}, ${bits} bits: ${value[row][column] === null ? "not tried" : significant(value[row][column])}`),
    ),
  );
  const common = {
    type: "heatmap",
    x: sites.map((_, place) => place),
    y: widths.map(String),
    hovertext,
    hoverinfo: "text",
    xgap: 1,
    ygap: 1,
  };
  const ticks = Array.from({ length: Math.floor(top) - Math.ceil(bottom) + 1 }, (_, step) => Math.ceil(bottom) + step);
  const bar = {
    title: { text: plain(unit), side: "right" },
    tickvals: ticks,
    ticktext: ticks.map((power) => `1e${power}`),
    thickness: 12,
  };
  const not = {
    ...common,
    z: cells((number) => (number !== null && number <= 0 ? 0 : null)),
    colorscale: [
      [0, colour("line")],
      [1, colour("line")],
    ],
    showscale: false,
  };
  const seen = {
    ...common,
    z: cells((number) => (number > 0 ? Math.log10(number) : null)),
    zmin: bottom,
    zmax: Math.max(top, bottom + 0.1),
    colorscale: "Viridis",
    colorbar: bar,
  };
  const layout = {
    xaxis: namesAxis("sensitivity", page.sensitivities[shownSensitivity].short),
    yaxis: axis("bits", { type: "category", showgrid: false }),
  };
  return { traces: [not, seen], layout };
}

function showSensitivity() {
  const { method, unit, mixtures, sites, widths, value } = page.sensitivities[shownSensitivity];
  draw("sensitivity", sensitivityFigure);
  fill(
    "sensitivity-caption",
    `Estimated loss of each site at each bit-width by '${method}' (${unit}, ${mixtures} mixtures). Grey: not above zero.`,
  );
  const rows = sites.map((site, row) => [
    site,
    ...value[row].map((number) => (number === null ? "" : significant(number))),
  ]);
  fill(
    "sensitivity-table",
    makeTable(`Sensitivities, ${method}`, ["site", ...widths.map((bits) => `${bits} bits`)], rows),
  );
}

function volumeFigure() {
  const traces = page.curves.map(({ name, style, candidates, seconds, share }) => ({
    type: "scatter",
    mode: "lines+markers",
    name: plain(name),
    x: overTime ? seconds.map((each) => each / 60) : candidates,
    y: share.map((each) => 100 * each),
    line: { color: seriesColour(style) },
    marker: { symbol: SYMBOLS[style % SYMBOLS.length], size: 6 },
  }));
  return {
    traces,
    layout: {
      xaxis: axis(overTime ? "minutes of search" : "candidates scored", { rangemode: "tozero" }),
      yaxis: axis("hypervolume, % of the last", { rangemode: "tozero" }),
    },
  };
}

function showVolume() {
  draw("volume", volumeFigure);
  const rows = page.curves.flatMap(({ name, candidates, seconds, share }) =>
    candidates.map((count, place) => [
      name,
      String(count),
      (seconds[place] / 60).toFixed(1),
      (100 * share[place]).toFixed(1),
    ]),
  );
  fill("volume-table", makeTable("Hypervolume", ["fidelity", "candidates", "minutes", "%"], rows));
}

function anglesFigure() {
  const traces = page.angles.systems.map(({ name, bins }, place) => {
    const known = bins.filter(({ estimates }) => estimates[shownFigure] !== null);
    const estimates = known.map((bin) => bin.estimates[shownFigure]);
    const above = estimates.map(({ value, high }) => (high ?? value) - value);
    const below = estimates.map(({ value, low }) => value - (low ?? value));
    const marker = { color: seriesColour(place + 2), symbol: SYMBOLS[place % SYMBOLS.length], size: 9 };
    const bars = { type: "data", symmetric: false, array: above, arrayminus: below };
    const points = { x: known.map(({ angles }) => angles), y: estimates.map(({ value }) => value), error_y: bars };
    return { type: "scatter", mode: "markers", name: plain(name), offsetgroup: String(place), ...points, marker };
  });
  const across = axis("angle between the speakers, degrees", { type: "category" });
  return {
    traces,
    layout: { xaxis: across, yaxis: axis(page.angles.figures[shownFigure].label), scattermode: "group" },
  };
}

function showAngles() {
  draw("angles", anglesFigure);
}

function anglesTables() {
  const { figures, systems } = page.angles;
  return systems.map(({ name, file, bins }) => {
    const rows = bins.map(({ angles, mixtures, estimates }) => [
      angles,
      String(mixtures),
      ...estimates.map((estimate) => estimate?.text ?? ""),
    ]);
    const caption = `${name} (${file}); in brackets 95 % confidence intervals`;
    return make(
      "div",
      { class: "scrolls", tabindex: "0" },
      makeTable(caption, ["angle", "n", ...figures.map(({ label }) => label)], rows),
    );
  });
}

/** Show a section if it has something to show. */
function startSection(id, there, show) {
  document.getElementById(id).hidden = !there;
  if (there) show();
}

function startEvidence() {
  startSection("sensitivity-section", page.sensitivities.length > 0, () => {
    fillSelect(
      "sensitivity-method",
      page.sensitivities.map(({ method }) => method),
      0,
      (place) => {
        shownSensitivity = place;
        showSensitivity();
      },
    );
    showSensitivity();
  });
  startSection("volume-section", page.curves.length > 0, () => {
    fillSelect("volume-over", ["candidates", "time"], 0, (place) => {
      overTime = place === 1;
      showVolume();
    });
    showVolume();
  });
  const angles = page.angles.systems.length > 0;
  document.getElementById("angles-figure").hidden = !angles;
  document.getElementById("angles-none").hidden = angles;
  if (!angles) return;
  fillSelect(
    "angles-metric",
    page.angles.figures.map(({ label }) => label),
    0,
    (place) => {
      shownFigure = place;
      showAngles();
    },
  );
  showAngles();
  fill("angles-tables", ...anglesTables());
}
