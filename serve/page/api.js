// The server's OpenAI-compatible API, as far as a chat needs it.

export class ApiError extends Error {
  constructor(message, status = 0, code = null) {
    super(message);
    this.status = status; // 0: no answer at all, or one that broke off
    this.code = code;
  }
}

// Relative to the page, so that it works behind a proxy that serves it under a path.
const address = (path) => new URL(`v1/${path}`, document.baseURI);

async function ask(path, key, options = {}) {
  const headers = { "Content-Type": "application/json" };
  if (key) headers.Authorization = `Bearer ${key}`;
  let response;
  try {
    response = await fetch(address(path), { ...options, headers });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError("");
  }
  if (response.ok) return response;
  const body = await response.json().catch(() => null);
  throw new ApiError(body?.error?.message ?? response.statusText, response.status, body?.error?.code);
}

/**
 * The models and adapters that the server has: {id, length, sampling, interpreter}, the window, the
 * defaults, and how to ask for code on the way, where the server runs some.
 */
export async function models(key) {
  const response = await ask("models", key);
  return (await response.json()).data.map(
    ({ id, max_model_len: length, sampling, code_interpreter: interpreter }) => ({ id, length, sampling, interpreter }),
  );
}

/** An answer as it comes: {content, finish} or {usage}; thoughts stand between markers. */
export async function* chat(body, key, signal) {
  const streamed = { ...body, stream: true, stream_options: { include_usage: true } };
  const request = { method: "POST", body: JSON.stringify(streamed), signal };
  const response = await ask("chat/completions", key, request);
  let thinking = false;
  for await (const data of events(response.body)) {
    if (data === "[DONE]") return;
    const chunk = JSON.parse(data);
    if (chunk.error) throw new ApiError(chunk.error.message, chunk.error.code);
    if (chunk.usage) yield { content: "", usage: chunk.usage };
    const choice = chunk.choices?.[0];
    if (!choice) continue;
    const { reasoning_content: thought, content: text } = choice.delta;
    let content = "";
    if (thought) content += (thinking ? "" : "<think>\n") + thought;
    thinking ||= Boolean(thought);
    if (text) content += (thinking ? "\n</think>\n\n" : "") + text;
    thinking &&= !text;
    yield { content, finish: choice.finish_reason };
  }
  throw new ApiError("");
}

/**
 * An answer with code on the way: parts of `chat`, and {text}, all of it, whenever some has run.
 * tool: how a model says that it is asked.
 */
export async function* interpreted(body, tool, key, signal) {
  const earlier = body.messages.slice(0, -1);
  const question = { role: "user", content: tool.ask + body.messages.at(-1).content };
  let text = "";
  for (let runs = 0, shown = ""; runs < tool.runs && shown !== null; ) {
    const asked = { ...body, messages: [...earlier, question], stop: [tool.stop] };
    if (text) {
      asked.messages.push({ role: "assistant", content: text });
      Object.assign(asked, { continue_final_message: true, add_generation_prompt: false });
    }
    let reply = "";
    let ended;
    for await (const { finish, ...part } of chat(asked, key, signal)) {
      reply += part.content;
      ended = finish ?? ended;
      yield part;
    }
    const turn = { method: "POST", body: JSON.stringify({ begun: text, reply }), signal };
    ({ text, shown, runs } = await (await ask("code_interpreter", key, turn)).json());
    yield { content: "", text, finish: shown === null || runs >= tool.runs ? ended : undefined };
  }
}

/** The data of server-sent events, whatever pieces the network makes of them. */
async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  let data = [];
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      const lines = (rest + value).split("\n");
      rest = lines.pop();
      for (const raw of lines) {
        const line = raw.endsWith("\r") ? raw.slice(0, -1) : raw;
        if (line.startsWith("data:")) data.push(line.slice(line[5] === " " ? 6 : 5));
        else if (!line && data.length) {
          yield data.join("\n");
          data = [];
        }
      }
    }
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError("");
  } finally {
    reader.cancel().catch(() => {});
  }
}
