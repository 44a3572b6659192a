"use strict";
(() => {
  const { draw, clock, number, withSigma } = window.charts;
  const STAGES = ["calibrate", "imaging", "lens", "positions", "counts", "surfaces", "joint"];
  const REDRAW_MS = 1000;
  const TRACE_LEAST = 2; // states from which on the traces show the whole field
  const by = (id) => document.getElementById(id);
  const token = document.querySelector("meta[name=qhrtem-token]").content;

  let told, forgotten = 0;
  let status = null, statusAt = 0, connected = true;
  function forget() {
    told = { steps: [], trials: [], parts: [], sessions: [], stopped: null, finished: null, safe: 0, number: forgotten++ };
  }
  forget();

  function take(message) {
    const kind = message.kind;
    if (kind === "session") {
      told.sessions.push(message);
      told.stopped = null;
      // What was not yet part of a finished part will be told again.
      if (message.event === "resume") told.steps.length = told.safe;
    } else if (kind === "step") told.steps.push(message);
    else if (kind === "trial") told.trials.push(message);
    else if (kind === "part") {
      // A part that is computed again takes the place of the first and of all that followed it.
      const old = told.parts.findIndex((p) => p.part === message.part);
      if (old >= 0) told.parts.length = old;
      told.parts.push(message);
      told.safe = told.steps.length;
    } else if (kind === "stopped") told.stopped = message;
    else if (kind === "finished") told.finished = message;
  }

  function element(name, text, className) {
    const made = document.createElement(name);
    if (text !== undefined) made.textContent = text;
    if (className) made.className = className;
    return made;
  }

  function row(cells, className) {
    const made = element("tr", undefined, className);
    for (const [text, kind] of cells) made.append(element("td", text, kind));
    return made;
  }

  const aside = (name) => name.startsWith("thickness") || /^\(\d+\) thickness/.test(name);
  const contender = (name) => (/^\(\d+\) /.exec(name) || [""])[0];
  const chi2 = (v) => (v === null || v === undefined ? "" : Math.abs(v) < 10 ? v.toFixed(4) : number(v));

  // The states of the specimen that leads, in order, without the rivals.
  function states() {
    const shown = told.parts.filter((p) => p.lens);
    const settled = shown.filter((p) => !aside(p.part));
    const name = settled.length ? contender(settled[settled.length - 1].part) : "";
    return settled.filter((p) => contender(p.part) === name || p.part.startsWith("lens "));
  }

  const since = () => (status ? (status.now - status.changed) / 1000 + (Date.now() - statusAt) / 1000 : 0);

  function headline() {
    const standing = status ? status.standing : "connecting";
    const step = told.steps[told.steps.length - 1];
    const where = step ? step.stage : "";
    const words = {
      connecting: ["Connecting", ""],
      empty: ["No run here at the moment", "None has begun yet, or one failed and was removed; the terminal it ran in says why."],
      running: [where ? `Running: ${where}` : "Running", step && step.note ? step.note : ""],
      stopped: ["Stopped, can be resumed", told.stopped ? told.stopped.reason : ""],
      "broken off": ["Broken off, can be resumed", "The run ended without saying why: it was killed, lost its power, or was stopped inside a long calculation. What was finished is on the disk."],
      elsewhere: ["At work on another machine", "Only that machine can tell whether the run still goes on; this page shows what it has written so far."],
      finished: told.finished && !told.finished.passed
        ? ["Finished: REFUSED, no atoms are claimed", "A quality gate failed. The report says which and why."]
        : ["Finished: every quality gate holds", ""],
    }[standing];
    by("headline").textContent = words[0];
    by("explanation").textContent = status && status.problem ? status.problem : words[1];
    const refused = standing === "finished" && told.finished && !told.finished.passed;
    const bad = refused || (status && status.problem);
    by("standing").className = "verdict " + (bad ? "refused" : standing === "finished" ? "" : "waiting");
    by("links").hidden = !(status && status.report && standing === "finished");
    for (const link of document.querySelectorAll(".passed-only")) link.hidden = Boolean(refused);
    document.title = `${words[0]} \u2013 qhrtem live`;
  }

  function progress() {
    const standing = status ? status.standing : "";
    const step = told.steps[told.steps.length - 1];
    const reached = step ? step.stage : "";
    const seen = new Set(told.steps.map((s) => s.stage));
    by("stages").replaceChildren(...STAGES.map((name) => {
      const now = name === reached && standing !== "finished";
      return element("li", name, now ? "now" : seen.has(name) ? "past" : "");
    }));
    const finished = standing === "finished";
    const done = finished ? 1 : step && step.done !== null && step.done !== undefined ? step.done : 0;
    by("done").value = done;
    if (!step) { by("clock").textContent = ""; return; }
    const running = standing === "running" || standing === "elsewhere";
    const elapsed = step.seconds + (running ? since() : 0);
    let text = `${Math.round(100 * done)} % of the estimated work, ${clock(elapsed)} of computing`;
    if (finished) text = `${clock(step.seconds)} of computing`;
    else if (running && done >= 0.1) text += `, about ${clock(Math.max(step.seconds / done - elapsed, 0))} left`;
    if (running && since() > 5) text += `; last heard ${clock(since())} ago`;
    by("clock").textContent = text;
  }

  function numbers() {
    const field = told.steps.filter((s) => s.stage !== "imaging" && s.chi2 !== null);
    const step = told.steps[told.steps.length - 1];
    const last = field[field.length - 1], all = states(), state = all[all.length - 1];
    const lattice = told.parts.find((p) => p.pixel_size_A);
    const searched = told.steps.filter((s) => s.stage === "imaging" && s.chi2 !== null);
    const out = [];
    if (last) {
      out.push(["Reduced \u03c7\u00b2 now", chi2(last.chi2)]);
      out.push(["Best \u03c7\u00b2", chi2(Math.min(...field.map((s) => s.chi2)))]);
    } else if (searched.length) {
      out.push(["Lattice contrast unexplained, best", `${number(100 * Math.min(...searched.map((s) => s.chi2)), 3)} %`]);
    }
    if (told.trials.length) out.push(["Trials of the imaging search", String(told.trials.length)]);
    if (state && state.columns) out.push(["Columns in the image", String(state.columns)]);
    if (lattice) out.push(["Pixel size", `${lattice.pixel_size_A.toFixed(5)} \u00c5`]);
    if (step) out.push(["Parts finished", String(told.parts.length)]);
    by("numbers").replaceChildren(...out.map(([meaning, value]) => {
      const box = element("div");
      box.append(element("dt", meaning), element("dd", value));
      return box;
    }));
  }

  let pictured = "";
  function match() {
    const held = [...told.parts].reverse().find((p) => p.picture && !aside(p.part));
    const final = status && status.standing === "finished" && status.report;
    const name = final ? "final" : held ? held.picture : "";
    by("match").hidden = !name;
    if (!name) return;
    by("match-state").textContent = final ? "of the result" : `after ${held.part}, \u03c7\u00b2 ${chi2(held.chi2)}`;
    scaleBar(held && held.field_A ? held.field_A[1] : 0);
    if (name === pictured) return;
    pictured = name;
    for (const layer of ["measured", "simulated", "difference"]) {
      const img = by(`image-${layer}`), next = new Image();
      // The old picture stays until the new one is there, and also where that is gone already.
      next.onload = () => { img.src = next.src; };
      next.src = `/image/${name}/${layer}.png`;
    }
  }

  // A bar of 1, 2 or 5 times a power of ten, at most a third of the field long.
  function scaleBar(field) {
    const bar = by("bar");
    bar.hidden = !field;
    if (!field) return;
    const power = 10 ** Math.floor(Math.log10(field / 3));
    const length = Math.max(...[1, 2, 5].map((m) => m * power).filter((v) => v <= field / 3));
    bar.style.width = `${(100 * length) / field}%`;
    bar.firstElementChild.textContent = length >= 10 ? `${number(length / 10)} nm` : `${number(length)} \u00c5`;
  }

  function bestSoFar(points) {
    let best = Infinity;
    return points.map((p) => ({ ...p, y: (best = Math.min(best, p.y)) }));
  }

  function misfit() {
    const time = { xTime: true, xLabel: "time of computing" };
    const point = (s) => ({ x: s.seconds, y: s.chi2, title: `${s.stage} ${s.note}: ${chi2(s.chi2)}` });
    const searched = told.steps.filter((s) => s.stage === "imaging" && s.chi2 !== null).map(point);
    draw(by("chart-imaging"), {
      ...time, log: true, yLabel: "share unexplained",
      series: [{ points: searched, dots: true }, { points: bestSoFar(searched), line: true }],
    });
    const rivals = (s) => / by a period/.test(s.note);
    const field = told.steps.filter((s) => s.stage !== "imaging" && s.chi2 !== null);
    const kept = field.filter((s) => !rivals(s)).map(point);
    draw(by("chart-field"), {
      ...time, log: true, yLabel: "reduced \u03c7\u00b2",
      series: [{ points: bestSoFar(kept), line: true }, { points: kept, dots: true }, { points: field.filter(rivals).map(point), open: true }],
    });
  }

  function traces() {
    const field = states();
    const whole = field.length >= TRACE_LEAST;
    let best = Infinity;
    const leading = told.trials.filter((t) => t.lens && t.chi2 !== null && t.chi2 < best && ((best = t.chi2), true));
    const source = whole ? [...field] : [...leading, ...field];
    const result = told.finished && told.finished.lens && told.finished.lens.length ? told.finished : null;
    const end = told.steps[told.steps.length - 1];
    if (result && end) source.push({ seconds: end.seconds, lens: result.lens, result: true });
    by("parameters").hidden = !source.length;
    if (!source.length) return;
    by("parameters-note").textContent = result
      ? "Each state of the whole field, against the time of computing. The dot with its bar is the result with the error that it claims, model error included; the band is one standard deviation with everything else free and column ends as they were. C1 is quoted from the exit plane."
      : whole
      ? "Each state of the whole field, against the time of computing. Band: one standard deviation with everything else free, column ends as they are, without the model error that the report adds. C1 is quoted from the exit plane."
      : "Best trial so far of the search over repeated cells, against the time of computing, C1 quoted from the exit plane of a crystal 4 nm thick. Band: one standard deviation.";
    const found = new Map(); // by key: label, unit, points
    for (const s of source) {
      for (const [key, label, unit, value, sigma] of s.lens) {
        if (!found.has(key)) found.set(key, { label, unit, points: [] });
        found.get(key).points.push({ x: s.seconds, y: value, s: sigma, result: s.result });
      }
    }
    // What no state has an error of is not refined yet.
    const held = whole ? [...found.values()].filter((f) => !f.points.some((p) => p.s)) : [];
    for (const [key, f] of found) if (held.includes(f)) found.delete(key);
    by("held").textContent = held.length
      ? `${result ? "Held fixed" : "Not refined yet"}: ${held.map((f) => `${f.label} ${number(f.points[f.points.length - 1].y)} ${f.unit}`.trim()).join(", ")}.`
      : "";
    const box = by("traces");
    const names = [...found.keys()].join();
    if (box.dataset.names !== names) {
      box.dataset.names = names;
      box.replaceChildren(...[...found.values()].map((f) => {
        const made = element("div", undefined, "trace");
        const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
        svg.setAttribute("class", "chart");
        svg.setAttribute("role", "img");
        svg.setAttribute("aria-label", `Trace of ${f.label}`);
        made.append(element("h3", f.label), element("p"), svg);
        return made;
      }));
    }
    [...found.values()].forEach((f, n) => {
      const made = box.children[n], last = f.points[f.points.length - 1];
      const known = [...f.points].reverse().find((p) => p.s);
      // A state whose part did not work out an error has that of the last one that did.
      const sigma = last.s || (known ? known.s : null);
      made.querySelector("p").textContent = `${withSigma(last.y, sigma)} ${f.unit}`;
      const states = f.points.filter((p) => !p.result), claims = f.points.filter((p) => p.result);
      draw(made.querySelector("svg"), { small: true, series: [
        { points: states, line: true, band: true, dots: states.length < 12 }, { points: claims, band: true, dots: true },
      ] });
    });
  }

  function search() {
    by("search").hidden = !told.trials.length;
    if (!told.trials.length) return;
    const searches = new Map();
    told.trials.forEach((t, n) => {
      if (!searches.has(t.part)) searches.set(t.part, []);
      searches.get(t.part).push({ x: n + 1, y: t.step, title: `${t.part}, trial ${t.trial}` });
    });
    const series = [...searches.values()].map((points) => ({ points, dots: true, line: true }));
    draw(by("chart-step"), { log: true, xLabel: "trial, one search after the other", yLabel: "share of the box", series });
    const first = told.trials.find((t) => t.lens);
    const names = first ? first.lens.map(([, label, unit]) => `${label}${unit ? ` (${unit})` : ""}`) : [];
    const head = element("tr");
    for (const [text, kind] of [["Search", ""], ["Trial", "number"], ["\u03c7\u00b2", "number"], ["Step", "number"], ["From", ""], ...names.map((n) => [n, "number"])]) head.append(element("th", text, kind));
    const table = by("trials");
    table.tHead.replaceChildren(head);
    const finite = told.trials.filter((t) => t.chi2 !== null).map((t) => t.chi2);
    const best = Math.min(...finite);
    const from = { refined: "least squares", design: "design", model: "surrogate", added: "given" };
    table.tBodies[0].replaceChildren(...[...told.trials].reverse().map((t) => row([
      [t.part, ""], [String(t.trial), "number"], [t.chi2 === null ? "failed" : number(t.chi2, 5), "number"],
      [t.step === null ? "" : number(t.step, 2), "number"], [from[t.origin] || t.origin, ""],
      ...(t.lens || []).map(([, , , value, sigma]) => [withSigma(value, sigma), "number"]),
    ], t.chi2 === best ? "best" : "")));
  }

  function rules() {
    const held = [...told.parts].reverse().find((p) => p.rejected && Object.keys(p.rejected).length);
    by("rules").hidden = !held;
    if (held) by("rejected").replaceChildren(...Object.entries(held.rejected).map(([name, count]) => row([[name, ""], [String(count), "number"]])));
  }

  function history() {
    const rows = [...told.steps].reverse().map((s) => row([
      [clock(s.seconds), "number"], [s.stage, ""], [s.stage === "imaging" && s.chi2 !== null ? `${number(100 * s.chi2, 3)} %` : chi2(s.chi2), "number"], [s.note, ""],
    ], / by a period/.test(s.note) ? "aside" : ""));
    by("history").tBodies[0].replaceChildren(...rows);
  }

  function sessions() {
    const rows = told.sessions.map((s) => {
      const who = s.owner || {};
      const what = s.event === "begin" ? (s.parent ? `begun as a child of ${s.parent}: ${(s.differences || []).join("; ") || "nothing changed"}` : "begun") : `resumed with ${s.finished_parts} finished parts`;
      return row([[who.since || "", ""], [`${who.pid} on ${who.host}`, ""], [what, ""]]);
    });
    if (told.stopped) rows.push(row([["", ""], ["", ""], [told.stopped.reason, ""]]));
    by("sessions").replaceChildren(...rows);
    const begin = told.sessions.find((s) => s.plan);
    by("plan").textContent = begin ? begin.plan : "";
    by("versions").textContent = begin && begin.versions ? Object.entries(begin.versions).map(([k, v]) => `${k} ${v}`).join("\n") : "";
  }

  function control() {
    const running = Boolean(status) && status.standing === "running" && connected;
    by("stop").disabled = !running;
    if (!running) ask(false);
    by("owner").textContent = status && status.owner ? `(${status.owner[0]} on ${status.owner[1]}, since ${status.owner[2]})` : "";
    by("stopping").hidden = by("resuming").hidden = Boolean(status) && status.standing === "finished";
  }

  function ask(really) {
    by("confirm").hidden = by("keep").hidden = !really;
    by("stop").hidden = really;
  }
  by("stop").addEventListener("click", () => { ask(true); by("keep").focus(); });
  by("keep").addEventListener("click", () => ask(false));
  by("confirm").addEventListener("click", async () => {
    ask(false);
    by("said").textContent = "Asking \u2026";
    try {
      const answer = await fetch("/stop", { method: "POST", headers: { "X-Qhrtem-Token": token } });
      const text = await answer.text();
      let said = text;
      try { said = JSON.parse(text).said; } catch (error) { /* a refusal is plain text */ }
      by("said").textContent = said;
    } catch (error) {
      by("said").textContent = "The server of this page does not answer; nothing was asked.";
    }
  });

  // Each section with what it is drawn from: it is drawn again only when that has changed.
  const ends = () => Boolean(told.finished);
  const SECTIONS = [
    [headline, null], [progress, null], [numbers, () => [told.steps.length, told.parts.length, told.trials.length]],
    [match, null], [misfit, () => [told.steps.length]], [traces, () => [told.parts.length, told.trials.length, ends()]],
    [search, () => [told.trials.length]], [rules, () => [told.parts.length]], [history, () => [told.steps.length]],
    [sessions, () => [told.sessions.length, told.stopped]], [control, null],
  ];
  let drawnFrom = new Map();
  function drawChanged() {
    for (const [section, from] of SECTIONS) {
      const key = from ? JSON.stringify([told.number, ...from()]) : null;
      if (key === null || drawnFrom.get(section) !== key) section();
      drawnFrom.set(section, key);
    }
  }

  let waiting = false, drawnAt = 0;
  function redraw() {
    if (waiting) return;
    waiting = true;
    // A hidden tab draws nothing until it is looked at.
    setTimeout(() => requestAnimationFrame(() => {
      waiting = false;
      drawnAt = Date.now();
      by("lost").hidden = connected;
      drawChanged();
    }), Math.max(0, REDRAW_MS - (Date.now() - drawnAt)));
  }

  window.follow((kind, content, at) => {
    if (kind === "reset") { forget(); pictured = ""; }
    else if (kind === "message") take(content);
    else if (kind === "status") { status = content; statusAt = at; }
    else connected = kind === "open";
    redraw();
  });
  setInterval(() => { if (status && !document.hidden) requestAnimationFrame(progress); }, 1000);
  window.addEventListener("resize", () => { drawnFrom = new Map(); redraw(); });
  redraw();
})();
