// A log that is followed live: lines come as server-sent events, only those in sight are in the page, so a million lines
// scroll like ten. The text is always set as text, never as HTML; of the escape codes, colours and bold are understood.
"use strict";

const LINE = 19;
const SPARE = 40;

const parts = (text) => {
  const found = [];
  let classes = "";
  for (const piece of text.split(/(\x1b\[[0-9;]*m)/)) {
    const code = /^\x1b\[([0-9;]*)m$/.exec(piece);
    if (!code) {
      if (piece) found.push([classes, piece]);
      continue;
    }
    const set = new Set(classes.split(" ").filter(Boolean));
    for (const number of code[1].split(";").map(Number)) {
      if (number === 0) set.clear();
      else if (number === 1) set.add("bold");
      else if ((number >= 30 && number <= 37) || (number >= 90 && number <= 97) || number === 39) {
        for (const each of [...set]) if (each !== "bold") set.delete(each);
        if (number !== 39 && number % 10) set.add(`c${number % 10}`);
      }
    }
    classes = [...set].join(" ");
  }
  return found;
};

class Log {
  constructor(box) {
    this.box = box;
    this.lines = [];
    this.last = -1;
    this.room = box.appendChild(document.createElement("div"));
    this.room.className = "log-room";
    this.shown = this.room.appendChild(document.createElement("div"));
    this.shown.className = "log-lines";
    const bar = box.previousElementSibling;
    this.follow = bar.querySelector("[data-log-follow]");
    this.count = bar.querySelector("[data-log-count]");
    box.addEventListener("scroll", () => this.scrolled(), { passive: true });
    this.follow.addEventListener("change", () => this.plan());
    document.addEventListener("visibilitychange", () => (document.hidden ? this.close() : this.listen()));
    addEventListener("pagehide", () => this.close());
    this.plan();
    this.listen();
  }

  close() {
    clearTimeout(this.again);
    if (this.source) this.source.close();
    this.source = null;
  }

  listen() {
    this.close();
    if (this.over || document.hidden) return;
    const address = new URL(this.box.dataset.log, location.href);
    address.searchParams.set("after", this.last);
    const source = new EventSource(address);
    this.source = source;
    source.addEventListener("line", (event) => this.add(JSON.parse(event.data)));
    source.addEventListener("end", (event) => {
      this.close();
      this.end(JSON.parse(event.data));
    });
    source.onerror = () => {
      this.close();
      this.again = setTimeout(() => this.listen(), 2000);
    };
  }

  add(line) {
    if (line.line < this.last && line.line !== 0) return;
    if (line.line === 0 && this.last >= 0) this.lines = [];
    this.last = line.line;
    this.lines.push(line);
    this.plan();
  }

  end(found) {
    const said = document.createElement("p");
    said.className = "log-end";
    this.over = true;
    const word = { Succeeded: "succeeded", Failed: "failed", Canceled: "was cancelled", Omitted: "was skipped" }[found.phase];
    const why = found.phase === "Failed" ? found.message || "" : "";
    said.textContent = `${word ? `The job ${word}.` : "The log has ended."} ${why}`.trim();
    this.box.after(said);
    this.plan();
  }

  plan() {
    if (this.planned) return;
    this.planned = true;
    requestAnimationFrame(() => {
      this.planned = false;
      this.draw();
    });
  }

  scrolled() {
    const atEnd = this.box.scrollTop + this.box.clientHeight >= this.room.offsetHeight - LINE;
    if (!this.moving && !atEnd && this.follow.checked && this.box.scrollTop < this.top) this.follow.checked = false;
    else if (atEnd && !this.over) this.follow.checked = true;
    this.top = this.box.scrollTop;
    this.plan();
  }

  draw() {
    const { box, lines } = this;
    box.classList.toggle("short", lines.length < 25);
    this.room.style.height = `${Math.max(1, lines.length) * LINE + 12}px`;
    if (this.follow.checked) box.scrollTop = box.scrollHeight;
    const first = Math.max(0, Math.floor(box.scrollTop / LINE) - SPARE);
    const until = Math.min(lines.length, Math.ceil((box.scrollTop + box.clientHeight) / LINE) + SPARE);
    this.shown.style.transform = `translateY(${first * LINE + 6}px)`;
    this.shown.replaceChildren(...lines.slice(first, until).map((line) => this.row(line)));
    this.count.textContent = lines.length ? `${lines.length.toLocaleString("en")} line${lines.length === 1 ? "" : "s"}` : this.over ? "No output" : "No output yet";
  }

  row(line) {
    const row = document.createElement("div");
    row.className = `log-line ${line.stream}`;
    row.title = line.at;
    const number = row.appendChild(document.createElement("i"));
    number.textContent = line.line + 1;
    for (const [classes, text] of parts(line.message)) {
      const piece = row.appendChild(document.createElement("span"));
      if (classes) piece.className = classes;
      piece.textContent = text;
    }
    return row;
  }
}

for (const box of document.querySelectorAll("[data-log]")) new Log(box);
