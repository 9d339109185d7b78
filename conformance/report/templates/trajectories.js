/* Trajectories: ratio by step on a log scale, one line a term, one picture a mode of the chosen run. */
(() => {
  const { terms, modes, paths } = sd1.data("trajectories");
  const [view, chooser, legend, charts, now] = ["view", "run", "legend", "charts", "now"].map((name) =>
    document.getElementById(`trajectories-${name}`),
  );
  const HEIGHT = 250;
  const EDGE = { left: 44, right: 14, top: 14, bottom: 34 };
  const shapes = [
    "M-3-3H3V3H-3z",
    "M-4 0A4 4 0 1 0 4 0A4 4 0 1 0-4 0",
    "M0-5 5 0 0 5-5 0z",
    "M0-5 5 4H-5z",
    "M-4-4 4 4M-4 4 4-4",
  ];
  const sign = (term, x, y, crossed = term === 4) =>
    sd1.svg("path", {
      class: crossed ? `term sign${term}` : `dot dot${term}`,
      d: shapes[crossed ? 4 : term],
      transform: `translate(${x} ${y})`,
    });

  const points = ({ step, term, ratio, err }) =>
    step.map((_, i) => ({ step: step[i], term: term[i], ratio: sd1.value(ratio[i]), err: sd1.value(err[i]) }));
  const decadeText = (decade) =>
    decade > -4 && decade < 4
      ? String(Number(`1e${decade}`))
      : `10${String(decade).replace(/./g, (digit) => "⁰¹²³⁴⁵⁶⁷⁸⁹"[digit] ?? "⁻")}`;
  const finite = (x) => Number.isFinite(x) && x > 0;

  const chart = (path, mode) => {
    const all = points(path.points[mode]);
    const steps = [...new Set(all.map(({ step }) => step))].sort((a, b) => a - b);
    const width = Math.max(260, charts.clientWidth < 860 ? charts.clientWidth : charts.clientWidth / 2 - 12);
    const ratios = [...all.map(({ ratio }) => ratio).filter(finite), sd1.limit];
    const low = Math.max(-3, Math.floor(Math.log10(Math.min(...ratios, 1))));
    const high = Math.min(9, Math.ceil(Math.log10(Math.max(...ratios)) + 0.2));
    const x = (step) => EDGE.left + ((width - EDGE.left - EDGE.right) * (steps.indexOf(step) + 0.5)) / steps.length;
    const y = (ratio) => {
      const decade = Number.isNaN(ratio) || ratio === Infinity ? high : ratio > 0 ? Math.log10(ratio) : low;
      return (
        EDGE.top +
        ((HEIGHT - EDGE.top - EDGE.bottom) * (high - Math.max(low, Math.min(high, decade)))) / (high - low)
      );
    };
    const made = [];
    const each = Math.ceil((high - low) / 6);
    for (let decade = low; decade <= high; decade += each) {
      made.push(
        sd1.svg("line", {
          class: "grid",
          x1: EDGE.left,
          x2: width - EDGE.right,
          y1: y(10 ** decade),
          y2: y(10 ** decade),
        }),
        sd1.svg("text", { x: EDGE.left - 6, y: y(10 ** decade) + 4, "text-anchor": "end" }, decadeText(decade)),
      );
    }
    made.push(
      sd1.svg("line", {
        class: "limit",
        x1: EDGE.left,
        x2: width - EDGE.right,
        y1: y(sd1.limit),
        y2: y(sd1.limit),
      }),
      sd1.svg(
        "text",
        { class: "limit", x: width - EDGE.right - 3, y: y(sd1.limit) - 4, "text-anchor": "end" },
        `limit ${sd1.number(sd1.limit)}`,
      ),
    );
    const stride = Math.ceil(steps.length / Math.floor((width - EDGE.left) / 30));
    steps.forEach((step, i) => {
      if (i % stride !== 0) return;
      made.push(sd1.svg("text", { x: x(step), y: HEIGHT - EDGE.bottom + 15, "text-anchor": "middle" }, step));
    });
    made.push(sd1.svg("text", { x: (width + EDGE.left) / 2, y: HEIGHT - 5, "text-anchor": "middle" }, "step"));
    const bar = sd1.svg("line", { class: "now", y1: EDGE.top, y2: HEIGHT - EDGE.bottom, visibility: "hidden" });
    made.push(bar);
    terms.forEach((_, term) => {
      const own = all.filter((point) => point.term === term);
      made.push(
        sd1.svg("polyline", {
          class: `term term${term}`,
          points: own.map(({ step, ratio }) => `${x(step)},${y(ratio)}`).join(" "),
        }),
      );
      const crossed = (ratio) => term === 4 || !Number.isFinite(ratio); // a blend, or what is no number
      made.push(...own.map(({ step, ratio }) => sign(term, x(step), y(ratio), crossed(ratio))));
    });
    const title = modes[mode] ?? mode;
    const picture = sd1.svg(
      "svg",
      {
        height: HEIGHT,
        viewBox: `0 0 ${width} ${HEIGHT}`,
        tabindex: 0,
        role: "img",
        "aria-label": `Ratio by step, ${title}: ${path.words[mode]}. Arrow keys read the steps.`,
      },
      made,
    );
    const tell = (i) => {
      const step = steps[i];
      const text = all
        .filter((point) => point.step === step)
        .map(
          ({ term, ratio, err }) =>
            `${terms[term]}: ratio ${sd1.number(ratio)}${ratio <= sd1.limit ? "" : " ▲"}, error ${sd1.number(err)}`,
        )
        .join("\n");
      for (const end of ["x1", "x2"]) bar.setAttribute(end, x(step));
      bar.setAttribute("visibility", "visible");
      now.textContent = `Step ${step}, ${title}\n${text}`;
    };
    const move = sd1.cursor(picture, () => steps.length, tell);
    picture.addEventListener("pointermove", (event) => {
      const box = picture.getBoundingClientRect();
      const part =
        (((event.clientX - box.left) / box.width) * width - EDGE.left) / (width - EDGE.left - EDGE.right);
      const i = Math.max(0, Math.min(steps.length - 1, Math.floor(part * steps.length)));
      move(i);
      sd1.tip(event.clientX, event.clientY, now.textContent);
    });
    picture.addEventListener("pointerleave", () => sd1.tip(0, 0, ""));
    const link = sd1.element("a", { href: `#case=${encodeURIComponent(path.cases[mode])}` }, "open the case");
    return sd1.element(
      "figure",
      { class: "chart" },
      sd1.element("figcaption", {}, sd1.element("b", {}, title), `: ${path.words[mode]}. `, link),
      picture,
    );
  };

  const draw = () => {
    const path = paths[Number(chooser.value)];
    const present = new Set(Object.values(path.points).flatMap(({ term }) => term));
    legend.replaceChildren(
      ...[...present]
        .sort()
        .map((term) =>
          sd1.element(
            "span",
            {},
            sd1.svg(
              "svg",
              { width: 26, height: 12, viewBox: "-13 -6 26 12", "aria-hidden": "true" },
              sd1.svg("path", { class: `term term${term}`, d: "M-13 0H13" }),
              sign(term, 0, 0),
            ),
            terms[term],
          ),
        ),
    );
    now.textContent = "";
    charts.replaceChildren(...Object.keys(path.words).map((mode) => chart(path, mode)));
  };
  paths.forEach(({ name }, i) => chooser.append(sd1.element("option", { value: i }, name)));
  chooser.addEventListener("change", draw);
  view.hidden = false;
  let width = 0;
  new ResizeObserver(() => {
    if (charts.clientWidth === width) return;
    width = charts.clientWidth;
    draw();
  }).observe(charts);
})();
