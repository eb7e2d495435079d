// A small square picture to draw in: what is drawn becomes the `data` of the model's one input.
"use strict";

for (const grid of document.querySelectorAll("[data-grid]")) {
  const side = Number(grid.dataset.grid);
  const values = new Array(side * side).fill(0);
  const text = grid.closest("form").querySelector("textarea[name=request]");
  grid.classList.add(`s${side}`);
  const cells = values.map(() => grid.appendChild(document.createElement("b")));

  const show = () => cells.forEach((cell, at) => { cell.style.background = `rgb(255 255 255 / ${values[at] / 16})`; });
  const write = () => {
    const data = JSON.stringify(values).replaceAll(",", ", ");
    text.value = text.value.replace(/("data":\s*)\[[^\]]*\]/, `$1${data}`);
  };
  const read = () => {
    try {
      const data = JSON.parse(text.value).inputs[0].data.flat();
      if (data.length === values.length) data.forEach((value, at) => { values[at] = Number(value) || 0; });
    } catch { return; }
    show();
  };
  const paint = (event) => {
    const at = cells.indexOf(document.elementFromPoint(event.clientX, event.clientY));
    if (at < 0) return;
    const [x, y] = [at % side, Math.floor(at / side)];
    for (const [dx, dy, most] of [[0, 0, 16], [1, 0, 7], [0, 1, 7]]) {
      if (x + dx < side && y + dy < side) {
        const near = (y + dy) * side + x + dx;
        values[near] = Math.max(values[near], most);
      }
    }
    show();
    write();
  };
  grid.addEventListener("pointerdown", (event) => {
    grid.setPointerCapture(event.pointerId);
    paint(event);
  });
  grid.addEventListener("pointermove", (event) => { if (event.buttons) paint(event); });
  grid.parentElement.querySelector("[data-grid-clear]").addEventListener("click", () => {
    values.fill(0);
    show();
    write();
  });
  text.addEventListener("input", read);
  read();
}
