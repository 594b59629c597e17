"""The real `openai` client against the real engine, unchanged but for base_url. Prints what it saw as JSON."""
import asyncio
import json
import sys

import openai

BASE = sys.argv[1]
client = openai.OpenAI(base_url=BASE, api_key="sk-test", max_retries=0)
model = client.models.list().data[0].id
question = [{"role": "user", "content": "What is the capital of France?"}]
options = {"model": model, "messages": question, "max_tokens": 16, "temperature": 0}
seen = {"models": [known.id for known in client.models.list().data]}


def chat_of(completion):
    return [(choice.index, choice.message.content, choice.finish_reason) for choice in completion.choices]


whole = client.chat.completions.create(**options)
assert "Paris" in whole.choices[0].message.content, whole
assert whole.choices[0].finish_reason == "stop" and whole.usage.completion_tokens > 0, whole
seen["chat"] = [chat_of(whole), whole.usage.completion_tokens, whole.usage.prompt_tokens]

text, usage, finish = "", None, None
for chunk in client.chat.completions.create(**options, stream=True, stream_options={"include_usage": True}):
    if chunk.choices:
        text += chunk.choices[0].delta.content or ""
        finish = chunk.choices[0].finish_reason or finish
    usage = chunk.usage or usage
assert text == whole.choices[0].message.content, (text, whole)
assert finish == "stop" and usage.completion_tokens == whole.usage.completion_tokens, (finish, usage)
seen["stream"] = [text, finish, usage.completion_tokens]

several = client.chat.completions.create(**{**options, "max_tokens": 6, "n": 2})
assert [choice.index for choice in several.choices] == [0, 1], several
seen["n"] = chat_of(several)

likely = client.chat.completions.create(**{**options, "max_tokens": 2}, logprobs=True, top_logprobs=2)
tokens = likely.choices[0].logprobs.content
assert len(tokens) == 2 and all(len(token.top_logprobs) == 2 for token in tokens), likely
seen["logprobs"] = [(token.token, round(token.logprob, 3)) for token in tokens]

legacy = {"model": model, "prompt": "Once upon a time", "max_tokens": 8, "temperature": 0}
seen["legacy"] = client.completions.create(**legacy).choices[0].text
pieces = [chunk.choices[0].text for chunk in client.completions.create(**legacy, stream=True) if chunk.choices]
assert "".join(pieces) == seen["legacy"], (pieces, seen)

# A 135M model seldom calls a tool of its own accord; here it must, so that calls and their deltas cross the wire.
tool = {"type": "function", "function": {"name": "get_weather", "description": "Weather of a city",
        "parameters": {"type": "object", "properties": {"city": {"type": "string", "maxLength": 12}},
                       "required": ["city"], "additionalProperties": False}}}
forced = {**options, "max_tokens": 40, "tools": [tool], "tool_choice": "required"}
call = client.chat.completions.create(**forced).choices[0].message.tool_calls[0]
assert call.function.name == "get_weather", call
seen["call"] = call.function.arguments
name, arguments = "", ""
for chunk in client.chat.completions.create(**forced, stream=True):
    for choice in chunk.choices:
        for delta in choice.delta.tool_calls or []:
            name, arguments = name + (delta.function.name or ""), arguments + (delta.function.arguments or "")
assert (name, arguments) == ("get_weather", call.function.arguments), (name, arguments, call)
told = question + [
    {"role": "assistant", "content": None, "tool_calls": [
        {"id": "call_1", "type": "function", "function": {"name": "get_weather", "arguments": "{\"city\":\"Paris\"}"}}]},
    {"role": "tool", "tool_call_id": "call_1", "content": "{\"celsius\": 21}"},
]
seen["after the tool"] = chat_of(client.chat.completions.create(**{**options, "messages": told}, tools=[tool]))

seen["errors"] = []
for wrong in ({"model": "no-such-model"}, {"max_tokens": -3}, {"messages": "none"}):
    try:
        client.chat.completions.create(**{**options, **wrong})
        raise SystemExit(f"{wrong} was accepted")
    except openai.APIStatusError as error:
        seen["errors"].append([type(error).__name__, error.status_code, error.code, error.param, error.body])
assert [kind for kind, *_ in seen["errors"]] == ["NotFoundError", "BadRequestError", "BadRequestError"], seen


async def at_once():
    """The asynchronous client, with three requests in flight on its pool."""
    asynchronous = openai.AsyncOpenAI(base_url=BASE, api_key="sk-test", max_retries=0)

    async def one(city):
        asked = {**options, "messages": [{"role": "user", "content": f"Name a river near {city}."}]}
        stream = await asynchronous.chat.completions.create(**asked, stream=True)
        return "".join([chunk.choices[0].delta.content or "" async for chunk in stream if chunk.choices])

    async with asynchronous:
        return await asyncio.gather(*(one(city) for city in ("Bern", "London", "Rome")))


seen["at once"] = asyncio.run(at_once())
assert all(seen["at once"]), seen
print(json.dumps(seen))
