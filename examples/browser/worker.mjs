// Loads the model and writes, beside the page, which stays alive meanwhile.
import { Writer } from "./writer.mjs";

async function bytes(url) {
    const response = await fetch(url);
    if (!response.ok) throw new Error(`${url}: ${response.status} ${response.statusText}`);
    return new Uint8Array(await response.arrayBuffer());
}

async function load() {
    const [module, config, tokenizer, model] = await Promise.all(
        ["candle_rbe_in_a_browser.wasm", "model/config.json", "model/tokenizer.json", "model/model.safetensors"].map(bytes),
    );
    const start = performance.now();
    const writer = new Writer(await WebAssembly.compile(module), { config, tokenizer, model });
    postMessage({ loaded: { bytes: model.length, milliseconds: performance.now() - start } });
    return writer;
}

const loading = load();
loading.catch((error) => postMessage({ error: error.message }));
onmessage = async ({ data: { prompt, mostTokens } }) => {
    try {
        const writer = await loading;
        const start = performance.now();
        const tokens = writer.write(prompt, mostTokens, (piece) => postMessage({ piece }));
        postMessage({ done: { tokens, milliseconds: performance.now() - start } });
    } catch (error) {
        postMessage({ error: error.message });
    }
};
