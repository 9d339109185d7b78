/* The model: blocks in the page's scale of colours, and a panel with the layers of the chosen one. */
(() => {
  const section = document.getElementById("architecture");
  const panel = document.getElementById("architecture-panel");
  const links = [...section.querySelectorAll("a.block, a.chip")];
  const { components, cases } = sd1.data("architecture");
  const target = new Map(links.map((link) => [link, new URLSearchParams(link.getAttribute("href").slice(1))]));
  const inside = (name, path) => !path || name === path || name.startsWith(`${path}.`);

  const paint = () => {
    for (const link of links.filter((one) => one.dataset.ratio !== undefined)) {
      const colour = sd1.colour(link.dataset.ratio);
      const ink = sd1.ink(colour);
      const box = link.querySelector("rect");
      if (box === null) {
        link.style.background = colour;
        link.style.color = ink;
      } else {
        box.style.fill = colour;
        for (const text of link.querySelectorAll("text")) text.style.fill = ink;
      }
    }
  };

  /* The chosen component and the innermost block around the chosen probe. */
  const chosen = ({ component = "", probe = "" }) => {
    const known = Object.hasOwn(components, component) ? [component] : component ? [] : Object.keys(components);
    const owner = known.find((name) => !probe || components[name].some((row) => inside(row[0], probe)));
    if (owner === undefined || (!component && !probe)) return null;
    const paths = links.filter((link) => link.dataset.component === owner).map((link) => link.dataset.path);
    const around = paths.filter((path) => probe && inside(probe, path));
    return { component: owner, path: around.sort((a, b) => b.length - a.length)[0] || "", probe };
  };

  const mark = (ratio) => (ratio === null || ratio <= sd1.limit ? "" : " ▲");
  const cell = (ratio, which) => {
    if (ratio === null) return sd1.element("td", { class: "muted" }, "–");
    const swatch = sd1.svg(
      "svg",
      { class: "swatch", width: 12, height: 12, "aria-hidden": "true" },
      sd1.svg("rect", { width: 12, height: 12, fill: sd1.colour(ratio) }),
    );
    const text = `${sd1.number(ratio)}${mark(ratio)}`;
    const link = sd1.element(
      "a",
      { href: `#case=${encodeURIComponent(cases[which])}`, title: `Open ${cases[which]}` },
      text,
    );
    return sd1.element("td", {}, swatch, link);
  };

  const close = () => {
    const link = links.find((one) => one.hasAttribute("aria-current"));
    sd1.go({ probe: null, component: null });
    if (link !== undefined) link.focus({ preventScroll: true });
  };
  const show = ({ component, path, probe }) => {
    const rows = components[component]
      .filter((row) => inside(row[0], path))
      .map(([name, own, ownCase, all, allCase]) => [name, sd1.value(own), ownCase, sd1.value(all), allCase]);
    const beyond = rows.filter((row) => [row[1], row[3]].some((ratio) => mark(ratio) !== "")).length;
    const many = rows.length === 1 ? "1 layer measured" : `${rows.length} layers measured`;
    const body = rows.map(([name, own, ownCase, all, allCase]) => {
      const link = sd1.element("a", { href: `#${new URLSearchParams({ component, probe: name })}` }, name);
      return sd1.element(
        "tr",
        { "aria-current": name === probe && name !== path ? "true" : null },
        sd1.element("th", { scope: "row" }, link),
        cell(own, ownCase),
        cell(all, allCase),
      );
    });
    const heads = ["Layer", "Own error (splice)", "With what it inherits"];
    panel.replaceChildren(
      sd1.element(
        "div",
        { class: "panel-head" },
        sd1.element("h3", {}, path ? `${component}: ${path}` : component),
        sd1.element("button", { type: "button", onclick: close }, "Close"),
      ),
      sd1.element(
        "p",
        { class: "muted" },
        `${many}, ${beyond} beyond the limit. Worst ratio of each over all cases; a ratio opens the case that it was measured in.`,
      ),
      sd1.element(
        "div",
        { class: "layers", tabindex: 0, role: "region", "aria-label": "Layers of the chosen block" },
        sd1.element(
          "table",
          {},
          sd1.element(
            "thead",
            {},
            sd1.element(
              "tr",
              {},
              heads.map((head) => sd1.element("th", { scope: "col" }, head)),
            ),
          ),
          sd1.element("tbody", {}, body),
        ),
      ),
    );
    panel.hidden = false;
    const current = panel.querySelector("tr[aria-current]");
    if (current !== null) panel.querySelector(".layers").scrollTop = current.offsetTop - 60;
  };

  section.addEventListener("click", (event) => {
    const link = event.target.closest("a.block, a.chip");
    if (link === null || event.ctrlKey || event.metaKey || event.shiftKey) return;
    event.preventDefault();
    const wanted = target.get(link);
    sd1.go({ component: wanted.get("component"), probe: wanted.get("probe"), case: null });
    if (!panel.hidden) panel.focus({ preventScroll: true });
    panel.scrollIntoView({ block: "nearest" });
  });
  panel.addEventListener("keydown", (event) => {
    if (event.key === "Escape") close();
  });

  let shown = "";
  sd1.onState((state) => {
    const choice = chosen(state);
    const text = JSON.stringify(choice);
    if (text === shown) return;
    shown = text;
    for (const link of links) {
      const wanted = target.get(link);
      const same =
        choice !== null &&
        wanted.get("component") === choice.component &&
        (wanted.get("probe") || "") === choice.path;
      if (same) link.setAttribute("aria-current", "true");
      else link.removeAttribute("aria-current");
    }
    if (choice === null) panel.hidden = true;
    else show(choice);
  });
  sd1.onTheme(() => {
    paint();
    if (!panel.hidden) show(chosen(sd1.state));
  });
  paint();
})();
