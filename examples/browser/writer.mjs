// The module as JavaScript uses it, in a browser's worker and under Node.

/** A model in WebAssembly: `files` are the bytes of `config`, `tokenizer` and `model`. */
export class Writer {
    #exports;
    #model;
    #piece = () => {};

    constructor(module, files) {
        const text = (start, bytes) => new TextDecoder().decode(new Uint8Array(this.#exports.memory.buffer, start, bytes));
        const host = {
            piece: (start, bytes) => this.#piece(text(start, bytes)),
            fail: (start, bytes) => {
                throw new Error(text(start, bytes));
            },
        };
        const imports = { host };
        // Of what `wasm-bindgen` lists only the random numbers are ever asked for, by tables that tokenizers keep: a slice to be filled.
        const random = (start, bytes) =>
            void crypto.getRandomValues(new Uint8Array(this.#exports.memory.buffer, start, bytes));
        for (const { module: from, name } of WebAssembly.Module.imports(module)) {
            imports[from] ??= {};
            imports[from][name] ??= name.includes("getRandomValues")
                ? random
                : () => {
                      throw new Error(`the module called ${from}.${name}`);
                  };
        }
        this.#exports = new WebAssembly.Instance(module, imports).exports;
        const given = [files.config, files.tokenizer, files.model].flatMap((bytes) => this.#give(bytes));
        this.#model = this.#exports.load(...given);
    }

    #give(bytes) {
        const start = this.#exports.buffer(bytes.length);
        new Uint8Array(this.#exports.memory.buffer, start, bytes.length).set(bytes);
        return [start, bytes.length];
    }

    /** Continues a text; `piece` is called with each piece of it. Returns the number of tokens. */
    write(prompt, mostTokens, piece) {
        this.#piece = piece;
        return this.#exports.write(this.#model, ...this.#give(new TextEncoder().encode(prompt)), mostTokens);
    }
}
