/* How the heat map looks: sd1.heatPainter(scale) turns the bytes of conformance/report/codes.py into
 * numbers, words and pixels. A `view` is what is shown: lines, columns, grid (their codes, column by
 * column), parts and variants (runs of lines and columns with a common label). A `place` is where, in CSS
 * pixels: width and height of a cell, gutter (left of the cells), top (above them), and the scrolled x, y. */
sd1.heatPainter = (scale) => {
  const FONT = "11px ui-monospace, Menlo, Consolas, 'DejaVu Sans Mono', monospace";
  const LABELLED = 12; // pixels that a line or column needs for a label of its own
  const ruler = document.createElement("canvas").getContext("2d");
  ruler.font = FONT;

  const ratio = (code) => {
    if (code === scale.infinite) return Infinity;
    if (code === scale.notANumber) return NaN;
    return scale.limit * 10 ** ((code - scale.atLimit - 0.5) * scale.step);
  };
  const noise = (code) =>
    code === scale.exact ? 0 : 10 ** (scale.noiseDecade + (code - scale.lowest) * scale.step);
  const words = (code) => {
    if (code < scale.lowest) return code === scale.unmeasured ? "not measured" : "this case records no such layer";
    if (code === scale.lowest) return "ratio about 0";
    return `ratio ${code < scale.infinite ? "≈ " : ""}${sd1.number(ratio(code))}${code > scale.atLimit ? ", ▲ beyond the limit" : ""}`;
  };

  /* Colours as little-endian words, and patterns where there is no number. */
  let look = null;
  const packed = (colour) => {
    const short = /^#(.)(.)(.)$/.exec(colour);
    const hex = short
      ? short.slice(1).map((digit) => digit + digit)
      : (/^#(..)(..)(..)$/.exec(colour) || []).slice(1);
    const [red, green, blue] = hex.length
      ? hex.map((pair) => parseInt(pair, 16))
      : colour.match(/\d+/g).map(Number);
    return ((255 << 24) | (blue << 16) | (green << 8) | red) >>> 0;
  };
  const refresh = () => {
    const root = getComputedStyle(document.documentElement);
    const [page, card, text, muted, fail] = ["--page", "--card", "--text", "--muted", "--fail"].map((name) =>
      root.getPropertyValue(name).trim(),
    );
    const colours = Array.from({ length: 256 }, (_, code) =>
      code < scale.lowest ? card : sd1.colour(ratio(code)),
    );
    look = {
      card,
      text,
      muted,
      words: Uint32Array.from(colours, packed),
      inks: colours.map(sd1.ink),
      none: packed(card),
      ink: packed(muted),
      strong: packed(fail),
      contrast: packed(page),
    };
  };
  const pixel = (code, x, y) => {
    if (code === scale.unmeasured) return (x + y) % 5 === 0 ? look.ink : look.none;
    if (code === scale.notANumber) return ((x >> 1) + (y >> 1)) % 2 ? look.strong : look.contrast;
    if (code === scale.infinite) return y % 3 === 0 ? look.contrast : look.strong;
    return look.words[code];
  };
  const swatch = (width, wordAt) => {
    const made = sd1.element("canvas", { width, height: 12 });
    const pen = made.getContext("2d");
    const image = pen.createImageData(width, 12);
    new Uint32Array(image.data.buffer).forEach((_, i, out) => {
      out[i] = wordAt(i % width, Math.floor(i / width));
    });
    pen.putImageData(image, 0, 0);
    return sd1.element("img", { src: made.toDataURL(), width, height: 12, alt: "" });
  };

  /* The cells in view, pixel by pixel. */
  const paintCells = (pen, dpr, box, view, place) => {
    const wide = Math.round((box.width - place.gutter) * dpr);
    const high = Math.round((box.height - place.top) * dpr);
    if (wide <= 0 || high <= 0) return;
    const image = pen.createImageData(wide, high);
    const out = new Uint32Array(image.data.buffer);
    const along = (count, from, size, many) =>
      Int32Array.from({ length: count }, (_, i) => {
        const offset = from + i / dpr;
        const index = Math.floor(offset / size);
        return index >= many || offset - index * size >= size - (size >= 6 ? 1 : 0) ? -1 : index;
      });
    const across = along(wide, place.x, place.width, view.columns.length);
    const down = along(high, place.y, place.height, view.lines.length);
    for (let y = 0; y < high; y += 1) {
      for (let x = 0; x < wide; x += 1) {
        const outside = down[y] < 0 || across[x] < 0;
        out[y * wide + x] = outside ? look.none : pixel(view.grid[across[x] * view.lines.length + down[y]], x, y);
      }
    }
    pen.putImageData(image, Math.round(place.gutter * dpr), Math.round(place.top * dpr));
  };

  const inView = (items, from, size, room) => {
    const start = Math.floor(from / size);
    return items.slice(start, start + Math.ceil(room / size) + 1).map((item, i) => [item, start + i]);
  };

  /* A second sign beside colour, where there is room for it: a triangle in what is beyond the limit. */
  const paintMarks = (pen, box, view, place) => {
    if (place.width < LABELLED || place.height < LABELLED) return;
    const paths = new Map();
    const lines = inView(view.lines, place.y, place.height, box.height);
    for (const [, column] of inView(view.columns, place.x, place.width, box.width)) {
      for (const [, line] of lines) {
        const code = view.grid[column * view.lines.length + line];
        if (code <= scale.atLimit || code >= scale.infinite) continue;
        const x = place.gutter + (column + 0.5) * place.width - place.x - 0.5;
        const y = place.top + (line + 0.5) * place.height - place.y - 0.5;
        const ink = look.inks[code];
        if (!paths.has(ink)) paths.set(ink, new Path2D());
        const path = paths.get(ink);
        path.moveTo(x, y - 3);
        path.lineTo(x + 3.5, y + 3);
        path.lineTo(x - 3.5, y + 3);
        path.closePath();
      }
    }
    for (const [ink, path] of paths) {
      pen.fillStyle = ink;
      pen.fill(path);
    }
  };

  const cut = (text, most) => {
    const letters = Math.floor(most / ruler.measureText("m").width);
    return text.length <= letters ? text : `${text.slice(0, Math.max(0, letters - 1))}…`;
  };
  const abbreviations = [
    ["text_model.", ""],
    ["encoder.layers", "layers"],
    ["transformer_blocks", "tb"],
    ["_blocks", ""],
    ["_block", ""],
    ["resnets", "res"],
    ["attentions", "attn"],
    ["downsamplers", "down"],
    ["upsamplers", "up"],
  ];
  const cutName = (name, most) => {
    const letters = Math.floor(most / ruler.measureText("m").width);
    if (name.length <= letters) return name;
    const short = abbreviations.reduce((text, [long, brief]) => text.replace(long, brief), name);
    return short.length <= letters ? short : `…${short.slice(1 - letters)}`;
  };
  const clip = (pen, x, y, width, height, draw) => {
    pen.save();
    pen.beginPath();
    pen.rect(x, y, width, height);
    pen.clip();
    draw();
    pen.restore();
  };

  const paintLines = (pen, box, view, place) => {
    const each = place.height >= LABELLED;
    const y = (line) => place.top + line * place.height - place.y;
    pen.textAlign = "right";
    for (const { label, start, end } of view.parts) {
      const [top, bottom] = [Math.max(y(start), place.top), Math.min(y(end), box.height)];
      pen.fillStyle = look.muted;
      if (start > 0) pen.fillRect(0, y(start) - 1, place.gutter - 4, 0.5);
      pen.fillStyle = look.text;
      if (!each && bottom - top >= 8)
        pen.fillText(cutName(label, place.gutter - 12), place.gutter - 6, (top + bottom) / 2);
    }
    if (!each) return;
    for (const [{ label }, line] of inView(view.lines, place.y, place.height, box.height)) {
      pen.fillText(cutName(label, place.gutter - 12), place.gutter - 6, y(line) + place.height / 2);
    }
  };

  const paintColumns = (pen, box, view, place) => {
    const x = (column) => place.gutter + column * place.width - place.x;
    pen.textAlign = "left";
    for (const { label, start, end } of place.band ? view.variants : []) {
      const [left, right] = [Math.max(x(start), place.gutter), Math.min(x(end), box.width)];
      if (right <= left) continue;
      pen.fillStyle = look.muted;
      pen.fillRect(x(start), 0, 0.5, place.top - 3);
      pen.fillStyle = look.text;
      if (right - left > 20) pen.fillText(cut(label, right - left - 4), left + 3, place.band / 2);
    }
    if (place.width < LABELLED) return;
    pen.fillStyle = look.text;
    for (const [{ label, full }, column] of inView(view.columns, place.x, place.width, box.width)) {
      pen.save();
      pen.translate(x(column) + place.width / 2, place.top - 5);
      pen.rotate(-Math.PI / 2);
      pen.fillText(cut(place.band ? label : full, place.top - place.band - 6), 0, 0);
      pen.restore();
    }
  };

  const paint = (canvas, box, view, place) => {
    const dpr = Math.min(2, window.devicePixelRatio || 1);
    canvas.width = Math.round(box.width * dpr);
    canvas.height = Math.round(box.height * dpr);
    canvas.style.width = `${box.width}px`;
    canvas.style.height = `${box.height}px`;
    const pen = canvas.getContext("2d", { alpha: false });
    pen.fillStyle = look.card;
    pen.fillRect(0, 0, canvas.width, canvas.height);
    paintCells(pen, dpr, box, view, place);
    pen.scale(dpr, dpr);
    pen.font = FONT;
    pen.textBaseline = "middle";
    clip(pen, place.gutter, place.top, box.width, box.height, () => paintMarks(pen, box, view, place));
    clip(pen, 0, place.top, place.gutter, box.height, () => paintLines(pen, box, view, place));
    clip(pen, place.gutter, 0, box.width - place.gutter, place.top, () => paintColumns(pen, box, view, place));
  };

  const textWidth = (text) => ruler.measureText(text).width;
  const legend = () => {
    const [from, to, width] = [-2, 4, 180];
    const ramp = swatch(width, (x) => packed(sd1.colour(scale.limit * 10 ** (from + ((to - from) * x) / width))));
    const limits = [scale.limit / 100, scale.limit * 1e4, scale.limit].map(sd1.number);
    const patterns = [
      [scale.infinite, "infinite"],
      [scale.notANumber, "not a number"],
      [scale.unmeasured, "skipped or broke"],
      [0, "not recorded there"],
    ];
    return [
      sd1.element(
        "span",
        {},
        ramp,
        `ratio ${limits[0]} to ${limits[1]}; orange, with ▲ where there is room, is beyond the limit ${limits[2]}`,
      ),
      ...patterns.map(([code, text]) =>
        sd1.element(
          "span",
          {},
          swatch(14, (x, y) => pixel(code, x, y)),
          text,
        ),
      ),
    ];
  };
  refresh();
  return { ratio, noise, words, refresh, legend, paint, textWidth, LABELLED };
};
