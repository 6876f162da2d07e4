// Makes elements. All text goes in as text, so that no name can become markup.

function element(tag, properties = {}, ...children) {
  const made = document.createElement(tag);
  set(made, properties);
  made.append(...children.flat(2).filter((child) => child !== null && child !== undefined));
  return made;
}

function set(target, properties) {
  for (const [name, value] of Object.entries(properties)) {
    if (value === null || value === undefined) continue;
    if (name === "role" || name.includes("-")) target.setAttribute(name, String(value));
    else target[name] = value;
  }
}

function swatch(cause) {
  const mark = element("span", { className: "swatch", "aria-hidden": "true" });
  mark.style.background = `var(--${cause})`;
  return mark;
}

function section(id, title, note, ...children) {
  const heading = element("h2", { id: `${id}-title` }, title);
  const head = element("div", { className: "section-head" }, heading);
  if (note) head.append(element("p", { className: "note" }, note));
  return element("section", { id, "aria-labelledby": `${id}-title` }, head, ...children);
}

// Draw anew without losing the place of who works by keyboard.
function keepingFocus(draw) {
  const id = document.activeElement?.id;
  draw();
  if (id) document.getElementById(id)?.focus({ preventScroll: true });
}

function announce(words) {
  let status = document.getElementById("status");
  if (!status) {
    status = element("p", { id: "status", className: "unseen", role: "status" });
    document.body.append(status);
  }
  status.textContent = words;
}

async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    // The clipboard is closed to a page that was opened from a file in some browsers: the old way is left.
    const field = element("textarea", { value: text, className: "unseen" });
    document.body.append(field);
    field.select();
    document.execCommand("copy");
    field.remove();
  }
  announce("copied");
}

function copyButton(id, text, what) {
  const button = element("button", { id, type: "button", className: "quiet", "aria-label": `copy ${what}` }, "copy");
  button.addEventListener("click", async () => {
    await copy(text);
    button.textContent = "copied";
    setTimeout(() => { button.textContent = "copy"; }, 1500);
  });
  return button;
}
