// A request as others would make it: with curl, and with OpenAI's client for Python. Images are named as files.
import { key } from "./api.js";

const kindOf = url => url.slice(5, url.indexOf(";"));

// the messages with the place of each image taken by what `spell` makes of it
function spelled(value, spell) {
  if (Array.isArray(value)) return value.map(each => spelled(each, spell));
  if (value?.type === "image_url") return { ...value, image_url: { url: spell(value.image_url) } };
  if (value && typeof value === "object")
    return Object.fromEntries(Object.entries(value).map(([name, each]) => [name, spelled(each, spell)]));
  return value;
}

const MARK = "\u0001";  // stands where code takes the place of a text; no request holds it

export function asCurl(body, names) {
  let at = 0;
  const images = [];
  const marked = JSON.stringify(spelled(body, ({ url }) => {
    images.push([kindOf(url), names[at++]]);
    return MARK;
  }), null, 2);
  const safe = marked.replace(/[\\$`]/g, "\\$&");  // the shell reads what stands between the two EOF
  const text = safe.replaceAll(JSON.stringify(MARK).replace(/[\\$`]/g, "\\$&"), () => {
    const [kind, name] = images.shift();
    return `"data:${kind};base64,$(base64 < ${inShell(name)} | tr -d '\\n')"`;
  });
  const header = key.get() ? " \\\n  -H \"Authorization: Bearer $VISGRAFT_API_KEY\"" : "";
  return `curl ${location.origin}/v1/chat/completions -H 'Content-Type: application/json'${header} -d @- <<EOF\n${text}\nEOF\n`;
}

const inShell = name => `'${name.replaceAll("'", "'\\''")}'`;

export function asPython(body, names) {
  let at = 0;
  const images = [];
  const { messages, ...settings } = body;
  const text = inPython(spelled(messages, ({ url }) => {
    images.push([kindOf(url), names[at++]]);
    return MARK;
  }), 4).replaceAll(JSON.stringify(MARK), () => {
    const [kind, name] = images.shift();
    return `image(${JSON.stringify(name)}, ${JSON.stringify(kind)})`;
  });
  const withImages = names.length > 0;
  return [
    ...(withImages ? ["import base64"] : []), ...(key.get() ? ["import os"] : []), ...(withImages ? ["from pathlib import Path"] : []),
    ...(withImages || key.get() ? [""] : []), "from openai import OpenAI", "",
    ...(withImages ? ["", "def image(path, kind):", "    return f\"data:{kind};base64,\" + base64.b64encode(Path(path).read_bytes()).decode()", "", ""] : []),
    `client = OpenAI(base_url=${JSON.stringify(`${location.origin}/v1`)}, api_key=${key.get() ? "os.environ[\"VISGRAFT_API_KEY\"]" : "\"none\""})`,
    "answer = client.chat.completions.create(",
    ...Object.entries(settings).map(([name, value]) => `    ${name}=${inPython(value, 4)},`),
    `    messages=${text},`, ")", "print(answer.choices[0].message.content)", "",
  ].join("\n");
}

// JSON's texts and numbers are Python's too; its three words are not
function inPython(value, indent) {
  const inside = " ".repeat(indent + 4), end = " ".repeat(indent);
  if (Array.isArray(value)) return `[\n${value.map(each => `${inside}${inPython(each, indent + 4)},\n`).join("")}${end}]`;
  if (value && typeof value === "object")
    return `{${Object.entries(value).map(([name, each]) => `${JSON.stringify(name)}: ${inPython(each, indent)}`).join(", ")}}`;
  return { true: "True", false: "False", null: "None" }[JSON.stringify(value)] ?? JSON.stringify(value);
}
