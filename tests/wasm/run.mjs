// Runs the module under Node: `node run.mjs MODULE`. It says what it checked; a failure is shown and the status is not 0.
import { readFileSync } from "node:fs";

const module = new WebAssembly.Module(readFileSync(process.argv[2]));
let memory;
const say = (text, bytes) => console.log(new TextDecoder().decode(new Uint8Array(memory.buffer, text, bytes)));
// What only random numbers and the host's clock would need: the test does without, so a call is a failure.
const imports = { host: { say } };
for (const { module: from, name } of WebAssembly.Module.imports(module)) {
    imports[from] ??= {};
    imports[from][name] ??= () => {
        throw new Error(`the module called ${from}.${name}`);
    };
}
const { exports } = new WebAssembly.Instance(module, imports);
memory = exports.memory;
console.log(`${exports.run()} products on wasm32 agree with the decoded weights`);
