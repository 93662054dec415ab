// Conditions in the syntax of `hwsearch pareto --where`, joined by "and".

const CONDITION = /^\s*([^<>=!\s]+)\s*(<=|>=|==|!=|=|<|>)\s*([^<>=!\s]+)\s*$/;

const OPERATORS = {
  "<=": (a, b) => a <= b,
  ">=": (a, b) => a >= b,
  "<": (a, b) => a < b,
  ">": (a, b) => a > b,
  "==": (a, b) => a === b,
  "!=": (a, b) => a !== b,
};

/** A number as Python reads it; NaN if the text is none. */
function parseNumber(text) {
  const plain = text.replace(/(\d)_(?=\d)/g, "$1");
  if (/^[+-]?inf(inity)?$/i.test(plain)) return plain.startsWith("-") ? -Infinity : Infinity;
  return /^[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?$/i.test(plain) ? Number(plain) : NaN;
}

/** Read one condition. Throws an error that says what is wrong. */
function parseCondition(text) {
  const found = CONDITION.exec(text);
  if (found === null) {
    throw new Error(`condition '${text}' is malformed; wanted COLUMN<=NUMBER, with one of <=, >=, <, >, ==, !=`);
  }
  const [, column, sign, word] = found;
  const operator = sign === "=" ? "==" : sign;
  if (TEXTS.includes(column)) {
    if (operator !== "==" && operator !== "!=") {
      throw new Error(`condition '${text}' uses ${operator} on a name; wanted ${column}==NAME or ${column}!=NAME`);
    }
    return { column, operator, value: word };
  }
  if (column === "uniform" && (word === "true" || word === "false"))
    return { column, operator, value: Number(word === "true") };
  const value = parseNumber(word);
  if (Number.isNaN(value)) throw new Error(`condition '${text}' compares with '${word}'; wanted a number`);
  return { column, operator, value };
}

/** Read the conditions of a text; an empty one has none. */
function parseWhere(text) {
  const conditions = text.trim() === "" ? [] : text.split(/\sand\s/).map(parseCondition);
  for (const { column } of conditions) {
    if (columnOf(column) === undefined) {
      throw new Error(
        `unknown column '${column}'; wanted one of ${[...knownColumns.keys()].slice(0, 40).join(", ")} ...`,
      );
    }
  }
  return conditions;
}

/** The rows that meet every condition. A row with no value in a column meets no condition on it. */
function filtered(rows, conditions) {
  return conditions.reduce((left, { column, operator, value }) => {
    const of = columnOf(column);
    return left.filter((row) => !Number.isNaN(of(row)) && OPERATORS[operator](of(row), value));
  }, rows);
}

/** The rows sorted by a column, stably; rows without a value come last. */
function sorted(rows, column, descending) {
  const of = columnOf(column);
  const missing = (row) => Number(Number.isNaN(of(row)));
  const order = (a, b) => (of(a) < of(b) ? -1 : Number(of(a) > of(b)));
  return [...rows].sort((a, b) => missing(a) - missing(b) || (descending ? order(b, a) : order(a, b)));
}
