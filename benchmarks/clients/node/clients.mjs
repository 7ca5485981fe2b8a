// Clients for Node against a server of the bundled model: what became of every check, as JSON.
//
//     node clients.mjs URL KEY QUESTION ANSWER

import assert from "node:assert/strict";

import { createOpenAI } from "@ai-sdk/openai";
import Anthropic from "@anthropic-ai/sdk";
import { generateText, jsonSchema, Output, streamText, tool } from "ai";
import OpenAI from "openai";
import { zodTextFormat } from "openai/helpers/zod";
import { z } from "zod";

const [url, key, question, answer] = process.argv.slice(2);
const openai = new OpenAI({ baseURL: `${url}/v1`, apiKey: key, maxRetries: 0 });
const claude = new Anthropic({ baseURL: url, apiKey: key, maxRetries: 0 });
const sdk = createOpenAI({ baseURL: `${url}/v1`, apiKey: key });
const ask = { model: "demo", input: question, temperature: 0 };
const say = { model: "demo", max_tokens: 100, messages: [{ role: "user", content: question }] };
const city = { type: "string", enum: ["Paris", "Rome"] };
const schema = { type: "object", properties: { city }, required: ["city"], additionalProperties: false };
const Person = z.object({ name: z.enum(["Ann", "Bob"]), grown: z.boolean() });
const greedy = { maxRetries: 0, temperature: 0, maxOutputTokens: 100, prompt: question };

async function collected(stream) {
  let text = "";
  for await (const piece of stream) text += piece;
  return text;
}

const checks = {
  async openai_create() {
    const made = await openai.responses.create(ask);
    assert.equal(made.output_text, answer);
    assert.equal((await openai.responses.retrieve(made.id)).output_text, answer);
    await openai.responses.delete(made.id);
    await assert.rejects(openai.responses.retrieve(made.id), OpenAI.NotFoundError);
  },
  async openai_stream() {
    let text = "";
    const stream = openai.responses.stream(ask);
    stream.on("response.output_text.delta", (event) => (text += event.delta));
    const last = await stream.finalResponse();
    assert.equal(text, answer);
    assert.equal(last.output_text, answer);
  },
  async openai_parse() {
    const text = { format: zodTextFormat(Person, "person") };
    const made = await openai.responses.parse({ ...ask, text });
    assert.ok(["Ann", "Bob"].includes(made.output_parsed.name));
  },
  async openai_tools() {
    const tools = [{ type: "function", name: "weather", parameters: schema, strict: true }];
    const made = await openai.responses.create({ ...ask, tools, tool_choice: "required" });
    const call = made.output.find((item) => item.type === "function_call");
    assert.ok(city.enum.includes(JSON.parse(call.arguments).city));
    const input = [{ type: "function_call_output", call_id: call.call_id, output: "sunny" }];
    const next = await openai.responses.create({ ...ask, tools, input, previous_response_id: made.id });
    assert.equal(next.status, "completed");
  },
  async openai_chat() {
    const messages = say.messages;
    const made = await openai.chat.completions.create({ model: "demo", messages, temperature: 0 });
    assert.equal(made.choices[0].message.content, answer);
  },
  async anthropic_create() {
    const made = await claude.messages.create({ ...say, top_k: 1 });
    assert.equal(made.content[0].text, answer);
    const count = await claude.messages.countTokens({ model: "demo", messages: say.messages });
    assert.equal(count.input_tokens, made.usage.input_tokens + made.usage.cache_read_input_tokens);
  },
  async anthropic_stream() {
    let text = "";
    const stream = claude.messages.stream({ ...say, top_k: 1 }).on("text", (piece) => (text += piece));
    const last = await stream.finalMessage();
    assert.equal(text, answer);
    assert.equal(last.content[0].text, answer);
  },
  async anthropic_tools() {
    const tools = [{ name: "weather", description: "The weather", input_schema: schema }];
    const how = { ...say, top_k: 1, tools };
    const made = await claude.messages.create({ ...how, tool_choice: { type: "any" } });
    const use = made.content.find((block) => block.type === "tool_use");
    assert.ok(city.enum.includes(use.input.city));
    const result = { type: "tool_result", tool_use_id: use.id, content: "sunny" };
    const turns = [
      ...say.messages,
      { role: "assistant", content: made.content },
      { role: "user", content: [result] },
    ];
    assert.ok((await claude.messages.create({ ...how, messages: turns })).stop_reason);
  },
  // its openai(model) speaks Responses, .chat(model) chat completions
  async ai_sdk_text() {
    for (const model of [sdk("demo"), sdk.chat("demo")]) {
      assert.equal((await generateText({ model, ...greedy })).text, answer);
      assert.equal(await collected(streamText({ model, ...greedy }).textStream), answer);
    }
  },
  async ai_sdk_object() {
    const output = Output.object({ schema: Person });
    const made = await generateText({ model: sdk("demo"), ...greedy, output });
    assert.ok(["Ann", "Bob"].includes(made.output.name));
  },
  async ai_sdk_tools() {
    const calls = [];
    const weather = tool({
      description: "The weather",
      inputSchema: jsonSchema(schema),
      execute: async (given) => (calls.push(given.city), "sunny"),
    });
    await generateText({ model: sdk("demo"), ...greedy, tools: { weather }, toolChoice: "required" });
    assert.ok(city.enum.includes(calls[0]));
  },
};

const found = {};
for (const [name, check] of Object.entries(checks)) {
  try {
    await check();
    found[name] = "";
  } catch (error) {
    found[name] = String(error?.stack ?? error).slice(0, 2000);
  }
}
console.log(JSON.stringify(found));
