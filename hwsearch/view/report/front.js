// Which rows no other row dominates.

/** Whether one list of losses dominates another: no worse in any, better in one. */
function dominates(first, second) {
  return first.every((loss, place) => loss <= second[place]) && first.some((loss, place) => loss < second[place]);
}

/** The rows that no other of them dominates. Objectives are columns with directions; a row without a value is never there. */
function nonDominated(rows, objectives) {
  const losses = new Map();
  for (const row of rows) {
    const values = objectives.map(
      ({ column, direction }) => columnOf(column)(row) * (direction === "maximize" ? -1 : 1),
    );
    if (!values.some(Number.isNaN)) losses.set(row, values);
  }
  const others = [...losses.values()];
  return rows.filter((row) => losses.has(row) && !others.some((other) => dominates(other, losses.get(row))));
}

/** The front of each series by itself, because scores of different fidelities are never mixed. */
function frontsOf(rows, objectives) {
  return page.series.flatMap((_, series) =>
    nonDominated(
      rows.filter((row) => page.rows.series[row] === series),
      objectives,
    ),
  );
}
