
"use strict";
(() => {
  const data = JSON.parse(document.getElementById("columns").textContent);
  const stage = document.getElementById("stage");
  const svg = document.getElementById("markers");
  const readout = document.getElementById("readout");
  const layers = stage.querySelectorAll("img");
  const layer = document.getElementById("layer");
  const colour = document.getElementById("colour");
  const ramp = document.getElementById("ramp");
  // Nine support points of viridis; the map between them is linear.
  const viridis = [[68, 1, 84], [72, 40, 120], [62, 74, 137], [49, 104, 142], [38, 130, 142],
    [31, 158, 137], [74, 193, 109], [160, 218, 57], [253, 231, 37]];
  const minus = (v) => String(v).replace("-", "\u2212");
  const known = (v, unit) => (v === null ? "not known" : minus(v) + unit);

  function shade(t) {
    const x = Math.min(Math.max(t, 0), 1) * (viridis.length - 1);
    const i = Math.min(Math.floor(x), viridis.length - 2);
    const mix = viridis[i].map((v, k) => Math.round(v + (x - i) * (viridis[i + 1][k] - v)));
    return `rgb(${mix.join(",")})`;
  }

  function valueOf(column) {
    const key = colour.value;
    if (key === "p") return column.p;
    if (key === "thickness") {
      return column.top === null || column.bottom === null ? null : column.bottom - column.top;
    }
    const n = column.n[Number(key.slice(1))];
    return n > 0 ? n : null;
  }

  const spacing = Math.sqrt((data.rows * data.cols) / Math.max(data.columns.length, 1));
  const circles = data.columns.map((column) => {
    const circle = document.createElementNS("http://www.w3.org/2000/svg", "circle");
    circle.setAttribute("cx", column.col);
    circle.setAttribute("cy", column.row);
    circle.setAttribute("r", 0.2 * spacing);
    if (!column.inside) circle.classList.add("outside");
    svg.append(circle);
    return circle;
  });

  function paint() {
    const off = colour.value === "none";
    const values = off ? [] : data.columns.map(valueOf);
    const found = values.filter((v, i) => v !== null && data.columns[i].inside);
    let low = 0, high = 1;
    if (colour.value !== "p" && found.length) {
      low = found.reduce((a, b) => Math.min(a, b));
      high = found.reduce((a, b) => Math.max(a, b));
    }
    circles.forEach((circle, i) => {
      const v = off ? null : values[i];
      circle.setAttribute("visibility", v === null ? "hidden" : "visible");
      if (v !== null) circle.setAttribute("fill", shade(high > low ? (v - low) / (high - low) : 0.5));
    });
    const unit = colour.value === "thickness" ? " \u00c5" : "";
    const text = (v) => (Number.isInteger(v) ? String(v) : v.toFixed(1)) + unit;
    document.getElementById("ramp-low").textContent = off ? "" : text(low);
    document.getElementById("ramp-high").textContent = off ? "" : text(high);
    const pen = ramp.getContext("2d");
    pen.clearRect(0, 0, ramp.width, ramp.height);
    for (let x = 0; !off && x < ramp.width; x++) {
      pen.fillStyle = shade(x / (ramp.width - 1));
      pen.fillRect(x, 0, 1, ramp.height);
    }
  }

  // The three-dimensional model: x to the right, y up (rows run down), the beam into the screen at first.
  const model = (() => {
    const box = document.getElementById("model");
    const a = data.atoms;
    const nothing = { mark: () => {}, ready: false };
    const missing = (text) => { box.classList.add("missing"); box.textContent = text; return nothing; };
    let viewer = null;
    const dark = window.matchMedia("(prefers-color-scheme: dark)");
    const ground = () => (dark.matches ? "#1e2227" : "#ffffff");
    try {
      viewer = $3Dmol.createViewer(box, { backgroundColor: ground(), antialias: true, disableFog: true });
    } catch (error) {
      return missing("This browser shows no three-dimensional graphics; the atoms are in structure.cif.");
    }
    if (!viewer) return missing("This browser shows no three-dimensional graphics; the atoms are in structure.cif.");
    const palette = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#f0e442", "#999999"];
    const atoms = a.column.map((column, i) => ({
      elem: "C", serial: i, index: i, x: a.x[i], y: -a.y[i], z: -a.z[i], bonds: [], bondOrder: [],
      properties: { kind: a.element[i], column },
    }));
    const shape = viewer.addModel();
    shape.addAtoms(atoms);
    data.elements.forEach((name, k) => {
      shape.setStyle({ properties: { kind: k } }, { sphere: { radius: data.radii[k], color: palette[k % 8] } });
    });
    const legend = document.getElementById("legend");
    data.elements.forEach((name, k) => {
      const dot = document.createElement("i");
      dot.style.background = palette[k % 8];
      legend.append(dot, name);
    });
    let marker = null;
    const mark = (i) => {
      if (marker) viewer.removeShape(marker);
      const c = data.columns[i];
      const x = c.col * data.pixel, y = -c.row * data.pixel;
      const top = c.top === null ? 0 : c.top, bottom = c.bottom === null ? 0 : c.bottom;
      marker = viewer.addCylinder({
        // A needle that sticks out on both sides, so that it is also seen inside the specimen.
        start: { x, y, z: -(top - 9) }, end: { x, y, z: -(bottom + 9) }, radius: 0.45, color: "#e3410b",
        fromCap: 2, toCap: 2,
      });
      viewer.render();
    };
    viewer.setClickable({}, true, (atom) => choose(atom.properties.column));
    // Testing every atom at each movement is too slow for large models; those react to a click.
    if (atoms.length <= 6000) {
      viewer.setHoverDuration(80);
      viewer.setHoverable({}, true, (atom) => choose(atom.properties.column), () => {});
    }
    viewer.zoomTo();
    viewer.rotate(-55, "x");
    viewer.rotate(-20, "y");
    viewer.render();
    dark.addEventListener("change", () => { viewer.setBackgroundColor(ground()); viewer.render(); });
    window.addEventListener("resize", () => viewer.resize());
    box.dataset.atoms = String(atoms.length);
    return { mark, ready: true, viewer };
  })();

  let chosen = -1;
  function choose(i) {
    if (i < 0 || i === chosen) return;
    if (chosen >= 0) circles[chosen].classList.remove("chosen");
    chosen = i;
    circles[i].classList.add("chosen");
    circles[i].setAttribute("visibility", "visible");
    model.mark(i);
    const c = data.columns[i];
    const lines = [["Column", `${c.id} (${c.kind})`]];
    data.elements.forEach((name, k) => { if (c.n[k] > 0) lines.push([`${name} atoms`, String(c.n[k])]); });
    lines.push(
      ["All counts exact", c.p === null ? "not known" : `p = ${c.p}`],
      ["Row, column", `${minus(c.row)}, ${minus(c.col)} px`],
      ["Standard deviation", `${known(c.sigma[0], "")}, ${known(c.sigma[1], "")} pm`],
      ["Displacement x, y", `${known(c.shift[0], "")}, ${known(c.shift[1], "")} pm`],
      ["Residual here", c.chi2 === null ? "not measured" : `\u03c7\u00b2 = ${c.chi2}`],
      ["First, last atom", `${known(c.top, "")}, ${known(c.bottom, "")} \u00c5`],
      ["In the fitted region", c.inside ? "yes" : "no: not measured"]);
    readout.replaceChildren(...lines.flatMap(([name, value]) => {
      const term = document.createElement("dt"), detail = document.createElement("dd");
      term.textContent = name;
      detail.textContent = value;
      return [term, detail];
    }));
  }

  function nearest(col, row, allowed) {
    let best = -1, least = Infinity;
    data.columns.forEach((c, i) => {
      const d = (c.col - col) ** 2 + (c.row - row) ** 2;
      if (allowed(c, i) && d < least) { least = d; best = i; }
    });
    return best;
  }

  function point(event) {
    const box = stage.getBoundingClientRect();
    const col = ((event.clientX - box.left) / box.width) * data.cols - 0.5;
    const row = ((event.clientY - box.top) / box.height) * data.rows - 0.5;
    choose(nearest(col, row, () => true));
  }
  stage.addEventListener("pointermove", point);
  stage.addEventListener("pointerdown", point);
  stage.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
    if (!step) return;
    event.preventDefault();
    const here = data.columns[Math.max(chosen, 0)];
    // The nearest column within 45 degrees of the arrow.
    const next = nearest(here.col, here.row, (c) => {
      const along = (c.col - here.col) * step[0] + (c.row - here.row) * step[1];
      const across = Math.abs((c.col - here.col) * step[1]) + Math.abs((c.row - here.row) * step[0]);
      return along > 1e-6 && across <= along;
    });
    choose(next);
  });
  layer.addEventListener("change", () => layers.forEach((img, i) => { img.hidden = i !== Number(layer.value); }));
  colour.addEventListener("change", paint);
  paint();
  choose(nearest(data.cols / 2, data.rows / 2, (c) => c.inside));
})();
