// Writes under Node what the page would, as `rbe generate --greedy` does: `node test.mjs MODULE MODEL PROMPT [TOKENS]`.
import { readFileSync } from "node:fs";
import { Writer } from "./writer.mjs";

const [module, model, prompt, tokens = "20"] = process.argv.slice(2);
const file = (name) => new Uint8Array(readFileSync(`${model}/${name}`));
const files = { config: file("config.json"), tokenizer: file("tokenizer.json"), model: file("model.safetensors") };
const writer = new Writer(new WebAssembly.Module(readFileSync(module)), files);
let text = prompt;
const start = performance.now();
const written = writer.write(prompt, Number(tokens), (piece) => (text += piece));
const seconds = (performance.now() - start) / 1000;
console.log(text);
console.error(`${written} tokens, ${(written / seconds).toFixed(0)} a second`);
