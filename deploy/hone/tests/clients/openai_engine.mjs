// The real `openai` client for Node against the real engine. Prints what it saw as JSON.
import assert from "node:assert/strict";
import { createRequire } from "node:module";

const OpenAI = createRequire(`${process.env.HONE_NODE_MODULES}/`)("openai");
const client = new OpenAI({ baseURL: process.argv[2], apiKey: "sk-test", maxRetries: 0 });
const seen = {};
seen.models = (await client.models.list()).data.map((model) => model.id);
const question = [{ role: "user", content: "What is the capital of France?" }];
const options = { model: seen.models[0], messages: question, max_tokens: 16, temperature: 0 };

const whole = await client.chat.completions.create(options);
assert.match(whole.choices[0].message.content, /Paris/);
seen.chat = [whole.choices[0].message.content, whole.choices[0].finish_reason, whole.usage.completion_tokens];

let text = "";
let usage;
const streaming = { ...options, stream: true, stream_options: { include_usage: true } };
for await (const chunk of await client.chat.completions.create(streaming)) {
  text += chunk.choices[0]?.delta?.content ?? "";
  usage = chunk.usage ?? usage;
}
assert.equal(text, seen.chat[0]);
assert.equal(usage.completion_tokens, seen.chat[2]);

const helper = client.chat.completions.stream({ ...options, messages: [{ role: "user", content: "Name a colour." }] });
seen.helper = (await helper.finalChatCompletion()).choices[0].message.content;
const schema = { type: "object", properties: { city: { type: "string", maxLength: 12 } }, required: ["city"],
  additionalProperties: false };
const tools = [{ type: "function", function: { name: "get_weather", parameters: schema } }];
const called = await client.chat.completions.create({ ...options, max_tokens: 40, tools, tool_choice: "required" });
seen.call = called.choices[0].message.tool_calls[0].function;
assert.equal(seen.call.name, "get_weather");
seen.legacy = (await client.completions.create({ model: options.model, prompt: "Once upon a time", max_tokens: 8,
  temperature: 0 })).choices[0].text;

seen.errors = [];
for (const wrong of [{ model: "no-such-model" }, { max_tokens: -3 }]) {
  await assert.rejects(client.chat.completions.create({ ...options, ...wrong }), (error) => {
    seen.errors.push([error.constructor.name, error.status, error.code]);
    return error instanceof OpenAI.APIError;
  });
}
assert.deepEqual(seen.errors.map(([name]) => name), ["NotFoundError", "BadRequestError"]);

// A stream that is left early: the engine is free again for the next question.
const left = await client.chat.completions.create({ ...options, max_tokens: 200, stream: true,
  messages: [{ role: "user", content: "Tell me a long story about a dog." }] });
for await (const chunk of left) {
  if (chunk.choices[0]?.delta?.content) break;
}
seen.after = (await client.chat.completions.create(options)).choices[0].message.content;
console.log(JSON.stringify(seen));
