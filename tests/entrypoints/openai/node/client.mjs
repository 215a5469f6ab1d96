// Asks the server at the URL what a program would, with OpenAI's library; prints what it got.
import OpenAI from "openai";

const client = new OpenAI({ baseURL: process.argv[2], apiKey: "secret", maxRetries: 0 });
const messages = [{ role: "user", content: "The code of" }];
const told = {};

told.models = [];
for await (const model of client.models.list()) told.models.push(model.id);

const completion = await client.completions.create({
  model: "demo", prompt: ["The code", " of"], max_tokens: 2, n: 2, logprobs: 1, echo: true,
});
told.completion = completion.choices.map((choice) => choice.text);
told.tokens = completion.choices[0].logprobs.tokens;

const whole = await client.chat.completions.create({ model: "demo", messages, max_tokens: 5 });
told.whole = whole.choices[0].message.content;

told.streamed = "";
const stream = await client.chat.completions.create({
  model: "demo", messages, max_tokens: 5, stream: true, stream_options: { include_usage: true },
});
for await (const chunk of stream) {
  told.streamed += chunk.choices[0]?.delta?.content ?? "";
  if (chunk.usage) told.usage = chunk.usage.completion_tokens;
}

const response = await client.responses.create({ model: "demo", input: "The code of", max_output_tokens: 5 });
told.response = response.output_text;

told.refusals = [];
for (const body of [{ model: "other", messages }, { model: "demo", messages, n: -1 }]) {
  try {
    await client.chat.completions.create(body);
  } catch (error) {
    told.refusals.push([error.constructor.name, error.status, error.param]);
  }
}
try {
  await new OpenAI({ baseURL: process.argv[2], apiKey: "wrong", maxRetries: 0 }).models.list();
} catch (error) {
  told.refusals.push([error.constructor.name, error.status, null]);
}

console.log(JSON.stringify(told));
