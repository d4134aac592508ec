// Where a question is written: images dropped, pasted, chosen or photographed, and a text.
import { Failed } from "./api.js";
import { made } from "./made.js";

const KINDS = ["image/png", "image/jpeg", "image/webp", "image/gif", "image/bmp"];

// onAsk({ text, images }) is called with what was written; images are { name, url } with a data: URL each.
export function composer({ placeholder, onAsk, onStop, tell, limits }) {
  let images = [];
  const strip = made("ul", { className: "strip", "aria-label": "Images of this question" });
  const text = made("textarea", { rows: 1, placeholder, "aria-label": "Question", name: "question" });
  const choosing = { type: "file", accept: KINDS.join(","), onchange: take };
  const choose = made("input", { ...choosing, multiple: true, "aria-label": "Choose images" });
  const capture = made("input", { ...choosing, "aria-label": "Take a photo", capture: "environment" });
  const send = made("button", { className: "main" }, "Ask");
  const stop = made("button", { type: "button", className: "main", hidden: true, onclick: onStop }, "Stop");
  const form = made("form", { className: "composer" },
    made("p", { className: "invite" }, made("b", {}, "Drop an image here"), ", paste one, or choose one."), strip, text,
    made("div", { className: "row" },
      made("label", { className: "chip file" }, "Image", choose), made("label", { className: "chip file photo" }, "Photo", capture),
      made("span", { className: "grow" }), stop, send));

  function take(event) {
    add(event.target.files);
    event.target.value = "";
  }

  async function add(files) {
    tell(null);
    for (const file of files) {
      if (!KINDS.includes(file.type)) tell(new Failed(0, `${file.name} is no image that is read here; take PNG, JPEG, WebP, GIF or BMP.`));
      else if (images.length >= limits.images) tell(new Failed(0, `One question takes ${limits.images} images at most; remove one first.`));
      else if (file.size * 4 / 3 > limits.body_bytes)
        tell(new Failed(0, `${file.name} is too large; all that is sent together may be ${Math.round(limits.body_bytes / 2 ** 20)} MiB. Make it smaller.`));
      else images = [...images, { name: file.name || "image", url: await read(file) }];
    }
    draw();
  }

  function draw() {
    strip.replaceChildren(...images.map(image => made("li", {},
      made("img", { src: image.url, alt: image.name }),
      made("button", { type: "button", "aria-label": `Remove ${image.name}`, onclick: () => { images = images.filter(other => other !== image); draw(); text.focus(); } }, "×"))));
    form.classList.toggle("with-images", images.length > 0);
  }

  const grow = () => { text.style.height = "auto"; text.style.height = `${Math.min(text.scrollHeight + 2, 220)}px`; };
  text.addEventListener("input", grow);
  text.addEventListener("keydown", event => {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
      event.preventDefault();
      form.requestSubmit();
    }
  });
  form.addEventListener("submit", event => {
    event.preventDefault();
    if (send.hidden) return;
    onAsk({ text: text.value.trim(), images });
  });
  // anywhere on the page, as long as this is the view that is shown
  const hear = (name, act) => document.addEventListener(name, event => {
    if (form.offsetParent !== null) act(event);
  });
  hear("dragover", event => { event.preventDefault(); form.classList.add("over"); });
  hear("dragleave", event => { if (!event.relatedTarget) form.classList.remove("over"); });
  hear("drop", event => {
    event.preventDefault();
    form.classList.remove("over");
    add(event.dataTransfer.files);
  });
  hear("paste", event => {
    if (event.clipboardData.files.length) {
      event.preventDefault();
      add(event.clipboardData.files);
    }
  });
  draw();
  return {
    element: form,
    focus: () => text.focus(),
    set isBusy(value) {
      send.hidden = value;
      stop.hidden = !value;
    },
    fill(question) {
      text.value = question.text;
      images = question.images;
      draw();
      grow();
    },
  };
}

const read = file => new Promise((done, fail) => {
  const reader = new FileReader();
  reader.onload = () => done(reader.result);
  reader.onerror = () => fail(reader.error);
  reader.readAsDataURL(file);
});

// a message as OpenAI's API takes it
export function userMessage({ text, images }) {
  if (!images.length) return { role: "user", content: text };
  const parts = images.map(image => ({ type: "image_url", image_url: { url: image.url } }));
  return { role: "user", content: text ? [...parts, { type: "text", text }] : parts };
}

export const questionArticle = ({ text, images }) => made("article", { className: "said user", "aria-label": "Question" },
  ...images.map(image => made("img", { src: image.url, alt: image.name })), text ? made("p", { className: "text" }, text) : null);
