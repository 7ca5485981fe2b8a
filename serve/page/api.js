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

/** The models and adapters that the server has: {id, length, sampling}, the window and defaults. */
export async function models(key) {
  const response = await ask("models", key);
  return (await response.json()).data.map(({ id, max_model_len: length, sampling }) => ({ id, length, sampling }));
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
