/* What a checker of accessibility looks for, as functions that return a list of offences. */
(() => {
  const shown = (element) => element.checkVisibility({ visibilityProperty: true, opacityProperty: true });
  const name = (element) => {
    const id = element.id ? `#${element.id}` : "";
    const text = (element.textContent || "").trim().replace(/\s+/g, " ").slice(0, 40);
    return `${element.tagName.toLowerCase()}${id}.${element.getAttribute("class") || ""} "${text}"`;
  };

  /* Colours as [red, green, blue, alpha]: computed ones may be in any colour space. */
  const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  const known = new Map();
  const rgba = (text) => {
    if (!known.has(text)) {
      canvas.clearRect(0, 0, 1, 1);
      canvas.fillStyle = text;
      canvas.fillRect(0, 0, 1, 1);
      const [r, g, b, a] = canvas.getImageData(0, 0, 1, 1).data;
      known.set(text, [r, g, b, a / 255]);
    }
    return known.get(text);
  };
  const over = (top, below) => [0, 1, 2].map((i) => top[i] * top[3] + below[i] * (1 - top[3])).concat(1);
  const luminance = (colour) => {
    const [r, g, b] = colour.slice(0, 3).map((x) => {
      const c = x / 255;
      return c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4;
    });
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const ratio = (a, b) => {
    const [low, high] = [luminance(a), luminance(b)].sort((x, y) => x - y);
    return (high + 0.05) / (low + 0.05);
  };
  const behind = (element) => {
    const layers = [];
    for (let at = element; at; at = at.parentElement) {
      const colour = rgba(getComputedStyle(at).backgroundColor);
      layers.push(colour);
      if (colour[3] === 1) break;
    }
    return layers.reverse().reduce((below, top) => over(top, below), [255, 255, 255, 1]);
  };

  const contrast = (most) => {
    const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
    const found = new Map();
    for (let seen = 0; walker.nextNode() && seen < most; ) {
      const text = walker.currentNode;
      const element = text.parentElement;
      if (!text.data.trim() || element.closest("svg, script, style, .hidden") || !shown(element)) continue;
      if (element.disabled || element.tagName === "OPTION") continue;
      seen += 1;
      const style = getComputedStyle(element);
      const below = behind(element);
      let opacity = 1;
      for (let at = element; at; at = at.parentElement) opacity *= Number(getComputedStyle(at).opacity);
      const colour = rgba(style.color);
      const value = ratio(over([...colour.slice(0, 3), colour[3] * opacity], below), below);
      if (value < 4.5) found.set(`${name(element).split('"')[0]} ${value.toFixed(2)}`, element);
    }
    return [...found.keys()];
  };

  const label = (control) => {
    const by = (control.getAttribute("aria-labelledby") || "").split(" ").filter(Boolean);
    const texts = by.map((id) => document.getElementById(id)?.textContent || "");
    texts.push(control.getAttribute("aria-label") || "", control.getAttribute("title") || "");
    texts.push(...[...(control.labels || [])].map((own) => own.textContent));
    if (["BUTTON", "A", "SUMMARY"].includes(control.tagName)) texts.push(control.textContent);
    return texts.join("").trim();
  };

  const structure = () => {
    const all = (selector) => [...document.querySelectorAll(selector)];
    const wrong = [];
    const require = (elements, what) => elements.forEach((e) => wrong.push(`${what}: ${name(e)}`));
    require(all("input, select, textarea, button, a[href], summary").filter((e) => !label(e)), "unnamed");
    require(all("img:not([alt])"), "no alt");
    require(all('[role="img"]:not([aria-label]):not([aria-labelledby])'), "unnamed picture");
    require(all("canvas").filter((e) => shown(e) && !label(e)), "unnamed canvas");
    require(all("th:not([scope])").filter((e) => e.textContent.trim()), "no scope");
    require(all('a[href^="#"]').filter((a) => {
      const id = decodeURIComponent(a.getAttribute("href").slice(1));
      return !id.includes("=") && !document.getElementById(id);
    }), "dead link");
    require(all('[tabindex]').filter((e) => e.tabIndex > 0), "tab order forced");
    require(all("[style]").filter((e) => e.getAttribute("style").includes("url(")), "style asks for a file");
    const ids = all("[id]").map((e) => e.id);
    ids.filter((id, i) => ids.indexOf(id) !== i).forEach((id) => wrong.push(`id twice: ${id}`));
    let level = 0;
    all("h1, h2, h3, h4, h5, h6").filter(shown).forEach((heading) => {
      const own = Number(heading.tagName[1]);
      if (own > level + 1) wrong.push(`heading skips a level: ${name(heading)}`);
      level = own;
    });
    if (all("h1").length !== 1) wrong.push(`${all("h1").length} h1`);
    if (all("main").length !== 1) wrong.push(`${all("main").length} main`);
    if (!document.title) wrong.push("no title");
    if (!document.documentElement.lang) wrong.push("no language");
    return wrong;
  };

  /* Elements that stick out to the right and cannot be scrolled inside something. */
  const wide = () => {
    const width = document.documentElement.clientWidth;
    const scrolls = (e) => ["auto", "scroll", "hidden", "clip"].includes(getComputedStyle(e).overflowX);
    const inside = (e) => {
      for (let at = e.parentElement; at && at !== document.body; at = at.parentElement) {
        if (scrolls(at) && at.getBoundingClientRect().right <= width + 1) return true;
      }
      return false;
    };
    const body = [...document.body.querySelectorAll("*")];
    const out = body.filter((e) => e.getBoundingClientRect().right > width + 1 && shown(e) && !inside(e));
    const scroll = document.documentElement.scrollWidth - width;
    return scroll > 0 ? [`scrolls by ${scroll} px`, ...out.slice(0, 8).map(name)] : [];
  };

  /* Controls that the tab key should reach. */
  const controls = () =>
    [...document.querySelectorAll('a[href], button, input, select, textarea, summary, [tabindex="0"]')]
      .filter((e) => shown(e) && !e.disabled && e.tabIndex >= 0)
      .map((e) => { e.dataset.audit ||= String(Math.random()); return e.dataset.audit; });

  return { contrast, structure, wide, controls };
})()
