// The real `openai` client for Node against `origin.py`: errors, retries, timeouts, broken streams, Responses.
import assert from "node:assert/strict";
import { createRequire } from "node:module";

const OpenAI = createRequire(`${process.env.HONE_NODE_MODULES}/`)("openai");
const [, , baseURL, key] = process.argv;
const client = new OpenAI({ baseURL, apiKey: "sk-test", maxRetries: 2 });
const chat = (model, more = {}, options = {}) =>
  client.chat.completions.create({ model, messages: [{ role: "user", content: "Hello?" }], ...more }, options);
const failure = async (call) => {
  try {
    return ["nothing", await call()];
  } catch (error) {
    const api = error instanceof OpenAI.APIError;
    return [error.constructor.name, error.status, api && error.status ? error.message : undefined, error.code];
  }
};
const seen = { errors: {} };

for (const status of [400, 401, 403, 404, 409, 422, 429, 500, 503]) {
  seen.errors[status] = await failure(() => chat(`fail:${status}`));
}
assert.equal(seen.errors[429][0], "RateLimitError");
assert.equal(seen.errors[500][0], "InternalServerError");
for (const status of [429, 503]) {
  const { data, response } = await chat(`flaky:${status}:${key}`).withResponse();
  seen[`retried ${status}`] = [data.choices[0].message.content, response.status];
}
const { response } = await chat("m").withResponse();
seen.headers = ["x-request-id", "x-ratelimit-limit-requests", "openai-processing-ms"].map((n) => response.headers.get(n));
assert.ok(seen.headers.every(Boolean));
seen.timeout = await failure(() => chat("slow", {}, { timeout: 300, maxRetries: 0 }));
assert.equal(seen.timeout[0], "APIConnectionTimeoutError");

seen.streams = {};
for (const model of ["m", "broken", "cut"]) {
  let text = "";
  const ended = await failure(async () => {
    for await (const chunk of await chat(model, { stream: true })) text += chunk.choices[0]?.delta?.content ?? "";
  });
  seen.streams[model] = [text, ended];
}
assert.deepEqual(seen.streams.m, ["Grüezi, 世界 🦀!", ["nothing", undefined]]);
assert.notEqual(seen.streams.broken[1][0], "nothing");
assert.notEqual(seen.streams.cut[1][0], "nothing");

const first = await client.responses.create({ model: "m", input: "Hello?", store: true });
const then = await client.responses.create({ model: "m", input: "Then?", previous_response_id: first.id });
assert.equal(then.previous_response_id, first.id);
await client.responses.delete(first.id);
seen.responses = [first.output_text, then.status];
seen.events = [];
for await (const event of await client.responses.create({ model: "m", input: "Hello?", stream: true })) {
  seen.events.push(event.type);
}
assert.equal(seen.events.at(-1), "response.completed");
const vectors = await client.embeddings.create({ model: "m", input: ["a"], encoding_format: "float" });
seen.embeddings = vectors.data[0].embedding;

const controller = new AbortController();
setTimeout(() => controller.abort(), 300);
seen.aborted = (await failure(() => chat("slow", {}, { signal: controller.signal, maxRetries: 0 })))[0];
assert.equal(seen.aborted, "APIUserAbortError");
seen.after = (await chat("m")).choices[0].message.content;
console.log(JSON.stringify(seen));
