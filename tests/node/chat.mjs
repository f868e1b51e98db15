// Asks one question plain and one streamed through the OpenAI Node SDK; prints what came as JSON.
// usage: node chat.mjs BASE_URL API_KEY QUESTION
import OpenAI from "openai";

const [baseURL, apiKey, question] = process.argv.slice(2);
const client = new OpenAI({ baseURL, apiKey, maxRetries: 0 });
const messages = [{ role: "user", content: question }];
const options = { model: "builtin", messages, temperature: 0, max_tokens: 64 };

const plain = await client.chat.completions.create(options);

let streamed = "";
let chunks = 0;
let usage = null;
const tiers = new Set();
const stream = await client.chat.completions.create({
  ...options,
  stream: true,
  stream_options: { include_usage: true },
});
for await (const chunk of stream) {
  chunks += 1;
  tiers.add(chunk.service_tier);
  streamed += chunk.choices[0]?.delta?.content ?? "";
  usage = chunk.usage ?? usage;
}

console.log(
  JSON.stringify({
    plain: plain.choices[0].message.content,
    plain_tier: plain.service_tier,
    plain_usage: plain.usage,
    streamed,
    chunks,
    tiers: [...tiers],
    usage,
  }),
);
