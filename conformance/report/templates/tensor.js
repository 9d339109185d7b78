(() => {
  const tensors = sd1.data("tensor");
  if (tensors === null) return;
  const { svg, element } = sd1;
  const parts = [...document.querySelectorAll(".wrong-tensor")];
  const readout = document.getElementById("tensor-readout");
  const number = sd1.number;
  const low = -1;

  /* A log scale from 0.1 up to the worst of some ratios, and at least to ten times the limit. */
  const scale = (ratios) => {
    const finite = ratios.map(sd1.value).filter((x) => x !== null && Number.isFinite(x));
    const high = Math.log10(Math.max(sd1.limit * 10, ...finite));
    return (given) => {
      const x = sd1.value(given);
      if (x === null) return 0;
      if (!Number.isFinite(x)) return 1;
      return x > 0 ? Math.min(1, Math.max(0.01, (Math.log10(x) - low) / (high - low))) : 0.01;
    };
  };
  const stretch = (axis, at, step, length) => (step === 1
    ? `${axis} ${at}` : `${axis} ${at * step} to ${Math.min(length, (at + 1) * step) - 1}, the worst of them`);
  const tell = (text, event) => {
    readout.textContent = text;
    if (event) sd1.tip(event.clientX, event.clientY, text);
  };
  const place = (cursor, attributes) => {
    for (const [key, at] of Object.entries({ ...attributes, visibility: "visible" })) cursor.setAttribute(key, at);
  };
  const leave = (node) => node.addEventListener("pointerleave", () => sd1.tip(0, 0, ""));

  /* The bars of one axis. */
  const strip = (bars) => {
    const [left, top, height] = [46, 6, 64];
    const box = element("figure", { class: "strip", tabindex: 0, role: "group",
      "aria-label": `Ratio by ${bars.axis}. The arrow keys go from bar to bar.` });
    const caption = element("figcaption", {}, `By ${bars.axis} (${bars.length})`);
    let width = 0;
    let each = 0;
    let picture = null;
    const draw = () => {
      width = Math.max(160, box.clientWidth);
      each = Math.min(40, (width - left - 4) / bars.values.length);
      const at = scale(bars.values);
      const gap = each > 4 ? 1 : 0;
      const limit = top + height - height * at(sd1.limit);
      picture = svg("svg", { width, height: height + 24, "aria-hidden": "true" },
        bars.values.map((ratio, i) => svg("rect", { x: left + i * each, y: top + height - height * at(ratio),
          width: Math.max(0.7, each - gap), height: height * at(ratio), fill: sd1.colour(ratio) })),
        svg("line", { class: "axis", x1: left, x2: left + each * bars.values.length, y1: top + height + 0.5, y2: top + height + 0.5 }),
        ["under", "limit"].map((name) => svg("line", { class: name, x1: left, x2: left + each * bars.values.length, y1: limit, y2: limit })),
        svg("text", { x: left - 5, y: limit + 4, "text-anchor": "end" }, `limit ${number(sd1.limit)}`),
        at(sd1.limit) < 0.75 ? svg("text", { x: left - 5, y: top + 8, "text-anchor": "end" }, number(Math.max(...bars.values.map(sd1.value)))) : null,
        svg("text", { x: left, y: top + height + 16 }, "0"),
        svg("text", { x: left + each * bars.values.length, y: top + height + 16, "text-anchor": "end" }, bars.length - 1),
        svg("rect", { class: "cursor", visibility: "hidden", y: top, width: Math.max(2, each), height }));
      box.replaceChildren(caption, picture);
    };
    let event = null;
    const move = sd1.cursor(box, () => bars.values.length, (i) => {
      place(picture.querySelector(".cursor"), { x: left + i * each });
      tell(`${stretch(bars.axis, i, bars.step, bars.length)}: ratio ${number(bars.values[i])}`, event);
    });
    box.addEventListener("pointermove", (moved) => {
      event = moved;
      move(Math.floor((moved.clientX - picture.getBoundingClientRect().left - left) / each));
      event = null;
    });
    leave(box);
    return { box, draw };
  };

  /* The map of two axes, on a canvas; the worst element is framed. */
  const field = (map, tensor) => {
    const [height, width] = [map.values.length, map.values[0].length];
    const steps = [Math.ceil(map.of[0] / height), Math.ceil(map.of[1] / width)];
    const box = element("figure", { class: "field", tabindex: 0, role: "group",
      "aria-label": `Ratio by ${map.rows} and ${map.columns}. The arrow keys go from cell to cell.` });
    const caption = element("figcaption", {}, `${map.rows} (${map.of[0]}) down, ${map.columns} (${map.of[1]}) across`);
    const canvas = element("canvas", { width: 10, height: 10, role: "img",
      "aria-label": `Ratio by ${map.rows} and ${map.columns}` });
    let cell = 1;
    let frame = null;
    const draw = () => {
      const room = Math.min(352, (box.parentElement.clientWidth || 352) - 2);
      cell = Math.max(1, Math.min(44, Math.floor(room / Math.max(height, width))));
      const density = window.devicePixelRatio || 1;
      canvas.width = width * cell * density;
      canvas.height = height * cell * density;
      canvas.style.width = `${width * cell}px`;
      canvas.style.height = `${height * cell}px`;
      const paint = canvas.getContext("2d");
      map.values.forEach((row, y) => row.forEach((ratio, x) => {
        paint.fillStyle = sd1.colour(ratio);
        paint.fillRect(x * cell * density, y * cell * density, cell * density, cell * density);
      }));
      const [y, x] = [map.rows, map.columns].map((axis) => tensor.worst[tensor.axes.indexOf(axis)]);
      const framed = x === undefined || y === undefined ? null : svg("rect", { class: "worst",
        x: Math.floor(x / steps[1]) * cell, y: Math.floor(y / steps[0]) * cell, width: cell, height: cell });
      frame = svg("svg", { class: "over", width: width * cell, height: height * cell, "aria-hidden": "true" },
        svg("rect", { class: "frame", width: width * cell, height: height * cell }),
        framed,
        svg("rect", { class: "cursor", visibility: "hidden", width: cell, height: cell }));
      box.replaceChildren(caption, element("div", { class: "canvas" }, canvas, frame), sd1.key());
    };
    let event = null;
    const move = sd1.cursor(box, () => height * width, (i) => {
      const [y, x] = [Math.floor(i / width), i % width];
      place(frame.querySelector(".cursor"), { x: x * cell, y: y * cell });
      tell(`${stretch(map.rows, y, steps[0], map.of[0])}; ${stretch(map.columns, x, steps[1], map.of[1])}: ratio ${number(map.values[y][x])}`, event);
    }, () => width);
    box.addEventListener("pointermove", (moved) => {
      const { left, top } = canvas.getBoundingClientRect();
      const [x, y] = [Math.floor((moved.clientX - left) / cell), Math.floor((moved.clientY - top) / cell)];
      if (x < 0 || y < 0 || x >= width || y >= height) return sd1.tip(0, 0, "");
      event = moved;
      move(y * width + x);
      event = null;
      return undefined;
    });
    leave(box);
    return { box, draw };
  };

  let drawn = [];
  const show = (index) => {
    parts.forEach((part, i) => { part.hidden = i !== index; });
    const tensor = tensors[index];
    const strips = tensor.bars.map(strip);
    const fields = tensor.map ? [field(tensor.map, tensor)] : [];
    parts[index].querySelector(".pictures").replaceChildren(
      ...fields.map((one) => one.box), element("div", { class: "strips" }, strips.map((one) => one.box)));
    drawn = [...fields, ...strips];
    redraw();
    readout.textContent = "Point at a bar or a cell, or go there with the arrow keys, to read it.";
  };
  const redraw = () => drawn.forEach((one) => one.draw());

  const controls = document.getElementById("tensor-controls");
  if (controls) {
    controls.hidden = false;
    controls.querySelector("select").addEventListener("change", (event) => show(Number(event.target.value)));
  }
  show(0);
  sd1.onTheme(redraw);
  sd1.onWidth(document.getElementById("tensor"), redraw);
})();
