// A compressed model in onnxruntime-web (WebAssembly), under Node as in a browser.
//
//     npm install onnxruntime-web
//     node run.mjs model.onnx other.onnx      # any number of files: milliseconds for one sample each, taken in turn
//     node run.mjs model.onnx --inputs x.json # {"x": {"type": "float32", "dims": [1, 3, 32, 32], "data": [...]}}: its outputs, too
//
// Free dimensions become 1. In a page: import from "onnxruntime-web" the same way and give `create` the file's address.
import { readFile } from "node:fs/promises";
import { createRequire } from "node:module";
import { pathToFileURL } from "node:url";

const ort = await import(pathToFileURL(createRequire(`${process.cwd()}/`).resolve("onnxruntime-web")));
ort.env.wasm.numThreads = 1;
ort.env.logLevel = "error";
const ARRAYS = { int64: BigInt64Array, int32: Int32Array, int8: Int8Array, uint8: Uint8Array, bool: Uint8Array, float64: Float64Array, float32: Float32Array };
const SECONDS = 2;

function tensor({ type, dims, data }) {
  const kind = ARRAYS[type];
  return new ort.Tensor(type, data ? kind.from(type === "int64" ? data.map(BigInt) : data) : new kind(dims.reduce((a, b) => a * b, 1)), dims);
}

function zeros(session) {
  return Object.fromEntries(session.inputMetadata.map((m) => [m.name, tensor({ type: m.type, dims: m.shape.map((d) => (typeof d === "number" ? d : 1)) })]));
}

const words = process.argv.slice(2);
const at = words.indexOf("--inputs");
const given = at < 0 ? null : JSON.parse(await readFile(words.splice(at, 2)[1], "utf8"));
const models = [];
for (const file of words) {
  const session = await ort.InferenceSession.create(await readFile(file));
  const inputs = given ? Object.fromEntries(session.inputNames.map((n) => [n, tensor(given[n])])) : zeros(session);
  const outputs = given ? await session.run(inputs) : {};
  models.push({ file, bytes: (await readFile(file)).length, session, inputs, outputs, times: [] });
}
const end = performance.now() + 1000 * SECONDS * models.length;
for (let round = 0; round < 5 || (!given && performance.now() < end); round++)
  for (const m of models) {
    const start = performance.now();
    await m.session.run(m.inputs);
    if (round) m.times.push(performance.now() - start);
  }
for (const m of models) {
  const outputs = Object.fromEntries(Object.entries(m.outputs).map(([n, t]) => [n, { type: t.type, dims: t.dims, data: Array.from(t.data, Number) }]));
  m.times.sort((a, b) => a - b);
  console.log(JSON.stringify({ file: m.file, bytes: m.bytes, milliseconds: m.times[m.times.length >> 1], runs: m.times.length, ...(given && { outputs }) }));
}
