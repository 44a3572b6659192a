"use strict";
// Line charts as SVG: points, lines, bands of one standard deviation, ticks at round numbers.
(() => {
  const NAME = "http://www.w3.org/2000/svg";

  function node(name, attributes, text) {
    const made = document.createElementNS(NAME, name);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    if (text !== undefined) made.textContent = text;
    return made;
  }

  const minus = (text) => text.replaceAll("-", "\u2212");

  function clock(seconds) {
    const s = Math.max(Math.floor(seconds), 0), pad = (n) => String(n).padStart(2, "0");
    const h = Math.floor(s / 3600), m = Math.floor(s / 60) % 60;
    return h ? `${h}:${pad(m)}:${pad(s % 60)}` : `${m}:${pad(s % 60)}`;
  }

  function number(value, digits = 4) {
    if (value === null || value === undefined || !Number.isFinite(value)) return "not known";
    const size = Math.abs(value);
    if (size !== 0 && (size < 1e-4 || size >= 1e6)) return minus(value.toExponential(digits - 1));
    return minus(String(Number(value.toPrecision(digits))));
  }

  function withSigma(value, sigma) {
    if (sigma === null || sigma === undefined || !(sigma > 0) || value === null) return number(value);
    const decimals = 1 - Math.floor(Math.log10(sigma));
    if (decimals < -4 || decimals > 9) return `${number(value, 6)} \u00b1 ${number(sigma, 2)}`;
    const round = (v) => (decimals >= 0 ? v.toFixed(decimals) : String(Math.round(v / 10 ** -decimals) * 10 ** -decimals));
    return minus(`${round(value)} \u00b1 ${round(sigma)}`);
  }

  // A tick of a logarithmic axis: 0.03, but 10⁻⁵.
  function power(value) {
    const exponent = Math.round(Math.log10(value));
    if (Math.abs(exponent) < 3 || Math.abs(value / 10 ** exponent - 1) > 1e-6) return number(value, 1);
    return `10${[...String(exponent)].map((c) => "\u207b\u2070\u00b9\u00b2\u00b3\u2074\u2075\u2076\u2077\u2078\u2079"["-0123456789".indexOf(c)]).join("")}`;
  }

  function niceStep(span, count) {
    const raw = span / Math.max(count, 1), power = 10 ** Math.floor(Math.log10(raw));
    return [1, 2, 5, 10].map((m) => m * power).find((s) => s >= raw * 0.999);
  }

  function linearTicks(low, high, count) {
    const step = niceStep(high - low, count), out = [];
    for (let v = Math.ceil(low / step - 1e-9) * step; v <= high + 1e-9 * step; v += step) out.push(v);
    const decimals = Math.max(0, -Math.floor(Math.log10(step) + 1e-9));
    return out.map((v) => [v, minus((Math.abs(v) < step / 2 ? 0 : v).toFixed(decimals))]);
  }

  function timeTicks(low, high, count) {
    const steps = [1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400, 43200, 86400];
    const step = steps.find((s) => s >= (high - low) / Math.max(count, 1)) || niceStep(high - low, count), out = [];
    for (let v = Math.ceil(low / step) * step; v <= high; v += step) out.push([v, clock(v)]);
    return out;
  }

  function logTicks(low, high) { // of logarithms
    for (const set of [[1], [1, 3], [1, 2, 5], [1, 2, 3, 4, 5, 6, 7, 8, 9]]) {
      const every = [];
      for (let p = Math.floor(low); p <= Math.ceil(high); p++) every.push(...set.map((m) => m * 10 ** p));
      const inside = every.filter((v) => Math.log10(v) >= low && Math.log10(v) <= high);
      if (inside.length >= 3) return inside.map((v) => [Math.log10(v), power(v)]);
    }
    return linearTicks(10 ** low, 10 ** high, 5).filter(([v]) => v > 0).map(([v, text]) => [Math.log10(v), text]);
  }

  // options: series [{points: [{x, y, s}], line, dots, open, band}], xTime, xLabel, yLabel, log, small
  function draw(svg, options) {
    const box = svg.getBoundingClientRect();
    const width = Math.round(box.width) || 320, high = Math.round(box.height) || 200;
    svg.setAttribute("viewBox", `0 0 ${width} ${high}`);
    svg.replaceChildren();
    const small = Boolean(options.small);
    const scale = options.log ? (v) => Math.log10(v) : (v) => v;
    const usable = (p) => p.y !== null && Number.isFinite(p.y) && (!options.log || p.y > 0);
    const series = options.series.map((s) => ({ ...s, points: s.points.filter(usable) }));
    const every = series.flatMap((s) => s.points);
    if (!every.length) {
      svg.append(node("text", { x: width / 2, y: high / 2, "text-anchor": "middle" }, options.empty || "nothing yet"));
      return;
    }
    const xs = every.map((p) => p.x), spread = (p) => (options.log || !p.s ? 0 : p.s);
    const ys = every.flatMap((p) => [scale(p.y) - spread(p), scale(p.y) + spread(p)]);
    let x0 = Math.min(...xs), x1 = Math.max(...xs), y0 = Math.min(...ys), y1 = Math.max(...ys);
    if (options.zero) y0 = Math.min(y0, 0);
    if (!(x1 > x0)) { x0 -= 0.5; x1 += 0.5; }
    const least = options.log ? 0.005 : Math.max(Math.abs(y1) * 1e-3, 1e-9);
    if (y1 - y0 < least) { const middle = (y0 + y1) / 2; y0 = middle - least / 2; y1 = middle + least / 2; }
    const air = 0.06 * (y1 - y0);
    y0 -= options.zero && y0 === 0 ? 0 : air;
    y1 += air;
    const left = small ? 46 : 60, right = small ? 4 : 12, top = small ? 6 : 12, bottom = small ? 6 : 34;
    const X = (v) => left + ((v - x0) / (x1 - x0)) * (width - left - right);
    const Y = (v) => high - bottom - ((v - y0) / (y1 - y0)) * (high - top - bottom);
    if (small) {
      for (const [v, text] of linearTicks(y0, y1, 3)) {
        svg.append(node("line", { x1: left, x2: width - right, y1: Y(v), y2: Y(v), class: "grid" }));
        svg.append(node("text", { x: left - 5, y: Math.min(Math.max(Y(v) + 4, 9), high - 2), "text-anchor": "end" }, text));
      }
    } else {
      const yTicks = options.log ? logTicks(y0, y1) : linearTicks(y0, y1, 5);
      for (const [v, text] of yTicks) {
        svg.append(node("line", { x1: left, x2: width - right, y1: Y(v), y2: Y(v), class: "grid" }));
        svg.append(node("text", { x: left - 6, y: Y(v) + 4, "text-anchor": "end" }, text));
      }
      const count = Math.max(2, Math.floor((width - left) / 90));
      for (const [v, text] of options.xTime ? timeTicks(x0, x1, count) : linearTicks(x0, x1, count)) {
        svg.append(node("line", { x1: X(v), x2: X(v), y1: high - bottom, y2: high - bottom + 4, class: "grid" }));
        svg.append(node("text", { x: Math.min(X(v), width - 18), y: high - bottom + 15, "text-anchor": "middle" }, text));
      }
      svg.append(node("text", { x: (left + width) / 2, y: high - 4, "text-anchor": "middle" }, options.xLabel || ""));
      svg.append(node("text", { x: 12, y: (high - bottom) / 2, "text-anchor": "middle", transform: `rotate(-90 12 ${(high - bottom) / 2})` }, options.yLabel || ""));
    }
    for (const s of series) {
      const at = s.points.map((p) => ({ ...p, u: X(p.x), v: Y(scale(p.y)) }));
      if (s.band && at.some((p) => p.s)) {
        const known = at.filter((p) => p.s);
        const edge = (sign) => known.map((p) => `${p.u.toFixed(1)},${Y(scale(p.y) + sign * p.s).toFixed(1)}`);
        if (known.length > 1) svg.append(node("polygon", { points: [...edge(1), ...edge(-1).reverse()].join(" "), class: "band" }));
        else svg.append(node("line", { x1: known[0].u, x2: known[0].u, y1: Y(known[0].y - known[0].s), y2: Y(known[0].y + known[0].s), class: "line" }));
      }
      if (s.line && at.length > 1) svg.append(node("polyline", { points: at.map((p) => `${p.u.toFixed(1)},${p.v.toFixed(1)}`).join(" "), class: "line" }));
      if (s.dots || s.open || at.length === 1) {
        for (const p of at) {
          const dot = node("circle", { cx: p.u.toFixed(1), cy: p.v.toFixed(1), r: small ? 1.8 : 2.8, class: s.open ? "open" : "dot" });
          if (p.title) dot.append(node("title", {}, p.title));
          svg.append(dot);
        }
      }
    }
  }

  window.charts = { draw, clock, number, withSigma, minus };
})();
