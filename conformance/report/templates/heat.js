/* The heat map: rows are layers (or their blocks, by their worst layer), columns are cases. Only what is
 * in view is painted, once a frame; the cell under a point is found by division. See heat-painter.js. */
(() => {
  const { scale, rows, pictures } = sd1.data("heat");
  const cases = sd1.data("cases");
  const painter = sd1.heatPainter(scale);
  const frame = document.getElementById("heat-frame");
  const room = frame.firstElementChild;
  const canvas = room.firstElementChild;
  const controls = document.getElementById("heat-controls");
  const now = document.getElementById("heat-now");
  const note = document.getElementById("heat-filter");
  const cursor = room.appendChild(sd1.element("div", { class: "heat-cursor", hidden: true }));
  const keys = ["component", "dtype", "device", "backend", "mode"];
  const widths = [3, 4, 5, 6, 7, 8, 9, 12, 14, 18, 24, 32];
  const heights = [3, 4, 6, 8, 12, 14, 16, 18, 22];
  const BAND = 18;
  const UPRIGHT = 84;

  const decoded = new Map();
  const bytes = (text) => {
    if (!decoded.has(text))
      decoded.set(
        text,
        Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0)),
      );
    return decoded.get(text);
  };

  /* What is shown: a picture, its lines (a row, or the rows of a block), columns, and their codes. */
  let shown = null;
  let byBlock = null;
  let zoom = 0;
  let at = null;
  const list = (text) => (text ? text.split(",") : null);
  const word = (key, i) => cases[key].names[cases[key].of[i]];
  const fits = (state, picture) => keys.every((key) => !state[key] || list(state[key]).includes(picture[key]));
  const inside = (name, path) => name === path || name.startsWith(`${path}.`);
  const runs = (items, name) => {
    const found = [];
    items.forEach((item, i) => {
      const label = name(item);
      if (found.length && found[found.length - 1].label === label) found[found.length - 1].end = i + 1;
      else found.push({ label, start: i, end: i + 1 });
    });
    return found;
  };

  const linesOf = ({ names, parts, blocks }, probe, folded) => {
    const lines = new Map();
    names.forEach((name, i) => {
      if (probe && !inside(name, probe)) return;
      const key = folded ? blocks.of[i] : i;
      if (!lines.has(key))
        lines.set(key, { label: folded ? blocks.names[key] : name, part: parts.names[parts.of[i]], rows: [] });
      lines.get(key).rows.push(i);
    });
    return [...lines.values()];
  };
  const columnsOf = (picture, state) => {
    const chosen = (index) =>
      ["variant", "verdict"].every((key) => !state[key] || list(state[key]).includes(word(key, index)));
    return picture.cases
      .map((index, place) => {
        const label = word("scenario", index);
        return { index, place, label, full: `${word("variant", index)}/${label}` };
      })
      .filter(({ index }) => chosen(index))
      .sort((one, other) => cases.variant.of[one.index] - cases.variant.of[other.index]);
  };

  const choose = (state) => {
    const picture = pictures.find((one) => fits(state, one));
    if (picture === undefined) return null;
    const owned = rows[picture.component];
    const known = owned.names.some((name) => state.probe && inside(name, state.probe));
    const probe = known ? state.probe : "";
    const folds = owned.blocks.names.length < owned.names.length;
    const folded = folds && (byBlock === null ? linesOf(owned, probe, false).length > 80 : byBlock);
    const lines = linesOf(owned, probe, folded);
    const columns = columnsOf(picture, state);
    if (lines.length === 0 || columns.length === 0) return null;
    const codes = bytes(picture.ratios);
    const high = owned.names.length;
    const grid = new Uint8Array(columns.length * lines.length);
    columns.forEach(({ place }, column) =>
      lines.forEach((line, i) => {
        let worst = 0;
        for (const row of line.rows) worst = Math.max(worst, codes[place * high + row]);
        grid[column * lines.length + i] = worst;
      }),
    );
    const parts = runs(lines, (line) => line.part);
    const variants = runs(columns, ({ index }) => word("variant", index));
    return { picture, probe, folds, folded, lines, columns, grid, high, names: owned.names, parts, variants };
  };

  /* Where things are, in CSS pixels: see heat-painter.js. */
  const layout = () => {
    const { lines, columns, parts, variants, folded } = shown;
    const full = frame.parentElement.clientWidth - 2;
    const pick = (sizes, most) => {
      const best = sizes.reduce((found, size, i) => (size <= most ? i : found), 0);
      return sizes[Math.max(0, Math.min(sizes.length - 1, best + zoom))];
    };
    const height = pick(heights, Math.min(16, Math.max(folded ? painter.LABELLED : 6, 600 / lines.length)));
    const labels = (height >= painter.LABELLED ? lines : parts).map(({ label }) => label);
    const longest = labels.reduce((found, label) => (label.length > found.length ? label : found), "");
    const gutter = Math.round(Math.min(painter.textWidth(longest) + 16, full * (full < 600 ? 0.36 : 0.45)));
    const width = pick(widths, (full - gutter - 16) / columns.length);
    const band =
      width < painter.LABELLED ||
      variants.every(({ label, start, end }) => painter.textWidth(label) + 6 < (end - start) * width)
        ? BAND
        : 0;
    const upright = Math.max(
      ...columns.slice(0, 500).map(({ label, full: long }) => painter.textWidth(band ? label : long)),
    );
    const top =
      band + (width >= painter.LABELLED ? Math.min(band ? UPRIGHT : 2 * UPRIGHT, Math.round(upright) + 12) : 0);
    return {
      gutter,
      width,
      height,
      top,
      band,
      right: gutter + columns.length * width,
      bottom: top + lines.length * height,
    };
  };

  let place = null;
  const paint = () => {
    if (shown === null) return;
    place = place || layout();
    frame.style.width = `${place.right + 18}px`;
    room.style.width = `${place.right}px`;
    room.style.height = `${place.bottom}px`;
    const box = {
      width: Math.min(frame.clientWidth, place.right),
      height: Math.min(frame.clientHeight, place.bottom),
    };
    painter.paint(canvas, box, shown, { ...place, x: frame.scrollLeft, y: frame.scrollTop });
  };
  let asked = false;
  const repaint = () => {
    if (asked) return;
    asked = true;
    requestAnimationFrame(() => {
      asked = false;
      paint();
    });
  };
  const relayout = () => {
    place = null;
    repaint();
  };

  /* One cell: under the pointer, or where the arrow keys went. */
  const textOf = ({ line, column }) => {
    const { lines, columns, grid, high, names, picture } = shown;
    const code = grid[column * lines.length + line];
    const { index, place: column0 } = columns[column];
    const codes = bytes(picture.ratios);
    const row = lines[line].rows.find((i) => codes[column0 * high + i] === code);
    const of =
      lines[line].rows.length > 1 && code > scale.unmeasured
        ? ` (worst of ${lines[line].rows.length} in ${lines[line].label})`
        : "";
    const where = of ? names[row] : lines[line].label;
    const verdict = word("verdict", index);
    const known =
      picture.noises === null || code <= scale.unmeasured ? 0 : bytes(picture.noises)[column0 * high + row];
    const noise = known ? painter.noise(known) : null;
    const error =
      noise !== null && code < scale.infinite && noise > 0
        ? `; error ≈ ${sd1.number(noise * painter.ratio(code))}, noise ≈ ${sd1.number(noise)}`
        : "";
    return `${where}${of}\n${cases.id[index]}: ${verdict}\n${painter.words(code)}${error}`;
  };
  const select = (cell) => {
    at = cell;
    cursor.hidden = cell === null;
    if (cell === null) return;
    cursor.style.left = `${place.gutter + cell.column * place.width}px`;
    cursor.style.top = `${place.top + cell.line * place.height}px`;
    cursor.style.width = `${place.width}px`;
    cursor.style.height = `${place.height}px`;
    now.textContent = `${textOf(cell).replaceAll("\n", " · ")} · Enter or a click opens the case.`;
  };
  const cellAt = (event) => {
    if (place === null) return null;
    const box = frame.getBoundingClientRect();
    const x = event.clientX - box.left - frame.clientLeft - place.gutter;
    const y = event.clientY - box.top - frame.clientTop - place.top;
    const column = Math.floor((x + frame.scrollLeft) / place.width);
    const line = Math.floor((y + frame.scrollTop) / place.height);
    return x < 0 || y < 0 || column >= shown.columns.length || line >= shown.lines.length ? null : { line, column };
  };
  const open = (cell) => {
    sd1.tip(0, 0, "");
    sd1.go({ case: cases.id[shown.columns[cell.column].index] });
  };
  const reveal = ({ line, column }) => {
    const left = column * place.width;
    const top = line * place.height;
    const wide = frame.clientWidth - place.gutter - place.width;
    const high = frame.clientHeight - place.top - place.height;
    frame.scrollLeft = Math.min(left, Math.max(left - wide, frame.scrollLeft));
    frame.scrollTop = Math.min(top, Math.max(top - high, frame.scrollTop));
  };

  frame.addEventListener("scroll", repaint, { passive: true });
  frame.addEventListener("pointermove", (event) => {
    const cell = event.pointerType === "touch" ? null : cellAt(event);
    if (cell === null) {
      sd1.tip(0, 0, "");
      return;
    }
    if (at === null || at.line !== cell.line || at.column !== cell.column) select(cell);
    sd1.tip(event.clientX, event.clientY, textOf(cell));
  });
  frame.addEventListener("pointerleave", () => sd1.tip(0, 0, ""));
  frame.addEventListener("click", (event) => {
    const cell = cellAt(event);
    if (cell === null) return;
    const again = at !== null && at.line === cell.line && at.column === cell.column;
    if (again)
      open(cell); // a first touch, which nothing hovered before, only shows the cell
    else select(cell);
  });
  const steps = {
    ArrowLeft: [0, -1],
    ArrowRight: [0, 1],
    ArrowUp: [-1, 0],
    ArrowDown: [1, 0],
    PageUp: [-10, 0],
    PageDown: [10, 0],
  };
  frame.addEventListener("keydown", (event) => {
    if (shown === null || event.ctrlKey || event.metaKey || event.altKey) return;
    const { line, column } = at || { line: 0, column: 0 };
    if (event.key === "Enter") {
      if (at !== null) open(at);
      return;
    }
    if (event.key === "Home") select({ line, column: 0 });
    else if (event.key === "End") select({ line, column: shown.columns.length - 1 });
    else if (event.key in steps) {
      const [down, right] = at === null ? [0, 0] : steps[event.key];
      const within = (x, many) => Math.max(0, Math.min(many - 1, x));
      select({
        line: within(line + down, shown.lines.length),
        column: within(column + right, shown.columns.length),
      });
    } else return;
    event.preventDefault();
    reveal(at);
  });

  /* Choosers: a change keeps what still fits, and lets go of what does not. */
  const fill = (picture) => {
    for (const [i, key] of keys.entries()) {
      const chooser = document.getElementById(`heat-${key}`);
      const before = keys.slice(0, i);
      const offered =
        picture === null ? pictures : pictures.filter((one) => before.every((k) => one[k] === picture[k]));
      const values = [...new Set(offered.map((one) => one[key]))];
      chooser.replaceChildren(...values.map((v) => sd1.element("option", { value: v }, v || "–")));
      chooser.value = picture === null ? "" : picture[key];
      chooser.parentElement.hidden = values.length < 2;
    }
  };
  controls.addEventListener("change", (event) => {
    const { key } = event.target.dataset;
    const wanted = { component: shown === null ? "" : shown.picture.component, [key]: event.target.value };
    const state = { ...sd1.state, ...wanted };
    const changes = { ...wanted, probe: key === "component" ? null : sd1.state.probe };
    for (const other of ["mode", "backend", "device", "dtype"]) {
      if (other === key || pictures.some((one) => fits(state, one))) continue;
      delete state[other];
      changes[other] = null;
    }
    sd1.go(changes);
  });
  controls.addEventListener("click", (event) => {
    const button = event.target.closest("button");
    if (button === null) return;
    if (button.dataset.rows) byBlock = button.dataset.rows === "blocks";
    else zoom = Math.max(-6, Math.min(6, zoom + Number(button.dataset.size)));
    update(sd1.state);
  });

  let drawn = "";
  const update = (state) => {
    const text = JSON.stringify([
      byBlock,
      zoom,
      ...[...keys, "probe", "variant", "verdict"].map((key) => state[key]),
    ]);
    if (text === drawn) return;
    drawn = text;
    shown = choose(state);
    const empty = shown === null;
    fill(shown && shown.picture);
    controls.hidden = false;
    frame.hidden = empty;
    now.hidden = empty;
    at = null;
    cursor.hidden = true;
    now.textContent = "Point at a cell, or move with the arrow keys.";
    const narrowing = ["probe", "variant", "verdict"]
      .map((key) => [key, key === "probe" && !empty ? shown.probe : state[key]])
      .filter((one) => one[1]);
    const freed = Object.fromEntries(
      (empty ? [...keys, "probe", "variant", "verdict"] : ["probe", "variant", "verdict"]).map((key) => [
        key,
        null,
      ]),
    );
    note.hidden = !empty && narrowing.length === 0;
    note.replaceChildren(
      empty
        ? "Nothing was measured under these filters. "
        : `Only ${narrowing.map((one) => one.join(" ")).join(", ")}. `,
      sd1.element("button", { type: "button", onclick: () => sd1.go(freed) }, "Show all"),
    );
    if (empty) return;
    const fieldset = document.getElementById("heat-rows");
    fieldset.hidden = !shown.folds;
    for (const button of fieldset.querySelectorAll("button")) {
      button.setAttribute("aria-pressed", String((button.dataset.rows === "blocks") === shown.folded));
    }
    relayout();
  };

  const legend = () => document.getElementById("heat-legend").replaceChildren(...painter.legend());
  legend();
  sd1.onTheme(() => {
    painter.refresh();
    legend();
    repaint();
  });
  new ResizeObserver(relayout).observe(frame.parentElement);
  sd1.onState(update);
})();
