"use strict";
(() => {
  const stored = document.getElementById("plots").textContent;
  const scheme = matchMedia("(prefers-color-scheme: dark)");
  const draw = async () => {
    const { dark } = JSON.parse(stored);
    const inScheme = (_, value) =>
      scheme.matches && typeof value === "string" && Object.hasOwn(dark, value) ? dark[value] : value;
    const { plots } = JSON.parse(stored, inScheme);
    for (const [name, plot] of Object.entries(plots)) {
      const place = document.getElementById("plot-" + name);
      place.replaceChildren();
      await Bokeh.embed.embed_item(plot, place);
    }
    document.documentElement.dataset.drawn = Object.keys(plots).length;
  };
  scheme.addEventListener("change", draw);
  draw();
})();
